-- Named queries of secrets.

-- name: secret_all
SELECT secret_id, environment, name, variables, key_id, sealed, created_at, updated_at, used_at, created_by
FROM secret ORDER BY created_at;

-- name: secret_put
INSERT INTO secret (secret_id, environment, name, variables, key_id, sealed, created_at, updated_at, used_at, created_by)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (secret_id) DO UPDATE SET variables = excluded.variables, key_id = excluded.key_id,
    sealed = excluded.sealed, updated_at = excluded.updated_at;

-- name: secret_used
UPDATE secret SET used_at = ? WHERE secret_id = ?;

-- name: secret_touched
UPDATE secret SET updated_at = ? WHERE secret_id = ?;

-- name: secret_drop
DELETE FROM secret WHERE secret_id = ?;

-- name: secret_naming
SELECT naming_id, key_id, sealed FROM secret_naming;

-- name: secret_naming_put
INSERT INTO secret_naming (naming_id, key_id, sealed) VALUES (?, ?, ?)
ON CONFLICT (naming_id) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed;
