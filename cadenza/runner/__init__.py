"""What runs inside a container: standard library only, any CPython from 3.9, booted in milliseconds.

`values`, `lane` and `context` are also used by the SDK at the other end of a call.
"""

from __future__ import annotations

RUNNER_SOCKET = "runner.sock"
LANE_SOCKET = "lane.sock"
SUPPORT_DIR = "/.cadenza/run"
"""Where the support directory is when ``CADENZA_SUPPORT`` does not say."""


def command(python: str, lib: str) -> list[str]:
    """The command line of a runner. ``python``: the image's interpreter; ``lib``: the folder that holds ``cadenza``.

    ``-I -S`` skip site-packages, ``.pth`` files and ``PYTHON*`` variables while booting; `session` restores them.
    """
    return [python, "-I", "-S", f"{lib}/cadenza/runner/__main__.py"]


def build_command(python: str, lib: str) -> list[str]:
    """The command line of a function that runs while an image is built: `cadenza.runner.buildstep`."""
    return [python, "-I", "-S", f"{lib}/cadenza/runner/buildstep.py"]


def compile_command(python: str, lib: str) -> list[str]:
    """Writes byte code for ``lib`` as this interpreter needs it. Worth it once per interpreter version and ``lib``:
    a runner that has to compile itself boots in 150 ms, not in 15."""
    return [python, "-I", "-S", f"{lib}/cadenza/runner/bundle.py", lib]
