"""ids, clock, errors: semantics.md section 2."""

from __future__ import annotations

import builtins
import pickle
import random

import pytest

from cadenza import exception
from cadenza.base import errors, ids
from cadenza.base.clock import ManualClock


def test_ids_are_of_their_kind_and_come_from_the_given_source() -> None:
    first, again = (ids.IdSource(random.Random(7).randbytes) for _ in range(2))
    made = [first.new(kind) for kind in ids.KINDS]
    assert made == [again.new(kind) for kind in ids.KINDS]
    for one, (kind, prefix) in zip(made, ids.KINDS.items()):
        assert one.startswith(prefix + "-") and len(one) == len(prefix) + 1 + ids.BODY_CHARS
        assert ids.kind_of(one) == kind


def test_an_id_is_its_number_in_base_62() -> None:
    made = ids.IdSource(lambda count: bytes(count - 1) + b"\x3f").new("call")
    assert made == "fc-" + "1" + "1" + "0" * (ids.BODY_CHARS - 2)  # 63 = 1 + 1 * 62, lowest digit first


@pytest.mark.parametrize("text", ["", "fc", "fc-", "zz-abc", "fc-a b", "fc-é", "-abc"])
def test_what_is_no_id(text: str) -> None:
    assert ids.kind_of(text) is None


def test_a_manual_clock_moves_when_told() -> None:
    clock = ManualClock(5.0)
    assert clock.advance(2.5) == clock.now() == clock.monotonic() == 7.5
    with pytest.raises(ValueError):
        clock.advance(-1)


def test_nothing_derives_from_the_builtin_of_its_name() -> None:
    """Semantics 2 and 33.1."""
    for name in ("TimeoutError", "ConnectionError"):
        assert not issubclass(getattr(exception, name), getattr(builtins, name))
    assert not issubclass(exception.FunctionTimeoutError, builtins.TimeoutError)
    assert issubclass(exception.FunctionTimeoutError, exception.TimeoutError)
    assert issubclass(exception.ConflictError, exception.InvalidError)
    assert issubclass(exception.ImageBuildError, exception.RemoteError)
    assert issubclass(exception.DeprecationError, UserWarning)
    assert not issubclass(exception.InputCancellation, Exception)


def test_errors_show_and_pickle_as_public() -> None:
    error = exception.NotFoundError("gone")
    assert type(error).__module__ == "cadenza.exception"
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is exception.NotFoundError and back.args == ("gone",)


def test_errors_cross_the_wire_by_their_word() -> None:
    for kind, cls in errors.KINDS.items():
        assert isinstance(errors.from_kind(kind, "why"), cls)
        assert errors.KINDS[errors.kind_of(cls("why"))] is cls
    assert errors.kind_of(errors.ImageBuildError("x")) == "image_build"
    assert errors.kind_of(RuntimeError()) == "internal"
    built = errors.from_kind("image_build", "step 2", {"image_id": "im-1"})
    assert isinstance(built, errors.ImageBuildError) and built.image_id == "im-1"
    newer = errors.from_kind("quota", "no more")
    assert isinstance(newer, errors.InternalError) and "quota" in str(newer)
