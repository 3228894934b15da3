"""One command of an image's build, in a container of its own on the layer that is being made."""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
from typing import Optional

from cadenza.agent import mounts, rootfs
from cadenza.agent.identities import Identities
from cadenza.agent.pipes import Pipe
from cadenza.base.errors import InvalidError
from cadenza.fs.images import StepRun
from cadenza.runtime.driver import HOST_NETWORK, ContainerConfig, Driver, Limits, Mount, RuntimeFault, Stdio
from cadenza.runtime.ids import IdRange, files_as

BUILD_PIDS_LIMIT = 16_384
LAST_WORDS_LIMIT_S = 0.5


async def run_step(
    step: StepRun, driver: Driver, cell_id: str, directory: str, identities: Optional[Identities] = None
) -> int:
    """Run it and give its exit code; `cadenza.fs.images.RunStep` says what is asked of this.

    ``directory``: where containers have theirs. Nothing stays: the mount, the container and its directory are gone
    when this returns, the step's ``upper`` holds what the command wrote. ``identities``: the command's root is nobody
    outside; what it writes is owned by the image's ids all the same.
    """
    paths = rootfs.Paths(os.path.join(directory, cell_id), identities.front(cell_id) if identities is not None else "")
    ids = await identities.take() if identities is not None else None
    pipes = [Pipe(step.output), Pipe(step.output)]
    try:
        await asyncio.to_thread(paths.make, driver.name)
        binds = await asyncio.to_thread(_mount, step, paths, ids)
        config = ContainerConfig(
            container_id=cell_id,
            rootfs=paths.rootfs,
            argv=step.argv,
            env=step.env,
            cwd=step.cwd,
            mounts=binds,
            limits=Limits(pids_limit=BUILD_PIDS_LIMIT),
            netns=HOST_NETWORK if step.network else "",
            privileged_build=True,
            id_base=ids.base if ids is not None else 0,
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
        if ended.fault:
            raise OSError(f"the runtime broke down: {ended.fault}")
        return ended.code
    finally:
        for pipe in pipes:
            pipe.finish()
        await asyncio.shield(_undo(driver, cell_id, paths, identities, ids))


def _mount(step: StepRun, paths: rootfs.Paths, ids: Optional[IdRange]) -> tuple[Mount, ...]:
    """Mount the root file system; the mounts inside it."""
    if ids is None:
        mounts.overlay(step.lowerdirs, step.upper, step.work, paths.rootfs, False)
        return tuple(Mount(one.source, one.target, read_only=one.read_only) for one in step.binds)
    paths.hand_over(ids)
    lower, writable = os.path.join(paths.home, "lower"), os.path.join(paths.home, "writable")
    with (
        mounts.shown(step.lowerdirs, lower, ids.userns) as shown,
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
    driver: Driver, cell_id: str, paths: rootfs.Paths, identities: Optional[Identities], ids: Optional[IdRange]
) -> None:
    await driver.delete(cell_id)
    if identities is not None and ids is not None:
        identities.ranges.give_back(ids)
    await asyncio.to_thread(paths.remove)
