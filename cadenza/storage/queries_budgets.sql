-- Named queries of budgets.

-- name: budget_spent_all
SELECT app_id, period, container_s, money FROM budget_spent;

-- name: budget_spent_put
INSERT INTO budget_spent (app_id, period, container_s, money) VALUES (?, ?, ?, ?)
ON CONFLICT (app_id) DO UPDATE SET period = excluded.period, container_s = excluded.container_s, money = excluded.money;

-- name: budget_hold_all
SELECT container_id, app_id, since, paid_until, rate FROM budget_hold;

-- name: budget_hold_put
INSERT INTO budget_hold (container_id, app_id, since, paid_until, rate) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (container_id) DO UPDATE SET since = excluded.since, paid_until = excluded.paid_until;

-- name: budget_hold_drop
DELETE FROM budget_hold WHERE container_id = ?;

-- name: budget_drop
DELETE FROM budget_spent WHERE app_id = ?;
