"""ExportMembers and WatchMembers through a real channel."""

from __future__ import annotations

import asyncio
import csv
import io
from typing import Any

import grpc
import pytest

from tests.members.desk import Desk, refused
from tests.members.test_validate import ANNA
from tests.running import Running
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.members import export
from trunkline_server.rpc.caller import Role


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


async def test_an_export_can_be_imported_again(desk: Desk) -> None:
    await desk.create("M-1", **ANNA, effective_from="2020-01-01")
    await desk.create("M-2", given_name='Quo"te, comma')
    await desk.delete(await desk.create("M-3"))
    exported = rows(await desk.export())
    assert [row["member_number"] for row in exported] == ["M-1", "M-2"]
    assert exported[0] == {
        **ANNA, "member_number": "M-1", "status": "ACTIVE", "effective_from": "2020-01-01",
        "effective_to": "",
    }  # fmt: skip
    assert exported[1]["given_name"] == 'Quo"te, comma'
    assert await desk.export() == await desk.export()


@pytest.mark.parametrize("mark", ["=", "+", "-", "@", "＝", "＋"])
async def test_formulas_are_neutralised(desk: Desk, mark: str) -> None:
    evil = f'{mark}HYPERLINK("http://x","y")'
    await desk.create("M-1", family_name=evil, plan=evil, phone="+493012345678",
                      attributes={"note": evil})  # fmt: skip
    (row,) = rows(await desk.export(columns=["family_name", "plan", "phone", "attributes.note"]))
    stored = evil.strip(" ")
    assert row == {
        "family_name": "'" + stored, "plan": "'" + stored, "phone": "+493012345678",
        "attributes.note": "'" + stored,
    }  # fmt: skip


async def test_a_tab_before_a_formula_is_neutralised(desk: Desk) -> None:
    await desk.create("M-1")
    await desk.imported_name("\t=1+1")
    assert await desk.export(columns=["given_name"], omit_header=True) == b"'\t=1+1\n"


async def test_columns_filters_and_the_header(desk: Desk) -> None:
    await desk.create("M-1", plan="gold", attributes={"shoe_size": "44"})
    await desk.create("M-2", plan="basic")
    data = await desk.export(
        columns=["attributes.shoe_size", "member_number"], filter=pb.MemberFilter(plans=["gold"])
    )
    assert data == b"attributes.shoe_size,member_number\n44,M-1\n"
    assert await desk.export(columns=["member_number"], omit_header=True) == b"M-1\nM-2\n"
    assert await desk.export(columns=["plan"], filter=pb.MemberFilter(plans=["none"])) == b"plan\n"
    for column in ("password", "attributes", "other.thing"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
            await desk.export(columns=["plan", column])
        assert refusal.fields() == ["columns[1]"]
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await desk.export(columns=["plan'; DROP TABLE members"])


async def test_an_export_of_many_parts_has_every_row_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PART_ROWS_FIRST", 7)
    monkeypatch.setattr(export, "PART_ROWS_MAX", 9)
    monkeypatch.setattr(export, "MESSAGE_BYTES_MAX", 60)
    numbers = [f"M-{number:03}" for number in range(60)]
    for number in numbers:
        await desk.create(number)
    await desk.imported_name('a\n"b"')
    call = desk.stub.ExportMembers(
        pb.ExportMembersRequest(columns=["member_number", "given_name"]),
        **desk.options(Role.ADMIN),
    )
    parts = [part async for part in call]
    assert [row["member_number"] for row in rows(b"".join(p.data for p in parts))] == numbers
    assert parts[-1].rows_sent == 60
    for part in parts[1:]:
        cells = [row[0] for row in csv.reader(io.StringIO(part.data.decode(), newline=""))]
        assert all(cell.startswith("M-") for cell in cells)


async def test_another_organisation_exports_its_own(desk: Desk, server: Running) -> None:
    await desk.create("M-1")
    theirs = Desk(server.channel, await server.org("south"), desk.database_url)
    assert await theirs.export(columns=["member_number"]) == b"member_number\n"


class Watcher:
    """Reads a watch until what it waits for has come."""

    def __init__(self, desk: Desk, checkpoint: str = "") -> None:
        request = pb.WatchMembersRequest(checkpoint=checkpoint)
        options = {**desk.options(Role.SYSTEM), "timeout": 30}
        self._call = desk.stub.WatchMembers(request, **options)
        self.checkpoint = checkpoint

    async def next(self) -> Any:
        reply = await self._call.read()
        self.checkpoint = reply.checkpoint
        return reply

    async def changes(self, count: int) -> list[tuple[str, str]]:
        told: list[tuple[str, str]] = []
        async with asyncio.timeout(10):
            while len(told) < count:
                for change in (await self.next()).changes:
                    cause = pb.ChangeCause.Name(change.cause).removeprefix("CHANGE_CAUSE_")
                    told.append((change.member.member_number, cause))
        return told

    def cancel(self) -> None:
        self._call.cancel()


async def test_a_watch_tells_in_order_and_goes_on_at_its_checkpoint(desk: Desk) -> None:
    await desk.create("M-0")
    watcher = Watcher(desk)
    assert not (await watcher.next()).changes  # from now on
    first = await desk.create("M-1")
    await desk.create("M-2")
    assert await watcher.changes(2) == [("M-1", "CREATED"), ("M-2", "CREATED")]
    watcher.cancel()
    changed = await desk.update(first, plan="gold")
    await desk.create("M-3")
    await desk.delete(changed)
    again = Watcher(desk, watcher.checkpoint)
    assert await again.changes(2) == [("M-3", "CREATED"), ("M-1", "DELETED")]
    again.cancel()


async def test_one_change_of_many_members_is_told_in_parts(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_server.members.watch.MEMBERS_PER_MESSAGE", 4)
    watcher = Watcher(desk)
    await watcher.next()
    start = watcher.checkpoint
    watcher.cancel()
    members = [await desk.create(f"M-{number}") for number in range(10)]
    async with desk.database() as database:
        # As an import would leave them: one change.
        await database.execute(
            "UPDATE members SET change_id = (SELECT change_id FROM member_changes"
            " WHERE org_id = $1 ORDER BY seq DESC LIMIT 1) WHERE org_id = $1",
            desk.org.org_id,
        )
    seen: list[str] = []
    for _ in range(3):  # a new watch after each message
        watcher = Watcher(desk, start)
        reply = await watcher.next()
        while not reply.changes:
            reply = await watcher.next()
        start = reply.checkpoint
        seen.extend(change.member.member_id for change in reply.changes)
        watcher.cancel()
    assert seen == sorted(member.member_id for member in members)


async def test_checkpoints_of_the_wrong_kind(desk: Desk, server: Running) -> None:
    watcher = Watcher(desk)
    await watcher.next()
    watcher.cancel()
    theirs = Desk(server.channel, await server.org("south"), desk.database_url)
    for who, checkpoint in ((desk, "nonsense"), (theirs, watcher.checkpoint)):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "CHECKPOINT_INVALID"):
            await Watcher(who, checkpoint).next()


async def test_a_watch_says_go_away_when_the_server_drains(desk: Desk, start_server: Any) -> None:
    async with start_server() as other:
        watcher = Watcher(Desk(other.channel, desk.org, desk.database_url))
        await watcher.next()
        stopping = asyncio.create_task(other.server.stop())
        reply = await watcher.next()
        assert reply.go_away
        assert reply.checkpoint
        assert await stopping
