-- Articles with a draft beside the live text, their revisions, categories, votes, views, searches.

-- Both are trusted: the database's owner may create them.
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE EXTENSION IF NOT EXISTS btree_gin;

-- One row an organisation: counted articles for the quota, and a version that grows with every
-- change of what readers see, by which cached lists are named. Its lock orders changes of the tree.
CREATE TABLE content_states (
    org_id uuid PRIMARY KEY REFERENCES orgs (org_id),
    version bigint NOT NULL DEFAULT 1,
    articles bigint NOT NULL DEFAULT 0 CHECK (articles >= 0)
) WITH (fillfactor = 50);

CREATE TABLE categories (
    org_id uuid NOT NULL REFERENCES orgs (org_id),
    category_id uuid NOT NULL,
    parent_id uuid,
    display_name text NOT NULL CHECK (length(display_name) BETWEEN 1 AND 200),
    sort_order integer NOT NULL DEFAULT 0 CHECK (sort_order >= 0),
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, category_id),
    UNIQUE NULLS NOT DISTINCT (org_id, parent_id, display_name),
    FOREIGN KEY (org_id, parent_id) REFERENCES categories (org_id, category_id),
    CHECK (parent_id <> category_id)
);

CREATE TABLE articles (
    org_id uuid NOT NULL REFERENCES orgs (org_id),
    article_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('ARTICLE', 'FAQ', 'TRAINING')),
    locale text NOT NULL CHECK (length(locale) BETWEEN 2 AND 11),
    state text NOT NULL CHECK (
        state IN ('DRAFT', 'IN_REVIEW', 'APPROVED', 'SCHEDULED', 'PUBLISHED', 'ARCHIVED')
    ),
    draft_revision bigint NOT NULL CHECK (draft_revision > 0),
    published_revision bigint NOT NULL DEFAULT 0,
    reviewed_revision bigint NOT NULL DEFAULT 0,
    publish_at timestamptz,
    live_at timestamptz, -- when the live text last changed
    rejection_reason text NOT NULL DEFAULT '',
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    purge_at timestamptz,
    PRIMARY KEY (org_id, article_id),
    CHECK ((state = 'SCHEDULED') = (publish_at IS NOT NULL)),
    CHECK ((published_revision > 0) = (live_at IS NOT NULL)),
    CHECK (published_revision <= draft_revision AND reviewed_revision <= draft_revision),
    CHECK ((deleted_at IS NULL) = (purge_at IS NULL)),
    CHECK (deleted_at IS NULL OR published_revision = 0)
) WITH (fillfactor = 80);
CREATE INDEX articles_updated ON articles (org_id, updated_at DESC, article_id DESC);
CREATE INDEX articles_live ON articles (org_id, live_at DESC, article_id DESC)
    WHERE live_at IS NOT NULL;
CREATE INDEX articles_purge ON articles (org_id, purge_at) WHERE purge_at IS NOT NULL;

-- A revision's text never changes; nobody is granted an update of it.
CREATE TABLE article_revisions (
    org_id uuid NOT NULL,
    article_id uuid NOT NULL,
    revision bigint NOT NULL CHECK (revision > 0),
    slug text NOT NULL CHECK (length(slug) <= 120),
    title text NOT NULL CHECK (length(title) BETWEEN 1 AND 300),
    summary text NOT NULL CHECK (octet_length(summary) <= 4000),
    body text NOT NULL CHECK (octet_length(body) <= 262144),
    category_id uuid,
    tags text[] NOT NULL CHECK (cardinality(tags) <= 50),
    translation_of_id uuid,
    note text NOT NULL DEFAULT '',
    author_id uuid NOT NULL,
    author_name text NOT NULL,
    rollback_of bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    approver_id uuid,
    approved_at timestamptz,
    published_at timestamptz, -- for the first time
    rejection_reason text NOT NULL DEFAULT '',
    PRIMARY KEY (org_id, article_id, revision),
    FOREIGN KEY (org_id, article_id) REFERENCES articles (org_id, article_id) ON DELETE CASCADE,
    CHECK ((approver_id IS NULL) = (approved_at IS NULL)),
    CHECK (published_at IS NULL OR approved_at IS NOT NULL)
);

-- Every slug an article has had stays its own, so a publication never meets a taken one.
CREATE TABLE article_slugs (
    org_id uuid NOT NULL,
    locale text NOT NULL,
    slug text NOT NULL,
    article_id uuid NOT NULL,
    PRIMARY KEY (org_id, locale, slug),
    FOREIGN KEY (org_id, article_id) REFERENCES articles (org_id, article_id) ON DELETE CASCADE
);
CREATE INDEX article_slugs_article ON article_slugs (org_id, article_id);

-- What lists filter by and searches look in: the draft and the live text of an article, a row each.
-- What is not indexed (votes, state) changes in place, without touching the large indexes.
CREATE TABLE article_texts (
    org_id uuid NOT NULL,
    article_id uuid NOT NULL,
    live boolean NOT NULL,
    kind text NOT NULL,
    locale text NOT NULL,
    config text NOT NULL, -- the text search configuration of the locale
    group_id uuid NOT NULL, -- the original of all translations
    category_id uuid,
    tags text[] NOT NULL,
    title text NOT NULL,
    title_key text COLLATE "C" NOT NULL,
    plain text NOT NULL,
    title_terms tsvector NOT NULL,
    terms tsvector NOT NULL,
    author_id uuid NOT NULL,
    state text NOT NULL,
    deleted boolean NOT NULL DEFAULT false,
    votes_factor real NOT NULL DEFAULT 1,
    fresh_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, article_id, live),
    FOREIGN KEY (org_id, article_id) REFERENCES articles (org_id, article_id) ON DELETE CASCADE,
    FOREIGN KEY (org_id, category_id) REFERENCES categories (org_id, category_id)
) WITH (fillfactor = 85);
-- Without a list of pending entries: a search would walk through it, up to 4 MB each time.
CREATE INDEX article_texts_live_terms ON article_texts USING gin (org_id, terms)
    WITH (fastupdate = off) WHERE live;
CREATE INDEX article_texts_draft_terms ON article_texts USING gin (org_id, terms)
    WITH (fastupdate = off) WHERE NOT live;
CREATE INDEX article_texts_live_titles ON article_texts USING gin (org_id, title_terms)
    WITH (fastupdate = off) WHERE live;
CREATE INDEX article_texts_draft_titles ON article_texts USING gin (org_id, title_terms)
    WITH (fastupdate = off) WHERE NOT live;
CREATE INDEX article_texts_title ON article_texts (org_id, live, title_key, article_id);
CREATE INDEX article_texts_config ON article_texts (org_id, live, config);
CREATE INDEX article_texts_group ON article_texts (org_id, group_id);
CREATE INDEX article_texts_category ON article_texts (org_id, category_id, live)
    WHERE category_id IS NOT NULL;

-- The words of titles and tags: typing errors are looked for here, among thousands of words
-- instead of among all titles.
CREATE TABLE article_words (
    org_id uuid NOT NULL,
    word text COLLATE "C" NOT NULL CHECK (length(word) <= 60),
    PRIMARY KEY (org_id, word)
);
CREATE INDEX article_words_near ON article_words USING gin (org_id, word gin_trgm_ops)
    WITH (fastupdate = off);

CREATE TABLE article_tags (
    org_id uuid NOT NULL,
    tag text COLLATE "C" NOT NULL,
    locale text NOT NULL,
    PRIMARY KEY (org_id, tag, locale)
);

CREATE TABLE article_counts (
    org_id uuid NOT NULL,
    article_id uuid NOT NULL,
    helpful bigint NOT NULL DEFAULT 0 CHECK (helpful >= 0),
    not_helpful bigint NOT NULL DEFAULT 0 CHECK (not_helpful >= 0),
    views bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (org_id, article_id),
    FOREIGN KEY (org_id, article_id) REFERENCES articles (org_id, article_id) ON DELETE CASCADE
) WITH (fillfactor = 50);

CREATE TABLE article_votes (
    org_id uuid NOT NULL,
    article_id uuid NOT NULL,
    actor_id uuid NOT NULL,
    vote text NOT NULL CHECK (vote IN ('HELPFUL', 'NOT_HELPFUL')),
    comment text NOT NULL DEFAULT '' CHECK (octet_length(comment) <= 2000),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, article_id, actor_id),
    FOREIGN KEY (org_id, article_id) REFERENCES articles (org_id, article_id) ON DELETE CASCADE
);

CREATE TABLE article_views (
    org_id uuid NOT NULL,
    day date NOT NULL,
    article_id uuid NOT NULL,
    views bigint NOT NULL,
    PRIMARY KEY (org_id, day, article_id),
    FOREIGN KEY (org_id, article_id) REFERENCES articles (org_id, article_id) ON DELETE CASCADE
) WITH (fillfactor = 80);
CREATE INDEX article_views_article ON article_views (org_id, article_id);

CREATE TABLE search_misses (
    org_id uuid NOT NULL REFERENCES orgs (org_id),
    day date NOT NULL,
    locale text NOT NULL, -- empty: all were searched
    query text NOT NULL CHECK (length(query) BETWEEN 1 AND 500),
    searches bigint NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, day, locale, query)
);

DO $$
DECLARE
    tenant_table text;
BEGIN
    FOREACH tenant_table IN ARRAY ARRAY[
        'content_states', 'categories', 'articles', 'article_revisions', 'article_slugs',
        'article_texts', 'article_words', 'article_tags', 'article_counts', 'article_votes',
        'article_views', 'search_misses'
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

GRANT SELECT, INSERT, UPDATE ON content_states, articles, article_counts, article_views,
    search_misses TO trunkline_app, trunkline_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON article_texts, categories, article_votes
    TO trunkline_app, trunkline_worker;
GRANT SELECT, INSERT ON article_revisions, article_slugs, article_words, article_tags
    TO trunkline_app, trunkline_worker;
GRANT UPDATE (note, approver_id, approved_at, published_at, rejection_reason) ON article_revisions
    TO trunkline_app, trunkline_worker;
GRANT DELETE ON articles, article_words, article_tags, article_views, search_misses
    TO trunkline_worker;

-- Across organisations the worker sees what is due, and nothing else.
CREATE POLICY purge_due ON articles FOR SELECT TO trunkline_worker USING (purge_at <= now());

-- The configuration by language; what PostgreSQL has none for is split into words and no more.
CREATE FUNCTION content_config(p_locale text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT CASE split_part(p_locale, '-', 1)
            WHEN 'ar' THEN 'arabic' WHEN 'ca' THEN 'catalan' WHEN 'da' THEN 'danish'
            WHEN 'de' THEN 'german' WHEN 'el' THEN 'greek' WHEN 'en' THEN 'english'
            WHEN 'es' THEN 'spanish' WHEN 'eu' THEN 'basque' WHEN 'fi' THEN 'finnish'
            WHEN 'fr' THEN 'french' WHEN 'ga' THEN 'irish' WHEN 'hi' THEN 'hindi'
            WHEN 'hu' THEN 'hungarian' WHEN 'hy' THEN 'armenian' WHEN 'id' THEN 'indonesian'
            WHEN 'it' THEN 'italian' WHEN 'lt' THEN 'lithuanian' WHEN 'nb' THEN 'norwegian'
            WHEN 'ne' THEN 'nepali' WHEN 'nl' THEN 'dutch' WHEN 'nn' THEN 'norwegian'
            WHEN 'no' THEN 'norwegian' WHEN 'pt' THEN 'portuguese' WHEN 'ro' THEN 'romanian'
            WHEN 'ru' THEN 'russian' WHEN 'sr' THEN 'serbian' WHEN 'sv' THEN 'swedish'
            WHEN 'ta' THEN 'tamil' WHEN 'tr' THEN 'turkish' WHEN 'yi' THEN 'yiddish'
            ELSE 'simple'
        END
    $$;

-- The words of a title or tag as typing errors are looked for: small letters and digits.
CREATE FUNCTION content_words(p_text text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT coalesce(array_agg(DISTINCT word), '{}')
        FROM regexp_split_to_table(lower(p_text), '[^[:alnum:]]+') AS word
        WHERE length(word) BETWEEN 3 AND 60
    $$;

-- (Re)writes the row that lists and searches use, of one of the article's two texts.
CREATE FUNCTION index_article_text(
    p_org uuid, p_article uuid, p_live boolean, p_revision bigint, p_group uuid, p_title text,
    p_plain text
) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO article_texts (
        org_id, article_id, live, kind, locale, config, group_id, category_id, tags, title,
        title_key, plain, title_terms, terms, author_id, state, deleted, votes_factor, fresh_at
    )
    SELECT p_org, p_article, p_live, a.kind, a.locale, content_config(a.locale), p_group,
           r.category_id, r.tags, p_title, lower(p_title), p_plain, t.title_terms,
           t.title_terms
               || setweight(to_tsvector(content_config(a.locale)::regconfig, p_plain), 'D'),
           r.author_id, a.state, a.deleted_at IS NOT NULL,
           votes_factor(c.helpful, c.not_helpful),
           CASE WHEN p_live THEN a.live_at ELSE r.created_at END
    FROM articles a
    JOIN article_revisions r
        ON r.org_id = a.org_id AND r.article_id = a.article_id AND r.revision = p_revision
    JOIN article_counts c ON c.org_id = a.org_id AND c.article_id = a.article_id
    CROSS JOIN LATERAL (
        SELECT setweight(to_tsvector(content_config(a.locale)::regconfig, p_title), 'A')
            || setweight(
                to_tsvector(content_config(a.locale)::regconfig, array_to_string(r.tags, ' ')), 'B'
            ) AS title_terms
    ) AS t
    WHERE a.org_id = p_org AND a.article_id = p_article
    ON CONFLICT (org_id, article_id, live) DO UPDATE SET
        group_id = excluded.group_id, category_id = excluded.category_id, tags = excluded.tags,
        title = excluded.title, title_key = excluded.title_key, plain = excluded.plain,
        title_terms = excluded.title_terms, terms = excluded.terms,
        author_id = excluded.author_id, state = excluded.state, deleted = excluded.deleted,
        votes_factor = excluded.votes_factor, fresh_at = excluded.fresh_at;

    -- In order, so that two writers that bring the same words wait instead of deadlocking.
    INSERT INTO article_words (org_id, word)
    SELECT p_org, fresh.word
    FROM article_texts x, unnest(content_words(x.title || ' ' || array_to_string(x.tags, ' ')))
        AS fresh (word)
    WHERE x.org_id = p_org AND x.article_id = p_article AND x.live = p_live
      AND NOT EXISTS (
          SELECT FROM article_words w WHERE w.org_id = p_org AND w.word = fresh.word
      )
    ORDER BY fresh.word
    ON CONFLICT DO NOTHING;

    IF p_live THEN
        INSERT INTO article_tags (org_id, tag, locale)
        SELECT p_org, fresh.tag, x.locale
        FROM article_texts x, unnest(x.tags) AS fresh (tag)
        WHERE x.org_id = p_org AND x.article_id = p_article AND x.live
          AND NOT EXISTS (
              SELECT FROM article_tags g
              WHERE g.org_id = p_org AND g.tag = fresh.tag AND g.locale = x.locale
          )
        ORDER BY fresh.tag
        ON CONFLICT DO NOTHING;
    END IF;
END
$$;

-- From 0.7 to 1.3; a few votes move it little.
CREATE FUNCTION votes_factor(p_helpful bigint, p_not_helpful bigint) RETURNS real
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (0.7 + 0.6 * (p_helpful + 3.0) / (p_helpful + p_not_helpful + 6.0))::real;

-- The look-ups below run as trunkline_definer and take the tenant as an argument: under a policy
-- that compares, @@ and % would be filters and not index conditions. They serve the organisation
-- of the transaction only.
GRANT SELECT ON article_texts, article_words, article_tags TO trunkline_definer;
CREATE POLICY lookup ON article_texts FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON article_words FOR SELECT TO trunkline_definer USING (true);
CREATE POLICY lookup ON article_tags FOR SELECT TO trunkline_definer USING (true);

-- The configurations that an organisation's texts are in: one index probe for each.
CREATE FUNCTION article_configs(p_org uuid, p_live boolean) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
        WITH RECURSIVE found AS (
            (SELECT x.config FROM article_texts x
             WHERE x.org_id = p_org AND x.live = p_live AND p_org = current_org()
             ORDER BY x.config LIMIT 1)
            UNION ALL
            SELECT (
                SELECT x.config FROM article_texts x
                WHERE x.org_id = p_org AND x.live = p_live AND x.config > found.config
                ORDER BY x.config LIMIT 1
            )
            FROM found WHERE found.config IS NOT NULL
        )
        SELECT config FROM found WHERE config IS NOT NULL
    $$;

-- search_live_articles and search_draft_articles: the texts that match, best first; tier 0 is
-- ranked by all of its text, tier 1 behind it by title, age and votes. What matches in its title
-- is always looked at; of what matches in its body alone, p_candidates at most.
DO $$
DECLARE
    scope record;
BEGIN
    FOR scope IN SELECT s.name, s.condition FROM (
        VALUES ('live', 'x.live'), ('draft', 'NOT x.live')
    ) AS s (name, condition)
    LOOP
        EXECUTE format(
$function$
CREATE FUNCTION search_%1$s_articles(
    p_org uuid, p_query text, p_configs text[], p_now timestamptz, p_kinds text[],
    p_states text[], p_categories uuid[], p_tags text[], p_locales text[], p_author uuid,
    p_deleted boolean, p_candidates integer, p_refined integer
) RETURNS TABLE (
    article_id uuid, tier integer, score float8, kind text, category_id uuid, tags text[],
    locale text, total integer, capped boolean
)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    SET enable_seqscan = off
    AS $body$
BEGIN
    IF p_org IS DISTINCT FROM current_org() THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH asked AS (
        SELECT c.config, t.query, t.query::text LIKE '%%!%%' AS negated,
               -- A phrase is looked up by its words. The index holds no positions: to find one of
               -- common words it would have to read every text that has them all.
               CASE WHEN t.query::text LIKE '%%!%%' THEN t.query
                    ELSE regexp_replace(t.query::text, '<(-|[0-9]+)>', '&', 'g')::tsquery
               END AS loose
        FROM unnest(p_configs) AS c (config)
        CROSS JOIN LATERAL (
            SELECT websearch_to_tsquery(c.config::regconfig, p_query) AS query
        ) AS t
    ), by_title AS MATERIALIZED (
        SELECT x.article_id, x.kind, x.category_id, x.tags, x.locale, x.title_terms, x.votes_factor,
               x.fresh_at, q.query
        FROM asked q JOIN article_texts x
            ON x.org_id = p_org AND %2$s AND x.title_terms @@ q.query
        -- With a text appended, or the index of configurations would look good to the planner.
        WHERE x.config || '' = q.config
          -- What is not to be there must not be in the text either.
          AND (NOT q.negated OR x.terms @@ q.query)
          AND (x.deleted = false OR p_deleted)
          AND (p_kinds IS NULL OR x.kind = ANY (p_kinds))
          AND (p_states IS NULL OR x.state = ANY (p_states))
          AND (p_categories IS NULL OR x.category_id = ANY (p_categories))
          AND (p_tags IS NULL OR x.tags @> p_tags)
          AND (p_locales IS NULL OR x.locale = ANY (p_locales))
          AND (p_author IS NULL OR x.author_id = p_author)
    ), by_words AS MATERIALIZED (
        SELECT x.article_id, x.kind, x.category_id, x.tags, x.locale, x.title_terms, x.votes_factor,
               x.fresh_at, q.query, q.loose <> q.query AS is_phrase
        FROM asked q JOIN article_texts x
            ON x.org_id = p_org AND %2$s AND x.terms @@ q.loose
        WHERE x.config || '' = q.config
          AND (x.deleted = false OR p_deleted)
          AND (p_kinds IS NULL OR x.kind = ANY (p_kinds))
          AND (p_states IS NULL OR x.state = ANY (p_states))
          AND (p_categories IS NULL OR x.category_id = ANY (p_categories))
          AND (p_tags IS NULL OR x.tags @> p_tags)
          AND (p_locales IS NULL OR x.locale = ANY (p_locales))
          AND (p_author IS NULL OR x.author_id = p_author)
    ), by_text AS (
        SELECT w.article_id, w.kind, w.category_id, w.tags, w.locale, w.title_terms,
               w.votes_factor, w.fresh_at, w.query
        FROM (SELECT b.* FROM by_words b LIMIT p_candidates) AS w
        WHERE NOT w.is_phrase OR EXISTS (
            SELECT FROM article_texts x
            WHERE x.org_id = p_org AND x.article_id = w.article_id AND %2$s
              AND x.terms @@ w.query
        )
    ), titles_suffice AS MATERIALIZED (
        SELECT count(*) >= p_candidates AS yes
        FROM (SELECT t.article_id FROM by_title t LIMIT p_candidates) AS enough
    ), candidates AS (
        SELECT DISTINCT ON (c.article_id) c.*
        FROM (
            (SELECT t.* FROM by_title t LIMIT p_candidates)
            UNION ALL
            -- Of a word so common that titles alone are plenty, the texts are not asked.
            SELECT t.* FROM by_text t WHERE NOT (SELECT s.yes FROM titles_suffice s)
        ) AS c
        ORDER BY c.article_id
    ), placed AS (
        SELECT o.article_id, o.kind, o.category_id, o.tags, o.locale, o.query, o.factor,
               o.title_rank * o.factor AS score,
               row_number() OVER (ORDER BY o.title_rank * o.factor DESC, o.article_id) AS place,
               count(*) OVER ()::integer AS total
        FROM (
            SELECT c.article_id, c.kind, c.category_id, c.tags, c.locale, c.query,
                   (c.votes_factor * (0.8 + 0.4 * exp(
                       -greatest(0, extract(epoch FROM p_now - c.fresh_at)) / 15552000.0
                   )))::float8 AS factor,
                   (0.05 + ts_rank(c.title_terms, c.query))::float8 AS title_rank
            FROM candidates c
        ) AS o
    )
    SELECT p.article_id, (p.place > p_refined)::integer,
           CASE WHEN p.place > p_refined THEN p.score ELSE p.factor * (
               SELECT ts_rank(x.terms, p.query, 1) FROM article_texts x
               WHERE x.org_id = p_org AND x.article_id = p.article_id AND %2$s
           )::float8 END,
           p.kind, p.category_id, p.tags, p.locale, p.total, p.total >= p_candidates
    FROM placed p;
END
$body$
$function$, scope.name, scope.condition);
        EXECUTE format(
$function$
CREATE FUNCTION suggest_%1$s_articles(
    p_org uuid, p_prefix text, p_locale text, p_limit integer
) RETURNS TABLE (title text, article_id uuid, place integer)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    SET enable_seqscan = off
    AS $body$
BEGIN
    IF p_org IS DISTINCT FROM current_org() THEN
        RETURN;
    END IF;
    RETURN QUERY
        SELECT x.title, x.article_id, 0 FROM article_texts x
        WHERE x.org_id = p_org AND %2$s AND x.title_key >= lower(p_prefix) COLLATE "C"
          AND x.title_key < (lower(p_prefix) || U&'\+10FFFF') COLLATE "C"
          AND x.deleted = false AND (p_locale = '' OR x.locale = p_locale)
        ORDER BY x.title_key, x.article_id LIMIT p_limit;
    RETURN QUERY
        SELECT t.title, t.article_id, 1
        FROM unnest(ARRAY(SELECT c FROM article_configs(p_org, %3$L) AS c)) AS q (config)
        CROSS JOIN LATERAL (
            SELECT x.title, x.article_id FROM article_texts x
            WHERE x.org_id = p_org AND %2$s AND x.config = q.config
              AND x.title_terms @@ content_prefix_query(q.config, p_prefix)
              AND x.deleted = false AND (p_locale = '' OR x.locale = p_locale)
            LIMIT p_limit
        ) AS t
        LIMIT p_limit;
END
$body$
$function$, scope.name, scope.condition, scope.name = 'live');
    END LOOP;
END
$$;

-- The words of a text, the last one as the beginning of a word.
CREATE FUNCTION content_prefix_query(p_config text, p_text text) RETURNS tsquery
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, public
    AS $$
DECLARE
    words text[] := regexp_split_to_array(
        trim(regexp_replace(lower(p_text), '[^[:alnum:]]+', ' ', 'g')), ' '
    );
    last_word text := words[cardinality(words)];
BEGIN
    IF coalesce(last_word, '') = '' THEN
        RETURN ''::tsquery;
    END IF;
    RETURN plainto_tsquery(
            p_config::regconfig, array_to_string(words[1:cardinality(words) - 1], ' ')
        ) && to_tsquery('simple', last_word || ':*A');
END
$$;

-- Words of titles and tags that resemble one that was asked.
CREATE FUNCTION near_article_words(p_org uuid, p_words text[], p_limit integer)
    RETURNS TABLE (asked text, word text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    SET enable_seqscan = off
    AS $$
DECLARE
    wanted text;
BEGIN
    IF p_org IS DISTINCT FROM current_org() THEN
        RETURN;
    END IF;
    FOREACH wanted IN ARRAY p_words LOOP
        RETURN QUERY
            SELECT wanted, w.word FROM article_words w
            WHERE w.org_id = p_org AND w.word % wanted
            ORDER BY similarity(w.word, wanted) DESC, w.word LIMIT p_limit;
    END LOOP;
END
$$;

DO $$
DECLARE
    look_up regprocedure;
BEGIN
    GRANT CREATE ON SCHEMA public TO trunkline_definer;
    FOR look_up IN
        SELECT p.oid::regprocedure FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname IN (
            'article_configs', 'search_live_articles', 'search_draft_articles',
            'suggest_live_articles', 'suggest_draft_articles', 'near_article_words'
        )
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', look_up);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO trunkline_app, trunkline_worker', look_up);
        EXECUTE format('ALTER FUNCTION %s OWNER TO trunkline_definer', look_up);
    END LOOP;
    REVOKE CREATE ON SCHEMA public FROM trunkline_definer;
END
$$;
REVOKE EXECUTE ON FUNCTION
    index_article_text(uuid, uuid, boolean, bigint, uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    index_article_text(uuid, uuid, boolean, bigint, uuid, text, text)
    TO trunkline_app, trunkline_worker;
