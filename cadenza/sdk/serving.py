"""``cadenza serve``: an app that runs, and is published again whenever its program's files change.

Each version is imported and published by a process of its own, so that nothing of an earlier import is left in it, and
a program that does not import, or ends its process, harms nobody. The parent makes the app, keeps it alive, shows its
logs and watches. They talk over two pipes, a JSON object a line: the child says what it found (`Described`), is told
the app's id, publishes, and says what was achieved. Source: semantics.md section 23.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Optional, Sequence

from cadenza.base.errors import ConflictError, Error, NotFoundError
from cadenza.protocol.methods import AppCreate, AppFinish

if TYPE_CHECKING:
    from cadenza.sdk.app import App
    from cadenza.sdk.client import Client
    from cadenza.sdk.output import OutputSink
    from cadenza.sdk.source import LocalFile

KILL_WAIT_S = 5.0
"""How long a child that is not wanted any more may take to end."""
COARSE_NS = 10_000_000
"""By how much a file's time may be behind the clock."""
FINISH_DEADLINE_S = 15.0
MAX_LINE_BYTES = 16 << 20
"""Of what a child says: the paths of a large program's files."""
_UNSEEN = ("__pycache__", "site-packages", "dist-packages", "node_modules")


@dataclass(frozen=True)
class Watched:
    """Which changes matter: to ``files``, and to anything in the directories ``trees``, new files too."""

    files: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()

    def directories(self) -> tuple[str, ...]:
        """What to watch, none with what is below it: an editor that saves a file replaces it, so files alone will not
        do."""
        found = {os.path.dirname(one) for one in self.files} | set(self.trees)
        return tuple(sorted(one for one in found if os.path.isdir(one)))

    def concerns(self, path: str) -> bool:
        """Whether a change of this path matters."""
        if path in self.files:
            return True
        name = os.path.basename(path)
        if name.startswith(".") or name.endswith((".pyc", ".pyo", "~", ".swp", ".swx", ".tmp")) or name in _UNSEEN:
            return False
        return os.path.dirname(path) in self.trees

    def listing(self) -> dict[str, list[str]]:
        """What is in ``trees`` now, as far as it matters: directory to names."""
        found = {}
        for tree in self.trees:
            try:
                names = os.listdir(tree)
            except OSError:
                names = []
            found[tree] = sorted(one for one in names if self.concerns(os.path.join(tree, one)))
        return found


@dataclass(frozen=True)
class Described:
    """What a child found: the app's name, and what to watch. ``title`` is empty when the program did not import."""

    title: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    watched: Watched = field(default_factory=Watched)
    listing: dict[str, list[str]] = field(default_factory=dict)
    """`Watched.listing` before anything was published."""


# --- in the child ---


def modules_of_program(program: str, modules: Iterable[Any], here: str) -> list[str]:
    """The files of the modules that are the user's own: below the program's directory or the working directory."""
    own = os.path.dirname(os.path.abspath(__file__ + "/.."))
    roots = {os.path.dirname(os.path.abspath(program)) if program else here, here}
    found = []
    for module in modules:
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or not path.endswith(".py"):
            continue
        path = os.path.abspath(path)
        if path.startswith(own + os.sep) or any(f"{os.sep}{part}{os.sep}" in path for part in _UNSEEN):
            continue
        if any(path.startswith(root.rstrip(os.sep) + os.sep) for root in roots) and not path.startswith(
            sys.prefix + os.sep
        ):
            found.append(path)
    return sorted(set(found))


def watched(app: Optional[App], program: str) -> Watched:
    """What the containers of the app are made of here: the program's modules, and the files of its images."""
    from cadenza.sdk import recipe, source
    from cadenza.sdk.publish import module_of

    files = set(modules_of_program(program, list(sys.modules.values()), os.getcwd()))
    if program:
        files.add(os.path.abspath(program))
    trees: set[str] = set()
    for one in app._declarations.values() if app is not None else ():
        if one.include_source and not one.serialized:
            home: ModuleType = module_of(one.raw)
            mounted = [each.local for each in source.module_source(home)]
            files.update(mounted)
            if "." in source.module_name(home) or hasattr(home, "__path__"):
                trees.update(os.path.dirname(path) for path in mounted)
        for link in one.image()._links:
            if isinstance(link, recipe.Mount):
                listed = link.list()
                files.update(os.path.abspath(each.local) for each in listed)
                trees.update(
                    os.path.dirname(os.path.abspath(each.local)) for each in listed if _has_peers(link.name, each)
                )
            else:
                files.update(os.path.abspath(each.local) for each in link.make()[1] if each.local)
    return Watched(tuple(sorted(files)), tuple(sorted(trees)))


def _has_peers(method: str, file: LocalFile) -> bool:
    """Whether a new file beside this one would be mounted too."""
    from cadenza.sdk.source import ROOT

    module = method == "add_local_python_source" and os.path.dirname(file.remote) == ROOT
    return method != "add_local_file" and not module


class Report:
    """The child's ends of the two pipes."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._in = os.fdopen(read_fd, "r")
        self._out = os.fdopen(write_fd, "w")

    def say(self, value: Any) -> None:
        """One line to the parent."""
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()

    def app_id(self) -> str:
        """Waits for the parent's answer; empty when the parent is gone or does not want this version."""
        return self._in.readline().strip()


def describe(app: App, name: str, program: str) -> Described:
    """What the parent needs to know before it publishes."""
    title = name or app.name or os.path.basename(program) or "app"
    seen = watched(app, program)
    return Described(title, dict(app._tags), seen, seen.listing())


# --- in the parent ---


@dataclass(frozen=True)
class Served:
    """What became of one version. ``functions`` None: it is not in force."""

    described: Described
    functions: Optional[int] = None


class Child:
    """One version on its way: a process that imports and publishes."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        pipe: asyncio.BaseTransport,
        write_fd: int,
    ) -> None:
        self._process = process
        self._reader = reader
        self._pipe = pipe
        self._write_fd = write_fd

    @classmethod
    async def start(cls, command: Sequence[str], environ: Mapping[str, str]) -> Child:
        """``command`` gets two more arguments: the descriptors it reads from and writes to."""
        child_reads, we_write = os.pipe()
        we_read, child_writes = os.pipe()
        reader = asyncio.StreamReader(MAX_LINE_BYTES)
        pipe: Optional[asyncio.BaseTransport] = None
        try:
            pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(we_read, "rb", 0)
            )
            process = await asyncio.create_subprocess_exec(
                *command, str(child_reads), str(child_writes),
                pass_fds=(child_reads, child_writes), env=dict(environ), stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(we_write)
            if pipe is not None:
                pipe.close()
            raise
        finally:
            os.close(child_reads)
            os.close(child_writes)
        return cls(process, reader, pipe, we_write)

    async def described(self) -> Described:
        """What it found; without a title when the program did not import: it has said why on standard error."""
        line = await self._line()
        if line is None:
            return Described()
        seen = line.pop("watched", {})
        return Described(
            line.get("title", ""),
            line.get("tags", {}),
            Watched(tuple(seen["files"]), tuple(seen["trees"])),
            line.get("listing", {}),
        )

    async def publish(self, app_id: str) -> Optional[int]:
        """Let it publish; how many functions there are, or None when that failed."""
        try:
            os.write(self._write_fd, app_id.encode() + b"\n")
        except BrokenPipeError:
            return None
        line = await self._line()
        return None if line is None else line.get("functions")

    async def _line(self) -> Optional[dict[str, Any]]:
        line = await self._reader.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    async def end(self) -> None:
        """It is not wanted any more, or done. To be called on the loop that began it, always: uvloop aborts the process
        when what belongs to one of its loops is freed, unclosed, in another thread."""
        os.close(self._write_fd)
        self._pipe.close()
        if self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), 0.5)
            except asyncio.TimeoutError:
                self._kill()
                await asyncio.wait_for(self._process.wait(), KILL_WAIT_S)
            except BaseException:  # nobody is left to wait for it
                self._kill()
                raise

    def _kill(self) -> None:
        """The process, and what it started: it leads a session of its own."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


Changes = Callable[[Watched], AsyncIterator["set[str]"]]
"""Gives an empty set once it watches, then sets of paths that changed, as long as it is asked."""


class Serving:
    """The loop of ``cadenza serve``. ``say`` prints a sentence; ``changes`` watches; ``start`` begins a child."""

    def __init__(
        self,
        client: Client,
        environment: str,
        heartbeat_s: float,
        start: Callable[[], Awaitable[Child]],
        changes: Changes,
        say: Callable[[str], None],
        sink: OutputSink,
    ) -> None:
        self._client = client
        self._environment = environment
        self._heartbeat_s = heartbeat_s
        self._start = start
        self._changes = changes
        self._say = say
        self._sink = sink
        self._app_id = ""
        self._watched = Watched()
        self._listing: dict[str, list[str]] = {}
        self._began_ns = 0
        """When the last version began to be read."""
        self._acted: dict[str, int] = {}
        """Files and the time of their last change for which a version was made."""

    async def run(self, timeout_s: Optional[float]) -> bool:
        """Serve until cancelled, until ``timeout_s`` has passed, or until the app is stopped elsewhere. False when the
        first version could not be published."""
        from cadenza.sdk import running
        from cadenza.sdk.output import Follower

        follower: Optional[Follower] = None
        tasks: list[asyncio.Future[None]] = []
        reason = "interrupted"
        try:
            first = await self._version()
            if first.functions is None:
                reason = "it could not be published"
                return False
            follower = Follower(self._client, self._app_id, self._sink)
            follower.start()
            self._say(f"{first.described.title} runs: {_functions(first.functions)}. {self._watching()}")
            alive = asyncio.ensure_future(running._heartbeat(self._client, self._app_id, self._heartbeat_s))
            following = asyncio.ensure_future(self._follow_changes())
            tasks = [following, alive]
            done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            await _end(tasks)
            if following in done:
                following.result()
            reason = "the app was stopped at the server" if alive in done else "its time is over"
            self._say(f"Served no longer: {reason}.")
            return True
        finally:
            await _end(tasks)
            if self._app_id:
                await self._finish(reason)
            if follower is not None:
                await follower.end(5.0)

    async def _finish(self, reason: str) -> None:
        try:
            finish = AppFinish(self._app_id, f"served no longer: {reason}")
            await asyncio.wait_for(self._client._request("app.finish", finish), FINISH_DEADLINE_S)
        except (NotFoundError, ConflictError):
            pass  # it was stopped meanwhile
        except (Error, asyncio.TimeoutError) as error:
            self._say(f"The server could not be told that the app is done ({error or 'no answer'}): it stops it itself")

    def _watching(self) -> str:
        count = len(self._watched.files)
        return f"Watching {count} file{'' if count == 1 else 's'}; Ctrl-C stops"

    async def _follow_changes(self) -> None:
        """Publish after each change; a change while that is under way begins it anew."""
        changed: Optional[set[str]] = None
        while True:
            if changed is None:
                changed = await self._change()
            self._say(f"Changed: {_names(changed)}")
            version = asyncio.ensure_future(self._version())
            again = asyncio.ensure_future(self._change())
            try:
                await asyncio.wait([version, again], return_when=asyncio.FIRST_COMPLETED)
                overtaken = not version.done()
            finally:
                await _end([version, again])
            # What changed meanwhile was seen with what was watched before; from here on, with what is watched now.
            changed = None if again.cancelled() else again.result()
            if overtaken:
                continue
            served = version.result()
            if served.functions is not None:
                self._say(f"{served.described.title} runs anew: {_functions(served.functions)}. {self._watching()}")
            else:
                self._say("This version cannot be published; the one before goes on. Change the file to try again")

    async def _change(self) -> set[str]:
        watched = self._watched
        async for paths in self._changes(watched):
            found = {one for one in paths if watched.concerns(one)} if paths else self._missed()
            if found:
                for one in found:
                    self._acted[one] = _changed_ns(one)
                return found
        await asyncio.Event().wait()  # nothing is watched any more: only Ctrl-C is left
        raise AssertionError

    def _missed(self) -> set[str]:
        """What changed since the last version began to be read and before it was watched."""
        found = set()
        for path in self._watched.files:
            changed_ns = _changed_ns(path)
            if changed_ns >= self._began_ns - COARSE_NS and self._acted.get(path) != changed_ns:
                found.add(path)
        now = self._watched.listing()
        for tree, before in self._listing.items():
            for name in set(before) ^ set(now.get(tree, ())):
                found.add(os.path.join(tree, name))
        self._listing = now
        return found

    async def _version(self) -> Served:
        """Import and publish what the files say now."""
        self._began_ns = time.time_ns()
        child = await self._start()
        try:
            described = await child.described()
            if described.watched.files:
                self._listing = described.listing
                self._watched = _merged(self._watched, described.watched, bool(described.title))
            if not described.title:
                return Served(described)
            if not self._app_id:
                created = await self._client._request(
                    "app.create", AppCreate(described.title, self._environment, False, described.tags)
                )
                self._app_id = created.app_id
            return Served(described, await child.publish(self._app_id))
        finally:
            await child.end()


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel what still runs and wait for it: a version on its way takes its process with it."""
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _merged(before: Watched, now: Watched, whole: bool) -> Watched:
    """A program that did not import names only the modules it came to: what was watched before still matters."""
    if whole:
        return now
    return Watched(tuple(sorted({*before.files, *now.files})), tuple(sorted({*before.trees, *now.trees})))


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _functions(count: int) -> str:
    return f"{count} function{'' if count == 1 else 's'}"


def _names(paths: Iterable[str]) -> str:
    """The first few changed files, as short as they can be."""
    shown = sorted(os.path.relpath(one) if one.startswith(os.getcwd() + os.sep) else one for one in paths)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return ", ".join(shown[:3]) + more


def plain(described: Described) -> dict[str, Any]:
    """A `Described` as it travels."""
    return asdict(described)
