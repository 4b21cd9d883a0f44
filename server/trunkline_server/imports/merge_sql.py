"""The statements that merge a file's batches, made from its columns.

Every statement reads the connection's staging table, which holds one batch as COPY left it. A
row's place there gives its number in the file: see Batch in csv.py.

    $1 organisation  $2 import  $3 first row number  $4 gaps  $5 prefix of member ids
    $6 members that may still be created  $7 change  $8 and $9 first and last change of the import
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trunkline_server.imports.rules import FIELDS, Layout

STAGING = "import_staging"
_DATES = ("date_of_birth", "effective_from", "effective_to")
# What a value is where a file leaves it out, of a member that is created.
_DEFAULTS = {"status": "'ACTIVE'"}
# Columns of a member that an import can fill, in the order of every statement.
COLUMNS = (*FIELDS[1:], "attributes")
IMAGE = (
    "member_id, member_number, given_name, family_name, email, phone, date_of_birth, plan, status,"
    " effective_from, effective_to, attributes, version, change_id, row_no, created_at, updated_at,"
    " deleted_at, purge_at"
)


@dataclass(frozen=True, slots=True)
class MergeSql:
    staging: str
    copy_columns: tuple[str, ...]
    inverted: str | None
    repeats: str
    create: str
    span: str
    same: str
    same_apart: str
    merge: str
    plan: str


_SPAN = f"SELECT min(member_number) AS low, max(member_number) AS high FROM {STAGING}"  # noqa: S608


def merge_sql(layout: Layout, *, creates_only: bool) -> MergeSql:
    staged = layout.staging_columns()
    columns = ", ".join(f"{name} {kind}" for name, kind in staged)
    has_both = {"effective_from", "effective_to"} <= {name for name, _ in staged}
    newest = _newest(
        "NOT coalesce(s.effective_to < s.effective_from, false)" if has_both else "true"
    )
    judged = _judged(layout, creates_only)
    return MergeSql(
        staging=f"CREATE TEMP TABLE {STAGING} ({columns}) ON COMMIT DELETE ROWS",
        copy_columns=tuple(name for name, _ in staged),
        inverted=_inverted() if has_both else None,
        repeats=_repeats(),
        create=_create(layout, newest),
        span=_SPAN,
        same=_same(layout),
        same_apart=_same_apart(layout),
        merge=f"WITH {newest}, {judged(True)}, {_MERGED}",
        plan=f"WITH {newest}, {judged(False)}, {_PLANNED}",
    )


_PLACED = f"SELECT *, row_number() OVER () - 1 AS place FROM {STAGING}"  # noqa: S608
_ROW_NO = "$3::bigint + s.place + width_bucket(s.place, $4::bigint[])"


def _newest(holds: str) -> str:
    """The last row of each member in the batch."""
    return f"""newest AS MATERIALIZED (
    SELECT DISTINCT ON (s.member_number) s.*, {_ROW_NO} AS new_row_no
    FROM ({_PLACED}) s WHERE {holds}
    ORDER BY s.member_number, s.place DESC
)"""  # noqa: S608 - made of constants and of the layout's checked names


def _inverted() -> str:
    return f"""
SELECT $1::bigint + s.place + width_bucket(s.place, $2::bigint[]) AS row_no
FROM ({_PLACED}) s WHERE s.effective_to < s.effective_from ORDER BY 1
"""  # noqa: S608


def _repeats() -> str:
    return f"""
SELECT $1::bigint + r.place + width_bucket(r.place, $2::bigint[]) AS row_no
FROM (
    SELECT s.place, lead(s.place) OVER (PARTITION BY s.member_number ORDER BY s.place) AS later
    FROM ({_PLACED}) s
    WHERE NOT $1::bigint + s.place + width_bucket(s.place, $2::bigint[]) = ANY ($3::bigint[])
) r
WHERE r.later IS NOT NULL ORDER BY 1
"""  # noqa: S608


def _fresh(name: str, layout: Layout) -> str:
    """A column's value for a member that is created."""
    if name == "attributes":
        pairs = _attribute_pairs(layout)
        return f"jsonb_strip_nulls(jsonb_build_object({pairs}))" if pairs else "'{}'::jsonb"
    if name not in layout.fields:
        return "NULL::date" if name in _DATES else _DEFAULTS.get(name, "''")
    if name in _DATES:
        return f"n.{name}"
    return f"coalesce(n.{name}, {_DEFAULTS.get(name, chr(39) * 2)})"


def _merged(name: str, layout: Layout) -> str:
    """The same for a member that is there: columns that the file lacks stay, so does a status."""
    if name == "attributes":
        pairs = _attribute_pairs(layout)
        kept = "m.attributes"
        return f"jsonb_strip_nulls({kept} || jsonb_build_object({pairs}))" if pairs else kept
    if name not in layout.fields:
        return f"m.{name}"
    if name in _DATES:
        return f"n.{name}"
    return f"coalesce(n.{name}, {'m.status' if name == 'status' else chr(39) * 2})"


def _attribute_pairs(layout: Layout) -> str:
    # Keys are [a-z][a-z0-9_]*: nothing to escape.
    return ", ".join(
        f"'{key}', nullif(n.{column}, '')" for key, column in layout.attribute_columns().items()
    )


_MEMBER_ID = "($5::text || lpad(to_hex(n.place), 8, '0'))::uuid"


def _create(layout: Layout, newest: str) -> str:
    """All rows as new members; a number that is taken makes it fail. $2 is the change."""
    names = [name for name in COLUMNS if name in layout.fields or name == "attributes"]
    if not layout.attribute_columns():
        names.remove("attributes")
    columns = "".join(f", {name}" for name in names)
    values = "".join(f", {_fresh(name, layout)}" for name in names)
    return f"""
WITH {newest}
INSERT INTO members (org_id, member_id, change_id, row_no, member_number{columns})
SELECT $1, {_MEMBER_ID}, $2, n.new_row_no, n.member_number{values}
FROM newest n ORDER BY n.member_number
"""  # noqa: S608


def _same_rows(layout: Layout) -> str:
    """Rows that say what is there already.

    $1 organisation  $2 import  $3 first row number  $4 gaps  $5, $6 changes of the import
    """
    equal = "".join(
        f" AND m.{name} IS NOT DISTINCT FROM {_merged(name, layout)}" for name in _named(layout)
    )
    return f"""
    SELECT n.member_number,
           $3::bigint + n.place + width_bucket(n.place, $4::bigint[]) AS row_no
    FROM ({_PLACED}) n
    CROSS JOIN LATERAL (
        SELECT FROM members m
        WHERE m.org_id = $1 AND m.member_number = n.member_number AND m.deleted_at IS NULL
          AND m.change_id NOT BETWEEN $5 AND $6{equal}
        OFFSET 0
    ) k
"""  # noqa: S608


def _same(layout: Layout) -> str:
    """Noted as seen, each; a repeated one makes it fail."""
    return f"""
INSERT INTO import_seen (org_id, import_id, member_number, row_no, is_changed)
SELECT $1, $2, r.member_number, r.row_no, false FROM ({_same_rows(layout)}) r
"""  # noqa: S608


def _same_apart(layout: Layout) -> str:
    """Noted together: all $7 rows are the same, none repeated, none between $8 and $9 noted."""
    return f"""
INSERT INTO import_seen_batches (
    org_id, import_id, first_row, low, high, member_numbers, row_nos
)
SELECT $1, $2, $3, min(r.member_number), max(r.member_number), array_agg(r.member_number),
       array_agg(r.row_no)
FROM ({_same_rows(layout)}) r
HAVING count(*) = $7 AND count(DISTINCT r.member_number) = $7
   AND NOT EXISTS (
       SELECT FROM import_seen s
       WHERE s.org_id = $1 AND s.import_id = $2 AND s.member_number BETWEEN $8 AND $9
   )
"""  # noqa: S608


def _named(layout: Layout) -> list[str]:
    """The columns of a member that the file fills."""
    named = [name for name in COLUMNS if name in layout.fields]
    return [*named, "attributes"] if layout.attribute_columns() else named


def _judged(layout: Layout, creates_only: bool) -> Callable[[bool], str]:
    """What is to become of each row; the inner function's argument tells merging from planning."""
    values = {name: (_fresh(name, layout), _merged(name, layout)) for name in COLUMNS}
    chosen = ",\n        ".join(
        f"CASE WHEN m.member_id IS NULL THEN {fresh} ELSE {merged} END AS {name}"
        for name, (fresh, merged) in values.items()
    )
    named = _named(layout)
    differs = " OR ".join(f"j.{name} IS DISTINCT FROM j.old_{name}" for name in named) or "false"
    olds = ", ".join(f"m.{name} AS old_{name}" for name in named)
    existing = (
        "'EXISTS'" if creates_only else f"CASE WHEN {differs} THEN 'UPDATE' ELSE 'UNCHANGED' END"
    )

    def judged(in_place: bool) -> str:
        if in_place:
            is_own = "coalesce(m.change_id BETWEEN $8 AND $9, false)"
            prior = f"CASE WHEN {is_own} THEN m.row_no ELSE e.row_no END"
            earlier, extra, was_changed = "import_seen", ", k.is_changed", "e.is_changed"
        else:
            is_own, prior = "false", "e.row_no"
            earlier, extra, was_changed = "import_plan", "", "e.row_no IS NOT NULL"
        return f"""joined AS MATERIALIZED (
    SELECT n.place, n.new_row_no, n.member_number, m.member_id AS old_id, m.version AS old_version,
        m.deleted_at, {prior} AS prior_row_no, e.row_no IS NOT NULL AS is_seen,
        coalesce({was_changed}, false) AS was_changed, {is_own} AS is_own,
        {olds + "," if olds else ""}
        {chosen}
    FROM newest n
    LEFT JOIN LATERAL (
        SELECT * FROM members k WHERE k.org_id = $1 AND k.member_number = n.member_number OFFSET 0
    ) m ON true
    LEFT JOIN LATERAL (
        SELECT k.row_no{extra} FROM {earlier} k
        WHERE k.org_id = $1 AND k.import_id = $2 AND k.member_number = n.member_number OFFSET 0
    ) e ON true
), verdicts AS MATERIALIZED (
    SELECT j.*, CASE
        WHEN j.prior_row_no > j.new_row_no THEN 'SUPERSEDED'
        WHEN j.deleted_at IS NOT NULL THEN 'DELETED'
        WHEN j.effective_to < j.effective_from THEN 'INVERTED'
        WHEN j.old_id IS NULL THEN 'CREATE'
        WHEN j.is_own THEN 'REPLACE'
        ELSE {existing}
    END AS said
    FROM joined j
), judged AS MATERIALIZED (
    SELECT v.*, CASE
        WHEN v.said = 'CREATE' AND row_number() OVER (PARTITION BY v.said ORDER BY v.place) > $6
        THEN 'QUOTA' ELSE v.said
    END AS verdict
    FROM verdicts v
)"""  # noqa: S608

    return judged


_VALUES = ", ".join(f"n.{name}" for name in COLUMNS)
_SETS = ", ".join(f"{name} = n.{name}" for name in COLUMNS)
_HELD = ", ".join(f"m.{name}" for name in IMAGE.split(", "))
# Counters carry over from an overridden row to the one that overrides it, so that a member counts
# once; only one that had been unchanged and is changed now moves from one counter to the other.
_TOLD = """
SELECT count(*) FILTER (WHERE verdict = 'CREATE' AND NOT was_changed) AS created,
       count(*) FILTER (WHERE verdict = 'UPDATE' AND NOT was_changed) AS updated,
       count(*) FILTER (WHERE verdict = 'UNCHANGED' AND NOT is_seen)
           - count(*) FILTER (
               WHERE verdict IN ('CREATE', 'UPDATE') AND is_seen AND NOT was_changed
           ) AS unchanged,
       count(*) FILTER (WHERE verdict IN ('CREATE', 'UPDATE', 'REPLACE')) AS written,
       count(*) AS members,
       array_agg(prior_row_no) FILTER (
           WHERE prior_row_no < new_row_no
             AND verdict IN ('CREATE', 'UPDATE', 'UNCHANGED', 'REPLACE')
       ) AS overridden,
       array_agg(new_row_no) FILTER (WHERE verdict = 'SUPERSEDED') AS superseded,
       array_agg(new_row_no) FILTER (WHERE verdict = 'DELETED') AS deleted,
       array_agg(new_row_no) FILTER (WHERE verdict = 'EXISTS') AS existing,
       array_agg(new_row_no) FILTER (WHERE verdict = 'INVERTED') AS inverted,
       array_agg(new_row_no) FILTER (WHERE verdict = 'QUOTA') AS over_quota,
"""

_MERGED = f"""created AS (
    INSERT INTO members (org_id, member_id, change_id, row_no, member_number, {", ".join(COLUMNS)})
    SELECT $1, {_MEMBER_ID}, $7, n.new_row_no, n.member_number, {_VALUES}
    FROM judged n WHERE n.verdict = 'CREATE' ORDER BY n.member_number
), kept AS (
    INSERT INTO member_history (org_id, {IMAGE}, superseded_by)
    SELECT $1, {_HELD}, $7
    FROM judged n JOIN members m ON m.org_id = $1 AND m.member_id = n.old_id
    WHERE n.verdict IN ('UPDATE', 'REPLACE')
), changed AS (
    UPDATE members m
    SET {_SETS}, change_id = $7, row_no = n.new_row_no, version = m.version + 1, updated_at = now()
    FROM judged n
    WHERE m.org_id = $1 AND m.member_id = n.old_id AND m.version = n.old_version
      AND n.verdict IN ('UPDATE', 'REPLACE')
    RETURNING 1
), seen AS (
    INSERT INTO import_seen (org_id, import_id, member_number, row_no, is_changed)
    SELECT $1, $2, n.member_number, n.new_row_no, n.verdict = 'UPDATE' FROM judged n
    WHERE n.verdict IN ('UPDATE', 'UNCHANGED') AND NOT n.is_seen ORDER BY n.member_number
), again AS (
    INSERT INTO import_seen AS e (org_id, import_id, member_number, row_no, is_changed)
    SELECT $1, $2, n.member_number, n.new_row_no, n.verdict = 'UPDATE' FROM judged n
    WHERE n.verdict IN ('UPDATE', 'UNCHANGED') AND n.is_seen ORDER BY n.member_number
    ON CONFLICT (org_id, import_id, member_number) DO UPDATE
    SET row_no = EXCLUDED.row_no, is_changed = e.is_changed OR EXCLUDED.is_changed
)
{_TOLD}
       count(*) FILTER (WHERE verdict IN ('UPDATE', 'REPLACE')) AS to_change,
       (SELECT count(*) FROM changed) AS changed
FROM judged
"""  # noqa: S608

_PLAN_VERDICTS = "n.verdict IN ('CREATE', 'UPDATE', 'UNCHANGED')"
_PLANNED = f"""planned AS (
    INSERT INTO import_plan (
        org_id, import_id, member_number, row_no, action, member_id, base_version,
        {", ".join(COLUMNS)}
    )
    SELECT $1, $2, n.member_number, n.new_row_no, n.verdict, coalesce(n.old_id, {_MEMBER_ID}),
           n.old_version, {_VALUES}
    FROM judged n WHERE {_PLAN_VERDICTS} AND NOT n.is_seen ORDER BY n.member_number
), changed AS (
    UPDATE import_plan p
    SET {_SETS}, row_no = n.new_row_no, action = n.verdict,
        base_version = n.old_version, member_id = coalesce(n.old_id, p.member_id)
    FROM judged n
    WHERE p.org_id = $1 AND p.import_id = $2 AND p.member_number = n.member_number
      AND p.row_no = n.prior_row_no AND n.is_seen AND {_PLAN_VERDICTS}
    RETURNING 1
)
{_TOLD}
       count(*) FILTER (WHERE is_seen AND {_PLAN_VERDICTS}) AS to_change,
       (SELECT count(*) FROM changed) AS changed
FROM judged n
"""  # noqa: S608
