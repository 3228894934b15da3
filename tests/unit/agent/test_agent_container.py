"""A container's life: the table, and the rules on top."""

from __future__ import annotations

import itertools
import random

import pytest

from cadenza.agent import container as c
from cadenza.agent.container import Life, apply
from cadenza.base.errors import Bug
from cadenza.protocol import nodes

START = (c.Begin(), c.Prepared(), c.Created(), c.Hello(), c.Ready())


def grown(*events: c.Event, generic: bool = False, startup_s: float = 300.0) -> Life:
    life = Life(generic=generic, startup_s=startup_s)
    for number, event in enumerate(events):
        apply(life, event, float(number))
    return life


def test_a_start_goes_through_every_state() -> None:
    life = Life()
    commands = [apply(life, event, 0.0) for event in START]
    assert [state for state, _ in life.changes] == ["preparing", "creating", "booting", "attaching", "ready"]
    assert commands == [
        [c.Report(), c.Prepare()], [c.Create()], [c.Report()], [c.Attach(), c.Report()], [c.Report()],
    ]  # fmt: skip
    assert life.deadline is None


def test_a_hello_may_overtake_the_runtime_program() -> None:
    life = grown(c.Begin(), c.Prepared(), c.Hello())
    assert life.state == c.ATTACHING
    assert apply(life, c.Created(), 5.0) == []
    assert life.state == c.ATTACHING


def test_a_generic_container_waits_and_takes_a_function_late() -> None:
    life = grown(c.Begin(), c.Prepared(), c.Created(), c.Hello(), generic=True)
    assert (life.state, life.deadline) == (c.IDLE, None)
    life.startup_s = 7.0
    assert apply(life, c.Adopt(), 100.0) == [c.Attach(), c.Report()]
    assert life.deadline == 107.0


def test_a_drain_ends_in_sigkill_at_its_deadline() -> None:
    life = grown(*START)
    assert apply(life, c.Stop(10.0, drain=True, reason="too old"), 100.0) == [c.Drain(10.0), c.Report()]
    assert apply(life, c.Tick(), 109.9) == []
    said, kill, _ = apply(life, c.Tick(), 110.0)
    assert kill == c.Kill()
    assert isinstance(said, c.Say)
    assert said.text.startswith("too old; it did not end within its grace period")
    assert life.state == c.STOPPING
    assert apply(life, c.Exited(137), 110.1)[-1] == c.Remove()
    assert (life.state, life.reason) == (c.GONE, nodes.STOPPED)


def test_without_drain_what_runs_is_cancelled_first() -> None:
    life = grown(*START)
    assert apply(life, c.Stop(10.0), 100.0) == [c.CancelAll(), c.Drain(10.0), c.Report()]


def test_a_second_order_only_shortens() -> None:
    life = grown(*START, c.Stop(10.0, drain=True))
    deadline = life.deadline
    apply(life, c.Stop(60.0, drain=True), 6.0)
    assert life.deadline == deadline
    assert apply(life, c.Stop(1.0), 7.0) == [c.CancelAll()]
    assert life.deadline == 8.0
    assert c.Kill() in apply(life, c.Stop(0.0), 7.5)


@pytest.mark.parametrize("count", range(len(START) + 1))
def test_a_stop_without_grace_is_at_once_in_every_state(count: int) -> None:
    life = grown(*START[:count])
    commands = apply(life, c.Stop(), 50.0)
    if count < 2:
        assert commands == [c.Report(), c.Remove()]
        assert life.state == c.GONE
    else:
        assert commands == [c.Kill(), c.Report()]
        assert life.deadline == 50.0 + c.KILL_LIMIT_S
    assert life.reason == nodes.STOPPED


def test_a_start_that_is_not_ready_is_killed_even_with_grace() -> None:
    """semantics.md section 12.1: exit hooks belong to what was entered."""
    assert apply(grown(*START[:4]), c.Stop(30.0, drain=True), 9.0) == [c.Kill(), c.Report()]


def test_what_survives_sigkill_is_given_up() -> None:
    life = grown(*START, c.Stop())
    assert apply(life, c.Tick(), 5.0 + c.KILL_LIMIT_S) == [c.Report(), c.Remove()]
    assert "SIGKILL" in life.message


def test_the_startup_limit_holds_until_ready_and_names_the_state() -> None:
    life = grown(*START[:4], startup_s=60.0)
    assert apply(life, c.Tick(), 59.9) == []
    assert c.Kill() in apply(life, c.Tick(), 60.1)
    assert life.reason == nodes.START_TIMEOUT
    assert "60 s (its module or an enter hook still ran)" in life.message


@pytest.mark.parametrize(
    ("events", "exited", "reason", "words"),
    [
        (START, c.Exited(1), nodes.CRASHED, "exit code 1"),
        (START, c.Exited(139), nodes.CRASHED, "SIGSEGV"),
        (START, c.Exited(137, oom=True, detail="over 64 MiB"), nodes.OOM, "over 64 MiB"),
        ((*START, c.Bye()), c.Exited(0), nodes.EXITED, ""),
        ((*START, c.Bye()), c.Exited(0, oom=True, detail="a child's"), nodes.EXITED, ""),
        ((*START, c.Stop(9.0, True), c.Bye()), c.Exited(0), nodes.EXITED, ""),
        ((*START, c.Stop()), c.Exited(137), nodes.STOPPED, ""),
        (START[:3], c.Exited(127, detail="no python3"), nodes.RUNTIME_FAILED, "no python3"),
        (START[:4], c.Exited(2), nodes.CRASHED, "imported"),
        ((*START[:4], c.Failed("import", "ValueError", b"x")), c.Exited(1), nodes.INIT_FAILED, "ValueError"),
        ((*START[:2], c.Broken("crun: no")), c.Exited(137), nodes.RUNTIME_FAILED, "crun: no"),
    ],
)
def test_why_it_is_gone(events: tuple[c.Event, ...], exited: c.Exited, reason: str, words: str) -> None:
    life = grown(*events)
    commands = apply(life, exited, 20.0)
    assert commands[-2:] == [c.Report(), c.Remove()]
    assert life.reason == reason
    assert words in life.message


def test_where_the_runner_never_came_the_hint_is_said() -> None:
    for events, last in (
        (START[:3], c.Exited(0)), (START[:2], c.Broken("no such program")), (START[:3], c.Tick()),
    ):  # fmt: skip
        life = grown(*events, startup_s=60.0)
        life.hint = "its ENTRYPOINT"
        apply(life, last, 100.0)
        assert life.message.endswith("; its ENTRYPOINT")
    life = grown(*START[:4])
    life.hint = "its ENTRYPOINT"
    apply(life, c.Exited(1), 9.0)
    assert "ENTRYPOINT" not in life.message, "the runner came"


def test_a_runner_that_said_bye_or_hung_up_does_not_linger() -> None:
    for event, reason in ((c.Bye(), nodes.EXITED), (c.Disconnected(), nodes.CRASHED)):
        life = grown(*START, event)
        assert apply(life, c.Tick(), 5.0 + c.BYE_LIMIT_S)[-2:] == [c.Kill(), c.Report()]
        assert life.reason == reason


def test_a_move_outside_of_the_table_is_a_bug() -> None:
    with pytest.raises(Bug):
        apply(Life(), c.Ready(), 0.0)
    with pytest.raises(Bug):
        apply(grown(*START), c.Adopt(), 0.0)


def test_whatever_happens_an_end_comes_in_bounded_time() -> None:
    """From any history, once a stop is ordered and time passes, it is gone: no state keeps it."""
    events: list[c.Event] = [
        c.Hello(), c.Failed("enter", "x"), c.Broken("y"), c.Stop(3.0, True), c.Stop(1.0), c.Bye(), c.Disconnected(),
        c.Exited(1), c.Tick(), *START,
    ]  # fmt: skip
    rng = random.Random(5)
    for _ in range(2000):
        life = Life(generic=rng.random() < 0.3)
        now = 0.0
        for event in itertools.chain(START[: rng.randrange(6)], rng.choices(events, k=rng.randrange(8))):
            now += rng.random()
            try:
                apply(life, event, now)
            except Bug:
                pass  # an impossible history
        apply(life, c.Stop(3.0), now)
        for _ in range(3):
            now += 6.0
            apply(life, c.Tick(), now)
        assert life.state == c.GONE
        assert life.reason in nodes.END_REASONS
        for (one, _), (two, _) in itertools.pairwise([(c.WANTED, 0.0), *life.changes]):
            assert two in c.MOVES[one]
