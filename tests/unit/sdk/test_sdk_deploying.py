"""A deploy from the program's side: the order, the errors at their time, git, handles. semantics.md 23 and 34."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Optional

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_sdk_app import Recorder

import cadenza
from cadenza import App, Budget
from cadenza.exception import ConflictError, ImageBuildError, InvalidError, ServerWarning
from cadenza.protocol.deployments import AppDeployed
from cadenza.protocol.functions import FunctionRow, FunctionRows
from cadenza.protocol.objects import AppInfo, BudgetSpec
from cadenza.runner import context
from cadenza.sdk import deploying, git
from cadenza.sdk.git import without_credentials

NAMED = App("named", tags={"team": "a"})


@NAMED.function()
def work(x: int) -> int:
    return x


class Server(Recorder):
    """As `Recorder`; it also deploys."""

    def __init__(self, **failures: Exception) -> None:
        super().__init__(**failures)
        self.tags: dict[str, str] = {}
        self.changed = True

    async def _request(self, method: str, body: Any, payload: Any = ()) -> Any:
        if method in ("app.create", "app.publish", "object.missing", "object.put", "app.stop", "app.finish"):
            return await super()._request(method, body, payload)
        self.asked.append(method)
        self.bodies[method] = body
        if method in self.failures:
            raise self.failures[method]
        if method == "app.deploy":
            ids = {one.name: f"fu-{one.name}" for one in body.functions}
            return AppDeployed("ap-1", 3, self.changed, ids, self.warnings)
        if method == "app.set_tags":
            self.tags = body.tags
        if method == "function.list":
            return FunctionRows((FunctionRow("fu-work", "work"),))
        return AppInfo("ap-1", "named", "deployed", 5.0, tags=self.tags, version=3, deployed_at=7.0, deployed_by="me")


@pytest.fixture(autouse=True)
def fresh() -> Any:
    yield
    NAMED._app_id = NAMED._client = NAMED._deployed = NAMED._known = None
    work._init_handle()


def test_the_order_of_a_deploy() -> None:
    """Section 23: resolve, send, build, and only then deploy."""
    server = Server()
    assert NAMED.deploy(tag="t", strategy="recreate", client=server) is NAMED  # type: ignore[arg-type]
    kinds = [one for one in server.asked if one != "object.put"]
    assert kinds == ["object.missing", "image.build", "app.deploy"]
    body = server.bodies["app.deploy"]
    assert (body.name, body.tag, body.strategy, body.tags) == ("named", "t", "recreate", {"team": "a"})
    assert (body.environment, body.client_version, body.budget) == ("", cadenza.__version__, None)
    assert [one.name for one in body.functions] == ["work"]
    assert NAMED.app_id == "ap-1" and work.object_id == "fu-work" and work.is_hydrated


def test_a_build_that_fails_deploys_nothing() -> None:
    server = Server(**{"image.build": ImageBuildError("no")})
    with pytest.raises(ImageBuildError):
        NAMED.deploy(client=server)  # type: ignore[arg-type]
    assert "app.deploy" not in server.asked and NAMED.app_id is None and not work.is_hydrated


@pytest.mark.parametrize(
    ("app", "more", "words"),
    [
        (App(), {}, r'App\("my-app"\)'),
        (App("a b"), {}, "letters"),
        (App("x" * 65), {}, "64"),
        (App("fine"), {"name": ""}, "letters"),
        (App("fine"), {"name": "ap-" + "a" * 22}, "id"),
        (App("fine"), {"tag": "x" * 51}, "50"),
        (App("fine"), {"strategy": "blue"}, "recreate"),
    ],
)
def test_what_can_never_be_deployed_asks_nobody(app: App, more: dict[str, Any], words: str) -> None:
    """Section 34: app.deploy() without a name is an InvalidError with examples."""
    server = Server()
    with pytest.raises(InvalidError, match=words):
        app.deploy(client=server, **more)  # type: ignore[arg-type]
    assert server.asked == []


def test_name_and_environment_can_be_given() -> None:
    server = Server()
    App("x" * 64).deploy(client=server)  # type: ignore[arg-type]
    App().deploy(name="given", environment_name="dev", tag="y" * 50, client=server)  # type: ignore[arg-type]
    assert (server.bodies["app.deploy"].name, server.bodies["app.deploy"].environment) == ("given", "dev")


def test_no_deploy_in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "container", lambda: context.Container("ta-1"))
    with pytest.raises(InvalidError, match="__main__"):
        NAMED.deploy()
    monkeypatch.setattr(deploying, "current_input_id", lambda: "in-1")
    with pytest.raises(InvalidError, match="in a container"):
        NAMED.deploy()


def test_a_deployed_app_can_also_be_run_and_comes_back_after_it() -> None:
    server = Server()
    NAMED.deploy(client=server)  # type: ignore[arg-type]
    with NAMED.run(client=server):  # type: ignore[arg-type]
        assert server.asked.count("app.create") == 1
        with pytest.raises(InvalidError, match="outside"):
            NAMED.deploy(client=server)  # type: ignore[arg-type]
    assert NAMED.app_id == "ap-1" and work.is_hydrated


def test_stop_ends_what_was_deployed() -> None:
    server = Server()
    NAMED.deploy(client=server)  # type: ignore[arg-type]
    NAMED.stop()
    assert server.asked[-1] == "app.stop" and NAMED.app_id is None and not work.is_hydrated
    with pytest.raises(InvalidError, match="nothing to stop"):
        NAMED.stop()


def test_a_stop_that_fails_changes_nothing() -> None:
    server = Server(**{"app.stop": ConflictError("no")})
    NAMED.deploy(client=server)  # type: ignore[arg-type]
    with pytest.raises(ConflictError):
        NAMED.stop()
    assert NAMED.app_id == "ap-1"


def test_warnings_of_the_server_are_shown() -> None:
    server = Server()
    server.warnings = ("mind the gap",)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        NAMED.deploy(client=server)  # type: ignore[arg-type]
    assert [(one.category, str(one.message)) for one in caught] == [(ServerWarning, "mind the gap")]


def test_tags_of_an_app_on_the_server() -> None:
    server = Server()
    app = App("tagged", tags={"a": "b"})
    assert app.get_tags() == {"a": "b"}
    app.set_tags({"c": "d"})
    assert app.get_tags() == {"c": "d"} and server.asked == []
    app.deploy(client=server)  # type: ignore[arg-type]
    app.set_tags({"e": "f"})
    assert server.tags == {"e": "f"} and app.get_tags() == {"e": "f"}
    with pytest.raises(InvalidError):
        app.set_tags({"e": "no good"})


def test_lookup_gives_an_app_and_info_says_how_it_is() -> None:
    server = Server()
    app = App.lookup("named", client=server, create_if_missing=True)  # type: ignore[arg-type]
    body = server.bodies["app.lookup"]
    assert (body.name, body.environment, body.create_if_missing) == ("named", "", True)
    found = app.info()
    assert (found.app_id, found.functions) == ("ap-1", {"work": "fu-work"})
    assert (found.lifecycle.state.value, found.lifecycle.version, found.lifecycle.deployed_by) == ("deployed", 3, "me")
    assert found.lifecycle.deployed_at is not None and found.lifecycle.deployed_at.timestamp() == 7.0
    before = len(server.asked)
    assert app.info() is found and len(server.asked) == before
    assert app.info(refresh=True) == found and len(server.asked) > before
    with pytest.raises(InvalidError):
        App.lookup("a b", client=server)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="neither runs nor is deployed"):
        App("nowhere").info()


# --- budgets ---


def test_a_budget_travels_with_the_app() -> None:
    server = Server()
    app = App("rich", budget=Budget(container_seconds=60, money=2.5, per="day"))
    app.deploy(client=server)  # type: ignore[arg-type]
    assert server.bodies["app.deploy"].budget == BudgetSpec(60.0, 2.5, "day")
    with App("rich", budget=Budget(money=1)).run(client=server):  # type: ignore[arg-type]
        assert server.bodies["app.create"].budget == BudgetSpec(0.0, 1.0, "")


@pytest.mark.parametrize(
    "given",
    [
        {}, {"container_seconds": 0}, {"money": -1}, {"money": float("inf")}, {"money": float("nan")},
        {"money": True}, {"money": "3"}, {"money": 1, "per": "week"}, {"per": "day"},
    ],
)  # fmt: skip
def test_what_is_no_budget(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="Budget"):
        Budget(**given)
    with pytest.raises(InvalidError, match="budget must be a Budget"):
        App(budget=given)  # type: ignore[arg-type]


def test_budgets_are_values() -> None:
    assert Budget(money=1) == Budget(money=1.0) != Budget(money=1, per="day")
    assert repr(Budget(money=1, per="day")) == "Budget(money=1.0, per='day')"
    assert len({Budget(money=1), Budget(money=1)}) == 1


# --- git ---


def run_git(directory: Path, *arguments: str) -> None:
    identity = {
        "GIT_AUTHOR_NAME": "A B",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "c",
        "GIT_COMMITTER_EMAIL": "d",
    }
    environ = {"PATH": os.environ["PATH"], "HOME": str(directory), **identity}
    subprocess.run(["git", *arguments], cwd=directory, check=True, capture_output=True, env=environ)


def test_the_commit_of_a_directory(tmp_path: Path) -> None:
    run_git(tmp_path, "init", "-q", "-b", "trunk")
    assert git.describe(str(tmp_path)).commit == ""  # there is none yet
    (tmp_path / "a.py").write_text("1")
    run_git(tmp_path, "add", "a.py")
    run_git(tmp_path, "commit", "-q", "-m", "One thing\n\nand its reason")
    run_git(tmp_path, "remote", "add", "origin", "https://user:hidden@host.example/a/b.git")
    (tmp_path / "new").write_text("not tracked")
    (tmp_path / "sub").mkdir()
    found = git.describe(str(tmp_path / "sub"))
    assert len(found.commit) == 40
    assert (found.branch, found.dirty, found.author, found.message) == ("trunk", False, "A B <a@b>", "One thing")
    assert found.repository == "https://host.example/a/b.git"
    (tmp_path / "a.py").write_text("2")
    assert git.describe(str(tmp_path)).dirty
    run_git(tmp_path, "checkout", "-q", "--detach")
    assert git.describe(str(tmp_path)).branch == ""


def test_without_git_or_a_repository_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = type(git.describe("/"))()
    assert git.describe(str(tmp_path)) == nothing
    assert git.describe(str(tmp_path / "none")) == nothing
    assert git.describe(str(tmp_path), limit_s=0.0) == nothing
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git.describe(str(Path(__file__).parent)) == nothing


def test_a_slow_git_does_not_hold_a_deploy_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Optional[float]] = []

    def slow(*args: Any, timeout: Optional[float] = None, **kwargs: Any) -> Any:
        limits.append(timeout)
        raise subprocess.TimeoutExpired("git", timeout or 0.0)

    monkeypatch.setattr(git.subprocess, "run", slow)
    assert git.describe(str(tmp_path)).commit == ""
    assert len(limits) == 1 and limits[0] is not None and limits[0] <= git.LIMIT_S


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://token@host/a", "https://host/a"),
        ("https://a:b@c@host:8443/a@b", "https://host:8443/a@b"),
        ("git@host:a/b.git", "git@host:a/b.git"),
        ("/srv/repo", "/srv/repo"),
        ("", ""),
    ],
)
def test_no_credentials_in_a_repositorys_address(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
