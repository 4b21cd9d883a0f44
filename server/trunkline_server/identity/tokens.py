"""Access tokens: Ed25519 JWTs, made and read by nobody else, so read without any leniency."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from trunkline_server.errors import Unauthenticated
from trunkline_server.identity import rules
from trunkline_server.identity.errors import AccessTokenExpired
from trunkline_server.identity.rules import Claims

ISSUER = "trunkline"
AUDIENCE = "trunkline"
TOKEN_CHARS_MAX = 2_048
_KID_HEX_CHARS = 16
_READ_OPTIONS: jwt.types.Options = {
    "require": ["exp", "nbf", "iat", "iss", "aud", "sub", "sid", "org"],
    # The times are checked by our own rule, with this process's clock.
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "strict_aud": True,
}


class SigningKeyInvalid(Exception):
    """The configured key is not an Ed25519 private key in PEM form."""


@dataclass(frozen=True, slots=True)
class Issued:
    token: str
    expires_at: float


class AccessTokens:
    """Signs with the first key, accepts all given ones; a key's id is its own digest."""

    def __init__(
        self,
        pems: Sequence[str],
        *,
        issuer: str = ISSUER,
        audience: str = AUDIENCE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        keys = [_private_key(pem) for pem in pems]
        if not keys:
            raise SigningKeyInvalid("at least one signing key is needed")
        self._signing_key = keys[0]
        self._signing_kid = kid(keys[0].public_key())
        self._verification_keys = {kid(k.public_key()): k.public_key() for k in keys}
        self._issuer = issuer
        self._audience = audience
        self._clock = clock

    def issue(self, org_id: UUID, user_id: UUID, session_id: UUID) -> Issued:
        now = int(self._clock())
        expires_at = now + rules.ACCESS_TOKEN_S
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": str(user_id),
            "org": str(org_id),
            "sid": str(session_id),
            "iat": now,
            "nbf": now,
            "exp": expires_at,
        }
        header = {"kid": self._signing_kid, "typ": rules.TOKEN_TYPE}
        signed = jwt.encode(claims, self._signing_key, rules.TOKEN_ALGORITHM, header)
        return Issued(signed, float(expires_at))

    def read(self, token: str) -> Claims:
        """The claims, or Unauthenticated. Unknown key ids are refused from memory: keys come with
        the configuration, so there is nothing to fetch."""
        if len(token) > TOKEN_CHARS_MAX:
            raise Unauthenticated
        try:
            header = jwt.get_unverified_header(token)
            if not rules.header_is_ours(header):
                raise Unauthenticated
            key = self._verification_keys.get(header["kid"])
            if key is None:
                raise Unauthenticated
            claims = jwt.decode(
                token,
                key,
                algorithms=[rules.TOKEN_ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                options=_READ_OPTIONS,
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated from None
        now = self._clock()
        checked = rules.checked_claims(
            claims, issuer=self._issuer, audience=self._audience, now=now
        )
        if checked is None:
            if _merely_expired(claims.get("exp"), now):
                raise AccessTokenExpired
            raise Unauthenticated
        return checked


def _merely_expired(expires_at: object, now: float) -> bool:
    return isinstance(expires_at, int) and now >= expires_at + rules.CLOCK_LEEWAY_S


def new_signing_key() -> str:
    """A fresh private key, as PEM."""
    return (
        Ed25519PrivateKey.generate()
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


def kid(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:_KID_HEX_CHARS]


def _private_key(pem: str) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError):
        # The cause's text may quote the file: it is dropped.
        raise SigningKeyInvalid("the signing key is not readable PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyInvalid("the signing key is not an Ed25519 key")
    return key
