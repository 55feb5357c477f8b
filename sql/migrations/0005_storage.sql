-- What is kept and what goes.


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
