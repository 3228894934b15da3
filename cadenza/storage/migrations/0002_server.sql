-- What the control plane's server keeps besides the queue: apps, their functions, the index of their logs.

CREATE TABLE server_app (
    app_id      TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    environment TEXT NOT NULL,
    state       TEXT NOT NULL,
    detached    INTEGER NOT NULL,
    created_at  REAL NOT NULL,
    stopped_at  REAL,
    stop_reason TEXT NOT NULL DEFAULT ''
);
CREATE INDEX server_app_by_name ON server_app (name, created_at);

CREATE TABLE server_function (
    function_id TEXT PRIMARY KEY,
    app_id      TEXT NOT NULL REFERENCES server_app (app_id),
    name        TEXT NOT NULL,
    spec        TEXT NOT NULL
);
CREATE INDEX server_function_by_app ON server_function (app_id);

CREATE TABLE log_block (
    app_id     TEXT NOT NULL,
    seq        INTEGER NOT NULL,
    segment    INTEGER NOT NULL,
    place      INTEGER NOT NULL,
    length     INTEGER NOT NULL,
    entries    INTEGER NOT NULL,
    first_time REAL NOT NULL,
    last_time  REAL NOT NULL,
    PRIMARY KEY (app_id, seq)
);
