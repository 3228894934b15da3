"""A home of its own for each live module: a server, its data, its images; and a look at what is left afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Home:
    """One user's Cadenza: everything below ``path``."""

    def __init__(self, path: Path, **settings: str) -> None:
        self.path = path
        self.environ = {**os.environ, "CADENZA_HOME": str(path), "CADENZA_IDLE_STOP_S": "120", **settings}
        self.environ.pop("CADENZA_SUPPORT", None)

    def cadenza(self, *argv: str, timeout: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the command and wait."""
        return subprocess.run(
            [sys.executable, "-m", "cadenza", *argv],
            capture_output=True, text=True, timeout=timeout, env={**self.environ, **more}, cwd=self.path,
        )  # fmt: skip

    def start(self, *argv: str, **more: str) -> subprocess.Popen[str]:
        """Run the command and go on."""
        return subprocess.Popen(
            [sys.executable, "-m", "cadenza", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**self.environ, **more}, cwd=self.path,
        )  # fmt: skip

    def program(self, name: str, source: str) -> str:
        """Write a program; its path."""
        path = self.path / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return str(path)

    def server_pid(self) -> int | None:
        """The server's process, or None."""
        from cadenza.cli.lock import ServerLock

        holder = ServerLock(str(self.path / "state/server.lock")).holder()
        return holder.pid if holder else None

    def server_log(self) -> str:
        """What the server wrote."""
        path = self.path / "state/server.log"
        return path.read_text(errors="replace") if path.exists() else ""


def has_images(data: Path) -> bool:
    """Whether an image was built in this data directory."""
    return any((data / "store/images").glob("im-*"))


def share_images(source: Path, target: Path) -> None:
    """Give ``target``, a data directory where no server has run yet, the images that ``source`` has by now.

    Content is never written again once it has its name, and records are replaced whole: so content is hard links
    (copies on another disk), records are copies, and a server may go on working in ``source``. What names comes before
    what it names: all that a copied record needs was there when it was written.
    """
    (target / "store").mkdir(parents=True, mode=0o755)
    target.chmod(0o700)
    link = "-al" if target.stat().st_dev == source.stat().st_dev else "-a"
    for kind in ("images", "steps", "trees", "lists", "big", "erofs", "objects"):
        how = "-a" if kind in ("images", "steps") else link
        subprocess.run(["cp", how, str(source / "store" / kind), str(target / "store")], check=True)


def residue(path: Path) -> dict[str, list[str]]:
    """What a server below ``path`` has left on this machine: mounts, processes, network namespaces of containers."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(path) in line]
    processes = []
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                environ = (one / "environ").read_bytes()
                command = (one / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"CADENZA_HOME={path}".encode() in environ.split(b"\0") or str(path) in command:
                processes.append(f"{one.name} {command[:120]}")
    containers = path / "data/containers"
    return {
        "mounts": mounts,
        "processes": processes,
        "directories": [str(one) for one in containers.iterdir()] if containers.exists() else [],
    }


@pytest.fixture(scope="session")
def make_home() -> Iterator[Callable[..., Home]]:
    """Make homes; each is emptied of server and data at the end. A new one begins with the images of the first."""
    made: list[Home] = []

    def make(**settings: str) -> Home:
        path = Path(tempfile.mkdtemp(prefix="cadenza-live-", dir="/tmp"))
        home = Home(path, **settings)
        built = [one for one in made if has_images(one.path / "data")]
        # Without isolation a program could write to the files of an image.
        if built and "CADENZA_DATA_DIR" not in settings and settings.get("CADENZA_RUNTIME") != "process":
            share_images(built[0].path / "data", path / "data")
        made.append(home)
        return home

    yield make
    for home in made:
        home.cadenza("down", "--force")
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            where = line.split()[1]
            if where.startswith(str(home.path)):
                subprocess.run(["umount", "-l", where], check=False)
        shutil.rmtree(home.path, ignore_errors=True)


@pytest.fixture(scope="session")
def home(make_home: Callable[..., Home]) -> Home:
    """The home that most live tests share: one server, one base image."""
    return make_home()
