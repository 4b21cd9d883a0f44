-- Members that an undone import had created, by the ten thousand: one row for each transaction that
-- removed some. A row a member would make undoing several times as dear as deleting.
CREATE TABLE import_undo_batches (
    org_id uuid NOT NULL,
    import_id uuid NOT NULL,
    change_id uuid NOT NULL, -- the change that removed them
    members bigint NOT NULL CHECK (members > 0),
    first_row bigint NOT NULL, -- of the file
    last_row bigint NOT NULL,
    row_nos bigint[] NOT NULL,
    member_ids uuid[] NOT NULL,
    member_numbers text[] NOT NULL,
    PRIMARY KEY (org_id, import_id, change_id)
);
CREATE INDEX import_undo_batches_change ON import_undo_batches (org_id, change_id);
ALTER TABLE import_undo_batches
    ALTER COLUMN row_nos SET STORAGE EXTERNAL,
    ALTER COLUMN member_ids SET STORAGE EXTERNAL,
    ALTER COLUMN member_numbers SET STORAGE EXTERNAL;
ALTER TABLE import_undo_batches ENABLE ROW LEVEL SECURITY;
ALTER TABLE import_undo_batches FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON import_undo_batches
    USING (org_id = current_org()) WITH CHECK (org_id = current_org());
GRANT SELECT ON import_undo_batches TO trunkline_app;
GRANT SELECT, INSERT, DELETE ON import_undo_batches TO trunkline_worker;

-- All members that are gone, for watches: purged ones and those of undone imports.
CREATE VIEW member_removals WITH (security_invoker = true) AS
SELECT t.org_id, t.change_id, t.member_id, t.member_number FROM member_tombstones t
UNION ALL
SELECT b.org_id, b.change_id, u.member_id, u.member_number
FROM import_undo_batches b, unnest(b.member_ids, b.member_numbers) AS u (member_id, member_number);
GRANT SELECT ON member_removals TO trunkline_app, trunkline_worker;

CREATE OR REPLACE FUNCTION unindex_members(p_org uuid, p_change uuid) RETURNS void
    LANGUAGE sql
    AS $$
        DELETE FROM member_search s
        USING (
            SELECT h.member_id FROM member_history h
            WHERE h.org_id = p_org AND h.superseded_by = p_change
            UNION ALL
            SELECT unnest(b.member_ids) FROM import_undo_batches b
            WHERE b.org_id = p_org AND b.change_id = p_change
        ) gone
        WHERE s.org_id = p_org AND s.member_id = gone.member_id
          AND NOT EXISTS (
              SELECT FROM members m WHERE m.org_id = p_org AND m.member_id = gone.member_id
          )
    $$;
