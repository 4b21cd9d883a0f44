"""Servers and credentials that outlive a process: profiles, and the environment over them.

`config.toml` holds what may be read by anybody; `credentials.json` beside it the secrets, for its
owner only. Both lie in `$XDG_CONFIG_HOME/trunkline`, usually `~/.config/trunkline`.
"""

import json
import os
import re
import stat
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trunkline._shared.connection import DEFAULT_ADDRESS
from trunkline._shared.credentials import Tokens, TokenStore
from trunkline.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl

DEFAULT_PROFILE = "default"
PRIVATE_MODE = 0o600
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_YES_OR_NO = {"1": True, "true": True, "yes": True, "on": True}
_YES_OR_NO |= {"0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Profile:
    """One server, and who one is there."""

    name: str
    address: str = DEFAULT_ADDRESS
    tls: bool | None = None
    ca_file: str | None = None
    org: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a client is made from."""

    address: str
    tls: bool | None
    ca_file: str | None
    api_key: str | None = field(repr=False)
    tokens: TokenStore | None = field(repr=False)


def folder_of(environment: Mapping[str, str]) -> Path:
    base = environment.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "trunkline"


class Profiles:
    """The profiles of one person."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_path = folder / "config.toml"
        self.secrets_path = folder / "credentials.json"

    def read(self) -> tuple[str, dict[str, Profile]]:
        """The name of the profile in use, and all of them."""
        try:
            content = tomllib.loads(self.config_path.read_text("utf-8"))
        except FileNotFoundError:
            return DEFAULT_PROFILE, {}
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self.config_path} cannot be read: {error}.", remedy="Correct or remove it."
            ) from error
        tables: Any = content.get("profiles", {})
        known = {"address", "tls", "ca_file", "org", "email"}
        found = {}
        for name, table in tables.items():
            unknown = table.keys() - known
            if unknown:
                raise ConfigurationError(
                    f"{self.config_path}: profile {name} has an unknown {sorted(unknown)[0]!r}.",
                    remedy=f"Known are {', '.join(sorted(known))}.",
                )
            found[name] = Profile(name, **table)
        return str(content.get("profile", DEFAULT_PROFILE)), found

    def write(self, current: str, profiles: Mapping[str, Profile]) -> None:
        lines = [f"profile = {json.dumps(current)}\n"]
        for name, profile in sorted(profiles.items()):
            lines.append(f"\n[profiles.{name}]\n")
            for key, value in asdict(profile).items():
                if key != "name" and value is not None:
                    lines.append(f"{key} = {json.dumps(value)}\n")
        self._replace(self.config_path, "".join(lines))

    def secrets(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._all_secrets().get(name, {})
        return found

    def write_secrets(self, name: str, secrets: Mapping[str, Any] | None) -> None:
        """Replace the secrets of a profile; None removes them."""
        content = self._all_secrets()
        content.pop(name, None)
        if secrets is not None:
            content[name] = dict(secrets)
        self._replace(self.secrets_path, json.dumps(content, indent=1))

    def _all_secrets(self) -> dict[str, Any]:
        try:
            mode = self.secrets_path.stat().st_mode
            if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(
                    f"{self.secrets_path} can be read by others.",
                    remedy=f"chmod 600 {self.secrets_path}, and renew what is in it.",
                )
            content: dict[str, Any] = json.loads(self.secrets_path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self.secrets_path} cannot be read: {error}.",
                remedy="Remove it and log in again.",
            ) from error
        return content

    def _replace(self, path: Path, content: str) -> None:
        """Whole or not at all, for the owner only from the first byte on."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=path.name)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
            Path(name).chmod(PRIVATE_MODE)
            Path(name).replace(path)
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be written: {error.strerror}.",
                remedy="Make the folder writable or set XDG_CONFIG_HOME.",
            ) from error


class ProfileTokens:
    """A profile's tokens in its secrets. The lock is the kernel's: it ends with its process."""

    def __init__(self, profiles: Profiles, name: str) -> None:
        self._profiles = profiles
        self._name = name
        self._lock: int | None = None

    def load(self) -> Tokens | None:
        kept = self._profiles.secrets(self._name).get("tokens")
        return Tokens(**kept) if kept else None

    def save(self, tokens: Tokens) -> None:
        self._profiles.write_secrets(self._name, {"tokens": asdict(tokens)})

    def try_lock(self) -> bool:
        if sys.platform == "win32":
            return True
        self._profiles.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._profiles.folder / ".lock", os.O_CREAT | os.O_RDWR, PRIVATE_MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for a profile.", remedy="Use letters, digits, - and _."
        )
    return name


def resolve(name: str | None, environment: Mapping[str, str]) -> Resolved:
    """The environment over the profile: `TRUNKLINE_ADDRESS`, `TRUNKLINE_API_KEY`,
    `TRUNKLINE_TLS`, `TRUNKLINE_CA_FILE`, `TRUNKLINE_PROFILE`."""
    profiles = Profiles(folder_of(environment))
    current, known = profiles.read()
    wanted = name or environment.get("TRUNKLINE_PROFILE")
    chosen = check_name(wanted or current)
    if wanted and wanted not in known:
        raise ConfigurationError(
            f"There is no profile {wanted!r}.",
            remedy="See `trunkline context list`, or make it with `trunkline context set`.",
        )
    profile = known.get(chosen, Profile(chosen))
    address = environment.get("TRUNKLINE_ADDRESS")
    api_key = environment.get("TRUNKLINE_API_KEY")
    tokens: TokenStore | None = None
    # A credential belongs to its server: another address alone does not get the profile's.
    if not api_key and (address is None or address == profile.address):
        secrets = profiles.secrets(chosen)
        api_key = secrets.get("api_key")
        tokens = ProfileTokens(profiles, chosen) if "tokens" in secrets else None
    return Resolved(
        address=address or profile.address,
        tls=_yes_or_no("TRUNKLINE_TLS", environment, profile.tls),
        ca_file=environment.get("TRUNKLINE_CA_FILE") or profile.ca_file,
        api_key=api_key,
        tokens=tokens,
    )


def _yes_or_no(
    variable: str, environment: Mapping[str, str], otherwise: bool | None
) -> bool | None:
    value = environment.get(variable)
    if not value:
        return otherwise
    if value.lower() not in _YES_OR_NO:
        raise ConfigurationError(f"{variable}={value} is not on or off.", remedy="Use on or off.")
    return _YES_OR_NO[value.lower()]
