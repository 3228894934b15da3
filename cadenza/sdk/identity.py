"""Which function a `Function` stands for: its definition in this program, or where to find it. Source: semantics.md
sections 1, 3 and 4.
"""

from __future__ import annotations

from cadenza.base.errors import ExecutionError, InvalidError, NotFoundError
from cadenza.runner import context
from cadenza.sdk._light import record
from cadenza.sdk.context_api import apps_here
from cadenza.sdk.handle import Object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Awaitable, Callable, Optional, TypeVar

    from cadenza.protocol.functions import FunctionInfo
    from cadenza.protocol.objects import FunctionSpec
    from cadenza.sdk.client import Client
    from cadenza.sdk.cls import Cls
    from cadenza.sdk.declaration import Method, Parameter
    from cadenza.sdk.function import Function

    T = TypeVar("T")


@record
class Definition:
    """A function as ``@app.function`` found it."""

    raw: Callable[..., Any]
    """The user's callable, as it was decorated."""
    name: str
    """Its name in the app."""
    module: str
    qualname: str
    is_generator: bool
    is_async: bool
    spec: Callable[[], FunctionSpec]
    """Makes what the server needs; called when the app is published, and may raise InvalidError."""
    is_web: bool = False


class FunctionIdentity(Object):
    """The part of `Function` that knows which one it is, and how it becomes hydrated."""

    _app: Any = None
    _definition: Optional[Definition] = None
    _source: tuple[str, ...] = ()
    """How to find it: (app, name, environment), or (id,)."""
    _name: str = ""
    _is_generator: Optional[bool] = None
    """None: not known before it is hydrated."""
    _web_url: Optional[str] = None
    _information: Optional[FunctionInfo] = None
    _version = 0
    """Of a deployed app, where it is pinned; 0: whichever is in force."""
    _method = ""
    """Of a class, whose containers run it."""
    _class: Optional[Cls] = None
    """For the containers of a class: its handle."""
    _methods: Optional[tuple[Method, ...]] = None
    _parameters: Optional[tuple[Parameter, ...]] = None
    """Of a class, as far as they are known."""
    _known_variants: Optional[dict[tuple[str, str], str]] = None

    # --- making one ---

    @classmethod
    def _from_definition(cls, app: Any, definition: Definition) -> Function[Any, Any, Any]:
        """The handle that ``@app.function`` gives. Hydrated by `_hydrate` when the app is published."""
        function: Any = cls.__new__(cls)
        function._init_handle()
        function._app = app
        function._definition = definition
        function._name = definition.name
        function._is_generator = definition.is_generator
        return function  # type: ignore[no-any-return]

    @classmethod
    def from_name(
        cls,
        app_name: str,
        name: str,
        *,
        version: Optional[int] = None,
        environment_name: Optional[str] = None,
        client: Optional[Client] = None,
    ) -> Function[Any, Any, Any]:
        """A function of a deployed app. No I/O: NotFoundError comes at the first use.

        ``version``: that version of the app, in containers of its own, whatever is deployed later. InvalidError for
        ``"Class.method"``: look the class up instead.
        """
        if "." in name:
            kind, _, method = name.partition(".")
            raise InvalidError(
                f"Function.from_name cannot look up the method {name!r}: use "
                f"Cls.from_name({app_name!r}, {kind!r}) and call its instance's .{method}"
            )
        return cls._from_source(app_name, name, version, environment_name, client)

    @classmethod
    def _from_source(
        cls, app: str, name: str, version: Optional[int], environment: Optional[str], client: Optional[Client]
    ) -> Function[Any, Any, Any]:
        if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 1):
            raise InvalidError(f"from_name: version must be the number of a deployed version, not {version!r}")
        function: Any = cls.__new__(cls)
        function._init_handle(client=client)
        function._source = (app, name, environment or "")
        function._name = name
        function._version = version or 0
        return function  # type: ignore[no-any-return]

    @classmethod
    def from_id(cls, function_id: str, *, client: Optional[Client] = None) -> Function[Any, Any, Any]:
        """The function with this id (``fu-...``). No I/O: NotFoundError comes at the first use."""
        function: Any = cls.__new__(cls)
        function._init_handle(function_id, client)
        function._source = (function_id,)
        return function  # type: ignore[no-any-return]

    # --- what it is ---

    @property
    def app(self) -> Any:
        """The app that defines it. ExecutionError for a handle that was looked up."""
        if self._app is None:
            raise ExecutionError(f"{self!r} was looked up, so it does not know its App object")
        return self._app

    @property
    def __cadenza_raw__(self) -> Callable[..., Any]:
        """The user's own callable. ExecutionError on a handle without one."""
        return self._defined().raw

    def _defined(self) -> Definition:
        if self._definition is None:
            raise ExecutionError(
                f"{self!r} was looked up and its definition is not in this program, so it cannot run here: "
                f"use .remote(...) to run it in a container"
            )
        return self._definition

    def __repr__(self) -> str:
        if len(self._source) == 3:
            return f"Function.from_name({self._source[0]!r}, {self._source[1]!r})"
        if self._source:
            return f"Function.from_id({self._source[0]!r})"
        return f"<Function {self._name or self._object_id}>"

    # --- hydration ---

    def _unhydrated_hint(self) -> str:
        if self._source:
            return "it has not been hydrated; call .hydrate() first"
        return (
            "it has not been hydrated with what it needs to run on the server, because the App it is defined on is not "
            "running. Put the call inside `with app.run():` or a local entrypoint, or use .local(...)"
        )

    def _hydrate_here(self) -> None:
        if self._hydrated or self._definition is None:
            return
        container = context.current()
        if container is not None and self._is_of(container):
            function_id = container.layout.get(self._definition.name)
            if function_id is not None:
                self._hydrate(function_id, None)

    def _is_of(self, container: context.Container) -> bool:
        """Whether it belongs to the app of this container. Two apps of one program may have functions of one name; and
        an app may run under another name than the program gives it."""
        app_name = (container.function or {}).get("app")
        if not app_name or self._app is None or self._app.name == app_name:
            return True
        assert self._definition is not None
        rivals = [one for one in apps_here if one.name == app_name]
        return not rivals or any(one._functions.get(self._definition.name) is self for one in rivals)

    def _findable(self) -> bool:
        """Whether the server can be asked for it."""
        return bool(self._source)

    def _metadata(self) -> dict[str, Any]:
        told = {"name": self._name, "is_generator": bool(self._is_generator), "web_url": self._web_url}
        if self._method:
            told["method"] = self._method
        return told

    def _take_metadata(self, metadata: dict[str, Any]) -> None:
        self._name = metadata.get("name") or self._name
        self._is_generator = metadata.get("is_generator", self._is_generator)
        self._web_url = metadata.get("web_url", self._web_url)
        self._method = metadata.get("method", self._method)

    def _target(self, parent: str) -> dict[str, Any]:
        """What a request to call it says of whom, and on whose behalf."""
        if self._method:
            return {"function_id": self._object_id, "method": self._method, "parent_input_id": parent}
        return {"function_id": self._object_id, "parent_input_id": parent}

    async def _once_more(self, client: Client, attempt: Callable[[], Awaitable[T]]) -> T:
        """``attempt()``, which names this function by its id; once more where the server knows it by another now."""
        asked = self._object_id
        try:
            return await attempt()
        except NotFoundError:
            if asked is None or not await self._bound_again(client, asked):
                raise
        return await attempt()

    async def _bound_again(self, client: Client, gone: str) -> bool:
        """The server does not know ``gone``, this handle's id: whether the handle has another one now."""
        return self._object_id != gone

    async def _find(self, client: Client) -> None:
        from cadenza.protocol.functions import FunctionFind, FunctionRef

        if len(self._source) == 3:
            app, name, environment = self._source
            if not environment:
                from cadenza.base import config

                environment = config.load().environment
            found = await client._request("function.find", FunctionFind(app, name, environment, self._version))
        elif self._source:
            found = await client._request("function.get", FunctionRef(self._source[0]))
        else:
            raise ExecutionError(f"{self!r} cannot be called: {self._unhydrated_hint()}")
        self._take_information(found)
        self._hydrate(found.function_id, self._client, {"name": found.name, "is_generator": found.is_generator})

    def _take_information(self, found: FunctionInfo) -> None:
        self._information = found
        if found.name.endswith(".*"):
            from cadenza.sdk.declaration import methods_of, parameters_of

            self._methods, self._parameters = methods_of(found.methods), parameters_of(found.class_parameters)
