"""Images on this node: what is built, where its layers are, and building what is not there.

The interface is `ImageStore`; what lies behind it is plain overlay directories (`cadenza.fs.layers`). The caller brings
the means to run a step (`run_step`): this package starts no container.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Awaitable, Callable, Mapping, Optional

from cadenza.protocol.nodes import BuildLine, BuildOrder, ImageInfo


@dataclass(frozen=True)
class Bind:
    """One path of the host that a build step sees. The target exists in the image already, as a file or a directory."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class StepRun:
    """One command of a build, to be run as root of its own root filesystem: an overlay of `lowerdirs` under `upper`.

    ``upper`` and ``work`` are empty directories on one filesystem, made for this step; several commands of one step run
    one after the other on the same ``upper``. After the command ends, nothing may be mounted or running on them.
    Whoever runs it adds what every container has (/proc, /dev, /sys, a network namespace), and leaves no file of its
    own in ``upper``.
    """

    image_id: str
    lowerdirs: tuple[str, ...]
    """Topmost first, as overlayfs wants them. Never empty."""
    upper: str
    work: str
    argv: tuple[str, ...]
    env: dict[str, str]
    """The whole environment of the command, image variables, secrets and proxies included."""
    cwd: str
    """Absolute; exists."""
    output: Callable[[bytes], None]
    """Takes stdout and stderr, mixed, as they come; called on the loop's thread."""
    binds: tuple[Bind, ...] = ()
    network: bool = True
    """Whether the command reaches the network as the host does (names resolve by the bound /etc/resolv.conf)."""
    timeout_s: float = 3600.0
    """Kill it after so long; then raise the builtin TimeoutError."""


RunStep = Callable[[StepRun], Awaitable[int]]
"""Runs a command and gives its exit code; 128 + n when a signal ended it. OSError when it could not be started."""


class ImageStore:
    """The images of one data directory. One process at a time may hold it; all methods belong to one event loop."""

    def __init__(self, data_dir: str, *, environ: Optional[Mapping[str, str]] = None) -> None:
        """``environ``: the host's environment, from which builds take proxies, certificates and the index (os.environ)."""
        raise NotImplementedError

    async def build(
        self,
        order: BuildOrder,
        progress: Callable[[BuildLine], None],
        run_step: RunStep,
        object_path: Callable[[str], Optional[str]],
    ) -> ImageInfo:
        """Make an image, or return at once when it is there. ImageBuildError when a step fails; nothing half-made stays.

        InvalidError when the recipe can never be built here (a Python that no suite has, an unknown step).
        """
        raise NotImplementedError

    def lowerdirs(self, image_id: str) -> list[str]:
        """The image's layers for overlayfs, topmost first; always at least one. NotFoundError when it is not built."""
        raise NotImplementedError

    def image(self, image_id: str) -> Optional[ImageInfo]:
        """What is known of a built image, or None."""
        raise NotImplementedError

    def touch(self, image_id: str, now: float) -> None:
        """Note that the image was used at ``now`` (epoch seconds)."""
        raise NotImplementedError

    def images(self) -> list[ImageInfo]:
        """All built images, most recently used first."""
        raise NotImplementedError

    def remove(self, image_id: str) -> None:
        """Drop an image and the layers that no other image has. The caller knows that no container uses it."""
        raise NotImplementedError

    def cleanup(self) -> None:
        """Call at start: drop what a killed process left half-made. Blocks; run it before the loop is busy."""
        raise NotImplementedError
