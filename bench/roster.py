"""Members by the hundred thousand, straight into the tables, with names as uneven as real ones."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg

from trunkline_server.ids import uuid7

BATCH_ROWS = 50_000
SYLLABLES = ("ka", "lo", "mi", "ren", "sta", "ber", "now", "ski", "dor", "fel", "hau", "gri",
             "an", "eli", "tor", "vas", "wil", "mar", "jo", "sen")  # fmt: skip
GIVEN_NAMES = 2_000
FAMILY_NAMES = 40_000

# Cubing makes the first names of the list common and the last ones rare.
_ROWS = """
INSERT INTO members (
    org_id, member_id, member_number, given_name, family_name, email, phone, date_of_birth, plan,
    status, effective_from, effective_to, change_id, row_no
)
SELECT $1, (lpad(to_hex(($6 + i)::bigint), 12, '0') || '7' || substr(md5(i::text), 1, 3) || 'a'
            || substr(md5(i::text), 5, 15))::uuid,
       'M-' || lpad(i::text, 8, '0'), initcap(g.name), initcap(f.name),
       lower(g.name || '.' || f.name || i || '@members.example'),
       '+49301' || lpad((i * 7919 % 10000000)::text, 7, '0'),
       date '1940-01-01' + (i * 37 % 25000)::int, ($5::text[])[1 + i % 3], 'ACTIVE',
       date '2020-01-01', CASE WHEN i % 10 = 0 THEN date '2021-01-01' END, $4, i
FROM generate_series($2::bigint, $3::bigint) AS i
CROSS JOIN LATERAL (SELECT floor(power(random(), 3) * $7)::int AS g,
                           floor(power(random(), 3) * $8)::int AS f, i AS per_row) AS pick
JOIN bench_names g ON g.no = pick.g
JOIN bench_names f ON f.no = pick.f
"""
_NAMES = """
CREATE TEMPORARY TABLE bench_names AS
SELECT no, s[1 + no % 20] || s[1 + no / 20 % 20] || s[1 + no / 400 % 20]
           || CASE WHEN no >= 8000 THEN s[1 + no / 8000 % 20] ELSE '' END AS name
FROM generate_series(0, 45000) AS no, (SELECT $1::text[] AS s) AS given
"""
_SET_ORG = "SELECT set_config('trunkline.org_id', $1, true)"
_CHANGE = """
SELECT record_member_change($1, $2, 'IMPORTED', 'KEY', NULL, 'nightly', NULL, 'roster.csv')
"""
_INDEX = "SELECT index_members($1, $2)"
_INDEXED = """
INSERT INTO member_search_states (org_id, seq) VALUES ($1, $2)
ON CONFLICT (org_id) DO UPDATE SET seq = excluded.seq
"""


def fill(database_url: str, org_id: UUID, members: int, *, indexed: bool = True) -> None:
    """Numbers M-00000001 up to `members`, as imports of BATCH_ROWS would have left them."""
    asyncio.run(_fill(database_url, org_id, members, indexed))


async def _fill(database_url: str, org_id: UUID, members: int, indexed: bool) -> None:
    database = await asyncpg.connect(database_url)
    try:
        await database.execute(_NAMES.replace("$1::text[]", _literal(SYLLABLES)))
        await database.execute("CREATE INDEX ON bench_names (no); ANALYZE bench_names")
        for first in range(1, members + 1, BATCH_ROWS):
            await _batch(database, org_id, first, min(first + BATCH_ROWS - 1, members), indexed)
        await database.execute("VACUUM (ANALYZE) members, member_search, member_words")
    finally:
        await database.close()


async def _batch(
    database: asyncpg.Connection, org_id: UUID, first: int, last: int, indexed: bool
) -> None:
    change_id, moment = uuid7(), int(uuid7().int >> 80)
    async with database.transaction():
        await database.fetchval(_SET_ORG, str(org_id))
        await database.execute(
            _ROWS, org_id, first, last, change_id, ["basic", "plus", "gold"], moment,
            GIVEN_NAMES, FAMILY_NAMES,
        )  # fmt: skip
        if indexed:
            await database.execute(_INDEX, org_id, change_id)
        seq = await database.fetchval(_CHANGE, org_id, change_id)
        if indexed:
            await database.execute(_INDEXED, org_id, seq)


def _literal(words: tuple[str, ...]) -> str:
    return "ARRAY[" + ", ".join(f"'{word}'" for word in words) + "]"
