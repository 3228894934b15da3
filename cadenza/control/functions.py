"""The functions that can be called, of all apps: declared ones, variants of them, and those pinned to a version.

The only writer of ``server_function`` and the only one that tells `cadenza.control.calls` of functions. Putting an
app's functions in force has four steps: `Functions.admit` says whether they may be, `Functions.plan` what changes,
`Functions.write` keeps it (in the caller's transaction), `Functions.apply` makes it true.
Source: semantics.md sections 12.2, 12.3 and 23.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any, Awaitable, Callable, Container, Iterable, List, Mapping, Sequence

import msgspec

from cadenza.base.clock import Clock
from cadenza.base.errors import ConflictError, Error, InvalidError, NotFoundError
from cadenza.base.ids import IdSource
from cadenza.control.calls import Calls
from cadenza.control.declared import check_functions, read_spec
from cadenza.control.variants import (
    MAX_VARIANTS,
    Bucket,
    Wish,
    callable_base,
    checked,
    derived,
    merged,
    normalised,
    read_wish,
    text_of,
    unscheduled,
)
from cadenza.observe.log import Log
from cadenza.protocol.deployments import ROLLING
from cadenza.protocol.objects import FunctionSpec, ImageSpec
from cadenza.storage.db import Database, Transaction

DECLARED, VARIANT, PINNED = "", "variant", "pinned"
REMOVED = "the function is not in the version of the app that is in force now"

_log = Log("cadenza.control.functions")
_encode = msgspec.json.Encoder().encode

KeepSecrets = Callable[[Sequence[FunctionSpec], str], Awaitable[Sequence[FunctionSpec]]]


async def keep_as_they_are(specs: Sequence[FunctionSpec], environment: str) -> Sequence[FunctionSpec]:
    """Where nobody seals secrets."""
    return specs


@dataclass(frozen=True)
class Place:
    """The app that a function belongs to, as far as functions need to know it."""

    app_id: str
    app_name: str
    environment: str
    ephemeral: bool


@dataclass(frozen=True)
class Function:
    """A function that can be called. ``version``: of the app, when its spec was put in force; of a pinned one, the
    version that it is pinned to."""

    function_id: str
    app_id: str
    name: str
    is_generator: bool
    spec: FunctionSpec
    kind: str = DECLARED
    base_id: str = ""
    """Of a variant, what it is a variant of; of a pinned one, the declared function of its name, if there is one."""
    wish: Wish = field(default_factory=Wish)
    version: int = 0
    created_at: float = 0.0
    created_by: str = ""


@dataclass
class Change:
    """What putting specs in force does to an app's functions."""

    layout: dict[str, str]
    """Name to id of the declared functions, from now on."""
    put: list[Function] = field(default_factory=list)
    """Declared functions and variants as they are from now on."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Id to the reason."""


def fits_anywhere(spec: FunctionSpec) -> str:
    """Where nobody knows of nodes."""
    return ""


def plan(
    specs: Sequence[FunctionSpec],
    present: Iterable[Function],
    new: Callable[[FunctionSpec], Function],
    version: int,
    refusal: Callable[[FunctionSpec], str] = fits_anywhere,
) -> Change:
    """What becomes of an app's functions when ``specs`` are in force. Pure but for ``new``, which makes a function, and
    ``refusal``, which says why no node can hold one.

    The same name keeps its id. What is not there any more goes; variants are derived anew, or go where their wish does
    not fit any more. What is pinned to a version stays.
    """
    there = list(present)
    declared = {one.name: one for one in there if one.kind == DECLARED}
    change = Change({})
    bases: dict[str, FunctionSpec] = {}
    for spec in specs:
        before = declared.get(spec.name)
        function = new(spec) if before is None else before
        function = replace(function, spec=spec, is_generator=spec.is_generator, version=version)
        change.layout[spec.name] = function.function_id
        change.put.append(function)
        bases[function.function_id] = spec
    for one in there:
        if one.kind == DECLARED and one.function_id not in bases:
            change.dropped[one.function_id] = REMOVED
    pinned = {one.function_id for one in there if one.kind == PINNED}
    for one in there:
        if one.kind != VARIANT or one.base_id in pinned:
            continue
        base = bases.get(one.base_id)
        if base is None:
            change.dropped[one.function_id] = REMOVED
            continue
        try:
            wish = checked(base, one.wish)
            spec = derived(base, wish)
            check_functions([spec])
            fault = refusal(spec)
        except InvalidError as error:
            fault = str(error)
        if fault:
            change.dropped[one.function_id] = f"{REMOVED}: {fault}"
            continue
        change.put.append(replace(one, spec=spec, wish=wish, is_generator=spec.is_generator, version=version))
    return change


def stripped(spec: FunctionSpec) -> FunctionSpec:
    """A spec as it is kept: its image is built, so what only a build needs is left out."""
    image = _stripped(spec.image)
    return spec if image is spec.image else replace(spec, image=image)


def _stripped(image: ImageSpec) -> ImageSpec:
    steps = []
    for one in image.steps:
        images = tuple(_stripped(below) for below in one.images)
        if one.secrets or one.secret_refs or one.force or any(new is not old for new, old in zip(images, one.images)):
            one = replace(one, secrets={}, secret_refs=(), force=False, images=images)
        steps.append(one)
    same = all(new is old for new, old in zip(steps, image.steps))
    return image if same else replace(image, steps=tuple(steps))


class Functions:
    """Every function that can be called, by id."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        ids: IdSource,
        calls: Calls,
        missing: Callable[[Sequence[str]], list[str]],
        images: Callable[[], Container[str]],
        refusal: Callable[[FunctionSpec], str],
        keep_secrets: KeepSecrets = keep_as_they_are,
    ) -> None:
        """``missing(digests)`` gives those that are not uploaded, in a thread; ``images()`` the ids of the images that
        are built; ``refusal(spec)`` why no node can ever hold a function's containers, or an empty string;
        ``keep_secrets(specs, environment)`` the specs with sealed secrets in place of values, in the same order, equal
        for equal values."""
        self._db = db
        self._clock = clock
        self._ids = ids
        self._calls = calls
        self._missing = missing
        self._images = images
        self._refusal = refusal
        self._keep_secrets = keep_secrets
        self._by_id: dict[str, Function] = {}
        self._of_app: dict[str, dict[str, Function]] = {}
        self._wishes: dict[tuple[str, str], str] = {}
        self._buckets: dict[str, Bucket] = {}

    # --- looking ---

    def __contains__(self, function_id: str) -> bool:
        return function_id in self._by_id

    def __iter__(self) -> Any:
        return iter(list(self._by_id.values()))

    def get(self, function_id: str) -> Function:
        """A function by id. NotFoundError."""
        found = self._by_id.get(function_id)
        if found is None:
            raise NotFoundError(f"there is no function {function_id}: its app has been stopped, or it was removed")
        return found

    def of_app(self, app_id: str) -> List[Function]:
        """All functions of an app: declared, variants, pinned."""
        return list(self._of_app.get(app_id, {}).values())

    def declared(self, app_id: str) -> List[Function]:
        """The functions that an app's program declares."""
        return [one for one in self.of_app(app_id) if one.kind == DECLARED]

    def layout(self, app_id: str) -> dict[str, str]:
        """Name to id of an app's declared functions."""
        return {one.name: one.function_id for one in self.declared(app_id)}

    def variants(self, function_id: str) -> List[Function]:
        """Variants of a function, what is pinned of it, and the variants of that."""
        there = [one for one in self.of_app(self.get(function_id).app_id) if one.base_id]
        near = {one.function_id for one in there if one.base_id == function_id}
        return [one for one in there if one.function_id in near or one.base_id in near]

    # --- putting in force ---

    async def admit(self, specs: Sequence[FunctionSpec], environment: str) -> tuple[FunctionSpec, ...]:
        """The specs as they are kept, if they may be put in force. Changes nothing but sealed secrets.

        InvalidError for what can never be run, ConflictError for files that are not uploaded and images not built.
        """
        check_functions(specs)
        await self.check_content(specs)
        for spec in specs:
            self._check_place(spec)
        return tuple(await self._keep_secrets([stripped(one) for one in specs], environment))

    async def still(self, specs: Sequence[FunctionSpec], environment: str, what: str) -> None:
        """Whether specs that were in force once may be so again. ConflictError says what is gone and what to do."""
        try:
            await self.check_content(specs)
            await self._keep_secrets(specs, environment)
        except (ConflictError, NotFoundError) as error:
            raise ConflictError(
                f"{what} cannot be put in force again, for something that it needs is gone: {error}. Deploy it "
                "from its program (for example from that commit), which brings all of it here again"
            ) from None
        for spec in specs:
            self._check_place(spec)

    async def check_content(self, specs: Sequence[FunctionSpec]) -> None:
        """ConflictError unless all files are uploaded and all images built."""
        needed = {one.digest for spec in specs for one in spec.files}
        needed.update(one.serialized for one in specs if one.serialized)
        missing = await asyncio.to_thread(self._missing, list(needed))
        if missing:
            raise ConflictError(
                f"{len(missing)} files of the app are not uploaded, the first is {missing[0]}: upload them first"
            )
        built = self._images()
        ids: dict[Any, str] = {}
        for spec in specs:
            key = id(spec.image)
            image_id = ids[key] = ids.get(key) or spec.image.image_id()
            if image_id not in built:
                raise ConflictError(f"the image of function {spec.name} is not built: build it first (image.build)")

    def _check_place(self, spec: FunctionSpec) -> None:
        refused = self._refusal(spec)
        if refused:
            raise InvalidError(f"{spec.name}: {refused}")

    def plan(self, app_id: str, specs: Sequence[FunctionSpec], version: int, by: str) -> Change:
        """`plan` for one app."""

        def new(spec: FunctionSpec) -> Function:
            return Function(
                self._ids.new("function"), app_id, spec.name, spec.is_generator, spec, created_at=self._clock.now(),
                created_by=by,
            )  # fmt: skip

        return plan(specs, self.of_app(app_id), new, version, self._refusal)

    def write(self, transaction: Transaction, change: Change) -> None:
        """Keep a change. In the database's thread: touches nothing else."""
        for function_id in change.dropped:
            transaction.execute("function_drop", (function_id,))
        for one in change.put:
            _put(transaction, one)

    def apply(self, place: Place, change: Change, *, strategy: str = ROLLING, renew: bool = False) -> None:
        """Make a kept change true: every input that has not begun goes to what is in force now."""
        for function_id, reason in change.dropped.items():
            self._forget(function_id)
            self._calls.remove_function(function_id, reason)
        for one in change.put:
            before = self._by_id.get(one.function_id)
            self._remember(one)
            self._tell(place, one, change.layout, strategy, renew)
            if before is not None and (before.version, before.spec) != (one.version, one.spec):
                self._calls.reset_scale(one.function_id)

    def _tell(
        self, place: Place, one: Function, layout: Mapping[str, str], strategy: str = ROLLING, renew: bool = False
    ) -> None:
        spec = callable_base(one.spec) if one.kind == DECLARED else one.spec
        self._calls.add_function(
            one.function_id, place.app_id, place.app_name, spec, layout, ephemeral=place.ephemeral,
            environment=place.environment, base_id=one.base_id, renew=renew, strategy=strategy,
        )  # fmt: skip

    def again(self, place: Place) -> None:
        """Try at once what failed to start, as after a deploy that changes something."""
        layout = self.layout(place.app_id)
        for one in self.of_app(place.app_id):
            if not self.pinned_to(one):
                self._tell(place, one, layout)

    def _remember(self, one: Function) -> None:
        before = self._by_id.get(one.function_id)
        if before is not None and before.kind == VARIANT:
            self._wishes.pop((before.base_id, text_of(before.wish)), None)
        self._by_id[one.function_id] = one
        self._of_app.setdefault(one.app_id, {})[one.function_id] = one
        if one.kind == VARIANT:
            self._wishes[one.base_id, text_of(one.wish)] = one.function_id

    def _forget(self, function_id: str) -> None:
        one = self._by_id.pop(function_id, None)
        if one is None:
            return
        self._of_app[one.app_id].pop(function_id, None)
        self._buckets.pop(function_id, None)
        if one.kind == VARIANT:
            self._wishes.pop((one.base_id, text_of(one.wish)), None)

    def end(self, app_id: str) -> None:
        """An app has ended; `cadenza.control.calls` is told by its owner."""
        for one in self.of_app(app_id):
            self._forget(one.function_id)
        self._of_app.pop(app_id, None)

    async def load(self, places: Mapping[str, Place]) -> dict[str, str]:
        """Go on with what was kept for these apps. Gives the apps whose functions cannot be read: id to reason."""
        await self._db.execute("function_forget")
        rows: dict[str, list[Any]] = {}
        for row in await self._db.fetch("function_all"):
            rows.setdefault(row[1], []).append(row)
        broken: dict[str, str] = {}
        for app_id, place in places.items():
            try:
                found = [_read(row) for row in rows.get(app_id, [])]
                for one in found:
                    self._remember(one)
                layouts = {0: self.layout(app_id)}
                for one in found:
                    if one.kind == PINNED:
                        layouts.setdefault(one.version, {})[one.name] = one.function_id
                for one in found:
                    self._tell(place, one, layouts[self.pinned_to(one)])
            except Error as error:
                _log.error("an app cannot go on", app=app_id, reason=str(error))
                broken[app_id] = str(error)
        return broken

    def pinned_to(self, one: Function) -> int:
        """The version to which a function is pinned; 0 for none."""
        if one.kind == PINNED:
            return one.version
        base = self._by_id.get(one.base_id) if one.kind == VARIANT else None
        return base.version if base is not None and base.kind == PINNED else 0

    # --- variants ---

    async def bind(self, place: Place, function_id: str, wish: Wish, by: str) -> Function:
        """The variant of a function that this wish means, made now if there is none. The caller holds the app's lock.

        InvalidError for a wish that can never be met, ResourceExhaustedError where too many are made.
        """
        asked = self.get(function_id)
        base = self.get(asked.base_id) if asked.kind == VARIANT else asked
        wish = normalised(base.spec, merged_with(asked, wish))
        if wish.patch.secrets:
            carrier = replace(base.spec, secrets=wish.patch.secrets)
            sealed = await self._keep_secrets([carrier], place.environment)
            wish = replace(wish, patch=replace(wish.patch, secrets=tuple(sealed[0].secrets)))
        if wish.empty:
            return base
        text = text_of(wish)
        known = self._wishes.get((base.function_id, text))
        if known is not None:
            return self._by_id[known]
        spec = derived(base.spec, wish)
        check_functions([spec])
        self._check_place(spec)
        bucket = self._buckets.setdefault(base.function_id, Bucket(at=self._clock.monotonic()))
        bucket.take(base.name, self._clock.monotonic())
        await self._make_room(base)
        made = Function(
            self._ids.new("function"), place.app_id, base.name, spec.is_generator, spec, VARIANT, base.function_id,
            wish, base.version, self._clock.now(), by,
        )  # fmt: skip
        await self._db.transaction(lambda transaction: _put(transaction, made))
        if base.function_id not in self._by_id:
            raise NotFoundError(f"{base.name} was removed meanwhile")
        self._remember(made)
        self._tell(place, made, self._layout_of(base))
        return made

    def _layout_of(self, base: Function) -> dict[str, str]:
        if base.kind != PINNED:
            return self.layout(base.app_id)
        return {
            one.name: one.function_id
            for one in self.of_app(base.app_id)
            if one.kind == PINNED and one.version == base.version
        }

    async def _make_room(self, base: Function) -> None:
        """Let the oldest variant go that nobody uses, if there are too many."""
        there = [one for one in self.of_app(base.app_id) if one.base_id == base.function_id and one.kind == VARIANT]
        if len(there) < MAX_VARIANTS:
            return
        for one in sorted(there, key=lambda one: one.created_at):
            stats = self._calls.stats(one.function_id)
            if not stats.backlog and not stats.num_total_runners:
                await self._db.execute("function_drop", (one.function_id,))
                self._forget(one.function_id)
                self._calls.remove_function(one.function_id, "the variant was not used and made room for another")
                return

    def pinned(self, app_id: str, version: int) -> dict[str, Function]:
        """The functions of an app that are pinned to a version, by name."""
        return {one.name: one for one in self.of_app(app_id) if one.kind == PINNED and one.version == version}

    async def pin(self, place: Place, version: int, specs: Sequence[FunctionSpec], by: str) -> dict[str, Function]:
        """Make the functions of a version callable beside those in force. The caller holds the app's lock."""
        layout = self.layout(place.app_id)
        made = []
        for spec in specs:
            spec = replace(spec, min_containers=0, options=unscheduled(spec.options))
            made.append(
                Function(
                    self._ids.new("function"), place.app_id, spec.name, spec.is_generator, spec, PINNED,
                    layout.get(spec.name, ""), Wish(), version, self._clock.now(), by,
                )
            )  # fmt: skip

        def write(transaction: Transaction) -> None:
            for one in made:
                _put(transaction, one)

        await self._db.transaction(write)
        pinned = {one.name: one.function_id for one in made}
        for one in made:
            self._remember(one)
            self._tell(place, one, pinned)
        return {one.name: one for one in made}


def merged_with(asked: Function, wish: Wish) -> Wish:
    """A wish for a function that may be a variant itself: what is changed there stays changed."""
    return merged(asked.wish, wish) if asked.kind == VARIANT else wish


def _put(transaction: Transaction, one: Function) -> None:
    spec = _encode(one.spec).decode()
    if one.kind == DECLARED:
        transaction.execute(
            "function_put", (one.function_id, one.app_id, one.name, spec, one.version, one.created_at, one.created_by)
        )
        return
    wish = text_of(one.wish) if one.kind == VARIANT else ""
    transaction.execute(
        "variant_put",
        (
            one.function_id, one.app_id, one.name, spec, one.kind, one.base_id, wish, one.version, one.created_at,
            one.created_by,
        ),
    )  # fmt: skip


def _read(row: Sequence[Any]) -> Function:
    function_id, app_id, name, raw, kind, base_id, wish, version, created_at, created_by = row
    spec = read_spec(name, raw)
    found = read_wish(wish) if kind == VARIANT else Wish()
    return Function(
        function_id, app_id, spec.name, spec.is_generator, spec, kind, base_id, found, version, created_at, created_by
    )
