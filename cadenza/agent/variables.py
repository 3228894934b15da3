"""The environment variables that a container sees. Pure. Source: semantics.md sections 11.2 and 14."""

from __future__ import annotations

import math
from typing import Mapping

from cadenza.protocol.nodes import ContainerSpec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SUPPORT = "/.cadenza/run"
LIB = "/.cadenza/lib"
HOME = "/root"

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS", "ORT_NUM_THREADS", "RAYON_NUM_THREADS", "TBB_NUM_THREADS",
)  # fmt: skip


def base(image: Mapping[str, str], home: str = HOME, support: str = SUPPORT) -> dict[str, str]:
    """What a runner is started with, before it knows its function: defaults below the image's own variables."""
    return {
        "PATH": DEFAULT_PATH,
        "HOME": home,
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        **image,
        "CADENZA_SUPPORT": support,
        "CADENZA_IS_REMOTE": "1",
        "MODAL_IS_REMOTE": "1",
    }


def of_function(
    spec: ContainerSpec, environment: str, node_id: str, runtime: str, cores: int, labels: Mapping[str, str]
) -> dict[str, str]:
    """What the attach frame adds: threads by the CPU request, over it secrets and ``env=``, on top reserved names."""
    threads = str(max(1, min(cores, math.ceil(spec.function.resources.cpu_milli / 1000))))
    reserved = {
        "TASK_ID": spec.container_id,
        "CONTAINER_ID": spec.container_id,
        "IMAGE_ID": spec.image_id,
        "ENVIRONMENT": environment,
        "APP_ID": spec.app_id,
        "FUNCTION_ID": spec.function_id,
        "CLOUD_PROVIDER": labels.get("cloud", "local"),
        "REGION": labels.get("region", "local"),
        "FUNCTION_RUNTIME": runtime,
        "IS_REMOTE": "1",
    }
    found = dict.fromkeys(THREAD_VARIABLES, threads)
    found.update(spec.env)
    found.pop("CADENZA_SUPPORT", None)  # by `base`: through it the container finds the server
    for name, value in reserved.items():
        found["CADENZA_" + name] = value
        if name not in ("CONTAINER_ID", "APP_ID", "FUNCTION_ID"):
            found["MODAL_" + name] = value
    found["CADENZA_NODE_ID"] = node_id
    return found
