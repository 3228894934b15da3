"""The floor for starts: the bare OCI runtime running ``python3 -c pass`` on one of our images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path


def mount_newest_image(place: Path) -> str:
    """What an overlay of the image that was just built has below it; its metadata are mounted at ``place``."""
    from cadenza.base.config import load

    home = Path(load().data_dir) / "store"
    newest = max((home / "images").iterdir(), key=os.path.getmtime)
    tree = json.loads(newest.read_text())["info"]["tree"]
    subprocess.run(["mount", "-t", "erofs", str(home / "erofs" / f"{tree}.erofs"), str(place)], check=True)
    return f"{place}::{home}/objects"


class Bare:
    """An overlay mount of the newest image and an OCI bundle for it; `run` times whole containers. Needs root."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        self.directory = Path(tempfile.mkdtemp(prefix="cadenza-floor-"))
        for name in ("rootfs", "upper", "work", "state", "metadata"):
            (self.directory / name).mkdir()
        root = self.directory / "rootfs"
        lowers = mount_newest_image(self.directory / "metadata")
        upper = f"upperdir={self.directory}/upper,workdir={self.directory}/work"
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lowers},{upper},metacopy=on", str(root)], check=True
        )
        subprocess.run([runtime, "spec"], cwd=self.directory, check=True)
        path = self.directory / "config.json"
        config = json.loads(path.read_text())
        config["process"]["args"] = ["/usr/bin/python3", "-c", "pass"]
        config["process"]["terminal"] = False
        config["root"]["readonly"] = False
        path.write_text(json.dumps(config))
        # Hybrid machines: the runtimes refuse the empty v2 mount; a private mount namespace hides it. gVisor here also
        # needs /proc/sys/net out of sight.
        self.shell = (
            "umount /sys/fs/cgroup/unified 2>/dev/null; "
            + ("mount -t tmpfs none /proc/sys/net; " if runtime == "runsc" else "")
            + 'for i in $(seq $1 $2); do "${@:3}" floor-$$-$i & if [ $PARALLEL = 0 ]; then wait; fi; done; wait'
        )

    def command(self) -> list[str]:
        """The runtime's command for one container, without its id."""
        base = [self.runtime, "--root", str(self.directory / "state")]
        if self.runtime == "runsc":
            base += ["--network=none", "--ignore-cgroups", "--overlay2=root:memory", "--platform=systrap"]
        return [*base, "run", "--bundle", str(self.directory)]

    def run(self, count: int, parallel: bool) -> float:
        """Seconds for so many whole containers, one after the other or all at once."""
        environ = {**os.environ, "PARALLEL": "1" if parallel else "0"}
        began = time.perf_counter()
        subprocess.run(
            ["unshare", "-m", "bash", "-c", self.shell, "floor", "1", str(count), *self.command()],
            check=True, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - began

    def close(self) -> None:
        """Unmount and remove."""
        for name in ("rootfs", "metadata"):
            subprocess.run(["umount", "-l", str(self.directory / name)], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)
