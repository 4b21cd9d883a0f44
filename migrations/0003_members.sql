-- Members, the changes that made them what they are, and what they were before.

-- One row for each transaction that changed members: who, why, from which file. A member points to
-- the change that wrote it, so a bulk import states its provenance once, and the changes of an
-- organisation have an order (seq is given under a lock at the end of the transaction).
CREATE TABLE member_changes (
    org_id uuid NOT NULL REFERENCES orgs (org_id),
    change_id uuid NOT NULL,
    seq bigint NOT NULL,
    cause text NOT NULL CHECK (cause IN (
        'CREATED', 'UPDATED', 'IMPORTED', 'SYNC_TERMINATED', 'IMPORT_UNDONE', 'DELETED',
        'UNDELETED', 'PURGED'
    )),
    actor_kind text NOT NULL CHECK (actor_kind IN ('USER', 'KEY', 'OPERATOR', 'WORKER')),
    actor_id uuid,
    actor_name text NOT NULL DEFAULT '',
    import_id uuid,
    file_name text NOT NULL DEFAULT '',
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, change_id)
);
CREATE UNIQUE INDEX member_changes_order ON member_changes (org_id, seq);
CREATE INDEX member_changes_import ON member_changes (org_id, import_id)
    WHERE import_id IS NOT NULL;

-- The last seq of each organisation. Updated last in a transaction: held for the commit only.
CREATE TABLE member_change_seqs (
    org_id uuid PRIMARY KEY REFERENCES orgs (org_id),
    seq bigint NOT NULL
);

-- No foreign key to orgs: it would be checked for each of a million imported rows.
CREATE TABLE members (
    org_id uuid NOT NULL,
    member_id uuid NOT NULL,
    member_number text NOT NULL CHECK (length(member_number) BETWEEN 1 AND 64),
    given_name text NOT NULL DEFAULT '',
    family_name text NOT NULL DEFAULT '',
    email text NOT NULL DEFAULT '',
    phone text NOT NULL DEFAULT '',
    date_of_birth date,
    plan text NOT NULL DEFAULT '',
    status text NOT NULL DEFAULT 'ACTIVE'
        CHECK (status IN ('PENDING', 'ACTIVE', 'SUSPENDED', 'TERMINATED')),
    effective_from date,
    effective_to date,
    attributes jsonb NOT NULL DEFAULT '{}',
    version bigint NOT NULL DEFAULT 1,
    change_id uuid NOT NULL,
    row_no bigint, -- of the file, when an import wrote this version
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    purge_at timestamptz,
    PRIMARY KEY (org_id, member_id),
    CHECK (effective_to >= effective_from),
    CHECK ((deleted_at IS NULL) = (purge_at IS NULL))
);
-- Deleted members keep their number until they are purged: undelete must find it free.
CREATE UNIQUE INDEX members_number ON members (org_id, member_number);
-- Watches, undo and "changed by this import"; pages continue inside a change of many members.
CREATE INDEX members_change ON members (org_id, change_id, member_id);
CREATE INDEX members_purge ON members (org_id, purge_at) WHERE purge_at IS NOT NULL;

-- What a member was until `superseded_at`. Append-only; version 1 of a member that was never
-- changed has no row here.
CREATE TABLE member_history (
    org_id uuid NOT NULL,
    member_id uuid NOT NULL,
    member_number text NOT NULL,
    given_name text NOT NULL,
    family_name text NOT NULL,
    email text NOT NULL,
    phone text NOT NULL,
    date_of_birth date,
    plan text NOT NULL,
    status text NOT NULL,
    effective_from date,
    effective_to date,
    attributes jsonb NOT NULL,
    version bigint NOT NULL,
    change_id uuid NOT NULL,
    row_no bigint,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    deleted_at timestamptz,
    purge_at timestamptz,
    superseded_by uuid NOT NULL, -- the change that made it history
    superseded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, member_id, version, superseded_at)
) PARTITION BY RANGE (superseded_at);
CREATE INDEX member_history_superseded ON member_history (org_id, superseded_by);
-- What an import wrote and somebody changed since: undoing it lists those members as kept.
CREATE INDEX member_history_import ON member_history (org_id, change_id) WHERE row_no IS NOT NULL;
CREATE INDEX member_history_number ON member_history (org_id, member_number);
CREATE TABLE member_history_default PARTITION OF member_history DEFAULT;

-- What the batches of validations were counted and audited as; see docs/adr/0008.
CREATE TABLE validation_log (
    org_id uuid NOT NULL,
    validation_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    actor_id uuid NOT NULL,
    decision text NOT NULL,
    reasons text[] NOT NULL,
    as_of date NOT NULL,
    -- One row for all validations of an actor with the same outcome in one flush.
    validations integer NOT NULL DEFAULT 1,
    member_ids uuid[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (org_id, validation_id, at)
) PARTITION BY RANGE (at);
CREATE INDEX validation_log_actor ON validation_log (org_id, actor_id, at);
CREATE TABLE validation_log_default PARTITION OF validation_log DEFAULT;

-- Callers that the enumeration guard warned, slowed or stopped.
CREATE TABLE validation_guards (
    org_id uuid NOT NULL REFERENCES orgs (org_id),
    actor_id uuid NOT NULL,
    actor_name text NOT NULL DEFAULT '',
    level text NOT NULL CHECK (level IN ('WARNED', 'SLOWED', 'STOPPED')),
    sign text NOT NULL,
    lookups bigint NOT NULL,
    misses bigint NOT NULL,
    sequential bigint NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, actor_id)
);
CREATE INDEX validation_guards_stopped ON validation_guards (org_id, actor_id)
    WHERE level = 'STOPPED';
CREATE INDEX validation_guards_newest ON validation_guards (org_id, updated_at DESC, actor_id);

DO $$
DECLARE
    tenant_table text;
BEGIN
    FOREACH tenant_table IN ARRAY ARRAY[
        'member_changes', 'member_change_seqs', 'members', 'member_history',
        'member_history_default', 'validation_log', 'validation_log_default', 'validation_guards'
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

GRANT SELECT, INSERT ON member_changes, member_history, validation_log
    TO trunkline_app, trunkline_worker;
GRANT SELECT, INSERT, UPDATE ON member_change_seqs, members TO trunkline_app, trunkline_worker;
GRANT DELETE ON members TO trunkline_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON validation_guards
    TO trunkline_app, trunkline_worker;

-- Writes the change down and gives it the organisation's next seq. Call it last: the row of the
-- sequence stays locked until the commit, so seq grows in the order of commits.
CREATE FUNCTION record_member_change(
    p_org uuid, p_change uuid, p_cause text, p_actor_kind text, p_actor uuid, p_actor_name text,
    p_import uuid DEFAULT NULL, p_file_name text DEFAULT ''
) RETURNS bigint
    LANGUAGE sql
    AS $$
        WITH next AS (
            INSERT INTO member_change_seqs (org_id, seq) VALUES (p_org, 1)
            ON CONFLICT (org_id) DO UPDATE SET seq = member_change_seqs.seq + 1
            RETURNING seq
        )
        INSERT INTO member_changes (
            org_id, change_id, seq, cause, actor_kind, actor_id, actor_name, import_id, file_name
        )
        SELECT p_org, p_change, next.seq, p_cause, p_actor_kind, p_actor, p_actor_name, p_import,
               p_file_name
        FROM next
        RETURNING seq
    $$;

-- The validation's one read: the tenant is set inside the statement, so a kept connection serves
-- every organisation and row-level security still holds.
CREATE FUNCTION member_by_number(p_org uuid, p_number text)
    RETURNS TABLE (
        member_id uuid, member_number text, given_name text, family_name text, email text,
        phone text, date_of_birth date, plan text, status text, effective_from date,
        effective_to date, version bigint, change_id uuid, row_no bigint, deleted_at timestamptz,
        cause text, actor_kind text, actor_id uuid, actor_name text, import_id uuid,
        file_name text, changed_at timestamptz
    )
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM set_config('trunkline.org_id', p_org::text, true);
    RETURN QUERY
        SELECT m.member_id, m.member_number, m.given_name, m.family_name, m.email, m.phone,
               m.date_of_birth, m.plan, m.status, m.effective_from, m.effective_to, m.version,
               m.change_id, m.row_no, m.deleted_at, c.cause, c.actor_kind, c.actor_id,
               c.actor_name, c.import_id, c.file_name, c.changed_at
        FROM members m
        LEFT JOIN member_changes c ON c.org_id = m.org_id AND c.change_id = m.change_id
        WHERE m.org_id = p_org AND m.member_number = p_number;
END
$$;

-- The same for many numbers at once.
CREATE FUNCTION members_by_numbers(p_org uuid, p_numbers text[])
    RETURNS TABLE (
        member_id uuid, member_number text, given_name text, family_name text, email text,
        phone text, date_of_birth date, plan text, status text, effective_from date,
        effective_to date, version bigint, change_id uuid, row_no bigint, deleted_at timestamptz,
        cause text, actor_kind text, actor_id uuid, actor_name text, import_id uuid,
        file_name text, changed_at timestamptz
    )
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM set_config('trunkline.org_id', p_org::text, true);
    RETURN QUERY
        SELECT m.member_id, m.member_number, m.given_name, m.family_name, m.email, m.phone,
               m.date_of_birth, m.plan, m.status, m.effective_from, m.effective_to, m.version,
               m.change_id, m.row_no, m.deleted_at, c.cause, c.actor_kind, c.actor_id,
               c.actor_name, c.import_id, c.file_name, c.changed_at
        FROM members m
        LEFT JOIN member_changes c ON c.org_id = m.org_id AND c.change_id = m.change_id
        WHERE m.org_id = p_org AND m.member_number = ANY (p_numbers);
END
$$;
REVOKE EXECUTE ON FUNCTION
    record_member_change(uuid, uuid, text, text, uuid, text, uuid, text),
    member_by_number(uuid, text), members_by_numbers(uuid, text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    record_member_change(uuid, uuid, text, text, uuid, text, uuid, text),
    member_by_number(uuid, text), members_by_numbers(uuid, text[])
    TO trunkline_app, trunkline_worker;
