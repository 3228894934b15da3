-- What happened to functions over time, and the inputs that ended last.

-- One row for a function and a slice of time: a minute (step 60) or an hour (step 3600). body: cadenza/observe/slice.py.
CREATE TABLE series (
    function_id TEXT NOT NULL,
    step        INTEGER NOT NULL,
    start       INTEGER NOT NULL,
    app_id      TEXT NOT NULL,
    body        BLOB NOT NULL,
    PRIMARY KEY (function_id, start, step)
) WITHOUT ROWID;
CREATE INDEX series_by_age ON series (step, start);
CREATE INDEX series_by_app ON series (app_id, start);

-- Inputs that ended, some at a time. body: cadenza/storage/recent.py.
CREATE TABLE recent_input (
    number      INTEGER PRIMARY KEY,
    function_id TEXT NOT NULL,
    first_at    REAL NOT NULL,
    last_at     REAL NOT NULL,
    inputs      INTEGER NOT NULL,
    body        BLOB NOT NULL
);
CREATE INDEX recent_input_by_function ON recent_input (function_id, number);
CREATE INDEX recent_input_by_age ON recent_input (last_at);
