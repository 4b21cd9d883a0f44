"""The journal of an upload: what another process needs to continue it.

It lies beside the file and names the import. How far the import has come, and the digest of what
is stored, is asked of the server: the journal is written before anything is sent, once more when
the import has an id, and never while bytes flow (docs/adr/0022).
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from trunkline._shared.sources import FileIdentity
from trunkline.errors import FileChanged, JournalError

VERSION = 1
KEY_CHARS = 12


@dataclass(frozen=True, slots=True)
class Entry:
    """One unfinished upload."""

    request_id: str
    import_id: str
    identity: FileIdentity


class Journal:
    """`.june.csv.trunkline-0f3c..`: one for each file, server and specification."""

    def __init__(self, file: Path, address: str, spec: bytes, folder: Path | None = None) -> None:
        key = sha256(address.encode() + b"\0" + spec).hexdigest()[:KEY_CHARS]
        self.path = (folder or file.absolute().parent) / f".{file.name}.trunkline-{key}"
        self._file = file

    def read(self) -> Entry | None:
        """The unfinished upload, or None. A journal that a crash left half made counts as none:
        nothing was sent before it was whole."""
        try:
            content = json.loads(self.path.read_text("utf-8"))
            return Entry(
                content["request_id"], content["import_id"], FileIdentity(**content["identity"])
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return None
        except OSError as error:
            raise self._failure(error) from error

    def check(self, entry: Entry, identity: FileIdentity) -> None:
        """Raise if the file cannot be the one whose upload was begun. One that was only copied or
        touched can: the digest of its content will tell."""
        if entry.identity.size_bytes != identity.size_bytes:
            raise FileChanged(
                f"{self._file} changed since its upload was begun.",
                remedy="Upload it anew with resume=False (--restart).",
            )

    def write(self, entry: Entry) -> None:
        """On disk when this returns, whole or not at all."""
        content = json.dumps({"version": VERSION, **asdict(entry)}).encode()
        try:
            descriptor, name = tempfile.mkstemp(prefix=self.path.name, dir=self.path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            self._sync_folder()
        except OSError as error:
            raise self._failure(error) from error

    def remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failure(error) from error

    def _sync_folder(self) -> None:
        if os.name == "nt":  # a folder cannot be opened there
            return
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _failure(self, error: OSError) -> JournalError:
        return JournalError(
            f"The upload's journal {self.path} cannot be written: {error.strerror}.",
            remedy="Make room or make the folder writable, name another with journal=, "
            "or upload without (journal=False, --no-journal).",
        )
