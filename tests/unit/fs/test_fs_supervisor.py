"""What the lazy mount's supervisor decides; the mount itself is tests/live/test_live_lazy.py."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import pytest

from cadenza.base.config import Config
from cadenza.fs import supervisor
from cadenza.fs.link import pack_wanted, unpack_wanted
from cadenza.fs.supervisor import MAX_PAUSE_S, NO_TIERS, Lazy, environment, pause_s, settings_of


def test_the_first_death_costs_no_pause() -> None:
    assert pause_s(1) == 0.0
    pauses = [pause_s(deaths) for deaths in range(1, 20)]
    assert pauses == sorted(pauses) and pauses[1] > 0 and pauses[-1] == MAX_PAUSE_S


def test_what_is_wanted_comes_back_from_bytes() -> None:
    wanted = [(bytes(32), 5), (bytes(range(64)), 1 << 40), (b"x" * 32, -1)]
    assert unpack_wanted(pack_wanted(wanted)) == wanted
    assert pack_wanted([]) == b"" and unpack_wanted(b"") == []


def test_the_worker_is_told_of_every_tier() -> None:
    config = Config(store="s3://b", store_options="a=b", peers="http://p:1", peer_key="k", store_limit_gib=0.5)
    settings = settings_of(config)
    assert settings == {
        "store": "s3://b", "store_options": "a=b", "peers": "http://p:1", "peer_key": "k", "limit_bytes": 1 << 29
    }  # fmt: skip
    assert set(settings) == set(NO_TIERS)


def test_the_worker_finds_this_package() -> None:
    first = environment()["PYTHONPATH"].split(os.pathsep)[0]
    assert os.path.samefile(os.path.join(first, "cadenza"), os.path.dirname(sys.modules["cadenza"].__file__ or ""))


def test_nothing_is_mounted_before_it_is_opened(tmp_path: os.PathLike[str]) -> None:
    lazy = Lazy(os.fspath(tmp_path))
    assert lazy.mode == "" and lazy.worker_pid == 0
    assert lazy.served == {"restarts": 0}
    assert lazy.mountpoint == os.path.join(tmp_path, "lazy")


def test_a_mount_that_cannot_be_made_anew_at_once_is_made_in_its_mode(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = Lazy(os.fspath(tmp_path))
    modes: list[str] = []

    async def anew(mode: str) -> None:
        modes.append(mode)
        await lazy._end()
        if len(modes) == 1:
            raise OSError("no room")
        if len(modes) == 2:
            raise KeyError("what nobody thought of")
        lazy._closing = True

    monkeypatch.setattr(supervisor, "pause_s", lambda deaths: 0.0)
    monkeypatch.setattr(lazy, "_anew", anew)
    lazy.mode = "retry"
    asyncio.run(asyncio.wait_for(lazy._attend("retry"), 10))
    assert modes == ["retry"] * 3


class Process:
    pid = 1
    returncode = None

    def __init__(self) -> None:
        self.killed = 0

    def kill(self) -> None:
        self.killed += 1


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_that_is_silent_is_killed_and_no_other(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr(supervisor, "PING_S", 0.01)
    monkeypatch.setattr(supervisor, "PONG_S", 0.05)
    lazy = Lazy(os.fspath(tmp_path))
    process: Any = Process()
    asked: list[bytes] = []

    def send(whole: bytes) -> None:
        asked.append(whole)
        if answers or len(asked) % 3 == 0:  # or too seldom to be called silent
            lazy._heard({"t": "pong"})

    async def watch() -> None:
        lazy._process, lazy.mode = process, "retry"
        lazy._ready.set()
        monkeypatch.setattr(lazy, "_send", send)
        task = asyncio.create_task(lazy._watch())
        await asyncio.sleep(0.5)
        assert process.killed == 0 and len(asked) >= 3
        monkeypatch.setattr(lazy, "_send", lambda whole: None)
        await asyncio.sleep(0.5)
        assert process.killed >= 1
        task.cancel()

    asyncio.run(watch())
