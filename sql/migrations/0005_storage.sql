-- What is kept and what goes: a name for this database, users that take what is theirs along, ends that count from the end.


-- The folder of the pictures and this database know each other by an id ------------------------------------------------

-- It travels with every copy and every backup of the database: what it tells apart is other databases.
CREATE TABLE longpoll.identity (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  id       uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO longpoll.identity DEFAULT VALUES;
ALTER TABLE longpoll.identity ENABLE ROW LEVEL SECURITY;
CREATE POLICY "The service knows the database's id" ON longpoll.identity FOR SELECT TO longpoll_service USING (true);
GRANT SELECT ON longpoll.identity TO longpoll_service;


-- Users -----------------------------------------------------------------------------------------------------------------

-- Whoever is deleted takes their tasks along; accounts, sessions and tokens have always gone that way.
ALTER TABLE public.image_generations
  DROP CONSTRAINT image_generations_user_id_fkey,
  ADD CONSTRAINT image_generations_user_id_fkey FOREIGN KEY (user_id) REFERENCES auth.users (id) ON DELETE CASCADE;

-- Up to Postgres 17 the triggers of such a deletion run as whoever deletes the user. On Supabase that is the owner of
-- `auth`, who may not use our schema.
ALTER FUNCTION longpoll.notify_deleted() SECURITY DEFINER SET search_path = '';
REVOKE EXECUTE ON FUNCTION longpoll.notify_deleted() FROM PUBLIC;

-- To skip those that somebody has locked, the clean-up must be able to lock them.
GRANT UPDATE (expires_at) ON longpoll.sessions TO longpoll_service;


-- Attempts ----------------------------------------------------------------------------------------------------------------

-- `attempt` counts how often a worker has begun, and never goes back, for it is the fencing token. Those that a worker
-- gave back, because it was told to stop or had nowhere to put the picture, don't count as tries.
ALTER TABLE public.image_generations ADD COLUMN given_back integer NOT NULL DEFAULT 0;
GRANT UPDATE (given_back) ON public.image_generations TO longpoll_service;


-- Clean-up ------------------------------------------------------------------------------------------------------------------

CREATE INDEX idx_image_generations_finished ON public.image_generations (finished_at) WHERE finished_at IS NOT NULL;

-- A task is old when it ended long ago, however long it waited before; a row that somebody has locked is left for the
-- next time, instead of waiting for it.
CREATE FUNCTION longpoll.delete_ended(older_than interval, most integer) RETURNS SETOF text
  LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  DELETE FROM public.image_generations AS t
   USING (SELECT id FROM public.image_generations
           WHERE finished_at < now() - older_than
           ORDER BY finished_at
           LIMIT most
             FOR UPDATE SKIP LOCKED) AS old
   WHERE t.id = old.id
  RETURNING t.task_id
$$;
REVOKE EXECUTE ON FUNCTION longpoll.delete_ended(interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION longpoll.delete_ended(interval, integer) TO longpoll_service;

-- The guide's, for those who schedule it as the guide does. The server itself keeps what `generation.keep_days` says.
CREATE OR REPLACE FUNCTION public.cleanup_old_generations() RETURNS void
  LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  SELECT count(*) FROM longpoll.delete_ended(interval '7 days', NULL)
$$;
