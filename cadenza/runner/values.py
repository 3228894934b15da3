"""Arguments, results, items and exceptions to bytes and back. Both ends of a call use this file.

The form is docs/formats/wire.md, section 'Values'. What C pickle does right is left to it; cloudpickle, where it is
there, takes what belongs to ``__main__`` or has no importable name. Buffers of at least 64 KiB (numpy arrays, tensors
on the CPU) are not copied into the pickle: they follow it, aligned to 64 bytes, and are used in place by the receiver.
Which errors: semantics.md sections 4 and 5.
"""

from __future__ import annotations

import io
import sys
from _pickle import PickleBuffer, Pickler, PicklingError, Unpickler, UnpicklingError, dumps as _dumps, loads as _loads
from struct import Struct
from types import FunctionType

from cadenza.base.errors import (
    DeserializationError,
    Error,
    ExecutionError,
    InvalidError,
    SerializationError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, Sequence, Union

    Part = Union[bytes, memoryview]
    Buffer = Union[bytes, bytearray, memoryview]

FORMAT = 1
MINOR = sys.version_info[1]
"""The header's flags byte: the minor version of the Python that packed; 0 says nothing."""
OUT_OF_BAND_BYTES = 64 << 10
ALIGN_BYTES = 64
MAX_BUFFERS = 0xFFFF
MAX_REPR_BYTES = 2 << 20

_HEAD = Struct(">BBH")
_LENGTH = Struct(">Q")
_PLAIN_HEAD = Struct(">BBHQ")
_ATOMS = frozenset((int, str, float, bool, bytes, type(None)))
_ZEROS = bytes(ALIGN_BYTES)


class _Unfit(Exception):
    """This pickler will not do; another one may."""


class _HasHandles(Exception):
    """There is a handle of ours in the value."""


def pack(obj: Any, persistent_id: Optional[Callable[[Any], Any]] = None) -> list[Part]:
    """``obj`` as pieces of bytes, to be joined. Large buffers among them are views on the object's own memory.

    ``persistent_id(x)`` gives None, or what stands for a handle of ours; its exceptions come through.
    `SerializationError` says what could not be pickled and why.
    """
    if _is_plain(obj):
        data = _dumps(obj, 5)
        return [_PLAIN_HEAD.pack(FORMAT, MINOR, 0, len(data)), data]
    buffers: list[memoryview] = []
    data = _pickle(obj, persistent_id, buffers)
    if not buffers:
        return [_PLAIN_HEAD.pack(FORMAT, MINOR, 0, len(data)), data]
    head = [_HEAD.pack(FORMAT, MINOR, len(buffers))]
    head.extend(_LENGTH.pack(len(one)) for one in buffers)
    head.append(_LENGTH.pack(len(data)))
    parts: list[Part] = [b"".join(head), data]
    at = len(parts[0]) + len(data)
    for one in buffers:
        pad = -at % ALIGN_BYTES
        if pad:
            parts.append(_ZEROS[:pad])
        parts.append(one)
        at += pad + len(one)
    return parts


def pack_bytes(obj: Any, persistent_id: Optional[Callable[[Any], Any]] = None) -> bytes:
    """`pack` as one piece."""
    return b"".join(pack(obj, persistent_id))


def size_of(parts: Sequence[Part]) -> int:
    """How many bytes the pieces are together."""
    return sum(map(len, parts))


def unpack(buffer: Buffer, persistent_load: Optional[Callable[[Any], Any]] = None, result: bool = False) -> Any:
    """The object again. Arrays in it can be written to: they lie in ``buffer`` if that is writable, else in copies.

    `DeserializationError` names what is missing here. ``result``: these are the bytes of a result that a caller
    fetched, so that a missing module or class is an `ExecutionError`.
    """
    view = memoryview(buffer)
    minor = 0
    try:
        form, minor, count = _HEAD.unpack_from(view)
        if form != FORMAT:
            raise DeserializationError(
                f"a value of format {form} came, and this version reads format {FORMAT}: upgrade it"
            )
        lengths = [_LENGTH.unpack_from(view, 4 + 8 * i)[0] for i in range(count)]
        (size,) = _LENGTH.unpack_from(view, 4 + 8 * count)
        at = 12 + 8 * count + size
        if at > len(view):
            raise ValueError("cut short")
        data = view[at - size : at]
        buffers: list[Any] = []
        for length in lengths:
            at += -at % ALIGN_BYTES
            piece = view[at : at + length]
            if len(piece) != length:
                raise ValueError("cut short")
            buffers.append(bytearray(piece) if view.readonly else piece)
            at += length
    except Error:
        raise
    except Exception as error:
        raise DeserializationError(f"not a packed value: {error}") from None
    try:
        if persistent_load is None:
            return _loads(data, buffers=buffers)
        if size > OUT_OF_BAND_BYTES:
            try:  # reads in place, where an `Unpickler` would copy all of it first, but knows no handles
                return _loads(data, buffers=buffers)
            except UnpicklingError as error:
                if "persistent" not in str(error):
                    raise
        reader = _Reader(io.BytesIO(data), buffers=buffers)
        reader.handle = persistent_load
        return reader.load()
    except Error:
        raise
    except Exception as error:
        raise _unpack_error(error, minor, result) from error


class _Reader(Unpickler):
    """An unpickler that knows handles. A method of a class, since from 3.13 an instance's own is not looked at."""

    handle: Optional[Callable[[Any], Any]] = None

    def persistent_load(self, reference: Any) -> Any:
        if self.handle is None:
            raise InvalidError("a handle came in a value, where none is expected")
        return self.handle(reference)


def _unpack_error(error: Exception, minor: int, result: bool) -> Error:
    cls = ExecutionError if result else DeserializationError
    what = "the result" if result else "a value"
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = (
            f"the module '{error.name}' is not there. Install it where this code runs, or return plain values"
            if result
            else f"the module '{error.name}' is not there. Add it to the image, with Image.pip_install or "
            f"Image.add_local_python_source, or pass plain values"
        )
        return cls(f"Cannot unpickle {what}: {hint}.")
    text = f"Cannot unpickle {what}: {type(error).__name__}: {error}."
    if isinstance(error, (AttributeError, ImportError)):
        text += " Both ends need the same version of the code and of the package that defines it."
    if minor and minor != MINOR:
        text += f" It was made by Python 3.{minor}, and this is Python 3.{MINOR}: use the same on both ends."
    return cls(text)


def _is_plain(obj: Any) -> bool:
    """Whether plain pickle is right for sure, found out cheaply: atoms, and small containers of atoms, two deep."""
    kind = type(obj)
    if kind in _ATOMS:
        return kind is not bytes or len(obj) < OUT_OF_BAND_BYTES
    if kind is tuple or kind is list:
        if len(obj) > 16:
            return False
        for one in obj:
            inner = type(one)
            if inner in _ATOMS:
                continue
            if inner is tuple or inner is list:
                if len(one) > 16 or not _ATOMS.issuperset(map(type, one)):
                    return False
            elif inner is dict:
                if len(one) > 16 or not _ATOMS.issuperset(map(type, one.values())):
                    return False
                if not _ATOMS.issuperset(map(type, one)):
                    return False
            else:
                return False
        return True
    return False


def _pickle(obj: Any, persistent_id: Optional[Callable[[Any], Any]], buffers: list[memoryview]) -> bytes:
    def keep(buffer: PickleBuffer) -> bool:
        raw = buffer.raw()
        if len(raw) < OUT_OF_BAND_BYTES or len(buffers) == MAX_BUFFERS:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO()
    try:
        registry = sys.modules.get("cloudpickle")
        if registry is not None and getattr(registry, "list_registry_pickle_by_value", list)():
            raise _Unfit
        pickler = _Plain(file, 5, buffer_callback=keep)
        pickler.handle = persistent_id
        try:
            pickler.dump(obj)
        except _HasHandles:
            buffers.clear()
            file = io.BytesIO()
            pickler = _WithHandles(file, 5, buffer_callback=keep)
            pickler.handle = persistent_id
            pickler.dump(obj)
        return file.getvalue()
    except Error:
        raise
    except (_Unfit, TypeError, AttributeError, ImportError, LookupError, PicklingError) as error:
        first = error
    except RecursionError:
        raise SerializationError(f"Cannot pickle an object of {_type_name(obj)}: it is nested too deeply.") from None
    except Exception as error:
        raise SerializationError(
            f"Cannot pickle an object of {_type_name(obj)}: {type(error).__name__}: {error}"
        ) from error
    buffers.clear()
    return _pickle_by_value(obj, persistent_id, keep, first)


def _type_name(obj: Any) -> str:
    return f"type {type(obj).__module__}.{type(obj).__qualname__}"


def _pickle_by_value(
    obj: Any, persistent_id: Optional[Callable[[Any], Any]], keep: Callable[[Any], bool], first: Exception
) -> bytes:
    try:
        import cloudpickle  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        cause = "" if isinstance(first, _Unfit) and not str(first) else f": {first}"
        raise SerializationError(
            f"Cannot pickle an object of {_type_name(obj)}{cause}. Functions and classes without an importable name "
            "need the package cloudpickle, which is not installed here."
        ) from None

    class ByValue(cloudpickle.CloudPickler):  # type: ignore[misc]
        def persistent_id(self, one: Any) -> Any:
            return None if persistent_id is None else persistent_id(one)

        def reducer_override(self, one: Any) -> Any:
            reduced = _reduce_tensor(one)
            return super().reducer_override(one) if reduced is NotImplemented else reduced

    file = io.BytesIO()
    try:
        ByValue(file, protocol=5, buffer_callback=keep).dump(obj)
    except Error:
        raise
    except RecursionError:
        raise SerializationError(f"Cannot pickle an object of {_type_name(obj)}: it is nested too deeply.") from None
    except Exception as error:
        raise SerializationError(f"Cannot pickle an object of {_type_name(obj)}: {error}") from error
    return file.getvalue()


class _Plain(Pickler):
    """C pickle that refuses what only works by value. The override is called for functions, classes, instances."""

    handle: Optional[Callable[[Any], Any]] = None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (FunctionType, type)):
            if obj.__module__ in ("__main__", "__mp_main__", None) or "<" in obj.__qualname__:
                raise _Unfit
            return NotImplemented
        if self.handle is not None and self.handle(obj) is not None:
            raise _HasHandles
        return _reduce_tensor(obj)


class _WithHandles(_Plain):
    """The same for values with handles in them. C pickle calls ``persistent_id`` for every int: only these pay it."""

    def persistent_id(self, obj: Any) -> Any:
        return None if self.handle is None or type(obj) in _ATOMS else self.handle(obj)


def _reduce_tensor(obj: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is None or type(obj) is not getattr(torch, "Tensor", None) or "numpy" not in sys.modules:
        return NotImplemented
    if obj.layout != torch.strided or obj.device.type != "cpu" or obj.is_quantized or obj.grad_fn is not None:
        return NotImplemented
    if not obj.is_contiguous() or obj.numel() * obj.element_size() < OUT_OF_BAND_BYTES or obj.is_conj() or obj.is_neg():
        return NotImplemented
    raw = obj.detach().reshape(-1).view(torch.uint8).numpy()
    return _tensor, (PickleBuffer(raw), str(obj.dtype).partition(".")[2], tuple(obj.shape), obj.requires_grad)


def _tensor(buffer: Any, dtype: str, shape: tuple[int, ...], requires_grad: bool) -> Any:
    import torch  # type: ignore[import-not-found,unused-ignore]

    flat = torch.frombuffer(buffer if not memoryview(buffer).readonly else bytearray(buffer), dtype=torch.uint8)
    tensor = flat.view(getattr(torch, dtype)).reshape(shape)
    return tensor.requires_grad_() if requires_grad else tensor


# Exceptions. The work lies in `faults`, which is loaded when the first one comes.


def pack_exception(exc: BaseException) -> bytes:
    """An exception with its traceback, causes and notes, as a packed value. Never raises for what is in ``exc``."""
    from cadenza.runner import faults

    return faults.pack_exception(exc)


def unpack_exception(data: Buffer, container_id: str) -> BaseException:
    """What to raise for a packed exception: its own class with the remote frames as its traceback.

    Where the class cannot be unpickled here it is an `ExecutionError` that quotes the remote traceback.
    """
    from cadenza.runner import faults

    return faults.unpack_exception(data, container_id)
