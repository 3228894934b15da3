"""What user code finds when it starts: variables, files, working directory, and ``sys.path`` as plain Python has it."""

from __future__ import annotations

import os
import sys
from types import ModuleType

from cadenza.runner import context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_ROOT = "/root"
MODULE_ALIAS = "modal"
MAX_LAYOUT_CHARS = 64 << 10
"""Linux takes 128 KiB for one variable; the children of a larger app's containers do without."""


def arrange(header: dict[str, Any], payload: bytes) -> bytes:
    """Do what an ``attach`` frame says; returns what of the payload follows the files."""
    own = {
        "TASK_ID": header["container_id"], "IMAGE_ID": header.get("image_id", ""), "IS_REMOTE": "1",
        "APP_ID": header["app_id"], "FUNCTION_ID": header["function_id"],
    }  # fmt: skip
    environ = os.environ
    environ.update(header.get("env") or {})
    for name, value in own.items():
        environ["CADENZA_" + name] = value
        if name not in ("APP_ID", "FUNCTION_ID"):
            environ["MODAL_" + name] = value
    layout = "\n".join(f"{name}={one}" for name, one in (header.get("layout") or {}).items())
    if layout and len(layout) <= MAX_LAYOUT_CHARS:
        environ[context.LAYOUT] = layout
    else:
        environ.pop(context.LAYOUT, None)
    root = environ.get("CADENZA_ROOT") or DEFAULT_ROOT
    at = 0
    for one in header.get("files") or ():
        size = int(one["size"])
        write_file(place(str(one["path"]), root), payload[at : at + size], int(one.get("mode") or 0o644))
        at += size
    lib = fix_path(root)
    cwd = place(str(header.get("cwd") or root), root)
    try:
        os.chdir(cwd)
    except FileNotFoundError:
        os.makedirs(cwd, exist_ok=True)
        os.chdir(cwd)
    # User code must not find the runner's own entry as ``__main__``: multiprocessing would run it again in children.
    sys.modules["__main__"] = ModuleType("__main__")
    sys.meta_path[:0] = [Alias(), Bundled(lib)]
    return payload[at:]


def place(path: str, root: str) -> str:
    """Where a path below /root is, for a runner whose root directory is elsewhere (no container around it)."""
    if root == DEFAULT_ROOT or path == root or path.startswith(root + "/"):
        return path
    if path == DEFAULT_ROOT or path.startswith(DEFAULT_ROOT + "/"):
        return root + path[len(DEFAULT_ROOT) :]
    return path


def write_file(path: str, content: bytes, mode: int) -> None:
    """Write a file and the directories above it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, flags, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, mode & 0o7777)
    finally:
        os.close(fd)


def fix_path(root: str) -> str:
    """``sys.path`` and site-packages as an ordinary start has them, with the root in front and our library at the end.

    ``-I -S`` skipped PYTHONPATH, ``.pth`` files, virtual environments and the user's site directory.

    Returns the library's folder.
    """
    lib = sys.path.pop() if sys.path and os.path.isdir(os.path.join(sys.path[-1], "cadenza", "runner")) else ""
    before = [os.path.abspath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    front: list[str] = []
    for one in [root, *before]:
        if one not in front and one != lib:
            front.append(one)
    sys.path[:0] = front
    os.environ["PYTHONPATH"] = os.pathsep.join([*front, lib] if lib else front)
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        sys.dont_write_bytecode = True
    import site

    if not os.environ.get("PYTHONNOUSERSITE") and site.ENABLE_USER_SITE is None:
        site.ENABLE_USER_SITE = os.getuid() == os.geteuid() and os.getgid() == os.getegid()
    site.main()
    if lib:
        sys.path.append(lib)
    return lib


class Bundled:
    """The cloudpickle of our library comes before one of the image: an older one cannot read what a newer one wrote."""

    def __init__(self, lib: str) -> None:
        self._lib = lib

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "cloudpickle" or not self._lib:
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [self._lib])


class Alias:
    """The first ``import modal`` in a container brings in `cadenza.compat`, which then answers for that name."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != MODULE_ALIAS:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        import importlib.util

        from cadenza import compat

        compat.install()
        return importlib.util.find_spec(name)
