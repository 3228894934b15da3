"""`cadenza.runtime.driver` and its neighbours: no secret in what is printed of a description."""

from __future__ import annotations

from cadenza.base.config import Config
from cadenza.protocol.nodes import ImageInfo
from cadenza.runtime.driver import Command, ContainerConfig


def test_secrets_are_not_in_a_descriptions_text() -> None:
    env = {"TOKEN": "hunter2"}
    described = (
        ContainerConfig("ta-1", "/", ("/bin/true",), env),
        Command(("/bin/true",), env),
        ImageInfo("im-1", 1, 0.0, 0.0, env=env),
        Config(token_secret="hunter2"),
    )
    for one in described:
        assert "hunter2" not in repr(one)
