"""Overlay mounts of an image's layers under a container's own writable layer.

All functions block for a short time; call them from a thread. They raise OSError with the path in it.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import Iterator, Optional, Sequence, Union

from cadenza.fs import kernel
from cadenza.fs.kernel import MS_BIND, MS_NODEV, MS_RDONLY, MS_REMOUNT, below, mount, umount
from cadenza.fs.mount import Lowers
from cadenza.runtime import ids, rootless

__all__ = [
    "MS_BIND", "MS_NODEV", "MS_RDONLY", "MS_REMOUNT", "below", "mount", "overlay", "present", "shown",
    "shown_writable", "umount",
]  # fmt: skip

OPTIONS_BYTES = 4000
"""mount(2) takes one page of options."""

Layers = Union[Lowers, Sequence[str]]
"""Directories, topmost first; with data layers, if files' content is not in the directories."""


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def overlay(lowers: Layers, upper: str, work: str, target: str, volatile: bool = True) -> None:
    """Mount ``lowers`` below ``upper`` at ``target``.

    ``volatile``: never wait for the disk; the upper is thrown away with the container.

    Over data layers a change of a file's attributes alone is written to ``upper`` without the file's content
    (``metacopy``).
    """
    lowers = Lowers.of(lowers)
    # Without the machine's root there are no trusted attributes, and without those no renames of lower directories.
    if rootless.entered():
        own = ["userxattr"]
    else:
        own = ["redirect_dir=on", "metacopy=on" if lowers.data else "metacopy=off"]
    flags = [*own, "index=off", "xino=auto"]
    if volatile:
        flags.append("volatile")
    below_it = "::".join([":".join(map(_escape, lowers.layers)), *map(_escape, lowers.data)])
    full = ",".join([f"lowerdir={below_it},upperdir={_escape(upper)},workdir={_escape(work)}", *flags])
    if len(os.fsencode(full)) <= OPTIONS_BYTES:
        mount("overlay", target, "overlay", MS_NODEV, full)
        return
    # A layer at a time (Linux 6.8): for more layers than a page of text holds.
    options: list[tuple[str, Optional[str]]] = [
        (name, value if equals else None) for name, equals, value in (one.partition("=") for one in flags)
    ]
    options += [("lowerdir+", one) for one in lowers.layers] + [("datadir+", one) for one in lowers.data]
    options += [("upperdir", upper), ("workdir", work)]
    with kernel.detached("overlay", options, target, kernel.MOUNT_ATTR_NODEV) as tree:
        kernel.attach(tree, target)


@contextmanager
def shown(lowers: Layers, scratch: str, userns: int) -> Iterator[Lowers]:
    """Lower directories with their owners as the user namespace maps them, to be given to `overlay` while inside.

    Data layers stay as they are: who owns them shows nowhere.

    An overlay keeps what it was made of, so that these mounts, below ``scratch``, need not stay: 0.06 ms for four.
    """
    lowers = Lowers.of(lowers)
    made: list[str] = []
    try:
        for number, source in enumerate(lowers.layers):
            target = os.path.join(scratch, str(number))
            os.makedirs(target, mode=0o700)
            ids.show(source, target, userns)
            made.append(target)
        yield Lowers(tuple(made), lowers.data)
    finally:
        for target in made:
            umount(target)


@contextmanager
def shown_writable(upper: str, work: str, scratch: str, userns: int) -> Iterator[tuple[str, str]]:
    """The same for an upper and a work directory, which have one parent: what is written is owned as if unmapped."""
    parent = os.path.dirname(upper)
    if os.path.dirname(work) != parent:
        raise OSError(errno.EINVAL, "upper and work have different parents", upper)
    os.makedirs(scratch, mode=0o700)
    ids.show(parent, scratch, userns, read_only=False)
    try:
        yield os.path.join(scratch, os.path.basename(upper)), os.path.join(scratch, os.path.basename(work))
    finally:
        umount(scratch)


def present(source: str, target: str, userns: int, read_only: bool) -> None:
    """Mount a file or directory at ``target``, which is made, with its owners as the user namespace maps them.

    Where its file system cannot: as it is, for all to read.
    """
    if os.path.isdir(source):
        os.mkdir(target, 0o755)
    else:
        with open(target, "x"):
            pass
    try:
        ids.show(source, target, userns, read_only)
    except OSError as error:
        if not read_only or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
            raise
        mount(source, target, "none", MS_BIND)
        mount("none", target, "none", MS_BIND | MS_REMOUNT | MS_RDONLY)
