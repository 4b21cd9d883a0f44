"""TLS and mutual TLS from files, read again when they change, with no restart.

grpc asks for the certificate before each handshake. A change is checked before it is handed out;
a broken one is refused and the last good one stays, so a half-written file costs nothing.
grpc's own floor is TLS 1.2.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

_log = logging.getLogger(__name__)


class CertificateInvalid(Exception):
    """The files do not make a usable certificate; the message names the file, not its content."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    configuration: grpc.ServerCertificateConfiguration
    expires: datetime


class Certificates:
    """One certificate chain, its key, and for mutual TLS the authority of the clients."""

    def __init__(self, certificate: Path, key: Path, client_authority: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_authority = client_authority
        self._lock = threading.Lock()
        self.refused = 0
        self._stamp = self._stamps()
        self._loaded = self._load()

    @property
    def expires_in_s(self) -> float:
        """For the gauge that warns before the certificate in use runs out."""
        return (self._loaded.expires - datetime.now(UTC)).total_seconds()

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration,
            self._changed,  # type: ignore[arg-type]  # its stubs forget None, its documents do not
            require_client_authentication=self._client_authority is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by grpc on a thread of its own before each handshake; None keeps what there is."""
        with self._lock:
            try:
                stamp = self._stamps()
                if stamp == self._stamp:
                    return None
                # Kept even when the load fails: a broken file is read once, not per connection.
                self._stamp = stamp
                self._loaded = self._load()
            except (CertificateInvalid, OSError) as error:
                self.refused += 1
                _log.error(
                    "certificate refused, the last good one stays",
                    extra={"file": _file_of(error, self._certificate)},
                )
                return None
            _log.info("certificate loaded", extra={"file": str(self._certificate)})
            return self._loaded.configuration

    def _files(self) -> list[Path]:
        files = [self._certificate, self._key]
        return [*files, self._client_authority] if self._client_authority else files

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        stats = [path.stat() for path in self._files()]
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    def _load(self) -> _Loaded:
        chain, key = self._certificate.read_bytes(), self._key.read_bytes()
        leaf = _certificates(self._certificate, chain)[0]
        if leaf.not_valid_after_utc <= datetime.now(UTC):
            raise CertificateInvalid(f"{self._certificate}: expired")
        try:
            private = load_pem_private_key(key, None)
        except (ValueError, TypeError) as error:
            raise CertificateInvalid(f"{self._key}: not an unencrypted PEM key") from error
        if _public(private.public_key()) != _public(leaf.public_key()):
            raise CertificateInvalid(f"{self._key}: not the key of {self._certificate}")
        authority = None
        if self._client_authority is not None:
            authority = self._client_authority.read_bytes()
            _certificates(self._client_authority, authority)
        return _Loaded(
            grpc.ssl_server_certificate_configuration([(key, chain)], authority),
            leaf.not_valid_after_utc,
        )


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateInvalid(f"{path}: not a PEM certificate") from error
    if not found:
        raise CertificateInvalid(f"{path}: holds no certificate")
    return found


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _file_of(error: Exception, default: Path) -> str:
    return str(getattr(error, "filename", None) or default)
