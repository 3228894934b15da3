"""Images end to end: Debian's packages, apt and pip inside, the cache, and a builder that is killed. semantics.md 13.

These run as root, with a mount namespace and chroot as the means to run a step. Downloads are kept between runs in one
cache directory.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cadenza.base.errors import ImageBuildError, ResourceExhaustedError
from cadenza.fs import debian
from cadenza.fs import tree as trees
from cadenza.fs.abilities import detect
from cadenza.fs.images import ImageStore, StepRun
from cadenza.fs.mount import Mounts
from cadenza.fs.sources import Mirror
from cadenza.fs.store import Store
from cadenza.protocol.nodes import BuildLine, BuildOrder
from cadenza.protocol.objects import FileEntry, ImageSpec, ImageStep

CACHE = Path(tempfile.gettempdir()) / f"cadenza-test-cache-{os.getuid()}"
BASE = ImageStep("base", options={"distribution": "debian_slim", "python": "3.11"})

# Mounts the overlay, binds what is asked for, and becomes the command. In its own mount and process namespaces, so
# that nothing outlives it.
ENTER = """
set -e
merged=$1; lower=$2; upper=$3; work=$4; cwd=$5; options=$6; shift 6
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work,$options" "$merged"
mount -t proc proc "$merged/proc"
mount --rbind /dev "$merged/dev"
while [ "$1" != -- ]; do
  mount --bind "$1" "$merged$2"
  if [ "$3" = ro ]; then mount -o remount,bind,ro "$merged$2"; fi
  shift 3
done
shift
exec chroot "$merged" /usr/bin/env -i -C "$cwd" "$@"
"""


async def run_step(step: StepRun) -> int:
    merged = tempfile.mkdtemp(prefix="cadenza-merged-")
    lower = "::".join([":".join(step.lowers.layers), *step.lowers.data])
    options = "redirect_dir=on,index=off,metacopy=" + ("on" if step.lowers.data else "off")
    words = [merged, lower, step.upper, step.work, step.cwd, options]
    for one in step.binds:
        words += [one.source, one.target, "ro" if one.read_only else "rw"]
    words += ["--", *(f"{name}={value}" for name, value in step.env.items()), *step.argv]
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "enter"),
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        while data := await process.stdout.read(65536):
            step.output(data)
        return await asyncio.wait_for(process.wait(), step.timeout_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.rmdir(merged)


class Images(ImageStore):
    """With what tests look at."""

    content: Store

    @property
    def home(self) -> str:
        return self.content.home

    def paths(self, image_id: str) -> dict[str, trees.Node]:
        info = self.image(image_id)
        assert info is not None
        found = trees.walk(self.content.tree(bytes.fromhex(info.tree)))
        return {path.decode(errors="surrogateescape"): node for path, node in found}

    def end(self) -> None:
        self._mounts.close()
        self.content.close()


def make_store(data: Path) -> Images:
    """A store whose downloads are shared between tests."""
    CACHE.mkdir(exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    if not (data / "cache").exists():
        (data / "cache").symlink_to(CACHE)
    content = Store(str(data / "store"))
    found = Images(str(data), content, Mounts(content, detect(content.home)))
    found.content = content
    return found


def build(store: Images, *steps: ImageStep, lines: list[BuildLine] | None = None, force: bool = False) -> str:
    spec = ImageSpec((BASE, *steps))
    seen = [] if lines is None else lines

    async def go() -> str:
        order = BuildOrder(spec.image_id(), spec, force)
        info = await store.build(order, seen.append, run_step, lambda digest: None)
        await store.close()
        return info.image_id

    try:
        return asyncio.run(go())
    finally:
        print("\n".join(f"{one.step}/{one.steps} {one.kind} {one.text}" for one in seen[-60:]))


def inside(store: Images, image_id: str, *argv: str) -> str:
    """A command's output in a container of the image, whose changes are thrown away."""
    info = store.image(image_id)
    assert info is not None
    scratch = tempfile.mkdtemp(prefix="cadenza-run-")
    out = bytearray()
    try:
        for name in ("upper", "work"):
            os.mkdir(os.path.join(scratch, name))
        step = StepRun(
            image_id,
            asyncio.run(store.lend(image_id)),
            os.path.join(scratch, "upper"),
            os.path.join(scratch, "work"),
            argv,
            info.env,
            info.workdir or "/",
            out.extend,
        )
        code = asyncio.run(run_step(step))
    finally:
        store.give_back(image_id)
        shutil.rmtree(scratch)
    text = out.decode()
    assert code == 0, text
    return text


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("images")
    made = make_store(directory / "data")
    yield made
    made.end()
    shutil.rmtree(directory)


def test_a_base_runs_python_and_is_made_once(store: Images) -> None:
    """13.2: debian_slim has Python and pip; 13.1: an equal recipe is reused."""
    begun = time.monotonic()
    image_id = build(store)
    print(f"base: {time.monotonic() - begun:.2f} s", store.base_timings)
    assert inside(store, image_id, "python", "-c", "import ssl, sqlite3, ctypes, lzma; print('fine')") == "fine\n"
    assert inside(store, image_id, "python3", "--version").startswith("Python 3.11.")
    assert " 0 " not in inside(store, image_id, "python3", "-c", "import ssl; print(ssl.create_default_context())")
    assert inside(store, image_id, "sh", "-c", "dpkg --audit; apt-get check -qq; echo $LANG; which awk") == (
        "C.UTF-8\n/usr/bin/awk\n"
    )
    found = subprocess.run(
        ["grep", "-rlaF", "--devices=skip", os.path.join(store.home, "work"), store.content.objects],
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout == "" and found.returncode == 1, "no file says where it was made"
    lines: list[BuildLine] = []
    assert build(store, lines=lines) == image_id
    assert [one.kind for one in lines] == ["cached"]
    # Another process's view of the same directory.
    again = ImageStore(os.path.dirname(store.home), store.content, store._mounts)
    assert again.image(image_id) == store.image(image_id)


def test_packages_come_from_the_ordinary_registries(store: Images) -> None:
    """13.3: apt_install, pip_install, uv_pip_install, run_commands and env, each a layer on the one before."""
    build(store)
    lines: list[BuildLine] = []
    steps = (
        ImageStep("apt", args=("tree", "libyaml-0-2")),
        ImageStep("pip", args=("six",)),
        ImageStep("pip", args=("iniconfig",), options={"tool": "uv"}),
        ImageStep("env", env={"GREETING": "hello there"}),
        ImageStep("workdir", args=("/srv/app",)),
        ImageStep(
            "run",
            args=('echo "$GREETING" > greeting; echo "secret $KEY" | wc -c', "rm /etc/motd"),
            secrets={"KEY": "k"},
        ),
    )
    image_id = build(store, *steps, lines=lines)
    info = store.image(image_id)
    assert info is not None and info.workdir == "/srv/app" and info.env["GREETING"] == "hello there"
    assert "KEY" not in info.env and not any(name.upper().endswith("_PROXY") or "CERT" in name for name in info.env)
    assert inside(store, image_id, "cat", "greeting") == "hello there\n"
    assert inside(store, image_id, "sh", "-c", "tree --version | cut -c1-4") == "tree\n"
    assert inside(store, image_id, "python3", "-c", "import six, iniconfig; print('both')") == "both\n"
    assert inside(store, image_id, "sh", "-c", "ls /etc/motd 2>/dev/null || echo gone") == "gone\n"
    assert inside(store, image_id, "sh", "-c", "dpkg --audit; apt-get check -qq; pip check") == (
        "No broken requirements found.\n"
    )
    # No cache, no certificate and no mount point's content stays.
    base = store.paths(build(store))
    paths = [path for path, node in store.paths(image_id).items() if not node.is_dir and path not in base]
    unwanted = ("/.cadenza", "/var/lib/apt/lists", "/var/cache/apt", "/root/.cache", "/tmp")
    assert paths and [one for one in paths if one.startswith(unwanted)] == []
    assert all(store.paths(image_id)[one].size == 0 for one in ("/etc/resolv.conf", "/etc/hosts"))
    # The database made from outside has the packages' triggers: a new library reaches the loader's cache.
    assert any(one.text.startswith("Processing triggers for libc-bin") for one in lines)
    assert "libyaml" in inside(store, image_id, "sh", "-c", "ldconfig -p")
    cached = [one for one in lines if one.kind == "cached"]
    assert [one.step for one in cached] == [1]
    lines.clear()
    build(store, *steps, lines=lines)
    assert [one.kind for one in lines] == ["cached"]


def test_a_failing_step_tells_its_last_words_and_leaves_nothing(store: Images) -> None:
    """13.1: ImageBuildError with the image's id; what came before is kept for the next try."""
    good = ImageStep("run", args=("echo kept > /kept",))
    bad = ImageStep("run", args=("echo working; echo 'no such thing' >&2; exit 3",))
    with pytest.raises(ImageBuildError) as caught:
        build(store, good, bad)
    assert caught.value.image_id == ImageSpec((BASE, good, bad)).image_id()
    assert "exit code 3" in str(caught.value) and "no such thing" in str(caught.value)
    assert os.listdir(os.path.join(store.home, "work")) == []
    lines: list[BuildLine] = []
    build(store, good, lines=lines)
    assert [one.kind for one in lines] == ["cached", "cached"]


def test_what_pip_cannot_find_is_said(store: Images) -> None:
    with pytest.raises(ImageBuildError, match="No matching distribution found"):
        build(store, ImageStep("pip", args=("six==999.999",)))
    with pytest.raises(ImageBuildError, match="Unable to locate package"):
        build(store, ImageStep("apt", args=("cadenza-no-such-package",)))


KILLED = """
import sys, tempfile
sys.path[:0] = [{root!r}, {here!r}]
tempfile.tempdir = {scratch!r}
import test_live_images as live
from pathlib import Path
live.CACHE = Path({cache!r})
live.build(live.make_store(Path({data!r})), live.ImageStep("run", args=("sleep 60",)))
"""


@pytest.mark.parametrize("after", ["base", "step"])
def test_a_killed_builder_leaves_a_store_that_works(tmp_path: Path, after: str, store: Images) -> None:
    """kill -9 while the base is unpacked, and while a step runs: the next start finds no half layer and builds on."""
    data = tmp_path / "data"
    if after == "step":
        build(store)
        shutil.copytree(
            Path(store.home).parent, data, symlinks=True, copy_function=os.link, ignore=shutil.ignore_patterns("mounts")
        )
    before = set(os.listdir(data / "store" / "steps")) if after == "step" else set()
    code = KILLED.format(
        root=str(Path(__file__).parents[2]),
        here=str(Path(__file__).parent),
        scratch=str(tmp_path),
        cache=str(CACHE),
        data=str(data),
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, start_new_session=True)
    work = data / "store" / "work"
    wanted = "*/upper/usr/share" if after == "base" else "*/more/build/apt.conf"
    limit = time.monotonic() + 60
    while not list(work.glob(wanted)):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    time.sleep(0.3)
    assert os.listdir(work) != []
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = make_store(data)
    again.cleanup()
    assert os.listdir(work) == []
    assert set(os.listdir(data / "store" / "steps")) == before
    image_id = build(again, ImageStep("run", args=("echo 1 > /one",)))
    assert inside(again, image_id, "cat", "/one") == "1\n"
    again.end()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    shutil.rmtree(tmp_path)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, store: Images) -> None:
    """While the base is unpacked, and while a step writes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], check=True)
    small = make_store(disk / "data")
    try:
        with pytest.raises(ResourceExhaustedError, match="is full"):
            build(small)
        assert os.listdir(disk / "data/store/work") == os.listdir(disk / "data/store/steps") == []
        subprocess.run(["mount", "-o", "remount,size=260m", str(disk)], check=True)
        with pytest.raises(ImageBuildError, match=r"because the disk is full: free some space where .*gc"):
            build(small, ImageStep("run", args=("dd if=/dev/zero of=/big bs=1M count=250",)))
        assert os.listdir(disk / "data/store/work") == [] and len(os.listdir(disk / "data/store/steps")) == 1
    finally:
        small.end()
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_mirror_that_does_not_answer_is_said(tmp_path: Path) -> None:
    """Nothing listens at the address: apt's own words come through, and nothing is left."""
    mirror = Mirror("debian", ("http://127.0.0.1:9/debian",))
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(ImageBuildError, match=r"(?s)package lists of bookworm could not be fetched.*127\.0\.0\.1"):
        asyncio.run(debian.build_base(str(root), "3.11", str(tmp_path / "cache"), "", os.environ, print, mirror))
    assert list(root.iterdir()) == []


ORDINARY = """
import asyncio, os, sys
sys.path.insert(0, {root!r})
from cadenza.fs import debian, finish, host
environ = {{"PATH": "/usr/bin:/bin", "HOME": {home!r}}}
settings = host.read(environ).apt_conf(inside=False)
os.mkdir({home!r} + "/base")
asyncio.run(debian.build_base({home!r} + "/base", "3.11", {home!r} + "/cache", settings, environ, print))
"""


def test_an_ordinary_user_makes_a_base_too(store: Images) -> None:
    """Without root: every file is the user's own, and as root of a user namespace the tree works."""
    build(store)  # so that the packages are downloaded
    home = Path(tempfile.mkdtemp(prefix="cadenza-ordinary-"))
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    try:
        package = Path(__file__).parents[2] / "cadenza"
        shutil.copytree(package, home / "lib/cadenza", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(CACHE / "apt", home / "cache/apt")
        subprocess.run(["chown", "-R", "65534:65534", str(home)], check=True)
        code = ORDINARY.format(root=str(home / "lib"), home=str(home))
        subprocess.run([*user, "/usr/bin/python3", "-c", code], check=True)
        assert {path.lstat().st_uid for path in (home / "base").rglob("*")} == {65534}
        program = "import ssl, os; print(os.getuid(), len(ssl.create_default_context().get_ca_certs()) > 100)"
        done = subprocess.run(
            [*user, "unshare", "--map-root-user", "chroot", str(home / "base"), "/usr/bin/python3", "-c", program],
            capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/usr/sbin:/bin:/sbin"},
        )  # fmt: skip
        assert done.stdout == "0 True\n"
    finally:
        shutil.rmtree(home)


def test_files_are_copied_through_links_and_over_old_ones(store: Images, tmp_path: Path) -> None:
    """13.4: copy=True is a layer; a path through a link of the image (/bin) does not replace the link."""
    content = tmp_path / "content"
    content.write_text("#!/bin/sh\necho copied\n")
    files = tuple(
        FileEntry(path, "d1", content.stat().st_size, mode)
        for path, mode in (("/bin/hello", 0o755), ("/etc/motd", 0o600), ("/root/deep/er/file", 0o644))
    )
    spec = ImageSpec((BASE, ImageStep("copy", files=files)))

    async def go() -> None:
        await store.build(BuildOrder(spec.image_id(), spec), lambda line: None, run_step, lambda digest: str(content))
        await store.close()

    asyncio.run(go())
    assert inside(store, spec.image_id(), "hello") == "copied\n"
    assert inside(store, spec.image_id(), "sh", "-c", "ls -ld /bin /root | cut -c1-10; stat -c %a /etc/motd") == (
        "lrwxrwxrwx\ndrwx------\n600\n"
    )
