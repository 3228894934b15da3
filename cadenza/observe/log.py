"""Structured lines: one call writes an event with its fields; context rides along in a `contextvars` variable.

A line is ``time level logger event key=value ...``, written through the standard library's logging to stderr and, where
a path is given, to the server's log file. Values that look like secrets by their key are never written.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import logging.handlers
import os
import re
import sys
import time
from typing import Any, Iterator, Optional

MAX_VALUE_CHARS = 400
"""A field longer than this is cut: a log line is for people."""
LOG_FILE_BYTES = 10 << 20
LOG_FILES_KEPT = 3

_SECRET_KEY = re.compile(r"secret|token|password|passwd|credential|api_?key|authorization|env$|environ", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9_./:@+,\-]+\Z")
_context: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("cadenza_log_context")


class Log:
    """A named source of lines. ``log.info("started", port=8)`` writes ``... cadenza.control started port=8``."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug("%s", render(event, fields))

    def info(self, event: str, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.INFO):
            self._logger.info("%s", render(event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning("%s", render(event, fields))

    def error(self, event: str, exc: Optional[BaseException] = None, **fields: Any) -> None:
        """A fault. With ``exc`` its traceback follows the line."""
        info = (type(exc), exc, exc.__traceback__) if exc is not None else None
        self._logger.error("%s", render(event, fields), exc_info=info)


def render(event: str, fields: dict[str, Any]) -> str:
    """One line's text: the event, the context's fields, then its own."""
    merged = {**_context.get({}), **fields}
    return " ".join([event, *(f"{key}={_value(key, one)}" for key, one in merged.items())])


def _value(key: str, value: Any) -> str:
    if _SECRET_KEY.search(key):
        return "(secret)"
    text = value if isinstance(value, str) else repr(value)
    if len(text) > MAX_VALUE_CHARS:
        text = text[:MAX_VALUE_CHARS] + "..."
    return text if _PLAIN.match(text) else repr(text) if isinstance(value, str) else text.replace("\n", "\\n")


@contextlib.contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Within the block each line also carries ``fields``; it follows tasks that are started inside."""
    token = _context.set({**_context.get({}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


class _Format(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: Optional[str] = None) -> str:
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{whole}.{int(record.msecs):03d}Z"


def configure(level: str, path: str = "", stderr: bool = True) -> None:
    """Send this package's lines to stderr and to the file at ``path`` (kept at 10 MiB, three old ones beside it)."""
    logger = logging.getLogger("cadenza")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    handlers: list[logging.Handler] = []
    if stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
    if path:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                path, maxBytes=LOG_FILE_BYTES, backupCount=LOG_FILES_KEPT, encoding="utf-8"
            )
        )
    for handler in handlers:
        handler.setFormatter(_Format("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(getattr(logging, level.upper(), logging.WARNING))
    logger.propagate = False
