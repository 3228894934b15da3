"""One command of an image's build, in a container of its own on the layer that is being made."""

from __future__ import annotations

import asyncio
import builtins
import json
import os
import shutil
import signal
from dataclasses import dataclass, replace
from typing import Callable, Optional

from cadenza import runner
from cadenza.agent import gpus, mounts, rootfs, variables
from cadenza.agent.attachment import limits
from cadenza.agent.files import Layers
from cadenza.agent.identities import Identities
from cadenza.agent.pipes import Pipe
from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.fs.images import Bind, StepRun
from cadenza.protocol.objects import BuildFunction
from cadenza.runtime.driver import HOST_NETWORK, ContainerConfig, Driver, Limits, Mount, RuntimeFault, Stdio
from cadenza.runtime.ids import IdRange, files_as

BUILD_PIDS_LIMIT = 16_384
LAST_WORDS_LIMIT_S = 0.5


BUILD = "/.cadenza/build"
"""Where a step finds what is made for it: `cadenza.fs.host.BUILD`."""


@dataclass(frozen=True)
class Means:
    """What steps are run with."""

    driver: Driver
    directory: str
    """Where containers have theirs."""
    identities: Optional[Identities] = None
    """The command's root is nobody outside; what it writes is owned by the image's ids all the same."""
    cards: Optional[gpus.Cards] = None
    layers: Optional[Layers] = None
    """Files that functions see."""
    lib: str = ""
    """The support library, on this machine."""
    object_path: Callable[[str], Optional[str]] = lambda digest: None


async def run_step(step: StepRun, cell_id: str, means: Means) -> int:
    """Run it and give its exit code; `cadenza.fs.images.RunStep` says what is asked of this.

    Nothing stays: the mount, the container and its directory are gone when this returns, the step's ``upper`` holds
    what the command wrote. ServiceError when others have the GPUs that it wants.
    """
    driver, identities = means.driver, means.identities
    home = os.path.join(means.directory, cell_id)
    paths = rootfs.Paths(home, identities.front(cell_id) if identities is not None else "")
    if step.function is not None:
        step = await asyncio.to_thread(_with_function, step, step.function, means)
    wishes = step.resources.gpus if step.resources is not None else ()
    if wishes and means.cards is None:
        raise InvalidError("this machine has no GPUs that a step of a build could have")
    ids = await identities.take() if identities is not None else None
    pipes: list[Pipe] = []
    try:
        cards = means.cards.take(cell_id, wishes) if wishes and means.cards is not None else []
        pipes = [Pipe(step.output), Pipe(step.output)]
        await asyncio.to_thread(paths.make, driver.name)
        binds = await asyncio.to_thread(_mount, step, paths, ids)
        config = ContainerConfig(
            container_id=cell_id,
            rootfs=paths.rootfs,
            argv=step.argv,
            env=step.env,
            cwd=step.cwd,
            mounts=binds,
            limits=_limits(step),
            netns=HOST_NETWORK if step.network else "",
            privileged_build=True,
            id_base=ids.base if ids is not None else 0,
            user=step.user,
            gpus=gpus.devices(cards),
        )
        try:
            try:
                await driver.start(config, paths.bundle, Stdio(stdout=pipes[0].writer, stderr=pipes[1].writer))
            finally:
                for pipe in pipes:
                    pipe.close_writer()
        except (RuntimeFault, InvalidError) as error:
            raise OSError(f"the step could not be started: {error}") from error
        try:
            ended = await asyncio.wait_for(driver.wait(cell_id), step.timeout_s)
        except (asyncio.TimeoutError, builtins.TimeoutError):
            await driver.signal(cell_id, signal.SIGKILL)
            raise builtins.TimeoutError(f"the step ran longer than {step.timeout_s:g} s") from None
        await asyncio.wait([asyncio.ensure_future(one.drained.wait()) for one in pipes], timeout=LAST_WORDS_LIMIT_S)
        if ended.oom and ended.code:
            step.output(_out_of_memory(step))
        if ended.fault:
            raise OSError(f"the runtime broke down: {ended.fault}")
        return ended.code
    finally:
        for pipe in pipes:
            pipe.finish()
        await asyncio.shield(_undo(means, cell_id, paths, identities, ids))


def _out_of_memory(step: StepRun) -> bytes:
    limit = step.resources.memory_limit_mib if step.resources is not None else 0
    more = f"its limit of {limit} MiB: raise it with memory=(request, limit)" if limit else "what the machine has"
    return f"out of memory: the step used more than {more}\n".encode()


def _limits(step: StepRun) -> Limits:
    """By default a step may have the whole machine."""
    if step.resources is None:
        return Limits(pids_limit=BUILD_PIDS_LIMIT)
    return replace(limits(step.resources), pids_limit=BUILD_PIDS_LIMIT)


def _with_function(step: StepRun, function: BuildFunction, means: Means) -> StepRun:
    """The step as a command that runs the function: what it is called with, the library, and its files above all."""
    folder = os.path.join(next(one.source for one in step.binds if one.target == BUILD), "function")
    os.mkdir(folder, 0o755)
    for name, digest in (("function.pkl", function.serialized), ("arguments.pkl", function.arguments)):
        if digest:
            path = means.object_path(digest)
            if path is None:
                raise NotFoundError(f"{name} of run_function was not uploaded ({digest[:12]})")
            shutil.copyfile(path, os.path.join(folder, name))
            os.chmod(os.path.join(folder, name), 0o644)
    with open(os.path.join(folder, "call.json"), "w", encoding="utf-8") as file:
        call = ("module", "qualname", "python", "is_async", "is_generator")
        json.dump({name: getattr(function, name) for name in call}, file)
    os.chmod(os.path.join(folder, "call.json"), 0o644)
    lowers = step.lowers
    if function.files and means.layers is not None:
        lowers = lowers.below(means.layers.ensure(function.files))
    return replace(
        step,
        argv=tuple(runner.build_command(step.argv[0], variables.LIB)),
        env={**step.env, "CADENZA_IS_REMOTE": "1", "MODAL_IS_REMOTE": "1"},
        lowers=lowers,
        binds=(*step.binds, Bind(means.lib, variables.LIB)),
    )


def _mount(step: StepRun, paths: rootfs.Paths, ids: Optional[IdRange]) -> tuple[Mount, ...]:
    """Mount the root file system; the mounts inside it."""
    if ids is None:
        mounts.overlay(step.lowers, step.upper, step.work, paths.rootfs, False)
        return tuple(Mount(one.source, one.target, read_only=one.read_only) for one in step.binds)
    paths.hand_over(ids)
    lower, writable = os.path.join(paths.home, "lower"), os.path.join(paths.home, "writable")
    with (
        mounts.shown(step.lowers, lower, ids.userns) as shown,
        mounts.shown_writable(step.upper, step.work, writable, ids.userns) as (upper, work),
        files_as(ids.base),
    ):
        mounts.overlay(shown, upper, work, paths.rootfs, False)
    binds = []
    for number, one in enumerate(step.binds):
        target = os.path.join(paths.front, f"bind{number}")
        mounts.present(one.source, target, ids.userns, one.read_only)
        binds.append(Mount(target, one.target, read_only=one.read_only))
    return tuple(binds)


async def _undo(
    means: Means, cell_id: str, paths: rootfs.Paths, identities: Optional[Identities], ids: Optional[IdRange]
) -> None:
    """Each part, even if nobody waits for it any more. Not the ids if the container stays: a process may have them."""
    try:
        await means.driver.delete(cell_id)
        if identities is not None and ids is not None:
            identities.ranges.give_back(ids)
    finally:
        if means.cards is not None:
            means.cards.give_back(cell_id)
        await asyncio.to_thread(paths.remove)
