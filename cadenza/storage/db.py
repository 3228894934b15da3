"""SQLite behind one class: transactions, migrations, named queries.

One thread writes. It takes every request that waits, runs them in one transaction (group commit), and resolves their
futures after the commit, so that a burst of requests costs one commit. Reads go to a second connection in a second
thread and see what is committed. SQL lives in ``queries*.sql`` beside this file, migrations in ``migrations/``.

A full disk is a `ResourceExhaustedError` for the requests that needed room; nothing of them is kept and the database
goes on serving.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import sqlite3
import threading
from pathlib import Path
from typing import Any, Callable, Optional, Sequence, TypeVar, cast

from cadenza.base.errors import Bug, Error, InternalError, ResourceExhaustedError, VersionError

T = TypeVar("T")
Row = tuple[Any, ...]

BATCH_REQUESTS = 2_000
"""How many requests one transaction takes at most."""
BUSY_WAIT_MS = 5_000
WAL_KEPT_BYTES = 64 << 20
_FOLDER = Path(__file__).parent
_NAME = re.compile(r"^--\s*name:\s*([a-z0-9_]+)\s*$", re.MULTILINE)


def load_queries(folder: Path = _FOLDER) -> dict[str, str]:
    """Every ``-- name: x`` block of the folder's ``queries*.sql``. A name given twice is a `Bug`."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("queries*.sql")):
        parts = _NAME.split(path.read_text(encoding="utf-8"))
        for name, text in zip(parts[1::2], parts[2::2]):
            if name in found:
                raise Bug(f"{path.name}: the query {name} is named twice")
            found[name] = text.strip().rstrip(";")
    return found


def load_migrations(folder: Path = _FOLDER / "migrations") -> list[tuple[int, str, str]]:
    """``(number, file name, SQL)`` of each migration, in order of their numbers."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        number, _, _ = path.name.partition("_")
        found.append((int(number), path.name, path.read_text(encoding="utf-8")))
    return found


def statements(script: str) -> list[str]:
    """A script's single statements."""
    found, start = [], 0
    for at, char in enumerate(script):
        if char == ";" and sqlite3.complete_statement(script[start : at + 1]):
            found.append(script[start : at + 1].strip())
            start = at + 1
    if script[start:].strip():
        found.append(script[start:].strip())
    return [one for one in found if any(line.strip() and not line.startswith("--") for line in one.splitlines())]


class Transaction:
    """What a function given to `Database.transaction` works with, in the writer's thread."""

    __slots__ = ("_connection", "_queries")

    def __init__(self, connection: sqlite3.Connection, queries: dict[str, str]) -> None:
        self._connection = connection
        self._queries = queries

    def execute(self, name: str, params: Sequence[Any] = ()) -> int:
        """Run a named query; how many rows it changed."""
        return self._connection.execute(self._queries[name], params).rowcount

    def fetch(self, name: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run a named query; its rows."""
        return self._connection.execute(self._queries[name], params).fetchall()

    def change(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Like `run`, for a change; how many rows it changed."""
        return self._connection.execute(sql, params).rowcount

    def run(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run SQL made by this package (many rows in one statement); its rows. Never give it a user's text."""
        return self._connection.execute(sql, params).fetchall()


class _Request:
    __slots__ = ("fn", "future")

    def __init__(self, fn: Callable[[Transaction], Any], future: asyncio.Future[Any]) -> None:
        self.fn = fn
        self.future = future


class _Worker:
    """One connection and the thread that uses it."""

    def __init__(self, path: str, durability: str, queries: dict[str, str], write: bool, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._write = write
        self._requests: queue.SimpleQueue[Optional[_Request]] = queue.SimpleQueue()
        self._closed = False
        connection = sqlite3.connect(
            path, timeout=BUSY_WAIT_MS / 1000, isolation_level=None, check_same_thread=False, cached_statements=512
        )
        self.connection = connection
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("PRAGMA secure_delete = ON")  # values of users do not outlive their rows in the file
            if not write:
                connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            connection.close()
            raise _outside(error, path) from error
        self._transaction = Transaction(connection, queries)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, fn: Callable[[Transaction], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(InternalError("the database is closed"))
        else:
            self._requests.put(_Request(fn, future))
        return future

    async def close(self) -> None:
        self._closed = True
        self._requests.put(None)
        if self._thread.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        self.connection.close()

    def _run(self) -> None:
        requests = self._requests
        open_ = True
        while open_:
            first = requests.get()
            if first is None:
                return
            batch = [first]
            while len(batch) < BATCH_REQUESTS:
                try:
                    one = requests.get_nowait()
                except queue.Empty:
                    break
                if one is None:
                    open_ = False
                    break
                batch.append(one)
            results = self._serve(batch)
            try:
                self._loop.call_soon_threadsafe(_resolve, batch, results)
            except RuntimeError:
                return  # the loop is closed: nobody is left to tell

    def _serve(self, batch: list[_Request]) -> list[Any]:
        try:
            return self._together([one.fn for one in batch])
        except Exception as error:
            if len(batch) == 1:
                return [_Failure(_outside(error, self._path))]
        results: list[Any] = []
        for one in batch:  # one of them failed and all were undone: each now stands alone
            try:
                results += self._together([one.fn])
            except Exception as error:
                results.append(_Failure(_outside(error, self._path)))
        return results

    def _together(self, fns: Sequence[Callable[[Transaction], Any]]) -> list[Any]:
        if not self._write:
            return [fn(self._transaction) for fn in fns]
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            results = [fn(self._transaction) for fn in fns]
            connection.execute("COMMIT")
            return results
        except BaseException:
            if connection.in_transaction:  # SQLite itself rolls back on some errors, a full disk among them
                connection.execute("ROLLBACK")
            raise


class _Failure:
    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _resolve(batch: Sequence[_Request], results: Sequence[Any]) -> None:
    for one, result in zip(batch, results):
        if one.future.done():
            continue
        if type(result) is _Failure:
            one.future.set_exception(result.error)
        else:
            one.future.set_result(result)


def _outside(error: BaseException, path: str) -> BaseException:
    """What the requester sees of a failure."""
    if isinstance(error, (Error, Bug)):
        return error
    text = str(error)
    if isinstance(error, sqlite3.Error) and "disk is full" in text:
        return ResourceExhaustedError(
            f"the disk that holds {os.path.dirname(path) or path} is full: nothing was changed; "
            "free some space and try again"
        )
    if isinstance(error, sqlite3.DatabaseError) and ("not a database" in text or "malformed" in text):
        return InternalError(f"{path} is damaged ({text}): move it away and start again, or restore a copy of it")
    if isinstance(error, sqlite3.Error):
        failure = InternalError(f"the database failed: {text}")
        failure.__cause__ = error
        return failure
    return error


def _migrate(connection: sqlite3.Connection, migrations: Sequence[tuple[int, str, str]], path: str) -> None:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL)",
    )
    done = {row[0] for row in connection.execute("SELECT number FROM migrations")}
    known = max((one[0] for one in migrations), default=0)
    newest = max(done, default=0)
    if newest > known:
        raise VersionError(
            f"{path} was written by a newer Cadenza (its format is {newest}, this version knows up to {known}): "
            "upgrade Cadenza, or move the file away to start with an empty one"
        )
    for number, name, script in migrations:
        if number in done:
            continue
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements(script):
                connection.execute(statement)
            connection.execute("INSERT INTO migrations (number, name) VALUES (?, ?)", (number, name))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


async def _outcome(future: asyncio.Future[T]) -> T:
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        pass
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            continue
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    return future.result()


class Database:
    """The database of one control plane. Made by `open`, ended by `close`."""

    def __init__(self, writer: _Worker, reader: _Worker) -> None:
        self._writer = writer
        self._reader = reader

    @classmethod
    async def open(cls, path: str, durability: str = "process") -> Database:
        """Open or create ``path`` (mode 0600) and bring it to this version's format.

        ``durability`` is `Config.durability`. VersionError when a newer Cadenza wrote it, InternalError when it is
        damaged, ResourceExhaustedError when the disk is full.
        """
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.chmod(path, 0o600)
        except OSError as error:
            raise InternalError(f"{path} cannot be opened: {error.strerror}") from error
        queries = load_queries()
        writer = _Worker(path, durability, queries, True, "cadenza-db-write")
        try:
            _migrate(writer.connection, load_migrations(), path)
            reader = _Worker(path, durability, queries, False, "cadenza-db-read")
        except BaseException as error:
            writer.connection.close()
            raise _outside(error, path) from error
        writer.start()
        reader.start()
        return cls(writer, reader)

    def submit(self, fn: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """Like `transaction`, without waiting: the future is resolved after the commit. Requests run in order.

        ``fn`` may run twice, when another request of its group failed; it must touch nothing but the database.
        """
        return self._writer.submit(fn)

    async def execute(self, name: str, params: Sequence[Any] = ()) -> int:
        """One named query, durable on return; how many rows it changed. See `transaction`."""
        return await _outcome(self._writer.submit(lambda transaction: transaction.execute(name, params)))

    async def fetch(self, name: str, params: Sequence[Any] = ()) -> list[Row]:
        """Rows of one named query; sees everything that was awaited before."""
        return await self._reader.submit(lambda transaction: transaction.fetch(name, params))

    async def transaction(self, fn: Callable[[Transaction], T]) -> T:
        """Run ``fn`` in the writer's thread as one transaction, all or nothing; see `submit`.

        A task that is cancelled meanwhile has the outcome all the same, and is cancelled at its next wait: what is
        written cannot be called back, and whoever keeps the same in memory has to follow it.
        """
        return cast(T, await _outcome(self._writer.submit(fn)))

    async def close(self) -> None:
        """Write what waits, then close. Nothing may be asked of it afterwards."""
        await self._reader.close()
        await self._writer.close()
