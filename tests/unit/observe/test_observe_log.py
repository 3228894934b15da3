"""Log lines: one line each, with their context, and never a secret."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Iterator

import pytest

from cadenza.observe import log
from cadenza.observe.log import Log, context, render
from cadenza.observe.metrics import MAX_NAMES, Metrics


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    logger = logging.getLogger("cadenza")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    for one in list(logger.handlers):
        if one not in before[0]:
            logger.removeHandler(one)
            one.close()
    logger.handlers, logger.level, logger.propagate = list(before[0]), before[1], before[2]


def test_a_line_is_one_line_and_cut() -> None:
    assert (
        render("started", {"port": 8, "path": "/a/b c", "why": "two\nlines"})
        == "started port=8 path='/a/b c' why='two\\nlines'"
    )
    assert len(render("x", {"y": "z" * 10_000})) < 500
    assert "\n" not in render("x", {"y": ["a\nb", {"c": "\n"}]})


@pytest.mark.parametrize("key", ["token_secret", "password", "api_key", "env", "SECRET_VALUE", "Authorization"])
def test_secrets_are_never_written(key: str) -> None:
    assert "hunter2" not in render("x", {key: "hunter2"})
    assert "hunter2" not in render("x", {key: {"A": "hunter2"}})


def test_context_rides_along_and_ends() -> None:
    with context(call="fc-1"):
        with context(input="in-1"):
            assert render("ran", {"n": 1}) == "ran call=fc-1 input=in-1 n=1"
        assert render("ran", {}) == "ran call=fc-1"
    assert render("ran", {}) == "ran"


def test_the_file_has_the_lines_of_its_level(tmp_path: Path) -> None:
    path = str(tmp_path / "state" / "server.log")
    log.configure("INFO", path, stderr=False)
    logger = Log("cadenza.test")
    logger.debug("unseen")
    logger.info("seen", n=1)
    try:
        raise ValueError("broken")
    except ValueError as error:
        logger.error("failed", exc=error)
    text = Path(path).read_text()
    assert "unseen" not in text
    assert "INFO cadenza.test seen n=1" in text
    assert "ValueError: broken" in text
    assert os.stat(os.path.dirname(path)).st_mode & 0o077 == 0


def test_counters() -> None:
    metrics = Metrics()
    metrics.add("requests")
    metrics.add("requests", 2)
    metrics.gauge("open", lambda: 7.0)
    assert metrics.read() == {"requests": 3, "open": 7.0}
    with pytest.raises(ValueError, match="carry an id"):
        for number in range(MAX_NAMES + 1):
            metrics.add(f"call.{number}")
