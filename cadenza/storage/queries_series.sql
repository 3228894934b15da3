-- Named queries of statistics over time and of recent inputs.

-- name: series_get
SELECT body FROM series WHERE function_id = ? AND start = ? AND step = ?;

-- name: series_put
INSERT INTO series (function_id, start, step, app_id, body) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (function_id, start, step) DO UPDATE SET body = excluded.body;

-- name: series_of_function
SELECT start, step, body FROM series WHERE function_id = ? AND start + step > ? AND start < ? ORDER BY start;

-- name: series_of_app
SELECT start, step, body FROM series WHERE app_id = ? AND start + step > ? AND start < ? ORDER BY start;

-- name: series_app
SELECT app_id FROM series WHERE function_id = ? LIMIT 1;

-- name: series_old
SELECT function_id, start, app_id, body FROM series WHERE step = 60 AND start < ? ORDER BY start LIMIT ?;

-- name: series_drop
DELETE FROM series WHERE function_id = ? AND start = ? AND step = ?;

-- name: series_expire
DELETE FROM series WHERE (function_id, start, step) IN
(SELECT function_id, start, step FROM series WHERE start < ? LIMIT ?);

-- name: recent_add
INSERT INTO recent_input (function_id, first_at, last_at, inputs, body) VALUES (?, ?, ?, ?, ?);

-- name: recent_of_function
SELECT number, body FROM recent_input WHERE function_id = ? AND last_at >= ? AND number < ? ORDER BY number DESC LIMIT ?;

-- name: recent_counts
SELECT number, inputs FROM recent_input WHERE function_id = ? ORDER BY number DESC;

-- name: recent_trim
DELETE FROM recent_input WHERE function_id = ? AND number <= ?;

-- name: recent_expire
DELETE FROM recent_input WHERE number IN (SELECT number FROM recent_input WHERE last_at < ? LIMIT ?);

-- name: recent_sizes
SELECT number, LENGTH(body) FROM recent_input ORDER BY number DESC;

-- name: recent_cut
DELETE FROM recent_input WHERE number <= ?;

-- name: log_segments_begun
SELECT app_id, segment, MIN(first_time) FROM log_block GROUP BY app_id, segment;
