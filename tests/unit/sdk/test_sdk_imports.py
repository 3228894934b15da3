"""What declaring an app loads: a container pays for it at each cold start (docs/architecture.md)."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

SLOW = (
    "asyncio", "collections", "concurrent.futures", "dataclasses", "enum", "functools", "hashlib", "inspect",
    "json", "logging", "pathlib", "pickle", "re", "socket", "ssl", "subprocess", "tempfile", "threading",
    "traceback", "typing",
)  # fmt: skip
"""None of these is loaded by a bare interpreter, and each costs from one to forty milliseconds."""

DECLARES = """
    import cadenza

    image = cadenza.Image.debian_slim("3.12").apt_install("git").pip_install("numpy").env({"A": "1"})
    image = image.run_commands("true").add_local_dir(".", "/data", ignore=["**/*.pyc"]).add_local_python_source("json")
    app = cadenza.App("named", image=image, tags={"a": "b"})

    @app.function(
        cpu=2.0, memory=(256, 512), secrets=[cadenza.Secret.from_dict({"KEY": "value"})], env={"B": "2"},
        retries=cadenza.Retries(max_retries=3), timeout=60, max_containers=4,
    )
    def first(x: int, *, y: str = "a") -> int:
        return x

    @app.function(retries=1)
    @cadenza.concurrent(max_inputs=10)
    async def second(x: int) -> int:
        return x

    @app.local_entrypoint()
    def main() -> None: ...
"""


DECLARES_CLASSES = """
    import cadenza

    app = cadenza.App("named")

    @app.cls(cpu=1.0)
    @cadenza.concurrent(max_inputs=3)
    class Model:
        size: int = cadenza.parameter(default=3)
        name: "str" = cadenza.parameter()

        @cadenza.enter()
        def load(self) -> None: ...

        @cadenza.method()
        def predict(self, x: int) -> int:
            return x

        @cadenza.exit()
        def close(self) -> None: ...

    changed = Model.with_options(cpu=2.0)
    one = changed(name="a").predict
"""


def loaded(program: str) -> set[str]:
    """The modules that a fresh interpreter has after ``program``, beyond those it has anyway."""
    script = f"import sys; before = set(sys.modules); sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(program)}\n"
    script += "found = sorted(set(sys.modules) - before)\nimport json; print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing() -> None:
    assert {one for one in loaded("import cadenza") if not one.startswith("cadenza")} <= {"__future__"}


def test_declaring_an_app_loads_nothing_slow() -> None:
    found = loaded(DECLARES)
    assert "cadenza.sdk.app" in found
    assert not found & set(SLOW)
    assert not {one for one in found if one.startswith("cadenza.protocol")}


def test_declaring_a_class_loads_nothing_slow() -> None:
    found = loaded(DECLARES_CLASSES)
    assert "cadenza.sdk.cls" in found
    assert not found & set(SLOW)
    assert not {one for one in found if one.startswith("cadenza.protocol")}


def test_declaring_an_app_stays_small() -> None:
    ours = {one for one in loaded(DECLARES) if one.startswith("cadenza")}
    assert len(ours) <= 34, sorted(ours)


@pytest.mark.parametrize("name", ["experimental", "call_graph", "types", "config"])
def test_modules_that_programs_import_by_statement(name: str) -> None:
    """``import modal.experimental`` with the name changed; the attribute and the module are one object."""
    program = f"import cadenza.{name} as one\nimport cadenza, sys\n"
    program += f"assert one is cadenza.{name} is sys.modules['cadenza.{name}'], one\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
