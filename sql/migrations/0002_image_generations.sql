-- The one table of the product, with what a waiting client must be able to see and a worker must be able to claim.

CREATE TYPE public.generation_status AS ENUM ('pending', 'processing', 'completed', 'failed', 'canceled');

CREATE TABLE public.image_generations (
  id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  user_id          uuid NOT NULL REFERENCES auth.users (id),

  task_id          text NOT NULL CHECK (task_id ~ '^[A-Za-z0-9_-]{1,64}$'),
  status           public.generation_status NOT NULL DEFAULT 'pending',
  result           text,
  error            text,
  prompt           text CHECK (char_length(prompt) BETWEEN 1 AND 4000),

  type             text NOT NULL DEFAULT 'basic' CHECK (type IN ('basic', 'advanced')),
  seed             bigint NOT NULL DEFAULT floor(random() * 2147483648)::bigint CHECK (seed >= 0),
  size             text NOT NULL DEFAULT '768x768' CHECK (size ~ '^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$'),
  has_reference    boolean NOT NULL DEFAULT false,

  version          bigint NOT NULL DEFAULT 1,
  progress         real CHECK (progress BETWEEN 0 AND 1),
  stage            text,
  message          text,
  cancel_requested boolean NOT NULL DEFAULT false,

  attempt          integer NOT NULL DEFAULT 0,
  lease_owner      text,
  lease_expires_at timestamptz,
  run_after        timestamptz NOT NULL DEFAULT now(),

  idempotency_key  text CHECK (char_length(idempotency_key) BETWEEN 1 AND 255),
  request_digest   bytea,

  created_at       timestamptz NOT NULL DEFAULT now(),
  updated_at       timestamptz NOT NULL DEFAULT now(),
  started_at       timestamptz,
  finished_at      timestamptz,

  -- A unique constraint is an index already: it carries the index's name instead of standing beside a second one.
  CONSTRAINT idx_image_generations_task_id UNIQUE (task_id),
  CONSTRAINT check_result_on_completed CHECK (status <> 'completed' OR result IS NOT NULL),
  CONSTRAINT check_error_on_failed CHECK (status <> 'failed' OR error IS NOT NULL),
  CONSTRAINT check_finished_when_terminal CHECK ((status IN ('completed', 'failed', 'canceled')) = (finished_at IS NOT NULL))
) WITH (fillfactor = 80);

-- No index holds what progress or a lease renewal changes, so that those updates stay within their page (HOT).
CREATE INDEX idx_image_generations_user_status ON public.image_generations (user_id, status);
CREATE INDEX idx_image_generations_user_created ON public.image_generations (user_id, created_at DESC, task_id DESC);
CREATE INDEX idx_image_generations_unfinished ON public.image_generations (status, created_at)
  WHERE status IN ('pending', 'processing');
CREATE INDEX idx_image_generations_completed ON public.image_generations (finished_at DESC) WHERE status = 'completed';
CREATE UNIQUE INDEX idx_image_generations_idempotency ON public.image_generations (user_id, idempotency_key)
  WHERE idempotency_key IS NOT NULL;


-- Who may see and change what -------------------------------------------------------------------------------------

ALTER TABLE public.image_generations ENABLE ROW LEVEL SECURITY;

-- (SELECT auth.uid()) is evaluated once for a statement, auth.uid() once for every row.
CREATE POLICY "Users can view their own generations" ON public.image_generations
  FOR SELECT USING ((SELECT auth.uid()) = user_id);
CREATE POLICY "Users can create their own generations" ON public.image_generations
  FOR INSERT WITH CHECK ((SELECT auth.uid()) = user_id);
CREATE POLICY "The server may cancel for a user" ON public.image_generations
  FOR UPDATE TO longpoll_app USING ((SELECT auth.uid()) = user_id)
  WITH CHECK ((SELECT auth.uid()) = user_id AND (status = 'canceled' OR (status = 'processing' AND cancel_requested)));
CREATE POLICY "The server may delete for a user" ON public.image_generations
  FOR DELETE TO longpoll_app USING ((SELECT auth.uid()) = user_id);
CREATE POLICY "The service reads and works for everybody" ON public.image_generations
  FOR ALL TO longpoll_service USING (true) WITH CHECK (true);

GRANT SELECT, DELETE ON public.image_generations TO longpoll_app;
GRANT INSERT (user_id, task_id, prompt, type, seed, size, has_reference, idempotency_key, request_digest)
  ON public.image_generations TO longpoll_app;
GRANT UPDATE (status, cancel_requested) ON public.image_generations TO longpoll_app;
GRANT SELECT ON public.image_generations TO longpoll_service;
GRANT UPDATE (status, result, error, progress, stage, message, attempt, lease_owner, lease_expires_at, run_after, started_at)
  ON public.image_generations TO longpoll_service;

-- Supabase's default privileges give strangers everything on a new table: leave them what the policies are written for.
DO $$
DECLARE
  role_name text;
BEGIN
  FOR role_name IN SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
    EXECUTE format('REVOKE ALL ON public.image_generations FROM %I', role_name);
  END LOOP;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'authenticated') THEN
    GRANT SELECT, INSERT (user_id, task_id, prompt) ON public.image_generations TO authenticated;
  END IF;
  -- The triggers below call functions of it as whoever writes; `service_role` is who the guide's own workers are.
  FOR role_name IN SELECT rolname FROM pg_roles WHERE rolname IN ('authenticated', 'service_role') LOOP
    EXECUTE format('GRANT USAGE ON SCHEMA longpoll TO %I', role_name);
  END LOOP;
END
$$;


-- Versions: what a client names to say what it has seen -------------------------------------------------------------

CREATE FUNCTION longpoll.is_terminal(status public.generation_status) RETURNS boolean
  LANGUAGE sql IMMUTABLE AS $$ SELECT status IN ('completed', 'failed', 'canceled') $$;

-- A plain UPDATE … SET status must do: the times that belong to a status are filled in here.
CREATE FUNCTION longpoll.stamp_times() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.status = 'processing' THEN
    NEW.started_at := coalesce(NEW.started_at, clock_timestamp());
  ELSIF longpoll.is_terminal(NEW.status) THEN
    NEW.finished_at := coalesce(NEW.finished_at, clock_timestamp());
    IF NEW.status = 'failed' THEN
      NEW.error := coalesce(NEW.error, 'Generation failed');
    END IF;
  END IF;
  RETURN NEW;
END
$$;

CREATE FUNCTION longpoll.raise_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- A lease renewal is nothing a client can see.
  IF (NEW.status, NEW.result, NEW.error, NEW.type, NEW.progress, NEW.stage, NEW.message, NEW.attempt,
      NEW.cancel_requested, NEW.started_at, NEW.finished_at)
     IS NOT DISTINCT FROM
     (OLD.status, OLD.result, OLD.error, OLD.type, OLD.progress, OLD.stage, OLD.message, OLD.attempt,
      OLD.cancel_requested, OLD.started_at, OLD.finished_at)
  THEN
    NEW.version := OLD.version;
    NEW.updated_at := OLD.updated_at;
    RETURN NEW;
  END IF;
  IF longpoll.is_terminal(OLD.status) THEN
    RAISE EXCEPTION 'task % is %, and that is final', OLD.task_id, OLD.status
      USING ERRCODE = 'check_violation', CONSTRAINT = 'terminal_is_final';
  END IF;
  -- Whoever may ask a running task to stop must not be able to make a waiting one run by it: nobody would be working.
  IF OLD.status = 'pending' AND NEW.status = 'processing' AND NEW.cancel_requested AND NOT OLD.cancel_requested THEN
    RAISE EXCEPTION 'task % is waiting: it is canceled, not begun and asked to stop', OLD.task_id
      USING ERRCODE = 'check_violation', CONSTRAINT = 'waiting_is_not_begun_by_a_cancel';
  END IF;
  NEW.version := OLD.version + 1;
  NEW.updated_at := clock_timestamp();
  RETURN NEW;
END
$$;

-- BEFORE triggers fire in the order of their names: times first, so that they count as part of the change.
CREATE TRIGGER fill_times BEFORE INSERT OR UPDATE ON public.image_generations
  FOR EACH ROW EXECUTE FUNCTION longpoll.stamp_times();
CREATE TRIGGER handle_updated_at BEFORE UPDATE ON public.image_generations
  FOR EACH ROW EXECUTE FUNCTION longpoll.raise_version();


-- Notifications: hints to read again, never data, for anyone may listen ----------------------------------------------

-- Sends "id:version,id:version,…" in as few payloads as fit: 8,000 bytes would make the writer's statement fail.
CREATE FUNCTION longpoll.notify_items(items text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  item text;
  payload text := '';
BEGIN
  FOREACH item IN ARRAY coalesce(items, '{}') LOOP
    IF length(payload) + length(item) + 1 > 7999 THEN
      PERFORM pg_notify('generation_changed', payload);
      payload := '';
    END IF;
    payload := CASE WHEN payload = '' THEN item ELSE payload || ',' || item END;
  END LOOP;
  IF payload <> '' THEN
    PERFORM pg_notify('generation_changed', payload);
  END IF;
END
$$;

CREATE FUNCTION longpoll.notify_created() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM longpoll.notify_items((SELECT array_agg(task_id || ':' || version) FROM created));
  IF EXISTS (SELECT FROM created WHERE status = 'pending') THEN
    PERFORM pg_notify('generation_created', '');
  END IF;
  RETURN NULL;
END
$$;

CREATE FUNCTION longpoll.notify_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  items text[];
  again boolean;
BEGIN
  SELECT array_agg(after.task_id || ':' || after.version), bool_or(after.status = 'pending' AND before.status <> 'pending')
    INTO items, again
    FROM after JOIN before USING (id)
   WHERE after.version <> before.version;
  PERFORM longpoll.notify_items(items);
  IF again THEN
    PERFORM pg_notify('generation_created', '');
  END IF;
  RETURN NULL;
END
$$;

CREATE FUNCTION longpoll.notify_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM longpoll.notify_items((SELECT array_agg(task_id || ':-') FROM deleted));
  RETURN NULL;
END
$$;

CREATE TRIGGER notify_created AFTER INSERT ON public.image_generations
  REFERENCING NEW TABLE AS created FOR EACH STATEMENT EXECUTE FUNCTION longpoll.notify_created();
CREATE TRIGGER notify_updated AFTER UPDATE ON public.image_generations
  REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION longpoll.notify_updated();
CREATE TRIGGER notify_deleted AFTER DELETE ON public.image_generations
  REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION longpoll.notify_deleted();


-- Clean-up --------------------------------------------------------------------------------------------------------

-- Runs as its owner, who isn't bound by the policies; so the search path is fixed and strangers may not call it.
CREATE FUNCTION public.cleanup_old_generations() RETURNS void
  LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  DELETE FROM public.image_generations
   WHERE created_at < now() - interval '7 days'
     AND status IN ('completed', 'failed', 'canceled')
$$;
REVOKE EXECUTE ON FUNCTION public.cleanup_old_generations() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.cleanup_old_generations() TO longpoll_service;

DO $$
DECLARE
  role_name text;
BEGIN
  FOR role_name IN SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION public.cleanup_old_generations() FROM %I', role_name);
  END LOOP;
END
$$;
