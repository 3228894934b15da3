"""`modal.experimental`, as far as it is built: what a container's own code says of its inputs. Source: semantics.md
section 31.
"""

from __future__ import annotations

from cadenza.base.errors import UnimplementedError
from cadenza.sdk import _dual

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Coroutine, Optional

    from cadenza.sdk.client import Client

__all__ = ["get_local_input_concurrency", "image_delete", "set_local_input_concurrency", "stop_fetching_inputs"]


async def _said() -> None:
    """There is nothing to wait for."""


@_dual.function
def stop_fetching_inputs() -> Coroutine[Any, Any, None]:
    """This container takes no more inputs: it finishes those that run and ends. InvalidError outside of a container."""
    from cadenza.runner import slots

    slots.stop_fetching_inputs()
    return _said()


def get_local_input_concurrency() -> int:
    """How many inputs this container runs at once at most. InvalidError outside of a container."""
    from cadenza.runner import slots

    return slots.get_local_input_concurrency()


def set_local_input_concurrency(concurrency: int) -> None:
    """Change how many inputs this container runs at once, from now on and for this container alone. InvalidError for a
    number that is not from 1 to what ``@concurrent`` allows, and outside of a container."""
    from cadenza.runner import slots

    slots.set_local_input_concurrency(concurrency)


@_dual.function
async def image_delete(image_id: str, *, client: Optional[Client] = None) -> None:
    """Forget a built image. NotFoundError when there is none of the id, ConflictError while a deployed app, a name or a
    container has it."""
    from cadenza.base.errors import InvalidError
    from cadenza.protocol.images import ImageRemove
    from cadenza.sdk.handle import client_of

    if not isinstance(image_id, str) or not image_id.startswith("im-"):
        raise InvalidError(f"image_delete takes the id of an image, which begins with im-, not {image_id!r}")
    await (await client_of(client))._request("image.remove", ImageRemove(image_id))


_LATER = (
    "AppInfo", "AppLifecycle", "AppendResult", "ClusterInfo", "ClusterReservation", "ClusterReservationTask",
    "DockerfileSpec", "Entry", "IdempotencyConflict", "OutboundPolicy", "ServerManager", "Stream", "StreamInfo",
    "StreamToken", "StreamWriter", "clustered", "flash_forward", "flash_get_containers", "get_app_lifecycle",
    "get_app_objects", "get_cluster_info", "get_fabric_peers", "http_server",
    "list_cluster_reservations", "list_deployed_apps", "server_forward", "stop_app",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LATER:
        raise UnimplementedError(f"experimental.{name} is not built yet")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
