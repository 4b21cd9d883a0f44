"""Page tokens: sealed positions in a list, good for one organisation, method and filter."""

import base64
import binascii
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trunkline.api.errors.v1 import reason_pb2
from trunkline_server.errors import Invalid
from trunkline_server.rpc.caller import caller, current_request

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
TOKEN_CHARS_MAX = 4_096
TOKEN_TTL_S = 24 * 3600
_NONCE_BYTES = 12
_TIME_BYTES = 8


class PageTokenInvalid(Invalid):
    # One text for every cause, so that a forger learns nothing.
    reason = reason_pb2.REASON_PAGE_TOKEN_INVALID
    text = "The page token is not valid for this request; start the list again without one."


class PageSizeNegative(Invalid):
    text = "page_size must not be negative."


def page_size(asked: int) -> int:
    if asked < 0:
        raise PageSizeNegative
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


class PageTokens:
    """Seals positions. The first secret seals, all of them open."""

    def __init__(
        self,
        secrets: Sequence[bytes],
        *,
        ttl_s: float = TOKEN_TTL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not secrets or any(len(secret) < 32 for secret in secrets):
            raise ValueError("a page secret has at least 32 bytes")
        self._ciphers = [
            AESGCM(hmac.digest(secret, b"trunkline page token 1", "sha256")) for secret in secrets
        ]
        self._ttl_s = ttl_s
        self._clock = clock

    def seal(
        self, position: Sequence[Any], filters: object = b"", *, ttl_s: float | None = None
    ) -> str:
        """`position` is what the next page starts after, in JSON's types."""
        nonce = os.urandom(_NONCE_BYTES)
        expires = int(self._clock() + (ttl_s or self._ttl_s)).to_bytes(_TIME_BYTES, "big")
        plain = expires + json.dumps(list(position), separators=(",", ":")).encode()
        sealed = nonce + self._ciphers[0].encrypt(nonce, plain, _bound_to(filters))
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open(self, token: str, filters: object = b"") -> list[Any] | None:
        """The position, or None for the first page."""
        if not token:
            return None
        if len(token) > TOKEN_CHARS_MAX:
            raise PageTokenInvalid
        plain = self._decrypted(token, _bound_to(filters))
        if int.from_bytes(plain[:_TIME_BYTES], "big") <= self._clock():
            raise PageTokenInvalid
        position = json.loads(plain[_TIME_BYTES:])
        assert isinstance(position, list)
        return position

    def _decrypted(self, token: str, bound_to: bytes) -> bytes:
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise PageTokenInvalid from None
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], bound_to)
            except (InvalidTag, ValueError):
                continue
        raise PageTokenInvalid


def _bound_to(filters: object) -> bytes:
    """What a token is good for. `filters` is the request without its page fields, or a text."""
    return _binding(caller().org_id, current_request().method, _filter_bytes(filters))


def _filter_bytes(filters: object) -> bytes:
    if isinstance(filters, bytes):
        return filters
    if hasattr(filters, "DESCRIPTOR"):
        request = type(filters)()
        request.CopyFrom(filters)  # type: ignore[attr-defined]
        request.ClearField("page_token")  # type: ignore[attr-defined]
        request.ClearField("page_size")  # type: ignore[attr-defined]
        serialised: bytes = request.SerializeToString(deterministic=True)  # type: ignore[attr-defined]
        return serialised
    return repr(filters).encode()


def _binding(org_id: UUID, method: str, filters: bytes) -> bytes:
    return hashlib.sha256(org_id.bytes + method.encode() + b"\0" + filters).digest()
