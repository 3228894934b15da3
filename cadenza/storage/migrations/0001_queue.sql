-- Calls, inputs that are not finished, and outputs. Written for SQLite; BLOB is PostgreSQL's BYTEA.

CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);

CREATE TABLE calls (
    call_id TEXT PRIMARY KEY,
    function_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    attached INTEGER NOT NULL,
    caller TEXT NOT NULL,
    parent_input_id TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    inputs BIGINT NOT NULL,
    total BIGINT,
    cancelled INTEGER NOT NULL
);
CREATE INDEX calls_attached ON calls (attached) WHERE attached = 1;
CREATE INDEX calls_by_age ON calls (created_at);

-- state: 0 waits in the table, 1 is in the hands of the control plane (and, with a container_id, of a container).
CREATE TABLE inputs (
    seq INTEGER PRIMARY KEY,
    input_id TEXT NOT NULL,
    call_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    function_id TEXT NOT NULL,
    attached INTEGER NOT NULL,
    state INTEGER NOT NULL,
    fence BIGINT NOT NULL,
    ready_at DOUBLE PRECISION NOT NULL,
    retries INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    container_id TEXT NOT NULL,
    blob_id TEXT,
    blob_size BIGINT,
    data BLOB NOT NULL
);
CREATE INDEX inputs_waiting ON inputs (function_id, ready_at, seq) WHERE state = 0;
CREATE INDEX inputs_by_call ON inputs (call_id, position);

CREATE TABLE outputs (
    call_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    input_id TEXT NOT NULL,
    status TEXT NOT NULL,
    error TEXT NOT NULL,
    items BIGINT NOT NULL,
    attempts INTEGER NOT NULL,
    container_id TEXT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    blob_id TEXT,
    blob_size BIGINT,
    data BLOB NOT NULL,
    PRIMARY KEY (call_id, position)
);
CREATE INDEX outputs_by_expiry ON outputs (expires_at);

-- What the control plane wants to exist: loaded at start, so that containers that outlived it are known again.
CREATE TABLE containers (
    container_id TEXT PRIMARY KEY,
    node_id TEXT NOT NULL,
    function_id TEXT NOT NULL,
    spec TEXT NOT NULL
);
