"""The audit log: what it tells, that it cannot be changed unnoticed, and where it is kept."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import grpc
import pytest

from tests.identity.conftest import Org, Process, bearer, refusal
from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.options.v1 import policy_pb2
from trunkline_server import audit
from trunkline_server.db import Database
from trunkline_server.rpc.caller import Role


@pytest.fixture
async def worker(database_url: str) -> AsyncIterator[Database]:
    db = await Database.open(database_url, role="trunkline_worker", pool_size=4, readers=0)
    yield db
    await db.close()


async def verify(process: Process, org: Org, **given: Any) -> pb.VerifyAuditResponse:
    request = pb.VerifyAuditRequest(**given)
    reply: pb.VerifyAuditResponse = await process.stub.VerifyAudit(request, metadata=org.auth)
    return reply


async def some_events(process: Process, org: Org, count: int) -> None:
    for i in range(count):
        await process.stub.CreateApiKey(
            pb.CreateApiKeyRequest(display_name=f"k{i}", role=policy_pb2.ROLE_AGENT),
            metadata=(*org.auth, ("x-request-id", f"call-{i}")),
        )


async def test_writes_are_listed_newest_first_with_filters(process: Process, org: Org) -> None:
    await some_events(process, org, 3)
    events = (
        await process.stub.ListAuditEvents(pb.ListAuditEventsRequest(), metadata=org.auth)
    ).events
    assert [event.action for event in events[:4]] == ["identity.CreateApiKey"] * 3 + [
        "identity.Login"
    ]
    newest = events[0]
    assert (newest.request_id, newest.actor_name, newest.role) == (
        "call-2",
        "Ada",
        policy_pb2.ROLE_ADMIN,
    )
    assert (newest.resource_type, dict(newest.details)) == ("api_key", {"role": "AGENT"})
    assert newest.peer == "127.0.0.1"
    assert newest.sequence == 0
    assert events[-1].action == "admin.create-org"
    assert events[-1].actor_kind == pb.ACTOR_KIND_SERVICE
    for given, actions in [
        ({"action": "admin."}, {"admin.create-org", "admin.create-user", "admin.create-key"}),
        ({"action": "identity.Login"}, {"identity.Login"}),
        ({"resource_id": newest.resource_id}, {"identity.CreateApiKey"}),
        ({"outcomes": [pb.AUDIT_OUTCOME_REFUSED]}, set()),
        ({"to_time": newest.occur_time, "from_time": events[2].occur_time}, {newest.action}),
    ]:
        found = await process.stub.ListAuditEvents(
            pb.ListAuditEventsRequest(**given), metadata=org.auth
        )
        assert {event.action for event in found.events} == actions
    paged, token = [], ""
    while True:
        page = await process.stub.ListAuditEvents(
            pb.ListAuditEventsRequest(page_size=2, page_token=token), metadata=org.auth
        )
        paged += [event.event_id for event in page.events]
        if not (token := page.next_page_token):
            break
    assert paged == [event.event_id for event in events]


async def test_a_refused_log_in_is_noted(process: Process, org: Org) -> None:
    bad = pb.LoginRequest(org_slug=org.slug, email=org.email, password="not this one")
    await refusal(process.stub.Login(bad))
    nobody = pb.LoginRequest(org_slug=org.slug, email="nobody@x.example", password="not this one")
    await refusal(process.stub.Login(nobody))
    found = await process.stub.ListAuditEvents(
        pb.ListAuditEventsRequest(outcomes=[pb.AUDIT_OUTCOME_REFUSED]), metadata=org.auth
    )
    assert [event.resource_id for event in found.events] == ["", str(org.admin_id)]
    assert {event.reason for event in found.events} == {"LOGIN_FAILED"}


async def test_a_sealed_chain_verifies_and_goes_on(
    process: Process, org: Org, worker: Database
) -> None:
    await some_events(process, org, 3)
    before = await verify(process, org)
    assert (before.intact, before.events_checked, before.head_sequence) == (True, 0, 0)
    assert before.unsealed_events > 3
    sealed = await audit.seal(worker)
    first = await verify(process, org)
    assert (first.intact, first.events_checked, first.unsealed_events) == (True, sealed, 0)
    await audit.seal(worker)
    await some_events(process, org, 2)
    await audit.seal(worker)
    second = await verify(process, org)
    assert second.intact
    assert second.head_sequence == first.head_sequence + 1 + 2  # the check is an event as well
    # The head that was kept outside still fits into what came after it.
    kept = {"to_sequence": first.head_sequence, "expected_hash": first.head_hash}
    assert (await verify(process, org, **kept)).intact
    part = await verify(process, org, from_sequence=3, to_sequence=5)
    assert (part.intact, part.events_checked) == (True, 3)
    found = await process.stub.ListAuditEvents(
        pb.ListAuditEventsRequest(page_size=1000), metadata=org.auth
    )
    by_place = {event.sequence: event.hash for event in found.events}
    assert by_place[first.head_sequence] == first.head_hash


async def test_sealers_at_once_make_one_chain(process: Process, org: Org, worker: Database) -> None:
    await some_events(process, org, 5)
    sealed = await asyncio.gather(*(audit.seal_org(worker, org.org_id) for _ in range(4)))
    assert sorted(sealed)[:3] == [0, 0, 0]
    assert (await verify(process, org)).intact


TAMPER = {
    "changed": 'UPDATE audit_log SET details = \'{"role": "ADMIN"}\' WHERE audit_id = $1',
    "backdated": "UPDATE audit_log SET at = at - interval '1 second' WHERE audit_id = $1",
    "removed": "DELETE FROM audit_log WHERE audit_id = $1",
    "removed with its link": """
        WITH gone AS (DELETE FROM audit_log WHERE audit_id = $1)
        DELETE FROM audit_seals WHERE audit_id = $1
    """,
    "link rewritten": "UPDATE audit_seals SET hash = sha256('x') WHERE audit_id = $1",
    "moved to another actor": "UPDATE audit_log SET actor_id = NULL WHERE audit_id = $1",
}


@pytest.mark.parametrize("how", TAMPER)
async def test_tampering_is_found(
    process: Process, org: Org, worker: Database, superuser: Any, how: str
) -> None:
    await some_events(process, org, 4)
    await audit.seal(worker)
    victim = await superuser.fetchrow(
        "SELECT audit_id, sequence FROM audit_seals WHERE org_id = $1 AND sequence = 10", org.org_id
    )
    await superuser.execute(TAMPER[how], victim["audit_id"])
    verdict = await verify(process, org)
    assert not verdict.intact
    assert verdict.first_broken_sequence == 10


async def test_an_event_slipped_in_is_found(
    process: Process, org: Org, worker: Database, superuser: Any
) -> None:
    await some_events(process, org, 2)
    await audit.seal(worker)
    await superuser.execute(
        """
        INSERT INTO audit_log (org_id, audit_id, at, actor_kind, action)
        SELECT org_id, gen_random_uuid(), at + interval '1 microsecond', 'SERVICE', 'x'
        FROM audit_seals WHERE org_id = $1 AND sequence = 4
        """,
        org.org_id,
    )
    assert not (await verify(process, org)).intact


async def test_a_chain_rewritten_from_the_start_is_found_by_the_head_kept_outside(
    process: Process, org: Org, worker: Database, superuser: Any
) -> None:
    await some_events(process, org, 3)
    await audit.seal(worker)
    head = await verify(process, org)
    # A thorough forger: drops an event and has the worker seal all others anew.
    await superuser.execute("DELETE FROM audit_unsealed WHERE org_id = $1", org.org_id)
    await superuser.execute(
        "DELETE FROM audit_log WHERE org_id = $1 AND action = 'admin.create-org'", org.org_id
    )
    await superuser.execute("DELETE FROM audit_seals WHERE org_id = $1", org.org_id)
    await superuser.execute(
        "INSERT INTO audit_unsealed SELECT org_id, audit_id, at FROM audit_log WHERE org_id = $1",
        org.org_id,
    )
    await audit.seal(worker)
    assert (await verify(process, org)).intact
    kept = {"to_sequence": head.head_sequence, "expected_hash": head.head_hash}
    assert not (await verify(process, org, **kept)).intact
    beyond = await verify(process, org, to_sequence=head.head_sequence + 50)
    assert not beyond.intact


@pytest.mark.parametrize("role", ["trunkline_app", "trunkline_worker"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET action = 'x'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "DELETE FROM audit_log_default",
        "UPDATE audit_seals SET hash = hash",
        "DELETE FROM audit_seals",
    ],
)
async def test_nobody_who_serves_may_change_the_log(
    database_url: str, role: str, statement: str
) -> None:
    connection = await asyncpg.connect(database_url, server_settings={"role": role})
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_month_partitions_take_over_what_the_default_caught(
    process: Process, org: Org, worker: Database, superuser: Any
) -> None:
    await some_events(process, org, 2)
    await audit.seal(worker)
    caught = await superuser.fetchval("SELECT count(*) FROM audit_log_default")
    assert caught > 0
    async with worker.system_tx() as tx:
        await audit.ensure_partitions(tx)
        await audit.ensure_partitions(tx)
    assert await superuser.fetchval("SELECT count(*) FROM audit_log_default") == 0
    assert await superuser.fetchval("SELECT count(*) FROM audit_log") == caught
    children = await superuser.fetch(
        """
        SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity AS guarded,
               (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid) AS policies
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'audit_log'::regclass
        """
    )
    assert len(children) == 1 + 3
    assert all(child["guarded"] and child["policies"] == 1 for child in children)
    month = datetime.now(UTC).strftime("_y%Ym%m")
    assert f"audit_log{month}" in {child["relname"] for child in children}
    assert (await verify(process, org)).intact
    await some_events(process, org, 1)
    assert await superuser.fetchval("SELECT count(*) FROM audit_log_default") == 0


async def test_partitions_are_made_of_tenant_tables_only(worker: Database) -> None:
    for table in ("orgs", "pg_class"):
        with pytest.raises(asyncpg.RaiseError):
            async with worker.system_tx() as tx:
                await tx.execute(f"SELECT ensure_month_partition('{table}', '2026-01-01')")


async def test_only_some_roles_see_the_log(process: Process, org: Org) -> None:
    agent = bearer(org.keys[Role.AGENT])
    for call in (
        process.stub.ListAuditEvents(pb.ListAuditEventsRequest(), metadata=agent),
        process.stub.VerifyAudit(pb.VerifyAuditRequest(), metadata=agent),
    ):
        assert (await refusal(call)).code is grpc.StatusCode.PERMISSION_DENIED
