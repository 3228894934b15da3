-- Secrets, sealed. Those without a name belong to the functions that name their ids.

CREATE TABLE secret (
    secret_id TEXT PRIMARY KEY,
    environment TEXT NOT NULL,
    name TEXT NOT NULL,
    variables TEXT NOT NULL,
    key_id TEXT NOT NULL,
    sealed BLOB NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    used_at DOUBLE PRECISION NOT NULL,
    created_by TEXT NOT NULL
);
CREATE UNIQUE INDEX secret_by_name ON secret (environment, name) WHERE name <> '';

-- One row: under which key everything is sealed, and sealed under it the key by which ids of nameless secrets are made.
CREATE TABLE secret_naming (
    naming_id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL,
    sealed BLOB NOT NULL
);
