-- The search for members, kept beside them so that a bulk import does not pay for it; see
-- docs/adr/0013. A change is indexed with it (RPCs) or a few seconds later (imports).

-- Each key of a name has the organisation in it, so one organisation's search never walks through
-- another's entries, however large that is.
CREATE FUNCTION member_term(p_org uuid, p_word text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT ('x' || left(md5(p_org::text || p_word), 16))::bit(64)::bigint $$;

-- The words of a name without case, accents and punctuation.
CREATE FUNCTION member_name_words(p_given text, p_family text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT coalesce(array_agg(DISTINCT left(word, 40)), '{}')
        FROM regexp_split_to_table(
            regexp_replace(
                lower(normalize(
                    replace(translate(p_given || ' ' || p_family, '''’', ''), 'ß', 'ss'), NFKD
                )),
                '[\u0300-\u036f]', '', 'g'
            ),
            '[^[:alnum:]]+'
        ) AS word
        WHERE word <> ''
    $$;

-- A word, and what is left of it without one character (two, of a long word): words that share
-- one of these are a typing error apart.
CREATE FUNCTION member_word_shorter(p_org uuid, p_word text) RETURNS bigint[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        WITH once AS (
            SELECT left(p_word, i - 1) || substr(p_word, i + 1) AS rest
            FROM generate_series(1, length(p_word)) AS i
            WHERE length(p_word) BETWEEN 4 AND 24
        ), twice AS (
            SELECT left(rest, i - 1) || substr(rest, i + 1) AS rest
            FROM once, generate_series(1, length(rest)) AS i
            WHERE length(p_word) BETWEEN 8 AND 14
        )
        SELECT array_agg(DISTINCT member_term(p_org, shorter.rest))
        FROM (
            SELECT p_word AS rest UNION SELECT rest FROM once UNION SELECT rest FROM twice
        ) AS shorter
    $$;

CREATE TABLE member_search (
    org_id uuid NOT NULL,
    member_id uuid NOT NULL,
    terms bigint[] NOT NULL, -- of the words of the name
    email text COLLATE "C" NOT NULL,
    phone_reversed text COLLATE "C" NOT NULL, -- people leave out the beginning, never the end
    PRIMARY KEY (org_id, member_id)
);
CREATE INDEX member_search_terms ON member_search USING gin (terms);
CREATE INDEX member_search_email ON member_search (org_id, email) WHERE email <> '';
CREATE INDEX member_search_phone ON member_search (org_id, phone_reversed)
    WHERE phone_reversed <> '';

-- Every word that occurs in a name: typing errors are looked for here, among thousands instead of
-- among millions.
CREATE TABLE member_words (
    org_id uuid NOT NULL,
    word text COLLATE "C" NOT NULL,
    shorter bigint[] NOT NULL,
    PRIMARY KEY (org_id, word)
);
CREATE INDEX member_words_shorter ON member_words USING gin (shorter);

-- How far the changes of an organisation are indexed.
CREATE TABLE member_search_states (
    org_id uuid PRIMARY KEY REFERENCES orgs (org_id),
    seq bigint NOT NULL
);

-- What a watch can still say of a member that is gone.
CREATE TABLE member_tombstones (
    org_id uuid NOT NULL,
    change_id uuid NOT NULL,
    member_id uuid NOT NULL,
    member_number text NOT NULL,
    purged_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, change_id, member_id)
);

DO $$
DECLARE
    tenant_table text;
BEGIN
    FOREACH tenant_table IN ARRAY ARRAY[
        'member_search', 'member_words', 'member_search_states', 'member_tombstones'
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

GRANT SELECT, INSERT, UPDATE ON member_search TO trunkline_app;
GRANT SELECT, INSERT ON member_words TO trunkline_app;
GRANT SELECT ON member_tombstones TO trunkline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON member_search, member_words, member_search_states,
    member_tombstones TO trunkline_worker;
GRANT DELETE ON member_history, validation_log TO trunkline_worker;

-- Indexes the members that a change wrote. Before record_member_change() where it is part of the
-- change itself: that holds the organisation's sequence.
CREATE FUNCTION index_members(p_org uuid, p_change uuid) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    -- In order, so that two writers that bring the same words wait instead of deadlocking.
    INSERT INTO member_words (org_id, word, shorter)
    SELECT p_org, fresh.word, member_word_shorter(p_org, fresh.word)
    FROM (
        SELECT DISTINCT unnest(member_name_words(m.given_name, m.family_name)) AS word
        FROM members m WHERE m.org_id = p_org AND m.change_id = p_change
    ) AS fresh
    WHERE NOT EXISTS (
        SELECT FROM member_words w WHERE w.org_id = p_org AND w.word = fresh.word
    )
    ORDER BY fresh.word
    ON CONFLICT DO NOTHING;

    INSERT INTO member_search (org_id, member_id, terms, email, phone_reversed)
    SELECT p_org, m.member_id,
           ARRAY(SELECT member_term(p_org, w)
                 FROM unnest(member_name_words(m.given_name, m.family_name)) AS w),
           lower(m.email), reverse(ltrim(m.phone, '+'))
    FROM members m WHERE m.org_id = p_org AND m.change_id = p_change
    ORDER BY m.member_id
    ON CONFLICT (org_id, member_id) DO UPDATE
    SET terms = excluded.terms, email = excluded.email, phone_reversed = excluded.phone_reversed
    WHERE (member_search.terms, member_search.email, member_search.phone_reversed)
        IS DISTINCT FROM (excluded.terms, excluded.email, excluded.phone_reversed);
END
$$;

-- The worker's part: members that a change removed leave the index.
CREATE FUNCTION unindex_members(p_org uuid, p_change uuid) RETURNS void
    LANGUAGE sql
    AS $$
        DELETE FROM member_search s
        USING member_history h
        WHERE h.org_id = p_org AND h.superseded_by = p_change
          AND s.org_id = p_org AND s.member_id = h.member_id
          AND NOT EXISTS (
              SELECT FROM members m WHERE m.org_id = p_org AND m.member_id = h.member_id
          )
    $$;

-- The look-ups below run as trunkline_definer and take the tenant as an argument: under a policy
-- that compares, the operators of a search would be filters and not index conditions.
GRANT SELECT ON members, member_search, member_words, member_changes, member_change_seqs,
    member_search_states, validation_guards TO trunkline_definer;
CREATE POLICY lookup ON members FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON member_search FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON member_words FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON member_changes FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON member_change_seqs FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON member_search_states FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON validation_guards FOR SELECT TO trunkline_definer USING (true);

-- A key holds its organisation, so `org_id` is compared behind the look-up, where the planner cannot
-- take it for the better way in; and without a way out it takes the index.

-- The words of a text, and for each what may have been meant. A row without `word` for each word
-- asked, so that one which resembles nothing is known, too.
CREATE FUNCTION member_words_like(p_org uuid, p_text text)
    RETURNS TABLE (asked text, word text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    SET enable_seqscan = off
    AS $$
DECLARE
    wanted text;
    keys bigint[];
BEGIN
    FOREACH wanted IN ARRAY (member_name_words(p_text, ''))[1:6] LOOP
        keys := member_word_shorter(p_org, wanted);
        RETURN QUERY SELECT wanted, NULL::text;
        RETURN QUERY
            SELECT wanted, w.word FROM member_words w
            WHERE w.org_id = p_org AND w.word >= wanted COLLATE "C"
              AND w.word < (wanted || U&'\+10FFFF') COLLATE "C"
            ORDER BY w.word LIMIT 40;
        RETURN QUERY
            SELECT wanted, near.word
            FROM (
                SELECT w.org_id, w.word FROM member_words w
                WHERE w.shorter && keys LIMIT 60
            ) AS near
            WHERE near.org_id = p_org;
    END LOOP;
END
$$;

-- Members by the words of their names: p_terms[i] may stand for the asked word p_tokens[i] and
-- then counts p_weights[i]. Every asked word has to be met.
CREATE FUNCTION members_by_words(
    p_org uuid, p_terms bigint[], p_tokens integer[], p_weights float8[], p_limit integer
) RETURNS TABLE (member_id uuid, score float8)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    SET enable_seqscan = off
    AS $$
DECLARE
    conditions text := '';
    token record;
BEGIN
    FOR token IN
        SELECT q.no, array_agg(q.term) AS terms
        FROM unnest(p_terms, p_tokens) AS q (term, no) GROUP BY q.no
    LOOP
        conditions := conditions || format(' AND s.terms && %L::bigint[]', token.terms);
    END LOOP;
    IF conditions = '' THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT s.member_id, (SELECT avg(best.weight) FROM ('
        ' SELECT max(q.weight) AS weight FROM unnest($2, $3, $4) AS q (term, no, weight)'
        ' WHERE q.term = ANY (s.terms) GROUP BY q.no) AS best)'
        ' FROM (SELECT s.org_id, s.member_id, s.terms FROM member_search s'
        '       WHERE true%s LIMIT $5) AS s WHERE s.org_id = $1',
        conditions
    ) USING p_org, p_terms, p_tokens, p_weights, p_limit;
END
$$;

-- Members whose every asked word is met exactly: no scores to work out.
CREATE FUNCTION members_by_exact_words(p_org uuid, p_terms bigint[], p_limit integer)
    RETURNS TABLE (member_id uuid)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    SET enable_seqscan = off
    AS $$
BEGIN
    RETURN QUERY EXECUTE
        'SELECT s.member_id FROM (SELECT s.org_id, s.member_id FROM member_search s'
        '  WHERE s.terms @> $2 LIMIT $3) AS s WHERE s.org_id = $1'
        USING p_org, p_terms, p_limit;
END
$$;

-- Members by what identifies them: whole, from the start (telephone: to the end), or, in the
-- arrays, as it may have been meant.
CREATE FUNCTION members_by_codes(
    p_org uuid, p_number text, p_numbers text[], p_email text, p_emails text[],
    p_phone_reversed text, p_phones_reversed text[], p_limit integer
) RETURNS TABLE (member_id uuid, score float8, field text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
BEGIN
    IF p_number <> '' THEN
        RETURN QUERY
            SELECT m.member_id,
                   CASE WHEN m.member_number = p_number THEN 1.0 ELSE 0.9 END::float8,
                   'MEMBER_NUMBER'
            FROM members m
            WHERE m.org_id = p_org AND m.member_number >= p_number
              AND m.member_number < p_number || U&'\+10FFFF'
            ORDER BY m.member_number LIMIT p_limit;
        RETURN QUERY
            SELECT m.member_id, 0.8::float8, 'MEMBER_NUMBER' FROM members m
            WHERE m.org_id = p_org AND m.member_number = ANY (p_numbers) LIMIT p_limit;
    END IF;
    IF p_email <> '' THEN
        RETURN QUERY
            SELECT s.member_id, CASE WHEN s.email = p_email THEN 1.0 ELSE 0.9 END::float8, 'EMAIL'
            FROM member_search s
            WHERE s.org_id = p_org AND s.email <> '' AND s.email >= p_email COLLATE "C"
              AND s.email < (p_email || U&'\+10FFFF') COLLATE "C"
            ORDER BY s.email LIMIT p_limit;
        RETURN QUERY
            SELECT s.member_id, 0.8::float8, 'EMAIL' FROM member_search s
            WHERE s.org_id = p_org AND s.email <> '' AND s.email = ANY (p_emails) LIMIT p_limit;
    END IF;
    IF p_phone_reversed <> '' THEN
        RETURN QUERY
            SELECT s.member_id, 0.95::float8, 'PHONE' FROM member_search s
            WHERE s.org_id = p_org AND s.phone_reversed <> ''
              AND s.phone_reversed >= p_phone_reversed COLLATE "C"
              AND s.phone_reversed < (p_phone_reversed || U&'\+10FFFF') COLLATE "C"
            ORDER BY s.phone_reversed LIMIT p_limit;
        RETURN QUERY
            SELECT near.member_id, 0.8::float8, 'PHONE'
            FROM unnest(p_phones_reversed) AS meant
            CROSS JOIN LATERAL (
                SELECT s.member_id FROM member_search s
                WHERE s.org_id = p_org AND s.phone_reversed <> ''
                  AND s.phone_reversed >= meant COLLATE "C"
                  AND s.phone_reversed < (meant || U&'\+10FFFF') COLLATE "C"
                ORDER BY s.phone_reversed LIMIT 10
            ) AS near
            LIMIT p_limit;
    END IF;
END
$$;

-- Words that no name has any more, among the p_limit after p_after: they are personal data, too.
CREATE FUNCTION unused_member_words(p_org uuid, p_after text, p_limit integer)
    RETURNS TABLE (word text, is_used boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
        SELECT w.word, EXISTS (
            SELECT FROM member_search s WHERE s.terms @> ARRAY[member_term(p_org, w.word)]
        )
        FROM member_words w
        WHERE w.org_id = p_org AND w.word > p_after COLLATE "C"
        ORDER BY w.word LIMIT p_limit
    $$;

-- Organisations with changes that the search does not know yet.
CREATE FUNCTION orgs_to_index() RETURNS TABLE (org_id uuid, seq bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
        SELECT q.org_id, coalesce(s.seq, 0)
        FROM member_change_seqs q
        LEFT JOIN member_search_states s ON s.org_id = q.org_id
        WHERE q.seq > coalesce(s.seq, 0)
    $$;

-- Organisations with members whose purge time has come.
CREATE FUNCTION orgs_to_purge() RETURNS TABLE (org_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$ SELECT DISTINCT m.org_id FROM members m WHERE m.purge_at <= now() $$;

-- Callers that are stopped, of all organisations: each process has to refuse them.
CREATE FUNCTION stopped_validators() RETURNS TABLE (org_id uuid, actor_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$ SELECT g.org_id, g.actor_id FROM validation_guards g WHERE g.level = 'STOPPED' $$;

-- Every organisation, for the worker's rounds.
CREATE FUNCTION org_ids() RETURNS TABLE (org_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$ SELECT o.org_id FROM orgs o $$;

REVOKE EXECUTE ON FUNCTION
    index_members(uuid, uuid), unindex_members(uuid, uuid), member_words_like(uuid, text),
    members_by_words(uuid, bigint[], integer[], float8[], integer),
    members_by_exact_words(uuid, bigint[], integer),
    members_by_codes(uuid, text, text[], text, text[], text, text[], integer),
    unused_member_words(uuid, text, integer), orgs_to_index(), orgs_to_purge(),
    stopped_validators(), org_ids() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    index_members(uuid, uuid), member_words_like(uuid, text),
    members_by_words(uuid, bigint[], integer[], float8[], integer),
    members_by_exact_words(uuid, bigint[], integer),
    members_by_codes(uuid, text, text[], text, text[], text, text[], integer),
    stopped_validators()
    TO trunkline_app, trunkline_worker;
GRANT EXECUTE ON FUNCTION
    unindex_members(uuid, uuid), unused_member_words(uuid, text, integer), orgs_to_index(),
    orgs_to_purge(), org_ids()
    TO trunkline_worker;

-- The new owner needs CREATE on the schema, for the moment only.
GRANT CREATE ON SCHEMA public TO trunkline_definer;
ALTER FUNCTION member_words_like(uuid, text) OWNER TO trunkline_definer;
ALTER FUNCTION members_by_words(uuid, bigint[], integer[], float8[], integer)
    OWNER TO trunkline_definer;
ALTER FUNCTION members_by_exact_words(uuid, bigint[], integer) OWNER TO trunkline_definer;
ALTER FUNCTION members_by_codes(uuid, text, text[], text, text[], text, text[], integer)
    OWNER TO trunkline_definer;
ALTER FUNCTION unused_member_words(uuid, text, integer) OWNER TO trunkline_definer;
ALTER FUNCTION orgs_to_index() OWNER TO trunkline_definer;
ALTER FUNCTION orgs_to_purge() OWNER TO trunkline_definer;
ALTER FUNCTION stopped_validators() OWNER TO trunkline_definer;
ALTER FUNCTION org_ids() OWNER TO trunkline_definer;
REVOKE CREATE ON SCHEMA public FROM trunkline_definer;
