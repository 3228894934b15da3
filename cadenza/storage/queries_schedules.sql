-- Named queries of schedules.

-- name: schedule_all
SELECT schedule_id, app_id, function_id, text, version, started_at, done_until, paused, last_at, last_call_id, note
FROM schedule;

-- name: schedule_put
INSERT INTO schedule (schedule_id, app_id, function_id, text, version, started_at, done_until, paused, last_at,
    last_call_id, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (schedule_id) DO UPDATE SET text = excluded.text, version = excluded.version,
    started_at = excluded.started_at, done_until = excluded.done_until, paused = excluded.paused,
    last_at = excluded.last_at, last_call_id = excluded.last_call_id, note = excluded.note;

-- name: schedule_drop
DELETE FROM schedule WHERE schedule_id = ?;
