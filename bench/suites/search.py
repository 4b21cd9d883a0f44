"""Searches at 100 a second and list pages at any depth, among a million members."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from uuid import UUID

import asyncpg
import grpc
from google.protobuf.message import Message

from bench import openloop, product, roster
from bench.figures import Figure, figure
from bench.process import Server
from bench.product import Tenant
from bench.registry import CannotMeasure, Plan
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.rpc.caller import Role

NAME = "search"
SERVICE = "/trunkline.api.members.v1.MemberService"
PER_S = 100.0
PAGE = 20
LIST_PAGE = 100
SAMPLES = 600
QUOTAS = {"cost_per_second": 10_000_000, "actor_cost_per_second": 10_000_000}

_SAMPLE = """
SELECT given_name, family_name, email, phone, member_number
FROM members WHERE org_id = $1 AND member_number = ANY ($2::text[])
"""


def run(plan: Plan) -> Iterator[Figure]:
    members = plan.pick(full=1_000_000, quick=200_000)
    seconds = plan.pick(full=20.0, quick=8.0)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenant = product.seed(stack, quotas=QUOTAS)
        roster.fill(stack.database_url, tenant.org_id, members)
        server = started.enter_context(product.server(stack, "bench.servers.product"))
        people = asyncio.run(_people(stack.database_url, tenant.org_id, members))
        searches = [_question(person, kind) for kind, person in enumerate(people)]
        tokens = _tokens(server, tenant)
        pages = [pb.ListMembersRequest(page_size=LIST_PAGE, page_token=token) for token in tokens]
        random.Random(5).shuffle(pages)
        for name, requests in (("SearchMembers", searches), ("ListMembers", pages)):
            _drive(server, tenant, name, requests, 3.0)
        found = _drive(server, tenant, "SearchMembers", searches, seconds)
        listed = _drive(server, tenant, "ListMembers", pages, seconds)
    for figure_name, outcomes in (("search", found), ("list", listed)):
        latency = outcomes.of("ok")
        yield figure(NAME, f"{figure_name}_p99_ms", [latency.quantile(0.99) * 1000])
        yield figure(
            NAME, f"{figure_name}_p50_ms", [latency.quantile(0.5) * 1000], unit="ms", better="lower"
        )
    yield figure(NAME, "members", [members], unit="members")


async def _people(database_url: str, org_id: UUID, members: int) -> list[tuple[str, ...]]:
    randomness = random.Random(3)
    numbers = [f"M-{randomness.randrange(1, members + 1):08d}" for _ in range(SAMPLES)]
    database = await asyncpg.connect(database_url)
    try:
        return [tuple(row.values()) for row in await database.fetch(_SAMPLE, org_id, numbers)]
    finally:
        await database.close()


def _typo(text: str) -> str:
    at = len(text) // 2
    return text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]


_KINDS: tuple[Callable[[str, str, str, str, str], str], ...] = (
    lambda given, family, email, phone, number: f"{given} {family}",
    lambda given, family, email, phone, number: family,
    lambda given, family, email, phone, number: f"{_typo(given)} {_typo(family)}",
    lambda given, family, email, phone, number: _typo(family),
    lambda given, family, email, phone, number: f"{given} {family[:4]}",
    lambda given, family, email, phone, number: number,
    lambda given, family, email, phone, number: _typo(number),
    lambda given, family, email, phone, number: email,
    lambda given, family, email, phone, number: _typo(email),
    lambda given, family, email, phone, number: "0" + phone[3:],
)


def _question(person: tuple[str, ...], kind: int) -> pb.SearchMembersRequest:
    text = _KINDS[kind % len(_KINDS)](*person)
    return pb.SearchMembersRequest(query=text, page_size=PAGE)


def _tokens(server: Server, tenant: Tenant) -> list[str]:
    """The first page and deep ones: tokens are sealed, so the pages before them are read."""
    tokens, token = [""], ""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            f"{SERVICE}/ListMembers",
            request_serializer=pb.ListMembersRequest.SerializeToString,
            response_deserializer=pb.ListMembersResponse.FromString,
        )
        for _ in range(150):
            request = pb.ListMembersRequest(page_size=1_000, page_token=token)
            token = call(request, metadata=tuple(tenant.bearer(Role.ADMIN).items())).next_page_token
            tokens.append(token)
    return tokens


def _drive(
    server: Server, tenant: Tenant, method: str, requests: Sequence[Message], seconds: float
) -> openloop.Outcomes:
    given = {
        "address": server.address,
        "path": f"{SERVICE}/{method}",
        "metadata": tenant.bearer(Role.ADMIN),
        "requests": [request.SerializeToString().hex() for request in requests],
        "channels": 4,
    }
    outcomes = openloop.run("bench.targets:several", given, openloop.Arrivals(PER_S, seconds))
    if outcomes.unfinished or set(outcomes.counts) != {"ok"}:
        raise CannotMeasure(f"{method}: {dict(outcomes.counts)}, {outcomes.unfinished} unanswered")
    if not outcomes.driver_kept_up:
        raise CannotMeasure("the load generator was late: the machine is busy with something else")
    return outcomes
