"""How this machine can show trees: found out by mounting small ones, which takes some milliseconds.

The mounts of a trial have no place in the file system (`kernel.detached`): a process that is killed leaves none.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable, Iterator, Mapping, Optional, Union

from cadenza.base.errors import InvalidError
from cadenza.fs import kernel, loop

MODES = ("erofs", "sparse", "links")
FORCED = "CADENZA_FS_MODE"
"""The environment variable that names a mode, for tests and for trouble."""
FUSE = "/dev/fuse"
_CONTENT = b"content of a trial\n"
_OBJECT = "ab/" + 62 * "c"
NEEDS_ROOT = "it needs the machine's root"
NOT_OURS = "this user may not open it"


@dataclass(frozen=True)
class Abilities:
    """What works on this machine."""

    mode: str
    """``erofs``, ``sparse`` or ``links``."""
    erofs: str = ""
    """How an EROFS image is mounted: ``file``, ``loop``, or not at all."""
    data_layers: bool = False
    """Whether an overlay takes files' content from layers that have nothing else."""
    fuse: bool = False
    """Whether a FUSE file system can be mounted, for content that is fetched when it is first opened."""
    retry: bool = False
    """Whether the kernel asks the object directory again when FUSE says that a file has landed there; its server
    finds that out by itself (`cadenza.fs.lazy`)."""
    prefix: bytes = b"trusted"
    """Of the attributes by which overlayfs knows things: ``trusted``, or ``user`` where that is not allowed."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why what does not work does not: by ``erofs file``, ``erofs loop``, ``data layers``, ``fuse``."""
    forced: bool = False


def choose(erofs: str, data_layers: bool, prefix: bytes, wanted: str, reasons: Mapping[str, str]) -> str:
    """The best mode, or the one that is ``wanted``. Pure. InvalidError: it cannot be had here, and why."""
    can = {"erofs": bool(erofs) and data_layers and prefix == b"trusted", "sparse": data_layers, "links": True}
    if not wanted:
        return next(one for one in MODES if can[one])
    if wanted not in MODES:
        raise InvalidError(f"{FORCED}={wanted!r}: there are {', '.join(MODES)}")
    if not can[wanted]:
        asked = ("data layers", "erofs file", "erofs loop") if wanted == "erofs" else ("data layers",)
        why = "; ".join(f"{one}: {reasons[one]}" for one in asked if reasons.get(one))
        raise InvalidError(f"{FORCED}={wanted} cannot be had on this machine: {why or NEEDS_ROOT}")
    return wanted


def detect(directory: str, environ: Optional[Mapping[str, str]] = None) -> Abilities:
    """Try what a tree below ``directory``, which must be there, could be shown with. Blocks for milliseconds.

    InvalidError: `FORCED` asks for what cannot be had. OSError: the directory cannot be written.
    """
    wanted = (os.environ if environ is None else environ).get(FORCED, "")
    reasons: dict[str, str] = {}
    folder = tempfile.mkdtemp(prefix="trial-", dir=directory)
    try:
        prefix = b"trusted" if _works(reasons, "trusted attributes", lambda: _trusted(folder)) else b"user"
        layers = _works(reasons, "data layers", lambda: _data_layers(folder, prefix))
        erofs = ""
        image = os.path.join(folder, "image")
        if prefix != b"trusted":
            reasons["erofs file"] = reasons["erofs loop"] = NEEDS_ROOT
        elif _works(reasons, "erofs file", lambda: _write_image(image)):
            if _works(reasons, "erofs file", lambda: _erofs(image)):
                erofs = "file"
            elif _works(reasons, "erofs loop", lambda: _erofs_by_loop(image)):
                erofs = "loop"
        fuse = _works(reasons, "fuse", _fuse)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    mode = choose(erofs, layers, prefix, wanted, reasons)
    return Abilities(mode, erofs, layers, fuse, False, prefix, reasons, bool(wanted))


def _works(reasons: dict[str, str], name: str, trial: Callable[[], None]) -> bool:
    try:
        trial()
    except OSError as error:
        if error.errno == errno.EPERM:
            reasons[name] = NEEDS_ROOT
        elif error.errno == errno.EACCES:
            reasons[name] = NOT_OURS
        elif error.errno == errno.ENODEV:
            reasons[name] = "this kernel lacks the file system"
        elif error.errno == errno.ENOTBLK:
            reasons[name] = "this kernel, or the file system of the data directory, wants a block device"
        else:
            reasons[name] = error.strerror or str(error)
        return False
    return True


def _trusted(folder: str) -> None:
    """Only the machine's root has these attributes."""
    path = os.path.join(folder, "attributes")
    with open(path, "xb"):
        pass
    os.setxattr(path, b"trusted.overlay.cadenza", b"y")


def metacopy(path: Union[str, int], prefix: bytes, target: bytes) -> None:
    """Make the file one whose content is at ``target`` of a data layer."""
    os.setxattr(path, prefix + b".overlay.metacopy", b"")
    os.setxattr(path, prefix + b".overlay.redirect", target)


def _data_layers(folder: str, prefix: bytes) -> None:
    """Linux 6.5; without root 6.16."""
    layer, data = os.path.join(folder, "layer"), os.path.join(folder, "data")
    os.makedirs(os.path.join(data, "ab"))
    os.mkdir(layer)
    with open(os.path.join(data, _OBJECT), "xb") as file:
        file.write(_CONTENT)
    with open(os.path.join(layer, "file"), "xb") as file:
        file.truncate(len(_CONTENT))
    metacopy(os.path.join(layer, "file"), prefix, b"/" + _OBJECT.encode())
    with _opened(layer) as one, _opened(data) as two:
        own = [("userxattr", None)] if prefix == b"user" else [("metacopy", "on"), ("redirect_dir", "on")]
        # Paths by descriptors: a value has 255 bytes.
        lowers = ("lowerdir", f"/proc/self/fd/{one}::/proc/self/fd/{two}")
        with kernel.detached("overlay", [lowers, *own], folder, kernel.MOUNT_ATTR_RDONLY) as tree:
            with open(os.open("file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree), "rb") as file:
                if file.read() != _CONTENT:
                    raise OSError(errno.EOPNOTSUPP, "overlayfs shows files without their content (before Linux 6.5)")


@contextmanager
def _opened(path: str) -> Iterator[int]:
    number = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield number
    finally:
        os.close(number)


def _write_image(path: str) -> None:
    from cadenza.fs import erofs, tree

    content = tree.Node(stat.S_IFREG | 0o644, size=len(_CONTENT), data=bytes(tree.DIGEST_BYTES))
    erofs.write(tree.put(tree.directory(), b"/file", content), path)


def _erofs(source: str) -> None:
    """From a file: Linux 6.12."""
    with _opened(source) as number:
        options = [("source", f"/proc/self/fd/{number}"), ("ro", None)]
        with kernel.detached("erofs", options, "an EROFS image", kernel.MOUNT_ATTR_RDONLY) as tree:
            with open(os.open("file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree), "rb") as file:
                if not os.getxattr(file.fileno(), b"trusted.overlay.redirect"):
                    raise OSError(errno.EOPNOTSUPP, "this kernel's EROFS has no extended attributes")


def _erofs_by_loop(image: str) -> None:
    with loop.device(image) as device:
        _erofs(device)


def _fuse() -> None:
    """A connection that nobody serves is enough: it is closed before anybody asks it for anything."""
    device = os.open(FUSE, os.O_RDWR | os.O_CLOEXEC)
    try:
        root = format(stat.S_IFDIR | 0o555, "o")
        options = [("fd", str(device)), ("rootmode", root), ("user_id", "0"), ("group_id", "0")]
        with kernel.detached("fuse", options, FUSE, kernel.MOUNT_ATTR_RDONLY):
            pass
    finally:
        os.close(device)


def describe(found: Abilities) -> list[tuple[str, bool, str, str]]:
    """Rows of ``cadenza doctor``: name, whether it is as good as can be, a sentence, a remedy or "". Pure."""
    whys = {name: why for name, why in found.reasons.items() if why}

    def because(*names: str) -> str:
        told = [f"{name}: {whys[name]}" for name in names if name in whys]
        return f" ({'; '.join(told)})" if told else ""

    forced = f" {FORCED} asks for it." if found.forced else ""
    remedy = ""
    if found.mode == "erofs":
        how = "from a loop device" if found.erofs == "loop" else "from a file"
        sentence = f"Images are EROFS metadata, mounted {how}, over shared content (mode erofs)."
    elif found.mode == "sparse":
        why = because("erofs file", "erofs loop")
        sentence = f"Images are sparse files in memory over shared content (mode sparse){why}."
        remedy = "" if forced or found.prefix == b"user" else "modprobe erofs loop"
    else:
        why = because("data layers")
        sentence = f"Images are directories of hard links, which take room and time (mode links){why}."
        remedy = "" if forced else "use Linux 6.5 or newer; without root 6.16"
    rows = [("file system", found.mode != "links", sentence + forced, remedy)]
    if found.mode == "links":
        lazy, sentence, remedy = False, "Images are fetched whole: the mode links has nothing to fetch into later.", ""
    elif found.fuse:
        lazy, sentence, remedy = True, "What this machine lacks of an image is fetched when it is first opened.", ""
    else:
        lazy, sentence = False, f"Images are fetched whole before their first container starts{because('fuse')}."
        remedies = {NEEDS_ROOT: "", NOT_OURS: f"chmod a+rw {FUSE}"}
        remedy = remedies.get(found.reasons.get("fuse", ""), "modprobe fuse")
    return [*rows, ("lazy fetching", lazy, sentence, remedy)]
