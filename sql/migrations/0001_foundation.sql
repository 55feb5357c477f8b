-- What stands below the table: users as Supabase has them, the roles the server acts as, a schema of its own.

-- On plain Postgres nobody has made Supabase's schema yet; on Supabase it is found and left alone.
DO $$
BEGIN
  IF to_regnamespace('auth') IS NULL THEN
    CREATE SCHEMA auth;
    CREATE TABLE auth.users (
      id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
      email      text,
      created_at timestamptz NOT NULL DEFAULT now()
    );
    -- Without nullif, a pooled connection on which the setting was once set reads '' and the cast fails.
    CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $uid$
      SELECT coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
      )::uuid
    $uid$;
  END IF;
END
$$;

-- Roles belong to the whole cluster: another database of it may have made them, even at this moment.
DO $$
DECLARE
  role_name text;
BEGIN
  FOREACH role_name IN ARRAY ARRAY['longpoll_app', 'longpoll_service'] LOOP
    -- Looked for first: where somebody else has made them, we needn't have the right to make roles.
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE', role_name);
      EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
      END;
    END IF;
    -- Since Postgres 16 whoever makes a role may grant it, but not become it. A superuser may become any.
    IF NOT pg_has_role(current_user, role_name,
                       CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END)
    THEN
      BEGIN
        EXECUTE format('GRANT %I TO %I', role_name, current_user);
      EXCEPTION WHEN unique_violation THEN
        NULL;
      END;
    END IF;
  END LOOP;
END
$$;

CREATE SCHEMA IF NOT EXISTS longpoll;
GRANT USAGE ON SCHEMA longpoll TO longpoll_app, longpoll_service;
GRANT USAGE ON SCHEMA public TO longpoll_app, longpoll_service;
