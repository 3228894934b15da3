"""Layers to trees and back: tars of all dialects, whiteouts, hostile layers; manifests. docs/formats/oci.md."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import stat
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest
import zstandard

from cadenza.base.errors import InvalidError
from cadenza.fs import layer_delta, layer_tar, layer_write, manifest, oci, tree
from cadenza.fs.layer_delta import LayerError, Limits, apply, flatten, read_layer
from cadenza.fs.layer_tar import Tar, TarError, unpack
from cadenza.fs.manifest import Descriptor, ImageConfig, Index, Manifest, ManifestError
from cadenza.fs.store import Store
from cadenza.fs.tree import Node

Given = tuple[str, dict[str, object], bytes]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(str(tmp_path / "store"))
    yield found
    found.close()


def entry(name: str, data: bytes = b"", **more: object) -> Given:
    """An entry for `make`; a name that ends in "/" is a directory."""
    if name.endswith("/"):
        more.setdefault("type", tarfile.DIRTYPE)
        more.setdefault("mode", 0o755)
    return name, more, data


def link(name: str, target: str) -> Given:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> Given:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def make(*entries: Given, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, more, data in entries:
            info = tarfile.TarInfo(name)
            for key, value in more.items():
                setattr(info, key, value)
            info.name = name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def read(store: Store, *entries: Given, **limits: int) -> Node:
    return read_layer(pieces(make(*entries)), store.draft, Limits(**limits))


def content(store: Store, root: Node, path: bytes) -> Optional[bytes]:
    node = tree.find(root, path)
    if node is None:
        return None
    return Path(store.path(node.data)).read_bytes() if node.data else b""


def paths(root: Node) -> list[bytes]:
    return [path for path, _ in tree.walk(root) if path]


# The tar reader.


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 512, 513, 100_000])
def test_entries_as_the_standard_library_writes_them(form: int, size: int) -> None:
    """Every dialect, cut into pieces of every kind."""
    deep = "d" * 90 + "/" + "e" * 80 + "/f"
    long = [] if form == tarfile.USTAR_FORMAT else [entry("x/" * 100 + "y" * 200, b"long"), link("s", "t" * 300)]
    given = [
        entry("dir/", mode=0o1777, mtime=1),
        entry("empty"),
        entry("file", b"abc" * 700, mode=0o4755, uid=1000, gid=100, mtime=1_600_000_000),
        entry("exact", b"z" * 1024),
        entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("pipe", type=tarfile.FIFOTYPE),
        hard("other", "file"),
        entry(deep, b"deep"),
        *long,
    ]
    data = make(*given, form=form)
    found = []
    tar = Tar(pieces(data, size))
    for one in tar:
        found.append((one, b"".join(tar.content())))
    with tarfile.open(fileobj=io.BytesIO(data)) as theirs:
        wanted = [(info, theirs.extractfile(info) if info.isreg() else None) for info in theirs]
        assert len(wanted) == len(found) == len(given)
        for (info, file), (one, body) in zip(wanted, found):
            assert one.name.rstrip(b"/").decode() == info.name.rstrip("/")
            assert (one.mode, one.uid, one.gid, one.mtime) == (info.mode, info.uid, info.gid, info.mtime * 10**9)
            assert one.link.decode() == info.linkname
            assert one.kind == info.type
            assert body == (file.read() if file else b"")
            if info.ischr():
                assert (one.major, one.minor) == (info.devmajor, info.devminor)


def test_what_pax_records_say_counts() -> None:
    xattr = {"SCHILY.xattr.user.a": "b=c\n", "mtime": "-1.5", "uid": "4000000000", "path": "päth/nämé"}
    (one,) = list(Tar([make(entry("x", b"1", pax_headers=xattr), form=tarfile.PAX_FORMAT)]))
    assert one.name == "päth/nämé".encode() and one.uid == 4_000_000_000
    assert one.mtime == -1_500_000_000 and one.xattrs == {b"user.a": b"b=c\n"}


def test_numbers_of_base_256() -> None:
    assert layer_tar.number(b"\x80" + bytes(10) + b"\x07") == 7
    assert layer_tar.number(b"\x80\x00\x00\x10" + bytes(8)) == 1 << 68
    assert layer_tar.number(b"\xff" * 12) == -1
    assert (
        layer_tar.number(b"0000644\0") == 0o644
        and layer_tar.number(b"   7 \0  ") == 7
        and layer_tar.number(bytes(8)) == 0
    )
    for wrong in (b"0000008\0", b"-000001\0", b"0x1\0"):
        with pytest.raises(TarError):
            layer_tar.number(wrong)


@pytest.mark.parametrize("form", [("gnu",), ("pax", "0.0"), ("pax", "0.1"), ("pax", "1.0")])
def test_sparse_files_as_gnu_tar_writes_them(tmp_path: Path, store: Store, form: tuple[str, ...]) -> None:
    for name, parts in {"few": 3, "many": 60}.items():
        with open(tmp_path / name, "wb") as file:
            for number in range(parts):
                file.seek(number * 300_000 + 70_000)
                file.write(bytes([number + 1]) * 5000)
            file.truncate(parts * 300_000 + 1234)
    (tmp_path / "hollow").write_bytes(b"")
    os.truncate(tmp_path / "hollow", 1 << 20)
    version = [f"--sparse-version={form[1]}"] if form[1:] else []
    command = ["tar", "-C", str(tmp_path), "-c", "--sparse", f"--format={form[0]}", *version, "few", "many", "hollow"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(data) < 2_000_000
    root = read_layer(pieces(data, 10_000), store.draft)
    assert paths(root) == [b"/few", b"/hollow", b"/many"]
    for name in ("few", "many", "hollow"):
        assert content(store, root, name.encode()) == (tmp_path / name).read_bytes()


def test_a_tar_that_is_damaged_or_cut_off_is_refused() -> None:
    data = make(entry("a", b"x" * 2000), entry("b", b"y" * 2000))

    def drain(raw: bytes) -> int:
        tar = Tar(pieces(raw))
        return sum(1 for _ in tar)

    assert drain(data) == 2
    assert drain(data[: 2 * (512 + 2048)]) == 2, "the blocks of zeros at the end may lack"
    for cut in (100, 512, 600, 2000, 2561, 3000):
        with pytest.raises(TarError):
            drain(data[:cut])
    with pytest.raises(TarError, match="damaged"):
        drain(b"c" + data[1:])
    with pytest.raises(TarError, match="unknown type"):
        drain(make(entry("a", type=b"M")))
    huge = bytearray(make(entry("a" * 200), form=tarfile.GNU_FORMAT))
    huge[124:136] = b"00100000000\0"
    huge[148:156] = b"%06o\0 " % (sum(huge[:148]) + sum(huge[156:512]) + 256)
    with pytest.raises(TarError, match="header of"):
        drain(bytes(huge))


def test_streams_of_every_compression() -> None:
    data = os.urandom(1000) + bytes(2_500_000) + os.urandom(1000)
    halves = [data[:700], data[700:]]
    frame = zstandard.ZstdCompressor().compress
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    for packed in (
        data,
        gzip.compress(data),
        b"".join(gzip.compress(one) for one in halves) + bytes(100),
        frame(data),
        b"".join(frame(one) for one in halves),
        skippable + frame(data) + skippable,
        b"".join(layer_write.gzip(pieces(data))),
        b"".join(layer_write.zstd(pieces(data))),
    ):
        for size in (7, 1000, 1 << 20) if len(packed) < 10_000 else (100_000,):
            out = list(unpack(pieces(packed, size)))
            assert b"".join(out) == data and max(map(len, out)) <= layer_tar.OUT_BYTES
    for packed in (gzip.compress(data)[:-9], gzip.compress(data)[:900], b"\x1f\x8bnot", b"\x28\xb5\x2f\xfdnot zstd"):
        with pytest.raises(TarError):
            list(unpack(pieces(packed)))
    assert list(unpack([])) == [b""]


# Deltas.


def test_a_layer_is_a_delta(store: Store) -> None:
    root = read(
        store,
        entry("./", mode=0o700, mtime=5),
        entry("./etc/", uid=1, gid=2, mtime=7),
        entry("./etc/passwd", b"root", mode=0o640, uid=3),
        link("./sh", "/bin/dash"),
        hard("./again", "./etc/passwd"),
        entry("./null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
    )
    assert root.children is not None and (root.mode, root.mtime, root.flags) == (stat.S_IFDIR | 0o700, 5 * 10**9, 0)
    assert paths(root) == [b"/again", b"/etc", b"/etc/passwd", b"/null", b"/sh"]
    passwd = tree.find(root, b"etc/passwd")
    assert passwd is not None and passwd.mode == stat.S_IFREG | 0o640 and passwd.uid == 3 and passwd.link == 1
    assert root.children[b"again"] == passwd and content(store, root, b"again") == b"root"
    assert root.children[b"sh"].data == b"/bin/dash" and root.children[b"null"].rdev == os.makedev(1, 3)
    assert tree.decode(tree.encode(root)) == root


def test_directories_that_a_layer_goes_through_stay_what_they_were(store: Store) -> None:
    lower = read(store, entry("./", mode=0o711), entry("home/", mode=0o700, uid=7, mtime=3), entry("home/a", b"1"))
    upper = read(store, entry("home/b", b"2"), entry("new/c", b"3"))
    whole = flatten([lower, upper])
    home, new = tree.find(whole, b"home"), tree.find(whole, b"new")
    assert home is not None and (home.mode, home.uid, home.mtime) == (stat.S_IFDIR | 0o700, 7, 3 * 10**9)
    assert new is not None and (new.mode, new.uid, new.flags) == (stat.S_IFDIR | 0o755, 0, 0)
    assert stat.S_IMODE(whole.mode) == 0o711 and whole.flags == 0
    assert paths(whole) == [b"/home", b"/home/a", b"/home/b", b"/new", b"/new/c"]


def test_whiteouts_hide_what_is_below_and_nothing_else(store: Store) -> None:
    """OCI: whiteouts hide entries of lower layers only, wherever in the layer they stand."""
    lower = read(store, *(entry(f"{one}/x", b"low") for one in "abcde"), entry("f", b"low"), entry("g", b"low"))
    upper = read(
        store,
        entry(".wh.f"),
        entry("a/.wh.x"),
        entry("a/y", b"new"),
        entry("b/z", b"new"),
        entry("b/.wh..wh..opq"),
        entry("c/w", b"new"),
        entry(".wh.c"),
        entry(".wh.d"),
        entry("d/v", b"new"),
        entry("g", b"new"),
        entry(".wh.g"),
        entry(".wh..wh.plnk/", type=tarfile.DIRTYPE),
        entry(".wh.never"),
    )
    whole = flatten([lower, upper])
    assert paths(whole) == [b"/a", b"/a/y", b"/b", b"/b/z", b"/c", b"/c/w", b"/d", b"/d/v", b"/e", b"/e/x", b"/g"]
    assert content(store, whole, b"g") == b"new"
    assert not any(node.flags for _, node in tree.walk(whole))


def test_the_last_of_several_entries_wins(store: Store) -> None:
    root = read(
        store,
        entry("a", b"1"), entry("a", b"2"),
        entry("d/"), entry("d/x", b"1"), entry("d", b"file"),
        entry("e", b"file"), entry("e/"), entry("e/x", b"1"),
        entry("f/"), entry("f/x", b"1"), entry("f/", mode=0o700),
        link("l", "f"), entry("l/"), entry("l/y", b"in l"),
    )  # fmt: skip
    assert paths(root) == [b"/a", b"/d", b"/e", b"/e/x", b"/f", b"/f/x", b"/l", b"/l/y"]
    assert content(store, root, b"a") == b"2" and content(store, root, b"d") == b"file"
    lower = read(store, entry("e/low", b"1"))
    assert tree.find(flatten([lower, root]), b"e/low") is None, "the file in between hid what was below"


def test_entries_below_symlinks_land_where_the_links_lead(store: Store) -> None:
    """Within the image: nothing outside of the tree can be named."""
    inside = read(store, link("lib", "usr/lib"), link("up", "../../.."), link("abs", "/usr"), entry("lib/a", b"1"),
                  entry("up/b", b"2"), entry("abs/c", b"3"))  # fmt: skip
    assert paths(inside) == [b"/abs", b"/b", b"/lib", b"/up", b"/usr", b"/usr/c", b"/usr/lib", b"/usr/lib/a"]
    lower = read(
        store, entry("usr/lib/", mode=0o700), link("lib", "usr/lib"), link("file", "plain"), entry("plain", b"x")
    )
    whole = flatten([lower, read(store, entry("lib/sub/a", b"1"), entry("file/b", b"2"))])
    assert paths(whole) == [
        b"/file",
        b"/file/b",
        b"/lib",
        b"/plain",
        b"/usr",
        b"/usr/lib",
        b"/usr/lib/sub",
        b"/usr/lib/sub/a",
    ]
    usr_lib = tree.find(whole, b"usr/lib")
    assert usr_lib is not None and stat.S_IMODE(usr_lib.mode) == 0o700
    replaced = flatten([lower, read(store, entry("lib/"), entry("lib/a", b"1"))])
    assert tree.find(replaced, b"lib/a") is not None and tree.find(replaced, b"usr/lib/a") is None


def test_hard_links_to_lower_layers(store: Store) -> None:
    lower = read(store, entry("a", b"same", mode=0o600), entry("p", b"1"), hard("q", "p"), link("bin", "usr"),
                 entry("usr/t", b"tool"))  # fmt: skip
    upper = read(
        store, hard("b", "a"), hard("c", "/a"), hard("r", "p"), hard("u", "bin/t"), entry("n", b"2"), hard("m", "n")
    )
    upper = tree.decode(tree.encode(upper))
    whole = flatten([lower, upper])
    assert whole.children is not None
    numbers = {name: node.link for name, node in whole.children.items()}
    assert numbers[b"a"] == numbers[b"b"] == numbers[b"c"] > 0
    assert numbers[b"p"] == numbers[b"q"] == numbers[b"r"] > 0
    assert numbers[b"n"] == numbers[b"m"] > 0
    assert len({numbers[b"a"], numbers[b"p"], numbers[b"n"], numbers[b"u"]}) == 4
    assert whole.children[b"b"].mode == stat.S_IFREG | 0o600 and content(store, whole, b"u") == b"tool"
    with pytest.raises(LayerError, match="not there"):
        apply(lower, read(store, hard("b", "absent")))
    with pytest.raises(LayerError, match="not there"):
        apply(lower, read(store, hard("b", "usr")))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([entry("../../etc/passwd", b"x")], r"'\.\.'"),
        ([entry("a/../../b", b"x")], r"'\.\.'"),
        ([entry("a/..", b"x")], r"'\.\.'"),
        ([entry("../")], r"'\.\."),
        ([hard("a", "../../etc/passwd")], r"'\.\.'"),
        ([entry("d/"), hard("a", "d")], "link to a directory"),
        ([hard("a", "a")], "itself"),
        ([hard("a", "/")], "to nothing"),
        ([entry("a", b"x"), entry("a/b", b"y")], "no directory"),
        ([link("a", "b"), link("b", "a"), entry("a/c", b"x")], "never end"),
        ([entry("a" * 256, b"x")], "255 bytes"),
        ([entry("a" * 256 + "/b", b"x")], "255 bytes"),
        ([entry("a/" * 2100 + "b", b"x")], "4096 bytes"),
        ([entry("a/" * 500 + "b", b"x")], "400 directories"),
        ([link("a", "b" * 5000)], "too long"),
        ([entry(".wh...")], "hides"),
        ([entry(".wh.")], "hides"),
        ([entry("", b"x")], "without a name"),
        ([entry("a", pax_headers={"uid": "4294967295"})], "owner"),
        ([entry("a", pax_headers={"SCHILY.xattr.user.a": "x" * 70_000})], "attribute"),
    ],
)
def test_hostile_layers_are_refused(store: Store, entries: list[Given], why: str) -> None:
    with pytest.raises(LayerError, match=why):
        read(store, *entries)


def test_absolute_names_are_inside(store: Store) -> None:
    root = read(store, entry("/etc/x", b"1"), hard("/etc/y", "/etc/x"), entry("//a//./b", b"2"))
    assert paths(root) == [b"/a", b"/a/b", b"/etc", b"/etc/x", b"/etc/y"]


def test_no_layer_says_what_overlays_and_security_modules_say(store: Store) -> None:
    given = ("trusted.overlay.redirect", "user.overlay.opaque", "security.selinux", "user.kept", "security.capability")
    records = {f"SCHILY.xattr.{name}": "/ab/cd" for name in given}
    root = read(store, entry("a", b"x", pax_headers=records), entry("b", type=tarfile.CHRTYPE, devmajor=0, devminor=0))
    node = tree.find(root, b"a")
    assert node is not None and set(node.xattrs or ()) == {b"user.kept", b"security.capability"}
    assert paths(root) == [b"/a"], "a device 0:0 would hide what is below"


def test_bombs_end_at_their_limits(store: Store, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="more than 2 entries"):
        read(store, entry("a"), entry("b"), entry("c"), entries=2)
    with pytest.raises(LayerError, match="more than 1000 bytes"):
        read(store, entry("a", b"x" * 600), entry("b", b"x" * 600), size=1000)
    assert Limits.of(1000).size == layer_delta.FREE_BYTES and Limits.of(1 << 30).size == 200 << 30
    os.truncate(os.open(tmp_path / "huge", os.O_CREAT | os.O_WRONLY), 1 << 40)
    data = subprocess.run(["tar", "-C", str(tmp_path), "-cS", "huge"], capture_output=True, check=True).stdout
    with pytest.raises(LayerError, match=f"more than {512 << 30} bytes"):
        read_layer([data], store.draft, Limits.of(len(data)))
    assert not list(Path(store.home, "tmp").glob("*/*"))


# Writing.


def test_zeros_are_no_bomb_for_they_take_no_disk(store: Store) -> None:
    def layer(size: int) -> Iterator[bytes]:
        info = tarfile.TarInfo("disk.img")
        info.size = size
        yield info.tobuf()
        for _ in range(size >> 20):
            yield bytes(1 << 20)
        yield bytes(1024)

    root = read_layer(layer(64 << 20), store.draft, Limits(size=1 << 20))
    node = tree.find(root, b"/disk.img")
    assert node is not None and node.size == 64 << 20 and os.stat(store.path(node.digest)).st_blocks < 64
    with pytest.raises(LayerError, match="more than"):
        read_layer(layer(64 << 20), store.draft, Limits(size=1 << 20, whole=32 << 20))


def test_a_layer_has_one_reader_at_a_time(tmp_path: Path) -> None:
    async def go() -> list[str]:
        seen: list[str] = []

        async def one(name: str, layer: str) -> None:
            async with oci._alone((str(tmp_path), layer)):
                seen.append(name)
                await asyncio.sleep(0.001)
                seen.append(name)

        tasks = [asyncio.ensure_future(one(name, layer)) for name, layer in (("a", "x"), ("b", "x"), ("c", "y"))]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, one("d", "x"), return_exceptions=True)
        assert not oci._turns
        return seen

    seen = asyncio.run(go())
    assert seen.index("c") < 2 and "b" not in seen and [one for one in seen if one in "ad"] == ["a", "a", "d", "d"]


def test_a_tree_written_and_read_again_is_the_same(store: Store) -> None:
    draft = store.draft()
    draft.write(b"content")
    data, size = draft.commit()
    file = Node(stat.S_IFREG | 0o4751, 70_000, 5_000_000, 1_700_000_000_123_456_789, size, data, link=1)
    file.xattrs = {b"user.a": b"b\0=\n", b"security.capability": bytes(range(20))}
    root = tree.directory(0o711, 1, 2, 3_000_000_001)
    for path, node in {
        b"a": file,
        b"z/b": file,
        b"z/" + b"n" * 255: Node(stat.S_IFREG | 0o600),
        b"z/l" + b"x" * 200: Node(stat.S_IFLNK | 0o777, data=b"t" * 300, size=300),
        b"dev/null": Node(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)),
        b"dev/disk": Node(stat.S_IFBLK | 0o660, rdev=os.makedev(259, 1000)),
        b"pipe": Node(stat.S_IFIFO | 0o600),
        b"sticky": tree.directory(0o1777),
        b"bytes-\xff\xfe": Node(stat.S_IFREG | 0o644, mtime=5),
    }.items():
        root = tree.put(root, path, node)
    raw = b"".join(layer_write.tar(root, lambda node: store.path(node.data)))
    assert raw == b"".join(layer_write.tar(tree.decode(tree.encode(root)), lambda node: store.path(node.data)))
    assert flatten([read_layer(pieces(raw), store.draft)]) == root
    with tarfile.open(fileobj=io.BytesIO(raw)) as theirs:
        assert theirs.getmember("a").mtime == pytest.approx(1_700_000_000.123456789)
        assert theirs.getmember("z/b").linkname == "a" and theirs.getmember("a").gid == 5_000_000
    assert subprocess.run(["tar", "-t"], input=raw, capture_output=True, check=True).stderr == b""


def test_lengths_of_pax_records_count_themselves() -> None:
    for size in (1, 5, 80, 90, 91, 92, 93, 94, 95, 990, 991, 992, 993, 994, 995, 9990):
        record = layer_write._record(b"k", b"v" * size)
        assert int(record.partition(b" ")[0]) == len(record)


def test_names_that_mean_something_else_in_layers_are_not_sent(store: Store) -> None:
    root = tree.put(tree.directory(), b"a/.wh.b", Node(stat.S_IFREG | 0o644))
    with pytest.raises(InvalidError, match=r"a/\.wh\.b"):
        list(layer_write.tar(root, lambda node: ""))


def test_gzip_is_the_same_every_time_and_for_every_reader() -> None:
    data = os.urandom(1000) * 9000
    packed = b"".join(layer_write.gzip(pieces(data, 100_000)))
    assert packed == b"".join(layer_write.gzip(pieces(data, 77_777)))
    assert gzip.decompress(packed) == data
    assert zlib.decompressobj(wbits=31).decompress(packed)


# Manifests.


def index(*platforms: str) -> Index:
    return Index(tuple(Descriptor("m", f"sha256:{number:064}", 1, one) for number, one in enumerate(platforms)))


def test_the_platform_is_chosen() -> None:
    many = index("linux/arm64/v8", "unknown/unknown", "linux/amd64", "linux/arm/v7", "linux/arm/v6")
    assert manifest.choose(many, "linux/amd64").platform == "linux/amd64"
    assert manifest.choose(many, "linux/arm64").platform == "linux/arm64/v8"
    assert manifest.choose(many, "linux/arm/v6").platform == "linux/arm/v6"
    with pytest.raises(
        ManifestError, match=r"linux/s390x; there are: linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64/v8"
    ):
        manifest.choose(many, "linux/s390x")
    with pytest.raises(ManifestError, match="none"):
        manifest.choose(index(), "linux/amd64")


def row(media_type: str = "application/vnd.oci.image.layer.v1.tar+gzip", **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": "sha256:" + "0" * 64, "size": 5, **more}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ([], "no JSON object"),
        ({"schemaVersion": 1}, "schema 1"),
        ({"schemaVersion": 3}, "not known"),
        ({"schemaVersion": 2}, "no container image"),
        ({"schemaVersion": 2, "config": row(), "layers": [row("application/vnd.cncf.helm.chart")]}, "another kind"),
        ({"schemaVersion": 2, "config": row(), "layers": [row("x.rootfs.foreign.diff.tar.gzip")]}, "Windows"),
        ({"schemaVersion": 2, "config": row(), "layers": [row(size=-1)]}, "size that cannot be"),
        ({"schemaVersion": 2, "config": row(), "layers": [row(size=1 << 60)]}, "size that cannot be"),
        ({"schemaVersion": 2, "config": row(), "layers": [row(digest="sha256:../../x")]}, "wrong digest"),
        ({"schemaVersion": 2, "config": row(), "layers": [row()] * 501}, "500 layers"),
        ({"schemaVersion": 2, "config": 5, "layers": []}, "cannot be read"),
    ],
)
def test_manifests_that_cannot_be_used(document: object, why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        manifest.read_manifest(json.dumps(document).encode(), manifest.OCI_MANIFEST)


def test_a_manifest_and_a_configuration_made_here_are_read_again() -> None:
    config = ImageConfig(
        env={"PATH": "/bin", "EMPTY": "", "E": "a=b"}, workdir="/w", entrypoint=("e", "x"), cmd=("c",), user="1:2",
        shell=("sh", "-c"), platform="linux/arm64/v8", labels={"a": "b"}, diff_ids=("sha256:" + "1" * 64,),
        history=("one", "two"),
    )  # fmt: skip
    raw = manifest.make_config(config, config.diff_ids, "2026-01-02T03:04:05Z")
    assert manifest.read_config(raw) == config
    empty = [one.get("empty_layer", False) for one in json.loads(raw)["history"]]
    assert empty.count(False) == len(config.diff_ids), "as many steps with a layer as there are layers"
    layer = Descriptor(f"{manifest.OCI_LAYER}+gzip", "sha256:" + "2" * 64, 9)
    about = Descriptor(manifest.OCI_CONFIG, "sha256:" + "3" * 64, 8)
    assert manifest.read_manifest(manifest.make_manifest(about, [layer]), "") == Manifest(about, (layer,))
    for wrong in (
        b"[]",
        b"{",
        b'{"config": 5}',
        b'{"rootfs": {"diff_ids": ["x"]}}',
        b'{"config": {"Env": ["A=\\u0000"]}}',
        b'{"config": {"User": "\\ud800"}}',
    ):
        with pytest.raises(ManifestError):
            manifest.read_config(wrong)
