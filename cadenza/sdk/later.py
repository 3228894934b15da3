"""What is named and typed and not built yet: each says what to use for now.

A name leaves this file when it is built.
"""

from __future__ import annotations

from cadenza.base.errors import UnimplementedError
from cadenza.sdk.namespaces import LaterNamespace, unbuilt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Mapping, Optional, Sequence, Union

    from cadenza.sdk.image import Image
    from cadenza.sdk.secret import Secret


class LaterApp:
    """What an `App` will do."""

    sandboxes = LaterNamespace("App.sandboxes", "sandboxes come later")

    def server(
        self,
        *,
        image: Optional[Image] = None,
        env: Optional[Mapping[str, Optional[str]]] = None,
        secrets: Optional[Sequence[Secret]] = None,
        gpu: Union[str, Sequence[Optional[str]], None] = None,
        serialized: bool = False,
        volumes: Mapping[Any, Any] = {},
        cpu: Union[float, tuple[float, float], None] = None,
        memory: Union[int, tuple[int, int], None] = None,
        ephemeral_disk: Optional[int] = None,
        target_concurrency: Optional[int] = None,
        max_concurrency: Optional[int] = None,
        min_containers: Optional[int] = None,
        max_containers: Optional[int] = None,
        buffer_containers: Optional[int] = None,
        scaleup_window: Optional[int] = None,
        scaledown_window: Optional[int] = None,
        startup_timeout: int = 30,
        name: Optional[str] = None,
        port: int = 8000,
        unauthenticated: bool = False,
        h2_enabled: bool = False,
        exit_grace_period: int = 0,
        routing_region: str = "us-east",
        compute_region: Union[str, Sequence[str], None] = None,
        cloud: Optional[str] = None,
        nonpreemptible: bool = False,
        proxy: Any = None,
        i6pn: Optional[bool] = None,
        enable_memory_snapshot: bool = False,
        include_source: Optional[bool] = None,
        experimental_options: Optional[Mapping[str, Any]] = None,
    ) -> Callable[[Any], Any]:
        """Not built yet."""
        raise UnimplementedError("@app.server is not built yet: web functions come later")


def clustered(*, size: int, rdma: bool = False) -> Callable[[Any], Any]:
    """A function that runs on several machines at once. Not built yet."""
    raise unbuilt("clustered()", "use several calls, or one machine")


def sessioned() -> Callable[[Any], Any]:
    """A function whose containers belong to sessions. Not built yet."""
    raise unbuilt("sessioned()", "use a plain @app.function")
