-- What people need to see and end their sessions and tokens, and to leave; what a process needs to hear of it.

ALTER TABLE longpoll.sessions
  ADD COLUMN id           uuid NOT NULL DEFAULT gen_random_uuid(),
  ADD COLUMN last_used_at timestamptz NOT NULL DEFAULT now(),
  ADD COLUMN agent        text NOT NULL DEFAULT '' CHECK (char_length(agent) <= 200),
  ADD CONSTRAINT sessions_id UNIQUE (id);

-- A token from before this may do everything and never ends, as it was promised.
ALTER TABLE longpoll.tokens
  ADD COLUMN scope        text NOT NULL DEFAULT 'write' CHECK (scope IN ('read', 'write')),
  ADD COLUMN expires_at   timestamptz,
  ADD COLUMN last_used_at timestamptz;
CREATE INDEX tokens_expiry ON longpoll.tokens (expires_at) WHERE expires_at IS NOT NULL;

-- Written rarely: at most once an hour for a token, once a day for a session.
GRANT UPDATE (last_used_at, expires_at) ON longpoll.sessions TO longpoll_service;
GRANT UPDATE (last_used_at) ON longpoll.tokens TO longpoll_service;

-- A session or token whose end was moved forward: over already, it is as good as deleted; otherwise what processes remember
-- of it is to be read again. An end that is put off, as happens while it is used, needs nobody's attention.
CREATE FUNCTION longpoll.notify_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify(CASE WHEN NEW.expires_at <= clock_timestamp() THEN 'session_revoked' ELSE 'session_changed' END,
                    encode(NEW.secret_hash, 'hex'));
  RETURN NULL;
END
$$;
CREATE TRIGGER notify_changed AFTER UPDATE ON longpoll.sessions
  FOR EACH ROW WHEN (NEW.expires_at < OLD.expires_at) EXECUTE FUNCTION longpoll.notify_changed();
CREATE TRIGGER notify_changed AFTER UPDATE ON longpoll.tokens
  FOR EACH ROW WHEN (coalesce(NEW.expires_at, 'infinity') < coalesce(OLD.expires_at, 'infinity') OR NEW.scope <> OLD.scope)
  EXECUTE FUNCTION longpoll.notify_changed();

-- Deletes all that is a person's own and returns the ids of the tasks, whose pictures are files. Says what it deletes by
-- itself: it needs no cascade from auth.users, and bears one.
CREATE FUNCTION longpoll.delete_account(account uuid) RETURNS SETOF text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  DELETE FROM longpoll.accounts WHERE user_id = account;  -- sessions and tokens go with it
  IF NOT FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY DELETE FROM public.image_generations WHERE user_id = account RETURNING task_id;
  BEGIN
    DELETE FROM auth.users WHERE id = account;
  EXCEPTION WHEN insufficient_privilege THEN
    NULL;  -- On Supabase users are somebody else's: what remains there is an address that can't log in here.
  END;
END
$$;
REVOKE EXECUTE ON FUNCTION longpoll.delete_account(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION longpoll.delete_account(uuid) TO longpoll_service;
