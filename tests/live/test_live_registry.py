"""Real registries on loopback, with images made by umoci and skopeo: pulled, pushed, read by others. Needs root."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cadenza.base.errors import ImageBuildError
from cadenza.fs import tree
from cadenza.fs.oci import Pulled, pull, push
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from registry import DockerRegistry, Layout, write_tar


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def registry(home: Path) -> Iterator[DockerRegistry]:
    found = DockerRegistry(home / "open")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def layout(home: Path, registry: DockerRegistry) -> Layout:
    """Images ``one`` (three layers), ``zstd``, ``many`` (an index) and ``docker`` (schema 2), all in the registry."""
    found = Layout(home / "layout")
    source = home / "source"
    for name in ("usr/bin", "etc", "var/cache/apt", "home/me"):
        (source / name).mkdir(parents=True)
    (source / "usr/bin/tool").write_bytes(os.urandom(300_000))
    os.chmod(source / "usr/bin/tool", 0o4755)
    os.link(source / "usr/bin/tool", source / "usr/bin/alias")
    os.symlink("usr/bin", source / "bin")
    os.symlink("/etc/passwd", source / "home/me/link")
    (source / "etc/passwd").write_text("root\n")
    (source / "etc/gone").write_text("soon\n")
    (source / "var/cache/apt/a").write_text("1")
    (source / ("home/me/" + "n" * 200)).write_text("long")
    os.chown(source / "home/me", 1000, 3_000_000_000)
    os.setxattr(source / "etc/passwd", "user.note", b"kept\0")
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(source / "pipe")
    with open(source / "sparse", "wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    _tar(source, home / "base.tar", ".")
    _tar(source, home / "noroot.tar", "usr", "etc")
    second = write_tar(
        home / "second.tar",
        _entry("etc/.wh.gone"), _entry("var/cache/apt/.wh..wh..opq"), _entry("var/cache/apt/b", b"2"),
        _entry("bin/new", b"through the link"), _entry("home/me/x", b"3"), _entry("usr/.wh.never"),
    )  # fmt: skip
    third = write_tar(home / "third.tar", _entry("etc/passwd", b"other\n"), _entry("etc/gone", b"again\n"))
    config = ["--config.env", "PATH=/usr/bin", "--config.workingdir", "/home/me", "--config.entrypoint", "/bin/tool",
              "--config.cmd", "a", "--config.cmd", "b c", "--config.user", "1000:1000"]  # fmt: skip
    found.image("one", [home / "base.tar", second, third], *config)
    found.image("plain", [home / "base.tar"])
    found.image("arm", [home / "noroot.tar"], "--architecture", "arm64")
    found.index("many", {"linux/arm64/v8": "arm", "linux/amd64": "one"})
    for tag in ("one", "plain", "arm"):
        registry.skopeo("copy", f"oci:{found.path}:{tag}", f"docker://{registry.host}/test/{tag}:v1")
    registry.skopeo("copy", "--all", f"oci:{found.path}:many", f"docker://{registry.host}/test/many:v1")
    registry.skopeo("copy", "--format", "v2s2", f"oci:{found.path}:one", f"docker://{registry.host}/test/docker:v1")
    registry.skopeo(
        "copy", "--dest-compress-format", "zstd", "--dest-force-compress-format", f"oci:{found.path}:one",
        f"docker://{registry.host}/test/zstd:v1",
    ) if _can_force() else _zstd(found, registry, home)  # fmt: skip
    return found


def _can_force() -> bool:
    return (
        "--dest-force-compress-format"
        in subprocess.run(["skopeo", "copy", "--help"], capture_output=True, text=True).stdout
    )


def _zstd(layout: Layout, registry: DockerRegistry, home: Path) -> None:
    """The layers of ``one`` packed by the zstd program, under a manifest made by hand."""
    index = json.loads((layout.path / "index.json").read_text())
    (row,) = [one for one in index["manifests"] if one["annotations"]["org.opencontainers.image.ref.name"] == "one"]
    manifest = json.loads(layout.blob(row["digest"]))
    for layer in manifest["layers"]:
        plain = gzip.decompress(layout.blob(layer["digest"]))
        packed = subprocess.run(["zstd", "-3", "-c"], input=plain, capture_output=True, check=True).stdout
        layer.update(
            mediaType="application/vnd.oci.image.layer.v1.tar+zstd", digest=layout.put(packed), size=len(packed)
        )
    body = json.dumps(manifest).encode()
    row = {
        **row,
        "digest": layout.put(body),
        "size": len(body),
        "annotations": {"org.opencontainers.image.ref.name": "zstd"},
    }
    index["manifests"].append(row)
    (layout.path / "index.json").write_text(json.dumps(index))
    registry.skopeo("copy", f"oci:{layout.path}:zstd", f"docker://{registry.host}/test/zstd:v1")


def _entry(name: str, data: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mtime = 1_600_000_000
    return info, data


def _tar(source: Path, target: Path, *names: str) -> None:
    command = [
        "tar",
        "-C",
        str(source),
        "-cf",
        str(target),
        "--format=pax",
        "--sparse",
        "--xattrs",
        "--numeric-owner",
        *names,
    ]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(str(tmp_path / "store"))
    yield found
    found.close()


def fetch(ref: str, store: Store, secret: dict[str, str] | None = None, **more: Any) -> Pulled:
    lines: Callable[[str], None] = more.pop("lines", lambda line: None)
    more.setdefault("platform", "linux/amd64")
    more.setdefault("environ", {"HOME": "/nonexistent"})
    return asyncio.run(pull(ref, store, secret or {}, lines, **more))


def described(path: Path) -> dict[bytes, tuple[object, ...]]:
    """What is in a directory, as `shown` tells it of a tree."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(path)
    for at, directories, files in os.walk(top):
        for name in sorted([b"", *directories, *files] if at == top else [*directories, *files]):
            full = os.path.join(at, name).rstrip(b"/")
            info = os.lstat(full)
            shared = info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode)
            what: object = None
            if stat.S_ISREG(info.st_mode):
                what = hashlib.sha256(Path(os.fsdecode(full)).read_bytes()).hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                what = os.readlink(full)
            elif not stat.S_ISDIR(info.st_mode):
                what = info.st_rdev
            names_of = os.listxattr(full, follow_symlinks=False)
            xattrs = tuple(sorted((one, os.getxattr(full, one, follow_symlinks=False)) for one in names_of))
            mtime = 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns
            found[full[len(top) :]] = (info.st_mode, info.st_uid, info.st_gid, shared, what, mtime, xattrs)
    return found


def shown(root: Node, store: Store) -> dict[bytes, tuple[object, ...]]:
    counts: dict[int, int] = {}
    for _, node in tree.walk(root):
        counts[node.link] = counts.get(node.link, 0) + 1
    found: dict[bytes, tuple[object, ...]] = {}
    for path, node in tree.walk(root):
        what: object = None
        if node.is_file:
            data = Path(store.path(node.data)).read_bytes() if node.data else b""
            what = hashlib.sha256(data).hexdigest()
        elif node.is_link:
            what = node.data
        elif not node.is_dir:
            what = node.rdev
        xattrs = tuple(sorted((name.decode(), value) for name, value in (node.xattrs or {}).items()))
        shared, mtime = bool(node.link) and counts[node.link] > 1, 0 if node.is_dir else node.mtime
        found[path] = (node.mode, node.uid, node.gid, shared, what, mtime, xattrs)
    return found


@pytest.mark.parametrize("name", ["one", "zstd", "docker", "many"])
def test_an_image_is_what_umoci_unpacks(
    layout: Layout, registry: DockerRegistry, store: Store, tmp_path: Path, name: str
) -> None:
    found = fetch(f"{registry.host}/test/{name}:v1", store)
    mine, theirs = shown(found.tree, store), described(layout.unpack("one", tmp_path / "bundle"))
    assert mine == theirs
    assert mine[b"/usr/bin/new"][4] == hashlib.sha256(b"through the link").hexdigest()
    assert mine[b"/usr/bin/alias"][3] and b"/var/cache/apt/a" not in mine
    config = found.config
    assert (config.env, config.workdir, config.user) == ({"PATH": "/usr/bin"}, "/home/me", "1000:1000")
    assert (config.entrypoint, config.cmd) == (("/bin/tool",), ("a", "b c"))
    assert len(found.layers) == 3


def test_the_same_layers_in_three_packings_are_read_once(
    layout: Layout, registry: DockerRegistry, store: Store
) -> None:
    first = fetch(f"{registry.host}/test/one:v1", store)
    for name in ("zstd", "docker", "many"):
        lines: list[str] = []
        found = fetch(f"{registry.host}/test/{name}:v1", store, lines=lines.append)
        assert found.tree == first.tree and sum("here already" in line for line in lines) == 3, lines


def test_platforms_of_an_index(layout: Layout, registry: DockerRegistry, store: Store) -> None:
    ref = f"{registry.host}/test/many:v1"
    assert fetch(ref, store, platform="linux/arm64").config.platform == "linux/arm64"
    with pytest.raises(ImageBuildError, match="there are: linux/amd64, linux/arm64/v8"):
        fetch(ref, store, platform="linux/ppc64le")
    digest = json.loads(registry.skopeo("inspect", "--raw", f"docker://{ref}"))["manifests"][1]["digest"]
    assert fetch(f"{registry.host}/test/many@{digest}", store).digest == digest


def test_what_is_not_there(layout: Layout, registry: DockerRegistry, store: Store) -> None:
    for name in ("test/one:v2", "none/such:v1"):
        with pytest.raises(ImageBuildError, match="no such image or tag; private images look the same"):
            fetch(f"{registry.host}/{name}", store)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_pushed_image_is_the_same_for_others(
    layout: Layout, registry: DockerRegistry, store: Store, tmp_path: Path, compression: str
) -> None:
    """Pushed, then pulled by us into another store, and by skopeo and umoci (whose version reads gzip alone)."""
    given = fetch(f"{registry.host}/test/one:v1", store)
    ref = f"{registry.host}/back/{compression}:v1"

    def send(lines: list[str]) -> str:
        return asyncio.run(push(ref, given.tree, given.config, store, {}, lines.append, compression=compression))

    digest, again = send([]), list[str]()
    assert send(again) == digest and "there already" in again[0]
    assert json.loads(registry.skopeo("inspect", f"docker://{ref}"))["Digest"] == digest
    other = Store(str(tmp_path / "other"))
    found = fetch(ref, other)
    other.close()
    assert (found.tree, found.digest) == (given.tree, digest)
    assert {**vars(found.config), "diff_ids": ()} == {**vars(given.config), "diff_ids": ()}
    registry.skopeo("copy", f"docker://{ref}", f"oci:{tmp_path}/back:v1")
    if compression == "gzip":
        back = Layout.__new__(Layout)
        back.path = tmp_path / "back"
        theirs = described(back.unpack("v1", tmp_path / "bundle"))
        assert theirs == described(layout.unpack("one", tmp_path / "wanted")) == shown(given.tree, store)


def test_a_large_layer_goes_in_parts(registry: DockerRegistry, store: Store) -> None:
    draft = store.draft()
    for _ in range(45):
        draft.write(os.urandom(1 << 20))
    data, size = draft.commit()
    root = tree.put(tree.directory(), b"large", Node(stat.S_IFREG | 0o644, size=size, data=data))
    ref = f"{registry.host}/large/one"
    asyncio.run(push(ref, root, Pulled(root, fetch_config(), "", "").config, store, {}, lambda line: None))
    assert fetch(ref, store).tree == root


def fetch_config() -> Any:
    from cadenza.fs.oci import ImageConfig

    return ImageConfig(cmd=("x",), platform="linux/amd64")


def test_a_registry_with_users(home: Path, layout: Layout, registry: DockerRegistry, store: Store) -> None:
    word = "$2b$05$qp5Yr0ACYrANmAex1YrJ4e/JJR0kL3OrsH/Mo6GZYCqoQ.LqKo90y"  # of "secret"
    closed = DockerRegistry(home / "closed", htpasswd=f"me:{word}\n")
    try:
        ref = f"{closed.host}/private/one:v1"
        given = fetch(f"{registry.host}/test/one:v1", store)
        secret = {"REGISTRY_USERNAME": "me", "REGISTRY_PASSWORD": "secret"}
        with pytest.raises(ImageBuildError, match="wants a login"):
            asyncio.run(push(ref, given.tree, given.config, store, {}, print, environ={"HOME": "/nonexistent"}))
        asyncio.run(push(ref, given.tree, given.config, store, secret, print))
        with pytest.raises(ImageBuildError, match=r"secret=\.\.\."):
            fetch(ref, store)
        with pytest.raises(ImageBuildError, match="credentials given may not"):
            fetch(ref, store, {**secret, "REGISTRY_PASSWORD": "wrong"})
        assert fetch(ref, store, secret).tree == given.tree
    finally:
        closed.stop()
