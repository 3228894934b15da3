"""The part of `App` that is about classes: ``@app.cls``. Source: semantics.md section 12.2."""

from __future__ import annotations

from cadenza.base.errors import DeprecationError, InvalidError
from cadenza.sdk.context_api import apps_here, container
from cadenza.sdk.decorators import strict
from cadenza.sdk.options import DEFAULT_TIMEOUT_S, check_mounts, flag, read_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping, Optional, Protocol, Sequence, TypeVar, Union

    from typing_extensions import dataclass_transform

    from cadenza.sdk.cls import Cls
    from cadenza.sdk.declaration import Declaration
    from cadenza.sdk.function import Function
    from cadenza.sdk.image import Image
    from cadenza.sdk.parameter import parameter
    from cadenza.sdk.retries import Retries
    from cadenza.sdk.secret import Secret

    T = TypeVar("T")

    class ClassDecorator(Protocol):
        """What ``@app.cls(...)`` is. To type checkers the class stays what it is; it has become a `Cls`."""

        def __call__(self, target: type[T], /) -> type[T]: ...

else:
    parameter = None

    def dataclass_transform(**_: Any) -> Any:
        """For type checkers alone."""
        return lambda thing: thing


class AppClasses:
    """What an `App` does with classes."""

    _functions: dict[str, Function[Any, Any, Any]]
    _volumes: dict[str, Any]
    _secrets: tuple[Secret, ...]
    _include_source: bool

    @property
    def image(self) -> Image:
        """The image of functions that name none; `App` has it."""
        raise NotImplementedError

    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            app = super().__new__(cls)
            if container() is not None:
                apps_here.append(app)
            return app

    def _register(self, declaration: Declaration) -> Function[Any, Any, Any]:
        raise NotImplementedError  # `App` has it

    @property
    def _classes(self) -> dict[str, Cls]:
        """The app's classes by name, those of included apps too."""
        found = {}
        for name, function in self._functions.items():
            if function._class is not None:
                found[name[:-2]] = function._class
        return found

    @property
    def registered_classes(self) -> dict[str, Cls]:
        """Deprecated: the app's classes by name."""
        import warnings

        warnings.warn("App.registered_classes is deprecated", DeprecationError, stacklevel=2)
        return self._classes

    @strict
    @dataclass_transform(field_specifiers=(parameter,), kw_only_default=True)
    def cls(
        self,
        *,
        image: Optional[Image] = None,
        env: Optional[Mapping[str, Optional[str]]] = None,
        secrets: Optional[Sequence[Secret]] = None,
        gpu: Union[str, Sequence[Optional[str]], None] = None,
        serialized: bool = False,
        network_file_systems: Mapping[Any, Any] = {},
        volumes: Mapping[Any, Any] = {},
        cpu: Union[float, tuple[float, float], None] = None,
        memory: Union[int, tuple[int, int], None] = None,
        ephemeral_disk: Optional[int] = None,
        min_containers: Optional[int] = None,
        max_containers: Optional[int] = None,
        buffer_containers: Optional[int] = None,
        scaledown_window: Optional[int] = None,
        proxy: Any = None,
        retries: Union[int, Retries, None] = None,
        timeout: int = DEFAULT_TIMEOUT_S,
        startup_timeout: Optional[int] = None,
        cloud: Optional[str] = None,
        region: Union[str, Sequence[str], None] = None,
        routing_region: Optional[str] = None,
        nonpreemptible: bool = False,
        enable_memory_snapshot: bool = False,
        block_network: bool = False,
        restrict_modal_access: bool = False,
        single_use_containers: bool = False,
        i6pn: Optional[bool] = None,
        include_source: Optional[bool] = None,
        experimental_options: Optional[Mapping[str, Any]] = None,
        _experimental_restrict_output: bool = False,
        max_inputs: Optional[int] = None,
    ) -> ClassDecorator:
        """Make a class one whose methods run in containers, each of which holds one instance.

        Memory and disk in MiB, times in seconds, cpu in cores. InvalidError at decoration for what can never work.
        """
        if max_inputs is not None:
            from cadenza.sdk.app import _single_use

            single_use_containers = _single_use(max_inputs) or single_use_containers
        from cadenza.sdk.image import Image

        if image is not None and not isinstance(image, Image):
            raise InvalidError(f"@app.cls: image must be an Image, not {type(image).__name__}")
        flag("serialized", serialized, "@app.cls")
        options = read_options(
            "@app.cls",
            env=env,
            secrets=secrets,
            gpu=gpu,
            network_file_systems=network_file_systems,
            volumes={**self._volumes, **check_mounts(volumes, "@app.cls")},
            cpu=cpu,
            memory=memory,
            ephemeral_disk=ephemeral_disk,
            min_containers=min_containers,
            max_containers=max_containers,
            buffer_containers=buffer_containers,
            scaledown_window=scaledown_window,
            proxy=proxy,
            retries=retries,
            timeout=timeout,
            startup_timeout=startup_timeout,
            cloud=cloud,
            region=region,
            routing_region=routing_region,
            nonpreemptible=nonpreemptible,
            enable_memory_snapshot=enable_memory_snapshot,
            block_network=block_network,
            restrict_modal_access=restrict_modal_access,
            single_use_containers=single_use_containers,
            i6pn=i6pn,
            experimental_options=experimental_options,
            restrict_output=_experimental_restrict_output,
        )
        with_source = (
            self._include_source if include_source is None else flag("include_source", include_source, "@app.cls")
        )

        def decorate(target: Any) -> Any:
            from cadenza.sdk.class_declaration import declare

            def chosen() -> Image:
                return self.image if image is None else image

            return declare(self, target, options, serialized, with_source, chosen, lambda: self._secrets)

        return decorate
