"""Runs one function while an image is built, in a container of the image so far: `Image.run_function`.

Started by its path: ``python3 -I -S .../cadenza/runner/buildstep.py``. The directory `DIRECTORY` holds ``call.json``
(module, qualname, python, is_async, is_generator), and, where there are any, ``function.pkl`` (instead of a module)
and ``arguments.pkl`` (a packed ``(args, kwargs)``). Exits with 0, or with 1 after the traceback. semantics.md 13.3.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

DIRECTORY = "/.cadenza/build/function"
"""Where what is to run is, when ``CADENZA_BUILD_FUNCTION`` does not say."""


def main() -> NoReturn:
    """Run the function and exit the process, with its exit functions and threads as at any program's end."""
    sys.path.append(os.path.abspath(__file__).rsplit("/cadenza/runner/", 1)[0])
    # Byte code of the program's own files would be all that is left of them in the image.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # a build's log is read while it runs
    directory = os.environ.pop("CADENZA_BUILD_FUNCTION", "") or DIRECTORY
    _settle()
    sys.exit(_run(directory))


def _settle() -> None:
    """The surroundings of user code, as `surroundings.arrange` makes them for a function's container."""
    from types import ModuleType

    from cadenza.runner import context, surroundings

    os.environ["CADENZA_IS_REMOTE"] = os.environ["MODAL_IS_REMOTE"] = "1"
    root = os.environ.get("CADENZA_ROOT") or surroundings.DEFAULT_ROOT
    lib = surroundings.fix_path(root)
    sys.dont_write_bytecode = True
    sys.modules["__main__"] = ModuleType("__main__")
    sys.meta_path[:0] = [surroundings.Alias(), surroundings.Bundled(lib)]
    context.become(context.Container(context.BUILD))


def _run(directory: str) -> Any:
    """What the process exits with."""
    import json

    from cadenza.runner import loader

    with open(f"{directory}/call.json", encoding="utf-8") as file:
        call = json.load(file)
    try:
        _check_python(call)
        function = loader.load({**call, "name": call.get("qualname", "")}, _read(f"{directory}/function.pkl"))
        packed = _read(f"{directory}/arguments.pkl")
        args, kwargs = loader.unpickle(packed) if packed else ((), {})
        _finish(function(*args, **kwargs), call)
    except SystemExit as error:
        return error.code
    except BaseException as error:
        _show(error)
        return 1
    return 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _check_python(call: dict[str, Any]) -> None:
    """A pickled function is byte code: it runs on the version alone that wrote it."""
    from cadenza.base.errors import ExecutionError

    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    wanted = call.get("python") or own
    if not call.get("module") and wanted != own:
        raise ExecutionError(
            f"the function was defined in an interactive session of Python {wanted}, and the image has {own}: use the "
            "same version in both, or define the function in a file"
        )


def _finish(result: Any, call: dict[str, Any]) -> None:
    """Wait for what is not over when the function has returned."""
    import types

    from cadenza.base.errors import InvalidError

    if isinstance(result, (types.GeneratorType, types.AsyncGeneratorType)):
        raise InvalidError(
            f"run_function: {call.get('qualname') or 'the function'} is a generator, which nobody iterates over: "
            "let it return"
        )
    if hasattr(type(result), "__await__"):
        import asyncio

        async def wait() -> None:
            await result

        asyncio.run(wait())


def _show(error: BaseException) -> None:
    """The traceback of the user's code, without the frames of this library at its top."""
    import traceback

    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith((own, "<frozen importlib")):
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames)


if __name__ == "__main__":
    main()
