-- Schedules of functions: from when they count, up to when their times are dealt with, and their last run.

CREATE TABLE schedule (
    schedule_id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL,
    function_id TEXT NOT NULL,
    text TEXT NOT NULL,
    version BIGINT NOT NULL,
    started_at DOUBLE PRECISION NOT NULL,
    done_until DOUBLE PRECISION NOT NULL,
    paused INTEGER NOT NULL,
    last_at DOUBLE PRECISION NOT NULL,
    last_call_id TEXT NOT NULL,
    note TEXT NOT NULL
);
