"""Images on this node: what is built, and building what is not there.

The interface is `ImageStore`: recipes become trees in a `cadenza.fs.store.Store`, which `cadenza.fs.mount.Mounts` shows
to containers. The caller brings the means to run a step (`run_step`): this package starts no container.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Coroutine, Mapping, Optional, Sequence

from cadenza.base.clock import Clock, SystemClock
from cadenza.base.errors import DataLossError, Error, ImageBuildError, NotFoundError, ServiceError
from cadenza.base.tasks import all_or_none
from cadenza.fs import caches, edit, inventory, recipe, workplace
from cadenza.fs import tree as trees
from cadenza.fs.bases import Bases, to_config
from cadenza.fs.build import Builder, Order, with_image
from cadenza.fs.mount import Lowers, Mounts
from cadenza.fs.outgoing import Outgoing
from cadenza.fs.records import Believer, ImageRecord, write
from cadenza.fs.runs import Run, Runs, Wishes, told
from cadenza.fs.step import Bind, Emit, RunStep, StepRun, measure
from cadenza.fs.settle import boot_id
from cadenza.fs.steplogs import StepLogs
from cadenza.fs.store import Store
from cadenza.fs.supervisor import Lazy
from cadenza.fs.traces import Traces
from cadenza.fs.workplace import explain
from cadenza.observe.log import Log
from cadenza.protocol.nodes import (
    BuildLine, BuildOrder, CollectOrder, CollectReport, ImageDetail, ImageInfo, ImageLogLine, PushOrder,
)  # fmt: skip
from cadenza.protocol.objects import ImageSpec

_log = Log("cadenza.fs.images")

__all__ = ["Bind", "ImageStore", "Lowers", "RunStep", "StepRun"]

TOUCH_EVERY_S = 60.0
"""How exactly the disk knows when an image was last used."""
PACKAGES_KEPT_S = 30 * 86400.0
DESCRIPTION_CHARS = 1000
EVICT_EVERY_S = 60.0
DAY_S = 86_400.0


@dataclass
class Loan:
    """Containers that have an image. All trees that it had since the first of them stay while there is one."""

    count: int = 0
    trees: set[bytes] = field(default_factory=set)


class ImageStore:
    """The images of one data directory. One process at a time may hold it; all methods belong to one event loop."""

    def __init__(
        self,
        data_dir: str,
        store: Store,
        mounts: Mounts,
        *,
        lazy: Optional[Lazy] = None,
        traces: Optional[Traces] = None,
        retention_days: float = 30.0,
        environ: Optional[Mapping[str, str]] = None,
        clock: Optional[Clock] = None,
    ) -> None:
        """``environ``: the host's environment (os.environ): builds take proxies, certificates and the index from it.

        ``lazy``: the mount through which ``mounts`` shows what is not here yet. ``retention_days``: how long steps
        stay that no image has.
        """
        self._store = store
        self._lazy = lazy
        self._retention_days = retention_days
        self._traces = traces or Traces(store)
        self._evicted_at = 0.0
        self._mounts = mounts
        self._first_cut = os.path.join(data_dir, "images")
        self._cache = os.path.join(data_dir, "cache")
        os.makedirs(self._cache, exist_ok=True)
        self._clock = clock or SystemClock()
        self._believer = Believer(boot_id())
        self._logs = StepLogs(store.home)
        self._bases = Bases(store, self._cache, os.environ if environ is None else environ, self._built)
        self._builder = Builder(
            store, mounts, self._cache, os.environ if environ is None else environ, self._clock, self._bases
        )
        self._runs = Runs(store, self._builder, self._logs, self._clock, self._believer)
        self._outgoing = Outgoing(store, lambda: self._records, self._runs.find)
        self._later: set[asyncio.Task[None]] = set()
        self._touched: dict[str, float] = {}
        self._lent: dict[str, Loan] = {}
        self._records: dict[str, ImageRecord] = {}
        for name in store.records("images"):
            record = self._believer.image(store.get_local_record("images", name))
            if record is None or record.info.image_id != name:
                continue
            if store.tiers or os.path.exists(os.path.join(store.home, "trees", record.info.tree)):
                self._records[name] = record

    @property
    def base_timings(self) -> dict[str, float]:
        """Seconds of each phase of the last base made by this process, in order; for measurements."""
        return dict(self._bases.timings)

    # --- building ---

    async def build(
        self,
        order: BuildOrder,
        progress: Callable[[BuildLine], None],
        run_step: RunStep,
        object_path: Callable[[str], Optional[str]],
    ) -> ImageInfo:
        """Make an image, or return at once when it is there. Nothing half-made stays, however it ends.

        ImageBuildError when a step fails.
        Layers that were finished before a failure are kept, so that the next try begins where this one ended.
        InvalidError when the recipe can never be built here (a Python that no suite has, an unknown step);
        ResourceExhaustedError when the disk is full; RemoteError when a registry or another server fails.
        """
        if order.spec.built:
            return (await self._find(order.image_id)).info
        steps = recipe.steps(order.spec)
        force = order.force or order.ignore_cache or any(one.force for one in steps)
        if not force and await self._known(order.image_id) and self._record(order.image_id).recipe == recipe.RECIPE:
            progress(BuildLine("cached", len(steps), len(steps), order.image_id))
            self.touch(order.image_id, self._clock.now())
            return self._records[order.image_id].info
        wishes = Wishes(order.force, order.ignore_cache)
        stages: dict[str, bytes] = {}

        async def build_images(specs: Sequence[ImageSpec], emit: Emit) -> None:
            async def nested(spec: ImageSpec) -> None:
                wanted = BuildOrder(spec.image_id(), spec, order.force, order.ignore_cache)
                info = await self.build(wanted, lambda line: told(line, emit), run_step, object_path)
                stages[info.image_id] = bytes.fromhex(info.tree)

            await all_or_none([nested(one) for one in specs])

        # By what was just built: with ignore_cache the record is still that of an earlier build.
        own = Order(order.image_id, run_step, object_path, lambda spec: stages[spec.image_id()])
        try:
            with self._store.pin():
                run = await self._runs.go(steps, own, wishes, progress, build_images)
                return await self._finish(order, run)
        except Error as error:
            await asyncio.to_thread(self._logs.note_failed, order.image_id, [one.key for one in steps])
            raise with_image(error, order.image_id) from error
        except OSError as error:
            explained = explain(error, self._store.home)
            if isinstance(explained, Error):
                raise explained from error
            raise ImageBuildError(f"the image could not be made: {error}", order.image_id) from error

    async def _finish(self, order: BuildOrder, run: Run) -> ImageInfo:
        """The layers as one tree, remembered as the image, and shown: the first start finds it ready."""

        def flatten() -> tuple[bytes, int, int]:
            whole = edit.with_mount_points(run.ground.whole())
            size, entries = measure(whole)
            tree = self._store.put_tree(whole)
            self._mounts.show(tree, whole)
            return tree, size, entries

        tree, size, entries = await asyncio.to_thread(flatten)
        now = self._clock.now()
        settings = run.settings
        text = "; ".join(layer.text for layer in run.layers)[:DESCRIPTION_CHARS]
        info = ImageInfo(
            order.image_id, size, now, now, text, settings.env, settings.workdir, settings.version, entries, tree.hex()
        )
        record = ImageRecord(
            info, settings, tuple(run.layers), tuple(run.keys), recipe.RECIPE, self._believer.boot, run.source
        )
        if order.ignore_cache and order.image_id in self._records:
            return info  # what is cached stays as it is
        self._records[order.image_id] = record
        try:
            await asyncio.to_thread(self._save, record)
        finally:
            self._keep(self._settle(record))  # also when whoever asked has just left
        return info

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _settle(self, record: ImageRecord) -> None:
        """Bring an image to disk while it is already in use. A failure only makes another boot build it again."""
        try:
            await asyncio.to_thread(self._store.settle)
            for key in record.steps:
                made = await asyncio.to_thread(self._runs.find, key)
                if made is not None and made.boot:
                    await asyncio.to_thread(self._store.put_local_record, "steps", key, write(made, settled=True))
            if self._records.get(record.info.image_id) is record:
                record.boot = ""
                await asyncio.to_thread(self._save, record)
            await asyncio.to_thread(self._store.settle)
            self._outgoing.add(record.info.image_id)
        except (OSError, Error) as error:
            _log.warning("images.unsettled", image=record.info.image_id, why=str(error))
            return
        self._evict()

    def _evict(self) -> None:
        """Keep the limit of this disk, now and then: what was used longest ago goes, if the bucket has it."""
        now = self._clock.monotonic()
        if not self._store.limit_bytes or now - self._evicted_at < EVICT_EVERY_S:
            return
        self._evicted_at = now
        in_use = self._in_use
        images = [one.tree for one in sorted(self._records.values(), key=lambda one: one.info.used_at)]

        def evict() -> None:
            if self._store.evict([*inventory.step_trees(self._store, self._believer), *images], in_use):
                self._mounts.doubt(in_use)

        async def go() -> None:
            try:
                await asyncio.to_thread(evict)
                for one in self._in_use - in_use if self._lazy is None else ():
                    # Somebody was given it while it may have lost content.
                    root = await asyncio.to_thread(self._store.tree, one)
                    await asyncio.to_thread(self._store.fetch_all, trees.files(root))
            except (OSError, Error) as error:
                _log.warning("images.full", why=str(error))

        self._keep(go())

    @property
    def _in_use(self) -> set[bytes]:
        return {tree for loan in self._lent.values() for tree in loan.trees} | self._mounts.held

    async def close(self) -> None:
        """Wait until what was built is surely on disk, and what was removed is gone."""
        while self._later:
            await asyncio.gather(*self._later, return_exceptions=True)
        await self._outgoing.close()

    def open(self) -> None:
        """Begin to send the bucket what waits. In the loop, after `cleanup`."""
        for record in self._records.values():
            if record.boot:  # a server was killed before it was surely on disk
                self._keep(self._settle(record))
        self._outgoing.open()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as it should be, a sentence each."""
        count, why = self._outgoing.left
        if not count or not why:
            return ()
        return (f"{count} image{'s wait' if count > 1 else ' waits'} to be sent to the store: {why}",)

    # --- what is there ---

    def _record(self, image_id: str) -> ImageRecord:
        try:
            return self._records[image_id]
        except KeyError:
            raise NotFoundError(f"no image {image_id} is built on this machine") from None

    async def _known(self, image_id: str) -> bool:
        """Whether an image is built, here or on a machine with the same bucket; then it is known here too."""
        if image_id in self._records:
            return True
        if not self._store.tiers:
            return False
        raw = await asyncio.to_thread(self._store.get_record, "images", image_id, remote=True)
        record = self._believer.image(raw)
        if record is None or record.info.image_id != image_id:
            return False
        try:
            await asyncio.to_thread(self._store.tree, record.tree)
        except Error:
            return False
        record.info = replace(record.info, used_at=self._clock.now())
        record.source = record.source or "the store"
        self._records[image_id] = record
        await asyncio.to_thread(self._save, record)
        await asyncio.to_thread(self._outgoing.came, image_id, record.info.tree)
        return True

    async def _find(self, image_id: str) -> ImageRecord:
        await self._known(image_id)
        return self._record(image_id)

    async def _built(self, image_id: str) -> tuple[bytes, recipe.Settings]:
        record = await self._find(image_id)
        return record.tree, record.settings

    async def lend(self, image_id: str) -> Lowers:
        """The image for a container's overlay, until `give_back`: nothing of it is removed before.

        NotFoundError when it is not built; OSError when it cannot be mounted.
        """
        tree = (await self._find(image_id)).tree
        loan = self._lent.setdefault(image_id, Loan())
        loan.count += 1
        loan.trees.add(tree)
        try:
            if self._lazy is not None:
                self._lazy.show(tree)
                wanted = await asyncio.to_thread(self._traces.wanted, tree)
                if wanted:
                    await self._lazy.prefetch(wanted)
            self._evict()
            return await asyncio.to_thread(self._mounts.lowers, [tree])
        except BaseException as error:
            self.give_back(image_id)
            if isinstance(error, (NotFoundError, DataLossError, ServiceError)) and self._store.tiers:
                what = f"the image {image_id} cannot be fetched from {self._place}: {error}"
                raise type(error)(what) from error
            raise

    def unfetched(self, image_id: str, since: float) -> str:
        """Why files of an image could not be read since then (the loop's clock), as a sentence; empty: they could."""
        why = self._lazy.failed_since(since) if self._lazy is not None else ""
        return f"files of the image {image_id} cannot be fetched from {self._place}: {why}" if why else ""

    @property
    def _place(self) -> str:
        remote, peers = self._store.remote, self._store.tiers.peers
        return remote.url if remote is not None else ", ".join(one.bucket.url for one in peers)

    def give_back(self, image_id: str) -> None:
        """A container's root is gone."""
        loan = self._lent[image_id]
        loan.count -= 1
        if not loan.count:
            del self._lent[image_id]

    def settings(self, image_id: str) -> recipe.Settings:
        """Beside what `image` tells: entrypoint, command, shell, Python's path. NotFoundError when it is not built."""
        return self._record(image_id).settings

    def image(self, image_id: str) -> Optional[ImageInfo]:
        """What is known of a built image, or None. Its ``python`` is the minor version; its path is in `settings`."""
        record = self._records.get(image_id)
        return record.info if record else None

    def touch(self, image_id: str, now: float) -> None:
        """Note that the image was used at ``now`` (epoch seconds)."""
        record = self._record(image_id)
        record.info = replace(record.info, used_at=max(now, record.info.used_at))
        if now - self._touched.get(image_id, 0.0) >= TOUCH_EVERY_S:
            self._touched[image_id] = now
            try:
                self._save(record)
            except (OSError, Error) as error:  # a full disk is no reason not to start what is there
                _log.warning("images.untouched", image=image_id, why=str(error))

    def images(self) -> list[ImageInfo]:
        """All built images, most recently used first."""
        return sorted((one.info for one in self._records.values()), key=lambda one: -one.used_at)

    def remove(self, image_id: str) -> None:
        """Forget an image. Its content goes with the next collection, as far as nothing else has it."""
        self._record(image_id)
        del self._records[image_id]
        self._store.remove_local_record("images", image_id)

    def tree(self, image_id: str) -> bytes:
        """The digest of an image's tree. NotFoundError when it is not built."""
        return self._record(image_id).tree

    async def detail(self, image_id: str) -> ImageDetail:
        """All that is known of an image. NotFoundError when it is not built."""
        record = await self._find(image_id)
        others = [one.tree for name, one in self._records.items() if name != image_id]
        local, shared = await asyncio.to_thread(inventory.sizes, self._store, record.tree, others)
        said = record.settings
        return ImageDetail(
            record.info, record.layers, said.entrypoint, said.cmd, said.shell, said.user, local, shared, (),
            record.source,
        )  # fmt: skip

    async def log(self, image_id: str, layers: int = 1) -> list[ImageLogLine]:
        """What the last ``layers`` steps of an image printed when they were built here; 0: all.

        Of a build that failed too. NotFoundError when nothing is known of the image.
        """

        def read() -> list[ImageLogLine]:
            record = self._records.get(image_id)
            keys = list(record.steps) if record is not None else self._logs.failed(image_id)
            if not keys and record is None:
                raise NotFoundError(f"nothing is known of an image {image_id} on this machine")
            found = [(text, rows) for text, rows in map(self._logs.read, keys) if rows]
            return [
                ImageLogLine(line, at, text)
                for text, rows in found[-layers if layers > 0 else 0 :]
                for at, line in rows
            ]

        return await asyncio.to_thread(read)

    async def collect(self, order: CollectOrder) -> CollectReport:
        """Forget images, and remove content that nothing names. Images that containers have stay, and are noted."""
        horizon = self._store.horizon()
        notes = [f"{one} is in use by a container" for one in order.images if one in self._lent]
        gone = [one for one in order.images if one in self._records and one not in self._lent]
        kept = [one for name, one in self._records.items() if name not in gone]
        going = [self._records[one] for one in gone]
        if not order.dry_run:
            for one in gone:
                self.remove(one)
        since = self._clock.now() - self._retention_days * DAY_S
        report = await asyncio.to_thread(
            inventory.collect, self._store, self._mounts, self._logs, self._believer,
            inventory.Kept(kept, self._in_use, since, going, horizon), order.dry_run,
        )  # fmt: skip
        kept_s = self._retention_days * DAY_S
        notes += await asyncio.to_thread(inventory.collect_shared, self._store, kept, kept_s, order)
        return replace(report, images=tuple(gone), notes=tuple(notes))

    async def push(self, order: PushOrder, progress: Callable[[str], None]) -> str:
        """Send an image to a registry; the manifest's digest. NotFoundError, ImageBuildError, InvalidError."""
        from cadenza.fs import oci

        record = await self._find(order.image_id)
        with self._store.pin():
            root = await asyncio.to_thread(self._store.tree, record.tree)
            return await oci.push(order.ref, root, to_config(record.settings), self._store, order.credentials, progress)

    def cleanup(self) -> None:
        """Call at start: drop what a killed process left half-made. Blocks; run it before the loop is busy."""
        workplace.empty(self._builder.work)
        if os.path.lexists(self._first_cut):  # layers as directories, of the first version: nobody waits for their end
            threading.Thread(target=workplace.remove_tree, args=(self._first_cut,), daemon=True).start()
        for name in self._store.records("images"):
            if name not in self._records:
                self._store.remove_local_record("images", name)
        for name in self._store.records("steps"):
            if self._believer.step(self._store.read(f"steps/{name}")) is None:  # which counts as no use of it
                self._store.remove_local_record("steps", name)
        caches.prune(self._cache, PACKAGES_KEPT_S)

    def _save(self, record: ImageRecord) -> None:
        self._store.put_local_record("images", record.info.image_id, write(record))
