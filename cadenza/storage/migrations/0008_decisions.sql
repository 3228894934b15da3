-- What was decided about each function's containers; limits set at run time; children of an input.

CREATE TABLE decisions (
    number BIGINT NOT NULL PRIMARY KEY,
    function_id TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    what TEXT NOT NULL,
    amount INTEGER NOT NULL,
    why TEXT NOT NULL,
    container_id TEXT NOT NULL
);
CREATE INDEX decisions_by_function ON decisions (function_id, number);

CREATE TABLE function_limits (
    function_id TEXT NOT NULL PRIMARY KEY,
    declared TEXT NOT NULL,
    limits TEXT NOT NULL
);

CREATE INDEX calls_by_parent ON calls (parent_input_id) WHERE parent_input_id <> '';
