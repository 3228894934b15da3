"""Values and exceptions to bytes and back: semantics.md sections 4 and 5; wire.md, 'Values'."""

from __future__ import annotations

import builtins
import pickle
import struct
import subprocess
import sys
import threading
import traceback
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from runner_peer import LIB, pythons

from cadenza.base.errors import DeserializationError, ExecutionError, InvalidError, SerializationError
from cadenza.runner import faults, values

ATOMS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.dates() | st.decimals(allow_nan=False)
)  # fmt: skip
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner), max_leaves=40
)


def unpacked(obj: Any, **options: Any) -> Any:
    return values.unpack(values.pack_bytes(obj), **options)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_round_trip(obj: Any) -> None:
    again = unpacked(obj)
    assert again == obj and type(again) is type(obj)


@given(st.lists(st.integers(0, 200_000), max_size=5), st.sampled_from(["u1", "f4", "i8"]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_arrays(sizes: list[int], dtype: str, fortran: bool) -> None:
    """Large buffers lie outside of the pickle, aligned to 64 bytes; every array can be written to."""
    arrays = [np.arange(size // 8 * 2).astype(dtype).reshape((2, -1), order="F" if fortran else "C") for size in sizes]
    parts = values.pack({"arrays": arrays})
    data = b"".join(parts)
    form, minor, count = struct.unpack_from(">BBH", data)
    assert (form, minor) == (1, sys.version_info[1])
    assert count == sum(one.nbytes >= values.OUT_OF_BAND_BYTES for one in arrays)
    for buffer in (data, bytearray(data), memoryview(bytearray(data))):
        again = values.unpack(buffer)["arrays"]
        for one, other in zip(arrays, again):
            assert np.array_equal(one, other) and one.dtype == other.dtype and other.flags.writeable
            other += 1
    at = 12 + 8 * count + struct.unpack_from(">Q", data, 4 + 8 * count)[0]
    for part in parts:
        if isinstance(part, memoryview):
            at += -at % 64
            assert data[at : at + len(part)] == bytes(part)
            at += len(part)


def test_large_arrays_are_neither_copied_in_nor_out() -> None:
    array = np.zeros(1 << 20, "u1")
    parts = values.pack(array)
    view = next(part for part in parts if isinstance(part, memoryview))
    array[7] = 5
    assert view[7] == 5
    buffer = bytearray(b"".join(parts))
    again = values.unpack(buffer)
    again[9] = 77
    assert 77 in buffer


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_rubbish_is_a_deserialization_error(data: bytes) -> None:
    """No buffer makes anything but our error, nor reads past its end. (What a pickle runs is its sender's right.)"""
    with pytest.raises(DeserializationError):
        values.unpack(struct.pack(">BBHQ", 1, 0, 1, 0) + data[:11])
    with pytest.raises(DeserializationError, match=r"format|not a packed value"):
        values.unpack(b"\x07" + data)


def test_cut_short() -> None:
    data = values.pack_bytes(np.zeros(100_000))
    for cut in (0, 1, 3, 11, 19, 100, len(data) - 1):
        with pytest.raises(DeserializationError):
            values.unpack(data[:cut])


class Local:
    pass


def test_functions_without_a_name_go_by_value() -> None:
    def inner(x: int) -> int:
        return x + offset

    offset = 4
    assert unpacked((lambda x: x * 2, inner))[0](4) == 8
    assert unpacked(inner)(1) == 5
    assert unpacked(Local) is Local and isinstance(unpacked(Local()), Local)


def test_main_goes_by_value() -> None:
    code = (
        f"import sys; sys.path.insert(0, {LIB!r})\nfrom cadenza.runner import values\n"
        "class Own:\n    x = 3\n"
        "def own(): return Own.x\n"
        "sys.stdout.buffer.write(values.pack_bytes((own, Own())))"
    )
    data = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    own, thing = values.unpack(data)
    assert own() == 3 and thing.x == 3


def test_unpicklable() -> None:
    with pytest.raises(SerializationError, match=r"type builtins\.tuple.*lock"):
        values.pack((threading.Lock(), 1))
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="nested too deeply"):
        values.pack(deep)


class Handle:
    def __init__(self, object_id: str) -> None:
        self.object_id = object_id


def persistent_id(obj: Any) -> Any:
    if isinstance(obj, Handle):
        if not obj.object_id:
            raise InvalidError("not hydrated")
        return (obj.object_id, "Handle", {"x": 1})
    return None


def test_handles_travel_by_reference() -> None:
    packed = values.pack_bytes({"h": [Handle("fu-1")], "f": lambda: 1, "a": np.zeros(100_000)}, persistent_id)
    found = values.unpack(packed, lambda reference: reference)
    assert found["h"] == [("fu-1", "Handle", {"x": 1})] and found["f"]() == 1 and len(found["a"]) == 100_000
    plain = values.pack_bytes([Handle("fu-2"), np.zeros(100_000)], persistent_id)
    assert b"cloudpickle" not in plain and values.unpack(plain, lambda reference: reference[0])[0] == "fu-2"
    large = values.pack_bytes([Handle("fu-3"), "x" * 200_000, np.zeros(100_000)], persistent_id)
    assert values.unpack(large, lambda reference: reference[0])[0] == "fu-3"
    assert values.unpack(values.pack_bytes(["x" * 200_000]), lambda reference: 0) == ["x" * 200_000]
    with pytest.raises(InvalidError, match="not hydrated"):
        values.pack([Handle("")], persistent_id)
    with pytest.raises(DeserializationError):
        values.unpack(plain)


class Vanishing:
    pass


def test_missing_module_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4: DeserializationError with a hint in the container; ExecutionError for a caller's result."""
    packed = values.pack_bytes(Vanishing())
    monkeypatch.delattr(f"{__name__}.Vanishing")
    with pytest.raises(DeserializationError, match=r"Vanishing.*same version of the code"):
        values.unpack(packed)
    with pytest.raises(ExecutionError):
        values.unpack(packed, result=True)
    gone = values.pack_bytes(Local()).replace(__name__.encode(), b"x" * len(__name__))
    with pytest.raises(DeserializationError, match=r"module 'x+' is not there.*add_local_python_source"):
        values.unpack(gone)
    with pytest.raises(ExecutionError, match="is not there"):
        values.unpack(gone, result=True)
    other = gone[:1] + bytes([3]) + gone[2:]
    other = other.replace(b"x" * len(__name__), b"s" + b"y" * (len(__name__) - 1))
    with pytest.raises(DeserializationError):
        values.unpack(other)


def test_python_mismatch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = values.pack_bytes(Local())
    packed = packed[:1] + b"\x03" + packed[2:]
    monkeypatch.delattr(f"{__name__}.Local")
    with pytest.raises(DeserializationError, match=r"made by Python 3\.3"):
        values.unpack(packed)


@pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())
def test_between_interpreters(python: str) -> None:
    """What one version packs another reads, buffers and handles and exceptions included."""
    code = (
        f"import sys; sys.path.insert(0, {LIB!r})\nfrom cadenza.runner import values\n"
        "data = sys.stdin.buffer.read()\n"
        "value = values.unpack(data, lambda r: r)\n"
        "assert value[1][0] == 'fu-1' and len(value[2]) == 100000 and not isinstance(value[2], bytes), value\n"
        "value[2][5] = 9\n"
        "try: {}['k']\n"
        "except KeyError as e: sys.stdout.buffer.write(values.pack_bytes((value[0], values.pack_exception(e))))\n"
    )
    import pickle

    packed = values.pack_bytes(({"a": 1}, Handle("fu-1"), pickle.PickleBuffer(bytearray(100_000))), persistent_id)
    done = subprocess.run([python, "-c", code], input=packed, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    value, fault = values.unpack(done.stdout)
    assert value == {"a": 1} and type(values.unpack_exception(fault, "ta-1")) is KeyError


# Exceptions.


def raised(function: Any) -> BaseException:
    try:
        function()
    except BaseException as exc:
        return exc
    raise AssertionError("nothing was raised")


def again(exc: BaseException) -> BaseException:
    return values.unpack_exception(values.pack_exception(exc), "ta-7")


def printed(exc: BaseException) -> str:
    return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))


def chain() -> None:
    try:
        {}["k"]
    except KeyError as error:
        raise ValueError("first") from error


def during() -> None:
    try:
        {}["k"]
    except KeyError:
        raise ValueError("second")  # noqa: B904


class Awkward(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.a = a


class Locked(Exception):
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return "x" * (3 << 20)


class Reprless(Exception):
    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


def test_remote_frames_are_grafted() -> None:
    text = printed(again(raised(chain)))
    assert text.count(f'File "<ta-7>:{__file__}"') == 3
    assert 'raise ValueError("first") from error' in text and '{}["k"]' in text
    assert "in chain" in text and "direct cause" in text and "KeyError: 'k'" in text
    assert "cadenza/runner" not in text
    assert "During handling" in printed(again(raised(during)))


def test_carets_are_those_of_the_source() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("no columns before 3.11")
    original = raised(lambda: chain())
    assert printed(original).replace(__file__, "F").count("^") == printed(again(original)).count("^")


def test_a_second_hop_keeps_the_first_container_s_name() -> None:
    once = again(raised(chain))
    text = printed(values.unpack_exception(values.pack_exception(once), "ta-8"))
    assert "<ta-7>:" in text and "<ta-8>" not in text and 'raise ValueError("first")' in text


def test_local_frames_come_before_remote_ones() -> None:
    exc = again(raised(chain))

    def caller() -> None:
        raise exc

    text = printed(raised(caller))
    assert text.index("in caller") < text.index("in chain", text.index("direct cause"))


def test_notes_groups_and_awkward_constructors() -> None:
    exc = raised(chain)
    if sys.version_info >= (3, 11):
        exc.add_note("a note")
        assert "a note" in printed(again(exc))
        group_class = builtins.ExceptionGroup
        group = raised(lambda: (_ for _ in ()).throw(group_class("two", [raised(chain), raised(during)])))
        copy = again(group)
        assert [str(one) for one in copy.exceptions] == ["first", "second"]
        assert "in chain" in printed(copy) and "<ta-7>" in printed(copy)
    copy = again(Awkward(1, 2))
    assert type(copy) is Awkward and copy.args == ("1 and 2",) and copy.a == 1
    assert again(OSError(2, "no", "/x")).filename == "/x"
    assert type(again(SystemExit(3))) is SystemExit


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_a_group_raised_while_one_of_its_members_is_handled() -> None:
    """Each member keeps its own traceback, though the first is the group's context too."""

    def collects() -> None:
        try:
            chain()
        except Exception as first:
            raise builtins.ExceptionGroup("both", [first, raised(during)]) from None

    first, second = again(raised(collects)).exceptions
    where = [[frame.name for frame in traceback.extract_tb(one.__traceback__)] for one in (first, second)]
    assert where[0][-1] == "chain" and where[1][-1] == "during"


def test_unpicklable_exceptions_are_replaced() -> None:
    exc = again(Locked())
    assert type(exc) is SerializationError and "Locked" in str(exc) and (2 << 20) < len(str(exc)) < (2 << 20) + 1000
    assert type(again(Reprless())) is Reprless


def test_missing_class_quotes_the_remote_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = values.pack_exception(raised(lambda: (_ for _ in ()).throw(Awkward(1, 2))))
    monkeypatch.delattr(f"{__name__}.Awkward")
    exc = values.unpack_exception(packed, "ta-7")
    assert type(exc) is ExecutionError and "Awkward: 1 and 2" in str(exc) and "Traceback (most recent call" in str(exc)


def test_recursion_is_cut() -> None:
    def deeper() -> None:
        deeper()

    exc = again(raised(deeper))
    assert type(exc) is RecursionError
    assert 10 < len(traceback.extract_tb(exc.__traceback__)) <= faults.MAX_FRAMES


def test_a_packed_exception_is_a_dictionary_of_plain_values() -> None:
    fault = pickle.loads(values.pack_exception(raised(chain))[12:])
    assert {"exception", "repr", "type", "traceback", "text", "cause"} <= set(fault)
    assert fault["type"] == "builtins.ValueError" and fault["repr"] == "ValueError('first')"
    assert fault["cause"]["type"] == "builtins.KeyError"


@pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())
def test_python_prints_remote_frames(python: str) -> None:
    """Uncaught, by Python itself, in every version: the remote frames with their source."""
    packed = values.pack_exception(raised(chain))
    code = (
        f"import sys; sys.path.insert(0, {LIB!r})\nfrom cadenza.runner import values\n"
        "import traceback\nexc = values.unpack_exception(sys.stdin.buffer.read(), 'ta-9')\n"
        "try: raise exc\nexcept Exception: traceback.print_exc()\n"
        "raise exc\n"
    )
    done = subprocess.run([python, "-c", code], input=packed, capture_output=True)
    text = done.stderr.decode()
    assert text.count(f'File "<ta-9>:{__file__}", line') == 6, text
    assert text.count('raise ValueError("first") from error') >= 1
    assert done.returncode == 1 and "ValueError: first" in text
