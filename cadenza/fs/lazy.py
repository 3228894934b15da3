"""The process behind the lazy mount: the store with its tiers, and a `cadenza.fs.worker.Worker` that answers from it.

    python -m cadenza.fs.lazy DEVICE LINK

``DEVICE`` is an open /dev/fuse that is mounted, ``LINK`` a socket to the supervisor (`cadenza.fs.supervisor`), whose
first frame says what to do.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from typing import Any, Mapping

from cadenza.fs import fuse
from cadenza.fs.fuse import Terms
from cadenza.fs.link import Link, Trial, unpack_wanted
from cadenza.fs.store import Store
from cadenza.fs.tiers import open_peers
from cadenza.fs.worker import Worker
from cadenza.storage.bucket import open_bucket, parse_options


class _Lines(logging.Handler):
    """Log lines of this process go to the server's log."""

    def __init__(self, link: Link) -> None:
        super().__init__(logging.INFO)
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        self._link.send({"t": "log", "logger": record.name, "level": record.levelno, "line": record.getMessage()})


def main(device: int, link: Link) -> None:
    """Serve until the mount or the supervisor is gone."""
    first = link.receive()
    if first is None:
        return
    start = first[0]
    logger = logging.getLogger("cadenza")
    logger.addHandler(_Lines(link))
    logger.setLevel(logging.INFO)
    terms = Terms(**start["terms"]) if start["terms"] else None
    trial = start["trial"] and Trial(
        bytes.fromhex(start["trial"]["digest"]), start["trial"]["path"], start["trial"]["content"].encode()
    )
    worker = Worker(
        device, open_tiers(start), link.send, mode=start["mode"], terms=terms, trial=trial, wait_s=start["wait_s"]
    )
    threading.Thread(target=_listen, args=(link, worker), daemon=True).start()
    if terms is not None and terms.resend:
        fuse.resend(device)
    link.send({"t": "ready"})
    worker.serve()


def _listen(link: Link, worker: Worker) -> None:
    while True:
        found = link.receive()
        if found is None:
            os._exit(0)  # without a supervisor nobody wants this mount
        header, payload = found
        if header["t"] == "ping":
            if worker.goes_on():
                link.send({"t": "pong"})
        elif header["t"] == "prefetch":
            worker.prefetch(header["number"], unpack_wanted(payload))
        elif header["t"] == "tree":
            worker.show(bytes.fromhex(header["digest"]))


def open_tiers(start: Mapping[str, Any]) -> Store:
    """The store with its tiers, as the supervisor's first frame has them. InvalidError."""
    remote = open_bucket(start["store"], parse_options(start["store_options"])) if start["store"] else None
    return Store(start["home"], remote, open_peers(start["peers"], start["peer_key"]), limit_bytes=start["limit_bytes"])


if __name__ == "__main__":
    main(int(sys.argv[1]), Link(socket.socket(fileno=int(sys.argv[2]))))
