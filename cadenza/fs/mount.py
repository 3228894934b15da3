"""Trees as directories that an overlay can be made of: each mounted once, however many containers have it.

In the mode ``erofs`` a tree's metadata is an EROFS image, made of the tree when it is first wanted and kept beside it;
``sparse`` and ``links`` are `cadenza.fs.sparse` and `cadenza.fs.links`. What is shown never changes, so that it may be
unmounted under a running container: its overlay holds what it was made of.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Collection, Iterable, Iterator, Mapping, Optional, Protocol, Sequence, Union

from cadenza.base.clock import Clock, SystemClock
from cadenza.fs import kernel, loop

if TYPE_CHECKING:
    from cadenza.fs.abilities import Abilities
    from cadenza.fs.tree import Node

KEPT = 256
"""Trees that stay mounted however long nobody wants them."""
IDLE_S = 600.0
"""Above `KEPT` those go that nobody wanted for so long."""
LOCKS = 64
"""Trees of equal numbers by their first byte are made one after the other."""


class Content(Protocol):
    """What is asked of a store (`cadenza.fs.store.Store`)."""

    home: str
    objects: str

    @property
    def tiers(self) -> object: ...
    def path(self, digest: bytes) -> str: ...
    def tree(self, digest: bytes) -> Node: ...
    def put_tree(self, root: Node) -> bytes: ...
    def fetch_all(self, nodes: Iterable[Node], at_once: int = 16) -> int: ...


@dataclass(frozen=True)
class Lowers:
    """What lies below a container's writable layer."""

    layers: tuple[str, ...]
    """Directories, topmost first."""
    data: tuple[str, ...] = ()
    """Directories in which files of the layers have their content, if they have it elsewhere; asked in this order."""

    @classmethod
    def of(cls, layers: Union[Lowers, Sequence[str]]) -> Lowers:
        """The same, also of plain directories."""
        return layers if isinstance(layers, Lowers) else cls(tuple(layers))

    def below(self, *layers: str) -> Lowers:
        """The same with more directories on top, the topmost first."""
        return Lowers((*layers, *self.layers), self.data)


def idle(used: Mapping[bytes, float], now: float, held: Collection[bytes] = ()) -> list[bytes]:
    """Which of the mounted trees go: ``used`` says when each was wanted last; those that are ``held`` stay. Pure."""
    surplus = len(used) - KEPT
    if surplus <= 0:
        return []
    oldest = sorted(used, key=lambda one: used[one])[:surplus]
    return [one for one in oldest if now - used[one] > IDLE_S and one not in held]


class Mounts:
    """The trees of one store that are shown on this machine. Methods block and may be called by any thread.

    ``lazy``: a directory that has all content that the store does not have yet (`cadenza.fs.lazy`); without one,
    whatever is shown is fetched whole first.
    """

    def __init__(self, store: Content, abilities: Abilities, lazy: str = "", clock: Optional[Clock] = None) -> None:
        self.abilities = abilities
        self.lazy = lazy
        self._store = store
        self._clock = clock or SystemClock()
        self._places = os.path.join(store.home, "mounts")
        self._images = os.path.join(store.home, "erofs")
        self._linked = os.path.join(store.home, "links")
        self._lock = threading.Lock()
        self._making = tuple(threading.Lock() for _ in range(LOCKS))
        self._used: dict[bytes, float] = {}
        self._held: Counter[bytes] = Counter()
        os.makedirs(self._images, exist_ok=True)
        os.makedirs(self._places, mode=0o755, exist_ok=True)
        self._clear()  # what a killed process left
        if os.path.isdir(self._linked):
            from cadenza.fs import links

            links.clear(self._linked)
        if abilities.mode != "links":
            # Mounts inside stay in this mount namespace: containers' ones would hold them after they are gone.
            kernel.mount(self._places, self._places, "none", kernel.MS_BIND)
            kernel.mount("none", self._places, "none", kernel.MS_PRIVATE)

    def show(self, tree: bytes, root: Optional[Node] = None) -> str:
        """The directory that shows a tree of the store, a delta as overlayfs wants it. ``root``: the tree, if known.

        NotFoundError: there is no such tree. OSError: it cannot be mounted, or the disk is full.
        """
        now = self._clock.monotonic()
        with self._turn(tree):
            with self._lock:
                known = tree in self._used
                if known:
                    self._used[tree] = now
            if not known:
                self._make(tree, root)
                with self._lock:
                    self._used[tree] = now
        with self._lock:
            going = idle(self._used, now, self._held)
        for one in going:
            self._hide(one)
        return self._place(tree)

    def lowers(self, trees: Sequence[bytes]) -> Lowers:
        """Trees of the store, topmost first, as an overlay wants them. NotFoundError, OSError as for `show`."""
        if len(trees) > 1 and self.abilities.mode == "sparse" and self.abilities.prefix == b"user":
            # Without root overlayfs follows names of content from the lowest layer only.
            trees = [self._flat(trees)]
        layers = tuple(self.show(one) for one in trees)
        if self.abilities.mode == "links":
            return Lowers(layers)
        return Lowers(layers, (self._store.objects, self.lazy) if self.lazy else (self._store.objects,))

    def _flat(self, trees: Sequence[bytes]) -> bytes:
        from cadenza.fs.tree import flatten

        return self._store.put_tree(flatten(self._store.tree(one) for one in reversed(trees)))

    @contextmanager
    def hold(self, trees: Sequence[bytes]) -> Iterator[None]:
        """While this is open these trees stay as `lowers` gave them, whatever is forgotten or doubted."""
        with self._lock:
            self._held.update(trees)
        try:
            yield
        finally:
            with self._lock:
                self._held -= Counter(trees)

    @property
    def held(self) -> set[bytes]:
        """The trees that somebody holds."""
        with self._lock:
            return set(self._held)

    def doubt(self, kept: Collection[bytes]) -> None:
        """Content was taken off this machine: without a lazy mount, trees but these are fetched whole again when they
        are wanted next."""
        if self.lazy or self.abilities.mode == "links":
            return  # it is fetched when it is opened; or each tree has its content itself
        with self._lock:
            known = list(self._used)
        for one in known:
            if one not in kept:
                self._hide(one)

    def forget(self, tree: bytes) -> None:
        """Unmount a tree, if it is and nobody holds it, and remove what was made of it.

        Containers that have it go on; but not in the mode ``links``, where nobody may have it.
        """
        self._hide(tree)
        if tree in self.held:
            return
        image = self._image(tree)
        for path in (image, image + ".sum"):
            if os.path.exists(path):
                os.unlink(path)
        if os.path.isdir(self._linked):
            from cadenza.fs import links

            links.remove(self._linked, tree.hex())

    def keep(self, trees: Collection[bytes]) -> None:
        """Forget all but these."""
        names = {one.hex() for one in trees}
        made = {name.partition(".")[0] for name in os.listdir(self._images)}
        with self._lock:
            made.update(one.hex() for one in self._used)
        if os.path.isdir(self._linked):
            from cadenza.fs import links

            made.update(links.made(self._linked))
        for name in made - names:
            try:
                tree = bytes.fromhex(name)
            except ValueError:
                continue
            self.forget(tree)

    def close(self) -> None:
        """Unmount all. Containers that run go on."""
        self._clear()
        with self._lock:
            self._used.clear()

    def _place(self, tree: bytes) -> str:
        return os.path.join(self._linked if self.abilities.mode == "links" else self._places, tree.hex())

    def _image(self, tree: bytes) -> str:
        return os.path.join(self._images, tree.hex() + ".erofs")

    def _clear(self) -> None:
        for point in kernel.below(self._places):
            kernel.umount(point)
        for name in os.listdir(self._places):
            os.rmdir(os.path.join(self._places, name))

    def _turn(self, tree: bytes) -> threading.Lock:
        return self._making[tree[0] % LOCKS]

    def _hide(self, tree: bytes) -> None:
        place = os.path.join(self._places, tree.hex())
        with self._turn(tree):
            with self._lock:
                if tree in self._held:
                    return
                self._used.pop(tree, None)
            if self.abilities.mode == "links":
                return
            kernel.umount(place)
            if os.path.isdir(place):
                os.rmdir(place)

    def _make(self, tree: bytes, root: Optional[Node]) -> None:
        place = self._place(tree)
        mode = self.abilities.mode
        if self._store.tiers and (mode == "links" or not self.lazy):
            from cadenza.fs.tree import files

            root = root or self._store.tree(tree)
            self._store.fetch_all(files(root))
        if mode == "links":
            from cadenza.fs import links

            links.make(
                root or self._store.tree(tree), self._linked, tree.hex(), self._store.path, self.abilities.prefix
            )
            return
        os.makedirs(place, mode=0o755, exist_ok=True)
        try:
            if mode == "sparse":
                from cadenza.fs import sparse

                sparse.mount(root or self._store.tree(tree), place, self.abilities.prefix)
            else:
                self._mount_image(tree, place, root)
        except BaseException:
            kernel.umount(place)
            os.rmdir(place)
            raise

    def _mount_image(self, tree: bytes, place: str, root: Optional[Node]) -> None:
        image = self._image(tree)
        if not _sound(image):
            from cadenza.fs import erofs

            erofs.write(root or self._store.tree(tree), image, prefix=self.abilities.prefix)
            _seal(image)
        flags = kernel.MS_RDONLY | kernel.MS_NODEV
        if self.abilities.erofs == "file":
            kernel.mount(image, place, "erofs", flags)
            return
        with loop.device(image) as device:
            kernel.mount(device, place, "erofs", flags)


def _digest(path: str) -> str:
    from blake3 import blake3

    with open(path, "rb") as file:
        return str(blake3(file.read()).hexdigest())


def _seal(image: str) -> None:
    """Note what an image is, so that one torn by a loss of power, or by a bad disk, is known."""
    with open(image + ".new", "w", encoding="ascii") as file:
        file.write(_digest(image))
    os.replace(image + ".new", image + ".sum")


def _sound(image: str) -> bool:
    """Whether there is an image as it was made. Reads all of it, once in a server's life: 5 ms for 100,000 files."""
    try:
        with open(image + ".sum", encoding="ascii") as file:
            return file.read() == _digest(image)
    except (OSError, ValueError):
        return False
