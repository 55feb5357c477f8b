-- What the load tester does in the database, as whoever its --dsn logs in as: the owner of the tables, or a superuser.

-- name: add_users
-- Accounts that nobody can log in to: what stands for the hash of a password is none.
SELECT longpoll.register_account('loadtest-' || %(run)s || '-' || number || '@loadtest.invalid', 'none')::text AS user_id
  FROM generate_series(1, %(count)s) AS number;

-- name: add_tokens
INSERT INTO longpoll.tokens (user_id, secret_hash, name)
SELECT user_id, secret_hash, 'load test' FROM unnest(%(user_ids)s::uuid[], %(hashes)s::bytea[]) AS t (user_id, secret_hash);

-- name: find_owner
SELECT user_id::text FROM longpoll.tokens WHERE secret_hash = %(hash)s;

-- name: add_tasks
-- Begun, and leased for a century: no worker claims them and nobody rescues them.
INSERT INTO public.image_generations (user_id, task_id, prompt, status, lease_expires_at)
SELECT user_id, task_id, 'load test', 'processing', now() + interval '100 years' FROM unnest(%(user_ids)s::uuid[], %(task_ids)s::text[]) AS t (user_id, task_id);

-- name: change_task
UPDATE public.image_generations SET message = %(message)s WHERE task_id = %(task_id)s RETURNING version;

-- name: change_tasks
UPDATE public.image_generations SET message = %(message)s WHERE task_id = ANY (%(task_ids)s);

-- name: complete_tasks
UPDATE public.image_generations SET status = 'completed', result = '/load-test' WHERE task_id = ANY (%(task_ids)s);

-- name: read_versions
SELECT task_id, version FROM public.image_generations WHERE task_id = ANY (%(task_ids)s);

-- name: remove_tasks
DELETE FROM public.image_generations WHERE task_id = ANY (%(task_ids)s);

-- name: remove_users
-- Their accounts and tokens go with them.
DELETE FROM auth.users WHERE id = ANY (%(user_ids)s::uuid[]);
