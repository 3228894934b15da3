"""The control plane of one server: makes its parts, wires them, starts and ends them."""

from __future__ import annotations

import asyncio
import os
import pwd
import resource
import socket
from typing import Any, Callable, Iterable, Optional, Sequence

import cadenza
from cadenza.base.clock import Clock
from cadenza.base.config import Config
from cadenza.base.errors import ConflictError, NotFoundError
from cadenza.base.ids import IdSource
from cadenza.control.access import Access
from cadenza.control import (
    apps, budgets, containers, deployments, environments, explain, functions, graph, images, invocations, keeping, logs,
    lookups, members, names, objects, schedules, scaling, secrets, tokens,
)  # fmt: skip
from cadenza.control.blobs import Blobs
from cadenza.control.calls import Calls
from cadenza.control.directory import SELF_ID
from cadenza.control.guard import Guard
from cadenza.control.lane import LaneServer
from cadenza.control.observing import Observing
from cadenza.control.rebuilds import Rebuilds
from cadenza.control.request import Request
from cadenza.control.rpc import Rpc
from cadenza.control.whereabouts import Whereabouts
from cadenza.observe.log import Log
from cadenza.observe.metrics import Metrics
from cadenza.protocol.calls import AttemptOutput, GeneratorItem
from cadenza.protocol.methods import Empty, ServerKeep, ServerStatus, ServerStop
from cadenza.protocol.nodes import LogChunk, Node, NodeReport, Usage
from cadenza.protocol.objects import FileEntry, FunctionSpec
from cadenza.scheduling.budget import read_prices
from cadenza.scheduling.placement import refusal, where
from cadenza.storage.blobs import DirectoryBlobs
from cadenza.storage.db import Database
from cadenza.storage.logs import LogStore
from cadenza.storage.objects import ObjectStore

TICK_S = 1.0
SWEEP_EVERY_S = 3600.0
OBJECT_AGE_S = 24 * 3600.0
"""An uploaded object that no function names is removed when nobody has put it or asked for it for so long."""
SWEEP_AGE_S = 3600.0
"""A stored value that no call names is removed when it is older than this."""
STOP_DELAY_S = 0.1
"""Between the reply to ``server.stop`` and the end, so that the reply still arrives."""

_log = Log("cadenza.control.main")


class ControlPlane:
    """One control plane. Implements `cadenza.protocol.nodes.Control`; all methods on the event loop's thread."""

    def __init__(self, config: Config, clock: Clock, ids: IdSource) -> None:
        self._config = config
        self._clock = clock
        self._ids = ids
        self.kept = False
        """Whether the server goes on when it is idle."""
        self.metrics = Metrics()
        self._node: Optional[Node] = None
        self._parts: Optional[_Parts] = None
        self._started_at = clock.now()
        self._active_at = clock.monotonic()
        self._early: list[tuple[bool, socket.socket, str]] = []
        self._early_calls: list[Callable[[Calls], None]] = []
        self._early_logs: list[LogChunk] = []
        self._stoppers: list[Callable[[], None]] = []
        self._ticker: Optional[asyncio.Task[None]] = None
        self._sweeper: Optional[asyncio.Task[None]] = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        os.makedirs(config.data_dir, mode=0o700, exist_ok=True)
        self._objects = ObjectStore(os.path.join(config.data_dir, "objects"), config.durability == "power")

    # --- life ---

    async def start(self, node: Node) -> None:
        """Open what is kept, go on with it on ``node``, then listen. InvalidError when a socket cannot be had."""
        self._node = node
        raise_file_limit()
        db = await Database.open(os.path.join(self._config.data_dir, "cadenza.db"), self._config.durability)
        parts = self._parts = _Parts(self, db, self._config, self._clock, self._ids, self._objects, self._need_node)
        waiting, self._early_calls = self._early_calls, []
        for say in waiting:
            say(parts.calls)
        await parts.log_store.start()
        await parts.environments.start()
        await parts.tokens.start()
        await parts.members.start(own_name())
        parts.access.workspace = parts.access.directory.users[SELF_ID].name
        await parts.secrets.start()
        await parts.names.start()
        await parts.budgets.load()
        await parts.apps.start()  # first: containers of functions that are known may be kept
        await parts.scaling.start()
        await parts.calls.start(node)
        parts.budgets.settle()
        await parts.schedules.start()
        await parts.observing.start()
        parts.ready = True
        early, self._early_calls = self._early_calls, []
        for call in early:
            call(parts.calls)
        self.logs(self._early_logs)
        self._early_logs = []
        os.makedirs(self._config.runtime_dir, mode=0o700, exist_ok=True)
        parts.lanes.listen(parts.lane_path)
        parts.rpc.listen(self._config.socket_path)
        self._active_at = self._clock.monotonic()
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        for is_lane, sock, container_id in self._early:
            (parts.lanes if is_lane else parts.rpc).serve(sock, container_id)
        self._early.clear()

    async def close(self) -> None:
        """Stop serving. Detached calls stay in the database for the next start."""
        if self._closed:
            return
        self._closed = True
        for _, sock, _ in self._early:
            sock.close()
        keepers = [one for one in (self._ticker, self._sweeper) if one is not None]
        for one in keepers:
            one.cancel()
        if keepers:
            await asyncio.wait(keepers)
        parts = self._parts
        if parts is None:
            return
        await parts.rpc.close()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5.0)
        await parts.keeping.close()
        await parts.schedules.close()
        parts.budgets.close()
        parts.rebuilds.stop()
        await parts.calls.stop()
        await parts.lanes.close()
        await parts.observing.close()
        await parts.log_store.flush()
        parts.blobs.close()
        await parts.db.close()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when a client asks the server to end."""
        self._stoppers.append(callback)

    def idle_since(self) -> Optional[float]:
        """Monotonic seconds since when there is no client, container, waiting call or app that needs the server (see
        `apps.Apps.needed`); None while there is one."""
        return None if self._busy() else self._active_at

    def idle_s(self) -> float:
        """For how many seconds nobody has needed this server; 0 while somebody does."""
        if self._busy():
            self._active_at = self._clock.monotonic()
        return self._clock.monotonic() - self._active_at

    def _busy(self) -> bool:
        parts = self._parts
        if parts is None:
            return True
        return bool(parts.rpc.clients or parts.apps.needed() or parts.calls.containers())

    async def _tick(self) -> None:
        """Housekeeping, about once a second for as long as the server lives: no fault of one step ends it."""
        parts = self._parts
        assert parts is not None
        swept_at = -SWEEP_EVERY_S
        while True:
            for step in (
                self._note_activity, parts.apps.tick, parts.blobs.expire, parts.tokens.tick, parts.observing.tick,
                parts.keeping.tick,
            ):  # fmt: skip
                await _guarded(step)
            if self._clock.monotonic() - swept_at >= SWEEP_EVERY_S and (self._sweeper is None or self._sweeper.done()):
                swept_at = self._clock.monotonic()
                self._sweeper = asyncio.get_running_loop().create_task(self._sweep(parts))
            await asyncio.sleep(TICK_S)

    def _note_activity(self) -> None:
        if self._busy():
            self._active_at = self._clock.monotonic()

    async def _sweep(self, parts: _Parts) -> None:
        """Remove what nothing names any more. Beside the ticks, for it may take long."""
        for step in (self._sweep_blobs, self._sweep_named):
            await _guarded(step, parts)
        await _guarded(parts.apps.forget)
        await _guarded(parts.log_store.retain)
        await _guarded(parts.observing.sweep)
        await _guarded(parts.calls.journal.sweep)

    async def _sweep_blobs(self, parts: _Parts) -> None:
        named = {row[0] for row in await parts.db.fetch("blobs_named")}
        oldest = self._clock.now() - SWEEP_AGE_S
        stored = await asyncio.to_thread(lambda: list(parts.blobs.store.list()))
        for one in stored:
            if one.created_at < oldest and one.blob_id not in named and parts.blobs.find(one.blob_id) is None:
                await asyncio.to_thread(parts.blobs.store.delete, one.blob_id)

    async def _sweep_named(self, parts: _Parts) -> None:
        """Uploaded files and secrets that no function names, of whichever version that is kept."""
        oldest = self._clock.now() - OBJECT_AGE_S
        specs: Iterable[FunctionSpec] = parts.apps.specs()
        digests, secret_ids = objects.named(specs), secrets.named(specs)
        async for specs in parts.deployments.kept():
            digests |= objects.named(specs)
            secret_ids |= secrets.named(specs)
        await parts.secrets.sweep(secret_ids)
        gone = await asyncio.to_thread(self._objects.sweep, digests, oldest)
        if gone:
            _log.info("uploaded files removed", count=gone)

    # --- connections ---

    def accept_client(self, sock: socket.socket, container_id: str) -> None:
        """Serve a client inside a container, from the socket that the agent put there."""
        self._accept(False, sock, container_id)

    def accept_lane(self, sock: socket.socket, container_id: str) -> None:
        """Serve a lane of a container."""
        self._accept(True, sock, container_id)

    def _accept(self, is_lane: bool, sock: socket.socket, container_id: str) -> None:
        if self._closed:
            sock.close()
        elif self._parts is None or self._ticker is None:
            self._early.append((is_lane, sock, container_id))
        else:
            (self._parts.lanes if is_lane else self._parts.rpc).serve(sock, container_id)

    # --- what a node says ---

    def report(self, report: NodeReport) -> None:
        """A node's current state."""
        if self._parts is not None and not self._closed:
            self._parts.observing.report(report)
            self._parts.calls.report(report)  # its start waits for the first one
        else:
            self._to_calls(lambda calls: calls.report(report))

    def outputs(self, container_id: str, outputs: Sequence[AttemptOutput]) -> None:
        """What became of attempts. `cadenza.control.results` keeps large ones of detached calls before they count."""
        self._to_calls(lambda calls: calls.take_outputs(container_id, outputs))

    def items(self, container_id: str, items: Sequence[GeneratorItem]) -> None:
        """Values of generators."""
        self._to_calls(lambda calls: calls.take_items(container_id, items))

    def logs(self, chunks: Sequence[LogChunk]) -> None:
        """Output of containers."""
        if self._parts is None:
            self._early_logs += chunks
        elif not self._closed:
            self._parts.logs.add(chunks)

    def usage(self, samples: Sequence[Usage]) -> None:
        """What containers use."""
        if self._parts is not None and not self._closed:
            self._parts.observing.usage(samples)

    def object_path(self, digest: str) -> Optional[str]:
        """The path of an uploaded object, or None."""
        return self._objects.path(digest)

    def missing_objects(self, files: Sequence[FileEntry]) -> list[str]:
        """Digests of ``files`` that are not uploaded."""
        return self._objects.missing(one.digest for one in files)

    def _to_calls(self, say: Callable[[Calls], None]) -> None:
        """Pass on what a node says; before the start is over it waits, after the end it is dropped."""
        if self._closed:
            return
        if self._parts is None or not self._parts.ready:
            self._early_calls.append(say)
        else:
            say(self._parts.calls)

    def _need_node(self) -> Node:
        if self._node is None:
            raise NotFoundError("the server has no node yet: try again")
        return self._node

    # --- server.* ---

    async def status(self, request: Request[Empty]) -> ServerStatus:
        parts = self._parts
        assert parts is not None
        node = self._need_node()
        found = parts.calls.containers()
        alive = parts.apps.alive
        queued = sum(parts.calls.stats(one).backlog for one in parts.apps.function_ids)
        return ServerStatus(
            version=cadenza.__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            kept=self.kept,
            apps=len(alive),
            containers=len(found),
            queued_inputs=queued,
            clients=parts.rpc.clients,
            data_dir=self._config.data_dir,
            runtimes=dict(node.info().runtimes),
            notes=tuple(getattr(node, "notes", ())),
        )

    async def keep(self, request: Request[ServerKeep]) -> Empty:
        self.kept = request.body.keep
        return Empty()

    async def stop(self, request: Request[ServerStop]) -> Empty:
        parts = self._parts
        assert parts is not None
        running = [one for one in parts.apps.alive if not one.detached and one.state != apps.DEPLOYED]
        if running and not request.body.force:
            names = ", ".join(one.name or one.app_id for one in running[:5])
            raise ConflictError(
                f"{len(running)} running apps would end with the server ({names}): stop them, or use --force"
            )
        asyncio.get_running_loop().call_later(STOP_DELAY_S, self._ask_to_stop)
        return Empty()

    def _ask_to_stop(self) -> None:
        for one in self._stoppers:
            one()


class _Parts:
    """What a started control plane is made of."""

    def __init__(
        self,
        home: ControlPlane,
        db: Database,
        config: Config,
        clock: Clock,
        ids: IdSource,
        store: ObjectStore,
        node: Callable[[], Node],
    ) -> None:
        self.ready = False
        self.db = db
        self.access = Access(self._environment_of, now=clock.now)
        self.environments = environments.Environments(
            db, clock, ids, self.access, lambda name: self.apps.living_in(name)
        )
        self.tokens = tokens.Tokens(db, clock, ids, self.access, lambda gone: self.rpc.drop(gone))
        self.members = members.Members(db, clock, ids, self.access, self.tokens)
        self.lane_path = os.path.join(os.path.dirname(config.socket_path), "lane.sock")
        self.secrets = secrets.Secrets(config, db, clock, ids, self.access)
        self.environments.on_delete(self.secrets.environment_deleted)
        self.environments.on_rename(self.secrets.environment_renamed)
        self.calls = Calls(config, db, clock, ids)
        self.calls.loop.variables = self.secrets.variables
        self.blobs = Blobs(
            DirectoryBlobs(os.path.join(config.data_dir, "blobs"), config.durability == "power"),
            clock.monotonic,
            memory_bytes(),
            open_files() // 2,
        )
        self.lanes = LaneServer(self.blobs, ids)
        self.functions = functions.Functions(
            db,
            clock,
            ids,
            self.calls,
            store.missing,
            lambda: {one.image_id for one in node().images()},
            lambda spec: refusal(spec.resources, [node().info()], where(spec)),
            self.secrets.keep,
        )
        self.apps = apps.Apps(db, clock, ids, self.calls, self.functions, self.access)
        self.environments.on_rename(self.apps.environment_renamed)
        self.budgets = self.apps.budgets = budgets.Budgets(
            self.calls, clock, budgets.SpentTable(db), read_prices(config.prices)
        )
        self.deployments = deployments.Deployments(db, clock, self.calls, self.apps, self.functions, self.access)
        self.schedules = schedules.Schedules(db, clock, ids, self.calls, self.apps)
        self.scaling = scaling.Scaling(db, self.calls)
        self.invocations = invocations.Invocations(self.calls, self.blobs, self.lanes)
        self.observing = Observing(
            config, db, clock, self.calls, self.access, home.metrics, self.apps.find, self.functions.get,
            lambda name: [one.function_id for one in self.functions.variants(name)],
            lambda app_id: self.apps.find(app_id).version,
        )  # fmt: skip
        self.log_store = LogStore(
            os.path.join(config.data_dir, "logs"), db, clock.now, self.apps.ended, logs.limits(config)
        )
        self.logs = logs.Logs(
            self.log_store,
            lambda word, environment: self.apps.find(word, environment).app_id,
            self.apps.ended,
            self.apps.names,
            self._app_of_container,
            lambda name: [one.function_id for one in self.functions.variants(name)],
        )
        self.names = names.Names(
            db, clock, self.access, lambda image_id: image_id in {one.image_id for one in node().images()}
        )
        self.environments.on_delete(self.names.environment_deleted)
        self.environments.on_rename(self.names.environment_renamed)
        self.images = images.Images(node, store.missing, self.secrets.filled, self.secrets.values, self.names)
        self.rebuilds = Rebuilds(
            self.images, lambda: {one.image_id for one in node().images()}, clock, self.calls.loop.image_ended
        )
        self.calls.loop.unbuilt = self.rebuilds.wait
        self.keeping = keeping.Keeping(
            node, db, clock, self.images, self.names, lambda: keeping.in_force(self.apps),
            lambda: keeping.running(self.calls, self.functions), config.image_retention_days,
        )  # fmt: skip
        table: dict[str, Any] = {
            **apps.handlers(self.apps),
            **deployments.handlers(self.deployments),
            **lookups.handlers(lookups.Lookups(self.apps, self.deployments, self.calls)),
            **invocations.handlers(self.invocations),
            **containers.handlers(containers.Containers(self.calls, node, lambda word: self.apps.find(word).app_id)),
            **images.handlers(self.images),
            **names.handlers(self.names),
            **keeping.handlers(self.keeping),
            **objects.handlers(objects.Objects(store, self.blobs)),
            **logs.handlers(self.logs),
            **self.observing.handlers(),
            **scaling.handlers(self.scaling),
            **graph.handlers(graph.Graphs(db, self.calls)),
            **explain.handlers(explain.Explainer(db, clock, self.calls, self.apps.find, self._apart)),
            **environments.handlers(self.environments),
            **schedules.handlers(self.schedules),
            **secrets.handlers(self.secrets),
            **tokens.handlers(self.tokens),
            **members.handlers(self.members),
            "server.status": home.status,
            "server.keep": home.keep,
            "server.stop": home.stop,
        }
        for name in ("app.publish", "app.deploy", "function.bind"):
            table[name] = secrets.asked(table[name])
        self.where = Whereabouts(self.apps, self.calls)
        guard = Guard(self.access, self.where, config.require_token)
        self.environments.on_rename(guard.environment_renamed)
        guarded = guard.table(table)
        loop = self.calls.loop
        self.rpc = Rpc(
            guarded, ids, self._connection_closed, self.lane_path, home.metrics, loop.expect, loop.settle,
            self.tokens.identify,
        )  # fmt: skip

    def _apart(self, function_id: str) -> str:
        if function_id not in self.functions:
            return ""
        one = self.functions.get(function_id)
        return lookups.apart(one, self.functions.pinned_to(one))

    def _connection_closed(self, connection_id: str) -> None:
        self.calls.abandon(connection_id)
        self.apps.connection_closed(connection_id)
        self.blobs.connection_closed(connection_id)

    def _environment_of(self, container_id: str) -> str:
        found = self.where.container(container_id)
        return found.environment if found is not None else ""

    def _app_of_container(self, container_id: str) -> str:
        found = self.calls.loop.cluster.containers.get(container_id)
        return found.function.app_id if found is not None else ""


def own_name() -> str:
    """The name of the user that this server runs as."""
    named = os.environ.get("USER") or os.environ.get("LOGNAME")
    if named:
        return named
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id without a name, as in some containers
        return ""


async def _guarded(step: Callable[..., Any], *args: Any) -> None:
    """A step of housekeeping. What goes wrong in it is logged."""
    try:
        found = step(*args)
        if found is not None:
            await found
    except Exception as error:
        _log.error("housekeeping failed", exc=error, step=getattr(step, "__qualname__", ""))


def memory_bytes() -> int:
    """Half of this machine's memory: what large values in memory may take together."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def open_files() -> int:
    """How many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_file_limit() -> None:
    """Allow as many open files as this process may: each value in memory and each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            _log.warning("the limit of open files stays low", limit=soft, error=str(error))
