"""Layers on disk: plain directories for overlayfs, each made aside and put in place by one rename.

``<images>/layers/<name>``   a layer's upper directory, whiteouts and opaque marks as overlayfs left them
``<images>/steps/<digest>``  JSON: which layer a step's digest has, its size, and whether it is surely on disk
``<images>/work/<name>``     what is being made; dropped at start
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import secrets
import shutil
import stat
import sys
from dataclasses import asdict, dataclass
from typing import Iterable, Optional, Sequence

from cadenza.base.errors import InvalidError, NotFoundError, ResourceExhaustedError
from cadenza.protocol.objects import FileEntry

NAME_BYTES = 6
"""Layer names are short: overlayfs takes all of a mount's lower directories in one page."""

OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
"""A directory that hides those below; ``user.`` where the overlay was mounted without root. Source: overlayfs.rst."""

MNT_DETACH = 2


def boot_id() -> str:
    """This boot's identity: what was renamed in an earlier boot and not synced may be torn."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


@dataclass(frozen=True)
class StoredLayer:
    """What is known of a step's layer. ``boot``: the boot that made it; empty once it is surely on disk."""

    digest: str
    name: str
    size: int
    boot: str = ""
    python: str = ""
    """For a base: the interpreter's path inside."""
    version: str = ""
    """For a base: its Python, "3.11"."""
    apt: str = ""
    """For a base: which of apt's caches is its own, as in ``debian-bookworm``."""


class LayerStore:
    """The layers under one directory. Calls block; those that walk trees belong in a thread."""

    def __init__(self, directory: str) -> None:
        self._layers = os.path.join(directory, "layers")
        self._steps = os.path.join(directory, "steps")
        self._work = os.path.join(directory, "work")
        self._boot = boot_id()
        for path in (self._layers, self._steps, self._work):
            os.makedirs(path, exist_ok=True)

    def path(self, name: str) -> str:
        """A layer's directory."""
        return os.path.join(self._layers, name)

    def find(self, digest: str) -> Optional[StoredLayer]:
        """The layer that a step's digest has, if it was made and is whole."""
        try:
            with open(os.path.join(self._steps, digest), encoding="utf-8") as file:
                found = StoredLayer(**json.load(file))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if (found.boot and found.boot != self._boot) or not os.path.isdir(self.path(found.name)):
            return None
        return found

    def trusted(self, layer: StoredLayer) -> bool:
        """Whether a layer that some record names is surely whole: made in this boot, or synced since."""
        if not layer.boot or layer.boot == self._boot:
            return True
        try:
            with open(os.path.join(self._steps, layer.digest), encoding="utf-8") as file:
                value = json.load(file)
        except (OSError, ValueError):
            return False
        return isinstance(value, dict) and value.get("name") == layer.name and value.get("boot") == ""

    def begin(self) -> "Workplace":
        """An empty upper and work directory for a step."""
        while True:
            name = secrets.token_hex(NAME_BYTES)
            root = os.path.join(self._work, name)
            if not os.path.lexists(self.path(name)):
                break
        os.makedirs(os.path.join(root, "upper"))
        os.mkdir(os.path.join(root, "work"))
        os.mkdir(os.path.join(root, "more"))
        os.chmod(os.path.join(root, "upper"), 0o755)
        return Workplace(name, root)

    def keep(self, place: "Workplace", digest: str, python: str = "", version: str = "", apt: str = "") -> StoredLayer:
        """Put a step's upper directory in place as the layer of ``digest``. An earlier layer of it stays on disk."""
        layer = StoredLayer(digest, place.name, tree_bytes(place.upper), self._boot, python, version, apt)
        os.rename(place.upper, self.path(place.name))
        _write_json(os.path.join(self._steps, digest), asdict(layer))
        self.drop(place)
        return layer

    def settle(self, layer: StoredLayer) -> None:
        """Bring a layer surely to disk, to outlive a loss of power; until then another boot does not trust it."""
        sync_filesystem(self._layers)
        now = self.find(layer.digest)
        if now is not None and now.name == layer.name:
            _write_json(os.path.join(self._steps, layer.digest), {**asdict(layer), "boot": ""}, sync=True)

    def drop(self, place: "Workplace") -> None:
        """Remove what a step leaves, whatever state it is in."""
        remove_tree(place.root)

    def remove(self, layers: Iterable[StoredLayer]) -> list[str]:
        """Take these layers away; a step that has another layer by now keeps it. Gives trees for `remove_tree`."""
        trash = []
        for layer in layers:
            found = self.find(layer.digest)
            if found is None or found.name == layer.name:
                _unlink(os.path.join(self._steps, layer.digest))
            trash += self._take_away(layer.name)
        return trash

    def _take_away(self, name: str) -> list[str]:
        """Take a layer away in one move."""
        trash = os.path.join(self._work, name + ".old")
        try:
            os.rename(self.path(name), trash)
        except FileNotFoundError:
            return []
        return [trash]

    def cleanup(self, used: Iterable[str] = ()) -> None:
        """Drop what a killed process left: work directories, torn layers, layers of no step. ``used``: names kept."""
        for name in os.listdir(self._work):
            remove_tree(os.path.join(self._work, name))
        kept = set(used)
        for digest in os.listdir(self._steps):
            found = self.find(digest)
            if found is None:
                _unlink(os.path.join(self._steps, digest))
            else:
                kept.add(found.name)
        for name in os.listdir(self._layers):
            if name not in kept:
                for trash in self._take_away(name):
                    remove_tree(trash)


@dataclass(frozen=True)
class Workplace:
    """Where one step is made."""

    name: str
    root: str

    @property
    def upper(self) -> str:
        return os.path.join(self.root, "upper")

    @property
    def work(self) -> str:
        return os.path.join(self.root, "work")

    @property
    def more(self) -> str:
        """For files beside the layer: what is bound into the step."""
        return os.path.join(self.root, "more")


class Stack:
    """The layers below a step and its own upper, as one tree, to put files into without mounting it."""

    MAX_LINKS = 40

    def __init__(self, lowerdirs: Sequence[str], upper: str) -> None:
        self._upper = upper
        self._all = (upper, *lowerdirs)
        # Directories asked for so far, resolved; and those that only this upper has, where no lower needs a look.
        self._made: dict[str, str] = {}
        self._fresh: set[str] = set()

    def lookup(self, path: str) -> Optional[os.stat_result]:
        """What is at this path of the tree, whose directories are no links; None: nothing."""
        parts = [one for one in path.split("/") if one]
        for layer in self._all:
            at = layer
            for index, part in enumerate(parts):
                at = os.path.join(at, part)
                try:
                    found = os.lstat(at)
                except (FileNotFoundError, NotADirectoryError):
                    break
                if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                    return None
                if index == len(parts) - 1:
                    return found
                if not stat.S_ISDIR(found.st_mode):
                    return None
            # Not in this layer; an opaque directory on the way hides the layers below.
            if self._opaque(layer, parts[:-1]):
                return None
        return os.lstat(self._all[-1]) if not parts else None

    def _opaque(self, layer: str, parts: Sequence[str]) -> bool:
        at = layer
        for part in parts:
            at = os.path.join(at, part)
            for name in OPAQUE:
                try:
                    if os.getxattr(at, name, follow_symlinks=False) == b"y":
                        return True
                except OSError:
                    continue
        return False

    def _readlink(self, path: str) -> str:
        for layer in self._all:
            try:
                return os.readlink(layer + path)
            except OSError:
                continue
        raise FileNotFoundError(path)

    def resolve(self, path: str) -> str:
        """The path with every link on its way followed, within the tree. InvalidError when links go in a circle."""
        rest = [one for one in path.split("/") if one]
        done: list[str] = []
        links = 0
        while rest:
            part = rest.pop(0)
            if part == ".":
                continue
            if part == "..":
                done = done[:-1]
                continue
            here = "/" + "/".join([*done, part])
            found = self.lookup(here)
            if found is not None and stat.S_ISLNK(found.st_mode):
                links += 1
                if links > self.MAX_LINKS:
                    raise InvalidError(f"links in the image go in a circle at {here}")
                target = self._readlink(here)
                if target.startswith("/"):
                    done = []
                rest = [one for one in target.split("/") if one] + rest
            else:
                done.append(part)
        return "/" + "/".join(done)

    def make_directory(self, path: str) -> str:
        """Make the directory and those above it, keeping what lower layers say of them; gives its resolved path."""
        if path in self._made:
            return self._made[path]
        resolved = self.resolve(path)
        at = ""
        for part in [one for one in resolved.split("/") if one]:
            at += "/" + part
            if at in self._fresh:
                continue
            found = self.lookup(at)
            if found is None:
                self._fresh.add(at)
            elif not stat.S_ISDIR(found.st_mode):
                raise InvalidError(f"{at} in the image is a file, so {path} cannot be below it")
            if os.path.isdir(self._upper + at):
                continue
            try:
                whiteout = os.lstat(self._upper + at)
            except FileNotFoundError:
                whiteout = None
            if whiteout is not None:
                os.unlink(self._upper + at)
            os.mkdir(self._upper + at, 0o755)
            os.chmod(self._upper + at, stat.S_IMODE(found.st_mode) if found is not None else 0o755)
            if found is not None and os.geteuid() == 0:
                os.chown(self._upper + at, found.st_uid, found.st_gid)
            if whiteout is not None:
                self._hide(self._upper + at)
        self._made[path] = resolved
        return resolved

    def _hide(self, directory: str) -> None:
        for name in OPAQUE:
            try:
                os.setxattr(directory, name, b"y")
                return
            except OSError:
                continue

    def put(self, source: str, entry: FileEntry) -> None:
        """Copy a file to its place. InvalidError when a directory is there."""
        folder = self.make_directory(os.path.dirname(entry.path))
        target = folder.rstrip("/") + "/" + os.path.basename(entry.path)
        if folder in self._fresh:
            found = os.lstat(self._upper + target) if os.path.lexists(self._upper + target) else None
        else:
            target = self.resolve(target)
            found = self.lookup(target)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise InvalidError(f"{entry.path} is a directory in the image; a file cannot take its place")
        if os.path.dirname(target) != folder:
            self.make_directory(os.path.dirname(target))
        if os.path.lexists(self._upper + target):
            os.unlink(self._upper + target)
        shutil.copyfile(source, self._upper + target)
        os.chmod(self._upper + target, entry.mode & 0o7777)


def copy_files(stack: Stack, files: Iterable[FileEntry], paths: Iterable[Optional[str]]) -> None:
    """Put files whose content is at ``paths`` on this machine. NotFoundError when one's content is not here."""
    for entry, path in zip(files, paths, strict=True):
        if path is None:
            raise NotFoundError(f"the content of {entry.path} was not uploaded ({entry.digest[:12]})")
        stack.put(path, entry)


def tree_bytes(root: str) -> int:
    """The bytes that a tree takes on disk; a file with several names counts once."""
    seen: set[int] = set()
    total = 0
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for one in entries:
                info = one.stat(follow_symlinks=False)
                if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                    if info.st_ino in seen:
                        continue
                    seen.add(info.st_ino)
                total += info.st_blocks * 512
                if stat.S_ISDIR(info.st_mode):
                    waiting.append(one.path)
    return total


def sync_filesystem(path: str) -> None:
    """syncfs(2): all of the file system that holds ``path`` goes to disk. OSError when the disk failed."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "syncfs failed", path)
    finally:
        os.close(descriptor)


def remove_tree(root: str) -> None:
    """Remove a tree, after detaching what a killed step left mounted in it, so that nothing else is reached."""
    if not os.path.lexists(root):
        return
    for mounted in mounts_below(os.path.realpath(root)):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(mounted), MNT_DETACH) != 0:
            return  # not ours to undo: leave it for the next start
    for _ in range(3):  # a dying process may still have put a file in
        if sys.version_info >= (3, 12):
            shutil.rmtree(root, onexc=_open_up)
        else:
            shutil.rmtree(root, onerror=_open_up)
        if not os.path.lexists(root):
            return


def _open_up(function: object, path: str, error: object) -> None:
    """A build without root may leave directories that even their owner cannot list."""
    try:
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
        else:
            os.unlink(path)
    except OSError:
        return


def mounts_below(root: str) -> list[str]:
    """Mount points at or under a path, the deepest first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            where = line.split(" ", 5)[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            if where == root or where.startswith(root + "/"):
                found.append(where)
    return sorted(found, key=len, reverse=True)


def explain(error: OSError, directory: str) -> Exception:
    """A full disk as an error that says where and what to do; other errors as they are."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhaustedError(
            f"the disk that holds {directory} is full, so the image could not be stored: free some space there, or set "
            "CADENZA_HOME to a directory on a larger disk"
        )
    return error


def _write_json(path: str, value: object, sync: bool = False) -> None:
    scratch = f"{path}.{secrets.token_hex(4)}.new"
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(value, file)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(scratch, path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
