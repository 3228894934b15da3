"""Images where no container can be made."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cadenza.agent.bare import BareImages
from cadenza.base.clock import ManualClock
from cadenza.base.errors import ImageBuildError, NotFoundError
from cadenza.protocol.nodes import BuildLine, BuildOrder, ImageInfo
from cadenza.protocol.objects import ImageSpec, ImageStep

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def build(store: BareImages, *steps: ImageStep, force: bool = False) -> tuple[ImageInfo, list[BuildLine]]:
    spec = ImageSpec(steps)
    lines: list[BuildLine] = []
    order = BuildOrder(spec.image_id(), spec, force)
    return asyncio.run(store.build(order, lines.append, None, lambda digest: None)), lines


def test_variables_and_the_working_directory_are_kept(tmp_path: Path) -> None:
    clock = ManualClock()
    store = BareImages(str(tmp_path), clock)
    steps = (
        ImageStep("base", options={"python": HERE}),
        ImageStep("env", env={"A": "1"}),
        ImageStep("workdir", ("/w",)),
    )
    info, lines = build(store, *steps)
    assert (info.env, info.workdir, info.python) == ({"A": "1"}, "/w", HERE)
    assert [one.text for one in lines if one.kind == "step"] == ["base", "env", "workdir"]
    assert store.python(info.image_id) == sys.executable
    _, again = build(store, *steps)
    assert [one.kind for one in again] == ["cached"]
    store.touch(info.image_id, clock.now() + 5)
    assert store.images()[0].used_at == clock.now() + 5
    assert BareImages(str(tmp_path)).image(info.image_id) is not None
    store.remove(info.image_id)
    with pytest.raises(NotFoundError):
        store.remove(info.image_id)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (ImageStep("apt", ("git",)), "without containers.*'apt'.*doctor"),
        (ImageStep("run", ("make",)), "without containers.*'run'.*doctor"),
        (ImageStep("base", options={"python": "3.99"}), r"3\.99.*doctor"),
    ],
)
def test_what_needs_a_root_file_system_is_refused_and_nothing_stays(tmp_path: Path, step: Any, words: str) -> None:
    store = BareImages(str(tmp_path))
    with pytest.raises(ImageBuildError, match=words) as caught:
        build(store, step)
    assert caught.value.image_id == ImageSpec((step,)).image_id()
    assert os.listdir(tmp_path / "venvs") == []


def test_what_a_killed_process_left_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "venvs" / "im-half").mkdir(parents=True)
    store = BareImages(str(tmp_path))
    store.cleanup()
    assert os.listdir(tmp_path / "venvs") == []
