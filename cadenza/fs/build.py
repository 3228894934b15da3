"""Making one layer of an image: files put into a tree, or commands run by whoever can start containers."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
from dataclasses import dataclass, replace
from typing import Awaitable, Callable, Mapping, Optional

from cadenza.base.clock import Clock
from cadenza.base.errors import Error, ImageBuildError, InvalidError, NotFoundError
from cadenza.fs import caches, copies, debian, downloads, edit, host, inside, recipe, workplace
from cadenza.fs import tree as trees
from cadenza.fs.apt import host_logins
from cadenza.fs.bases import Bases
from cadenza.fs.delta import diff
from cadenza.fs.ingest import ingest
from cadenza.fs.mount import Lowers, Mounts
from cadenza.fs.sparse import escaped
from cadenza.fs.step import Bind, Emit, Ground, Lines, RunStep, StepRun, measure
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from cadenza.fs.workplace import Workplace, explain
from cadenza.protocol.objects import FileEntry, ImageSpec

READ_BYTES = 4 << 20
"""The most that is read of /etc/passwd."""


@dataclass(frozen=True)
class Outcome:
    """A layer that was made."""

    tree: bytes
    settings: recipe.Settings
    size: int
    entries: int
    source: str = ""
    blobs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """What is the same for all steps of one build."""

    image_id: str
    run_step: RunStep
    object_path: Callable[[str], Optional[str]]
    image_tree: Callable[[ImageSpec], bytes]
    """The tree of another image, which is built by now."""


class Builder:
    """Makes layers in one store."""

    def __init__(
        self, store: Store, mounts: Mounts, cache: str, environ: Mapping[str, str], clock: Clock, bases: Bases
    ) -> None:
        self._store = store
        self._mounts = mounts
        self._cache = cache
        self._environ = environ
        self._clock = clock
        self._bases = bases
        self._one_uv = asyncio.Lock()
        self.work = os.path.join(store.home, "work")
        os.makedirs(self.work, mode=0o700, exist_ok=True)

    async def make(
        self, layer: recipe.Layer, settings: recipe.Settings, ground: Ground, order: Order, emit: Emit
    ) -> Outcome:
        """Make a layer on the ground, and keep its tree. ``settings``: those after it. Nothing half-made stays."""
        try:
            place = await asyncio.to_thread(workplace.begin, self.work)
        except OSError as error:
            raise explain(error, self._store.home) from error
        pin = self._store.pin()
        try:
            if layer.base is not None:
                return await self._base(layer, place, ground, order, emit)
            if layer.python:
                return await self._add_python(layer.python, settings, place, ground)
            if layer.commands or layer.function is not None:
                await self._commands(layer, settings, place, ground, order, emit)
                delta = await asyncio.to_thread(self._ingest, place, ground)
            else:
                delta = await self._files(layer, ground, order, emit)
            if not settings.python:
                root = await asyncio.to_thread(trees.merge, await asyncio.to_thread(ground.whole), delta)
                settings = await self._find_python(root, settings, order)
            return await asyncio.to_thread(self._keep, delta, settings)
        except OSError as error:
            raise explain(error, self._store.home) from error
        finally:
            pin.close()
            # Even when this task is cancelled, the leftovers go before anyone hears of it.
            await asyncio.shield(asyncio.to_thread(place.drop))

    def _keep(self, delta: Node, settings: recipe.Settings, source: str = "", blobs: tuple[str, ...] = ()) -> Outcome:
        size, entries = measure(delta)
        return Outcome(self._store.put_tree(delta), settings, size, entries, source, blobs)

    def _ingest(self, place: Workplace, ground: Ground) -> Node:
        return ingest(place.upper, self._store, below=ground.whole())

    async def _find_python(self, root: Node, settings: recipe.Settings, order: Order) -> recipe.Settings:
        path = settings.env.get("PATH", recipe.PATH)
        python, version = await asyncio.to_thread(inside.python, root, path)
        if python and not version:
            version = await self._ask_version(root, python, settings, order)
        return replace(settings, python=python if version else "", version=version)

    async def _base(self, layer: recipe.Layer, place: Workplace, ground: Ground, order: Order, emit: Emit) -> Outcome:
        assert layer.base is not None
        made = await self._bases.make(layer.base, place, lambda text: emit("log", text))
        root, settings = made.tree, made.settings
        if made.commands:
            below = Ground(self._store)
            below.add(await asyncio.to_thread(self._store.put_tree, root))
            more = await asyncio.to_thread(workplace.begin, self.work)
            try:
                env = recipe.command_env(layer.base, settings)
                run = replace(layer, commands=made.commands, env=env)
                await self._commands(run, settings, more, below, order, emit)
                delta = await asyncio.to_thread(self._ingest, more, below)
            finally:
                await asyncio.shield(asyncio.to_thread(more.drop))
            root = await asyncio.to_thread(trees.merge, root, delta)
        root = await asyncio.to_thread(edit.with_mount_points, root)
        if not settings.version:
            settings = await self._find_python(root, settings, order)
        return await asyncio.to_thread(self._keep, root, settings, made.source, made.blobs)

    async def _ask_version(self, root: Node, python: str, settings: recipe.Settings, order: Order) -> str:
        """The version of an interpreter whose name does not tell it: it is asked in a container."""
        below = Ground(self._store)
        below.add(await asyncio.to_thread(self._store.put_tree, root))
        place = await asyncio.to_thread(workplace.begin, self.work)
        said = bytearray()
        try:
            lowers = await asyncio.to_thread(self._lowers, below, place)
            code = "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"
            run = StepRun(
                order.image_id, lowers, place.upper, place.work, (python, "-I", "-c", code), settings.env, "/",
                said.extend, network=False, timeout_s=60,
            )  # fmt: skip
            ended = await order.run_step(run)
        except (Error, OSError, TimeoutError):
            return ""
        finally:
            await asyncio.shield(asyncio.to_thread(place.drop))
        found = said.decode(errors="replace").strip()
        return found if ended == 0 and found.startswith("3.") else ""

    async def _add_python(self, version: str, settings: recipe.Settings, place: Workplace, ground: Ground) -> Outcome:
        if settings.version != version:
            root = await asyncio.to_thread(ground.whole)
            settings = await self._bases.add_python(version, settings, place, root)
            delta = await asyncio.to_thread(self._ingest, place, ground)
        else:
            delta = trees.copy(await asyncio.to_thread(ground.whole))
            delta.children = {}
        return await asyncio.to_thread(self._keep, delta, settings)

    async def _files(self, layer: recipe.Layer, ground: Ground, order: Order, emit: Emit) -> Node:
        """Files, copies and directories: by trees alone, without a container."""
        fetched: dict[str, tuple[str, tuple[bytes, int]]] = {}
        for one in layer.copies:
            if one.url:
                emit("log", f"fetching {recipe.shown(one.url)}")
                fetched[one.url] = await asyncio.to_thread(
                    downloads.fetch, one.url, self._store, self._environ, layer.timeout_s
                )

        def change() -> Node:
            before = root = ground.whole()
            if layer.directory:
                root = copies.put_directory(root, layer.directory)

            def content(entry: FileEntry) -> copies.Found:
                return self._content(entry, order)

            if not layer.copies:
                root = copies.put_files(root, layer.files, content)
            else:
                context = copies.files_tree(layer.files, content) if layer.files else trees.directory(mtime=edit.PUT_NS)
                for path in layer.folders:
                    context = copies.put_directory(context, path)
                for one in layer.copies:
                    root = self._copy(root, context, one, order, fetched)
            found = diff(before, root)
            trees.validate(found, delta=True)  # what a recipe or an archive names, no kernel has looked at
            return found

        return await asyncio.to_thread(change)

    def _content(self, entry: FileEntry, order: Order) -> copies.Found:
        path = order.object_path(entry.digest)
        if path is None:
            raise NotFoundError(f"the content of {entry.path} was not uploaded ({entry.digest[:12]})")
        return self._store.take(path, move=False)

    def _copy(
        self, root: Node, context: Node, one: recipe.Copy, order: Order,
        fetched: Mapping[str, tuple[str, tuple[bytes, int]]],
    ) -> Node:  # fmt: skip
        owner = inside.owner(root, one.owner, self._read) if one.owner else None
        if owner is None and one.image is None:
            owner = (0, 0)
        manner = copies.Manner(owner, None if one.mode < 0 else one.mode)
        if one.url:
            name, (data, size) = fetched[one.url]
            node = Node(stat.S_IFREG | 0o600, mtime=edit.PUT_NS, size=size, data=data)
            return copies.put_found(root, [(name.encode(), node)], one.target, manner)
        if one.texts:
            found = []
            for name, text in one.texts:
                with self._store.draft() as draft:
                    draft.write(text.encode())
                    data, size = draft.commit()
                found.append((name.encode(), Node(stat.S_IFREG | 0o644, mtime=edit.PUT_NS, size=size, data=data)))
            return copies.put_found(root, found, one.target, manner)
        if one.image is not None:
            context = self._store.tree(order.image_tree(one.image))
        if one.unpack:
            return copies.put_found(root, downloads.unpacked(context, one.sources, self._store), one.target, manner)
        return copies.put_copies(root, context, one.sources, one.target, manner)

    def _read(self, node: Node) -> bytes:
        if node.size > READ_BYTES:
            raise InvalidError("the image's /etc/passwd or /etc/group is too large to be one")
        with open(self._store.fetch(node.data, node.size), "rb") as file:
            return file.read()

    async def _commands(
        self,
        layer: recipe.Layer,
        settings: recipe.Settings,
        place: Workplace,
        ground: Ground,
        order: Order,
        emit: Emit,
    ) -> None:
        found = await asyncio.to_thread(host.read, self._environ)
        binds = await asyncio.to_thread(self._binds, found, place)
        hidden = [*layer.secrets.values(), *found.passwords()]
        lines = Lines(lambda text: emit("log", text), hidden)
        lowers = await asyncio.to_thread(self._lowers, ground, place)
        root = await asyncio.to_thread(ground.whole)
        user, home = (0, 0), ""
        if layer.user:
            user = await asyncio.to_thread(inside.owner, root, layer.user, self._read)
            home = await asyncio.to_thread(inside.home, root, layer.user, self._read)
        await asyncio.to_thread(self._prepare, place.upper, root, layer, order)
        env = {**found.build_env(), **layer.env, **({"HOME": home} if home and "HOME" not in settings.env else {})}
        template = StepRun(
            order.image_id, lowers, place.upper, place.work, (), env, layer.cwd, lines.feed, binds,
            timeout_s=layer.timeout_s, resources=layer.resources, user=user,
        )  # fmt: skip

        async def call(argv: tuple[str, ...], run: StepRun) -> int:
            try:
                code = await order.run_step(replace(run, argv=argv))
            except TimeoutError:
                raise
            except OSError as error:
                first = recipe.APT in layer.caches or argv in layer.commands[:1]  # others may be made by those before
                if first and error.errno is None and not inside.has_program(root, argv[0], env["PATH"], layer.cwd):
                    raise ImageBuildError(_missing(layer, argv[0]), order.image_id) from error
                raise
            lines.close()
            return code

        try:
            if layer.function is not None:
                code = await call((settings.python,), replace(template, function=layer.function))
            elif recipe.APT in layer.caches:
                code = await self._apt(layer, settings, place, template, call, lines)
            else:
                template = await self._lend(layer, settings, template, call)
                code = 0
                for argv in layer.commands:
                    code = await call(argv, template)
                    if code:
                        break
        except TimeoutError as error:
            raise ImageBuildError(
                _failure(layer, f"did not end within {layer.timeout_s:.0f} s", lines, self._store.home), order.image_id
            ) from error
        if code:
            what = f"was ended by signal {code - 128}" if code > 128 else f"failed with exit code {code}"
            raise ImageBuildError(_failure(layer, what, lines, self._store.home), order.image_id)

    def _lowers(self, ground: Ground, place: Workplace) -> Lowers:
        """What the step is made on, mounted until its place is dropped."""
        mounted = ground.mounted()
        place.held.enter_context(self._mounts.hold(mounted))
        return self._mounts.lowers(mounted)

    def _prepare(self, upper: str, root: Node, layer: recipe.Layer, order: Order) -> None:
        """Files that commands want are put into the upper. Folders that the image has look as they do there."""
        dressed = {b"/": root}
        _dress(os.fsencode(upper), root)
        for one in layer.files:
            path = order.object_path(one.digest)
            if path is None:
                raise NotFoundError(f"the content of {one.path} was not uploaded ({one.digest[:12]})")
            inner = trees.resolve(root, os.fsencode(one.path))
            target = os.fsencode(upper) + inner
            parts = inner.split(b"/")[1:-1]
            for above in (b"/" + b"/".join(parts[: at + 1]) for at in range(len(parts))):
                if above not in dressed:
                    node = trees.find(root, above) or trees.directory(mtime=edit.PUT_NS)
                    if not node.is_dir:
                        shown = os.fsdecode(above)
                        raise InvalidError(f"{shown} in the image is a file, so {one.path} cannot be below it")
                    dressed[above] = node
                    os.mkdir(os.fsencode(upper) + above)
                    _dress(os.fsencode(upper) + above, dressed[above])
            shutil.copyfile(path, target)
            os.chmod(target, one.mode & 0o7777)
            os.utime(target, ns=(edit.PUT_NS, edit.PUT_NS))
        for above, node in dressed.items():  # what was put there changed their times
            os.utime(os.fsencode(upper) + above, ns=(node.mtime, node.mtime))

    async def _lend(
        self,
        layer: recipe.Layer,
        settings: recipe.Settings,
        template: StepRun,
        call: Callable[[tuple[str, ...], StepRun], Awaitable[int]],
    ) -> StepRun:
        """The step with the caches that it wants."""
        if recipe.PIP in layer.caches:
            template = self._with(template, Bind(caches.plain(self._cache, "pip"), "/.cadenza/cache/pip", False))
        if recipe.UV_CACHE in layer.caches:
            uv_cache = Bind(caches.plain(self._cache, "uv"), "/.cadenza/cache/uv", False)
            program = await self._uv(layer.uv_version, _interpreter(layer, settings), template, call)
            template = self._with(template, uv_cache, Bind(program, recipe.UV))
        return template

    def _with(self, run: StepRun, *binds: Bind) -> StepRun:
        return replace(run, binds=(*run.binds, *binds))

    def _binds(self, found: host.Host, place: Workplace) -> tuple[Bind, ...]:
        """What every command sees: names, certificates, apt's settings."""
        folder = os.path.join(place.more, "build")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "apt.conf"), "w", encoding="utf-8") as file:
            file.write(found.apt_conf(inside=True))
        logins = host_logins()
        if logins:
            descriptor = os.open(os.path.join(folder, "auth.conf"), os.O_WRONLY | os.O_CREAT, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(logins + "\n")
        if found.certificates:
            shutil.copyfile(found.certificates, os.path.join(folder, "certificates.pem"))
        binds = [Bind(folder, host.BUILD)]
        for path in ("/etc/resolv.conf", "/etc/hosts"):
            if os.path.isfile(path):
                binds.append(Bind(os.path.realpath(path), path))
        return tuple(binds)

    async def _apt(
        self,
        layer: recipe.Layer,
        settings: recipe.Settings,
        place: Workplace,
        template: StepRun,
        call: Callable[[tuple[str, ...], StepRun], Awaitable[int]],
        lines: Lines,
    ) -> int:
        """Install by lists that are young enough; fetch them first when they are not, or turn out to be too old."""
        pool = os.path.join(self._cache, "apt", settings.apt or "other")
        lent = caches.LentApt(pool, os.path.join(place.more, "apt"))
        await asyncio.to_thread(lent.lend)
        run = self._with(
            template, Bind(lent.lists, caches.APT_LISTS, False), Bind(lent.archives, caches.APT_ARCHIVES, False)
        )
        update = ("apt-get", "update", "-q")
        updated = not lent.fresh(self._clock.now())
        if updated and (code := await call(update, run)):
            return code
        code = await call(layer.commands[0], run)
        if (
            code
            and not updated
            and any(one.startswith(("E: Unable to", "E: Failed to fetch", "Err:")) for one in lines.last)
        ):
            updated = True
            if code := await call(update, run):
                return code
            code = await call(layer.commands[0], run)
        await asyncio.to_thread(lent.give_back, updated)
        return code

    async def _uv(
        self,
        version: str,
        python: str,
        template: StepRun,
        call: Callable[[tuple[str, ...], StepRun], Awaitable[int]],
    ) -> str:
        """A uv program that runs inside: the host's, else, or for a certain version, one that pip fetches once."""
        if not version:
            program = debian.host_uv(self._environ)
            if program:
                return program
        name = "tools" + (f"-uv-{version}" if version else "")
        tools = caches.plain(self._cache, name)
        program = os.path.join(tools, "bin/uv")
        async with self._one_uv:
            if not os.path.exists(program):
                folder = "/.cadenza/cache/tools"
                wanted = "uv" + (f"=={version}" if version else "")
                fetch = (python, "-m", "pip", "install", "-q", "--no-cache-dir", "--root-user-action=ignore")
                code = await call(
                    (*fetch, "--target", folder, "--upgrade", wanted), self._with(template, Bind(tools, folder, False))
                )
                if code or not os.path.exists(program):
                    raise ImageBuildError(
                        f"uv_pip_install needs uv, which pip could not fetch ({wanted}): install it on this machine "
                        "(pip install uv), or use pip_install"
                    )
        return program


def _dress(path: bytes, node: Node) -> None:
    """Give a new directory of an upper the owner, permissions and attributes that it has in the image."""
    os.chown(path, node.uid, node.gid)
    os.chmod(path, stat.S_IMODE(node.mode))
    for name, value in (node.xattrs or {}).items():
        try:
            os.setxattr(path, escaped(name), value)
        except OSError as error:  # as in `cadenza.fs.sparse`: not all can be set without root, or on a tmpfs
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise


def _interpreter(layer: recipe.Layer, settings: recipe.Settings) -> str:
    """The Python that a step's uv is told to use: after uv_sync the settings name one that the step itself makes."""
    for argv in layer.commands:
        if "--python" in argv[:-1]:
            return argv[argv.index("--python") + 1]
    return settings.python


def _missing(layer: recipe.Layer, program: str) -> str:
    if recipe.APT in layer.caches:
        return (
            f"{layer.text}: the image has no {program}, which images made from Debian and Ubuntu have: install "
            "packages by run_commands with the image's own tool, such as apk add"
        )
    text = f"the step {layer.text[:500]!r} needs {program}, which is no program in the image"
    if layer.kind == "micromamba":
        text += ": begin with Image.micromamba()"
    if program in ("/bin/sh", "/bin/bash"):
        text += ": one without a shell takes files and settings alone; Image.shell([...]) names another shell"
    return text


def _failure(layer: recipe.Layer, what: str, lines: Lines, home: str) -> str:
    text = f"the step {layer.text[:500]!r} {what}"
    last = [one for one in lines.last if one.strip()]
    if any("No space left on device" in one for one in last):
        text += (
            f" because the disk is full: free some space where {home} is (`cadenza image rm` and `cadenza image gc` "
            "remove images), or set CADENZA_HOME to a directory on a larger disk"
        )
    return text + (":\n" + "\n".join("  " + one for one in last) if last else "; it printed nothing")


def with_image(error: Error, image_id: str) -> Error:
    """The error as one of this image's build."""
    if isinstance(error, ImageBuildError) and error.image_id is None:
        return ImageBuildError(str(error), image_id)
    return error
