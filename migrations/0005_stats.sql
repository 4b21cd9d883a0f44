-- Events, the marks of hours whose numbers are not right yet, and the numbers.

-- An event's identity is its id and its day (UTC): that is what a retry sends again.
CREATE TABLE events (
    org_id uuid NOT NULL,
    occurred_on date NOT NULL,
    event_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN (
        'CALL', 'VALIDATION', 'IMPORT_ROWS', 'ARTICLE_VIEW', 'ARTICLE_SEARCH', 'ARTICLE_VOTE',
        'SIGN_IN'
    )),
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    agent_id uuid,
    duration_us bigint CHECK (duration_us >= 0),
    outcome text NOT NULL DEFAULT '' CHECK (length(outcome) <= 64),
    quantity bigint NOT NULL DEFAULT 1 CHECK (quantity >= 1),
    attributes jsonb CHECK (jsonb_typeof(attributes) = 'object'),
    PRIMARY KEY (org_id, occurred_on, event_id)
) PARTITION BY RANGE (occurred_on);
-- What a roll-up of an hour reads.
CREATE INDEX events_hour ON events (org_id, kind, occurred_at);
CREATE TABLE events_default PARTITION OF events DEFAULT;

-- A mark says: this hour has events that its numbers do not know. Every transaction leaves marks
-- of its own, so no two writers ever meet in an index, and none can overwrite another's while a
-- roll-up is taking it away (docs/adr/0030).
CREATE TABLE stats_dirty (
    org_id uuid NOT NULL,
    hour timestamptz NOT NULL,
    kind text NOT NULL,
    mark_id uuid NOT NULL,
    marked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, hour, kind, mark_id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- Hours that were counted. Events never change, so their count tells whether the numbers did.
CREATE TABLE stats_hours (
    org_id uuid NOT NULL,
    kind text NOT NULL,
    hour timestamptz NOT NULL,
    events bigint NOT NULL,
    -- What was there when the hour was first counted after its end; null while it runs.
    first_events bigint,
    revision bigint NOT NULL DEFAULT 1,
    counted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, kind, hour)
) WITH (fillfactor = 80);

-- Days (UTC) whose numbers are made of their hours; a dirty one is read from the hours instead.
CREATE TABLE stats_days (
    org_id uuid NOT NULL,
    kind text NOT NULL,
    day date NOT NULL,
    dirty boolean NOT NULL,
    PRIMARY KEY (org_id, kind, day)
);
CREATE INDEX stats_days_dirty ON stats_days (org_id, day, kind) WHERE dirty;

-- Level ALL sums over the agents, so that most questions read a row an hour and outcome.
-- bins and bin_counts are a logarithmic histogram of durations (stats/histogram.py).
CREATE TABLE stats_hourly (
    org_id uuid NOT NULL,
    kind text NOT NULL,
    level text NOT NULL CHECK (level IN ('ALL', 'AGENT')),
    hour timestamptz NOT NULL,
    agent_id uuid NOT NULL,
    outcome text NOT NULL,
    quantity bigint NOT NULL,
    measured bigint NOT NULL,
    duration_us numeric(30) NOT NULL,
    bins smallint[],
    bin_counts bigint[],
    PRIMARY KEY (org_id, kind, level, hour, agent_id, outcome)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE stats_daily (
    org_id uuid NOT NULL,
    kind text NOT NULL,
    level text NOT NULL CHECK (level IN ('ALL', 'AGENT')),
    day date NOT NULL,
    agent_id uuid NOT NULL,
    outcome text NOT NULL,
    quantity bigint NOT NULL,
    measured bigint NOT NULL,
    duration_us numeric(30) NOT NULL,
    bins smallint[],
    bin_counts bigint[],
    PRIMARY KEY (org_id, kind, level, day, agent_id, outcome)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

DO $$
DECLARE
    tenant_table text;
BEGIN
    FOREACH tenant_table IN ARRAY ARRAY[
        'events', 'events_default', 'stats_dirty', 'stats_hours', 'stats_days', 'stats_hourly',
        'stats_daily'
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

-- Across organisations the worker sees which of them wait, and nothing else.
CREATE POLICY queue ON stats_dirty FOR SELECT TO trunkline_worker USING (true);
CREATE POLICY unrolled ON stats_days FOR SELECT TO trunkline_worker USING (dirty);

GRANT SELECT, INSERT ON events, stats_dirty TO trunkline_app, trunkline_worker;
GRANT DELETE ON stats_dirty TO trunkline_worker;
GRANT SELECT ON stats_hours, stats_days, stats_hourly, stats_daily TO trunkline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON stats_hours, stats_days, stats_hourly, stats_daily
    TO trunkline_worker;

-- The bin of a duration: 0 has its own, -1; else the number of steps of 2 % from one microsecond.
-- The same as stats/histogram.py; a test holds them together.
CREATE FUNCTION stats_bin(duration_us bigint) RETURNS smallint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN duration_us IS NULL THEN NULL
        WHEN duration_us <= 0 THEN -1
        ELSE ceil(ln(duration_us::double precision) / ln(1.01::double precision / 0.99))
    END::smallint;

-- What retention has to know of all organisations.
GRANT SELECT ON events, events_default, stats_dirty, stats_hours, stats_days TO trunkline_definer;
CREATE POLICY lookup ON events FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON events_default FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON stats_dirty FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON stats_hours FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON stats_days FOR SELECT TO trunkline_definer USING (true);

-- Events that no month's partition took: a number that has to be 0. Counted up to 10,000.
CREATE FUNCTION stats_events_astray() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
        SELECT count(*) FROM (SELECT FROM events_default LIMIT 10000) AS astray;
    END;

-- The longest time any organisation keeps its raw events.
CREATE FUNCTION stats_kept_days(default_days integer) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
        SELECT greatest(
            default_days,
            coalesce(max((o.retention ->> 'events_days')::integer), 0)
        ) FROM orgs o;
    END;

-- Why the month's raw events must stay; empty when every one of them is in the numbers.
CREATE FUNCTION stats_month_is_needed(first_day date, next_first_day date) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
        SELECT CASE
            WHEN EXISTS (
                SELECT FROM stats_dirty d
                WHERE d.hour >= first_day::timestamp AT TIME ZONE 'UTC'
                  AND d.hour < next_first_day::timestamp AT TIME ZONE 'UTC'
            ) THEN 'hours are dirty'
            WHEN EXISTS (
                SELECT FROM stats_days s
                WHERE s.dirty AND s.day >= first_day AND s.day < next_first_day
            ) THEN 'days are dirty'
            WHEN (
                SELECT count(*) FROM events e
                WHERE e.occurred_on >= first_day AND e.occurred_on < next_first_day
            ) <> (
                SELECT coalesce(sum(h.events), 0) FROM stats_hours h
                WHERE h.hour >= first_day::timestamp AT TIME ZONE 'UTC'
                  AND h.hour < next_first_day::timestamp AT TIME ZONE 'UTC'
            ) THEN 'events are not counted'
            ELSE ''
        END;
    END;

REVOKE EXECUTE ON FUNCTION stats_events_astray(), stats_kept_days(integer),
    stats_month_is_needed(date, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION stats_events_astray(), stats_kept_days(integer),
    stats_month_is_needed(date, date) TO trunkline_worker;
GRANT CREATE ON SCHEMA public TO trunkline_definer;
ALTER FUNCTION stats_events_astray() OWNER TO trunkline_definer;
ALTER FUNCTION stats_kept_days(integer) OWNER TO trunkline_definer;
ALTER FUNCTION stats_month_is_needed(date, date) OWNER TO trunkline_definer;
REVOKE CREATE ON SCHEMA public FROM trunkline_definer;

-- Drops a month's raw events, or says why not. Nothing younger than the given day goes, and
-- nothing that is not in the numbers: the partition is closed before it is looked at.
CREATE FUNCTION drop_events_month(month date, keep_from date) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
DECLARE
    first_day date := date_trunc('month', month)::date;
    next_first_day date := (date_trunc('month', month) + interval '1 month')::date;
    child text := 'events' || to_char(first_day, '"_y"YYYY"m"MM');
    why text;
BEGIN
    IF to_regclass(format('public.%I', child)) IS NULL THEN
        RETURN 'there is none';
    END IF;
    -- Events are taken for 35 days: a partition younger than that can still grow.
    IF next_first_day > least(keep_from, (now() AT TIME ZONE 'UTC')::date - 36) THEN
        RETURN 'it is kept';
    END IF;
    -- Holds off writers only: counting takes a while, and others go on reading and writing.
    EXECUTE format('LOCK TABLE public.%I IN SHARE ROW EXCLUSIVE MODE', child);
    why := public.stats_month_is_needed(first_day, next_first_day);
    IF why <> '' THEN
        RETURN why;
    END IF;
    EXECUTE format('DROP TABLE public.%I', child);
    RETURN '';
END
$$;
REVOKE EXECUTE ON FUNCTION drop_events_month(date, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION drop_events_month(date, date) TO trunkline_worker;
