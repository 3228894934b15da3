-- Deployed apps: their versions, and functions that are variants of others.

ALTER TABLE server_app ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE server_app ADD COLUMN deployed_at REAL;
ALTER TABLE server_app ADD COLUMN tags TEXT NOT NULL DEFAULT '{}';
ALTER TABLE server_app ADD COLUMN budget TEXT NOT NULL DEFAULT '';
ALTER TABLE server_app ADD COLUMN created_by TEXT NOT NULL DEFAULT '';
ALTER TABLE server_app ADD COLUMN deployed_by TEXT NOT NULL DEFAULT '';

-- kind: '' declared by the program, 'variant' of base_id by wish (what is changed, as canonical JSON), 'pinned' to a version.
ALTER TABLE server_function ADD COLUMN kind TEXT NOT NULL DEFAULT '';
ALTER TABLE server_function ADD COLUMN base_id TEXT NOT NULL DEFAULT '';
ALTER TABLE server_function ADD COLUMN wish TEXT NOT NULL DEFAULT '';
ALTER TABLE server_function ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE server_function ADD COLUMN created_at REAL NOT NULL DEFAULT 0;
ALTER TABLE server_function ADD COLUMN created_by TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX server_function_wish ON server_function (base_id, wish) WHERE kind = 'variant';

-- functions: the specs of the version, packed; empty once the app is stopped.
CREATE TABLE deployment (
    app_id         TEXT NOT NULL,
    version        INTEGER NOT NULL,
    kind           TEXT NOT NULL,
    source_version INTEGER NOT NULL,
    deployed_at    REAL NOT NULL,
    deployed_by    TEXT NOT NULL,
    tag            TEXT NOT NULL,
    strategy       TEXT NOT NULL,
    git            TEXT NOT NULL,
    client_version TEXT NOT NULL,
    names          TEXT NOT NULL,
    fingerprint    TEXT NOT NULL,
    budget         TEXT NOT NULL,
    functions      BLOB NOT NULL,
    PRIMARY KEY (app_id, version)
);
