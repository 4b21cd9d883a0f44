-- Imports: what was asked for, the uploaded bytes, how far workers have come, rejects, plans, undo.
--
-- Who writes what: serving processes create an import, store its bytes and queue it; from QUEUED on
-- only the holder of the import's job lease writes, each time behind its fence. Cancel, commit,
-- retry and undo are transitions by the serving process, which lock the import's row.

CREATE TABLE imports (
    org_id uuid NOT NULL REFERENCES orgs (org_id),
    import_id uuid NOT NULL,
    state text NOT NULL DEFAULT 'CREATED' CHECK (state IN (
        'CREATED', 'UPLOADING', 'QUEUED', 'RUNNING', 'AWAITING_COMMIT', 'SUCCEEDED', 'FAILED',
        'CANCELLED', 'DEAD', 'UNDOING', 'UNDONE'
    )),
    -- The ImportSpec as protobuf's JSON. What queries need of it stands in columns beside it.
    spec jsonb NOT NULL CHECK (jsonb_typeof(spec) = 'object'),
    validate_only boolean NOT NULL DEFAULT false,
    parent_import_id uuid,
    file_name text NOT NULL DEFAULT '' CHECK (length(file_name) <= 255),
    -- Who sent it: the provenance of every member it touches.
    actor_kind text NOT NULL CHECK (actor_kind IN ('USER', 'KEY')),
    actor_id uuid NOT NULL,
    actor_name text NOT NULL DEFAULT '',

    -- The upload. Every Open counts the epoch up; a write names its epoch, so that an older stream
    -- writes nothing any more. crc32 is over all persisted bytes: it is continued chunk by chunk
    -- (CRC-32 of a prefix is all the state that the rest needs), so Finish reads nothing again.
    upload_epoch bigint NOT NULL DEFAULT 0,
    persisted_bytes bigint NOT NULL DEFAULT 0 CHECK (persisted_bytes >= 0),
    crc32 bigint NOT NULL DEFAULT 0 CHECK (crc32 BETWEEN 0 AND 4294967295),
    -- Both from Finish on: the file's identity. Before, the sender's word stands in spec.
    total_bytes bigint CHECK (total_bytes >= 0),
    sha256 bytea CHECK (length(sha256) = 32),
    -- Layout.to_json() of imports/rules.py; its `first` is where row 1 begins. NULL: the header
    -- line has not come yet.
    layout jsonb,

    -- The queue. start_not_before is what the start quota gave it; the job's run_after is the same.
    job_id uuid,
    start_not_before timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    -- Rows a batch, fixed by the worker that began it: whoever goes on cuts the same batches.
    batch_rows integer CHECK (batch_rows BETWEEN 1 AND 1000000),

    -- Counters only grow, as imports_guard() sees to, but for `unchanged`: a later row may change
    -- what an earlier one left as it was. They are those of the finished batches (in
    -- import_batches, by batch) and change in the same transaction.
    bytes_processed bigint NOT NULL DEFAULT 0,
    rows_read bigint NOT NULL DEFAULT 0,
    created bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    unchanged bigint NOT NULL DEFAULT 0,
    rejected bigint NOT NULL DEFAULT 0,
    superseded bigint NOT NULL DEFAULT 0,
    terminated bigint NOT NULL DEFAULT 0,

    -- Why it ended without success or awaits a commit: ItemError as protobuf's JSON.
    problem jsonb,

    -- ImportPlan as protobuf's JSON; its etag again, to compare by. committed_at: CommitImport
    -- agreed to it, the job `import_commit` is queued. applied_at: it was published.
    plan jsonb,
    plan_etag text CHECK (length(plan_etag) BETWEEN 1 AND 64),
    committed_at timestamptz,
    applied_at timestamptz,

    undo_requested_at timestamptz,
    undo_ended_at timestamptz,
    undo_actor_id uuid,
    undo_actor_name text NOT NULL DEFAULT '',
    undo_reversed bigint NOT NULL DEFAULT 0,
    undo_kept bigint NOT NULL DEFAULT 0,
    undo_failed bigint NOT NULL DEFAULT 0,

    -- Counted up by imports_guard() with every change: the etag, and what watchers compare.
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    upload_ended_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    -- When an unfinished upload, or the bytes of an ended import, may be dropped. NULL: never yet.
    expires_at timestamptz,
    content_dropped_at timestamptz,

    PRIMARY KEY (org_id, import_id),
    FOREIGN KEY (org_id, parent_import_id) REFERENCES imports (org_id, import_id),
    CHECK ((total_bytes IS NULL) = (sha256 IS NULL)),
    CHECK (state NOT IN ('CREATED', 'UPLOADING') OR expires_at IS NOT NULL),
    -- Nothing unprocessed is ever dropped by age.
    CHECK (state NOT IN ('QUEUED', 'RUNNING', 'AWAITING_COMMIT', 'UNDOING') OR expires_at IS NULL)
) WITH (
    -- Progress touches no indexed column: room on the page keeps it off the indexes.
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 200
);
CREATE INDEX imports_newest ON imports (org_id, created_at DESC, import_id DESC);
CREATE INDEX imports_live ON imports (org_id, import_id)
    WHERE state IN ('CREATED', 'UPLOADING', 'QUEUED', 'RUNNING');
CREATE INDEX imports_waiting ON imports (org_id, start_not_before, import_id)
    WHERE state = 'QUEUED';
CREATE INDEX imports_starts ON imports (org_id, start_not_before DESC)
    WHERE start_not_before IS NOT NULL;
CREATE INDEX imports_same_file ON imports (org_id, sha256, total_bytes) WHERE sha256 IS NOT NULL;
CREATE INDEX imports_children ON imports (org_id, parent_import_id, import_id)
    WHERE parent_import_id IS NOT NULL;
CREATE INDEX imports_expiry ON imports (org_id, expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX imports_ended ON imports (org_id, ended_at) WHERE ended_at IS NOT NULL;

-- The file, in pieces that end anywhere. The piece with the byte at a cursor is
-- WHERE byte_offset <= cursor ORDER BY byte_offset DESC LIMIT 1; the pieces from there on have no
-- gap and no overlap. prefix_crc32 is over all bytes before the piece, so the digest of any prefix
-- costs one piece.
CREATE TABLE import_chunks (
    org_id uuid NOT NULL,
    import_id uuid NOT NULL,
    byte_offset bigint NOT NULL CHECK (byte_offset >= 0),
    prefix_crc32 bigint NOT NULL CHECK (prefix_crc32 BETWEEN 0 AND 4294967295),
    data bytea NOT NULL CHECK (length(data) BETWEEN 1 AND 1048576),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, import_id, byte_offset),
    FOREIGN KEY (org_id, import_id) REFERENCES imports (org_id, import_id)
) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_scale_factor = 0.05
);
-- Not compressed: it is read once, slices of it are cheap, and PostgreSQL's cores are the scarce ones.
ALTER TABLE import_chunks ALTER COLUMN data SET STORAGE EXTERNAL;

-- A row for each batch of rows that is done, written in the transaction of its effects. Lanes end in
-- any order: the cursor is the end of the last batch before the first gap, from layout.first on. A
-- worker that takes over cuts the gaps anew and does no batch again whose start is in here.
CREATE TABLE import_batches (
    org_id uuid NOT NULL,
    import_id uuid NOT NULL,
    batch_no integer NOT NULL CHECK (batch_no >= 0),
    lane smallint NOT NULL DEFAULT 0,
    state text NOT NULL DEFAULT 'DONE' CHECK (state IN ('DONE', 'UNDONE')),
    start_byte bigint NOT NULL,
    start_row bigint NOT NULL, -- rows before it
    start_line bigint NOT NULL,
    end_byte bigint NOT NULL CHECK (end_byte > start_byte),
    end_row bigint NOT NULL CHECK (end_row >= start_row),
    end_line bigint NOT NULL CHECK (end_line >= start_line),
    -- The row in member_changes. NULL: it changed no member, or was only planned.
    change_id uuid,
    created bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    unchanged bigint NOT NULL DEFAULT 0,
    rejected bigint NOT NULL DEFAULT 0,
    superseded bigint NOT NULL DEFAULT 0,
    done_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, import_id, batch_no)
);

-- Rows that were not imported, superseded ones too. No foreign key: it would be checked for each
-- of a million bad rows.
CREATE TABLE import_rejects (
    org_id uuid NOT NULL,
    import_id uuid NOT NULL,
    row_no bigint NOT NULL, -- 1 is the first below the header
    line_no bigint NOT NULL,
    byte_offset bigint NOT NULL,
    column_name text NOT NULL DEFAULT '',
    code text NOT NULL CHECK (length(code) BETWEEN 1 AND 64), -- a RejectCode without its prefix
    message text NOT NULL DEFAULT '',
    raw bytea NOT NULL,
    PRIMARY KEY (org_id, import_id, row_no)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- Rows whose reject another batch found out about: the member came again further down. Where they
-- stand is looked up in the file when all batches are done, and they move to import_rejects.
CREATE TABLE import_unlocated (
    org_id uuid NOT NULL,
    import_id uuid NOT NULL,
    row_no bigint NOT NULL,
    PRIMARY KEY (org_id, import_id, row_no)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- Members that were there before the import and that the file named, with the row that counts so
-- far; those it created are known by their change. For repeats across batches, whichever lands
-- first, and for members a SYNC did not see. Logged: after a crash an empty table would terminate
-- all.
CREATE TABLE import_seen (
    org_id uuid NOT NULL,
    import_id uuid NOT NULL,
    member_number text NOT NULL,
    row_no bigint NOT NULL,
    is_changed boolean NOT NULL, -- that row changed it, or an earlier one did
    PRIMARY KEY (org_id, import_id, member_number)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- The same for a batch that changed nothing, whose members nobody else named: a row for all of them.
-- A batch that reaches into its numbers turns it into rows of import_seen first.
CREATE TABLE import_seen_batches (
    org_id uuid NOT NULL,
    import_id uuid NOT NULL,
    first_row bigint NOT NULL,
    low text NOT NULL,
    high text NOT NULL,
    member_numbers text[] NOT NULL,
    row_nos bigint[] NOT NULL,
    PRIMARY KEY (org_id, import_id, first_row)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE import_seen_batches
    ALTER COLUMN member_numbers SET STORAGE EXTERNAL, ALTER COLUMN row_nos SET STORAGE EXTERNAL;

-- What a plan would do, row by row: publishing is one INSERT .. SELECT from here. base_version is
-- the member's version that the row was planned on; another one makes the plan stale.
CREATE TABLE import_plan (
    org_id uuid NOT NULL,
    import_id uuid NOT NULL,
    member_number text NOT NULL,
    row_no bigint NOT NULL, -- 0: a termination, which has no row
    action text NOT NULL CHECK (action IN ('CREATE', 'UPDATE', 'UNCHANGED', 'TERMINATE')),
    member_id uuid NOT NULL,
    base_version bigint, -- NULL: there was none
    given_name text,
    family_name text,
    email text,
    phone text,
    date_of_birth date,
    plan text,
    status text,
    effective_from date,
    effective_to date,
    attributes jsonb,
    PRIMARY KEY (org_id, import_id, member_number)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- What undoing did, member by member.
CREATE TABLE import_undo (
    org_id uuid NOT NULL,
    import_id uuid NOT NULL,
    row_no bigint NOT NULL, -- 0: terminated by a SYNC, no row of the file
    member_id uuid NOT NULL,
    member_number text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('REVERSED', 'KEPT_BECAUSE_EDITED', 'FAILED')),
    message text NOT NULL DEFAULT '',
    PRIMARY KEY (org_id, import_id, row_no, member_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- Staging is a temporary table of each worker's connection: nothing of it outlives the batch.

DO $$
DECLARE
    tenant_table text;
BEGIN
    FOREACH tenant_table IN ARRAY ARRAY[
        'imports', 'import_chunks', 'import_batches', 'import_rejects', 'import_unlocated',
        'import_seen', 'import_seen_batches', 'import_plan', 'import_undo'
    ]
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', tenant_table);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', tenant_table);
        EXECUTE format(
            'CREATE POLICY tenant ON %I USING (org_id = current_org())'
            ' WITH CHECK (org_id = current_org())',
            tenant_table
        );
    END LOOP;
END
$$;

-- Across organisations the worker sees which imports are due to be dropped, and nothing else.
CREATE POLICY expired_read ON imports FOR SELECT TO trunkline_worker USING (
    expires_at <= now() OR ended_at < now() - interval '1 day'
);

GRANT SELECT, INSERT, UPDATE ON imports TO trunkline_app;
GRANT SELECT, INSERT ON import_chunks TO trunkline_app;
GRANT SELECT ON import_batches, import_rejects, import_plan, import_undo TO trunkline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON imports, import_batches, import_rejects, import_unlocated,
    import_seen, import_seen_batches, import_plan, import_undo TO trunkline_worker;
GRANT SELECT, DELETE ON import_chunks TO trunkline_worker;

-- Holds for every writer: states follow the machine, counters only grow, the version counts up.
CREATE FUNCTION imports_guard() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('CREATED', 'UPLOADING'), ('CREATED', 'QUEUED'), ('CREATED', 'FAILED'),
        ('CREATED', 'CANCELLED'),
        ('UPLOADING', 'QUEUED'), ('UPLOADING', 'FAILED'), ('UPLOADING', 'CANCELLED'),
        ('QUEUED', 'RUNNING'), ('QUEUED', 'FAILED'), ('QUEUED', 'CANCELLED'), ('QUEUED', 'DEAD'),
        -- Back to the queue: the lease was handed on, or the worker died.
        ('RUNNING', 'QUEUED'), ('RUNNING', 'AWAITING_COMMIT'), ('RUNNING', 'SUCCEEDED'),
        ('RUNNING', 'FAILED'), ('RUNNING', 'CANCELLED'), ('RUNNING', 'DEAD'),
        ('AWAITING_COMMIT', 'QUEUED'), ('AWAITING_COMMIT', 'FAILED'),
        ('AWAITING_COMMIT', 'CANCELLED'),
        -- CommitImport of what was only checked.
        ('SUCCEEDED', 'QUEUED'),
        ('FAILED', 'QUEUED'), ('DEAD', 'QUEUED'),
        ('SUCCEEDED', 'UNDOING'), ('FAILED', 'UNDOING'), ('CANCELLED', 'UNDOING'),
        ('DEAD', 'UNDOING'), ('UNDOING', 'DEAD'), ('UNDOING', 'UNDONE')
    ) THEN
        RAISE EXCEPTION 'an import does not go from % to %', OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    IF (NEW.persisted_bytes < OLD.persisted_bytes OR NEW.upload_epoch < OLD.upload_epoch
        OR NEW.bytes_processed < OLD.bytes_processed OR NEW.rows_read < OLD.rows_read
        OR NEW.created < OLD.created OR NEW.updated < OLD.updated
        OR NEW.rejected < OLD.rejected
        OR NEW.superseded < OLD.superseded OR NEW.terminated < OLD.terminated
        OR NEW.undo_reversed < OLD.undo_reversed OR NEW.undo_kept < OLD.undo_kept
        OR NEW.undo_failed < OLD.undo_failed) THEN
        RAISE EXCEPTION 'counters of an import only grow' USING ERRCODE = 'check_violation';
    END IF;
    NEW.version := OLD.version + 1;
    NEW.updated_at := now();
    RETURN NEW;
END
$$;
CREATE TRIGGER imports_guard BEFORE UPDATE ON imports
    FOR EACH ROW EXECUTE FUNCTION imports_guard();

-- Stored and not yet processed, of all organisations and of one: what grants are computed from.
-- Sums only, so no organisation learns of another. is_draining: a worker can make room, since
-- some of it belongs to finished uploads.
GRANT SELECT ON imports TO trunkline_definer;
CREATE POLICY lookup ON imports FOR SELECT TO trunkline_definer USING (true);
CREATE FUNCTION import_backlog(
    wanted_org uuid, OUT all_bytes bigint, OUT org_bytes bigint, OUT all_draining boolean,
    OUT org_draining boolean
)
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
        SELECT coalesce(sum(i.persisted_bytes - i.bytes_processed), 0)::bigint,
               coalesce(sum(i.persisted_bytes - i.bytes_processed)
                   FILTER (WHERE i.org_id = wanted_org), 0)::bigint,
               coalesce(bool_or(
                   i.state IN ('QUEUED', 'RUNNING') AND i.bytes_processed < i.persisted_bytes
               ), false),
               coalesce(bool_or(
                   i.state IN ('QUEUED', 'RUNNING') AND i.bytes_processed < i.persisted_bytes
               ) FILTER (WHERE i.org_id = wanted_org), false)
        FROM imports i WHERE i.state IN ('CREATED', 'UPLOADING', 'QUEUED', 'RUNNING');
    END;
REVOKE EXECUTE ON FUNCTION import_backlog(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION import_backlog(uuid) TO trunkline_app, trunkline_worker;
GRANT CREATE ON SCHEMA public TO trunkline_definer;
ALTER FUNCTION import_backlog(uuid) OWNER TO trunkline_definer;
REVOKE CREATE ON SCHEMA public FROM trunkline_definer;
