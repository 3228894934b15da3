"""All code of the library in one file: a boot reads one instead of finding thirty, 3 ms less, more under gVisor.

The file is made beside the byte code, for one version of the interpreter; without it everything is imported as usual.

    magic number of the interpreter's byte code | u32 length, big-endian
    marshal of (code of this module, index): ``__main__`` runs it before anything of the package is imported
    marshal of each module's code

The index maps a module's name to (offset in the file's third part, length, whether it is a package, its file).
"""

from __future__ import annotations

import marshal
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any, Optional

PACKAGE = "cadenza"


def path(lib: str) -> str:
    """Where this interpreter's bundle of ``lib`` is."""
    return f"{lib}/.code-{sys.implementation.cache_tag}"


def install(lib: str, index: dict[str, tuple[int, int, bool, str]], start: int) -> None:
    """Let the modules of ``lib`` come out of its bundle, whose third part begins at ``start``."""
    sys.meta_path.insert(0, Bundle(lib, index, start))


class Bundle:
    """Finder and loader. Sources are where they always are, for tracebacks and `inspect`."""

    def __init__(self, lib: str, index: dict[str, tuple[int, int, bool, str]], start: int) -> None:
        self._lib = lib
        self._index = index
        self._start = start
        self._path = path(lib)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        entry = self._index.get(name)
        if entry is None:
            return None
        origin = f"{self._lib}/{entry[3]}"
        spec = ModuleSpec(name, self, origin=origin)  # type: ignore[arg-type]
        spec.has_location = True
        if entry[2]:
            spec.submodule_search_locations = [origin.rpartition("/")[0]]
        return spec

    def create_module(self, spec: Any) -> Optional[ModuleType]:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self.get_code(module.__name__), module.__dict__)

    def get_code(self, name: str) -> CodeType:
        """The module's code: `runpy` asks for it."""
        offset, length, _, _ = self._index[name]
        with open(self._path, "rb", 0) as file:
            file.seek(self._start + offset)
            code: CodeType = marshal.loads(file.read(length))
        return code

    def is_package(self, name: str) -> bool:
        return self._index[name][2]

    def get_filename(self, name: str) -> str:
        return f"{self._lib}/{self._index[name][3]}"

    def get_source(self, name: str) -> str:
        """For `linecache`."""
        with open(self.get_filename(name), encoding="utf-8") as file:
            return file.read()


def write(lib: str, shown: str) -> None:
    """Make the bundle of ``lib`` for this interpreter; ``shown`` is the library's path where it will be used."""
    import os

    index: dict[str, tuple[int, int, bool, str]] = {}
    pieces: list[bytes] = []
    size = 0
    for folder, folders, files in os.walk(os.path.join(lib, PACKAGE)):
        folders[:] = sorted(one for one in folders if one != "__pycache__")
        for file_name in sorted(files):
            if not file_name.endswith(".py"):
                continue
            relative = os.path.relpath(os.path.join(folder, file_name), lib)
            with open(os.path.join(lib, relative), "rb") as file:
                source = file.read()
            piece = marshal.dumps(compile(source, f"{shown}/{relative}", "exec", dont_inherit=True, optimize=0))
            parts = relative[: -len(".py")].split(os.sep)
            package = parts[-1] == "__init__"
            index[".".join(parts[:-1] if package else parts)] = (size, len(piece), package, relative)
            pieces.append(piece)
            size += len(piece)
    offset, length, _, _ = index[f"{PACKAGE}.runner.bundle"]
    own = marshal.loads(b"".join(pieces)[offset : offset + length])
    head = marshal.dumps((own, index))
    unfinished = f"{path(lib)}.{os.getpid()}"
    with open(unfinished, "wb") as file:
        file.write(MAGIC_NUMBER + len(head).to_bytes(4, "big") + head + b"".join(pieces))
    os.chmod(unfinished, 0o644)
    os.replace(unfinished, path(lib))


def compile_all(lib: str, shown: str) -> None:
    """Byte code beside each file of ``lib``, never checked against it, and the bundle."""
    import os
    import py_compile

    for folder, _, files in os.walk(lib):
        for file_name in files:
            if file_name.endswith(".py"):
                found = os.path.join(folder, file_name)
                mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
                py_compile.compile(found, dfile=shown + found[len(lib) :], invalidation_mode=mode, quiet=1)
    write(lib, shown)


if __name__ == "__main__":
    compile_all(sys.argv[1], sys.argv[1])
