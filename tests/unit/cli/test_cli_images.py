"""``cadenza image``: what the server is asked, and how its answers look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cadenza.cli import image_names, images as module
from cadenza.cli.images import image
from cadenza.protocol.images import (
    Collected, ImageCollect, ImageFind, ImageLog, ImageLogQuery, ImageName, ImageNameList, ImageNameRef,
    ImageNames, ImagePush, ImagePushed, ImageRemove,
)  # fmt: skip
from cadenza.protocol.method import Empty
from cadenza.protocol.nodes import ImageDetail, ImageInfo, ImageLayer, ImageLogLine
from cadenza.protocol.objects import SecretRef

INFO = ImageInfo("im-1", 1 << 20, 1.0, 2.0, "pip install x", python="3.11", entries=7, tree="ab" * 32)
WHOLE = "im-" + "A" * 22


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the server is asked, instead of asking it."""
    said: list[Any] = []
    name = ImageName("tool", "v1", "main", "im-1", 1.0, "me")
    replies = {
        "image.find": INFO,
        "image.inspect": ImageDetail(INFO, (ImageLayer("RUN x", "cd" * 32, 5, 2, 1.5, 1.0),), names=("main/tool:v1",)),
        "image.log": ImageLog((ImageLogLine("a\n", 1.0, "RUN x"), ImageLogLine("b", 1.0, "RUN y"))),
        "image.names": ImageNames((name,)),
        "image.history": ImageNames((name, name)),
        "image.collect": Collected(("im-1",), 3, 300, 5, 500, False, ("im-2 is in use by a container",)),
    }

    def ask(method: str, request: Any) -> Any:
        said.append((method, request))
        return replies.get(method, Empty())

    def listen(method: str, request: Any) -> Any:
        said.append((method, request))
        return iter([(ImagePushed(("layer 1",)), b""), (ImagePushed((), "sha256:00"), b"")])

    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(image_names, "ask", ask)
    monkeypatch.setattr(module, "listen", listen)
    return said


def ran(*words: str, env: dict[str, str] | None = None, code: int = 0) -> str:
    result = CliRunner().invoke(image, words, env=env)
    assert result.exit_code == code, result.output
    return result.output


def test_an_image_is_named_by_id_or_name(asked: list[Any]) -> None:
    for word, meant in (
        ("im-abc", ImageFind("im-abc")),
        ("tool:v1", ImageFind("", "tool:v1", "")),
        ("dev/tool", ImageFind("", "tool", "dev")),
    ):
        ran("inspect", word)
        assert asked[-1] == ("image.inspect", meant)
    ran("inspect", "tool", "-e", "test")
    assert asked[-1][1] == ImageFind("", "tool", "test")


def test_inspect_shows_facts_and_layers(asked: list[Any]) -> None:
    text = ran("inspect", "im-1")
    assert "main/tool:v1" in text and "RUN x" in text and "1.5" in text
    found = json.loads(ran("inspect", "im-1", "--json"))
    assert found["image_id"] == "im-1" and found["entries"] == 7
    layer = found["layers"][0]
    assert (layer["size"], layer["seconds"], layer["digest"]) == (5, 1.5, "cd" * 32)
    assert "cd" * 32 not in text


def test_logs_of_a_whole_id_need_no_image(asked: list[Any]) -> None:
    """The log of a build that failed is there too."""
    text = ran("logs", WHOLE, "--layers", "2")
    assert asked == [("image.log", ImageLogQuery(WHOLE, 2))]
    assert text == "=> RUN x\na\n=> RUN y\nb\n"
    ran("logs", "tool", "--all")
    assert asked[-1] == ("image.log", ImageLogQuery("im-1", 0))


def test_rm_asks_before(asked: list[Any]) -> None:
    assert CliRunner().invoke(image, ["rm", "im-1"], input="n\n").exit_code == 1
    assert not [one for one in asked if one[0] == "image.remove"]
    ran("rm", "im-1", "tool", "-y", "--force")
    assert [one for one in asked if one[0] == "image.remove"] == [("image.remove", ImageRemove("im-1", True))]


def test_gc_says_what_goes_and_what_stays(asked: list[Any]) -> None:
    text = ran("gc")
    assert asked == [("image.collect", ImageCollect(False, -1.0))]
    assert "Removed im-1." in text and "3 objects" in text and "im-2 is in use" in text
    found = json.loads(ran("gc", "--dry-run", "--unused-days", "0", "--json"))
    assert asked[-1][1] == ImageCollect(True, 0.0)
    ran("gc", "--remote")
    assert asked[-1][1] == ImageCollect(remote=True)
    assert found["images"] == ["im-1"] and found["size"] == 300


def test_push_with_credentials(asked: list[Any]) -> None:
    text = ran("push", "tool", "127.0.0.1:5000/tool:1", "--registry-secret", "registry", "-e", "dev")
    ref = "127.0.0.1:5000/tool:1"
    assert asked[-1] == ("image.push", ImagePush("im-1", ref, (SecretRef(name="registry"),), "dev"))
    assert "layer 1" in text and f"{ref}@sha256:00" in text
    ran("push", "tool", ref, "--registry-secret-from-env", "A_USER,A_WORD", env={"A_USER": "u", "A_WORD": "w"})
    assert asked[-1][1].secrets == (SecretRef(values={"A_USER": "u", "A_WORD": "w"}),)
    assert "NOT_SET_X" in ran("push", "tool", ref, "--registry-secret-from-env", "NOT_SET_X", code=2)
    both = ("--registry-secret", "a", "--registry-secret-from-env", "b")
    assert "one of the two" in ran("push", "tool", ref, *both, code=2)


def test_names(asked: list[Any]) -> None:
    assert "tool" in ran("names", "list", "--prefix", "t", "-e", "dev")
    assert asked[-1] == ("image.names", ImageNameList("dev", "t"))
    ran("names", "delete", "dev/tool:v1", "-y")
    assert asked[-1] == ("image.unpublish", ImageNameRef("tool:v1", "dev"))
    assert len(json.loads(ran("names", "history", "tool", "--json"))) == 2


class Recipe:
    """An image of the SDK that is built at once."""

    object_id = "im-9"
    made: list[tuple[Any, ...]] = []

    @staticmethod
    def from_dockerfile(path: Path, **more: Any) -> Recipe:
        Recipe.made.append((path, more))
        return Recipe()

    @staticmethod
    def from_registry(ref: str, secret: Any, **more: Any) -> Recipe:
        Recipe.made.append((ref, secret, more))
        return Recipe()

    def build(self) -> None:
        Recipe.made.append(("build",))

    def publish(self, name: str, environment_name: str | None = None) -> None:
        Recipe.made.append(("publish", name, environment_name))


def test_build_and_pull_use_the_sdks_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cadenza.sdk import image as sdk

    monkeypatch.setattr(sdk, "Image", Recipe)
    monkeypatch.setattr(Recipe, "made", [])
    assert "there is no" in ran("build", str(tmp_path), "-t", "tool", code=2)
    assert "im-" in ran("build", str(tmp_path), "-t", "im-x", code=2)
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    assert ran("build", str(tmp_path), "-t", "tool:v2", "--force-build", "-e", "dev") == "im-9 is tool:v2 now\n"
    path, more = Recipe.made[0]
    assert path == tmp_path / "Dockerfile" and more["context_dir"] == tmp_path and more["force_build"] is True
    assert Recipe.made[1:] == [("build",), ("publish", "tool:v2", "dev")]
    assert ran("pull", "127.0.0.1:5000/x") == "im-9\n"
    assert Recipe.made[3:] == [("127.0.0.1:5000/x", None, {"force_build": False}), ("build",)]
    ran("pull", "x", "--name", "dev/y")
    assert Recipe.made[-1] == ("publish", "dev/y", None)
