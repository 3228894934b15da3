"""Building images of all kinds without a registry: bases, copies between images, caches, collection, a shared bucket.

As root, with the means of `test_live_images` to run a step. semantics.md 13.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_live_images as live

from cadenza.base.errors import ImageBuildError, InvalidError, NotFoundError
from cadenza.fs.abilities import detect
from cadenza.fs.images import ImageStore
from cadenza.fs.mount import Mounts
from cadenza.fs.store import Store
from cadenza.protocol.nodes import BuildLine, BuildOrder, CollectOrder, ImageInfo
from cadenza.protocol.objects import FileEntry, ImageSpec, ImageStep
from cadenza.storage.bucket import open_bucket

SECRET = "correct-horse-battery"
SCRATCH = ImageStep("base", options={"distribution": "scratch"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Images]:
    directory = tmp_path_factory.mktemp("builds")
    made = live.make_store(directory / "data")
    yield made
    made.end()
    shutil.rmtree(directory)


def make(
    store: ImageStore,
    spec: ImageSpec,
    lines: list[BuildLine] | None = None,
    contents: dict[str, Path] | None = None,
    *,
    force: bool = False,
    ignore_cache: bool = False,
) -> ImageInfo:
    async def go() -> ImageInfo:
        order = BuildOrder(spec.image_id(), spec, force, ignore_cache)
        seen = [] if lines is None else lines
        found = await store.build(
            order, seen.append, live.run_step, lambda digest: str(contents[digest]) if contents else None
        )
        await store.close()
        return found

    return asyncio.run(go())


def sh(*commands: str, **more: object) -> ImageStep:
    return ImageStep("run", args=commands, **more)  # type: ignore[arg-type]


def test_a_secret_is_in_its_step_s_environment_and_nowhere_else(store: live.Images) -> None:
    """13.3: secrets are no part of the image; nor of the store, of what is printed, and of build logs."""
    lines: list[BuildLine] = []
    step = sh(
        'test -n "$KEY" && echo "it is $KEY" && echo ${#KEY} > /length', secrets={"KEY": SECRET}, secret_keys=("KEY",)
    )
    info = make(store, ImageSpec((live.BASE, step)), lines)
    assert "it is ***" in [one.text for one in lines]
    assert live.inside(store, info.image_id, "cat", "/length") == f"{len(SECRET)}\n"
    found = subprocess.run(
        ["grep", "-rlaF", "--devices=skip", "--exclude-dir=mounts", SECRET, store.home], capture_output=True, text=True
    )  # fmt: skip
    assert found.stdout == "" and found.returncode == 1
    kept = asyncio.run(store.log(info.image_id, 1))
    assert [one.text for one in kept] == ["it is ***"] and kept[0].step.startswith("RUN test")


def test_files_move_between_images_by_name_alone(store: live.Images, tmp_path: Path) -> None:
    """COPY --from: the other image is built first; its files are the same objects, and no container runs."""
    stage = ImageSpec((live.BASE, sh("mkdir -p /out/sub && seq 100000 > /out/sub/big && ln -s sub/big /out/link")))
    copy = ImageStep("docker", args=("COPY", "--from=stage /out /app"), images=(stage,))
    lines: list[BuildLine] = []
    info = make(store, ImageSpec((SCRATCH, copy)), lines)
    paths = store.paths(info.image_id)
    assert paths["/app/sub/big"].data == store.paths(stage.image_id())["/out/sub/big"].data
    assert paths["/app/link"].is_link and info.python == "" and "/proc" in paths and "/usr" not in paths
    assert any("RUN mkdir" in one.text for one in lines)


def test_an_image_is_a_base_and_keeps_its_settings(store: live.Images) -> None:
    """13.2: from_id."""
    first = ImageSpec((live.BASE, ImageStep("env", env={"A": "b"}), ImageStep("workdir", args=("/w",)), sh("touch x")))
    make(store, first)
    base = ImageStep("base", options={"distribution": "image", "image_id": first.image_id()})
    info = make(store, ImageSpec((base, sh("echo $A > y"))))
    assert info.workdir == "/w" and info.python == "3.11"
    assert live.inside(store, info.image_id, "sh", "-c", "ls; cat y") == "x\ny\nb\n"
    gone = ImageStep("base", options={"distribution": "image", "image_id": "im-nothing"})
    with pytest.raises(NotFoundError, match="im-nothing"):
        make(store, ImageSpec((gone,)))


def test_files_of_a_recipe_keep_their_modes_and_owners(store: live.Images, tmp_path: Path) -> None:
    """COPY --chown looks names up in the image's own /etc/passwd."""
    file = tmp_path / "file"
    file.write_text("text\n")
    entries = tuple(FileEntry(one, "d", 5, 0o640) for one in ("/app/a", "/app/b/c"))
    steps = (
        sh("useradd -m me"),
        ImageStep("docker", args=("COPY", "--chown=me:daemon --chmod=600 app /home/me/app"), files=entries),
    )
    info = make(store, ImageSpec((live.BASE, *steps)), contents={"d": file})
    said = live.inside(store, info.image_id, "sh", "-c", "cd /home/me/app; stat -c '%U %G %a %n' a b/c; cat a")
    assert said == "me daemon 600 a\nme daemon 600 b/c\ntext\n"


def test_two_builders_at_once_build_once(store: live.Images) -> None:
    """Also where one wants as its base, by COPY --from, what the other makes."""
    shared = ImageSpec((live.BASE, sh("sleep 1; date +%N > /when")))
    nested = ImageSpec((SCRATCH, ImageStep("docker", args=("COPY", "--from=x /when /when"), images=(shared,))))
    runs: list[str] = []

    async def counted(step: live.StepRun) -> int:
        runs.append(step.argv[-1])
        return await live.run_step(step)

    async def go() -> None:
        orders = [BuildOrder(one.image_id(), one) for one in (shared, nested, shared)]
        await asyncio.gather(*(store.build(one, lambda line: None, counted, lambda digest: None) for one in orders))
        await store.close()

    asyncio.run(go())
    assert len(runs) == 1
    assert store.paths(nested.image_id())["/when"].data == store.paths(shared.image_id())["/when"].data


def test_ignoring_the_cache_builds_all_and_changes_nothing(store: live.Images) -> None:
    """13.1: MODAL_IGNORE_CACHE rebuilds without overwriting; MODAL_FORCE_BUILD overwrites."""
    spec = ImageSpec((live.BASE, sh("date +%N > /when")))
    make(store, spec)
    before = store.paths(spec.image_id())["/when"].data
    lines: list[BuildLine] = []
    make(store, spec, lines, ignore_cache=True)
    assert [one.step for one in lines if one.kind == "done"] == [1, 2]
    assert store.paths(spec.image_id())["/when"].data == before
    make(store, spec, force=True)
    assert store.paths(spec.image_id())["/when"].data != before


def test_the_changes_of_a_step_are_seen_by_the_next(store: live.Images) -> None:
    """Whiteouts, directories made anew, renamed ones, changed modes of large files, hard links: through three steps."""
    steps = (
        sh(
            "mkdir -p /d/old && echo 1 > /d/old/a && echo 2 > /d/b && ln /d/b /d/c",
            "head -c 9000000 /dev/zero > /d/large",
        ),
        sh("rm -r /d/old && mkdir /d/old && echo 3 > /d/old/z && chmod 600 /d/large && mv /d /e"),
        sh("rm /e/b && echo 4 >> /e/c && mkdir -p /usr/share/zz && mv /usr/share/zz /e/zz && chown 5:6 /e/large"),
    )
    info = make(store, ImageSpec((live.BASE, *steps)))
    said = live.inside(
        store, info.image_id, "sh", "-c", "ls -d /d 2>&1; cd /e; find . | sort; cat c; stat -c '%a %u %g %s' large"
    )
    assert said == (
        "ls: cannot access '/d': No such file or directory\n"
        ".\n./c\n./large\n./old\n./old/z\n./zz\n2\n4\n600 5 6 9000000\n"
    )


def test_python_is_added_and_found(store: live.Images) -> None:
    """13.2: add_python; nothing is added where that version is, and a C library is needed."""
    has = make(store, ImageSpec((live.BASE, ImageStep("python", options={"version": "3.11"}))))
    assert store.paths(has.image_id).keys() == store.paths(make(store, ImageSpec((live.BASE,))).image_id).keys()
    with pytest.raises(InvalidError, match="GNU C library"):
        make(store, ImageSpec((SCRATCH, ImageStep("python", options={"version": "3.12"}))))
    with pytest.raises(InvalidError, match="add_python"):
        make(store, ImageSpec((SCRATCH, ImageStep("pip", args=("six",)))))


def test_micromamba_is_the_host_s_or_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """13.2, with a program of our own in micromamba's place: it is asked for Python, then for packages."""
    program = tmp_path / "bin/micromamba"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nmkdir -p $MAMBA_ROOT_PREFIX/bin\necho "$@" >> $MAMBA_ROOT_PREFIX/asked\n'
        "printf '#!/bin/sh\\n' > $MAMBA_ROOT_PREFIX/bin/python3.12; chmod 755 $MAMBA_ROOT_PREFIX/bin/python3.12\n"
        "ln -sf python3.12 $MAMBA_ROOT_PREFIX/bin/python3\n"
    )
    program.chmod(0o755)
    spec = ImageSpec(
        (
            ImageStep("base", options={"distribution": "micromamba", "python": "3.12"}),
            ImageStep("micromamba", args=("xz", "numpy"), options={"channels": "conda-forge,other"}),
        )
    )
    monkeypatch.delenv("CADENZA_MICROMAMBA_URL", raising=False)
    store = live.make_store(tmp_path / "data")
    try:
        if shutil.which("micromamba") is None:
            with pytest.raises(InvalidError, match="CADENZA_MICROMAMBA_URL"):
                make(store, spec)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        info = make(store, spec)
        said = live.inside(store, info.image_id, "sh", "-c", "cat /opt/conda/asked; command -v python3")
        assert said == (
            "install --yes --name base --channel conda-forge python=3.12\n"
            "install --yes --name base --channel conda-forge --channel other numpy xz\n/opt/conda/bin/python3\n"
        )
        assert info.python == "3.12"
    finally:
        store.end()


def test_what_nothing_names_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removed image's content goes, as far as no other image has it; what containers have stays."""
    store = live.make_store(tmp_path / "data")
    try:
        kept = make(store, ImageSpec((live.BASE, sh("echo kept > /kept"))))
        gone = make(store, ImageSpec((live.BASE, sh("seq 1000000 > /big"))))
        big = store.paths(gone.image_id)["/big"].data
        begun, days = store.content.clock(), [40]
        monkeypatch.setattr(store.content, "clock", lambda: begun + days[0] * 86_400)
        monkeypatch.setattr(store._clock, "now", lambda: begun + days[0] * 86_400)
        dry = asyncio.run(store.collect(CollectOrder((gone.image_id,), dry_run=True)))
        assert dry.images == (gone.image_id,) and dry.size > 6_000_000 and os.path.exists(store.content.path(big))
        asyncio.run(store.lend(gone.image_id))
        busy = asyncio.run(store.collect(CollectOrder((gone.image_id,))))
        assert busy.images == () and "in use" in busy.notes[0] and os.path.exists(store.content.path(big))
        store.give_back(gone.image_id)
        days[0] = 80  # what was lent counts as used then
        done = asyncio.run(store.collect(CollectOrder((gone.image_id,))))
        assert done.images == (gone.image_id,) and not os.path.exists(store.content.path(big))
        assert [one.image_id for one in store.images()] == [kept.image_id]
        assert live.inside(store, kept.image_id, "cat", "/kept") == "kept\n"
        detail = asyncio.run(store.detail(kept.image_id))
        assert [one.text for one in detail.layers][1:] == ["RUN echo kept > /kept"]
        assert 0 < detail.local_size <= kept.size
    finally:
        store.end()


def test_another_machine_finds_what_was_built(tmp_path: Path) -> None:
    """With a bucket: the image, and each of its steps, is taken from there; a step that fails is in neither."""
    bucket = f"file://{tmp_path}/bucket"
    os.mkdir(tmp_path / "bucket")

    def node(name: str) -> live.Images:
        content = Store(str(tmp_path / name / "store"), open_bucket(bucket, {}))
        (tmp_path / name / "cache").symlink_to(live.CACHE)
        found = live.Images(str(tmp_path / name), content, Mounts(content, detect(content.home)))
        found.content = content
        return found

    first = node("first")
    spec = ImageSpec((live.BASE, sh("echo built > /built")))
    try:
        make(first, spec)
        with pytest.raises(ImageBuildError):
            make(first, ImageSpec((live.BASE, sh("exit 3"))))
    finally:
        first.end()
    shutil.rmtree(tmp_path / "first")
    second = node("second")
    try:
        lines: list[BuildLine] = []
        info = make(second, spec, lines)
        assert [one.kind for one in lines] == ["cached"]
        assert live.inside(second, info.image_id, "cat", "/built") == "built\n"
        lines.clear()
        more = make(second, ImageSpec((*spec.steps, sh("cat /built > /again"))), lines)
        assert [one.kind for one in lines if one.kind != "log"] == ["cached", "cached", "step", "done"]
        assert live.inside(second, more.image_id, "cat", "/again") == "built\n"
    finally:
        second.end()
