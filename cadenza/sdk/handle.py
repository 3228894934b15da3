"""Handles of things that live on the server: an id, lazy hydration, and how they travel inside arguments.

A handle is *hydrated* once its id is known and checked. ``from_name`` and ``from_id`` do no I/O; the first method that
needs the server hydrates (semantics.md section 1). Inside arguments a hydrated handle travels as (class, id, metadata);
one that is not is an InvalidError (section 4).
"""

from __future__ import annotations

from cadenza.base.errors import ExecutionError, InvalidError
from cadenza.runner import context
from cadenza.sdk import _dual

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, TypeVar

    from cadenza.sdk.client import Client

    T = TypeVar("T")


async def client_of(given: Optional[Client]) -> Client:
    """The client to ask by: the given one, else that of the environment."""
    if given is not None:
        return given
    from cadenza.sdk.client import Client

    return await Client._environment()


class Handle:
    """What all handles can do, under names that are nobody else's: `Obj` shows the attributes of the user's class."""

    _object_id: Optional[str]
    _client: Optional[Client]
    _hydrated: bool
    _travels_as = ""
    """What it is at the other end, where that is not its own class."""

    def _init_handle(self, object_id: Optional[str] = None, client: Optional[Client] = None) -> None:
        self._object_id = object_id
        self._client = client
        self._hydrated = False

    def _hydrate(self, object_id: str, client: Optional[Client], metadata: Optional[dict[str, Any]] = None) -> None:
        """Give the handle its id. ``metadata`` is what the server said of it, as plain JSON values."""
        self._object_id = object_id
        self._client = client
        self._hydrated = True
        if metadata:
            self._take_metadata(metadata)

    def _take_metadata(self, metadata: dict[str, Any]) -> None:
        """Keep what the server said of it."""

    def _metadata(self) -> dict[str, Any]:
        """What a copy of the handle in another process has to know besides the id. Plain JSON values."""
        return {}

    def _hydrate_here(self) -> None:
        """Hydrate if that needs no I/O: in a container, from what it was told at its start."""

    def _prepare_to_travel(self) -> None:
        """Called before it is written into a pickle, in the user's thread: it may hydrate itself."""
        self._hydrate_here()

    def _unhydrated_hint(self) -> str:
        return "it has not been hydrated; call .hydrate() first"

    async def _find(self, client: Client) -> None:
        """Ask the server for the thing, and `_hydrate`. NotFoundError when there is none."""
        raise ExecutionError(f"{self!r}: {self._unhydrated_hint()}")

    async def _ready(self) -> Client:
        """Hydrate if needed; the client to use."""
        client = await client_of(self._client)
        if not self._hydrated:
            await self._find(client)
        return client

    def __reduce__(self) -> Any:
        return persistent_load, (persistent_id(self),)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Object(Handle):
    """Base of all handles but `Obj`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise InvalidError(f"{name}(...) cannot be called: use one of its constructors, such as {name}.from_name")

    @property
    def object_id(self) -> str:
        """The server's id. ExecutionError while it is not known."""
        if self._object_id is None:
            raise ExecutionError(f"{self!r} has no id yet: {self._unhydrated_hint()}")
        return self._object_id

    @property
    def is_hydrated(self) -> bool:
        """Whether the server has confirmed the thing that this handle stands for."""
        return self._hydrated

    @property
    def client(self) -> Optional[Client]:
        """The connection that the handle uses; None: the one of the environment."""
        return self._client

    @_dual.method
    async def get_dashboard_url(self) -> Optional[str]:
        """None: there is no web page for it yet."""
        return None


_KINDS: dict[str, type[Handle]] = {}
"""What may travel: the word for a class, and the class."""


def travels(cls: type[T]) -> type[T]:
    """Class decorator: handles of this class may be arguments and results. A class that is loaded late is named in
    `_HOMES` too."""
    _KINDS[cls.__name__] = cls  # type: ignore[assignment]
    return cls


_HOMES = {
    "Cls": "cadenza.sdk.cls",
    "Function": "cadenza.sdk.function",
    "FunctionCall": "cadenza.sdk.call",
    "Obj": "cadenza.sdk.cls",
    "Secret": "cadenza.sdk.secret",
}
"""The modules to load when a handle comes whose class nobody has used here."""


def _kind(name: str) -> Optional[type[Handle]]:
    if name not in _KINDS and name in _HOMES:
        __import__(_HOMES[name])
    return _KINDS.get(name)


def persistent_id(thing: Any) -> Optional[tuple[str, str, dict[str, Any]]]:
    """How a handle is written inside a pickle: (id, kind, metadata). None for what is not a handle."""
    if not isinstance(thing, Handle):
        return None
    thing._prepare_to_travel()
    if not thing._hydrated or thing._object_id is None:
        raise InvalidError(f"{thing!r} cannot be an argument or a result: {thing._unhydrated_hint()}")
    return thing._object_id, thing._travels_as or type(thing).__name__, thing._metadata()


def persistent_load(written: tuple[str, str, dict[str, Any]]) -> Handle:
    """The handle on this side, from what `persistent_id` wrote. ExecutionError for a kind from a newer version."""
    object_id, kind, metadata = written
    cls = _kind(kind)
    if cls is None:
        raise ExecutionError(f"a value holds a handle of kind {kind!r}, which this version of cadenza does not know")
    handle: Handle = cls.__new__(cls)
    handle._init_handle()
    handle._hydrate(object_id, None, metadata)
    return handle


context.register_handles(persistent_id, persistent_load)
