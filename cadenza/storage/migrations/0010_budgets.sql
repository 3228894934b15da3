-- What apps with a budget have spent in the present period, and what their containers hold of it.

CREATE TABLE budget_spent (
    app_id TEXT PRIMARY KEY,
    period TEXT NOT NULL,
    container_s DOUBLE PRECISION NOT NULL,
    money DOUBLE PRECISION NOT NULL
);

CREATE TABLE budget_hold (
    container_id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL,
    since DOUBLE PRECISION NOT NULL,
    paid_until DOUBLE PRECISION NOT NULL,
    rate DOUBLE PRECISION NOT NULL
);
