"""The agent: takes up the desired state of this machine, and wires containers, images, networks and control plane."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections import Counter, deque
from typing import Callable, Collection, Optional, Sequence

from cadenza.agent import (
    capacity, commands, container, contents, files, gpus, imaging, pool, support, surroundings, variables,
)  # fmt: skip
from cadenza.agent.bare import BareImages
from cadenza.agent.files import Layers
from cadenza.agent.identities import Identities
from cadenza.agent.lifecycle import Cell
from cadenza.agent.stats import Sampler
from cadenza.base.clock import Clock
from cadenza.base.config import Config, node_labels
from cadenza.base.errors import ConflictError, Error, InvalidError, NotFoundError
from cadenza.base.ids import IdSource
from cadenza.base.resources import Resources
from cadenza.observe.log import Log
from cadenza.protocol import nodes
from cadenza.protocol.calls import Attempt
from cadenza.protocol.nodes import ContainerReport, ContainerSpec, Control, Desired, Exec, NodeInfo, NodeReport
from cadenza.runtime.choice import STANDARD
from cadenza.runtime.driver import Driver, Mount, Stats

CLOSE_GRACE_S = 10.0
"""How long exit hooks of classes may take when the agent ends."""
CLOSE_LIMIT_S = 20.0
"""How long the end of the agent waits until all its containers are gone and removed."""
QUIET_S = 0.15
"""How long nothing must have moved in a start for the machine to count as quiet."""
LULL_LIMIT_S = 3.0
"""How long work that is in nobody's way later waits for a quiet moment at most."""
REMOVALS_AT_ONCE = 2
POOL_DELAY_S = 0.2
"""How long nothing may start before the pool looks at itself: whoever waits comes first."""
POOL_CHECK_S = 20.0


class Agent(imaging.Imaging):
    """Implements `cadenza.protocol.nodes.Node` on this machine. All methods belong to one event loop's thread.

    ``around`` replaces the drivers, images and networks in tests; by default they are opened for ``config``.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        ids: IdSource,
        control: Control,
        accept_client: Callable[[socket.socket, str], None],
        accept_lane: Callable[[socket.socket, str], None],
        around: Optional[surroundings.Surroundings] = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.control = control
        self.accept_client = accept_client
        self.accept_lane = accept_lane
        self.containers_dir = os.path.join(config.data_dir, "containers")
        self.lib = self._shown_libs = ""
        self.node_id = ""
        self.cores = capacity.cores()
        self.cards = gpus.Cards()
        self._ids = ids
        self._given = around
        self._around: surroundings.Surroundings
        self._log = Log("cadenza.agent")
        self._lock = -1
        self._capacity = Resources()
        self._cells: dict[str, Cell] = {}
        """By cell id: everything that is on this machine, from its first directory to its removal."""
        self._wanted: dict[str, Cell] = {}
        """By container id."""
        self._desired = Desired(-1)
        self._over: dict[str, ContainerReport] = {}
        """The last reports of containers that are gone and still in the desired state: never started again."""
        self._orders: set[tuple[str, float, bool]] = set()
        self._queue: deque[Cell] = deque()
        self._starting: set[Cell] = set()
        self._changed: dict[str, Optional[Cell]] = {}
        """What the next report tells; None: what `_over` says of it."""
        self._flushing = False
        self._whole = True
        self._used: dict[pool.Kind, float] = {}
        self._pool_timer: Optional[asyncio.TimerHandle] = None
        self._closing = False
        self._compiling = asyncio.Lock()
        self.removals = asyncio.Semaphore(REMOVALS_AT_ONCE)
        self._quiet_at = 0.0
        self._ends = asyncio.Event()
        self._sampler = Sampler(self.stats, control.usage, clock.now, self.fault)
        self._loop: asyncio.AbstractEventLoop

    # --- beginning and end ---

    async def start(self) -> None:
        """Take the data directory, remove what an earlier agent left, and be ready. ConflictError if another has it."""
        self._loop = asyncio.get_running_loop()
        os.makedirs(self.containers_dir, mode=0o711, exist_ok=True)
        self._take_lock()
        around: Optional[surroundings.Surroundings] = None
        try:
            self.node_id = self._own_id()
            self.lib = await asyncio.to_thread(support.prepare, self.config.data_dir)
            self.layers = Layers(os.path.join(self.config.data_dir, "files"), self.control.object_path)
            around = self._around = self._given or await surroundings.open_surroundings(self.config)
            self.store = self._around.store
            self.traces = self._around.contents.traces if self._around.contents is not None else None
            self.networks = self._around.networks
            self._shown_libs = os.path.dirname(self.lib)
            if self._around.identities is not None:
                self._shown_libs = await asyncio.to_thread(self._around.identities.show, self._shown_libs, "lib")
            await asyncio.to_thread(support.trim, self.lib, {one.image_id for one in self.store.images()})
            for text in self._around.warnings:
                self.trouble(text)
            for text in await surroundings.clean(self._around, self.containers_dir):
                self.trouble(text)
            await asyncio.to_thread(self.layers.trim, ())
            self._capacity = capacity.measure(self.config.data_dir)
            cards, trouble = await asyncio.to_thread(gpus.detect)
            self.cards = gpus.Cards(cards)
            if trouble:
                self.trouble(trouble)
        except BaseException:
            if around is not None:
                await around.close()
            self._drop_lock()
            raise
        self._sampler.start()
        self._log.info("started", node=self.node_id, runtimes=str(self.info().runtimes))

    def _take_lock(self) -> None:
        self._lock = os.open(
            os.path.join(self.config.data_dir, "agent.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._drop_lock()
            raise ConflictError(
                f"another server uses {self.config.data_dir}; stop it (cadenza down), or set CADENZA_HOME"
            ) from None

    def _drop_lock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _own_id(self) -> str:
        path = os.path.join(self.config.data_dir, "node_id")
        try:
            with open(path, encoding="ascii") as file:
                found = file.read().strip()
        except OSError:
            found = ""
        if not found:
            found = self._ids.new("node")
            with open(path, "w", encoding="ascii") as file:
                file.write(found + "\n")
        return found

    async def close(self, keep_containers: bool = False) -> None:
        """End all containers and leave nothing behind. ``keep_containers`` is not offered: nobody could adopt them."""
        self._closing = True
        await self._sampler.close()
        self._ends.set()
        if self._pool_timer is not None:
            self._pool_timer.cancel()
        if not self._lock >= 0:
            return
        cells = list(self._cells.values())
        for cell in cells:
            cell.dispatch(container.Stop(CLOSE_GRACE_S if cell.leaves else 0.0, reason="the server ends"))
        if cells:
            waits = [self._loop.create_task(cell.removed.wait()) for cell in cells]
            _, late = await asyncio.wait(waits, timeout=CLOSE_LIMIT_S)
            for one in late:
                one.cancel()
            if late:
                self.trouble(f"{len(late)} containers were not removed in time; the next start removes them")
        await self._around.close()
        self._drop_lock()

    def info(self) -> NodeInfo:
        """What this machine has, and which runtime gives which level of isolation."""
        runtimes = {level: driver.name for level, driver in self._around.drivers.items()}
        labels = {"hostname": socket.gethostname(), **node_labels(self.config.node_labels)}
        return NodeInfo(self.node_id, self._capacity, self.cards.types, labels, runtimes)

    # --- the desired state ---

    def want(self, desired: Desired) -> None:
        """Take up a newer desired state."""
        if desired.revision < self._desired.revision or self._closing:
            return
        self._desired = desired
        ids = {one.container_id for one in desired.containers}
        for container_id, cell in list(self._wanted.items()):
            if container_id not in ids:
                cell.dispatch(container.Stop(reason="it is no longer wanted"))
        self._over = {one: report for one, report in self._over.items() if one in ids}
        self._orders = {one for one in self._orders if one[0] in ids}
        for spec in desired.containers:
            if spec.container_id in self._over:
                self._changed.setdefault(spec.container_id, None)  # not heard, or not yet
            elif spec.container_id not in self._wanted:
                self._admit(spec)
        for order in desired.stops:
            key = (order.container_id, order.grace_s, order.drain)
            known = self._wanted.get(order.container_id)
            if known is not None and key not in self._orders:
                self._orders.add(key)
                known.dispatch(container.Stop(order.grace_s, order.drain, order.reason))
        self._pump()
        self._flush_soon()
        self._pool_soon()

    def _admit(self, spec: ContainerSpec) -> None:
        kind = pool.Kind(spec.image_id, spec.isolation)
        self._used[kind] = self.clock.monotonic()
        image = self.store.image(spec.image_id)
        if image is not None:
            self.store.touch(spec.image_id, self.clock.now())
            if why := contents.unfit(image):
                return self._refuse(spec, nodes.INIT_FAILED, why)
        warm = self._match(spec, kind)
        if warm is not None:
            warm.adopt(spec)
            return
        try:
            cell = Cell(self, spec.container_id, spec.image_id, spec.isolation, spec)
        except Error as error:
            return self._refuse(spec, nodes.RUNTIME_FAILED, f"it could not be started: {error}")
        self._cells[cell.cell_id] = self._wanted[spec.container_id] = cell
        self._queue.append(cell)
        self.changed(cell)

    def _refuse(self, spec: ContainerSpec, reason: str, message: str) -> None:
        self._over[spec.container_id] = ContainerReport(spec.container_id, nodes.GONE, reason, message)
        self._changed[spec.container_id] = None

    def _match(self, spec: ContainerSpec, kind: pool.Kind) -> Optional[Cell]:
        """A warm container that fits: same image, isolation, network and disk, and files that need no layer."""
        function = spec.function
        if function.block_network or spec.gpus or function.resources.disk_mib or not files.inline(function.files):
            return None
        for cell in self._cells.values():
            if cell.takes_function and pool.Kind(cell.image_id, cell.isolation) == kind:
                return cell
        return None

    def _pump(self) -> None:
        """Begin as many waiting starts as keep the cores busy: more at once only adds latency to each."""
        while self._queue and sum(one.weight for one in self._starting) < self.cores:
            cell = self._next_start()
            if cell.life.state == container.WANTED:
                self._starting.add(cell)
                cell.dispatch(container.Begin())

    def _next_start(self) -> Cell:
        """The first in line of the function that has least: one that wants a thousand does not hold up the others."""
        has = Counter(
            one.spec.function_id
            for one in self._wanted.values()
            if one.spec is not None and one.life.state not in (container.WANTED, container.GONE)
        )
        cell = min(self._queue, key=lambda one: has[one.spec.function_id] if one.spec is not None else 0)
        self._queue.remove(cell)
        return cell

    # --- what containers tell: `cadenza.agent.site.Site` ---

    def driver(self, isolation: str) -> Driver:
        """What gives this level of isolation here. InvalidError says what to do when nothing does."""
        level = isolation or self.config.isolation
        found = self._around.drivers.get(level)
        if found is None:
            raise InvalidError(
                f"this machine has no runtime for isolation {level!r}; cadenza doctor says how to get one"
            )
        return found

    def identities(self, driver: Driver) -> Optional[Identities]:
        """What gives that driver's containers ids of their own; None where they have none."""
        return self._around.identities if driver is self._around.drivers.get(STANDARD) else None

    def python(self, image_id: str) -> str:
        """The host's Python for a container without a root file system."""
        return self._around.python(image_id)

    def entrypoint(self, image_id: str) -> tuple[str, ...]:
        """The program of an image under which its containers' runner is started."""
        return () if isinstance(self.store, BareImages) else self.store.settings(image_id).entrypoint

    def library(self, image_id: str) -> str:
        """The support library for containers of an image, where they reach it."""
        return os.path.join(self._shown_libs, os.path.basename(support.for_image(self.lib, image_id)))

    def name_mounts(self) -> list[Mount]:
        """What a container with a network needs to look names up."""
        return self._around.name_mounts()

    def changed(self, cell: Cell) -> None:
        """It has something to report: all that changed in one turn of the loop goes up as one report."""
        if cell.container_id:
            self._changed[cell.container_id] = cell
            if cell.life.state == container.GONE:
                self._over[cell.container_id] = cell.report()
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._whole:
            reports = {one: cell.report() for one, cell in self._wanted.items()}
            reports.update(self._over)
        else:
            reports = {
                one: cell.report() if cell is not None else self._over[one]
                for one, cell in self._changed.items()
                if cell is not None or one in self._over
            }
        self._changed.clear()
        whole, self._whole = self._whole, False
        if self._desired.revision >= 0:
            self.control.report(NodeReport(self.node_id, tuple(reports.values()), whole, self._desired.revision))

    @property
    def _starts(self) -> bool:
        """Whether a start that somebody waits for is under way."""
        waited = self._queue or any(not one.life.generic for one in self._starting)
        return bool(waited) or any(one.life.state == container.ATTACHING for one in self._wanted.values())

    async def lull(self) -> None:
        """Until no start has been under way for `QUIET_S`, or `LULL_LIMIT_S` are over, or the agent ends."""
        limit = self._loop.time() + LULL_LIMIT_S
        while not self._closing:
            now = self._loop.time()
            if self._starts:
                self._quiet_at = now + QUIET_S
            rest = min(self._quiet_at, limit) - now
            if rest <= 0:
                return
            try:
                await asyncio.wait_for(self._ends.wait(), rest + 0.001)
            except asyncio.TimeoutError:
                continue

    def moved(self, cell: Cell) -> None:
        """Its state is another: a start that has said hello, or has failed, makes room for the next."""
        if not cell.life.generic and cell.life.state in container.STARTING:
            self._quiet_at = self._loop.time() + QUIET_S
        if cell in self._starting and cell.life.state not in (
            container.PREPARING, container.CREATING, container.BOOTING,
        ):  # fmt: skip
            self._starting.discard(cell)
            self._pump()
        if cell.life.generic and cell.life.reason == nodes.RUNTIME_FAILED:
            self._used.pop(pool.Kind(cell.image_id, cell.isolation), None)  # until somebody starts the image again
        self._pool_soon()

    def adopted(self, cell: Cell) -> None:
        """A generic container has got its id."""
        self._wanted[cell.container_id] = cell

    def forget(self, cell: Cell) -> None:
        """Nothing is left of it."""
        self._cells.pop(cell.cell_id, None)
        if self._wanted.get(cell.container_id) is cell:
            del self._wanted[cell.container_id]
        ids = {one.container_id for one in self._desired.containers}
        if cell.container_id not in ids:
            self._over.pop(cell.container_id, None)

    def trouble(self, text: str) -> None:
        """A line for the server's log."""
        self._log.warning(text)

    def fault(self, text: str, error: BaseException) -> None:
        """A fault of ours for the server's log."""
        self._log.error(text, error)

    # --- the pool ---

    def _pool_soon(self, delay_s: float = POOL_DELAY_S) -> None:
        if self._pool_timer is not None:
            self._pool_timer.cancel()
        self._pool_timer = None if self._closing else self._loop.call_later(delay_s, self._pool)

    def _pool(self) -> None:
        self._pool_timer = None
        warm = {
            one.cell_id: pool.Kind(one.image_id, one.isolation)
            for one in self._cells.values()
            if one.life.generic and one.life.state not in (container.STOPPING, container.GONE)
        }
        busy = self._starts
        now = self.clock.monotonic()
        plan = pool.plan(self._used, self._desired.images, warm, self.config.pool_containers, busy, now)
        for cell_id in plan.end:
            self._cells[cell_id].dispatch(container.Stop())
        if not self._starting:
            for kind in plan.make:
                try:
                    cell = Cell(self, self._ids.new("container"), kind.image_id, kind.isolation, None)
                except Error as error:
                    self.trouble(f"no warm container: {error}")
                    continue
                self._cells[cell.cell_id] = cell
                self._starting.add(cell)
                cell.dispatch(container.Begin())
        self._used = {kind: at for kind, at in self._used.items() if now - at < pool.UNUSED_LIMIT_S}
        if (self._used or warm) and self._pool_timer is None:
            self._pool_soon(POOL_CHECK_S)

    async def let_go(self, image_ids: Collection[str]) -> None:
        """End warm containers of these images, and make no more until somebody starts one again."""
        self._used = {kind: at for kind, at in self._used.items() if kind.image_id not in image_ids}
        warm = [one for one in self._cells.values() if one.life.generic and one.image_id in image_ids]
        for cell in warm:
            cell.dispatch(container.Stop(reason="its image is removed"))
        if warm:
            await asyncio.wait(
                [self._loop.create_task(one.removed.wait()) for one in warm], timeout=LULL_LIMIT_S + CLOSE_LIMIT_S
            )

    # --- the rest of `Node` ---

    def deliver(self, container_id: str, attempts: Sequence[Attempt]) -> None:
        """Hand attempts to a container."""
        cell = self._wanted.get(container_id)
        if cell is not None:
            cell.deliver(attempts)

    def cancel(self, container_id: str, attempt_ids: Sequence[str], revoke: bool = False) -> None:
        """Cancel attempts that run, or give back those that have not begun."""
        cell = self._wanted.get(container_id)
        if cell is not None:
            cell.cancel(attempt_ids, revoke)

    async def stats(self) -> dict[str, Stats]:
        """What each running container uses now, by container id."""
        found = {}
        for container_id, cell in list(self._wanted.items()):
            if cell.alive:
                try:
                    found[container_id] = await cell.driver.stats(cell.cell_id)
                except (Error, OSError):
                    continue  # it has just ended
        return found

    async def exec(
        self, container_id: str, argv: Sequence[str], pty: bool, output: Callable[[int, bytes], None], rows: int = 0,
        columns: int = 0,
    ) -> Exec:  # fmt: skip
        """Run a command in a container that runs. NotFoundError when it does not."""
        cell = self._wanted.get(container_id)
        if cell is None or not cell.alive:
            raise NotFoundError(f"container {container_id} is not running")
        if not argv:
            raise InvalidError("exec needs a command")
        running = commands.Running(output)
        env = cell.command_env()
        home = cell.inner_path(variables.HOME)
        await running.start(cell.driver, cell.cell_id, argv, env, home, pty, rows, columns)
        return running
