"""`modal` as another name for this package, for programs written for Modal.

`install` puts a finder first on ``sys.meta_path``; nothing is imported until a program asks for `modal`. The submodules
are the very same module objects; `modal` itself is a view on `cadenza` that says another ``__version__``.

``python -m cadenza.compat prog.py ...`` runs a program with the alias; ``-m pkg.mod`` runs a module.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, Optional, Sequence

MODAL_VERSION = "1.6.4"
"""The client whose programs run."""
ALIAS = "modal"
HOME = "cadenza"

# Submodules of `modal` that have another place here.
MODULES = {
    "app": "cadenza.sdk.app",
    "call_graph": "cadenza.sdk.types",
    "client": "cadenza.sdk.client",
    "cls": "cadenza.sdk.cls",
    "config": "cadenza.sdk.settings",
    "exception": "cadenza.exception",
    "experimental": "cadenza.sdk.experimental",
    "file_pattern_matcher": "cadenza.sdk.patterns",
    "functions": "cadenza.sdk.function",
    "image": "cadenza.sdk.image",
    "object": "cadenza.sdk.handle",
    "output": "cadenza.sdk.output",
    "partial_function": "cadenza.sdk.decorators",
    "retries": "cadenza.sdk.retries",
    "schedule": "cadenza.sdk.schedule",
    "secret": "cadenza.sdk.secret",
    "types": "cadenza.sdk.types",
}


class _Finder:
    """Finds `modal` and all below it, and nothing else."""

    def __init__(self) -> None:
        self.announce = False

    def find_spec(
        self, name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        if name != ALIAS and not name.startswith(ALIAS + "."):
            return None
        from importlib.machinery import ModuleSpec

        if name == ALIAS:
            if self.announce:
                self._announce()
            return ModuleSpec(name, _loader(_Root()), is_package=True)
        below = name[len(ALIAS) + 1 :]
        home = MODULES.get(below)
        if home is None:
            raise ModuleNotFoundError(
                f"No module named {name!r}: Cadenza stands in for modal {MODAL_VERSION} and has no such module",
                name=name,
            )
        return ModuleSpec(name, _loader(_Same(home)))

    def _announce(self) -> None:
        """One line if the real thing is installed too, so that nobody wonders which one ran."""
        self.announce = False
        from importlib.machinery import PathFinder

        real = PathFinder.find_spec(ALIAS)
        if real is not None and real.origin:
            print(f"cadenza: `import modal` means Cadenza here, not the package at {real.origin}", file=sys.stderr)


def _loader(one: Any) -> Any:
    """What has the two methods is a loader; the abstract class is slow to import."""
    return one


class _Root:
    """Loads `modal` itself."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _view()

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Same:
    """Loads a submodule: it is the one that `home` names."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.spec: Any = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        from importlib import import_module

        module = import_module(self.home)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system wrote the alias's over it


def _view() -> ModuleType:
    """A module that has all names of `cadenza` and Modal's version."""
    from types import ModuleType

    import cadenza

    class View(ModuleType):
        def __getattr__(self, name: str) -> Any:
            home = MODULES.get(name)
            if home is not None:
                from importlib import import_module

                return import_module(home)
            return getattr(cadenza, name)

        def __dir__(self) -> list[str]:
            return sorted({*dir(cadenza), *MODULES})

    view = View(ALIAS, cadenza.__doc__)
    view.__version__ = MODAL_VERSION  # type: ignore[attr-defined]
    view.__file__ = cadenza.__file__
    view.__path__ = list(cadenza.__path__)
    return view


_finder = _Finder()


def install(announce: bool = False) -> None:
    """Make `import modal` mean this package, in this process. May be called again.

    A real `modal` that is already loaded is forgotten. ``announce``: say so once on stderr if one is installed."""
    _finder.announce = _finder.announce or announce
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        loaded = sys.modules.get(ALIAS)
        if loaded is not None and getattr(loaded, "__version__", None) is not None:
            for name in [one for one in sys.modules if one == ALIAS or one.startswith(ALIAS + ".")]:
                del sys.modules[name]


def uninstall() -> None:
    """Undo `install`: for tests."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name in [one for one in sys.modules if one == ALIAS or one.startswith(ALIAS + ".")]:
        del sys.modules[name]


USAGE = "usage: python -m cadenza.compat [-m] program [argument ...]"


def main(arguments: list[str]) -> None:
    """Run a program as the interpreter would, with the alias installed. Exits as the program does."""
    if not arguments or arguments[0] in ("-h", "--help") or (arguments[0] == "-m" and len(arguments) < 2):
        print(USAGE, file=sys.stderr)
        raise SystemExit(0 if arguments and arguments[0] in ("-h", "--help") else 2)
    install(announce=True)
    if arguments[0] == "-m":
        import runpy

        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    _run_file(arguments)


def _run_file(arguments: list[str]) -> None:
    import builtins
    import os
    from importlib.machinery import SourceFileLoader
    from types import ModuleType

    path = arguments[0]
    if not os.path.isfile(path):
        print(f"cadenza.compat: no file {path}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = list(arguments)
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    module = ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = SourceFileLoader("__main__", path)
    module.__dict__["__builtins__"] = builtins
    module.__dict__["__cached__"] = None
    module.__spec__ = None
    sys.modules["__main__"] = module
    with open(path, "rb") as stream:
        source = stream.read()
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        trace = error.__traceback__
        if trace is not None:
            trace = trace.tb_next  # this frame is none of the program's
        error.__traceback__ = trace
        sys.excepthook(type(error), error, trace)
        raise SystemExit(1) from None


if __name__ == "__main__":
    from cadenza.compat import main as _main

    _main(sys.argv[1:])
