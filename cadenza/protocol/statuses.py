"""What became of an input, in one word each. Apart from `calls`, so that a container can read them without loading
dataclasses. Words and meaning: semantics.md section 5.
"""

from __future__ import annotations

PENDING = "PENDING"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
TERMINATED = "TERMINATED"
TIMEOUT = "TIMEOUT"
INIT_FAILURE = "INIT_FAILURE"
INTERNAL_FAILURE = "INTERNAL_FAILURE"
REVOKED = "REVOKED"
"""Between control and runner only: an attempt handed over early and given back before it began."""
STATUSES = (SUCCESS, FAILURE, TERMINATED, TIMEOUT, INIT_FAILURE, INTERNAL_FAILURE)
