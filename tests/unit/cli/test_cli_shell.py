"""What a shell's container is, and words that are refused before anything starts. Source: semantics.md section 23."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from cadenza.base.resources import Resources
from cadenza.cli import connection, shell
from cadenza.cli.main import cli
from cadenza.protocol.images import ImageFind
from cadenza.protocol.nodes import ImageInfo
from cadenza.protocol.objects import (
    FileEntry,
    FunctionSpec,
    ImageSpec,
    ImageStep,
    MethodSpec,
    ParameterSpec,
    RetryPolicy,
    SecretRef,
)
from cadenza.sdk import publish, source

SPEC = FunctionSpec(
    name="Till.*", module="shop", qualname="Till", serialized="abc", is_generator=True, is_async=True,
    image=ImageSpec((ImageStep("base"),)), files=(FileEntry("/root/shop.py", "d", 3),), env={"A": "1"},
    secrets=(SecretRef("st-1"),), resources=Resources(cpu_milli=500), timeout_s=5, retries=RetryPolicy(3),
    min_containers=0, max_containers=9, buffer_containers=2, single_use=True, max_concurrent=7, target_concurrent=5,
    batch_max=4, batch_wait_ms=9, methods=(MethodSpec("add"),), class_parameters=(ParameterSpec("x", "int"),),
    parameters='{"x":1}', restricted=True, options={"region": "eu", "schedule": "{}"},
)  # fmt: skip


def test_all_of_the_function_but_its_code() -> None:
    held = shell.holding(SPEC, "")
    same = ("image", "files", "env", "secrets", "resources", "restricted", "block_network", "startup_timeout_s")
    assert all(getattr(held, name) == getattr(SPEC, name) for name in same)
    assert (held.module, held.qualname, held.serialized, held.methods) == ("cadenza.runner.hold", "hold", "", ())
    assert (held.min_containers, held.max_containers, held.retries, held.batch_max) == (1, 1, None, 0)
    assert held.timeout_s == shell.LIMIT_S == 3600 and held.options == {"region": "eu"}
    assert shell.holding(SPEC, "strong").isolation == "strong"


def test_an_image_by_its_id() -> None:
    spec = ImageSpec((), built="im-0123456789012345678901")
    assert spec.image_id() == "im-0123456789012345678901"
    assert ImageSpec((ImageStep("base"),)).image_id() == ImageSpec((ImageStep("base"),), built="").image_id()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--cpu", "2", "ta-1"], 2, "--cpu is for a shell without REF"),
        (["--secret", "s", "im-1"], 2, "--secret is for a shell without REF"),
        (["--cpu", "0"], 2, "--cpu"),
        (["--cmd", ""], 2, "at least its program's name"),
        (["--cmd", "a 'b"], 2, "cannot be split"),
        (["--runtime", "vm"], 2, "not built"),
        (["nowhere.py"], 2, "no such file: nowhere.py"),
        (["sb-1"], 1, "sandboxes are not built yet"),
        (["--image", "a:b"], 1, "not built yet"),
        (["--volume", "v"], 1, "volumes are not built yet"),
        (["--gpu", "H100:x"], 1, "gpu"),
    ],
)
def test_words_that_are_refused(words: list[str], code: int, sentence: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CADENZA_HOME", str(tmp_path))
    done = CliRunner().invoke(cli, ["shell", *words])
    assert done.exit_code == code and sentence in done.output, done.output
    assert not list(tmp_path.iterdir())


def test_the_image_is_built_where_the_shell_is(monkeypatch: Any) -> None:
    """Stored secrets of build steps are those of the environment that ``--env`` names."""
    seen: list[str] = []

    async def built(client: Any, specs: Any, progress: Any, force: bool, environment: str = "") -> None:
        seen.append(environment)

    async def ready(*rest: Any) -> str:
        return "ta-1"

    async def sent(*rest: Any) -> None:
        pass

    async def connected(start: bool) -> Any:
        return SimpleNamespace(_request=sent)

    monkeypatch.setattr(publish, "build_all", built)
    monkeypatch.setattr(source, "upload", sent)
    monkeypatch.setattr(connection, "client", connected)
    monkeypatch.setattr(shell, "_ready", ready)
    started = shell._start("ap-1", shell._declared({}), None, "staging", "", publish.Quiet())
    assert asyncio.run(started) == "ta-1" and seen == ["staging"]


def test_an_image_is_named_as_everywhere(tmp_path: Any, monkeypatch: Any) -> None:
    """By its id, the beginning of one, or a name: the server says which image that is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").touch()
    for word in ("im-0123456", "tool", "tool:v1", "dev/tool:v1"):
        assert shell.names_image(word, False)
    for word in ("", "shop.py", "none.py", "shop", "none.py::f", "./tool", "/tool"):
        assert not shell.names_image(word, False)
    assert not shell.names_image("shop", True)
    whole = "im-0123456789012345678901"
    asked: list[Any] = []
    published: list[Any] = []

    async def request(method: str, body: Any) -> Any:
        if method == "image.find":
            asked.append(body)
            return ImageInfo(whole, 1, 0.0, 0.0)
        published.extend(body.functions)
        return None

    async def connected(start: bool) -> Any:
        return SimpleNamespace(_request=request)

    async def ready(used: Any, app_id: str, spec: FunctionSpec) -> str:
        return "ta-1"

    monkeypatch.setattr(connection, "client", connected)
    monkeypatch.setattr(shell, "_ready", ready)
    started = shell._start("ap-1", shell._declared({}), ImageFind("im-0123456"), "main", "", publish.Quiet())
    assert asyncio.run(started) == "ta-1"
    assert asked == [ImageFind("im-0123456")] and [one.image.image_id() for one in published] == [whole]
