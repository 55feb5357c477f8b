-- What bringing the schema up to date needs before there is a schema.

-- name: find_ledger
-- Whether we may read it as who we are; no row if there is none. Asks only for what every login may know.
SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS readable
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = 'longpoll' AND c.relname = 'migrations';

-- name: become_service
-- What a plain login is granted: 0004 lets the service read the ledger.
SELECT set_config('role', 'longpoll_service', true);

-- name: read_ledger
SELECT name, checksum FROM longpoll.migrations ORDER BY name;

-- name: begin_migration
-- Processes that start together take turns by a lock, for which any number will do if nobody else uses it. It ends with
-- the transaction, not with the session: behind a transaction pooler a session belongs to nobody.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SELECT set_config(name, '0', true) FROM pg_settings
 WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout');
SELECT pg_advisory_xact_lock(7304129551);
CREATE SCHEMA IF NOT EXISTS longpoll;
CREATE TABLE IF NOT EXISTS longpoll.migrations (
  name       text PRIMARY KEY,
  checksum   text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);
REVOKE ALL ON longpoll.migrations FROM PUBLIC;

-- name: record_migration
-- Refused if another process was quicker: then nothing of this transaction happens.
INSERT INTO longpoll.migrations (name, checksum) VALUES (%(name)s, %(checksum)s);

-- name: make_login
-- The embedded Postgres' own: it may do nothing but take on the roles that it is granted.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = %(login)s) THEN
    EXECUTE format('CREATE ROLE %%I LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE', %(login)s);
  END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
  NULL;
END
$$;

-- name: grant_roles
-- Whoever has them already needs no grant, and we no right to give one. The lock is this database's, roles are the
-- cluster's: up to Postgres 15 two grants at once collide.
DO $$
DECLARE
  role_name text;
  may text := CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END;
BEGIN
  FOREACH role_name IN ARRAY ARRAY['longpoll_app', 'longpoll_service'] LOOP
    IF NOT pg_has_role(%(login)s, role_name, may) THEN
      BEGIN
        EXECUTE format('GRANT %%I TO %%I', role_name, %(login)s);
      EXCEPTION WHEN unique_violation THEN
        EXECUTE format('GRANT %%I TO %%I', role_name, %(login)s);
      END;
    END IF;
  END LOOP;
END
$$;
