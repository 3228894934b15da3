-- The queue's queries. Statements with many rows are made in queue.py.

-- name: bump_counter
INSERT INTO counters (name, value) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = counters.value + 1;

-- name: get_counter
SELECT value FROM counters WHERE name = ?;

-- name: get_key
SELECT call_keys.call_id FROM call_keys JOIN calls ON calls.call_id = call_keys.call_id
WHERE call_keys.function_id = ? AND call_keys.key = ?;

-- name: put_key
INSERT INTO call_keys (function_id, key, call_id, created_at) VALUES (?, ?, ?, ?)
ON CONFLICT (function_id, key) DO UPDATE SET call_id = excluded.call_id, created_at = excluded.created_at;

-- name: expire_keys
DELETE FROM call_keys WHERE NOT EXISTS (SELECT 1 FROM calls WHERE calls.call_id = call_keys.call_id);

-- name: grow_call
UPDATE calls SET inputs = inputs + ? WHERE call_id = ?;

-- name: close_call
UPDATE calls SET total = ? WHERE call_id = ?;

-- name: cancel_call
UPDATE calls SET cancelled = 1 WHERE call_id = ?;

-- name: get_call
SELECT call_id, function_id, app_id, kind, attached, caller, parent_input_id, created_at, inputs, total, cancelled,
       method
FROM calls WHERE call_id = ?;

-- name: hold_input
UPDATE inputs SET state = 1, fence = ?, container_id = ?, retries = ?, losses = ? WHERE seq = ?;

-- name: give_back_input
UPDATE inputs SET state = 0, fence = ?, ready_at = ?, retries = ?, losses = ?, container_id = '' WHERE seq = ?;

-- name: due_inputs
SELECT seq, input_id, call_id, position, function_id, attached, fence, ready_at, retries, losses, container_id,
       blob_id, blob_size, data, method
FROM inputs WHERE state = 0 AND function_id = ? AND ready_at <= ? ORDER BY ready_at, seq LIMIT ?;

-- name: next_ready
SELECT min(ready_at) FROM inputs WHERE state = 0 AND function_id = ? AND ready_at > ?;

-- name: waiting_of_call
SELECT seq, input_id, call_id, position, function_id FROM inputs WHERE call_id = ? AND state = 0;

-- name: waiting_of_function
SELECT seq, input_id, call_id, position, function_id FROM inputs WHERE function_id = ? AND state = 0 LIMIT ?;

-- name: finish_input
DELETE FROM inputs WHERE seq = ? AND fence = ?;

-- name: known_positions
SELECT position FROM inputs WHERE call_id = ? AND position BETWEEN ? AND ?
UNION SELECT position FROM outputs WHERE call_id = ? AND position BETWEEN ? AND ?;

-- name: get_outputs
SELECT call_id, position, input_id, status, data, blob_id, blob_size, error, items, attempts, container_id, expires_at
FROM outputs WHERE call_id = ? AND position >= ? AND position < ? ORDER BY position LIMIT ?;

-- name: count_statuses
SELECT status, count(*) FROM outputs WHERE call_id = ? GROUP BY status;

-- name: count_unfinished
SELECT count(*) FROM inputs WHERE call_id = ?;

-- name: input_exists
SELECT 1 FROM inputs WHERE call_id = ? AND position = ?;

-- name: expire_outputs
DELETE FROM outputs WHERE rowid IN (SELECT rowid FROM outputs WHERE expires_at <= ? LIMIT ?);

-- name: expire_calls
DELETE FROM calls WHERE created_at <= ?
  AND NOT EXISTS (SELECT 1 FROM inputs WHERE inputs.call_id = calls.call_id)
  AND NOT EXISTS (SELECT 1 FROM outputs WHERE outputs.call_id = calls.call_id);

-- name: drop_attached_outputs
DELETE FROM outputs WHERE call_id IN (SELECT call_id FROM calls WHERE attached = 1);

-- name: drop_attached_inputs
DELETE FROM inputs WHERE attached = 1;

-- name: drop_attached_calls
DELETE FROM calls WHERE attached = 1;

-- name: held_inputs
SELECT seq, input_id, call_id, position, function_id, attached, fence, ready_at, retries, losses, container_id,
       blob_id, blob_size, data, method
FROM inputs WHERE state = 1 ORDER BY seq;

-- name: count_waiting
SELECT function_id, count(*) FROM inputs WHERE state = 0 GROUP BY function_id;

-- name: last_seq
SELECT coalesce(max(seq), 0) FROM inputs;

-- name: put_container
INSERT INTO containers (container_id, node_id, function_id, spec) VALUES (?, ?, ?, ?)
ON CONFLICT (container_id) DO UPDATE SET node_id = excluded.node_id, spec = excluded.spec;

-- name: drop_container
DELETE FROM containers WHERE container_id = ?;

-- name: all_containers
SELECT container_id, node_id, function_id, spec FROM containers;
