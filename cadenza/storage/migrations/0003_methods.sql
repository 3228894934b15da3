-- Calls of methods of classes; keys by which a client asks for the same call again.

ALTER TABLE inputs ADD COLUMN method TEXT NOT NULL DEFAULT '';
ALTER TABLE calls ADD COLUMN method TEXT NOT NULL DEFAULT '';

CREATE TABLE call_keys (
    function_id TEXT NOT NULL,
    key TEXT NOT NULL,
    call_id TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (function_id, key)
);
CREATE INDEX call_keys_by_call ON call_keys (call_id);
