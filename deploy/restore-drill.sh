#!/bin/sh
# Prove that a back-up can be restored: dump SOURCE, restore it into EMPTY, compare every table.
#   deploy/restore-drill.sh postgresql://admin@db/trunkline postgresql://admin@spare/empty
# Both URLs log in as a superuser, or as one with BYPASSRLS: row-level security is forced on the
# owner as well, and pg_dump refuses to write what it cannot see whole.
# On another cluster the roles must be there first: `pg_dumpall --roles-only | psql`.
# Exit 0 when every table's digest agrees; 1, and the tables, when not.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 SOURCE_URL EMPTY_URL" >&2; exit 64; }
source=$1
empty=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
umask 077

tables="SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
[ "$(psql -XqAt -v ON_ERROR_STOP=1 -d "$empty" -c "$tables")" = 0 ] || {
    echo "the target is not empty: nothing was done" >&2
    exit 64
}

# A digest of a table does not depend on the order of its rows. Partitions count for themselves.
# The digests are taken in the snapshot that is dumped, so a database in use can be drilled.
digests="
SELECT format('SELECT %L, count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM ONLY public.%I t;',
              relname, relname)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY relname"
settings="SET timezone = 'UTC'; SET datestyle = 'ISO'; SET extra_float_digits = 1; SET row_security = off;"

psql -XqAt -v ON_ERROR_STOP=1 -d "$source" <<SQL
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
$settings
\\o $work/snapshot
SELECT pg_export_snapshot();
\\o
\\set snapshot \`cat $work/snapshot\`
\\setenv SNAPSHOT :snapshot
\\setenv SOURCE_URL '$source'
\\! pg_dump --format=custom --snapshot="\$SNAPSHOT" --file="$work/dump" --dbname="\$SOURCE_URL" || touch "$work/failed"
\\o $work/before
$digests \\gexec
COMMIT;
SQL
[ ! -e "$work/failed" ] || { echo "the dump failed" >&2; exit 1; }

pg_restore --exit-on-error --no-password --dbname="$empty" "$work/dump"
psql -XqAt -v ON_ERROR_STOP=1 -d "$empty" -o "$work/after" <<SQL
$settings
$digests \\gexec
SQL

if diff "$work/before" "$work/after" >"$work/differences"; then
    echo "restored: $(wc -l <"$work/before" | tr -d ' ') tables agree, $(wc -c <"$work/dump" | tr -d ' ') bytes of dump"
else
    echo "the copy differs:" >&2
    cat "$work/differences" >&2
    exit 1
fi
