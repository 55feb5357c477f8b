-- Every statement the server runs, by name. Each runs in a transaction of its own, as the role its caller has.


-- Tasks, as their owner (longpoll_app): the policies see to it that nobody reaches another user's row ------------------

-- name: create_task
-- A new task; none at all if this user has used the idempotency key before, or has as many waiting as may be (0: any number).
-- The lock has those that are created at the same moment counted, and each given a turn of its own.
SELECT set_config('lock_timeout', '1s', true);
SELECT pg_advisory_xact_lock(7304, hashtext(%(user_id)s));
INSERT INTO public.image_generations
  (user_id, task_id, prompt, type, seed, size, has_reference, priority, idempotency_key, request_digest)
SELECT
  %(user_id)s, %(task_id)s, %(prompt)s, %(type)s, %(seed)s, %(size)s, %(has_reference)s, %(priority)s, %(idempotency_key)s,
  %(request_digest)s
 WHERE %(most_waiting)s = 0
    OR NOT EXISTS (SELECT FROM public.image_generations WHERE user_id = %(user_id)s AND status = 'pending'
                   OFFSET greatest(%(most_waiting)s, 1) - 1)
ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING task_id, user_id::text, type, status::text, version, result, error, progress, stage, message, attempt,
          cancel_requested, created_at, started_at, updated_at, finished_at, turn;

-- name: count_waiting
-- How many tasks of one user wait, counted no farther than to the bound.
SELECT count(*) AS waiting
  FROM (SELECT FROM public.image_generations WHERE user_id = %(user_id)s AND status = 'pending' LIMIT %(most_waiting)s) AS own;

-- name: find_idempotent_task
-- The task that was created under this key, and the digest of the request that did it.
SELECT task_id, request_digest
  FROM public.image_generations
 WHERE user_id = %(user_id)s AND idempotency_key = %(idempotency_key)s;

-- name: cancel_task
-- Pending: canceled at once. Processing: the worker is asked to stop. Ended: nothing changes.
-- Locked first, so that a worker that claims or completes at this moment is either before us or after us. Whoever holds
-- the row for longer than that, such as an operator in the middle of something, has us refused instead of waiting.
SELECT set_config('lock_timeout', '1s', true);
WITH task AS (
  SELECT id, status FROM public.image_generations
   WHERE task_id = %(task_id)s AND user_id = %(user_id)s
     FOR UPDATE
), canceled AS (
  UPDATE public.image_generations AS t
     SET status = CASE task.status WHEN 'pending' THEN 'canceled' ELSE t.status END,
         cancel_requested = true
    FROM task
   WHERE t.id = task.id AND task.status IN ('pending', 'processing')
  RETURNING t.id
)
SELECT task.status::text AS status_before, EXISTS (SELECT FROM canceled) AS changed FROM task;

-- name: delete_task
SELECT set_config('lock_timeout', '1s', true);
DELETE FROM public.image_generations
 WHERE task_id = %(task_id)s AND user_id = %(user_id)s
RETURNING task_id;

-- name: find_task
-- One task with its prompt, for the page that shows it.
SELECT task_id, user_id::text, type, status::text, version, result, error, progress, stage, message, attempt,
       cancel_requested, created_at, started_at, updated_at, finished_at, turn, prompt
  FROM public.image_generations
 WHERE task_id = %(task_id)s AND user_id = %(user_id)s;

-- name: find_order
-- What one task was made from, to make another like it.
SELECT prompt, type, seed, size, has_reference
  FROM public.image_generations
 WHERE task_id = %(task_id)s AND user_id = %(user_id)s;

-- name: list_tasks
-- One page, newest first, that begins behind the cursor (the creation time and id of the last row seen).
SELECT task_id, user_id::text, type, status::text, version, result, error, progress, stage, message, attempt,
       cancel_requested, created_at, started_at, updated_at, finished_at, turn, prompt
  FROM public.image_generations
 WHERE user_id = %(user_id)s
   AND (%(status)s::text IS NULL OR status = %(status)s::public.generation_status)
   AND (%(before_time)s::timestamptz IS NULL OR (created_at, task_id) < (%(before_time)s::timestamptz, %(before_id)s::text))
 ORDER BY created_at DESC, task_id DESC
 LIMIT %(limit)s;


-- Tasks, for the board (longpoll_service): one read for everybody who waits -----------------------------------------

-- name: read_tasks
-- The whole state of many tasks. Knows nothing of the queue: it is read for every wake, and must cost the same whatever waits.
SELECT task_id, user_id::text, type, status::text, version, result, error, progress, stage, message, attempt,
       cancel_requested, created_at, started_at, updated_at, finished_at, turn
  FROM public.image_generations
 WHERE task_id = ANY (%(task_ids)s);

-- name: read_versions
-- Only the versions, for the sweep.
SELECT task_id, version FROM public.image_generations WHERE task_id = ANY (%(task_ids)s);


-- Work (longpoll_service). Every write of a worker names its lease: attempt and owner are the fencing token --------------

-- name: read_queue
-- Those that will be claimed next, in that order, from the index alone and no more than so many: one statement for everybody who
-- waits. How long it takes is judged by the last 50 pictures and the workers that are busy now.
WITH waiting AS (
  SELECT task_id, turn FROM public.image_generations
   WHERE status = 'pending' AND run_after <= now()
   ORDER BY turn, created_at, id
   LIMIT %(most)s
)
SELECT coalesce((SELECT string_agg(task_id, ',') FROM waiting), '') AS task_ids,
       coalesce((SELECT string_agg(turn::text, ',') FROM waiting), '') AS turns,
       (SELECT avg(extract(epoch FROM finished_at - started_at))::double precision
          FROM (SELECT started_at, finished_at FROM public.image_generations
                 WHERE status = 'completed' ORDER BY finished_at DESC LIMIT 50) AS latest) AS mean_seconds,
       (SELECT count(DISTINCT lease_owner)
          FROM (SELECT lease_owner FROM public.image_generations
                 WHERE status = 'processing' AND lease_expires_at > now() LIMIT 1000) AS running) AS workers;

-- name: claim_task
-- The task whose turn it is. SKIP LOCKED lets any number of workers ask at once without queueing behind each other.
-- Of users who have as many running as may be (0: any number), none is taken; two claims at the same moment may take one more.
WITH busy AS MATERIALIZED (
  SELECT user_id FROM public.image_generations
   WHERE %(most_running)s > 0 AND status = 'processing'
   GROUP BY user_id HAVING count(*) >= %(most_running)s
), next AS (
  SELECT id FROM public.image_generations
   WHERE status = 'pending' AND run_after <= now()
     AND (%(most_running)s = 0 OR user_id NOT IN (SELECT user_id FROM busy))
   ORDER BY turn, created_at, id
   LIMIT 1
     FOR UPDATE SKIP LOCKED
)
UPDATE public.image_generations AS t
   SET status = 'processing', attempt = t.attempt + 1, progress = 0, stage = 'starting', message = 'A worker has begun.',
       started_at = clock_timestamp(), lease_owner = %(owner)s,
       lease_expires_at = now() + make_interval(secs => %(lease_seconds)s)
  FROM next
 WHERE t.id = next.id
RETURNING t.task_id, t.prompt, t.type, t.seed, t.size, t.has_reference, t.attempt, t.attempt - t.given_back AS tries;

-- name: rescue_tasks
-- Takes back the tasks of workers that have been silent for longer than their lease: into the queue again,
-- or to an end if there was no attempt left or a cancel was waiting to be seen. One that was begun without a lease, such as by
-- hand, has one from its last visible change on.
WITH lost AS (
  SELECT id FROM public.image_generations
   WHERE status = 'processing'
     AND coalesce(lease_expires_at, updated_at + make_interval(secs => %(lease_seconds)s)) < now()
   LIMIT 1000
     FOR UPDATE SKIP LOCKED
)
UPDATE public.image_generations AS t
   SET status = CASE WHEN t.cancel_requested THEN 'canceled'
                     WHEN t.attempt - t.given_back >= %(max_attempts)s THEN 'failed'
                     ELSE 'pending' END::public.generation_status,
       error = CASE WHEN t.attempt - t.given_back >= %(max_attempts)s AND NOT t.cancel_requested
                    THEN 'The server stopped while it made this picture' END,
       stage = 'waiting', message = NULL, progress = NULL, lease_owner = NULL, lease_expires_at = NULL
  FROM lost
 WHERE t.id = lost.id
RETURNING t.task_id, t.status::text;

-- name: renew_lease
-- Not a visible change: nobody is woken. No row: the lease is lost.
UPDATE public.image_generations
   SET lease_expires_at = now() + make_interval(secs => %(lease_seconds)s)
 WHERE task_id = %(task_id)s AND attempt = %(attempt)s AND lease_owner = %(owner)s AND status = 'processing'
RETURNING cancel_requested;

-- name: report_progress
-- Asynchronous commit: a crash of the database may take back a step of the bar, and the commit doesn't wait for the disk.
SELECT set_config('synchronous_commit', 'off', true);
UPDATE public.image_generations
   SET progress = %(progress)s, stage = %(stage)s, message = %(message)s,
       lease_expires_at = now() + make_interval(secs => %(lease_seconds)s)
 WHERE task_id = %(task_id)s AND attempt = %(attempt)s AND lease_owner = %(owner)s AND status = 'processing'
RETURNING cancel_requested;

-- name: complete_task
-- A cancel that was answered with "it will stop" is kept, even if the picture was ready before the worker saw it.
-- May run twice: whoever has not heard the answer asks again, and what this attempt has ended is told once more.
WITH ended AS (
  UPDATE public.image_generations
     SET status = CASE WHEN cancel_requested THEN 'canceled' ELSE 'completed' END::public.generation_status,
         result = CASE WHEN cancel_requested THEN NULL ELSE %(result)s END,
         progress = 1, stage = 'done', message = NULL, lease_owner = NULL, lease_expires_at = NULL
   WHERE task_id = %(task_id)s AND attempt = %(attempt)s AND lease_owner = %(owner)s AND status = 'processing'
  RETURNING cancel_requested
)
SELECT cancel_requested FROM ended
UNION ALL
SELECT false FROM public.image_generations
 WHERE task_id = %(task_id)s AND attempt = %(attempt)s AND status = 'completed' AND result = %(result)s;

-- name: fail_task
UPDATE public.image_generations
   SET status = 'failed', error = %(error)s, lease_owner = NULL, lease_expires_at = NULL
 WHERE task_id = %(task_id)s AND attempt = %(attempt)s AND lease_owner = %(owner)s AND status = 'processing'
RETURNING false AS cancel_requested;

-- name: stop_task
-- The worker has seen the request to cancel.
UPDATE public.image_generations
   SET status = 'canceled', lease_owner = NULL, lease_expires_at = NULL
 WHERE task_id = %(task_id)s AND attempt = %(attempt)s AND lease_owner = %(owner)s AND status = 'processing'
RETURNING false AS cancel_requested;

-- name: retry_task
-- Back into the queue, not before a while; a cancel that arrived meanwhile ends it instead.
UPDATE public.image_generations
   SET status = CASE WHEN cancel_requested THEN 'canceled' ELSE 'pending' END::public.generation_status,
       stage = 'waiting', message = %(message)s, progress = NULL,
       run_after = now() + make_interval(secs => %(delay_seconds)s), lease_owner = NULL, lease_expires_at = NULL
 WHERE task_id = %(task_id)s AND attempt = %(attempt)s AND lease_owner = %(owner)s AND status = 'processing'
RETURNING false AS cancel_requested;

-- name: release_task
-- A worker that is told to stop, or has nowhere to put the picture, gives its task back. The attempt stays, for it is the
-- fencing token, but isn't counted as a try. A cancel that nobody has seen yet ends the task instead: in the queue it
-- might wait for ever.
UPDATE public.image_generations
   SET status = CASE WHEN cancel_requested THEN 'canceled' ELSE 'pending' END::public.generation_status,
       stage = 'waiting', message = %(message)s, progress = NULL, given_back = given_back + 1,
       run_after = now() + make_interval(secs => %(delay_seconds)s), lease_owner = NULL, lease_expires_at = NULL
 WHERE task_id = %(task_id)s AND attempt = %(attempt)s AND lease_owner = %(owner)s AND status = 'processing'
RETURNING false AS cancel_requested;

-- name: next_due
-- Seconds until a task becomes claimable without anybody's notification: a retry that is due, a lease that runs out. What may be
-- claimed now, and is not (it is locked, or its user has enough running), is overdue. Costs the same whatever waits.
SELECT extract(epoch FROM least(
         (SELECT run_after FROM public.image_generations
           WHERE status = 'pending' AND run_after <= now() ORDER BY turn, created_at, id LIMIT 1),
         (SELECT min(run_after) FROM public.image_generations WHERE status = 'pending' AND run_after > created_at),
         (SELECT min(coalesce(lease_expires_at, updated_at + make_interval(secs => %(lease_seconds)s)))
            FROM public.image_generations WHERE status = 'processing')
       ) - now())::double precision AS seconds;

-- name: count_unfinished
SELECT (SELECT count(*) FROM public.image_generations WHERE status = 'pending') AS pending,
       (SELECT count(*) FROM public.image_generations WHERE status = 'processing') AS processing;


-- Clean-up (longpoll_service) ------------------------------------------------------------------------------------------

-- name: delete_ended
-- What ended long ago, a part at a time; returns the ids of what is gone.
SELECT longpoll.delete_ended(make_interval(secs => %(older_than_seconds)s), %(most)s) AS task_id;

-- name: existing_tasks
SELECT task_id FROM public.image_generations WHERE task_id = ANY (%(task_ids)s);

-- name: identify
-- Which database this is. A standby may lag: what it doesn't know of may be there all the same.
SELECT id::text, pg_is_in_recovery() AS standby FROM longpoll.identity;

-- name: has_pictures
SELECT EXISTS (SELECT FROM public.image_generations WHERE status = 'completed') AS found;


-- Accounts, sessions and tokens (longpoll_service) -------------------------------------------------------------------

-- name: register_account
SELECT longpoll.register_account(%(email)s, %(password_hash)s)::text AS user_id;

-- name: find_account
SELECT user_id::text, email, password_hash FROM longpoll.accounts WHERE lower(email) = lower(%(email)s);

-- name: renew_password_hash
-- The same password hashed anew, unless it has been changed meanwhile.
UPDATE longpoll.accounts SET password_hash = %(password_hash)s
 WHERE user_id = %(user_id)s AND password_hash = %(before)s
RETURNING user_id::text;

-- name: change_password
UPDATE longpoll.accounts SET password_hash = %(password_hash)s WHERE user_id = %(user_id)s;
DELETE FROM longpoll.sessions WHERE user_id = %(user_id)s AND secret_hash <> %(but)s
RETURNING encode(secret_hash, 'hex') AS secret_hash;

-- name: find_site
-- Stays the same in all processes, after a failover, and for as long as the database lives; no two databases share it.
SELECT left(encode(sha256(convert_to(system_identifier::text || ' ' || oid::text, 'UTF8')), 'hex'), 8) AS id
  FROM pg_control_system(), pg_database
 WHERE datname = current_database();

-- name: find_site_by_name
SELECT left(encode(sha256(convert_to(current_database(), 'UTF8')), 'hex'), 8) AS id;

-- name: create_session
-- Of one user there are so many at most: the ones that have not been used for longest give way.
DELETE FROM longpoll.sessions
 WHERE secret_hash IN (SELECT secret_hash FROM longpoll.sessions WHERE user_id = %(user_id)s
                        ORDER BY last_used_at DESC OFFSET %(most)s - 1);
INSERT INTO longpoll.sessions (secret_hash, user_id, expires_at, agent)
VALUES (%(secret_hash)s, %(user_id)s, %(expires_at)s, %(agent)s)
RETURNING user_id::text;

-- name: find_credentials
-- Sessions and tokens by the hashes of their secrets, in one read for many requests. A worker's token belongs to no user:
-- in the user's place stands the token itself.
SELECT encode(s.secret_hash, 'hex') AS secret_hash, s.user_id::text, a.email,
       extract(epoch FROM s.expires_at)::double precision AS expires_at,
       extract(epoch FROM s.last_used_at)::double precision AS last_used_at, false AS is_token, 'write' AS scope,
       NULL::text[] AS tags, NULL::integer AS concurrency
  FROM longpoll.sessions AS s JOIN longpoll.accounts AS a USING (user_id)
 WHERE s.secret_hash = ANY (%(secret_hashes)s) AND s.expires_at > now()
UNION ALL
SELECT encode(t.secret_hash, 'hex'), t.user_id::text, a.email, extract(epoch FROM t.expires_at)::double precision,
       extract(epoch FROM t.last_used_at)::double precision, true, t.scope, NULL, NULL
  FROM longpoll.tokens AS t JOIN longpoll.accounts AS a USING (user_id)
 WHERE t.secret_hash = ANY (%(secret_hashes)s) AND (t.expires_at IS NULL OR t.expires_at > now())
UNION ALL
SELECT encode(w.secret_hash, 'hex'), w.id::text, w.name, extract(epoch FROM w.expires_at)::double precision,
       extract(epoch FROM w.last_used_at)::double precision, true, 'write', w.tags, w.concurrency
  FROM longpoll.worker_tokens AS w
 WHERE w.secret_hash = ANY (%(secret_hashes)s) AND (w.expires_at IS NULL OR w.expires_at > now());

-- name: note_uses
-- Puts off the end of sessions and takes note of the use of tokens. Whatever somebody else is writing just now is left out.
WITH sessions AS (
  SELECT secret_hash FROM longpoll.sessions
   WHERE secret_hash = ANY (%(secret_hashes)s) AND expires_at > now()
     FOR UPDATE SKIP LOCKED
), tokens AS (
  SELECT secret_hash FROM longpoll.tokens WHERE secret_hash = ANY (%(secret_hashes)s) FOR UPDATE SKIP LOCKED
), worker_tokens AS (
  SELECT secret_hash FROM longpoll.worker_tokens WHERE secret_hash = ANY (%(secret_hashes)s) FOR UPDATE SKIP LOCKED
), used_sessions AS (
  UPDATE longpoll.sessions AS s
     SET last_used_at = now(), expires_at = greatest(s.expires_at, now() + make_interval(secs => %(session_seconds)s))
    FROM sessions WHERE s.secret_hash = sessions.secret_hash
  RETURNING s.secret_hash, s.expires_at
), used_tokens AS (
  UPDATE longpoll.tokens AS t SET last_used_at = now()
    FROM tokens WHERE t.secret_hash = tokens.secret_hash
  RETURNING t.secret_hash, t.expires_at
), used_worker_tokens AS (
  UPDATE longpoll.worker_tokens AS w SET last_used_at = now()
    FROM worker_tokens WHERE w.secret_hash = worker_tokens.secret_hash
  RETURNING w.secret_hash, w.expires_at
)
SELECT encode(secret_hash, 'hex') AS secret_hash, extract(epoch FROM expires_at)::double precision AS expires_at
  FROM (SELECT * FROM used_sessions UNION ALL SELECT * FROM used_tokens UNION ALL SELECT * FROM used_worker_tokens) AS used;

-- name: revoke_session
DELETE FROM longpoll.sessions WHERE secret_hash = %(secret_hash)s RETURNING user_id::text;

-- name: list_sessions
SELECT id::text, agent, created_at, last_used_at, expires_at, encode(secret_hash, 'hex') AS secret_hash
  FROM longpoll.sessions
 WHERE user_id = %(user_id)s AND expires_at > now()
 ORDER BY last_used_at DESC, id
 LIMIT 100;

-- name: end_session
DELETE FROM longpoll.sessions WHERE id::text = %(id)s AND user_id = %(user_id)s
RETURNING encode(secret_hash, 'hex') AS secret_hash;

-- name: end_sessions
DELETE FROM longpoll.sessions WHERE user_id = %(user_id)s AND secret_hash <> %(but)s
RETURNING encode(secret_hash, 'hex') AS secret_hash;

-- name: expire_sessions
DELETE FROM longpoll.tokens
 WHERE secret_hash IN (SELECT secret_hash FROM longpoll.tokens WHERE expires_at < now() FOR UPDATE SKIP LOCKED);
DELETE FROM longpoll.worker_tokens
 WHERE secret_hash IN (SELECT secret_hash FROM longpoll.worker_tokens WHERE expires_at < now() FOR UPDATE SKIP LOCKED);
DELETE FROM longpoll.sessions
 WHERE secret_hash IN (SELECT secret_hash FROM longpoll.sessions WHERE expires_at < now() FOR UPDATE SKIP LOCKED)
RETURNING user_id::text;

-- name: create_token
-- None at all if the user has as many as may be. The lock has those that are made at the same moment counted, too.
SELECT FROM longpoll.accounts WHERE user_id = %(user_id)s FOR UPDATE;
INSERT INTO longpoll.tokens (secret_hash, user_id, name, scope, expires_at)
SELECT %(secret_hash)s, %(user_id)s, %(name)s, %(scope)s, %(expires_at)s::timestamptz
 WHERE (SELECT count(*) FROM longpoll.tokens WHERE user_id = %(user_id)s) < %(most)s
RETURNING id::text, name, scope, created_at, expires_at, last_used_at;

-- name: list_tokens
-- One page, newest first, that begins behind the cursor.
SELECT id::text, name, scope, created_at, expires_at, last_used_at
  FROM longpoll.tokens
 WHERE user_id = %(user_id)s
   AND (%(before_time)s::timestamptz IS NULL
        OR (created_at, id::text) < (%(before_time)s::timestamptz, %(before_id)s::text))
 ORDER BY created_at DESC, id::text DESC
 LIMIT %(limit)s;

-- name: revoke_token
DELETE FROM longpoll.tokens WHERE id::text = %(id)s AND user_id = %(user_id)s
RETURNING encode(secret_hash, 'hex') AS secret_hash;

-- name: create_worker_token
INSERT INTO longpoll.worker_tokens (secret_hash, name, tags, concurrency, expires_at)
VALUES (%(secret_hash)s, %(name)s, %(tags)s, %(concurrency)s, %(expires_at)s)
RETURNING id::text, name, tags, concurrency, created_at, expires_at, last_used_at;

-- name: list_worker_tokens
SELECT id::text, name, tags, concurrency, created_at, expires_at, last_used_at
  FROM longpoll.worker_tokens
 ORDER BY created_at DESC, id DESC
 LIMIT %(most)s;

-- name: revoke_worker_token
DELETE FROM longpoll.worker_tokens WHERE id::text = %(id)s RETURNING name;

-- name: delete_account
SELECT longpoll.delete_account(%(user_id)s) AS task_id;


-- The server about itself --------------------------------------------------------------------------------------------

-- name: notify
SELECT pg_notify(%(channel)s, %(payload)s), extract(epoch FROM clock_timestamp())::double precision AS database_time;

-- name: ping
SELECT 1 AS one;

-- name: describe_role
-- Who we are after taking on our role: the policies bind neither an owner nor a superuser.
SELECT current_user::text AS role_name, r.rolsuper OR r.rolbypassrls AS unbound,
       pg_has_role(current_user, c.relowner, 'USAGE') AS owner
  FROM pg_roles AS r, pg_class AS c
 WHERE r.rolname = current_user AND c.oid = 'public.image_generations'::regclass;

-- name: describe_session
-- What an operator may have set for this login or database, and statements of ours depend on.
SELECT pg_is_in_recovery() AS standby, current_setting('transaction_read_only')::boolean AS read_only,
       current_setting('transaction_isolation') AS isolation, current_setting('row_security')::boolean AS row_security;

-- name: notification_queue
-- Asking also lets Postgres discard what every listener has read; a full queue would make each update fail.
SELECT pg_notification_queue_usage() AS usage;


-- The doctor -----------------------------------------------------------------------------------------------------------

-- name: describe_server
-- Runs as whoever database.dsn logs in as, so it asks only for what every login may read.
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer / 10000 AS major,
       extract(epoch FROM clock_timestamp())::double precision AS clock, pg_notification_queue_usage() AS queue_usage,
       pg_backend_pid() AS process, current_database()::text AS database, session_user::text AS login,
       r.rolsuper OR r.rolbypassrls OR coalesce(pg_has_role(session_user, t.relowner, 'USAGE'), false) AS privileged,
       t.oid IS NOT NULL AS has_schema
  FROM pg_roles AS r
  LEFT JOIN (pg_class AS t JOIN pg_namespace AS n ON n.oid = t.relnamespace AND n.nspname = 'public')
         ON t.relname = 'image_generations'
 WHERE r.rolname = session_user;

-- name: connection_limits
-- Who limits our connections, to how many, and what changes it. A superuser is bound by the server's limit only.
SELECT format('the login %I (CONNECTION LIMIT)', rolname) AS who, rolconnlimit AS most,
       format('make room by ALTER ROLE %I CONNECTION LIMIT …,', rolname) AS remedy
  FROM pg_roles WHERE rolname = session_user AND rolconnlimit >= 0 AND NOT rolsuper
UNION ALL
SELECT format('the database %I (CONNECTION LIMIT)', datname), datconnlimit,
       format('make room by ALTER DATABASE %I CONNECTION LIMIT …,', datname)
  FROM pg_database, pg_roles
 WHERE datname = current_database() AND datconnlimit >= 0 AND rolname = session_user AND NOT rolsuper
UNION ALL
SELECT 'Postgres (max_connections, less what is reserved)',
       current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
         - coalesce(current_setting('reserved_connections', true), '0')::integer,
       'make room in max_connections';

-- name: tables_without_row_security
SELECT format('%I.%I', schemaname, tablename) AS relation
  FROM pg_tables
 WHERE (schemaname = 'longpoll' AND tablename IN ('accounts', 'sessions', 'tokens', 'worker_tokens')
        OR schemaname = 'public' AND tablename = 'image_generations')
   AND NOT rowsecurity
 ORDER BY relation;

-- name: find_or_make_account
-- An account that nobody can log in to.
SELECT coalesce((SELECT user_id FROM longpoll.accounts WHERE lower(email) = %(email)s),
                longpoll.register_account(%(email)s, 'no password'))::text AS user_id,
       %(email)s AS email;

-- name: create_waiting_task
-- Put off in the same transaction that creates it: no worker ever sees a task that it may claim.
INSERT INTO public.image_generations (user_id, task_id, prompt) VALUES (%(user_id)s, %(task_id)s, 'The doctor waits');
SELECT set_config('role', 'longpoll_service', true);
UPDATE public.image_generations SET run_after = now() + interval '1 hour' WHERE task_id = %(task_id)s RETURNING task_id;
