"""The database: migrations, group commit, failures that leave nothing half-written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any, Awaitable, Callable

import pytest

from cadenza.base.errors import Bug, InternalError, ResourceExhaustedError, VersionError
from cadenza.storage import db as storage
from cadenza.storage.db import Database, Transaction, load_queries, statements


def with_db(path: Path, work: Callable[[Database], Awaitable[Any]], durability: str = "process") -> Any:
    async def run() -> Any:
        db = await Database.open(str(path / "cadenza.db"), durability)
        try:
            return await work(db)
        finally:
            await db.close()

    return asyncio.run(run())


def bump(name: str) -> Callable[[Transaction], int]:
    return lambda transaction: transaction.execute("bump_counter", (name,))


def test_what_was_written_is_there_after_a_new_opening(tmp_path: Path) -> None:
    async def write(db: Database) -> None:
        await db.execute("bump_counter", ("a",))
        await db.execute("bump_counter", ("a",))

    async def read(db: Database) -> Any:
        return await db.fetch("get_counter", ("a",))

    with_db(tmp_path, write, "power")
    assert with_db(tmp_path, read) == [(2,)]


def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    async def nothing(db: Database) -> None:
        await db.execute("bump_counter", ("a",))
        for name in os.listdir(tmp_path):
            assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o600, name

    with_db(tmp_path, nothing)


def test_a_failing_transaction_leaves_nothing_and_spares_its_neighbours(tmp_path: Path) -> None:
    def half(transaction: Transaction) -> None:
        transaction.execute("bump_counter", ("half",))
        raise ValueError("no")

    async def work(db: Database) -> None:
        futures = [db.submit(bump("good")), db.submit(half), db.submit(bump("good"))]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(results[1], ValueError)
        assert (results[0], results[2]) == (1, 1)
        assert await db.fetch("get_counter", ("good",)) == [(2,)]
        assert await db.fetch("get_counter", ("half",)) == []

    with_db(tmp_path, work)


def test_a_full_disk_is_a_sentence_and_the_database_goes_on(tmp_path: Path) -> None:
    async def work(db: Database) -> None:
        connection = db._writer.connection
        pages = (await db.transaction(lambda t: t.run("PRAGMA page_count")))[0][0]
        await db.transaction(lambda t: t.run(f"PRAGMA max_page_count = {pages + 2}"))
        assert connection is not None
        big = ("c", "fu", "ap", "spawn", 0, "x" * 100_000, "", 0.0, 0, None, 0, "")
        sql = "INSERT INTO calls VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
        small = db.submit(bump("small"))
        with pytest.raises(ResourceExhaustedError, match=r"full.*nothing was changed"):
            await db.transaction(lambda t: t.run(sql, big))
        assert await small == 1
        assert await db.fetch("get_call", ("c",)) == []
        await db.transaction(lambda t: t.run("PRAGMA max_page_count = 100000"))
        await db.transaction(lambda t: t.run(sql, big))
        assert len(await db.fetch("get_call", ("c",))) == 1

    with_db(tmp_path, work)


def test_a_newer_database_is_refused_with_a_sentence(tmp_path: Path) -> None:
    async def nothing(db: Database) -> None:
        await db.execute("bump_counter", ("a",))

    with_db(tmp_path, nothing)
    with sqlite3.connect(tmp_path / "cadenza.db") as connection:
        connection.execute("INSERT INTO migrations VALUES (9999, 'from the future')")
    connection.close()
    with pytest.raises(VersionError, match=r"newer Cadenza.*upgrade"):
        with_db(tmp_path, nothing)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cadenza.db").write_bytes(b"this is no database at all" * 100)

    async def nothing(db: Database) -> None:
        raise AssertionError("it opened")

    with pytest.raises(InternalError, match=r"cadenza\.db is damaged"):
        with_db(tmp_path, nothing)


def test_a_burst_is_few_commits(tmp_path: Path) -> None:
    async def work(db: Database) -> None:
        commits: list[str] = []
        db._writer.connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        await asyncio.gather(*(db.submit(bump("n")) for _ in range(500)))
        assert await db.fetch("get_counter", ("n",)) == [(500,)]
        assert len(commits) < 250

    with_db(tmp_path, work)


def test_every_query_of_the_package_compiles(tmp_path: Path) -> None:
    async def work(db: Database) -> None:
        for name, sql in load_queries().items():
            try:
                await db.transaction(lambda t, sql=sql: t.run("EXPLAIN " + sql, [None] * sql.count("?")))
            except InternalError as error:
                raise AssertionError(f"{name}: {error}") from error

    with_db(tmp_path, work)


def test_who_is_cancelled_while_it_writes_knows_what_was_written(tmp_path: Path) -> None:
    """Else memory and the database say different things, for example of a deploy whose client went away."""

    async def work(db: Database) -> None:
        written, said = threading.Event(), []

        def slowly(transaction: Transaction) -> int:
            written.wait(5)
            return bump("n")(transaction)

        async def writes() -> None:
            said.append(await db.transaction(slowly))
            await asyncio.sleep(0)
            said.append("went on")

        task = asyncio.get_running_loop().create_task(writes())
        await asyncio.sleep(0.01)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        written.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(said) == 1 and await db.fetch("get_counter", ("n",)) == [(1,)]

    with_db(tmp_path, work)


def test_a_closed_database_says_so(tmp_path: Path) -> None:
    async def work(db: Database) -> None:
        await db.close()
        with pytest.raises(InternalError, match="is closed"):
            await asyncio.wait_for(db.transaction(bump("n")), 5)
        with pytest.raises(InternalError, match="is closed"):
            await asyncio.wait_for(db.fetch("get_counter", ("n",)), 5)

    async def run() -> None:
        await work(await Database.open(str(tmp_path / "cadenza.db")))

    asyncio.run(run())


LARGE = {"inputs", "outputs", "calls", "series"}
WHOLE = {
    "drop_attached_inputs", "held_inputs", "count_waiting",  # at a start
    "blobs_named",  # once an hour
    "series_expire",  # by its index of ages, so many rows at a time
}  # fmt: skip
"""Queries that may go through a whole large table."""


def test_no_query_goes_through_a_large_table(tmp_path: Path) -> None:
    async def work(db: Database) -> None:
        found = {}
        for name, sql in load_queries().items():
            if sql.startswith("PRAGMA"):
                continue
            plan = await db.transaction(lambda t, sql=sql: t.run("EXPLAIN QUERY PLAN " + sql, ["x"] * sql.count("?")))
            scans = [row[3] for row in plan if row[3].startswith("SCAN ") and row[3].split()[1] in LARGE]
            if scans:
                found[name] = scans
        assert set(found) == WHOLE, found

    with_db(tmp_path, work)


def test_every_query_is_asked_for() -> None:
    package = Path(storage.__file__).parent.parent
    text = "\n".join(one.read_text() for one in package.rglob("*.py"))
    assert [name for name in load_queries() if f'"{name}"' not in text] == []


def test_a_query_named_twice_is_a_bug(tmp_path: Path) -> None:
    (tmp_path / "queries.sql").write_text("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")
    with pytest.raises(Bug, match="one is named twice"):
        load_queries(tmp_path)


def test_statements_of_a_script() -> None:
    script = "-- why\nCREATE TABLE a (b TEXT);\nINSERT INTO a VALUES ('x;y');\n-- the end\n"
    assert statements(script) == ["-- why\nCREATE TABLE a (b TEXT);", "INSERT INTO a VALUES ('x;y');"]


def test_migrations_are_numbered_without_gaps() -> None:
    assert [one[0] for one in storage.load_migrations()] == list(range(1, len(storage.load_migrations()) + 1))
