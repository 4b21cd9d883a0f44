"""As it was: what the database answers about any moment, against a model that forgets nothing."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.members.desk import Desk, reasons
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.members import queries
from trunkline_server.members.queries import Change

START = datetime(2024, 3, 1, 12, tzinfo=UTC)
VALUES: dict[str, Any] = {
    "given_name": "", "family_name": "", "email": "", "phone": "", "date_of_birth": None,
    "plan": "", "status": "ACTIVE", "effective_from": None, "effective_to": None,
    "attributes": "{}",
}  # fmt: skip


@dataclass
class Model:
    """Every member's states, each from its moment on."""

    states: dict[int, list[tuple[datetime, str, str, bool]]] = field(default_factory=dict)

    def at(self, member: int, moment: datetime) -> tuple[str, str, bool] | None:
        held = [state for state in self.states[member] if state[0] <= moment]
        return held[-1][1:] if held else None

    def holder(self, number: str, moment: datetime) -> tuple[str, str, bool] | None:
        for member in self.states:
            state = self.at(member, moment)
            if state is not None and state[0] == number:
                return state
        return None


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["plan", "number", "delete", "restore"]),
              st.integers(0, 3)),
    min_size=1, max_size=12,
)  # fmt: skip


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


class Writer:
    """Makes the same changes in the database and in the model, an hour apart."""

    def __init__(self, database: asyncpg.Connection, org_id: uuid.UUID) -> None:
        self.database = database
        self.org_id = org_id
        self.model = Model()
        self.ids: dict[int, uuid.UUID] = {}
        self.now = START

    async def change(self, member: int, what: str, value: int) -> None:
        self.now += timedelta(hours=1)
        change = Change(uuid.uuid4(), "UPDATED", "USER", None, "tester")
        if member not in self.ids:
            values = {**VALUES, "member_number": f"N-{member}"}
            self.ids[member] = await queries.create(self.database, self.org_id, change, values)
            self.model.states[member] = [(self.now, f"N-{member}", "", False)]
        else:
            await self._alter(member, what, value, change)
        await self._date(change)

    async def _alter(self, member: int, what: str, value: int, change: Change) -> None:
        _, number, plan, is_deleted = self.model.states[member][-1]
        member_id = self.ids[member]
        if what == "delete":
            await queries.delete(self.database, self.org_id, member_id, change, 30)
            is_deleted = True
        elif what == "restore":
            await queries.undelete(self.database, self.org_id, member_id, change)
            is_deleted = False
        else:
            if what == "plan":
                plan = f"plan-{value}"
            else:
                # Numbers wander from member to member, as long as nobody else has them.
                taken = {states[-1][1] for states in self.model.states.values()}
                number = f"W-{value}" if f"W-{value}" not in taken else number
            values = {**VALUES, "member_number": number, "plan": plan}
            await queries.update(self.database, self.org_id, member_id, change, values)
        self.model.states[member].append((self.now, number, plan, is_deleted))

    async def _date(self, change: Change) -> None:
        """The database's clock cannot be set, so what it wrote is set back."""
        for statement in (
            "UPDATE members SET updated_at = $2, created_at = CASE WHEN version = 1 THEN $2"
            " ELSE created_at END WHERE change_id = $1",
            "UPDATE member_history SET superseded_at = $2 WHERE superseded_by = $1",
        ):
            await self.database.execute(statement, change.change_id, self.now)


@given(steps=STEPS)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_any_moment_is_as_the_model_says(
    database: asyncpg.Connection, steps: list[tuple[int, str, int]]
) -> None:
    org_id = uuid.uuid4()
    await database.execute(
        "INSERT INTO orgs (org_id, slug, display_name) VALUES ($1, $2, $2)",
        org_id, f"o{org_id.hex[:12]}",
    )  # fmt: skip
    writer = Writer(database, org_id)
    for step in steps:
        await writer.change(*step)
    moments = [START + timedelta(minutes=30 * n) for n in range(2 * len(steps) + 4)]
    for moment in moments:
        for member, member_id in writer.ids.items():
            row = await queries.member_at(database, org_id, member_id, moment)
            assert _seen(row) == writer.model.at(member, moment)
        for number in ("N-0", "N-1", "N-2", "W-0", "W-1", "W-2", "W-3"):
            row = await queries.exact_number_at(database, org_id, number, moment)
            assert _seen(row) == writer.model.holder(number, moment)


def _seen(row: Any) -> tuple[str, str, bool] | None:
    if row is None:
        return None
    return row["member_number"], row["plan"], row["deleted_at"] is not None


async def test_a_validation_of_a_past_day_is_answered_from_history(desk: Desk) -> None:
    member = await desk.create("M-1", status=pb.MEMBER_STATUS_SUSPENDED)
    await desk.update(member, status=pb.MEMBER_STATUS_ACTIVE)
    today = datetime.now(UTC)
    async with desk.database() as database:
        # Registered ten days ago, suspended until five days ago.
        await database.execute(
            "UPDATE members SET created_at = $1, updated_at = $2",
            today - timedelta(days=10), today - timedelta(days=5),
        )  # fmt: skip
        await database.execute(
            "UPDATE member_history SET created_at = $1, updated_at = $1, superseded_at = $2",
            today - timedelta(days=10), today - timedelta(days=5),
        )  # fmt: skip
    for days, expected in ((0, []), (3, []), (7, ["SUSPENDED"]), (20, ["SUSPENDED"])):
        day = (today - timedelta(days=days)).date().isoformat()
        reply = await desk.validate("M-1", as_of=day)
        assert (day, reasons(reply)) == (day, expected)
        assert reply.validation.as_of == day
    get: dict[str, Any] = {"member_id": member.member_id}
    then = await desk.get(**get, as_of_time=today - timedelta(days=7))
    assert (then.status, then.version) == (pb.MEMBER_STATUS_SUSPENDED, 1)
    assert (await desk.get(**get, as_of_time=today - timedelta(days=1))).version == 2
