"""The inputs of functions that ended last, in the database: blocks of some hundred, so that keeping them costs little.

A block is zlib(JSON list of lists), each the fields of `Ended` without the function's id.
"""

from __future__ import annotations

import json
import zlib
from typing import NamedTuple, Sequence

from cadenza.observe.log import Log
from cadenza.storage.db import Database, Transaction

KEPT_INPUTS = 10_000
"""Of each function."""
KEPT_BYTES = 64 << 20
"""Of all functions together, as they are stored."""
BLOCKS_AT_ONCE = 32
ROWS_AT_ONCE = 2_000
ALL_BLOCKS = 1 << 62

_log = Log("cadenza.storage.recent")


class Ended(NamedTuple):
    """An input that ended. Times are epoch seconds; 0: never."""

    function_id: str
    input_id: str
    call_id: str
    status: str
    enqueued_at: float
    started_at: float
    finished_at: float
    container_id: str
    method: str
    attempts: int
    error: str


class RecentStore:
    """The table of ended inputs. Methods are coroutines of the event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, blocks: Sequence[Sequence[Ended]]) -> None:
        """Keep each block, all of one function, oldest first; the oldest of a function beyond `KEPT_INPUTS` go."""
        rows = [
            (block[0].function_id, min(one.enqueued_at for one in block), block[-1].finished_at, len(block),
             pack(block))
            for block in blocks if block
        ]  # fmt: skip

        def write(transaction: Transaction) -> None:
            for row in rows:
                transaction.execute("recent_add", row)
            for function_id in {row[0] for row in rows}:
                _trim(transaction, function_id)

        if rows:
            await self._db.transaction(write)

    async def read(self, function_id: str, since: float, limit: int) -> list[Ended]:
        """Inputs that ended at ``since`` or later, newest first, at least ``limit`` of them if there are so many."""
        found: list[Ended] = []
        before = ALL_BLOCKS
        while len(found) < limit:
            rows = await self._db.fetch("recent_of_function", (function_id, since, before, BLOCKS_AT_ONCE))
            for number, body in rows:
                found += reversed(unpack(function_id, body))
                before = number
                if len(found) >= limit:
                    break
            if len(rows) < BLOCKS_AT_ONCE:
                break
        return found

    async def retain(self, now: float, age_s: float) -> None:
        """Remove what is older than ``age_s``, and the oldest beyond `KEPT_BYTES`."""
        while await self._db.execute("recent_expire", (now - age_s, ROWS_AT_ONCE)) >= ROWS_AT_ONCE:
            pass
        total = 0
        for number, size in await self._db.fetch("recent_sizes"):
            total += size
            if total > KEPT_BYTES:
                await self._db.execute("recent_cut", (number,))
                return


def _trim(transaction: Transaction, function_id: str) -> None:
    total = 0
    for number, inputs in transaction.fetch("recent_counts", (function_id,)):
        total += inputs
        if total - inputs >= KEPT_INPUTS:
            transaction.execute("recent_trim", (function_id, number))
            return


def pack(block: Sequence[Ended]) -> bytes:
    """A block as it is stored."""
    return zlib.compress(json.dumps([one[1:] for one in block], separators=(",", ":")).encode(), 1)


def unpack(function_id: str, body: bytes) -> list[Ended]:
    """What `pack` made; nothing, and a line in the log, where the bytes are damaged."""
    try:
        return [Ended(function_id, *one) for one in json.loads(zlib.decompress(body))]
    except (ValueError, TypeError, zlib.error) as error:
        _log.warning("recent inputs cannot be read", function=function_id, error=str(error))
        return []
