"""One container on this machine: performs what `cadenza.agent.container` decides, and tells it what happened."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any, Coroutine, Optional, Sequence

from cadenza.agent import attachment, bridge, container, files, gpus, variables
from cadenza.agent.belongings import Belongings
from cadenza.agent.container import Life
from cadenza.agent.doors import CLIENT, LANE, RUNNER, Door
from cadenza.agent.phases import Phases
from cadenza.agent.pipes import Pipe
from cadenza.agent.site import Site
from cadenza.base.config import node_labels
from cadenza.base.errors import Error
from cadenza.base.resources import Resources
from cadenza.protocol import calls
from cadenza.protocol.calls import Attempt, AttemptOutput, GeneratorItem
from cadenza.protocol.frame import FrameError
from cadenza.protocol.nodes import ContainerReport, ContainerSpec, LogChunk
from cadenza.protocol.objects import FileEntry
from cadenza.runtime.driver import ContainerConfig, Driver, Exit, RuntimeFault, Stdio

LAST_WORDS_LIMIT_S = 0.5
"""How long after the end of the first process its pipes and its connection may still bring something."""
STRANGERS = 4
"""Connections that may wait for a hello at once; more are closed."""
UNDO_LIMIT_S = 30.0
"""How long the end of a container waits for a step of its own start to come back."""


class Cell(bridge.Host):
    """One container, wanted or generic, from its directory to its removal. All methods belong to the loop's thread.

    ``cell_id`` names it on this machine (directory, cgroup, network, runtime program). A wanted container's cell has
    its own id; one from the pool keeps the id it was made with, and is *reported* under its container's id.
    """

    def __init__(self, site: Site, cell_id: str, image_id: str, isolation: str, spec: Optional[ContainerSpec]) -> None:
        self.site = site
        self.cell_id = cell_id
        self.image_id = image_id
        self.isolation = isolation
        self.networked = spec is None or not spec.function.block_network
        self.spec = spec
        self.warm = spec is None
        self.driver: Driver = site.driver(isolation)
        self.life = Life(generic=spec is None, startup_s=spec.function.startup_timeout_s if spec else 300.0)
        self.phases = Phases(site.clock, spec)
        self.ready_at = 0.0
        self.created_at = site.clock.now()
        self.pid = 0
        self.greeting: Optional[bridge.Hello] = None
        self.attempts: set[str] = set()
        self.leaves = False
        """Whether its class has exit hooks, which want their time at the end."""
        self.slots = 0
        self._declines = False
        """Its user code wants no more inputs."""
        self.layer = ""
        """The layer of the function's files, if they are too many for the attach frame."""
        self.removed = asyncio.Event()
        self._link: Optional[bridge.Link] = None
        self._unlinked = asyncio.Event()
        self._strangers: list[bridge.Link] = []
        self._doors: list[Door] = []
        self._pipes: list[Pipe] = []
        self._work: set[asyncio.Task[None]] = set()
        self._step: Optional[asyncio.Task[None]] = None
        self._removal: Optional[asyncio.Task[None]] = None
        self._started = False
        self._ended = False
        """Its first process has ended, and with it, in a container, all the others."""
        self._timer: Optional[asyncio.TimerHandle] = None
        self.owned = Belongings(site, cell_id, self.driver)
        self.paths = self.owned.paths
        self._loop = asyncio.get_running_loop()

    # --- the rules and their performance ---

    @property
    def container_id(self) -> str:
        """The id under which it is reported; empty while it is generic."""
        return self.spec.container_id if self.spec is not None else ""

    def dispatch(self, event: container.Event) -> None:
        """Let the rules answer an event, and do what they say."""
        before = self.life.state
        for command in container.apply(self.life, event, self.site.clock.monotonic()):
            self._do(command)
        self._watch()
        if self.life.state != before:
            self.site.moved(self)

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.life.deadline is not None:
            delay = max(0.0, self.life.deadline - self.site.clock.monotonic())
            self._timer = self._loop.call_later(delay + 0.001, self.dispatch, container.Tick())

    def _do(self, command: container.Command) -> None:
        if isinstance(command, container.Prepare):
            self._step = self._task(self._prepare())
        elif isinstance(command, container.Create):
            self._step = self._task(self._create())
        elif isinstance(command, container.Attach):
            self._task(self._attach())
        elif isinstance(command, container.CancelAll):
            self._cancel(list(self.attempts))
        elif isinstance(command, container.Drain):
            if self._link is not None:
                self._link.drain(command.grace_s)
                self._poke()  # what waits behind the input that runs is given back at once
        elif isinstance(command, container.Kill):
            self._task(self._kill())
        elif isinstance(command, container.Remove):
            self._removal = self._loop.create_task(self._remove())
        elif isinstance(command, container.Say):
            self.say(command.text)
        elif isinstance(command, container.Report):
            self.site.changed(self)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(self._guarded(work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (Error, OSError) as error:
            detail = error.detail if isinstance(error, RuntimeFault) else ""
            self.site.trouble(f"container {self.cell_id}: {error} {detail}".strip())
            self.dispatch(container.Broken(f"it could not be started: {self.owned.unfetched() or error}"))
        except Exception as error:
            self.site.fault(f"container {self.cell_id}", error)
            self.dispatch(container.Broken("a fault of the server; its log has the rest"))

    # --- a start ---

    async def _prepare(self) -> None:
        self.phases.mark("placed")
        await asyncio.to_thread(self.paths.make, self.driver.name)
        if self.networked:
            await self.owned.take_network()
        self.phases.mark("network")
        spec = self.spec
        if spec is not None and not files.inline(spec.function.files):
            self.layer = await asyncio.to_thread(self.site.layers.ensure, spec.function.files)
        await self._limit_disk()
        if spec is not None and spec.gpus:
            self.owned.take_cards(spec.gpus)
        if self.isolated:
            lowers = (await self.owned.borrow(self.image_id)).below(*filter(None, [self.layer]))
            await self.owned.take_ids()
            await self.owned.mount(lowers)
        self.phases.mark("rootfs")
        self._open_doors()
        self.dispatch(container.Prepared())

    async def _limit_disk(self) -> None:
        mib = self.spec.function.resources.disk_mib if self.spec is not None else 0
        if not mib:
            return
        why = "functions run as plain processes on it"
        if self.isolated:
            try:
                await asyncio.to_thread(self.paths.limit, mib)
                return
            except OSError as error:
                why = error.strerror or str(error)
        self.say(f"ephemeral_disk={mib} is not enforced on this machine: {why}")

    @property
    def isolated(self) -> bool:
        """Whether it has a root file system of its own."""
        return self.driver.name != "process"

    def _open_doors(self) -> None:
        site = self.site
        for name, entered in (
            (RUNNER, self._runner_entered),
            (CLIENT, lambda sock: self._pass(sock, site.accept_client)),
            (LANE, lambda sock: self._pass(sock, site.accept_lane)),
        ):
            self._doors.append(Door(self.paths.run, name, entered, self.owned.uids))

    def _pass(self, sock: socket.socket, accept: Any) -> None:
        if self.container_id:
            accept(sock, self.container_id)
        else:
            sock.close()  # a generic container has no identity to act with

    def _config(self) -> ContainerConfig:
        site = self.site
        image = site.store.image(self.image_id)
        env, workdir = (image.env, image.workdir) if image is not None else ({}, "")
        lib = site.library(self.image_id)
        most = attachment.limits(self.spec.function.resources if self.spec is not None else Resources(cpu_milli=1000))
        if not self.isolated:
            path = os.environ.get("PATH", variables.DEFAULT_PATH)
            env = {**env, **gpus.variables(self.owned.cards)}
            python = site.python(self.image_id)
            return attachment.bare_config(self.cell_id, self.paths, lib, env, most, python, path)
        lease = self.owned.lease
        netns, mounts = (lease.path, site.name_mounts()) if lease is not None else ("", [])
        id_base = self.owned.ids.base if self.owned.ids is not None else 0
        entry, cards = site.entrypoint(self.image_id), gpus.devices(self.owned.cards)
        self.life.hint = attachment.entrypoint_hint(entry)
        return attachment.isolated_config(
            self.cell_id, self.paths, lib, env, most, netns, mounts, id_base, cards, entry, workdir
        )

    async def _create(self) -> None:
        self._pipes = [Pipe(lambda data: self._raw(1, data)), Pipe(lambda data: self._raw(2, data))]
        try:
            stdio = Stdio(stdout=self._pipes[0].writer, stderr=self._pipes[1].writer)
            self.pid = await self.driver.start(self._config(), self.paths.bundle, stdio)
        finally:
            for pipe in self._pipes:
                pipe.close_writer()
        self._started = True
        self._task(self._await_exit())
        if self.life.state in (container.STOPPING, container.GONE):
            await self.driver.signal(self.cell_id, signal.SIGKILL)
            return
        if self.greeting is None:
            self.phases.mark("create")
        self.dispatch(container.Created())

    async def _attach(self) -> None:
        spec = self.spec
        assert spec is not None
        function = spec.function
        entries = function.files if not self.layer or not self.isolated else ()
        image = self.site.store.image(self.image_id)
        contents: list[bytes] = []
        if not self.isolated and self.layer:
            await asyncio.to_thread(self._copy_files, entries)
            entries = ()
        elif entries:
            contents = await asyncio.to_thread(files.read, entries, self.site.control.object_path)
        serialized = b""
        if function.serialized:
            entry = FileEntry("the pickled function", function.serialized, 0)
            serialized = (await asyncio.to_thread(files.read, [entry], self.site.control.object_path))[0]
        link = self._link
        if link is None:
            return  # its end is on the way
        cwd = image.workdir if image is not None else ""
        sizes = [(one, len(data)) for one, data in zip(entries, contents)]
        header = attachment.frame(spec, sizes, len(serialized), self._function_env(spec), cwd, self.inner_path)
        try:
            link.attach(header, [*contents, serialized])
        except FrameError as error:
            self.dispatch(container.Failed("import", f"the function and its settings are too large to send: {error}"))

    def _function_env(self, spec: ContainerSpec) -> dict[str, str]:
        site = self.site
        labels = node_labels(site.config.node_labels)
        return variables.of_function(spec, spec.environment, site.node_id, self.driver.name, site.cores, labels)

    def _copy_files(self, entries: Sequence[FileEntry]) -> None:
        for one in entries:
            moved = FileEntry(self.inner_path(one.path), one.digest, one.size, one.mode)
            files.place(moved, "/", self.site.control.object_path, link=False)

    def inner_path(self, path: str) -> str:
        """Where the container has ``path``: there, or without a root file system below its own directory."""
        if self.isolated:
            return path
        inside = os.path.relpath(os.path.normpath("/" + path), "/")
        if inside == "root" or inside.startswith("root/"):
            inside = inside[len("root/") :]
        return os.path.normpath(os.path.join(self.paths.root, inside))

    def adopt(self, spec: ContainerSpec) -> None:
        """A generic container becomes ``spec``'s: late attach."""
        self.spec = spec
        self.life.startup_s = spec.function.startup_timeout_s
        self.site.adopted(self)
        self.phases.adopt(spec)
        self._task(self.driver.update(self.cell_id, attachment.limits(spec.function.resources)))
        self.dispatch(container.Adopt())

    # --- what the runner says ---

    def _runner_entered(self, sock: socket.socket) -> None:
        self._strangers = [one for one in self._strangers if one.stranger]
        if len(self._strangers) >= STRANGERS:
            sock.close()
            return
        lane = os.path.join(variables.SUPPORT if self.isolated else self.paths.support, LANE)
        link = bridge.Link(self, lane)
        self._strangers.append(link)
        self._task(self._connect(sock, link))

    async def _connect(self, sock: socket.socket, link: bridge.Link) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: link, sock)
        except OSError:
            link.stranger = False
            sock.close()

    def said_hello(self, link: bridge.Link, hello: bridge.Hello) -> Optional[str]:
        if self._link is not None:
            return "this container's runner is connected already"
        if self.life.state not in (container.CREATING, container.BOOTING):
            return "this container is ending"
        self._link = link
        self.greeting = hello
        if self.life.state == container.CREATING:
            self.phases.mark("create")
        self.phases.mark("boot")
        # The welcome goes out first: what follows from the hello is sent after this call.
        self._loop.call_soon(self.dispatch, container.Hello())
        return None

    def said_ready(self, ready: bridge.Ready) -> None:
        self.phases.ready(ready.enter_s)
        self.leaves = ready.leaves
        self.ready_at = self.site.clock.now()
        self.owned.started()
        self.dispatch(container.Ready())

    def said_failed(self, failed: bridge.Failed, error: bytes) -> None:
        if why := self.owned.unfetched():
            self.say(why)  # what user code saw is an OSError, or a module that is not there
        self.dispatch(container.Failed(failed.where, failed.text, error))

    def gave_outputs(self, outputs: Sequence[AttemptOutput]) -> None:
        self.attempts.difference_update([one.attempt_id for one in outputs])
        self.site.control.outputs(self.container_id, outputs)

    def gave_items(self, items: Sequence[GeneratorItem]) -> None:
        self.site.control.items(self.container_id, items)

    def printed(self, logs: Sequence[tuple[bridge.Log, bytes]]) -> None:
        spec = self.spec
        if spec is not None:
            app_id, container_id, function_id = spec.app_id, spec.container_id, spec.function_id
            self.site.control.logs([bridge.chunk(log, data, app_id, container_id, function_id) for log, data in logs])

    def set_slots(self, slots: int) -> None:
        self.slots = slots
        self.site.changed(self)

    def stopped_fetching(self) -> None:
        self._declines = True
        if self._link is not None:
            self._link.drain(0)
            self._poke()

    def said_bye(self) -> None:
        self.dispatch(container.Bye())

    def lost(self, link: bridge.Link, fault: str) -> None:
        if link is self._link:
            self._link = None
            self._unlinked.set()
            if fault:
                self.say(f"the connection to the runner was closed: {fault}")
            self.dispatch(container.Disconnected())

    def _raw(self, fd: int, data: bytes) -> None:
        spec = self.spec
        if spec is not None:
            now = self.site.clock.now()
            self.site.control.logs([LogChunk(spec.app_id, spec.container_id, spec.function_id, fd, now, data)])

    def say(self, text: str) -> None:
        """The platform's own words in the container's log."""
        self._raw(0, text.encode(errors="replace") + b"\n")

    # --- what the control plane says ---

    def deliver(self, attempts: Sequence[Attempt]) -> None:
        """Hand attempts to the runner. One that takes no more gets them given back (REVOKED)."""
        if self.life.state == container.READY and self._link is not None and not self._declines:
            self.attempts.update([one.attempt_id for one in attempts])
            self._link.run(attempts)
            return
        back = [AttemptOutput(one.attempt_id, calls.REVOKED) for one in attempts]
        self._loop.call_soon(self.site.control.outputs, self.container_id, back)

    def cancel(self, attempt_ids: Sequence[str], revoke: bool) -> None:
        """As `cadenza.protocol.nodes.Node.cancel`."""
        if self._link is None:
            return
        if revoke:
            self._link.revoke(attempt_ids)
            self._poke()
        else:
            self._cancel(attempt_ids)

    def _cancel(self, attempt_ids: Sequence[str]) -> None:
        if self._link is None or not attempt_ids:
            return
        self._link.cancel(attempt_ids)
        self._poke()

    def _poke(self) -> None:
        """Make a runner whose main thread is the user's read its frames. Semantics section 9."""
        function = self.spec.function if self.spec is not None else None
        if function is None or self.life.bye:
            return
        methods = function.methods
        if not (all(one.is_async for one in methods) if methods else function.is_async):
            # The frame first, then the signal: the handler reads the frame (docs/formats/wire.md).
            self._loop.call_soon(lambda: self._task(self._interrupt()))

    async def _interrupt(self) -> None:
        await self.driver.signal(self.cell_id, signal.SIGUSR1)

    @property
    def takes_function(self) -> bool:
        """Whether it is a warm container that waits for its function."""
        return self.life.state == container.IDLE and self._link is not None

    @property
    def alive(self) -> bool:
        """Whether commands can run in it."""
        return self._started and self.life.state not in (container.STOPPING, container.GONE)

    def command_env(self) -> dict[str, str]:
        """The environment of a command that runs beside the function."""
        env = dict(self._config().env)
        if self.spec is not None:
            env.update(self._function_env(self.spec))
        return env

    # --- an end ---

    async def _kill(self) -> None:
        """SIGKILL to all; while the runtime program is still at work, `_create` does it when that returns."""
        if self._started:
            await self.driver.signal(self.cell_id, signal.SIGKILL)
        elif self._step is not None:
            await asyncio.wait([self._step], timeout=UNDO_LIMIT_S)
            if not self._started:
                self.dispatch(container.Exited(128 + signal.SIGKILL))

    async def _await_exit(self) -> None:
        ended = await self.driver.wait(self.cell_id)
        self._ended = True
        await self._last_words()
        if ended.fault:
            self.dispatch(container.Broken(f"the runtime broke down: {ended.fault}"))
        self.dispatch(container.Exited(ended.code if ended.code >= 0 else 255, ended.oom, self._epitaph(ended)))

    async def _last_words(self) -> None:
        """Take what came before the end: a result that was sent counts, a last line is shown."""
        waits = [self._loop.create_task(pipe.drained.wait()) for pipe in self._pipes]
        if self._link is not None:
            waits.append(self._loop.create_task(self._unlinked.wait()))
        if waits:
            _, late = await asyncio.wait(waits, timeout=LAST_WORDS_LIMIT_S)
            for one in late:
                one.cancel()
        for pipe in self._pipes:
            pipe.finish()

    def _epitaph(self, ended: Exit) -> str:
        if ended.oom:
            mib = self.spec.function.resources.memory_limit_mib if self.spec is not None else 0
            if not mib:
                return "out of memory: it used more than what the machine has, and was killed"
            more = "raise it with memory=(request, limit)"
            return f"out of memory: it used more than its limit of {mib} MiB, and was killed; {more}"
        if self.life.state in (container.CREATING, container.BOOTING):
            said = self._pipes[1].tail.decode(errors="replace").strip()[-500:] if self._pipes else ""
            return self.owned.unfetched() or said
        return ""

    async def _remove(self) -> None:
        """Nothing goes in or out any more, and all that was made is taken away."""
        if self._step is not None and not self._step.done():
            await asyncio.wait([self._step], timeout=UNDO_LIMIT_S)
        if self._link is not None:
            self._link.close()
        for door in self._doors:
            door.close()
        created = any(state == container.CREATING for state, _ in self.life.changes)
        await self.owned.give_back(self._ended, created and self._step is not None)
        for pipe in self._pipes:
            pipe.close()
        if self._timer is not None:
            self._timer.cancel()
        self.removed.set()
        self.site.forget(self)

    @property
    def weight(self) -> float:
        """How many cores its start keeps busy: it also waits, and gVisor for itself half of the time."""
        return 0.5 if self.driver.name.endswith("runsc") else 0.7

    def report(self) -> ContainerReport:
        """How it is, for the control plane."""
        life = self.life
        return ContainerReport(
            container_id=self.container_id,
            state=life.reported,
            reason=life.reason if life.state == container.GONE else "",
            message=life.message if life.state == container.GONE else "",
            error=life.error if life.state == container.GONE else b"",
            exit_code=life.exit_code,
            phases=dict(self.phases.found),
            ready_at=self.ready_at,
            warm=self.warm,
            runtime=self.driver.name,
            pid=self.pid,
            slots=self.slots,
        )
