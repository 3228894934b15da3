"""What a container is told about itself: how its runner is started, and the attach frame. Pure."""

from __future__ import annotations

import shlex
from typing import Any, Callable, Mapping, Sequence

from cadenza import runner
from cadenza.agent import variables
from cadenza.agent.rootfs import Paths
from cadenza.base.resources import Resources
from cadenza.protocol.nodes import ContainerSpec
from cadenza.protocol.objects import FileEntry, FunctionSpec
from cadenza.runtime.driver import ContainerConfig, Limits, Mount


PIDS_LIMIT = 16_384
"""Processes and threads in one container."""


def limits(resources: Resources) -> Limits:
    """What the cgroup is told. A memory request without a limit may use what the machine has to spare."""
    return Limits(
        cpu_milli=resources.cpu_milli,
        cpu_limit_milli=resources.cpu_limit_milli,
        memory_limit_mib=resources.memory_limit_mib,
        pids_limit=PIDS_LIMIT,
    )


def isolated_config(
    cell_id: str,
    paths: Paths,
    lib: str,
    image_env: Mapping[str, str],
    limits: Limits,
    netns: str,
    mounts: Sequence[Mount],
    id_base: int = 0,
    gpus: tuple[str, ...] = (),
    entrypoint: Sequence[str] = (),
    workdir: str = "",
) -> ContainerConfig:
    """A runner in a container with a root file system of its own. ``entrypoint``: the image's, which starts in its
    ``workdir``, gets the runner's command as arguments, and is to become it (semantics.md 13.2)."""
    support = [Mount(lib, variables.LIB, read_only=True), Mount(paths.run, variables.SUPPORT, read_only=True)]
    return ContainerConfig(
        container_id=cell_id,
        rootfs=paths.rootfs,
        argv=(*entrypoint, *runner.command("python3", variables.LIB)),
        env=variables.base(image_env),
        cwd=(workdir or "/") if entrypoint else "/",
        mounts=(*support, *mounts),
        limits=limits,
        netns=netns,
        id_base=id_base,
        gpus=gpus,
    )


def entrypoint_hint(entrypoint: Sequence[str]) -> str:
    """What to say when the runner of a container never came: the image's ENTRYPOINT may have kept it."""
    if not entrypoint:
        return ""
    return (
        f'the image\'s ENTRYPOINT {shlex.join(entrypoint)} did not start it: it must end in exec "$@", or be left out '
        "by Image.entrypoint([])"
    )


def bare_config(
    cell_id: str, paths: Paths, lib: str, image_env: Mapping[str, str], limits: Limits, python: str, path: str
) -> ContainerConfig:
    """A runner as a plain process of this machine. ``path``: what PATH is, if the image does not say."""
    env = variables.base({"PATH": path, **image_env}, home=paths.root, support=paths.support)
    env["CADENZA_ROOT"] = paths.root
    command = tuple(runner.command(python, lib))
    return ContainerConfig(cell_id, "", command, env, cwd=paths.root, netns="host", limits=limits)


def function(spec: FunctionSpec, app_name: str) -> dict[str, Any]:
    """What a runner is told about its function or class. Keys that say nothing are left out."""
    found: dict[str, Any] = {
        "name": spec.name,
        "module": spec.module,
        "qualname": spec.qualname,
        "is_generator": spec.is_generator,
        "is_async": spec.is_async,
        "max_concurrent": spec.max_concurrent,
        "python": spec.python,
        "app": app_name,
    }
    if spec.methods:
        found["methods"] = [
            {"name": one.name, "is_generator": one.is_generator, "is_async": one.is_async} for one in spec.methods
        ]
        found["parameters"] = spec.parameters
    if spec.batch_max:
        found["batch_max"] = spec.batch_max
    if spec.retries is not None and (spec.retries.on or spec.retries.not_on):
        found["kinds"] = True
    if spec.interactive:
        found["interactive"] = True
    return found


def frame(
    spec: ContainerSpec,
    files: Sequence[tuple[FileEntry, int]],
    serialized_bytes: int,
    env: Mapping[str, str],
    cwd: str,
    inner_path: Callable[[str], str],
) -> dict[str, Any]:
    """The header of the attach frame (docs/formats/wire.md). ``files``: each with the size of its content."""
    return {
        "container_id": spec.container_id,
        "app_id": spec.app_id,
        "function_id": spec.function_id,
        "function": function(spec.function, spec.app_name),
        "env": dict(env),
        "files": [{"path": inner_path(one.path), "size": size, "mode": one.mode} for one, size in files],
        "layout": spec.layout,
        "cwd": inner_path(cwd or variables.HOME),
        "serialized": serialized_bytes,
        "image_id": spec.image_id,
    }
