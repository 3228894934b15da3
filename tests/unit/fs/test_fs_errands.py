"""Who waits for what: one errand for each thing, what is needed before what may be."""

from __future__ import annotations

from cadenza.fs.errands import Errands, Waiter


def test_many_wait_for_one_errand() -> None:
    errands: Errands[str] = Errands()
    first, second = Waiter(), Waiter()
    errands.ask(first, ["a"])
    errands.ask(second, ["a"])
    assert errands.begin(ahead=True) == ("a", True)
    assert errands.begin(ahead=True) is None
    assert errands.end("a") == [first, second]
    assert not errands.waiting and not len(errands)


def test_who_needs_several_goes_on_with_the_last() -> None:
    errands: Errands[str] = Errands()
    waiter = Waiter()
    errands.ask(waiter, ["a", "b"])
    assert [errands.begin(False), errands.begin(False)] == [("a", True), ("b", True)]
    assert errands.end("b") == []
    assert errands.end("a") == [waiter]


def test_a_failure_is_told_at_once_and_once() -> None:
    errands: Errands[str] = Errands()
    waiter, error = Waiter(), OSError("gone")
    errands.ask(waiter, ["a", "b"])
    errands.begin(False)
    errands.begin(False)
    assert errands.end("a", error) == [waiter]
    assert waiter.error is error
    assert errands.end("b") == []


def test_what_is_needed_goes_before_what_may_be() -> None:
    errands: Errands[str] = Errands()
    assert errands.ahead(["a", "b", "c"]) == 3
    assert errands.ahead(["c", "d"]) == 1
    errands.ask(Waiter(), ["x"])
    errands.ask(Waiter(), ["b"])
    assert errands.begin(ahead=False) == ("x", True)
    assert errands.begin(ahead=False) == ("b", True)
    assert errands.begin(ahead=False) is None
    assert [errands.begin(ahead=True) for _ in range(4)] == [("a", False), ("c", False), ("d", False), None]


def test_a_running_errand_ahead_of_need_is_not_begun_twice() -> None:
    errands: Errands[str] = Errands()
    errands.ahead(["a"])
    assert errands.begin(ahead=True) == ("a", False)
    waiter = Waiter()
    errands.ask(waiter, ["a"])
    assert errands.begin(ahead=True) is None
    assert errands.end("a") == [waiter]


def test_the_patient_hear_when_all_of_it_is_over() -> None:
    errands: Errands[str] = Errands()
    wanted = Waiter(patient=True)
    errands.ask(wanted, ["a", "b"])
    errands.begin(True)
    errands.begin(True)
    assert errands.end("a", OSError()) == []
    assert errands.end("b") == [wanted]
    assert wanted.failed == 1
    assert not errands.waiting


def test_the_late_leave_and_the_errand_goes_on() -> None:
    errands: Errands[str] = Errands()
    soon, later = Waiter(until=10.0), Waiter(until=20.0)
    errands.ask(soon, ["a"])
    errands.ask(later, ["a"])
    errands.begin(False)
    assert errands.late(9.9) == []
    assert errands.late(10.0) == [soon]
    assert not errands.leave(soon)
    assert errands.end("a") == [later]


def test_who_left_hears_nothing() -> None:
    errands: Errands[str] = Errands()
    waiter = Waiter()
    errands.ask(waiter, ["a", "b"])
    errands.begin(False)
    errands.begin(False)
    assert errands.leave(waiter)
    assert not errands.leave(waiter)
    assert errands.end("a") == [] and errands.end("b") == []


def test_giving_up_what_nobody_needs_spares_what_is_needed() -> None:
    errands: Errands[str] = Errands()
    wanted = Waiter(patient=True)
    errands.ask(wanted, ["a", "b", "c"])
    errands.ask(Waiter(), ["b"])
    assert errands.begin(True) == ("b", True)
    assert errands.begin(True) == ("a", False)
    assert errands.drop_ahead(OSError("full")) == []  # "c" alone was given up
    assert errands.begin(True) is None
    assert wanted.missing == {"a", "b"} and wanted.failed == 1
