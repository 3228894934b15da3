"""Which function a word names, which version, which limits. Source: semantics.md sections 11.1 and 23."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from cadenza.base.errors import NotFoundError
from cadenza.cli import deployments, functions
from cadenza.cli.main import cli
from cadenza.protocol.deployments import AppDeployed
from cadenza.protocol.functions import AutoscalerSettings, FunctionFind, FunctionInfo
from cadenza.protocol.objects import AutoscalerPatch


@pytest.mark.parametrize(
    ("word", "pairs"),
    [
        ("shop/price", [("shop", "price"), ("shop", "price.*")]),
        ("shop::price", [("shop", "price"), ("shop", "price.*")]),
        ("my.shop/Till.add", [("my.shop", "Till.add"), ("my.shop", "Till.add.*"), ("my.shop", "Till.*")]),
        ("shop/Till.*", [("shop", "Till.*")]),
        ("shop.price", [("shop", "price"), ("shop", "price.*")]),
        ("a.b.c", [("a", "b.c"), ("a", "b.c.*"), ("a", "b.*"), ("a.b", "c"), ("a.b", "c.*")]),
        ("price", []),
        ("/price", []),
        ("shop/", []),
    ],
)
def test_what_a_word_may_mean(word: str, pairs: list[tuple[str, str]]) -> None:
    assert functions.candidates(word) == pairs


class Server:
    """Answers like ours, of one app."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def ask(self, method: str, request: Any, start: bool = True) -> Any:
        self.asked.append((method, request))
        if method == "function.find":
            if request.name not in ("price", "Till.*"):
                raise NotFoundError(f"no function {request.name!r}")
            return FunctionInfo("fu-1", "ap-1", request.name, False)
        if method == "function.settings":
            return AutoscalerSettings(0, None, 2, 60.0)
        return None


@pytest.fixture
def server(monkeypatch) -> Server:
    made = Server()
    monkeypatch.setattr(functions, "ask", made.ask)
    return made


def test_the_first_complaint_is_told(server: Server) -> None:
    assert functions.resolve("shop/Till.add", "dev").name == "Till.*"
    assert server.asked[-1] == ("function.find", FunctionFind("shop", "Till.*", "dev"))
    with pytest.raises(NotFoundError, match="'nothing'"):
        functions.resolve("shop/nothing", None)
    with pytest.raises(click.BadParameter, match="app/name"):
        functions.resolve("nothing", None)


def test_only_what_is_given_changes(server: Server) -> None:
    words = ["function", "autoscaler", "update", "shop/price", "--min-containers", "2", "--max-containers", "none"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    scaled = next(request for method, request in server.asked if method == "function.scale")
    assert scaled.patch == AutoscalerPatch(min_containers=2) and scaled.unset == ("max_containers",)
    assert "Max containers     none" in done.output and "Scaledown window   60 s" in done.output


@pytest.mark.parametrize("value", ["-1", "1.5", "many", "²"])
def test_limits_are_whole_numbers(server: Server, value: str) -> None:
    done = CliRunner().invoke(cli, ["function", "autoscaler", "update", "a/b", "--min-containers", value])
    assert done.exit_code == 2 and "whole number" in done.output and not server.asked


@pytest.mark.parametrize(("text", "number"), [("3", 3), ("v3", 3), ("v10", 10)])
def test_versions(text: str, number: int) -> None:
    assert deployments.parse_version(text) == number


@pytest.mark.parametrize("text", ["0", "v0", "", "v", "1.2", "latest", "-1", "03"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no version"):
        deployments.parse_version(text)


def test_a_deploy_says_what_to_do_next() -> None:
    done = AppDeployed("ap-1", 4, True, {"price": "fu-1", "Till.*": "fu-2"})
    assert deployments.summary("shop", done, "dev", False) == (
        "shop v4 (ap-1)\n"
        "  Till   class     fu-2\n"
        "  price  function  fu-1\n"
        'Call it:  cadenza.Cls.from_name("shop", "Till", environment_name="dev")().a_method.remote()\n'
        "See it:   cadenza app info shop -e dev, cadenza app logs shop -e dev\n"
        "End it:   cadenza app stop shop -e dev"
    )
    same = AppDeployed("ap-1", 4, False, {"price": "fu-1"})
    assert deployments.summary("shop", same, None, False) == "shop v4 (ap-1)\n  price  function  fu-1"
    assert "cadenza app promote shop 4` puts it in force" in deployments.summary("shop", done, None, True)


@pytest.mark.parametrize(("words", "near"), [(["app", "hisotry"], "history"), (["function", "varaints"], "variants")])
def test_misspelt_commands_of_groups_are_guessed(words: list[str], near: str) -> None:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2 and f"Did you mean '{near}'?" in done.output
