"""What a decorator says about a function's containers, checked at decoration. Source: semantics.md sections 8, 11, 34.

A pure reading: arguments in, `FunctionOptions` out. What needs the server or files is settled when the app is run.
"""

from __future__ import annotations

import posixpath
from _collections_abc import Mapping  # as os does: collections.abc would load collections

from cadenza.base import demand
from cadenza.base.errors import InvalidError
from cadenza.sdk._light import record
from cadenza.sdk.retries import Retries, check_retries
from cadenza.sdk.schedule import Schedule
from cadenza.sdk.secret import Secret, check_secrets, check_variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Sequence, Union

    from cadenza.base.resources import Resources
    from cadenza.protocol.objects import RetryPolicy

    Gpu = Union[str, Sequence[Optional[str]], None]
    Cpu = Union[float, tuple[float, float], None]
    Memory = Union[int, tuple[int, int], None]

DEFAULT_TIMEOUT_S = 300
DEFAULT_SCALEDOWN_S = 60
MIN_SCALEDOWN_S = 2
MAX_SCALEDOWN_S = 3600
MAX_CONCURRENT_INPUTS = 1000
_INFINITE = float("inf")
_NO_MOUNT = ("/", "/root", "/tmp")


@record
class FunctionOptions:
    """A decorator's arguments, checked. Times in seconds; 0 or empty where `FunctionSpec` has that as its default."""

    env: dict[str, str]
    numbers: demand.Numbers
    """Cores, memory, disk and GPUs, as `demand.read` gives them."""
    carried: dict[str, str]
    """For `FunctionSpec.options`."""
    secrets: tuple[Secret, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S
    startup_timeout_s: float = DEFAULT_TIMEOUT_S
    retry: Optional[Retries] = None
    min_containers: int = 0
    max_containers: int = 0
    buffer_containers: int = 0
    scaledown_window_s: float = DEFAULT_SCALEDOWN_S
    single_use: bool = False
    block_network: bool = False
    restricted: bool = False
    """Its containers may ask the server nothing: ``restrict_modal_access=True``."""
    schedule: Optional[Schedule] = None
    unbuilt: tuple[str, ...] = ()
    """What was asked for and cannot be given yet, one phrase each; `App.run` refuses the function with them."""

    @property
    def resources(self) -> Resources:
        """``numbers`` as the vector that the server is told."""
        from cadenza.base import resources

        return resources.of(self.numbers)

    @property
    def retries(self) -> Optional[RetryPolicy]:
        """``retry`` as the policy that the server is told."""
        return None if self.retry is None else self.retry._policy()


def count(name: str, value: object, where: str, least: int = 0) -> Optional[int]:
    """An integer of at least ``least``, or None. InvalidError otherwise."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidError(f"{where}: {name} must be an integer, not {type(value).__name__}")
    if value < least:
        raise InvalidError(f"{where}: {name} must be {least} or more, got {value}")
    return value


def seconds(name: str, value: object, where: str) -> float:
    """A time limit in seconds; the server wants 1 s at least. InvalidError for None and non-numbers."""
    if value is None:
        raise InvalidError(
            f"{where}: {name} must be a number of seconds: None is not allowed; for no limit, give a large one"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidError(f"{where}: {name} must be a number of seconds, not {type(value).__name__}")
    if not 0 <= value < _INFINITE:  # so written that NaN is refused too
        raise InvalidError(f"{where}: {name} must be a finite number of seconds, not negative, got {value}")
    return value


def flag(name: str, value: object, where: str) -> bool:
    """True or False. InvalidError for anything else."""
    if not isinstance(value, bool):
        raise InvalidError(f"{where}: {name} must be True or False, not {type(value).__name__}")
    return value


def check_mounts(mounts: object, where: str, name: str = "volumes") -> dict[str, Any]:
    """``volumes=`` as a dictionary of clean absolute paths. InvalidError for bad or doubled places."""
    if not isinstance(mounts, Mapping):
        raise InvalidError(f"{where}: {name} must be a dictionary of paths to objects, not {type(mounts).__name__}")
    found: dict[str, Any] = {}
    for path, thing in mounts.items():
        text = str(path)
        if not text.startswith("/"):
            raise InvalidError(f"{where}: {name}: {text!r} must be an absolute path such as /data")
        clean = posixpath.normpath(text)
        if clean.startswith("//"):
            clean = clean[1:]
        if clean in _NO_MOUNT:
            raise InvalidError(f"{where}: {name}: nothing can be mounted at {clean}; choose a directory such as /data")
        if clean in found:
            raise InvalidError(f"{where}: {name}: two objects at {clean}")
        if any(thing is other for other in found.values()):
            raise InvalidError(f"{where}: {name}: the same object is mounted at more than one path")
        found[clean] = thing
    return found


def places(name: str, value: object, where: str) -> str:
    """``region=`` or ``cloud=`` as names joined by commas. InvalidError for what is neither a name nor a list."""
    if value is None:
        return ""
    places = [value] if isinstance(value, str) else value
    if not isinstance(places, (list, tuple)) or not all(isinstance(one, str) and one for one in places):
        raise InvalidError(f"{where}: {name} must be a name or a list of names")
    return ",".join(places)


def _json(options: Mapping[str, Any]) -> str:
    import json

    return json.dumps(dict(options), sort_keys=True, default=str)


def read_options(
    where: str,
    *,
    schedule: Optional[Schedule] = None,
    env: Optional[Mapping[str, Optional[str]]] = None,
    secrets: Optional[Sequence[Secret]] = None,
    gpu: Gpu = None,
    network_file_systems: Mapping[Any, Any] = {},  # noqa: B006
    volumes: Mapping[Any, Any] = {},  # noqa: B006
    cpu: Cpu = None,
    memory: Memory = None,
    ephemeral_disk: Optional[int] = None,
    min_containers: Optional[int] = None,
    max_containers: Optional[int] = None,
    buffer_containers: Optional[int] = None,
    scaledown_window: Optional[int] = None,
    proxy: Any = None,
    retries: Union[int, Retries, None] = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    startup_timeout: Optional[float] = None,
    cloud: Optional[str] = None,
    region: Union[str, Sequence[str], None] = None,
    routing_region: Optional[str] = None,
    nonpreemptible: bool = False,
    enable_memory_snapshot: bool = False,
    block_network: bool = False,
    restrict_modal_access: bool = False,
    single_use_containers: bool = False,
    i6pn: Optional[bool] = None,
    experimental_options: Optional[Mapping[str, Any]] = None,
    restrict_output: bool = False,
) -> FunctionOptions:
    """The arguments of a decorator, checked; ``where`` begins each complaint. InvalidError for what can never work."""
    unbuilt: list[str] = []
    numbers = demand.read(cpu, memory, gpu, ephemeral_disk)
    lowest = count("min_containers", min_containers, where)
    highest = count("max_containers", max_containers, where, least=1)
    spare = count("buffer_containers", buffer_containers, where)
    if lowest is not None and highest is not None and lowest > highest:
        raise InvalidError(f"{where}: min_containers ({lowest}) is above max_containers ({highest})")
    window = count("scaledown_window", scaledown_window, where)
    if window is not None and not MIN_SCALEDOWN_S <= window <= MAX_SCALEDOWN_S:
        raise InvalidError(
            f"{where}: scaledown_window must be between {MIN_SCALEDOWN_S} and {MAX_SCALEDOWN_S} seconds, got {window}"
        )
    if schedule is not None and not isinstance(schedule, Schedule):
        raise InvalidError(f"{where}: schedule must be a Cron or a Period, not {type(schedule).__name__}")
    if cloud is not None and not isinstance(cloud, str):
        raise InvalidError(f"{where}: cloud must be a name, not {type(cloud).__name__}")
    if check_mounts(volumes, where):
        unbuilt.append("volumes")
    if check_mounts(network_file_systems, where, "network_file_systems"):
        unbuilt.append("network_file_systems")
    if proxy is not None:
        unbuilt.append("proxy")
    if i6pn:
        unbuilt.append("i6pn=True")
    if restrict_output:
        unbuilt.append("_experimental_restrict_output=True")
    limit = seconds("timeout", timeout, where)
    carried = {
        "region": places("region", region, where),
        "cloud": places("cloud", cloud, where),
        "routing_region": places("routing_region", routing_region, where),
        "nonpreemptible": "1" if flag("nonpreemptible", nonpreemptible, where) else "",
        "memory_snapshot": "1" if flag("enable_memory_snapshot", enable_memory_snapshot, where) else "",
        "schedule": schedule._text() if schedule is not None else "",
        "experimental": _json(experimental_options) if experimental_options else "",
    }
    return FunctionOptions(
        env=check_variables(env, f"{where}: env", drop_none=True) if env is not None else {},
        secrets=check_secrets(secrets, where),
        numbers=numbers,
        timeout_s=limit,
        startup_timeout_s=limit if startup_timeout is None else seconds("startup_timeout", startup_timeout, where),
        retry=check_retries(retries, where),
        min_containers=lowest or 0,
        max_containers=highest or 0,
        buffer_containers=spare or 0,
        scaledown_window_s=DEFAULT_SCALEDOWN_S if window is None else window,
        single_use=flag("single_use_containers", single_use_containers, where),
        block_network=flag("block_network", block_network, where),
        restricted=flag("restrict_modal_access", restrict_modal_access, where),
        schedule=schedule,
        carried={key: value for key, value in carried.items() if value},
        unbuilt=tuple(unbuilt),
    )
