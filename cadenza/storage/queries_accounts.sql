-- Named queries of environments, members, roles, tokens and the workspace's settings.

-- name: environment_all
SELECT environment_id, name, created_at, web_suffix, restricted, default_role, image_builder_version
FROM environment ORDER BY created_at, name;

-- name: environment_put
INSERT INTO environment (environment_id, name, created_at, web_suffix, restricted, default_role, image_builder_version)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (environment_id) DO UPDATE SET name = excluded.name, web_suffix = excluded.web_suffix,
    image_builder_version = excluded.image_builder_version;

-- name: environment_delete
DELETE FROM environment WHERE environment_id = ?;

-- name: environment_apps_move
UPDATE server_app SET environment = ? WHERE environment = ?;

-- name: environment_secrets_move
UPDATE secret SET environment = ? WHERE environment = ?;

-- name: environment_secrets_drop
DELETE FROM secret WHERE environment = ?;

-- name: role_all
SELECT environment_id, user_id, role FROM account_role;

-- name: role_put
INSERT INTO account_role (environment_id, user_id, role) VALUES (?, ?, ?)
ON CONFLICT (environment_id, user_id) DO UPDATE SET role = excluded.role;

-- name: role_delete
DELETE FROM account_role WHERE environment_id = ? AND user_id = ?;

-- name: role_delete_environment
DELETE FROM account_role WHERE environment_id = ?;

-- name: role_delete_user
DELETE FROM account_role WHERE user_id = ?;

-- name: user_all
SELECT user_id, name, role, service_user, created_at, created_by FROM account_user ORDER BY created_at, name;

-- name: user_put
INSERT INTO account_user (user_id, name, role, service_user, created_at, created_by) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (user_id) DO UPDATE SET role = excluded.role;

-- name: user_delete
DELETE FROM account_user WHERE user_id = ?;

-- name: token_all
SELECT token_id, user_id, name, salt, digest, scopes, environments, created_at, expires_at, used_at, disabled
FROM account_token ORDER BY created_at, token_id;

-- name: token_add
INSERT INTO account_token (token_id, user_id, name, salt, digest, scopes, environments, created_at, expires_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: token_disabled
UPDATE account_token SET disabled = ? WHERE token_id = ?;

-- name: token_used
UPDATE account_token SET used_at = ? WHERE token_id = ?;

-- name: token_delete
DELETE FROM account_token WHERE token_id = ?;

-- name: token_delete_user
DELETE FROM account_token WHERE user_id = ?;

-- name: setting_all
SELECT name, value FROM workspace_setting;

-- name: setting_put
INSERT INTO workspace_setting (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value;
