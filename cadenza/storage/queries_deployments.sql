-- Named queries of deployed apps, their versions, and variants of functions.

-- name: app_deployed
UPDATE server_app SET state = 'deployed', version = ?, deployed_at = ?, deployed_by = ?, tags = ?, budget = ?
WHERE app_id = ?;

-- name: app_tags
UPDATE server_app SET tags = ? WHERE app_id = ?;

-- name: variant_put
INSERT INTO server_function (function_id, app_id, name, spec, kind, base_id, wish, version, created_at, created_by)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (function_id) DO UPDATE SET spec = excluded.spec, wish = excluded.wish, version = excluded.version;

-- name: deployment_add
INSERT INTO deployment (app_id, version, kind, source_version, deployed_at, deployed_by, tag, strategy, git,
                        client_version, names, fingerprint, budget, functions)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: deployment_all
SELECT version, kind, source_version, deployed_at, deployed_by, tag, strategy, git, client_version, names
FROM deployment WHERE app_id = ? ORDER BY version DESC;

-- name: deployment_one
SELECT kind, functions, budget, git FROM deployment WHERE app_id = ? AND version = ?;

-- name: deployment_numbers
SELECT version, kind FROM deployment WHERE app_id = ? ORDER BY version;

-- name: deployment_active
SELECT fingerprint, tag FROM deployment WHERE app_id = ? AND version = ?;

-- name: deployment_promote
UPDATE deployment SET kind = 'deploy', deployed_at = ?, strategy = ? WHERE app_id = ? AND version = ?;

-- name: deployment_drop
DELETE FROM deployment WHERE app_id = ? AND version = ?;

-- name: deployment_close
UPDATE deployment SET functions = x'' WHERE app_id = ?;

-- name: deployment_forget
DELETE FROM deployment WHERE app_id = ?;

-- name: deployment_kept
SELECT app_id, version FROM deployment WHERE length(functions) > 0;
