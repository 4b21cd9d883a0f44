"""ListMembers and SearchMembers: pages of a bounded price, however deep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.db import Connection, Database, Executor, Record
from trunkline_server.members import filters, present, search
from trunkline_server.members.filters import Filter
from trunkline_server.members.settings import SettingsReader
from trunkline_server.orgs import Orgs
from trunkline_server.paging import PageTokens, page_size
from trunkline_server.rpc.caller import caller

# A filter that few members meet is looked for this far at a time; a page may then be short and
# still name a next one.
SCAN_ROWS_MAX = 4_000
SCANS_PER_PAGE_MAX = 10
BIGGEST_SEQ = (1 << 63) - 1
_FIRST_ID = UUID(int=0)

_COLUMNS = """v.member_id, v.member_number, v.given_name, v.family_name, v.email, v.phone,
       v.date_of_birth, v.plan, v.status, v.effective_from, v.effective_to, v.attributes,
       v.version, v.row_no, v.created_at, v.updated_at, v.deleted_at, v.purge_at,
       v.cause, v.actor_kind, v.actor_id, v.actor_name, v.import_id, v.file_name, v.changed_at"""
_MEMBER = """m.member_id, m.member_number, m.given_name, m.family_name, m.email, m.phone,
           m.date_of_birth, m.plan, m.status, m.effective_from, m.effective_to, m.attributes,
           m.version, m.row_no, m.created_at, m.updated_at, m.deleted_at, m.purge_at"""
_CHANGE = """c.cause, c.actor_kind, c.actor_id, c.actor_name, c.import_id, c.file_name,
           c.changed_at"""

# `at_end` is the position of the last row that was looked at, met or not.
_BY_NUMBER = f"""
WITH v AS MATERIALIZED (
    SELECT {_MEMBER}, {_CHANGE}
    FROM (
        SELECT {_MEMBER}, m.change_id FROM members m
        WHERE m.org_id = $1 AND m.member_number > $2
        ORDER BY m.member_number LIMIT $3
    ) m
    LEFT JOIN member_changes c ON c.org_id = $1 AND c.change_id = m.change_id
)
SELECT {_COLUMNS}, NULL::bigint AS seq, s.at_end, NULL::uuid AS at_end_id, s.scanned
FROM (SELECT max(v.member_number) AS at_end, count(v.member_id) AS scanned FROM v) s
LEFT JOIN (
    SELECT {_COLUMNS} FROM v WHERE {filters.conditions(5)} ORDER BY v.member_number LIMIT $4
) v ON true
ORDER BY v.member_number
"""  # noqa: S608 - made of constants

# Without a condition each row is a match: nothing is read beyond the page.
_PAGE_BY_NUMBER = f"""
SELECT {_MEMBER}, {_CHANGE}
FROM members m LEFT JOIN member_changes c ON c.org_id = $1 AND c.change_id = m.change_id
WHERE m.org_id = $1 AND m.member_number > $2 AND m.deleted_at IS NULL
ORDER BY m.member_number LIMIT $3
"""  # noqa: S608 - made of constants

# The changes are in order, and each names its members: an index on the time of update, which
# every write would have to maintain, says nothing more.
_BY_UPDATE = f"""
WITH v AS MATERIALIZED (
    SELECT {_MEMBER}, {_CHANGE}, c.seq
    FROM member_changes c
    CROSS JOIN LATERAL (
        SELECT {_MEMBER} FROM members m
        WHERE m.org_id = $1 AND m.change_id = c.change_id AND (c.seq < $2 OR m.member_id > $5)
        ORDER BY m.member_id LIMIT $3
    ) m
    WHERE c.org_id = $1 AND c.seq <= $2
    ORDER BY c.seq DESC, m.member_id LIMIT $3
)
SELECT {_COLUMNS}, v.seq, s.seq AS at_end, s.member_id AS at_end_id, s.scanned
FROM (SELECT l.seq, l.member_id, n.scanned
      FROM (SELECT v.seq, v.member_id FROM v ORDER BY v.seq, v.member_id DESC LIMIT 1) l
      CROSS JOIN (SELECT count(v.member_id) AS scanned FROM v) n) s
LEFT JOIN (
    SELECT {_COLUMNS}, v.seq FROM v WHERE {filters.conditions(6)}
    ORDER BY v.seq DESC, v.member_id LIMIT $4
) v ON true
ORDER BY v.seq DESC, v.member_id
"""  # noqa: S608 - made of constants


class Listing:
    def __init__(self, db: Database, orgs: Orgs, pages: PageTokens) -> None:
        self._db = db
        self._orgs = orgs
        self._pages = pages
        self._settings = SettingsReader()

    async def list(self, request: pb.ListMembersRequest) -> pb.ListMembersResponse:
        who = caller()
        size = page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        wanted = filters.read(request.filter)
        by_update = request.order == pb.MEMBER_ORDER_UPDATE_TIME_DESC
        page = _Page(who.org_id, size, wanted, by_update)
        async with self._db.tenant_tx(who.org_id) as tx:
            await page.read(tx, position)
        paths = list(request.read_mask.paths)
        return pb.ListMembersResponse(
            members=[
                present.read_masked(present.member(row, who.role), paths) for row in page.rows
            ],
            next_page_token=self._pages.seal(page.next, request) if page.next else "",
        )

    async def search(self, request: pb.SearchMembersRequest) -> pb.SearchMembersResponse:
        who = caller()
        size = page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        wanted = filters.read(request.filter)
        org = self._orgs.cached(who.org_key) or await self._orgs.get(who.org_id)
        number_rules = self._settings.of(who.org_key, org).rules.number
        asked = search.read(request.query, number_rules)
        async with self._db.tenant_tx(who.org_id) as tx:
            rows = await search.run(tx, who.org_id, asked, wanted, position, size + 1)
        paths = list(request.read_mask.paths)
        reply = pb.SearchMembersResponse(
            matches=[
                pb.MemberMatch(
                    member=present.read_masked(present.member(row, who.role), paths),
                    score=row["score"],
                    matched_field=search.FIELDS[row["field"]],
                )
                for row in rows[:size]
            ]
        )
        if len(rows) > size:
            last = rows[size - 1]
            reply.next_page_token = self._pages.seal(
                [last["score"], str(last["member_id"])], request
            )
        return reply


class _Page:
    """Rows up to a size, and where the next page starts; None when there is none."""

    def __init__(self, org_id: UUID, size: int, wanted: Filter, by_update: bool) -> None:
        self.rows: list[Record] = []
        self.next: list[Any] | None = None
        self._org_id = org_id
        self._size = size
        self._wanted = wanted
        self._by_update = by_update

    async def read(self, tx: Connection, position: Sequence[Any] | None) -> None:
        if not self._by_update and self._wanted == _EVERYONE:
            await self._read_plain(tx, position[0] if position else "")
            return
        start = list(position) if position else [BIGGEST_SEQ, str(_FIRST_ID)]
        if not self._by_update:
            start = list(position) if position else [""]
        for _ in range(SCANS_PER_PAGE_MAX):
            found = await self._scan(tx, start)
            if not found or not found[0]["scanned"]:
                return
            matches = [row for row in found if row["member_id"] is not None]
            self.rows.extend(matches[: self._size])
            if len(matches) > self._size:
                self.next = self._after(self.rows[-1])
                return
            if found[0]["scanned"] < SCAN_ROWS_MAX:
                return
            start = self.next = self._at_end(found[0])
            if self.rows:
                return

    async def _read_plain(self, tx: Executor, after: str) -> None:
        rows = await tx.fetch(_PAGE_BY_NUMBER, self._org_id, after, self._size + 1)
        self.rows = rows[: self._size]
        if len(rows) > self._size:
            self.next = [self.rows[-1]["member_number"]]

    async def _scan(self, tx: Executor, start: Sequence[Any]) -> list[Record]:
        limit, wanted = self._size + 1, self._wanted.arguments()
        if self._by_update:
            seq, member_id = start
            return await tx.fetch(
                _BY_UPDATE, self._org_id, seq, SCAN_ROWS_MAX, limit, UUID(member_id), *wanted
            )
        return await tx.fetch(_BY_NUMBER, self._org_id, start[0], SCAN_ROWS_MAX, limit, *wanted)

    def _after(self, row: Record) -> list[Any]:
        if self._by_update:
            return [row["seq"], str(row["member_id"])]
        return [row["member_number"]]

    def _at_end(self, row: Record) -> list[Any]:
        if self._by_update:
            return [row["at_end"], str(row["at_end_id"])]
        return [row["at_end"]]


_EVERYONE = Filter(False, None, None, None, None, None, None)
