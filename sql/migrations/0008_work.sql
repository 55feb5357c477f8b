-- Workers that have nothing but HTTPS: who they are, and what a task that is on its way to one of them costs.


-- Tokens of workers ----------------------------------------------------------------------------------------------------

-- They belong to no user: an operator makes them. As of the other secrets, only the SHA-256 is kept.
CREATE TABLE longpoll.worker_tokens (
  id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  secret_hash  bytea NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
  name         text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
  tags         text[] NOT NULL CHECK (cardinality(tags) > 0),
  concurrency  integer NOT NULL CHECK (concurrency BETWEEN 1 AND 1000),
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz,
  last_used_at timestamptz
);
ALTER TABLE longpoll.worker_tokens ENABLE ROW LEVEL SECURITY;
CREATE POLICY "The service knows every worker's token" ON longpoll.worker_tokens
  FOR ALL TO longpoll_service USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE, UPDATE (last_used_at) ON longpoll.worker_tokens TO longpoll_service;

-- The same two notifications as for sessions and users' tokens: what a process remembers of one is to be forgotten, or read
-- again.
CREATE TRIGGER notify_revoked AFTER DELETE ON longpoll.worker_tokens
  FOR EACH ROW EXECUTE FUNCTION longpoll.notify_revoked();
CREATE TRIGGER notify_changed AFTER UPDATE ON longpoll.worker_tokens
  FOR EACH ROW WHEN (coalesce(NEW.expires_at, 'infinity') < coalesce(OLD.expires_at, 'infinity')
                     OR (NEW.tags, NEW.concurrency) IS DISTINCT FROM (OLD.tags, OLD.concurrency))
  EXECUTE FUNCTION longpoll.notify_changed();


-- Delivery -------------------------------------------------------------------------------------------------------------

-- A claim over HTTP counts as given back until its worker is heard of: a reply that reaches nobody costs the task no try.
ALTER TABLE public.image_generations ADD COLUMN undelivered boolean NOT NULL DEFAULT false;
GRANT UPDATE (undelivered) ON public.image_generations TO longpoll_service;

-- For claims of one kind only, where most of what waits is of another.
CREATE INDEX idx_image_generations_waiting_by_type ON public.image_generations (type, turn, created_at, id, run_after)
  WHERE status = 'pending';
