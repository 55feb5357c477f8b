-- Who may log in, and who is logged in. Only the service reads this: no user's request ever needs to.

CREATE TABLE longpoll.accounts (
  user_id       uuid PRIMARY KEY REFERENCES auth.users (id) ON DELETE CASCADE,
  email         text NOT NULL CHECK (char_length(email) BETWEEN 3 AND 254),
  password_hash text NOT NULL,
  created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX accounts_email ON longpoll.accounts (lower(email));

-- A stolen copy of this table opens nothing: only the SHA-256 of each secret is kept.
CREATE TABLE longpoll.sessions (
  secret_hash bytea PRIMARY KEY CHECK (length(secret_hash) = 32),
  user_id     uuid NOT NULL REFERENCES longpoll.accounts (user_id) ON DELETE CASCADE,
  created_at  timestamptz NOT NULL DEFAULT now(),
  expires_at  timestamptz NOT NULL
);
CREATE INDEX sessions_user ON longpoll.sessions (user_id);
CREATE INDEX sessions_expiry ON longpoll.sessions (expires_at);

CREATE TABLE longpoll.tokens (
  id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  secret_hash bytea NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
  user_id     uuid NOT NULL REFERENCES longpoll.accounts (user_id) ON DELETE CASCADE,
  name        text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
  created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tokens_user ON longpoll.tokens (user_id);

ALTER TABLE longpoll.accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE longpoll.sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE longpoll.tokens ENABLE ROW LEVEL SECURITY;
CREATE POLICY "The service knows every account" ON longpoll.accounts FOR ALL TO longpoll_service USING (true) WITH CHECK (true);
CREATE POLICY "The service knows every session" ON longpoll.sessions FOR ALL TO longpoll_service USING (true) WITH CHECK (true);
CREATE POLICY "The service knows every token" ON longpoll.tokens FOR ALL TO longpoll_service USING (true) WITH CHECK (true);
GRANT SELECT, UPDATE (password_hash) ON longpoll.accounts TO longpoll_service;
GRANT SELECT, INSERT, DELETE ON longpoll.sessions, longpoll.tokens TO longpoll_service;

-- Writes to auth.users, where the service itself may not.
CREATE FUNCTION longpoll.register_account(email text, password_hash text) RETURNS uuid
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  new_id uuid := gen_random_uuid();
BEGIN
  INSERT INTO auth.users (id, email) VALUES (new_id, register_account.email);
  INSERT INTO longpoll.accounts (user_id, email, password_hash)
    VALUES (new_id, register_account.email, register_account.password_hash);
  RETURN new_id;
END
$$;
REVOKE EXECUTE ON FUNCTION longpoll.register_account(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION longpoll.register_account(text, text) TO longpoll_service;

-- Every process drops what it remembers of a session or token that is gone. A hash of 256 random bits tells nobody anything.
CREATE FUNCTION longpoll.notify_revoked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('session_revoked', encode(OLD.secret_hash, 'hex'));
  RETURN NULL;
END
$$;
CREATE TRIGGER notify_revoked AFTER DELETE ON longpoll.sessions
  FOR EACH ROW EXECUTE FUNCTION longpoll.notify_revoked();
CREATE TRIGGER notify_revoked AFTER DELETE ON longpoll.tokens
  FOR EACH ROW EXECUTE FUNCTION longpoll.notify_revoked();
