-- Environments, members and service users, their roles, tokens, settings of the workspace.

CREATE TABLE environment (
    environment_id        TEXT PRIMARY KEY,
    name                  TEXT NOT NULL UNIQUE,
    created_at            REAL NOT NULL,
    web_suffix            TEXT NOT NULL UNIQUE,
    restricted            INTEGER NOT NULL,
    default_role          TEXT NOT NULL,
    image_builder_version TEXT NOT NULL DEFAULT ''
);

CREATE TABLE account_user (
    user_id      TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    role         TEXT NOT NULL,
    service_user INTEGER NOT NULL,
    created_at   REAL NOT NULL,
    created_by   TEXT NOT NULL DEFAULT '',
    UNIQUE (name, service_user)
);

CREATE TABLE account_role (
    environment_id TEXT NOT NULL,
    user_id        TEXT NOT NULL,
    role           TEXT NOT NULL,
    PRIMARY KEY (environment_id, user_id)
);

-- Of a secret there is only a salted hash here.
CREATE TABLE account_token (
    token_id     TEXT PRIMARY KEY,
    user_id      TEXT NOT NULL,
    name         TEXT NOT NULL,
    salt         BLOB NOT NULL,
    digest       BLOB NOT NULL,
    scopes       TEXT NOT NULL,
    environments TEXT NOT NULL,
    created_at   REAL NOT NULL,
    expires_at   REAL NOT NULL DEFAULT 0,
    used_at      REAL NOT NULL DEFAULT 0,
    disabled     INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX account_token_by_user ON account_token (user_id);

CREATE TABLE workspace_setting (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
