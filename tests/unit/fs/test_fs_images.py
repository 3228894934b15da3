"""The store of images, with a base that is made in no time and steps that are run by a fake."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import threading
import stat
import time
import zipfile
from pathlib import Path
from typing import Any, Callable

import pytest

from cadenza.base.clock import ManualClock
from cadenza.base.errors import ImageBuildError, InvalidError, NotFoundError, ResourceExhaustedError
from cadenza.fs import debian, recipe, workplace
from cadenza.fs import tree as trees
from cadenza.fs.images import ImageStore, Lowers, StepRun
from cadenza.fs.step import MOST_LINES, Lines
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from cadenza.protocol.nodes import BuildLine, BuildOrder, CollectOrder, CollectReport
from cadenza.protocol.objects import FileEntry, ImageSpec, ImageStep

BASE = ImageStep("base", options={"distribution": "debian_slim", "python": "3.11"})


@pytest.fixture(autouse=True)
def quick_base(monkeypatch: pytest.MonkeyPatch) -> None:
    async def build_base(
        root: str, python: str | None, cache: str, settings: str, environ: Any, progress: Callable[[str], None]
    ) -> debian.Base:
        for name in ("usr/bin", "root"):
            os.makedirs(os.path.join(root, name))
        Path(root, "usr/bin/python3").write_text(python or "")
        progress("made")
        return debian.Base("/usr/bin/python3", python or "", "debian", "bookworm", debian.Timings())

    monkeypatch.setattr(debian, "build_base", build_base)


class Steps:
    """Runs a step by writing what it was told to run; `codes` says how commands end."""

    def __init__(self) -> None:
        self.runs: list[StepRun] = []
        self.codes: dict[str, int] = {}
        self.wait: asyncio.Event | None = None

    async def __call__(self, step: StepRun) -> int:
        self.runs.append(step)
        if self.wait is not None:
            await self.wait.wait()
        step.output(b"half ")
        step.output(b"a line\nprogress 1\rprogress 2\nno end")
        Path(step.upper, f"ran{len(self.runs)}").write_text(step.argv[-1])
        return self.codes.get(step.argv[-1], 0)


class FakeMounts:
    """`cadenza.fs.mount.Mounts` by names alone."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def show(self, tree: bytes, root: Node | None = None) -> str:
        self.store.tree(tree)
        return tree.hex()

    def hold(self, found: Any) -> Any:
        return contextlib.nullcontext()

    @property
    def held(self) -> set[bytes]:
        return set()

    def keep(self, found: Any) -> None:
        return

    def lowers(self, found: Any) -> Lowers:
        return Lowers(tuple(self.show(one) for one in found), (self.store.objects,))


class Images(ImageStore):
    """With what tests look at."""

    def __init__(self, path: Path, environ: dict[str, str]) -> None:
        self.content = Store(str(path / "store"))
        mounts: Any = FakeMounts(self.content)
        super().__init__(str(path), self.content, mounts, environ=environ, clock=ManualClock())

    def whole(self, image_id: str) -> Node:
        info = self.image(image_id)
        assert info is not None
        return self.content.tree(bytes.fromhex(info.tree))

    def text(self, image_id: str, path: str) -> str | None:
        node = trees.find(self.whole(image_id), path.encode())
        return None if node is None else Path(self.content.path(node.data)).read_text() if node.data else ""


def store_at(path: Path, **environ: str) -> Images:
    return Images(path, {"PATH": "/usr/bin:/bin", **environ})


def left(path: Path) -> list[str]:
    """What builds have left in their workplace."""
    return os.listdir(path / "store/work")


def layers(path: Path) -> int:
    return len(os.listdir(path / "store/steps"))


def spec(*steps: ImageStep) -> ImageSpec:
    return ImageSpec((BASE, *steps))


def run(*commands: str, **more: Any) -> ImageStep:
    return ImageStep("run", args=commands, **more)


async def make(
    store: ImageStore, wanted: ImageSpec, steps: Steps, lines: list[BuildLine] | None = None, force: bool = False
) -> str:
    order = BuildOrder(wanted.image_id(), wanted, force)
    info = await store.build(order, (lines if lines is not None else []).append, steps, lambda digest: None)
    await store.close()
    return info.image_id


def test_an_image_is_made_kept_and_found_again(tmp_path: Path) -> None:
    store, steps = store_at(tmp_path), Steps()
    lines: list[BuildLine] = []
    wanted = spec(ImageStep("env", env={"A": "b"}), run("one", "two"), ImageStep("workdir", args=("/w",)))
    image_id = asyncio.run(make(store, wanted, steps, lines))
    assert [one.argv[-1] for one in steps.runs] == ["one", "two"]
    assert [(one.kind, one.step, one.steps, one.text) for one in lines if one.kind == "log"][1:4] == [
        ("log", 3, 4, "half a line"), ("log", 3, 4, "progress 2"), ("log", 3, 4, "no end"),
    ]  # fmt: skip
    assert store.text(image_id, "/usr/bin/python3") == "3.11" and store.text(image_id, "/ran2") == "two"
    work = trees.find(store.whole(image_id), b"/w")
    assert work is not None and work.is_dir and layers(tmp_path) == 3
    info = store.image(image_id)
    assert info is not None and (info.workdir, info.python, info.env["A"]) == ("/w", "3.11", "b")
    assert store.settings(image_id).python == "/usr/bin/python3"
    later = store_at(tmp_path)
    assert later.images() == [info] and later.whole(image_id) == store.whole(image_id)
    assert later.settings(image_id) == store.settings(image_id)
    assert asyncio.run(make(later, wanted, steps)) == image_id and len(steps.runs) == 2


def test_every_command_names_the_base_s_own_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standalone Python is in /usr/local: that is known once the base is made, and holds for all steps after it."""
    quick = debian.build_base

    async def standalone(*args: Any) -> debian.Base:
        return dataclasses.replace(await quick(*args), python="/usr/local/bin/python3")

    monkeypatch.setattr(debian, "build_base", standalone)
    steps = Steps()
    wanted = spec(ImageStep("pip", args=("one",)), ImageStep("pip", args=("two",)), ImageStep("pip", args=("three",)))
    asyncio.run(make(store_at(tmp_path), wanted, steps))
    assert [one.argv[0] for one in steps.runs] == ["/usr/local/bin/python3"] * 3


def test_a_step_sees_the_layers_below_and_the_host_s_network_settings(tmp_path: Path) -> None:
    bundle = tmp_path / "own.pem"
    bundle.write_text("certificate")
    store, steps = store_at(tmp_path / "data", SSL_CERT_FILE=str(bundle), https_proxy="http://proxy.test"), Steps()
    image_id = asyncio.run(make(store, spec(run("one"), run("two", secrets={"KEY": "s"})), steps))
    first, second = steps.runs
    assert first.lowers.layers == second.lowers.layers[1:] and len(second.lowers.layers) == 2
    assert second.lowers.data == (store.content.objects,)
    assert second.env["KEY"] == "s" and "KEY" not in first.env and second.env["https_proxy"] == "http://proxy.test"
    assert second.env["SSL_CERT_FILE"] == "/.cadenza/build/certificates.pem"
    info = store.image(image_id)
    assert info is not None and set(info.env) == {"PATH", "LANG"}
    assert {one.target for one in first.binds} <= {"/.cadenza/build", "/etc/resolv.conf", "/etc/hosts"}
    assert all(one.read_only for one in first.binds)


def test_equal_layers_are_made_once_by_builds_side_by_side(tmp_path: Path) -> None:
    store, steps = store_at(tmp_path), Steps()
    lines: tuple[list[BuildLine], list[BuildLine]] = ([], [])

    async def both() -> None:
        steps.wait = asyncio.Event()
        first = asyncio.ensure_future(make(store, spec(run("same"), run("a")), steps, lines[0]))
        while not steps.runs:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        second = asyncio.ensure_future(make(store, spec(run("same"), run("b")), steps, lines[1]))
        await asyncio.sleep(0.01)
        steps.wait.set()
        await asyncio.gather(first, second)

    asyncio.run(both())
    assert sorted(one.argv[-1] for one in steps.runs) == ["a", "b", "same"]
    for seen in lines:
        assert next(one.text for one in seen if one.step == 2 and one.kind == "log") == "half a line"


def test_who_waits_takes_over_when_the_maker_is_cancelled(tmp_path: Path) -> None:
    store, steps = store_at(tmp_path), Steps()

    async def go() -> str:
        steps.wait = asyncio.Event()
        first = asyncio.ensure_future(make(store, spec(run("same")), steps))
        while not steps.runs:
            await asyncio.sleep(0.001)
        second = asyncio.ensure_future(make(store, spec(run("same")), steps))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        steps.wait.set()
        return await second

    image_id = asyncio.run(go())
    assert len(steps.runs) == 2 and store.text(image_id, "/ran2") == "same"
    assert left(tmp_path) == [] and layers(tmp_path) == 2


def test_who_waits_hears_of_the_same_failure(tmp_path: Path) -> None:
    store, steps = store_at(tmp_path), Steps()
    steps.codes["bad"] = 7

    async def go() -> list[Any]:
        steps.wait = asyncio.Event()
        work = [asyncio.ensure_future(make(store, spec(run("bad")), steps)) for _ in range(2)]
        while not steps.runs:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        steps.wait.set()
        return await asyncio.gather(*work, return_exceptions=True)

    errors = asyncio.run(go())
    assert [type(one) for one in errors] == [ImageBuildError] * 2 and len(steps.runs) == 1


@pytest.mark.parametrize(("code", "words"), [(3, "exit code 3"), (137, "signal 9")])
def test_a_failing_step_keeps_what_came_before_and_nothing_else(tmp_path: Path, code: int, words: str) -> None:
    """semantics.md 13.1: ImageBuildError has the image's id."""
    store, steps = store_at(tmp_path), Steps()
    steps.codes["bad"] = code
    wanted = spec(run("good"), run("bad", "never"))
    with pytest.raises(ImageBuildError, match=words) as caught:
        asyncio.run(make(store, wanted, steps))
    assert caught.value.image_id == wanted.image_id() and "no end" in str(caught.value) and "bad" in str(caught.value)
    assert left(tmp_path) == [] and layers(tmp_path) == 2
    assert store.images() == []
    del steps.codes["bad"]
    asyncio.run(make(store, wanted, steps))
    assert [one.argv[-1] for one in steps.runs] == ["good", "bad", "bad", "never"]


def test_force_makes_anew_and_leaves_running_containers_their_layers(tmp_path: Path) -> None:
    """13.1: force rebuilds that step and all after it; 13.1: MODAL_FORCE_BUILD all."""
    store, steps = store_at(tmp_path), Steps()
    wanted = spec(run("a"), run("b"))
    image_id = asyncio.run(make(store, wanted, steps))
    before = store.whole(image_id)
    lowers = asyncio.run(store.lend(image_id))
    assert asyncio.run(make(store, spec(run("a"), run("b", force=True)), steps)) == image_id
    after = store.whole(image_id)
    assert before != after and [one.argv[-1] for one in steps.runs] == ["a", "b", "b"]
    asyncio.run(make(store, wanted, steps, force=True))
    assert [one.argv[-1] for one in steps.runs][3:] == ["a", "b"]
    assert store.content.tree(bytes.fromhex(lowers.layers[0])) == before
    store.give_back(image_id)


def test_a_removed_image_leaves_steps_for_others(tmp_path: Path) -> None:
    store, steps = store_at(tmp_path), Steps()
    first = asyncio.run(make(store, spec(run("a"), run("b")), steps))
    second = asyncio.run(make(store, spec(run("a")), steps))
    store.remove(first)
    assert [one.image_id for one in store.images()] == [second] and store.text(second, "/ran1") == "a"
    store.remove(second)
    assert store_at(tmp_path).images() == []
    for call in (store.remove, store.settings, lambda image_id: asyncio.run(store.lend(image_id))):
        with pytest.raises(NotFoundError):
            call(second)
    assert store.image(second) is None
    asyncio.run(make(store, spec(run("a")), steps))
    assert len(steps.runs) == 2


def test_an_image_whose_tree_is_gone_is_not_there(tmp_path: Path) -> None:
    store, steps = store_at(tmp_path), Steps()
    image_id = asyncio.run(make(store, spec(run("a")), steps))
    info = store.image(image_id)
    assert info is not None
    os.unlink(tmp_path / "store/trees" / info.tree)
    later = store_at(tmp_path)
    assert later.image(image_id) is None
    later.cleanup()
    assert asyncio.run(make(later, spec(run("a")), steps)) == image_id and len(steps.runs) == 1


def test_what_another_boot_did_not_settle_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of power may have torn what had no time to reach the disk; what was settled stays."""
    steps = Steps()
    first = store_at(tmp_path)
    settled = asyncio.run(make(first, spec(run("a")), steps))

    async def cut() -> None:
        order = BuildOrder(spec(run("b")).image_id(), spec(run("b")))
        await first.build(order, lambda line: None, steps, lambda digest: None)
        for task in first._later:
            task.cancel()

    asyncio.run(cut())
    monkeypatch.setattr("cadenza.fs.images.boot_id", lambda: "another")
    later = store_at(tmp_path)
    assert [one.image_id for one in later.images()] == [settled]
    later.cleanup()
    asyncio.run(make(later, spec(run("b")), steps))
    assert [one.argv[-1] for one in steps.runs] == ["a", "b", "b"]


def test_the_disk_s_end_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path)

    async def full(step: StepRun) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    wanted = spec(run("a"))
    with pytest.raises(ResourceExhaustedError, match="full"):
        asyncio.run(store.build(BuildOrder(wanted.image_id(), wanted), lambda line: None, full, lambda digest: None))
    assert left(tmp_path) == []


def test_a_step_without_end_is_a_failure(tmp_path: Path) -> None:
    store = store_at(tmp_path)

    async def slow(step: StepRun) -> int:
        raise TimeoutError

    wanted = spec(run("a"))
    with pytest.raises(ImageBuildError, match="did not end within 3600 s"):
        asyncio.run(store.build(BuildOrder(wanted.image_id(), wanted), lambda line: None, slow, lambda digest: None))


def test_what_was_not_uploaded_is_said(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    with pytest.raises(NotFoundError, match="/a was not uploaded"):
        asyncio.run(make(store, spec(ImageStep("copy", files=(FileEntry("/a", "d", 1),))), Steps()))
    assert left(tmp_path) == []
    with pytest.raises(InvalidError):
        asyncio.run(make(store, spec(ImageStep("unheard-of")), Steps()))


def test_use_is_noted(tmp_path: Path) -> None:
    store, steps = store_at(tmp_path), Steps()
    first, second = (asyncio.run(make(store, spec(run(name)), steps)) for name in "ab")
    store.touch(first, 2_000_000_000.0)
    assert [one.image_id for one in store.images()] == [first, second]
    assert [one.image_id for one in store_at(tmp_path).images()] == [first, second]


def pool(tmp_path: Path, updated: bool) -> Path:
    found = tmp_path / "cache/apt/debian-bookworm"
    for name in ("lists", "archives"):
        (found / name).mkdir(parents=True)
    (found / "lists/old_Packages").write_text("old")
    (found / "archives/a.deb").write_text("a")
    if updated:
        (found / "updated").touch()
        os.utime(found / "updated", (999_999_999, 999_999_999))
    return found


@pytest.mark.parametrize("updated", [True, False])
def test_apt_s_lists_are_fetched_when_they_are_old(tmp_path: Path, updated: bool) -> None:
    found, store = pool(tmp_path, updated), store_at(tmp_path)
    ran = []

    async def apt(step: StepRun) -> int:
        lent = {one.target: Path(one.source) for one in step.binds}
        ran.append(step.argv[1])
        if step.argv[1] == "update":
            (lent["/var/lib/apt/lists"] / "old_Packages").unlink()
            (lent["/var/lib/apt/lists"] / "new_Packages").write_text("new")
        else:
            assert (lent["/var/cache/apt/archives"] / "a.deb").exists()
            (lent["/var/cache/apt/archives"] / "b.deb").write_text("b")
        return 0

    wanted = spec(ImageStep("apt", args=("b",)))
    asyncio.run(store.build(BuildOrder(wanted.image_id(), wanted), lambda line: None, apt, lambda digest: None))
    assert ran == (["install"] if updated else ["update", "install"])
    lists = {one.name for one in (found / "lists").iterdir() if one.is_file()}
    assert lists == ({"old_Packages"} if updated else {"new_Packages"})
    assert (found / "archives/b.deb").read_text() == "b" and (found / "updated").exists()


def test_lists_that_turn_out_to_be_old_are_fetched_and_the_install_tried_again(tmp_path: Path) -> None:
    pool(tmp_path, True)
    store = store_at(tmp_path)
    ran = []

    async def apt(step: StepRun) -> int:
        ran.append(step.argv[1])
        if ran == ["install"]:
            step.output(b"E: Unable to locate package b\n")
            return 100
        return 0

    wanted = spec(ImageStep("apt", args=("b",)))
    asyncio.run(store.build(BuildOrder(wanted.image_id(), wanted), lambda line: None, apt, lambda digest: None))
    assert ran == ["install", "update", "install"]


def test_uv_is_fetched_once_where_the_host_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "host_uv", lambda environ: None)
    store = store_at(tmp_path)
    ran: list[StepRun] = []

    async def step(one: StepRun) -> int:
        ran.append(one)
        for bind in one.binds:
            if bind.target == "/.cadenza/cache/tools":
                os.makedirs(bind.source + "/bin", exist_ok=True)
                Path(bind.source, "bin/uv").touch()
        return 0

    for name in ("a", "b"):
        wanted = spec(ImageStep("pip", args=(name,), options={"tool": "uv"}))
        asyncio.run(store.build(BuildOrder(wanted.image_id(), wanted), lambda line: None, step, lambda digest: None))
    assert [one.argv[-1] for one in ran] == ["uv", "a", "b"]
    assert {one.target for one in ran[2].binds} >= {"/.cadenza/uv", "/.cadenza/cache/uv"}


def on_disk(store: Images) -> int:
    return sum(len(files) for _, _, files in os.walk(store.content.objects))


def collect(store: Images, *gone: str) -> CollectReport:
    return asyncio.run(store.collect(CollectOrder(gone)))


def test_what_only_a_removed_image_had_goes_at_once(tmp_path: Path) -> None:
    """`image rm` right after the build frees what no other image has; what others have, steps included, stays."""
    store, steps = store_at(tmp_path), Steps()
    first = asyncio.run(make(store, spec(run("a"), run("b")), steps))
    second = asyncio.run(make(store, spec(run("a"), run("c")), steps))
    time.sleep(0.06)
    assert collect(store).objects == 0 and layers(tmp_path) == 4
    before = on_disk(store)
    report = collect(store, first)
    assert report.images == (first,) and report.objects == before - on_disk(store) == 1 and layers(tmp_path) == 3
    assert store.text(second, "/ran1") == "a" and store.text(second, "/ran3") == "c"
    assert collect(store, second).kept_objects == on_disk(store) == layers(tmp_path) == 0
    assert os.listdir(tmp_path / "store/trees") == []


def test_a_collection_takes_nothing_from_a_build_or_from_what_it_made_meanwhile(tmp_path: Path) -> None:
    store, steps = store_at(tmp_path), Steps()

    async def go() -> tuple[str, str]:
        first = await make(store, spec(run("a")), steps)
        time.sleep(0.06)
        steps.wait = asyncio.Event()
        building = asyncio.ensure_future(make(store, spec(run("a"), run("b")), steps))
        while len(steps.runs) < 2:
            await asyncio.sleep(0)
        await store.collect(CollectOrder((first,)))  # its step is the build's ground
        horizon = store.content.horizon()
        steps.wait.set()
        second = await building
        store.content.sweep([], horizon=horizon)  # one that began before the image was known
        return first, second

    first, second = asyncio.run(go())
    assert store.image(first) is None
    assert store.text(second, "/ran1") == "a" and store.text(second, "/ran2") == "b"


def test_a_clock_that_is_set_back_makes_nothing_old(tmp_path: Path) -> None:
    now = [1000.0]
    store = Store(str(tmp_path / "store"), clock=lambda: now[0])
    with store.pin():
        now[0] -= 500
        with store.draft() as draft:
            draft.write(b"x")
            data, _ = draft.commit()
        now[0] += 100
        store.sweep([], horizon=store.horizon())
        assert store.has(data)
    store.close()


def test_who_has_another_secret_does_not_hear_of_a_failure_with_the_first(tmp_path: Path) -> None:
    store, steps = store_at(tmp_path), Steps()

    class Login(Steps):
        async def __call__(self, step: StepRun) -> int:
            await super().__call__(step)
            await asyncio.sleep(0.3)
            return 0 if step.env["PASSWORD"] == "right" else 1

    steps = Login()

    async def go() -> list[object]:
        def build(password: str) -> asyncio.Task[str]:
            step = run("a", secrets={"PASSWORD": password}, secret_keys=("PASSWORD",))
            return asyncio.ensure_future(make(store, spec(step), steps))

        tasks = [build("wrong"), build("wrong")]
        while not steps.runs:
            await asyncio.sleep(0.001)
        tasks.append(build("right"))
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third = asyncio.run(go())
    assert isinstance(first, ImageBuildError) and isinstance(second, ImageBuildError) and isinstance(third, str)
    assert len(steps.runs) == 2


def test_secrets_of_several_lines_are_hidden_and_a_flood_of_lines_ends() -> None:
    shown: list[str] = []
    lines = Lines(shown.append, ['{\n  "private_key": "abc"\n}', "pass"])
    lines.feed(b'{\n  "private_key": "abc"\n}\nword pass\n')
    assert shown == ["{", "  ***", "}", "word ***"]
    lines.feed(b"y\n" * (MOST_LINES + 1000) + b"the last\n")
    lines.feed(b"z\n" * 100)
    assert len(shown) == MOST_LINES and "not shown" in shown[-1] and set(lines.last) == {"z"}


def test_a_full_disk_does_not_keep_an_image_from_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(tmp_path)
    image_id = asyncio.run(make(store, spec(run("a")), Steps()))

    def full(*given: object) -> None:
        raise ResourceExhaustedError("full")

    monkeypatch.setattr(store.content, "put_local_record", full)
    store.touch(image_id, 1e10)
    info = store.image(image_id)
    assert info is not None and info.used_at == 1e10


def test_a_restart_is_no_use_of_steps(tmp_path: Path) -> None:
    asyncio.run(make(store_at(tmp_path), spec(run("a")), Steps()))
    paths = list((tmp_path / "store/steps").iterdir())
    for one in paths:
        os.utime(one, (1000, 1000))
    store_at(tmp_path).cleanup()
    assert [one.stat().st_mtime for one in paths] == [1000, 1000]


def test_layers_of_the_first_version_are_removed_while_the_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "images/layers/one"
    old.mkdir(parents=True)
    (old / "file").write_text("x")
    held, remove = threading.Event(), workplace.remove_tree

    def slow(root: str) -> None:
        held.wait(10)
        remove(root)

    monkeypatch.setattr(workplace, "remove_tree", slow)
    begun = time.monotonic()
    store_at(tmp_path).cleanup()
    assert time.monotonic() - begun < 5 and old.exists()
    held.set()
    while (tmp_path / "images").exists() and time.monotonic() < begun + 20:
        time.sleep(0.01)
    assert not (tmp_path / "images").exists()


def test_an_image_of_another_version_s_recipes_is_there_until_its_recipe_is_built(tmp_path: Path) -> None:
    """semantics.md 13.2: who names an image by its id or a name has it, whatever version of the server made it."""
    store, steps = store_at(tmp_path), Steps()
    wanted = spec(run("a"))
    image_id = asyncio.run(make(store, wanted, steps))
    record = tmp_path / "store/images" / image_id
    record.write_text(json.dumps({**json.loads(record.read_text()), "recipe": "another"}))
    later = store_at(tmp_path)
    later.cleanup()
    assert [one.image_id for one in later.images()] == [image_id]

    async def by_its_id() -> None:
        named = BuildOrder(image_id, ImageSpec(built=image_id))
        info = await later.build(named, lambda line: None, steps, lambda digest: None)
        assert info.image_id == image_id
        await later.lend(image_id)
        later.give_back(image_id)

    asyncio.run(by_its_id())
    assert json.loads(record.read_text())["recipe"] == "another"
    asyncio.run(make(later, wanted, steps))
    assert json.loads(record.read_text())["recipe"] == recipe.RECIPE


def test_a_stage_that_was_built_past_the_cache_is_the_one_copied_from(tmp_path: Path) -> None:
    """semantics.md 13.1: with ignore_cache what is cached stays as it is, and nothing of it gets into the build."""
    store, steps = store_at(tmp_path), Steps()
    stage = spec(run("a"))
    wanted = spec(ImageStep("docker", args=("COPY", "--from=0 /ran* /from/"), images=(stage,)))
    cached = asyncio.run(make(store, stage, steps))

    async def past_the_cache() -> str:
        order = BuildOrder(wanted.image_id(), wanted, ignore_cache=True)
        info = await store.build(order, lambda line: None, steps, lambda digest: None)
        await store.close()
        return info.image_id

    image_id = asyncio.run(past_the_cache())
    assert len(steps.runs) == 2 and store.text(cached, "/ran1") == "a"
    assert store.text(image_id, "/from/ran2") == "a" and store.text(image_id, "/from/ran1") is None


def test_what_is_put_into_an_image_has_a_time_that_zip_archives_know(tmp_path: Path) -> None:
    """Python's zipfile refuses files from before 1980, such as those of a wheel that is built in an image."""
    content = tmp_path / "uploaded"
    content.write_text("text")
    store = store_at(tmp_path / "data")
    stage = ImageStep("docker", args=("COPY", "a /new/copied"), files=(FileEntry("/a", "d", 4),))
    word = ImageStep("docker", args=("COPY", "<<EOF /new/word", "text"))
    whole = ImageStep("docker", args=("COPY", ". /new/all"), files=(FileEntry("/a", "d", 4),))
    wanted = spec(ImageStep("copy", files=(FileEntry("/new/added", "d", 4),)), stage, word, whole)
    order = BuildOrder(wanted.image_id(), wanted)
    asyncio.run(store.build(order, lambda line: None, Steps(), lambda digest: str(content)))
    for path in ("/new", "/new/added", "/new/copied", "/new/word", "/new/all", "/new/all/a"):
        node = trees.find(store.whole(order.image_id), path.encode())
        assert node is not None
        day = time.gmtime(node.mtime // 10**9)
        assert zipfile.ZipInfo(path, day[:6]).date_time == (2000, 1, 1, 0, 0, 0)


def test_a_step_s_files_change_nothing_of_the_folders_above_them(tmp_path: Path) -> None:
    content = tmp_path / "uploaded"
    content.write_text("text")
    store = store_at(tmp_path / "data")
    seen: dict[str, os.stat_result] = {}

    async def steps(step: StepRun) -> int:
        if step.argv[-1] == "first":
            os.makedirs(os.path.join(step.upper, "opt/app"))
            os.chmod(os.path.join(step.upper, "opt"), 0o711)
            os.chmod(os.path.join(step.upper, "opt/app"), 0o2770)
            os.utime(os.path.join(step.upper, "opt/app"), (10**9, 10**9))
            if os.geteuid() == 0:
                os.chown(os.path.join(step.upper, "opt/app"), 7, 8)
                os.chmod(os.path.join(step.upper, "opt/app"), 0o2770)
        else:
            seen.update({one: os.stat(os.path.join(step.upper, one)) for one in ("opt", "opt/app", "opt/app/new")})
        return 0

    install = ImageStep("micromamba", args=("x",), files=(FileEntry("/opt/app/new/file", "d", 4),))
    wanted = spec(run("first"), install)
    order = BuildOrder(wanted.image_id(), wanted)
    asyncio.run(store.build(order, lambda line: None, steps, lambda digest: str(content)))
    modes = {one: stat.S_IMODE(found.st_mode) for one, found in seen.items()}
    assert modes == {"opt": 0o711, "opt/app": 0o2770, "opt/app/new": 0o755}
    assert (seen["opt/app"].st_uid, seen["opt/app"].st_gid) == ((7, 8) if os.geteuid() == 0 else (0, 0))
    assert seen["opt/app"].st_mtime == 10**9 and seen["opt/app/new"].st_uid == os.geteuid()
    assert store.text(order.image_id, "/opt/app/new/file") == "text"


def test_a_proxy_s_password_is_in_no_line_and_no_error(tmp_path: Path) -> None:
    store = store_at(tmp_path, http_proxy="http://me:pass%40word@proxy.test:3128")
    lines: list[BuildLine] = []

    async def tell(step: StepRun) -> int:
        step.output(f"by {step.env['http_proxy']}: pass@word is refused\n".encode())
        return 1

    wanted = spec(run("x"))
    with pytest.raises(ImageBuildError) as caught:
        order = BuildOrder(wanted.image_id(), wanted)
        asyncio.run(store.build(order, lines.append, tell, lambda digest: None))
    assert "by http://me:***@proxy.test:3128: *** is refused" in str(caught.value)
    assert any("***" in one.text for one in lines)
    assert not any("word" in one.text for one in lines) and "word" not in str(caught.value)
