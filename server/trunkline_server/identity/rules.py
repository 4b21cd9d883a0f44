"""What makes a password, a key, a token and an audit chain good. No I/O, no clock."""

import binascii
import hashlib
import hmac
import ipaddress
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from trunkline_server.rpc.caller import Role

# -- passwords

PASSWORD_CHARS_MIN = 12
PASSWORD_BYTES_MAX = 1024
PASSWORD_DISTINCT_MIN = 5
# A local part as short as this turns up in good passwords by accident.
EMAIL_PART_CHARS_MIN = 4
_COMMON_STEMS = frozenset(
    {
        "password", "passwort", "passphrase", "qwertyuiop", "qwertzuiop", "qwerty", "qwertz",
        "asdfghjkl", "letmein", "welcome", "iloveyou", "trunkline", "administrator", "admin",
        "changeme", "secret", "callcenter", "callcentre", "dragon", "monkey", "football",
        "baseball", "sunshine", "princess", "superman", "batman", "master", "login", "hello",
        "abc", "abcdef", "abcdefgh", "abcdefghijkl", "correcthorsebatterystaple",
    }
)  # fmt: skip


def normalised_password(password: str) -> str:
    """One spelling for one password, whatever keyboard composed its characters."""
    return unicodedata.normalize("NFKC", password)


def password_weakness(password: str, email: str) -> str | None:
    """Why the (normalised) password is refused, in words that do not repeat it."""
    lowered = password.lower()
    local_part = email.partition("@")[0].lower()
    if len(password) < PASSWORD_CHARS_MIN:
        return f"at least {PASSWORD_CHARS_MIN} characters"
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        return f"at most {PASSWORD_BYTES_MAX} bytes"
    if len(local_part) >= EMAIL_PART_CHARS_MIN and local_part in lowered:
        return "must not contain the e-mail address"
    if len(set(lowered)) < PASSWORD_DISTINCT_MIN or _repeats(lowered):
        return "too repetitive"
    if lowered.strip(string.digits + string.punctuation + " ") in _COMMON_STEMS | {""}:
        return "too common"
    return None


def _repeats(text: str) -> bool:
    """A short piece, again and again: it is found inside its own doubling."""
    return 0 < (text + text).find(text, 1) < len(text)


def normalised_email(email: str) -> str:
    return unicodedata.normalize("NFKC", email).strip().lower()


# -- API keys and refresh tokens

API_KEY_SCHEME = "tlk"
REFRESH_SCHEME = "tlr"
KEY_PREFIX_CHARS = 12
SECRET_CHARS = 43  # 62 ** 43 > 2 ** 256
_CHECKSUM_CHARS = 6  # 62 ** 6 > 2 ** 32
_TOKEN_ID_CHARS = 32
_ALPHABET: Final = string.digits + string.ascii_letters
_ALPHABET_SET: Final = frozenset(_ALPHABET)
_HEX: Final = frozenset("0123456789abcdef")


def base62(random: bytes, length: int) -> str:
    """The last `length` digits, so give it more bits than they hold."""
    number, digits = int.from_bytes(random, "big"), []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(digits)


def _checksum(body: str) -> str:
    return base62(binascii.crc32(body.encode()).to_bytes(4, "big"), _CHECKSUM_CHARS)


def _with_checksum(scheme: str, name: str, secret: str) -> str:
    body = f"{scheme}_{name}_{secret}"
    return body + _checksum(body)


def _name_of(token: str, scheme: str, name_chars: int, name_set: frozenset[str]) -> str | None:
    """The public part of a token that was typed and copied whole, or None."""
    given_scheme, _, rest = token.partition("_")
    name, _, tail = rest.partition("_")
    if given_scheme != scheme or len(name) != name_chars or not name_set.issuperset(name):
        return None
    if len(tail) != SECRET_CHARS + _CHECKSUM_CHARS or not _ALPHABET_SET.issuperset(tail):
        return None
    body, checksum = token[:-_CHECKSUM_CHARS], token[-_CHECKSUM_CHARS:]
    return name if _checksum(body) == checksum else None


def api_key(random: bytes) -> tuple[str, str]:
    """(prefix, whole key) from 48 random bytes."""
    prefix, secret = base62(random[:12], KEY_PREFIX_CHARS), base62(random[12:], SECRET_CHARS)
    return prefix, _with_checksum(API_KEY_SCHEME, prefix, secret)


def api_key_prefix(key: str) -> str | None:
    """The prefix to look the key up by; None where form or checksum is wrong."""
    return _name_of(key, API_KEY_SCHEME, KEY_PREFIX_CHARS, _ALPHABET_SET)


def shown_prefix(prefix: str) -> str:
    return f"{API_KEY_SCHEME}_{prefix}"


def refresh_token(token_id: UUID, random: bytes) -> str:
    return _with_checksum(REFRESH_SCHEME, token_id.hex, base62(random, SECRET_CHARS))


def refresh_token_id(token: str) -> UUID | None:
    name = _name_of(token, REFRESH_SCHEME, _TOKEN_ID_CHARS, _HEX)
    return UUID(name) if name else None


class Peppers:
    """The server's secrets for digests: the first makes them, all of them are tried."""

    MINIMUM_BYTES = 32

    def __init__(self, peppers: Sequence[bytes]) -> None:
        if not peppers or any(len(pepper) < self.MINIMUM_BYTES for pepper in peppers):
            raise ValueError(f"a pepper has at least {self.MINIMUM_BYTES} bytes")
        self._peppers = tuple(peppers)

    def digest(self, purpose: str, content: bytes) -> bytes:
        return _keyed(self._peppers[0], purpose, content)

    def candidates(self, purpose: str, content: bytes) -> list[bytes]:
        return [_keyed(pepper, purpose, content) for pepper in self._peppers]

    def match(self, purpose: str, content: bytes, digest: bytes) -> bool:
        matches = [
            hmac.compare_digest(candidate, digest)
            for candidate in self.candidates(purpose, content)
        ]
        # Each was compared, so that time does not tell which pepper made it.
        return any(matches)

    def is_current(self, purpose: str, content: bytes, digest: bytes) -> bool:
        return hmac.compare_digest(self.digest(purpose, content), digest)


def _keyed(pepper: bytes, purpose: str, content: bytes) -> bytes:
    return hmac.digest(pepper, purpose.encode() + b"\0" + content, hashlib.sha256)


# -- access tokens

ACCESS_TOKEN_S = 15 * 60
CLOCK_LEEWAY_S = 60
_ALLOWED_HEADER: Final = frozenset({"alg", "typ", "kid"})
TOKEN_TYPE = "at+jwt"  # noqa: S105 - a media type
TOKEN_ALGORITHM = "EdDSA"  # noqa: S105


def header_is_ours(header: Mapping[str, Any]) -> bool:
    """Only what we write ourselves: no `jku`, `jwk`, `x5u` or `crit`, whatever it says."""
    return (
        _ALLOWED_HEADER.issuperset(header)
        and header.get("alg") == TOKEN_ALGORITHM
        and header.get("typ") == TOKEN_TYPE
        and isinstance(header.get("kid"), str)
    )


@dataclass(frozen=True, slots=True)
class Claims:
    org_id: UUID
    user_id: UUID
    session_id: UUID
    expires_at: float  # seconds since the epoch, leeway not included


def checked_claims(
    claims: Mapping[str, Any], *, issuer: str, audience: str, now: float
) -> Claims | None:
    """The claims of a token whose signature holds, or None."""
    if claims.get("iss") != issuer or claims.get("aud") != audience:
        return None
    times = [claims.get(name) for name in ("exp", "nbf", "iat")]
    if not all(isinstance(t, int) and not isinstance(t, bool) for t in times):
        return None
    expires_at, not_before, issued_at = (int(t or 0) for t in times)
    if now >= expires_at + CLOCK_LEEWAY_S or now < not_before - CLOCK_LEEWAY_S:
        return None
    if issued_at > now + CLOCK_LEEWAY_S or expires_at - issued_at > ACCESS_TOKEN_S:
        return None
    try:
        org_id, user_id, session_id = (UUID(claims[name]) for name in ("org", "sub", "sid"))
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    return Claims(org_id, user_id, session_id, float(expires_at))


# -- roles

_USER_ROLES: Final = frozenset({Role.AGENT, Role.TRAINER, Role.REGISTRAR, Role.ADMIN})
_KEY_ROLES: Final = frozenset(Role)


def user_may_have(role: Role) -> bool:
    """SYSTEM is for programs, which have keys; a password is the wrong credential for them."""
    return role in _USER_ROLES


def key_may_have(role: Role) -> bool:
    return role in _KEY_ROLES


# -- guessing

ATTEMPTS_BURST = 10
ATTEMPT_INTERVAL_S = 30.0
# Without Valkey each process counts for itself, so each allows less.
ATTEMPTS_BURST_ALONE = 3
_IPV6_PREFIX_BITS = 64


def address_scope(address: str) -> str:
    """What one guesser can be expected to hold: an IPv4 address, a /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_PREFIX_BITS), strict=False))
    return str(parsed)


def gcra(
    arrival_at: float | None, now: float, *, interval_s: float, burst: int
) -> tuple[float, float]:
    """(theoretical arrival time, seconds to wait). Nothing is taken where there is a wait."""
    earliest = max(arrival_at if arrival_at is not None else now, now)
    wait_s = earliest - (burst - 1) * interval_s - now
    if wait_s > 0:
        return earliest, wait_s
    return earliest + interval_s, 0.0
