"""Who the caller is."""

import base64
import binascii
import json
import time
from dataclasses import dataclass, field
from typing import Protocol

from trunkline.api.identity.v1 import identity_service_pb2 as pb

# An access token is renewed in the background after this share of its life, and waited for from
# this long before its end.
REFRESH_AT_SHARE = 0.7
EXPIRY_MARGIN_S = 5.0

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Login:
    """A user's log-in."""

    org_slug: str
    email: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pair of tokens as a log-in leaves it, with the times by this machine's clock."""

    access: str = field(repr=False)
    refresh: str = field(repr=False)
    made_at_s: float
    expires_at_s: float

    @property
    def due_at_s(self) -> float:
        return self.made_at_s + REFRESH_AT_SHARE * (self.expires_at_s - self.made_at_s)


class TokenStore(Protocol):
    """Where tokens outlive the process. A refresh happens while the lock is held and after
    another `load`: a refresh token that two processes use gets all of them revoked."""

    def load(self) -> Tokens | None: ...
    def save(self, tokens: Tokens) -> None: ...
    def try_lock(self) -> bool: ...
    def unlock(self) -> None: ...


class MemoryTokens:
    """Tokens of one client, which has a lock of its own already."""

    def __init__(self, tokens: Tokens | None = None) -> None:
        self._tokens = tokens

    def load(self) -> Tokens | None:
        return self._tokens

    def save(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def try_lock(self) -> bool:
        return True

    def unlock(self) -> None:
        pass


def bearer(credential: str) -> Metadata:
    return (("authorization", f"Bearer {credential}"),)


def tokens_of(pair: pb.TokenPair) -> Tokens:
    now_s = time.time()
    life_s = _life_s(pair.access_token)
    if life_s is None:
        life_s = pair.access_expire_time.ToNanoseconds() / 1e9 - now_s
    return Tokens(pair.access_token, pair.refresh_token, now_s, now_s + life_s)


def _life_s(token: str) -> float | None:
    """How long a token lives by its own account: this machine's clock may be wrong."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return float(claims["exp"]) - float(claims["iat"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return None
