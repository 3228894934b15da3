"""What is kept of a step while it is made. The rest of `cadenza.fs.runs` is tested with `cadenza.fs.images`."""

from __future__ import annotations

from cadenza.fs import runs
from cadenza.fs.runs import _Making
from cadenza.fs.steplogs import MAX_CHARS, MAX_LINES
from cadenza.protocol.nodes import BuildLine


def test_of_a_step_s_output_the_end_is_kept() -> None:
    making = _Making()
    for number in range(3 * MAX_LINES):
        making.emit(0.0, "log", str(number))
    assert len(making.lines) <= MAX_LINES and making.lines[-1] == (0.0, "log", str(3 * MAX_LINES - 1))
    for _ in range(2 * MAX_CHARS // 2000):
        making.emit(0.0, "log", "x" * 2000)
    assert sum(len(text) for _, _, text in making.lines) <= MAX_CHARS


def test_a_build_inside_of_a_build_tells_its_steps_and_their_output() -> None:
    said: list[tuple[str, str]] = []
    for kind, text in (("step", "RUN a"), ("log", "out"), ("done", "0.5 s"), ("cached", "im-x")):
        runs.told(BuildLine(kind, 2, 3, text), lambda *one: said.append(one))
    assert said == [("log", "=> step 2 of 3: RUN a"), ("log", "out")]
