-- Decisions about containers, limits at run time, and what is asked of waiting inputs.

-- name: decision_all
SELECT number, function_id, at, what, amount, why, container_id FROM decisions ORDER BY number DESC LIMIT ?;

-- name: decision_put
INSERT INTO decisions (number, function_id, at, what, amount, why, container_id) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (number) DO UPDATE SET at = excluded.at, amount = excluded.amount, container_id = excluded.container_id;

-- name: decision_trim
DELETE FROM decisions WHERE function_id = ? AND number <= (
    SELECT number FROM decisions WHERE function_id = ? ORDER BY number DESC LIMIT 1 OFFSET ?
);

-- name: decision_expire
DELETE FROM decisions WHERE at <= ?;

-- name: limits_all
SELECT function_id, declared, limits FROM function_limits;

-- name: limits_put
INSERT INTO function_limits (function_id, declared, limits) VALUES (?, ?, ?)
ON CONFLICT (function_id) DO UPDATE SET declared = excluded.declared, limits = excluded.limits;

-- name: limits_drop
DELETE FROM function_limits WHERE function_id = ?;

-- name: waiting_in_table
SELECT input_id, call_id, ready_at, retries, losses FROM inputs
WHERE state = 0 AND function_id = ? ORDER BY ready_at, seq LIMIT ?;

-- name: input_function
SELECT function_id FROM inputs WHERE call_id BETWEEN ? AND ? AND input_id = ?;

-- name: graph_children
SELECT call_id, function_id, app_id, kind, attached, caller, parent_input_id, created_at, inputs, total, cancelled,
       method
FROM calls WHERE parent_input_id = ? AND parent_input_id <> '' ORDER BY created_at LIMIT ?;

-- name: graph_outputs
SELECT position, input_id, status, container_id FROM outputs WHERE call_id = ? ORDER BY position LIMIT ?;

-- name: graph_inputs
SELECT position, input_id, container_id FROM inputs WHERE call_id = ? ORDER BY position LIMIT ?;
