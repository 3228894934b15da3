"""The whole table of methods. A process that calls a few loads their nouns alone: `cadenza.protocol.methods.row`."""

from __future__ import annotations

from cadenza.protocol import accounts, deployments, functions, images, methods, schedules, secrets, stats
from cadenza.protocol.method import Method

METHODS: dict[str, Method] = {
    one.name: one
    for noun in (methods, deployments, functions, images, schedules, secrets, accounts, stats)
    for one in noun.ROWS
}
