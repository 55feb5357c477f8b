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
