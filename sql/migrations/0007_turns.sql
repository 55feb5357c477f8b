-- Claims go round the users who wait: each task that waits has a turn, and is claimed in the order of turns.


-- Turns ---------------------------------------------------------------------------------------------------------------

-- Weighted fair queueing by virtual finish times (self-clocked: Golestani 1994). A user's tasks of one priority form a line.
-- A task's turn is its cost behind the later of two: the user's last task in that line, and the clock. The clock is the highest
-- turn that was ever claimed. So a user with a thousand tasks gets one in each round, and somebody who comes new stands
-- behind what those who wait already have in this round, wherever the thousand end. A cost of 100 is one round; a task of low
-- priority counts as ten, one of high priority as a tenth. Whatever comes later gets a turn behind the clock, and each claim
-- moves the clock on: nothing waits for ever, however much comes.
ALTER TABLE public.image_generations
  ADD COLUMN priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -1 AND 1),
  ADD COLUMN turn     bigint NOT NULL DEFAULT 0;
GRANT INSERT (priority) ON public.image_generations TO longpoll_app;

-- A sequence and not a row: claims that commit at the same moment must not wait for each other. It may fall back by the difference
-- of two claims that are made at the same moment, until the next claim.
CREATE SEQUENCE longpoll.turns MINVALUE 0 START 0;

-- What was begun before keeps its place at the front, should it come back; what waits stands as if it had come in turn.
UPDATE public.image_generations SET turn = 1 WHERE status = 'processing';
UPDATE public.image_generations AS t
   SET turn = 100 * waiting.number
  FROM (SELECT id, row_number() OVER (PARTITION BY user_id ORDER BY created_at, id) AS number
          FROM public.image_generations WHERE status = 'pending') AS waiting
 WHERE t.id = waiting.id;

-- Claims and places are read in this order. `run_after` is a key, so that what must not run yet is skipped within the index.
CREATE INDEX idx_image_generations_waiting ON public.image_generations (turn, created_at, id, run_after) INCLUDE (task_id)
  WHERE status = 'pending';
CREATE INDEX idx_image_generations_lines ON public.image_generations (user_id, priority, turn) WHERE status = 'pending';
-- Only what was put off: a plain INSERT sets both to the same time.
CREATE INDEX idx_image_generations_delayed ON public.image_generations (run_after)
  WHERE status = 'pending' AND run_after > created_at;
CREATE INDEX idx_image_generations_running ON public.image_generations (user_id) WHERE status = 'processing';
DROP INDEX public.idx_image_generations_unfinished;

-- By a trigger, so that a plain INSERT is as fair. Runs as its owner: whoever inserts needn't be able to read the clock. It sees
-- the rows that the same statement has inserted before.
CREATE FUNCTION longpoll.assign_turn() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  NEW.turn := CASE NEW.priority WHEN 1 THEN 10 WHEN 0 THEN 100 ELSE 1000 END + greatest(
    (SELECT last_value FROM longpoll.turns),
    (SELECT turn FROM public.image_generations
      WHERE user_id = NEW.user_id AND priority = NEW.priority AND status = 'pending'
      ORDER BY turn DESC LIMIT 1));
  RETURN NEW;
END
$$;
REVOKE EXECUTE ON FUNCTION longpoll.assign_turn() FROM PUBLIC;
-- A task that comes back into the queue keeps its turn, and so is claimed before what came after it.
CREATE TRIGGER assign_turn BEFORE INSERT ON public.image_generations
  FOR EACH ROW WHEN (NEW.status = 'pending' AND NEW.turn = 0) EXECUTE FUNCTION longpoll.assign_turn();
CREATE TRIGGER assign_turn_again BEFORE UPDATE OF status ON public.image_generations
  FOR EACH ROW WHEN (NEW.status = 'pending' AND NEW.turn = 0) EXECUTE FUNCTION longpoll.assign_turn();

CREATE FUNCTION longpoll.advance_turns() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  PERFORM setval('longpoll.turns', NEW.turn) FROM longpoll.turns WHERE last_value < NEW.turn;
  RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION longpoll.advance_turns() FROM PUBLIC;
CREATE TRIGGER advance_turns AFTER UPDATE ON public.image_generations
  FOR EACH ROW WHEN (OLD.status = 'pending' AND NEW.status = 'processing') EXECUTE FUNCTION longpoll.advance_turns();
