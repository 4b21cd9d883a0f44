-- Leased jobs, the organisations' places in the queue, and the ticks of schedules.

GRANT SELECT ON schema_migrations TO trunkline_app, trunkline_worker;

-- The organisation 00000000-0000-0000-0000-000000000000 is the system's own: it has no row in orgs,
-- no credential can name it, and it waits in the same queue under the same policies.
CREATE TABLE jobs (
    org_id uuid NOT NULL,
    job_id uuid NOT NULL,
    kind text NOT NULL CHECK (length(kind) BETWEEN 1 AND 100),
    subject_id uuid,
    payload jsonb NOT NULL DEFAULT '{}'
        CHECK (jsonb_typeof(payload) = 'object' AND length(payload::text) <= 65536),
    checkpoint jsonb NOT NULL DEFAULT '{}'
        CHECK (jsonb_typeof(checkpoint) = 'object' AND length(checkpoint::text) <= 65536),
    dedup_key text CHECK (length(dedup_key) BETWEEN 1 AND 200),
    priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100),
    state text NOT NULL DEFAULT 'QUEUED'
        CHECK (state IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'DEAD')),
    run_after timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    max_attempts integer NOT NULL DEFAULT 8 CHECK (max_attempts BETWEEN 1 AND 1000),
    lease_epoch bigint NOT NULL DEFAULT 0 CHECK (lease_epoch >= 0),
    lease_owner text CHECK (length(lease_owner) <= 200),
    lease_until timestamptz,
    cancel_requested_at timestamptz,
    -- A class of failure, never a value of a row: no personal data.
    last_error text NOT NULL DEFAULT '' CHECK (length(last_error) <= 500),
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    PRIMARY KEY (org_id, job_id),
    CHECK ((state = 'RUNNING') = (lease_until IS NOT NULL)),
    CHECK ((lease_until IS NULL) = (lease_owner IS NULL)),
    CHECK ((state IN ('QUEUED', 'RUNNING')) = (finished_at IS NULL))
) WITH (
    -- Heartbeats touch no indexed column: room on the page keeps them off the indexes.
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 200
);
CREATE UNIQUE INDEX jobs_dedup ON jobs (org_id, kind, dedup_key)
    WHERE dedup_key IS NOT NULL AND state IN ('QUEUED', 'RUNNING');
CREATE INDEX jobs_next ON jobs (org_id, priority DESC, run_after, job_id) WHERE state = 'QUEUED';
CREATE INDEX jobs_due ON jobs (org_id, run_after) WHERE state = 'QUEUED';
CREATE INDEX jobs_running ON jobs (org_id, job_id) WHERE state = 'RUNNING';
CREATE INDEX jobs_dead ON jobs (org_id, job_id) WHERE state = 'DEAD';
CREATE INDEX jobs_finished ON jobs (org_id, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_subject ON jobs (org_id, subject_id) WHERE subject_id IS NOT NULL;

-- One row an organisation. Whoever claims a job of it holds this row: that is what makes the
-- concurrency hold under races, and served_at is its turn among the others.
CREATE TABLE job_queues (
    org_id uuid PRIMARY KEY,
    concurrency integer NOT NULL DEFAULT 2 CHECK (concurrency BETWEEN 0 AND 1000),
    served_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 70);
INSERT INTO job_queues (org_id, concurrency) VALUES ('00000000-0000-0000-0000-000000000000', 8);

-- A tick of a task that has had its job. The unique key is what makes two schedulers one.
CREATE TABLE schedules (
    org_id uuid NOT NULL,
    task text NOT NULL CHECK (length(task) BETWEEN 1 AND 100),
    tick timestamptz NOT NULL,
    fired_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, task, tick)
);

ALTER TABLE jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON jobs USING (org_id = current_org()) WITH CHECK (org_id = current_org());
CREATE POLICY queue ON jobs TO trunkline_worker USING (true) WITH CHECK (true);

ALTER TABLE job_queues ENABLE ROW LEVEL SECURITY;
ALTER TABLE job_queues FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON job_queues
    USING (org_id = current_org()) WITH CHECK (org_id = current_org());
CREATE POLICY queue ON job_queues TO trunkline_worker USING (true) WITH CHECK (true);

ALTER TABLE schedules ENABLE ROW LEVEL SECURITY;
ALTER TABLE schedules FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON schedules
    USING (org_id = current_org()) WITH CHECK (org_id = current_org());
CREATE POLICY queue ON schedules TO trunkline_worker USING (true) WITH CHECK (true);

-- The application enqueues, re-drives and cancels; leases are the worker's alone.
GRANT SELECT ON jobs, job_queues TO trunkline_app;
GRANT INSERT (
    org_id, job_id, kind, subject_id, payload, dedup_key, priority, run_after, max_attempts
) ON jobs TO trunkline_app;
GRANT UPDATE (
    state, run_after, attempts, cancel_requested_at, last_error, updated_at, finished_at
) ON jobs TO trunkline_app;
GRANT INSERT (org_id, concurrency), UPDATE (concurrency) ON job_queues TO trunkline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON jobs TO trunkline_worker;
GRANT SELECT, INSERT, UPDATE ON job_queues TO trunkline_worker;
GRANT SELECT, INSERT, DELETE ON schedules TO trunkline_worker;

-- Doubles with each attempt up to the ceiling, and spreads over its upper half: jobs that failed
-- together must not come back together.
CREATE FUNCTION job_backoff(attempts integer, base interval, ceiling interval) RETURNS interval
    LANGUAGE sql VOLATILE
    RETURN least(ceiling, base * power(2, least(greatest(attempts, 1), 30) - 1)) *
        (0.5 + random() / 2);
