-- Roles, tenant isolation, organisations, users, credentials, audit, remembered requests.

-- Roles belong to the cluster, so another database's migration may be creating them right now.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['trunkline_app', 'trunkline_worker', 'trunkline_definer']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format(
                    'CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS', wanted
                );
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                RAISE DEBUG 'role % was created by another session', wanted;
            END;
        END IF;
        -- A superuser has every role; an ordinary owner must be able to hand functions over.
        IF NOT pg_has_role(current_user, wanted, 'SET') THEN
            BEGIN
                EXECUTE format('GRANT %I TO CURRENT_USER', wanted);
            EXCEPTION WHEN unique_violation THEN
                RAISE DEBUG 'role % was granted by another session', wanted;
            END;
        END IF;
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA public TO trunkline_app, trunkline_worker, trunkline_definer;

-- set_config(.., true) leaves '' behind after its transaction, hence nullif.
CREATE FUNCTION current_org() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT nullif(current_setting('trunkline.org_id', true), '')::uuid $$;

CREATE TABLE orgs (
    org_id uuid PRIMARY KEY,
    slug text NOT NULL CHECK (slug ~ '^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$'),
    display_name text NOT NULL CHECK (length(display_name) BETWEEN 1 AND 200),
    status text NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'SUSPENDED')),
    time_zone text NOT NULL DEFAULT 'UTC' CHECK (length(time_zone) BETWEEN 1 AND 64),
    quotas jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(quotas) = 'object'),
    quota_ceilings jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(quota_ceilings) = 'object'),
    member_rules jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(member_rules) = 'object'),
    retention jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(retention) = 'object'),
    content_rules jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(content_rules) = 'object'),
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- The directory of organisations is the one place where a name is looked up before a tenant is known.
CREATE UNIQUE INDEX orgs_slug ON orgs (slug);

CREATE TABLE users (
    org_id uuid NOT NULL REFERENCES orgs (org_id),
    user_id uuid NOT NULL,
    email text NOT NULL CHECK (length(email) BETWEEN 3 AND 254),
    display_name text NOT NULL CHECK (length(display_name) BETWEEN 1 AND 200),
    role text NOT NULL CHECK (role IN ('AGENT', 'TRAINER', 'REGISTRAR', 'ADMIN', 'SYSTEM')),
    status text NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'SUSPENDED')),
    password_hash text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    last_login_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, user_id),
    UNIQUE (org_id, email)
);

CREATE TABLE api_keys (
    org_id uuid NOT NULL REFERENCES orgs (org_id),
    key_id uuid NOT NULL,
    display_name text NOT NULL CHECK (length(display_name) BETWEEN 1 AND 200),
    role text NOT NULL CHECK (role IN ('AGENT', 'TRAINER', 'REGISTRAR', 'ADMIN', 'SYSTEM')),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    created_by uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, key_id)
);

-- One live secret of a key, two while it is being rotated.
CREATE TABLE api_key_secrets (
    org_id uuid NOT NULL,
    prefix text NOT NULL,
    key_id uuid NOT NULL,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    PRIMARY KEY (org_id, prefix),
    FOREIGN KEY (org_id, key_id) REFERENCES api_keys (org_id, key_id)
);
CREATE INDEX api_key_secrets_key ON api_key_secrets (org_id, key_id);
-- Asked before the tenant is known. Not unique: uniqueness across tenants would not shard.
CREATE INDEX api_key_secrets_prefix ON api_key_secrets (prefix);

-- A session is a family of refresh tokens, each of which is used once.
CREATE TABLE sessions (
    org_id uuid NOT NULL,
    session_id uuid NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    revoked_because text CHECK (
        revoked_because IN ('LOGOUT', 'REUSE', 'PASSWORD_RESET', 'USER_CHANGED')
    ),
    PRIMARY KEY (org_id, session_id),
    FOREIGN KEY (org_id, user_id) REFERENCES users (org_id, user_id)
);
CREATE INDEX sessions_user ON sessions (org_id, user_id) WHERE revoked_at IS NULL;
CREATE INDEX sessions_expiry ON sessions (org_id, expires_at);

CREATE TABLE refresh_tokens (
    org_id uuid NOT NULL,
    token_id uuid NOT NULL,
    session_id uuid NOT NULL,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at timestamptz,
    successor_id uuid,
    PRIMARY KEY (org_id, token_id),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, session_id) ON DELETE CASCADE
);
CREATE INDEX refresh_tokens_session ON refresh_tokens (org_id, session_id);
-- Asked before the tenant is known.
CREATE INDEX refresh_tokens_token ON refresh_tokens (token_id);

-- No personal data in details: subjects are ids. Nobody is granted UPDATE or DELETE.
CREATE TABLE audit_log (
    org_id uuid NOT NULL,
    audit_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor_kind text NOT NULL CHECK (actor_kind IN ('USER', 'KEY', 'SERVICE')),
    actor_id uuid,
    role text CHECK (role IN ('AGENT', 'TRAINER', 'REGISTRAR', 'ADMIN', 'SYSTEM')),
    action text NOT NULL CHECK (length(action) BETWEEN 1 AND 100),
    resource_type text NOT NULL DEFAULT '' CHECK (length(resource_type) <= 40),
    resource_id text NOT NULL DEFAULT '' CHECK (length(resource_id) <= 200),
    outcome text NOT NULL DEFAULT 'OK' CHECK (outcome IN ('OK', 'REFUSED', 'FAILED')),
    reason text NOT NULL DEFAULT '' CHECK (length(reason) <= 100),
    request_id text NOT NULL DEFAULT '' CHECK (length(request_id) <= 200),
    peer text NOT NULL DEFAULT '' CHECK (length(peer) <= 64),
    details jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(details) = 'object'),
    PRIMARY KEY (org_id, audit_id, at)
) PARTITION BY RANGE (at);
CREATE INDEX audit_log_newest ON audit_log (org_id, at DESC, audit_id DESC);
CREATE TABLE audit_log_default PARTITION OF audit_log DEFAULT;

-- What the sealing worker has yet to put into the chain; written by the statement that appends.
CREATE TABLE audit_unsealed (
    org_id uuid NOT NULL,
    audit_id uuid NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (org_id, audit_id)
);

-- An organisation's chain: each sealed event's place in it, and the hash over it and all before.
CREATE TABLE audit_seals (
    org_id uuid NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    audit_id uuid NOT NULL,
    at timestamptz NOT NULL,
    hash bytea NOT NULL CHECK (length(hash) = 32),
    sealed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, sequence),
    UNIQUE (org_id, audit_id)
);

-- The first answer to a request id, so that a repeat gets it again.
CREATE TABLE requests (
    org_id uuid NOT NULL,
    actor_id uuid NOT NULL,
    method text NOT NULL,
    request_id text NOT NULL CHECK (length(request_id) BETWEEN 1 AND 200),
    request_digest bytea NOT NULL,
    response bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, actor_id, method, request_id)
);
CREATE INDEX requests_expiry ON requests (org_id, expires_at);

DO $$
DECLARE
    tenant_table text;
BEGIN
    FOREACH tenant_table IN ARRAY ARRAY[
        'orgs', 'users', 'api_keys', 'api_key_secrets', 'sessions', 'refresh_tokens',
        'audit_log', 'audit_log_default', 'audit_unsealed', 'audit_seals', 'requests'
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

-- Across organisations the worker sees what is to be sealed or swept, and nothing else.
CREATE POLICY queue ON audit_unsealed FOR SELECT TO trunkline_worker USING (true);
CREATE POLICY expired_read ON requests FOR SELECT TO trunkline_worker USING (expires_at <= now());
CREATE POLICY expired_sweep ON requests FOR DELETE TO trunkline_worker USING (expires_at <= now());
CREATE POLICY expired_read ON sessions FOR SELECT TO trunkline_worker USING (expires_at <= now());
CREATE POLICY expired_sweep ON sessions FOR DELETE TO trunkline_worker USING (expires_at <= now());

GRANT SELECT, INSERT, UPDATE ON orgs, users, api_keys, api_key_secrets, sessions, refresh_tokens,
    requests TO trunkline_app, trunkline_worker;
GRANT SELECT, INSERT ON audit_log TO trunkline_app, trunkline_worker;
GRANT SELECT, INSERT ON audit_unsealed TO trunkline_app;
GRANT SELECT, INSERT, DELETE ON audit_unsealed TO trunkline_worker;
GRANT SELECT ON audit_seals TO trunkline_app;
GRANT SELECT, INSERT ON audit_seals TO trunkline_worker;
GRANT DELETE ON requests, sessions TO trunkline_worker;
GRANT DELETE ON api_key_secrets TO trunkline_app, trunkline_worker;

-- Look-ups that come before the tenant is known. The bodies are bound when they are created, so
-- no search_path of the caller reaches them.
GRANT SELECT ON orgs, users, api_keys, api_key_secrets, sessions, refresh_tokens
    TO trunkline_definer;
CREATE POLICY lookup ON orgs FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON users FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON api_keys FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON api_key_secrets FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON sessions FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON refresh_tokens FOR SELECT TO trunkline_definer USING (true);

CREATE FUNCTION auth_org(wanted_slug text) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
        SELECT o.org_id FROM orgs o WHERE o.slug = wanted_slug;
    END;

CREATE FUNCTION auth_login(wanted_slug text, wanted_email text)
    RETURNS TABLE (
        org_id uuid, org_status text, user_id uuid, display_name text, role text,
        user_status text, password_hash text
    )
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
        SELECT o.org_id, o.status, u.user_id, u.display_name, u.role, u.status, u.password_hash
        FROM orgs o JOIN users u ON u.org_id = o.org_id AND u.email = wanted_email
        WHERE o.slug = wanted_slug;
    END;

CREATE FUNCTION auth_api_key(wanted_prefix text)
    RETURNS TABLE (
        org_id uuid, org_status text, key_id uuid, display_name text, role text, digest bytea,
        live boolean, live_for_s double precision, use_is_stale boolean
    )
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
        SELECT k.org_id, o.status, k.key_id, k.display_name, k.role, s.digest,
               k.revoked_at IS NULL
                   AND coalesce(least(s.expires_at, k.expires_at) > clock_timestamp(), true),
               extract(epoch FROM least(s.expires_at, k.expires_at) - clock_timestamp())
                   ::double precision,
               coalesce(k.last_used_at < clock_timestamp() - interval '5 minutes', true)
        FROM api_key_secrets s
        JOIN api_keys k ON k.org_id = s.org_id AND k.key_id = s.key_id
        JOIN orgs o ON o.org_id = k.org_id
        WHERE s.prefix = wanted_prefix;
    END;

CREATE FUNCTION auth_session(wanted_org uuid, wanted_user uuid, wanted_session uuid)
    RETURNS TABLE (
        org_status text, display_name text, role text, user_status text, session_live boolean
    )
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
        SELECT o.status, u.display_name, u.role, u.status,
               s.revoked_at IS NULL AND s.expires_at > clock_timestamp()
        FROM sessions s
        JOIN users u ON u.org_id = s.org_id AND u.user_id = s.user_id
        JOIN orgs o ON o.org_id = s.org_id
        WHERE s.org_id = wanted_org AND s.session_id = wanted_session AND s.user_id = wanted_user;
    END;

CREATE FUNCTION auth_refresh_token(wanted_token uuid) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
        SELECT t.org_id FROM refresh_tokens t WHERE t.token_id = wanted_token;
    END;

REVOKE EXECUTE ON FUNCTION auth_org(text), auth_login(text, text), auth_api_key(text),
    auth_session(uuid, uuid, uuid), auth_refresh_token(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION auth_org(text), auth_login(text, text), auth_api_key(text),
    auth_session(uuid, uuid, uuid), auth_refresh_token(uuid) TO trunkline_app, trunkline_worker;

-- A new owner must be allowed to create in the schema, for as long as it takes to become one.
GRANT CREATE ON SCHEMA public TO trunkline_definer;
ALTER FUNCTION auth_org(text) OWNER TO trunkline_definer;
ALTER FUNCTION auth_login(text, text) OWNER TO trunkline_definer;
ALTER FUNCTION auth_api_key(text) OWNER TO trunkline_definer;
ALTER FUNCTION auth_session(uuid, uuid, uuid) OWNER TO trunkline_definer;
ALTER FUNCTION auth_refresh_token(uuid) OWNER TO trunkline_definer;
REVOKE CREATE ON SCHEMA public FROM trunkline_definer;

-- The month's partition of a table partitioned by time: made when missing, with the parent's
-- policies, taking over what the default partition caught. True when it was made.
CREATE FUNCTION ensure_month_partition(parent regclass, month date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
DECLARE
    first_day date := date_trunc('month', month)::date;
    next_first_day date := (date_trunc('month', month) + interval '1 month')::date;
    parent_name name := (SELECT c.relname FROM pg_class c WHERE c.oid = parent);
    child text := parent_name || to_char(first_day, '"_y"YYYY"m"MM');
    fallback regclass;
    part_column name;
    part_type oid;
    lower_bound text;
    upper_bound text;
    parent_policy record;
BEGIN
    SELECT a.attname, a.atttypid, nullif(p.partdefid, 0)::regclass
    INTO part_column, part_type, fallback
    FROM pg_partitioned_table p
    JOIN pg_class c ON c.oid = p.partrelid AND c.relrowsecurity
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
    JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
    WHERE p.partrelid = parent AND p.partstrat = 'r' AND p.partnatts = 1
      AND a.atttypid IN ('timestamptz'::regtype, 'date'::regtype);
    IF NOT FOUND THEN
        RAISE EXCEPTION '% is not a tenant table partitioned by time', parent;
    END IF;
    IF to_regclass(format('public.%I', child)) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Months are months of UTC, whatever the session's time zone is.
    lower_bound := CASE WHEN part_type = 'date'::regtype THEN first_day::text
                        ELSE first_day::text || ' 00:00:00+00' END;
    upper_bound := CASE WHEN part_type = 'date'::regtype THEN next_first_day::text
                        ELSE next_first_day::text || ' 00:00:00+00' END;
    EXECUTE format('CREATE TABLE public.%I (LIKE %s INCLUDING ALL)', child, parent);
    IF fallback IS NOT NULL THEN
        -- FORCE binds the owner as well, and the rows to move are every organisation's.
        EXECUTE format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', fallback);
        EXECUTE format(
            'WITH moved AS (DELETE FROM %s WHERE %I >= %L AND %I < %L RETURNING *)'
            ' INSERT INTO public.%I SELECT moved.* FROM moved',
            fallback, part_column, lower_bound, part_column, upper_bound, child
        );
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', fallback);
    END IF;
    EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', child);
    EXECUTE format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', child);
    FOR parent_policy IN
        SELECT p.policyname, p.cmd, p.roles, p.qual, p.with_check FROM pg_policies p
        WHERE p.schemaname = 'public' AND p.tablename = parent_name
    LOOP
        EXECUTE format(
            'CREATE POLICY %I ON public.%I FOR %s TO %s',
            parent_policy.policyname, child, parent_policy.cmd,
            (SELECT string_agg(CASE r WHEN 'public' THEN 'public' ELSE quote_ident(r) END, ', ')
             FROM unnest(parent_policy.roles) r)
        ) || coalesce(' USING (' || parent_policy.qual || ')', '')
          || coalesce(' WITH CHECK (' || parent_policy.with_check || ')', '');
    END LOOP;
    EXECUTE format(
        'ALTER TABLE %s ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
        parent, child, lower_bound, upper_bound
    );
    RETURN true;
END
$$;
REVOKE EXECUTE ON FUNCTION ensure_month_partition(regclass, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_month_partition(regclass, date) TO trunkline_worker;
