"""What a waiting container loads ahead."""

from __future__ import annotations

import subprocess
import sys

import pytest
from runner_peer import LIB, pythons

from cadenza.runner.preload import MODULES, preload


@pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())
def test_everything_in_the_list_can_be_loaded_and_reads_no_variable(python: str) -> None:
    code = (
        f"import sys; sys.path.append({LIB!r})\n"
        "import os\nclass Watched(dict):\n"
        "    def __getitem__(s, k):\n"
        "        raise AssertionError(k) if str(k).startswith(('CADENZA', 'MODAL')) else KeyError(k)\n"
        "    def get(s, k, d=None):\n"
        "        if str(k).startswith(('CADENZA', 'MODAL')): raise AssertionError(k)\n"
        "        return d\n"
        "os.environ = Watched()\n"
        "from cadenza.runner import preload\n"
        "assert preload.preload(lambda: False) == len(preload.MODULES)\n"
        "missing = [name for name in preload.MODULES if name not in sys.modules]\n"
        "assert not missing, missing\n"
    )
    done = subprocess.run([python, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_stops_when_it_is_wanted() -> None:
    asked = []

    def wanted() -> bool:
        asked.append(len(asked))
        return len(asked) > 3

    assert preload(wanted) == 3 < len(MODULES) and all(name in sys.modules for name in MODULES[:3])
