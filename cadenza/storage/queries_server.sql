-- Named queries of apps, functions and logs. A name line begins with "-- name:"; parameters are positional.

-- name: app_add
INSERT INTO server_app (app_id, name, environment, state, detached, created_at, tags, budget, created_by)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: app_state
UPDATE server_app SET state = ?, stopped_at = ?, stop_reason = ? WHERE app_id = ?;

-- name: app_all
SELECT app_id, name, environment, state, detached, created_at, stopped_at, stop_reason, version, deployed_at, tags,
       budget, created_by, deployed_by
FROM server_app ORDER BY created_at;

-- name: app_forget
DELETE FROM server_app WHERE state = 'stopped' AND app_id = ?;

-- name: function_put
INSERT INTO server_function (function_id, app_id, name, spec, version, created_at, created_by)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (function_id) DO UPDATE SET spec = excluded.spec, version = excluded.version;

-- name: function_all
SELECT f.function_id, f.app_id, f.name, f.spec, f.kind, f.base_id, f.wish, f.version, f.created_at, f.created_by
FROM server_function f JOIN server_app a ON a.app_id = f.app_id WHERE a.state <> 'stopped';

-- name: function_drop
DELETE FROM server_function WHERE function_id = ?;

-- name: function_end
DELETE FROM server_function WHERE app_id = ?;

-- name: function_forget
DELETE FROM server_function WHERE app_id IN (SELECT app_id FROM server_app WHERE state = 'stopped');

-- name: log_heads
SELECT b.app_id, b.seq, b.segment, b.place + b.length FROM log_block b
JOIN (SELECT app_id, MAX(seq) AS seq FROM log_block GROUP BY app_id) m ON m.app_id = b.app_id AND m.seq = b.seq;

-- name: log_block_add
INSERT INTO log_block (app_id, seq, segment, place, length, entries, first_time, last_time)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: log_blocks
SELECT segment, place, length FROM log_block
WHERE app_id = ? AND seq < ? AND last_time >= ? AND first_time <= ? ORDER BY seq;

-- name: log_segments
SELECT app_id, segment, SUM(length), MAX(last_time) FROM log_block GROUP BY app_id, segment;

-- name: log_segment_delete
DELETE FROM log_block WHERE app_id = ? AND segment = ?;

-- name: blobs_named
SELECT blob_id FROM inputs WHERE blob_id IS NOT NULL UNION SELECT blob_id FROM outputs WHERE blob_id IS NOT NULL;
