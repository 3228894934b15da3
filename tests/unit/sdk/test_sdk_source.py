"""Which files of a program go where, and how they are sent. Source: semantics.md sections 4 and 13.4."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator

import pytest

from cadenza.exception import ExecutionError, InvalidError, ModuleNotMountable
from cadenza.protocol.calls import BlobRef
from cadenza.protocol.methods import Empty, Missing
from cadenza.sdk import source
from cadenza.sdk.source import LocalFile


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with all that may not travel, a single module, and a script."""
    package = tmp_path / "sdk_source_pkg"
    (package / "sub").mkdir(parents=True)
    (package / "__pycache__").mkdir()
    (package / ".hidden").mkdir()
    for name in ("__init__.py", "a.py", "sub/__init__.py", "sub/b.py", ".secret.py", ".hidden/c.py"):
        (package / name).write_text(f"# {name}\n")
    (package / "data.json").write_text("{}")
    (package / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    (package / "old.pyc").write_bytes(b"x")
    (tmp_path / "sdk_source_single.py").write_text("x = 1\n")
    (tmp_path / "sdk_script.py").write_text("y = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [one for one in sys.modules if one.startswith("sdk_source_")]:
        del sys.modules[name]


def remotes(files: list[LocalFile]) -> list[str]:
    return [one.remote for one in files]


def script(path: Path) -> ModuleType:
    module = ModuleType("__main__")
    module.__file__ = str(path)
    module.__spec__ = None
    return module


def test_a_script_is_its_one_file(project: Path) -> None:
    module = script(project / "sdk_script.py")
    assert source.module_name(module) == "sdk_script"
    assert source.module_source(module) == [LocalFile(str(project / "sdk_script.py"), "/root/sdk_script.py")]


def test_a_module_in_a_package_brings_the_whole_top_level_package(project: Path) -> None:
    module = importlib.import_module("sdk_source_pkg.sub.b")
    assert remotes(source.module_source(module)) == [
        "/root/sdk_source_pkg/__init__.py",
        "/root/sdk_source_pkg/a.py",
        "/root/sdk_source_pkg/sub/__init__.py",
        "/root/sdk_source_pkg/sub/b.py",
    ]


def test_python_dash_m_of_a_module_in_a_package(project: Path) -> None:
    module = script(project / "sdk_source_pkg" / "a.py")
    module.__spec__ = importlib.util.find_spec("sdk_source_pkg.a")
    assert source.module_name(module) == "sdk_source_pkg.a"
    assert "/root/sdk_source_pkg/a.py" in remotes(source.module_source(module))


def test_a_single_module(project: Path) -> None:
    assert remotes(source.package_source("sdk_source_single")) == ["/root/sdk_source_single.py"]
    assert remotes(source.package_source("sdk_source_pkg.sub")) == [
        "/root/sdk_source_pkg/sub/__init__.py",
        "/root/sdk_source_pkg/sub/b.py",
    ]


def test_ignore_can_let_other_files_in(project: Path) -> None:
    assert "/root/sdk_source_pkg/data.json" in remotes(source.package_source("sdk_source_pkg", ignore=[]))
    assert not [one for one in remotes(source.package_source("sdk_source_pkg", ignore=[])) if "pyc" in one]


@pytest.mark.parametrize("name", ["no_such_module_at_all", "sys", "no_such.inner"])
def test_what_cannot_be_mounted(name: str) -> None:
    with pytest.raises(ModuleNotMountable, match=name.split(".")[0]):
        source.package_source(name)


def test_a_program_without_a_file_or_with_a_bad_name(tmp_path: Path) -> None:
    module = ModuleType("__main__")
    module.__spec__ = None
    with pytest.raises(InvalidError, match="serialized=True"):
        source.module_name(module)
    (tmp_path / "my-script.py").write_text("")
    with pytest.raises(InvalidError, match="my-script"):
        source.module_name(script(tmp_path / "my-script.py"))


def test_a_directory_with_its_hidden_files_and_links(tmp_path: Path) -> None:
    (tmp_path / "d" / "deep").mkdir(parents=True)
    (tmp_path / "d" / ".env").write_text("A=1")
    (tmp_path / "d" / "deep" / "x.txt").write_text("x")
    (tmp_path / "d" / "link.txt").symlink_to(tmp_path / "d" / "deep" / "x.txt")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d", target_is_directory=True)
    (tmp_path / "d" / "again").symlink_to(tmp_path / "d" / "deep", target_is_directory=True)
    (tmp_path / "d" / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "d" / "pipe")
    found = source.directory_source(str(tmp_path / "d"), "/data")
    assert remotes(found) == ["/data/.env", "/data/again/x.txt", "/data/deep/x.txt", "/data/link.txt"]
    assert remotes(source.directory_source(str(tmp_path / "d"), "/data", ["deep", "again", "*.txt"])) == ["/data/.env"]
    with pytest.raises(FileNotFoundError):
        source.directory_source(str(tmp_path / "nowhere"), "/data")


def test_hashes_modes_and_paths(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_bytes(b"echo")
    (tmp_path / "run.sh").chmod(0o700)
    (tmp_path / "empty").write_bytes(b"")
    run, empty = source.hash_files(
        [LocalFile(str(tmp_path / "run.sh"), "/x/run.sh"), LocalFile(str(tmp_path / "empty"), "/x/empty")]
    )
    assert (run.entry.digest, run.entry.size, run.entry.mode) == (hashlib.sha256(b"echo").hexdigest(), 4, 0o755)
    assert (empty.entry.path, empty.entry.size, empty.entry.mode) == ("/x/empty", 0, 0o644)


def test_many_files_are_hashed_in_order(tmp_path: Path) -> None:
    files = []
    for number in range(40):
        path = tmp_path / f"{number}"
        path.write_text(str(number))
        files.append(LocalFile(str(path), f"/x/{number}"))
    assert [one.entry.path for one in source.hash_files(files)] == [f"/x/{number}" for number in range(40)]


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    file = LocalFile(str(path), "/f")
    first = source.hash_file(file)
    reads: list[int] = []
    real = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *a: reads.append(1) or real(*a))  # type: ignore[func-returns-value]
    assert source.hash_file(LocalFile(str(path), "/elsewhere")).entry.digest == first.entry.digest
    assert reads == []
    path.write_text("other")
    assert source.hash_file(file).entry.digest == real(b"other").hexdigest()
    assert reads == [1]


def test_the_later_of_two_files_at_one_place_wins(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    [found] = source.hash_files([LocalFile(str(tmp_path / "a"), "/x"), LocalFile(str(tmp_path / "b"), "/x")])
    assert found.entry.digest == hashlib.sha256(b"b").hexdigest()


class Server:
    """Keeps objects in memory, as the server's object.* methods and lane do."""

    def __init__(self, *, has: tuple[str, ...] = ()) -> None:
        self.objects: dict[str, bytes] = dict.fromkeys(has, b"")
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.puts = 0

    async def _request(self, method: str, body: Any, payload: Any = ()) -> Any:
        if method == "object.missing":
            self.asked.extend(body.digests)
            return Missing(tuple(one for one in body.digests if one not in self.objects))
        assert method == "object.put"
        self.puts += 1
        if body.objects:
            rest = b"".join(payload)
            for one in body.objects:
                data, rest = rest[: one.size], rest[one.size :]
                assert hashlib.sha256(data).hexdigest() == one.digest
                self.objects[one.digest] = data
            assert not rest
            return Empty()
        data = self.blobs[body.blob_id] if body.blob_id else b"".join(payload)
        assert hashlib.sha256(data).hexdigest() == body.digest
        self.objects[body.digest] = data
        return Empty()

    async def _put_blob(self, parts: Any, durable: bool) -> BlobRef:
        assert durable
        name = f"bl-{len(self.blobs)}"
        self.blobs[name] = b"".join(parts)
        return BlobRef(name, len(self.blobs[name]))


def test_only_what_is_missing_is_sent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    hashed = source.hash_files([LocalFile(str(tmp_path / name), f"/{name}") for name in ("a", "b")])
    server = Server(has=(hashed[0].entry.digest,))
    seen: list[tuple[int, int]] = []
    sent = asyncio.run(
        source.upload(server, [*source.uploads_of(hashed), source.upload_of(b"pickle")], lambda *one: seen.append(one))
    )
    assert sent == 2
    assert server.objects[hashed[1].entry.digest] == b"b"
    assert sorted(server.asked) == server.asked
    assert seen[-1] == (7, 7)


def test_small_files_go_together(tmp_path: Path) -> None:
    count = 2 * source.BATCH_OBJECTS + 1
    for number in range(count):
        (tmp_path / str(number)).write_text(f"content {number}")
    (tmp_path / "middle").write_bytes(b"m" * (source.SMALL_OBJECT_BYTES + 1))
    names = [*map(str, range(count)), "middle"]
    hashed = source.hash_files([LocalFile(str(tmp_path / name), f"/{name}") for name in names])
    server = Server()
    assert asyncio.run(source.upload(server, source.uploads_of(hashed))) == count + 1
    assert len(server.objects) == count + 1
    assert server.puts == 4


def test_a_large_file_goes_over_the_lane(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (source.INLINE_OBJECT_BYTES + 1))
    server = Server()
    asyncio.run(source.upload(server, source.uploads_of(source.hash_files([LocalFile(str(path), "/large")]))))
    assert len(server.blobs) == 1
    assert [len(one) for one in server.objects.values()] == [source.INLINE_OBJECT_BYTES + 1]


@pytest.mark.parametrize("change", ["rewritten", "removed"])
def test_a_file_that_changes_before_it_is_sent(tmp_path: Path, change: str) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    uploads = source.uploads_of(source.hash_files([LocalFile(str(path), "/f")]))
    if change == "removed":
        path.unlink()
    else:
        path.write_text("two")
    with pytest.raises(ExecutionError, match="changed"):
        asyncio.run(source.upload(Server(), uploads))


def test_a_touched_file_with_the_same_content_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    uploads = source.uploads_of(source.hash_files([LocalFile(str(path), "/f")]))
    os.utime(path, (1, 1))
    assert asyncio.run(source.upload(Server(), uploads)) == 1
