"""A seeded world around the real control plane: virtual time, a store that survives, a node that misbehaves.

Everything that `cadenza.control.calls` and `cadenza.control.loop` touch is here: the event loop's time, the queue's
commits (late, refused), the node (containers that start late or not at all, die, lose their connection; reports and
outputs that come late, twice or never), and the end of the control plane at any moment. Only the store survives that.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional, Sequence

from cadenza.base.config import Config
from cadenza.base.errors import Error
from cadenza.base.ids import IdSource
from cadenza.base.resources import Resources
from cadenza.control.calls import Calls
from cadenza.protocol import nodes
from cadenza.protocol.calls import (
    FAILURE,
    MAP,
    REVOKED,
    SPAWN_MAP,
    SUCCESS,
    SYNC,
    TERMINATED,
    Attempt,
    AttemptOutput,
    OutputItem,
)
from cadenza.protocol.nodes import ContainerReport, ContainerSpec, Desired, NodeInfo, NodeReport
from cadenza.protocol.objects import AutoscalerPatch, FunctionSpec, MethodSpec, RetryPolicy
from cadenza.scheduling.dispatch import MAX_EARLY
from cadenza.storage.queue_memory import MemoryQueue, MemoryStore


class _Selector(selectors.SelectSelector):
    """Never waits: time goes on instead."""

    now = 1000.0

    def select(self, timeout: Optional[float] = None) -> list[Any]:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise RuntimeError("the world stands still: nothing is planned and nobody is ready")
            self.now += max(1e-9, timeout)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds cost nothing."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now


class VirtualClock:
    """The loop's time as a `Clock`."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return 1_700_000_000.0 + self._loop.time()

    def monotonic(self) -> float:
        return self._loop.time()


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass
class Faults:
    """How likely each fault is, while faults happen at all."""

    start_fails: float = 0.0
    dies: float = 0.0
    doubled: float = 0.0
    late_s: float = 0.01
    disk_full: float = 0.0
    disconnects: int = 0
    restarts: int = 0
    node_dies_with_control: bool = False
    deploys: int = 0
    """How often a function is published anew, or limited at run time."""


@dataclass(eq=False)
class _Box:
    """A container in the node."""

    spec: ContainerSpec
    state: str = nodes.PREPARING
    waiting: list[Attempt] = field(default_factory=list)
    running: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    seen: dict[str, Optional[AttemptOutput]] = field(default_factory=dict)
    draining: bool = False
    handles: list[asyncio.TimerHandle] = field(default_factory=list)
    taken: int = 0
    ending: bool = False
    number: int = 0
    """Of the function's publication that it was started for."""
    batch_of: dict[str, str] = field(default_factory=dict)
    """By running attempt: its batch, or itself."""


class World:
    """One seed's run. What an input does is in its value: ``ok 0.01``, ``fail 0.01``, ``stuck``, ``crash 0.01``, or
    ``nest g``, which calls function ``g`` and waits for it."""

    def __init__(self, seed: int, faults: Faults, loop: VirtualLoop) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.faulty = True
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.store = MemoryStore()
        self.ids = IdSource(self.random.randbytes)
        self.capacity = Resources(4000, 8192)  # room for every function's minimum and one more
        self.functions: dict[str, FunctionSpec] = {}
        self.deployed = False
        """Whether the functions are of a deployed app."""
        self.replaced_at: dict[tuple[str, int], float] = {}
        """By function and number of its publication: when another one came into force."""
        self.published: dict[str, int] = {}
        self.calls: Calls
        self.boxes: dict[str, _Box] = {}
        self.revision = 0
        self.ended: dict[str, ContainerReport] = {}
        self.connected = True
        self.outputs: dict[tuple[str, int], str] = {}
        self.log: list[str] = []
        self.trace = False
        self.nests = False
        self.start_reasons: tuple[str, ...] = (nodes.RUNTIME_FAILED, nodes.RUNTIME_FAILED, nodes.INIT_FAILED)
        self._channel_at = 0.0
        self._down_at = 0.0
        self._generation = 0

    # --- the control plane's life ---

    def _failed(self, part: str, error: Exception) -> None:
        """What a server would log ends a test."""
        self.loop.call_exception_handler({"message": part, "exception": error})

    async def boot(self) -> None:
        """A new control plane on what survived."""
        queue = MemoryQueue(self.store, self._latency_s)
        self.calls = Calls(Config(), None, self.clock, self.ids, queue=queue)
        self.calls.loop.failed = self._failed  # type: ignore[method-assign]
        await self.equip()
        self._generation += 1
        for name, spec in self.functions.items():
            self.calls.add_function(name, "ap-1", "app", spec, {}, ephemeral=not self.deployed)
        self.loop.call_later(self.random.uniform(0, 0.2), self._hello, self._generation)
        await self.calls.start(self)

    async def equip(self) -> None:
        """What a control plane gets before it starts, besides its functions."""

    def deploy(self, name: str, spec: FunctionSpec, renew: bool, strategy: str) -> None:
        """A function is published anew."""
        before = self.calls.loop.cluster.functions[name].generation
        self.calls.add_function(
            name, "ap-1", "app", spec, {}, ephemeral=not self.deployed, renew=renew, strategy=strategy
        )
        self.functions[name] = spec
        if self.calls.loop.cluster.functions[name].generation != before:
            number = self.published.get(name, 0)
            self.replaced_at[name, number] = self.loop.time()
            self.published[name] = number + 1
            self._say(f"{name} is published anew, {strategy}")

    def _hello(self, generation: int) -> None:
        if generation == self._generation:
            self.calls.report(self._whole())

    def crash(self) -> None:
        """The control plane is gone from one moment to the next."""
        self._say("control crashes")
        old = self.calls
        old.loop.stop()
        old._queue.abort()
        old._stopped = old._intake.stopped = True
        for task in list(old._tasks):
            task.cancel()
        if old._expiry is not None:
            old._expiry.cancel()
        self._generation += 1
        if self.faults.node_dies_with_control:
            for box in list(self.boxes.values()):
                self._remove(box)
            self.revision = 0

    def _latency_s(self) -> float:
        if not self.faulty:
            return 0.0
        self.store.full = self.random.random() < self.faults.disk_full
        return self.random.choice((0.0, 0.001, 0.01))

    def _say(self, text: str) -> None:
        if self.trace:
            self.log.append(f"{self.loop.time() - 1000:9.3f}  {text}")

    # --- protocol.nodes.Node ---

    def info(self) -> NodeInfo:
        return NodeInfo("no-1", self.capacity)

    def want(self, desired: Desired) -> None:
        if not self.connected or desired.revision <= self.revision:
            return
        self.revision = desired.revision
        named = {one.container_id: one for one in desired.containers}
        for name, box in list(self.boxes.items()):
            if name not in named:
                self._say(f"{name[:6]} is not wanted")
                self._end(box, nodes.STOPPED)
        for name, spec in named.items():
            if name in self.ended:  # an id is used once: what died is not started again, its end is told again
                self._report_end(name)
            elif name not in self.boxes:
                self._prepare(spec)
                if all(one.container_id != name for one in desired.stops):
                    self._check_count(spec.function_id)
        for order in desired.stops:
            box = self.boxes.get(order.container_id)
            if box is None or box.ending:
                continue
            if order.drain:
                box.draining = True
                self._give_back(box)
                if not box.running:
                    self._end(box, nodes.EXITED)
                else:
                    box.handles.append(self.loop.call_later(order.grace_s, self._end, box, nodes.STOPPED))
            else:
                box.ending = True
                wait = self.random.uniform(0, order.grace_s)
                box.handles.append(self.loop.call_later(wait, self._end, box, nodes.STOPPED))
        self._check_limits()

    def _check_limits(self) -> None:
        cpu = sum(box.spec.function.resources.cpu_milli for box in self.boxes.values())
        memory = sum(box.spec.function.resources.memory_mib for box in self.boxes.values())
        if (cpu > self.capacity.cpu_milli and not self.nests) or memory > self.capacity.memory_mib:
            raise Broken(f"the node holds {cpu} mcpu and {memory} MiB, more than it has")

    def _check_count(self, name: str) -> None:
        """When one starts: those of earlier versions count, too."""
        most = self.calls.loop.cluster.functions[name].spec.max_containers
        count = sum(1 for box in self.boxes.values() if box.spec.function_id == name)
        if most and count > most:
            raise Broken(f"{count} containers of {name}, at most {most} allowed")

    def _prepare(self, spec: ContainerSpec) -> None:
        self._say(f"{spec.container_id[:6]} starts")
        box = _Box(spec, number=self.published.get(spec.function_id, 0))
        self.boxes[spec.container_id] = box
        delay = self.random.uniform(0.05, 1.0 if self.faulty else 0.1)
        box.handles.append(self.loop.call_later(delay / 2, self._move, box, nodes.STARTING))
        if self.faulty and self.random.random() < self.faults.start_fails:
            reason = self.random.choice(self.start_reasons)
            box.handles.append(self.loop.call_later(delay, self._end, box, reason))
        else:
            box.handles.append(self.loop.call_later(delay, self._move, box, nodes.READY))

    def _move(self, box: _Box, state: str) -> None:
        box.state = state
        self._report(box, ContainerReport(box.spec.container_id, state))
        if state == nodes.READY and self.faulty and self.random.random() < self.faults.dies:
            reason = self.random.choice((nodes.CRASHED, nodes.OOM, nodes.RUNTIME_FAILED))
            box.handles.append(self.loop.call_later(self.random.uniform(0, 5), self._end, box, reason))

    def _remove(self, box: _Box) -> None:
        for handle in [*box.handles, *box.running.values()]:
            handle.cancel()
        self.boxes.pop(box.spec.container_id, None)

    def _end(self, box: _Box, reason: str) -> None:
        if box.spec.container_id not in self.boxes:
            return
        self._say(f"{box.spec.container_id[:6]} is gone: {reason}")
        self._remove(box)
        code = 137 if reason in (nodes.CRASHED, nodes.OOM) else None
        self.ended[box.spec.container_id] = ContainerReport(box.spec.container_id, nodes.GONE, reason, exit_code=code)
        self._report_end(box.spec.container_id)

    def _report_end(self, name: str) -> None:
        report = self.ended[name]
        self._send(lambda: self.calls.report(NodeReport("no-1", (report,), revision=self.revision)))

    def deliver(self, container_id: str, attempts: Sequence[Attempt]) -> None:
        if not self.connected:
            return
        self._down(self._delivered, container_id, list(attempts))

    def _down(self, action: Callable[..., None], *args: Any) -> None:
        """From the control plane to containers: in order, late, sometimes twice."""
        late = self.random.uniform(0, self.faults.late_s) if self.faulty else 0.0
        self._down_at = max(self.loop.time() + late, self._down_at + 1e-6)
        self.loop.call_at(self._down_at, action, *args)
        if self.faulty and self.random.random() < self.faults.doubled:
            self._down_at += 1e-6
            self.loop.call_at(self._down_at, action, *args)

    def _delivered(self, container_id: str, attempts: Sequence[Attempt]) -> None:
        box = self.boxes.get(container_id)
        if box is None:
            return
        if box.state != nodes.READY:
            raise Broken("an attempt was delivered to a container that is not ready")
        for one in attempts:
            if one.attempt_id in box.seen:
                done = box.seen[one.attempt_id]
                if done is not None:
                    self._put_out(box, done)
                continue
            box.seen[one.attempt_id] = None
            box.taken += 1
            if box.draining:
                self._put_out(box, AttemptOutput(one.attempt_id, REVOKED))
            else:
                box.waiting.append(one)
        spec = box.spec.function
        self._check_batches(spec, attempts)
        if spec.single_use and box.taken > max(1, spec.batch_max):
            raise Broken("a single-use container was given a second input")
        if len(box.waiting) > MAX_EARLY + spec.max_concurrent * max(1, spec.batch_max):
            raise Broken("too many inputs wait in a container")
        self._run(box)

    def _check_batches(self, spec: FunctionSpec, attempts: Sequence[Attempt]) -> None:
        sizes: dict[str, list[str]] = {}
        for one in attempts:
            if bool(one.batch) != bool(spec.batch_max):
                raise Broken("batches are for batched functions, and for those alone")
            sizes.setdefault(one.batch or one.attempt_id, []).append(one.method)
        for methods in sizes.values():
            if len(methods) > max(1, spec.batch_max) or len(set(methods)) > 1:
                raise Broken(f"a batch of {methods}, at most {spec.batch_max} of one method may be")

    def _run(self, box: _Box) -> None:
        while box.waiting:
            one = box.waiting[0]
            runs = {box.batch_of[name] for name in box.running}
            if len(runs) >= box.spec.function.max_concurrent and (one.batch or one.attempt_id) not in runs:
                break
            box.waiting.pop(0)
            box.batch_of[one.attempt_id] = one.batch or one.attempt_id
            replaced_at = self.replaced_at.get((box.spec.function_id, box.number), math.inf)
            calm = not self.faults.disconnects and not self.faults.restarts
            if self.loop.time() > replaced_at and calm and not box.ending:
                raise Broken("an input began in a container of an earlier version")
            word, _, seconds = one.data.decode().partition(" ")
            if word == "nest":
                self._nest(box, one, seconds)
                continue
            wait = float(seconds) if seconds else 1e6
            box.running[one.attempt_id] = self.loop.call_later(
                wait, self._ran, box, one.attempt_id, word, self.loop.time(), one.retry_count
            )

    def _nest(self, box: _Box, one: Attempt, function: str) -> None:
        self.nests = True
        name, begun = one.attempt_id, self.loop.time()
        box.running[name] = self.loop.call_later(1e6, lambda: None)

        def on_output(item: OutputItem, data: bytes) -> None:
            if box.spec.container_id in self.boxes and name in box.running:
                self._ran(box, name, "ok", begun, one.retry_count)

        self.calls.attach(
            function, SYNC, [(0, b"ok 0.5", None)], total=1, on_output=on_output, parent_input_id=one.input_id
        )

    def _ran(self, box: _Box, attempt: str, word: str, begun: float, retry: int) -> None:
        if word == "crash":
            self._end(box, nodes.CRASHED)
            return
        del box.running[attempt]
        now = self.loop.time()
        status = FAILURE if word == "fail" or (word == "flaky" and retry == 0) else SUCCESS
        self._put_out(box, AttemptOutput(attempt, status, b"!", started_at=begun, finished_at=now))
        self._run(box)
        if box.draining and not box.running:
            self._end(box, nodes.EXITED)

    def _give_back(self, box: _Box) -> None:
        for one in box.waiting:
            self._put_out(box, AttemptOutput(one.attempt_id, REVOKED))
        box.waiting.clear()

    def cancel(self, container_id: str, attempt_ids: Sequence[str], revoke: bool = False) -> None:
        if self.connected:
            self._down(self._cancelled, container_id, list(attempt_ids), revoke)

    def _cancelled(self, container_id: str, attempt_ids: Sequence[str], revoke: bool) -> None:
        box = self.boxes.get(container_id)
        if box is None:
            return
        for name in attempt_ids:
            found = [one for one in box.waiting if one.attempt_id == name]
            if found:
                box.waiting.remove(found[0])
                self._put_out(box, AttemptOutput(name, REVOKED if revoke else TERMINATED))
            elif name in box.running and not revoke and self.random.random() < 0.8:  # some code cannot be cancelled
                box.running.pop(name).cancel()
                self._put_out(box, AttemptOutput(name, TERMINATED))
        self._run(box)

    # --- what the node says ---

    def _put_out(self, box: _Box, output: AttemptOutput) -> None:
        box.seen[output.attempt_id] = output
        name = box.spec.container_id
        self._send(lambda: self.calls.take_outputs(name, [output]))

    def _report(self, box: _Box, report: ContainerReport) -> None:
        self._send(lambda: self.calls.report(NodeReport("no-1", (report,), revision=self.revision)))

    def _whole(self) -> NodeReport:
        found = tuple(ContainerReport(name, box.state) for name, box in self.boxes.items())
        return NodeReport("no-1", found, whole=True, revision=self.revision)

    def _send(self, message: Callable[[], None]) -> None:
        """In order, late, sometimes twice, and not at all while the connection is down."""
        if not self.connected:
            return
        now = self.loop.time()
        late = self.random.uniform(0, self.faults.late_s) if self.faulty else 0.0
        self._channel_at = max(now + late, self._channel_at)
        generation = self._generation
        self.loop.call_at(self._channel_at, self._arrive, generation, message)
        if self.faulty and self.random.random() < self.faults.doubled:
            self.loop.call_at(self._channel_at + 1e-6, self._arrive, generation, message)

    def _arrive(self, generation: int, message: Callable[[], None]) -> None:
        if generation == self._generation:
            message()

    def disconnect(self, for_s: float) -> None:
        """Nothing passes for a while; what was under way in either direction is lost."""
        self._say("the node is away")
        self.connected = False
        self._generation += 1
        self.calls.node_away("no-1")
        self.loop.call_later(for_s, self.reconnect)

    def reconnect(self) -> None:
        if not self.connected:
            self._say("the node is back")
            self.connected = True
            self.calls.report(self._whole())

    # --- what users do ---

    def on_output(self, call: str) -> Callable[[OutputItem, bytes], None]:
        def take(item: OutputItem, data: bytes) -> None:
            key = (call, item.index)
            if key in self.outputs:
                raise Broken(f"{key} came twice")
            self.outputs[key] = item.status

        return take


@dataclass
class Sent:
    """A detached call that was accepted."""

    call_id: str
    values: list[bytes]
    cancelled: bool = False


def draw_faults(random_: random.Random) -> Faults:
    """Some seeds have no faults at all, most have several kinds."""
    if random_.random() < 0.15:
        return Faults()
    return Faults(
        start_fails=random_.choice((0.0, 0.2, 0.5)),
        dies=random_.choice((0.0, 0.3, 0.7)),
        doubled=random_.choice((0.0, 0.3)),
        late_s=random_.choice((0.001, 0.05, 0.5)),
        disk_full=random_.choice((0.0, 0.0, 0.2)),
        disconnects=random_.choice((0, 0, 1, 2)),
        deploys=random_.choice((0, 0, 1, 3)),
        restarts=random_.choice((0, 1, 2)),
        node_dies_with_control=random_.random() < 0.5,
    )


def draw_function(random_: random.Random, name: str) -> FunctionSpec:
    """Any mixture of the settings that scheduling reads."""
    retries = random_.choice((None, RetryPolicy(2), RetryPolicy(3, 2.0, 1.0, 10.0)))
    concurrent = random_.choice((1, 1, 1, 3))
    batch_max = random_.choice((0, 0, 0, 2, 5))
    return FunctionSpec(
        name,
        resources=Resources(random_.choice((125, 500, 1000)), random_.choice((128, 1024))),
        timeout_s=random_.choice((2.0, 5.0)),
        retries=retries,
        max_containers=random_.choice((0, 1, 2, 4)),
        min_containers=random_.choice((0, 0, 0, 1)),
        buffer_containers=random_.choice((0, 0, 1)),
        scaledown_window_s=random_.choice((2.0, 10.0)),
        single_use=concurrent == 1 and random_.random() < 0.15,
        max_concurrent=concurrent,
        target_concurrent=random_.choice((1, concurrent)),
        batch_max=batch_max,
        batch_wait_ms=random_.choice((0, 20, 1000)) if batch_max else 0,
        methods=random_.choice(((), (MethodSpec("a"), MethodSpec("b")))),
    )


def draw_value(random_: random.Random, alone: bool) -> bytes:
    """What one input does. Unless it is ``alone`` nothing that takes others with it, or that never ends."""
    return random_.choices(
        (b"ok 0.001", b"ok 0.05", b"ok 0.5", b"flaky 0.01", b"fail 0.01", b"stuck", b"crash 0.02"),
        (8, 4, 2, 1, 1, 0.3 * alone, 0.3 * alone),
    )[0]


def draw_patch(random_: random.Random) -> tuple[AutoscalerPatch, tuple[str, ...]]:
    """Limits at run time."""
    if random_.random() < 0.3:
        return AutoscalerPatch(), ("max_containers",)
    patch = AutoscalerPatch(
        min_containers=random_.choice((None, 0)), max_containers=random_.choice((None, 1, 5)),
        buffer_containers=random_.choice((None, 0, 1)), scaledown_window_s=random_.choice((None, 3.0)),
    )  # fmt: skip
    return patch, ()


async def play(world: World) -> None:
    """Work and faults for some seconds, then quiet: everything must end as it should."""
    rng = world.random
    for number in range(rng.choice((1, 2, 3))):
        name = f"fu-{number}"
        world.functions[name] = draw_function(rng, name)
    world.deployed = rng.random() < 0.3
    await world.boot()
    sent: list[Sent] = []
    attached: list[tuple[int, str, int]] = []
    lives = 0
    events = ["spawn"] * rng.randint(1, 4) + ["map"] * rng.randint(0, 2) + ["sync"] * rng.randint(0, 4)
    events += ["disconnect"] * world.faults.disconnects + ["restart"] * world.faults.restarts
    events += ["deploy", "scale"] * world.faults.deploys
    events += ["cancel"] * rng.randint(0, 1) + ["abandon"] * rng.randint(0, 1) + ["stop"] * rng.randint(0, 1)
    rng.shuffle(events)
    for event in events:
        await asyncio.sleep(rng.choice((0.0, 0.01, 0.3, 2.0)))
        function = rng.choice(list(world.functions))
        spec = world.functions[function]
        alone = not spec.batch_max and not world.deployed and not world.faults.deploys
        method = rng.choice(spec.methods).name if spec.methods else ""
        try:
            if event == "spawn":
                values = [draw_value(rng, alone) for _ in range(rng.choice((1, 3, 20)))]
                call_id, _ = await world.calls.submit(
                    function, SPAWN_MAP, [(index, value, None) for index, value in enumerate(values)], method=method
                )
                sent.append(Sent(call_id, values))
            elif event in ("map", "sync"):
                count = 1 if event == "sync" else rng.choice((3, 15))
                key = f"{event}{len(attached)}"
                kind = SYNC if event == "sync" else MAP
                call_id, _ = await world.calls.submit(
                    function, kind, [(index, draw_value(rng, alone), None) for index in range(count)], total=count,
                    caller=rng.choice(("co-1", "co-2")), on_output=world.on_output(key), method=method,
                )  # fmt: skip
                attached.append((lives, key, count))
            elif event == "cancel" and sent:
                one = rng.choice(sent)
                one.cancelled = True
                await world.calls.cancel(one.call_id, rng.random() < 0.5)
            elif event == "abandon":
                world.calls.abandon("co-2")
            elif event == "stop" and world.boxes:
                world.calls.stop_container(rng.choice(sorted(world.boxes)), rng.random() < 0.5)
            elif event == "deploy":
                other = draw_function(rng, function) if rng.random() < 0.7 else spec
                other = replace(other, methods=spec.methods)
                world.deploy(function, other, rng.random() < 0.3, rng.choice(("rolling", "recreate")))
            elif event == "scale":
                world.calls.scale(function, *draw_patch(rng))
            elif event == "disconnect":
                world.disconnect(rng.uniform(0.1, 3.0))
            elif event == "restart":
                world.crash()
                lives += 1
                world.connected = True
                await world.boot()
        except Error:
            pass  # refused: a full disk, a limit, a container that has just gone
    await asyncio.sleep(2.0)
    world.faulty = False
    world.store.full = False
    if not world.connected:
        world.reconnect()
    until = world.loop.time() + 600.0
    while world.store.inputs:
        if world.loop.time() > until:
            raise Broken(f"{len(world.store.inputs)} inputs never end: {stuck(world)}")
        await asyncio.sleep(5.0)
    await asyncio.sleep(120.0)
    check(world, sent, [one for one in attached if one[0] == lives])
    await world.calls.stop()


def stuck(world: World) -> str:
    """What still waits, for the report of a broken seed."""
    cluster = world.calls.loop.cluster
    functions = [
        f"{one.function_id}: ready {len(one.ready)} backlog {one.backlog} delayed {one.delayed} running {one.running} "
        f"containers {[(c.state, c.stop is not None, len(c.attempts)) for c in one.containers.values()]} {one.why}"
        for one in cluster.functions.values()
    ]
    return "; ".join(functions) + f"; rows {[row[:12] for row in world.store.inputs.values()][:3]}"


def check(world: World, sent: Sequence[Sent], attached: Sequence[tuple[int, str, int]]) -> None:
    """The invariants, once everything is quiet."""
    clean = world.faults == Faults()
    for one in sent:
        for index, value in enumerate(one.values):
            row = world.store.outputs.get((one.call_id, index))
            if row is None:
                raise Broken(f"input {index} of a call that was accepted has no output")
            word = value.split()[0]
            if one.cancelled and row[3] == TERMINATED:
                continue
            if clean and word == b"ok" and row[3] != SUCCESS and not row[7].startswith("the container"):
                raise Broken(f"an input that works ended {row[3]}: {row[7]}")
            if word in (b"stuck", b"crash", b"fail") and row[3] == SUCCESS:
                raise Broken(f"an input that cannot work ended {row[3]}")
    for _, key, count in attached:
        came = sum(1 for call, _ in world.outputs if call == key)
        if came not in (count, 0) and came < count:
            pass  # abandoned: whoever went away hears no more
    queue = world.calls._queue
    if queue._young or queue._old or queue._gone or queue._pending:
        raise Broken("something waits to be written, and nothing happens")
    cluster = world.calls.loop.cluster
    for function in cluster.functions.values():
        if function.busy:
            raise Broken(f"at rest, yet busy: {stuck(world)}")
        if any(one.replaced for one in function.containers.values()):
            raise Broken(f"a container of an earlier version is still there: {stuck(world)}")
        alive = sum(1 for one in function.containers.values() if one.stop is None)
        if alive > function.spec.min_containers:
            raise Broken(f"{alive} containers are idle for two minutes: {stuck(world)}")
    for usage in world.calls._limits.usages.values():
        if usage.attached or usage.detached:
            raise Broken(f"the limits count {usage} inputs, and there are none")
    node = cluster.nodes["no-1"]
    held = sum(one.requests.cpu_milli for one in node.containers.values())
    if node.free.cpu_milli + held != world.capacity.cpu_milli:
        raise Broken("the node's room does not add up")
    if set(node.containers) != set(world.boxes):
        raise Broken("the control plane and the node do not agree on what runs")
    if world.calls._attached and not world.calls._stopped:
        raise Broken("an attached call was never forgotten")
    if any(math.isinf(one.deadline) for box in cluster.containers.values() for one in box.attempts.values()):
        raise Broken("an attempt has no deadline")


def run_seed(seed: int, trace: bool = False) -> World:
    """One seed from start to end. `Broken` when an invariant does not hold."""
    loop = VirtualLoop()
    rng = random.Random(seed * 7919 + 1)
    world = World(seed, draw_faults(rng), loop)
    world.trace = trace
    failures: list[BaseException] = []

    def caught(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, asyncio.CancelledError):
            failures.append(error)

    loop.set_exception_handler(caught)
    try:
        loop.run_until_complete(play(world))
        if failures:
            raise failures[0]
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    return world
