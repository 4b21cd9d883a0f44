"""Who is calling: the one context variable. Facts of the request, never dependencies."""

import enum
from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal, Protocol
from urllib.parse import unquote
from uuid import UUID


class Role(enum.IntEnum):
    """The five roles; the numbers are those of trunkline.api.options.v1.Role."""

    AGENT = 1
    TRAINER = 2
    REGISTRAR = 3
    ADMIN = 4
    SYSTEM = 5


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified identity. The organisation comes from here and from nowhere else."""

    org_id: UUID
    actor_id: UUID
    actor_kind: Literal["user", "key"]
    role: Role
    credential_id: UUID
    actor_name: str
    # Keys for dictionaries: a UUID hashes in Python code, at the price of a cache hit.
    org_key: str = field(init=False, repr=False, compare=False)
    actor_key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "org_key", str(self.org_id))
        object.__setattr__(self, "actor_key", str(self.actor_id))


class TraceIds(Protocol):
    """A sampled call's span, as far as a log line needs it."""

    trace_id: str
    span_id: str


@dataclass(slots=True)
class Request:
    """What the wrapper knows of the call at hand."""

    method: str
    given_id: str | bytes | None  # the client's x-request-id
    read_peer: Callable[[], str]  # grpc makes the text anew each time: ask only when needed
    caller: Caller | None
    deadline: float | None  # time.monotonic() at which nobody waits for the answer any more
    traceparent: str | bytes | None = None
    span: TraceIds | None = None

    @property
    def request_id(self) -> str:
        return self.given_id if isinstance(self.given_id, str) else ""

    @property
    def peer(self) -> str:
        """The address at the other end of the connection, without its port."""
        return address_of(self.read_peer())


def address_of(peer: str) -> str:
    """`ipv4:10.0.0.1:4711` and `ipv6:%5B::1%5D:4711` as the address alone; `unix:` as it is."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind or "unknown"
    host, _, _ = unquote(rest).rpartition(":")
    return host.strip("[]")


CURRENT: ContextVar[Request] = ContextVar("trunkline_request")


def current_request() -> Request:
    return CURRENT.get()


def caller() -> Caller:
    """The verified caller; a method that is open to the anonymous must not ask."""
    found = CURRENT.get().caller
    if found is None:
        raise LookupError("an anonymous method asked for its caller")
    return found


def behind_proxies(read_peer: Callable[[], str], forwarded: str, trusted: Collection[str]) -> str:
    """The peer as the nearest proxy that is not ours saw it.

    Read from the right, for a client can put anything at the left of `x-forwarded-for`.
    """
    peer = read_peer()
    address = address_of(peer)
    for hop in reversed(forwarded.split(",")):
        if address not in trusted:
            break
        try:
            address = str(ip_address(hop.strip()))
        except ValueError:
            break
        peer = f"ipv6:[{address}]:0" if ":" in address else f"ipv4:{address}:0"
    return peer
