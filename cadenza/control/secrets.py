"""Secrets: sets of variables, sealed at rest, opened in memory when a container or a build needs them.

Nothing that is kept, listed or logged has a value in it. What a program declares inline (`Secret.from_dict`) becomes a
nameless secret whose id is an HMAC of its values: equal values in one environment have one id, so that an unchanged
deploy stays unchanged. `cadenza.storage.seal` is the cipher, `cadenza.storage.keyring` knows where the key is.
Source: semantics.md section 14.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import re
from dataclasses import replace
from typing import Any, Awaitable, Callable, Iterable, Mapping, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.config import Config
from cadenza.base.errors import (
    AlreadyExistsError,
    ConflictError,
    Error,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
)
from cadenza.base.ids import BODY_CHARS, IdSource, kind_of
from cadenza.control.access import Access
from cadenza.control.request import Caller, Request
from cadenza.control.sealed import (
    Stored,
    check_total,
    check_variables,
    id_of,
    info_of,
    missing,
    openable,
    text_of,
    with_keys,
)
from cadenza.observe.log import Log
from cadenza.protocol.method import READ, WRITE
from cadenza.protocol.methods import Empty
from cadenza.protocol.objects import FunctionSpec, ImageSpec, SecretRef
from cadenza.protocol.secrets import (
    SecretCreate,
    SecretDelete,
    SecretFind,
    SecretInfo,
    SecretList,
    SecretRekey,
    SecretRekeyed,
    Secrets as SecretsReply,
    SecretUpdate,
)
from cadenza.storage.db import Database, Transaction
from cadenza.storage.keyring import Keyring
from cadenza.storage.seal import Seal

KEY_FILE = "secrets.key"
KEPT_S = 3600.0
"""A nameless secret that nothing names is removed when nobody has declared it for so long."""
TOUCH_S = 600.0
"""How stale the time of a secret's last use or declaration may be."""
RETRY_S = 5.0
"""The key is looked for again at most so often while it cannot be had."""
NAMING = "naming"

_asking: contextvars.ContextVar[Optional[Caller]] = contextvars.ContextVar("cadenza_secrets_asking", default=None)
"""Who sent the declaration that is being kept."""
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")
_log = Log("cadenza.control.secrets")


class Secrets:
    """Every secret of this control plane, and the handlers of ``secret.*``. The only writer of their tables, but for
    the end and the renaming of an environment."""

    def __init__(self, config: Config, db: Database, clock: Clock, ids: IdSource, access: Access) -> None:
        self._ring = Keyring(os.path.join(config.config_dir, KEY_FILE), config.secrets_key_command)
        self._db = db
        self._clock = clock
        self._ids = ids
        self._access = access
        self._rows: dict[str, Stored] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._opened: dict[str, dict[str, str]] = {}
        self._naming: Optional[tuple[str, bytes]] = None
        """The key id and the sealed naming key, as the database has them."""
        self._naming_key = b""
        self._seal: Optional[Seal] = None
        self._fault: Error = ConflictError("the key of the secrets is being looked for: try again")
        self._looked_at = -RETRY_S
        self._looking: Optional[asyncio.Task[None]] = None
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Load what is kept. Without its key the server works, and what needs a secret fails with a sentence."""
        for row in await self._db.fetch("secret_all"):
            self._put(Stored(row[0], row[1], row[2], tuple(json.loads(row[3])), *row[4:]))
        for _, key_id, sealed in await self._db.fetch("secret_naming"):
            self._naming = (key_id, sealed)
        if self._naming is not None:
            await self._look()

    # --- the key ---

    async def _look(self) -> None:
        """Have the key, or know why not."""
        self._looked_at = self._clock.monotonic()
        try:
            await self._unlock()
        except Error as error:
            self._fault = error
            _log.error("what is sealed cannot be opened", reason=str(error))

    def _look_again(self) -> None:
        if self._looking is not None and not self._looking.done():
            return
        if self._clock.monotonic() - self._looked_at >= RETRY_S:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _unlock(self) -> Seal:
        """The key in force; made now if there never was one. ConflictError and InvalidError as `Keyring.open`."""
        if self._seal is not None:
            return self._seal
        async with self._changing:
            return await self._unlocked()

    async def _unlocked(self) -> Seal:
        """As `_unlock`, within ``_changing``."""
        if self._seal is not None:
            return self._seal
        known = self._naming[0] if self._naming is not None else ""
        seal = await asyncio.to_thread(self._ring.open, known)
        if self._naming is None:
            await self._name_by(seal, os.urandom(32))
        else:
            self._naming_key = seal.open(NAMING, self._naming[1])
        self._seal = seal
        return seal

    async def _name_by(self, seal: Seal, key: bytes) -> None:
        sealed = seal.seal(NAMING, key)
        await self._db.execute("secret_naming_put", (NAMING, seal.key_id, sealed))
        self._naming, self._naming_key = (seal.key_id, sealed), key

    # --- for the rest of the control plane ---

    async def keep(
        self, specs: Sequence[FunctionSpec], environment: str, caller: Optional[Caller] = None
    ) -> tuple[FunctionSpec, ...]:
        """The specs with no value in them: inline secrets sealed, names replaced by ids.

        NotFoundError for a secret that is not there, InvalidError for bad variables or too many, PermissionDeniedError
        for one in an environment that ``caller`` may not look into (None: the one whose request it is, see `asked`;
        without one, any but ``environment``). Keeping what was kept changes nothing, so that an unchanged declaration
        stays one.
        """
        kept = []
        for spec in specs:
            if spec.secrets:
                spec = replace(spec, secrets=await self.refs(spec.secrets, environment, caller))
                self.check_size(spec)
            kept.append(spec)
        return tuple(kept)

    async def refs(
        self, refs: Iterable[SecretRef], environment: str, caller: Optional[Caller] = None
    ) -> tuple[SecretRef, ...]:
        """References with no value in them, each to a secret that is there; as `keep`."""
        found = []
        for ref in refs:
            if ref.secret_id:
                row = self._rows.get(ref.secret_id)
                if row is None or (row.environment != environment and not row.name):
                    raise missing(ref.secret_id, ref.name)
                found.append(SecretRef(secret_id=row.secret_id, keys=() if row.name else row.variables, name=row.name))
            elif ref.name:
                where = ref.environment or environment
                if where != environment:
                    caller = caller or _asking.get()
                    if caller is None:
                        raise PermissionDeniedError(f"the secret {ref.name!r} is in another environment, {where!r}")
                    self._access.check(caller, where, READ)
                row = self._find(ref.name, where, ref.required)
                found.append(SecretRef(secret_id=row.secret_id, name=row.name))
            elif ref.values:
                found.append(await self._keep_values(ref.values, environment))
        return tuple(found)

    async def _keep_values(self, values: Mapping[str, str], environment: str) -> SecretRef:
        check_variables(values, "a secret of the function")
        await self._unlock()
        text = text_of(values)
        secret_id = id_of(self._naming_key, environment, text)
        row, now = self._rows.get(secret_id), self._clock.now()
        if row is None:
            async with self._changing:
                seal = await self._unlocked()
                row = Stored(
                    secret_id, environment, "", tuple(sorted(values)), seal.key_id,
                    seal.seal(secret_id, text.encode()), now, now,
                )  # fmt: skip
                await self._db.execute("secret_put", row.row())
                self._put(row)
        elif now - row.updated_at > TOUCH_S:
            self._rows[secret_id] = replace(row, updated_at=now)
            await self._db.execute("secret_touched", (now, secret_id))
        return SecretRef(secret_id=secret_id, keys=tuple(sorted(values)))

    def variables(self, spec: FunctionSpec, environment: str = "") -> dict[str, str]:
        """What a function's containers see: its secrets in order, over them its ``env=``. At once, from memory.

        NotFoundError when a secret was removed, ConflictError when the key is not there: the container cannot start.
        """
        found: dict[str, str] = {}
        for ref in spec.secrets:
            found.update(self._values(ref))
        found.update(spec.env)
        check_total(found, spec.name)
        return found

    def check_size(self, spec: FunctionSpec) -> None:
        """InvalidError when the variables of a function are too many to give them to a container. Without the key:
        nothing, `variables` says it."""
        if self._seal is not None:
            self.variables(spec)

    async def filled(self, image: ImageSpec, wanted: str, caller: Caller) -> ImageSpec:
        """An image's recipe for the one who builds it, with the values of its steps' stored secrets, and of those of
        the images that they read.

        Errors as `keep`.
        """
        if not any(step.secret_refs for step in image.all_steps()):
            return image
        environment = self._access.environment(caller, wanted, READ)
        await self._unlock()
        return await self._filled(image, environment, caller)

    async def _filled(self, image: ImageSpec, environment: str, caller: Caller) -> ImageSpec:
        steps = []
        for step in image.steps:
            values = await self._values_of(step.secret_refs, environment, caller)
            images = tuple([await self._filled(one, environment, caller) for one in step.images])
            steps.append(replace(step, secrets={**values, **step.secrets}, secret_refs=(), images=images))
        return replace(image, steps=tuple(steps))

    async def values(self, refs: Iterable[SecretRef], wanted: str, caller: Caller) -> dict[str, str]:
        """The variables of secrets, for something that the caller asks the server to do with them. Errors as `keep`."""
        if not (refs := tuple(refs)):
            return {}
        environment = self._access.environment(caller, wanted, READ)
        await self._unlock()
        return await self._values_of(refs, environment, caller)

    async def _values_of(self, refs: Iterable[SecretRef], environment: str, caller: Caller) -> dict[str, str]:
        values: dict[str, str] = {}
        for ref in refs:
            known = ref if ref.values else (await self.refs([ref], environment, caller))[0]
            values.update(self._values(known))
        return values

    async def sweep(self, named: set[str]) -> int:
        """Remove nameless secrets that ``named`` does not hold and that nobody has declared for `KEPT_S`. How many."""
        oldest = self._clock.now() - KEPT_S
        async with self._changing:
            gone = [
                one.secret_id
                for one in self._rows.values()
                if not one.name and one.secret_id not in named and one.updated_at < oldest
            ]
            for secret_id in gone:  # before anything is waited for: who declares one of them now keeps it anew
                self._forget(secret_id)

            def write(transaction: Transaction) -> None:
                for secret_id in gone:
                    transaction.execute("secret_drop", (secret_id,))

            await self._db.transaction(write)
        return len(gone)

    async def environment_deleted(self, environment: str) -> None:
        """An environment is gone with its secrets; one that was being made meanwhile goes too."""
        async with self._changing:
            for row in [one for one in self._rows.values() if one.environment == environment]:
                self._forget(row.secret_id)
            await self._db.execute("environment_secrets_drop", (environment,))

    async def environment_renamed(self, old: str, new: str) -> None:
        """The secrets of ``old`` are those of ``new``, also one that was being made meanwhile; what is sealed stays."""
        async with self._changing:
            for row in [one for one in self._rows.values() if one.environment == old]:
                self._forget(row.secret_id)
                self._put(replace(row, environment=new))
            await self._db.execute("environment_secrets_move", (new, old))

    # --- rows ---

    def _put(self, row: Stored) -> None:
        self._rows[row.secret_id] = row
        self._opened.pop(row.secret_id, None)
        if row.name:
            self._names[row.environment, row.name] = row.secret_id

    def _forget(self, secret_id: str) -> None:
        row = self._rows.pop(secret_id)
        self._opened.pop(secret_id, None)
        self._names.pop((row.environment, row.name), None)

    def _values(self, ref: SecretRef) -> dict[str, str]:
        if not ref.secret_id:
            return ref.values
        row = self._rows.get(ref.secret_id)
        if row is None:
            raise missing(ref.secret_id, ref.name)
        found = self._opened.get(ref.secret_id)
        if found is None:
            if self._seal is None:
                self._look_again()
                raise self._fault
            found = self._opened[ref.secret_id] = json.loads(self._seal.open(row.secret_id, row.sealed))
        now = self._clock.now()
        if now - row.used_at > TOUCH_S:
            self._rows[row.secret_id] = replace(row, used_at=now)
            noted = self._db.submit(lambda transaction: transaction.execute("secret_used", (now, row.secret_id)))
            noted.add_done_callback(lambda done: done.cancelled() or done.exception())  # it is only for people
        return found

    def _find(self, name: str, environment: str, required: Iterable[str] = ()) -> Stored:
        secret_id = self._names.get((environment, name))
        if secret_id is None:
            raise NotFoundError(
                f"there is no secret {name[:80]!r} in the environment {environment!r}: make it with "
                f"`cadenza secret create {name[:80]} KEY=VALUE`, or see `cadenza secret list`"
            )
        return with_keys(self._rows[secret_id], required)

    async def _write(self, row: Stored, values: Mapping[str, str]) -> Stored:
        """Seal the values and keep the row. Within ``_changing``."""
        seal = await self._unlocked()
        text = text_of(values)
        row = replace(
            row, variables=tuple(sorted(values)), key_id=seal.key_id, sealed=seal.seal(row.secret_id, text.encode()),
            updated_at=self._clock.now(),
        )  # fmt: skip
        await self._db.execute("secret_put", row.row())
        self._put(row)
        return row

    # --- methods ---

    async def create(self, request: Request[SecretCreate]) -> SecretInfo:
        body = request.body
        if not _NAME.match(body.name) or (kind_of(body.name) == "app" and len(body.name) == 3 + BODY_CHARS):
            raise InvalidError(
                f"a secret's name has 1 to 64 letters, digits, '-', '_' and '.', and does not look like an app's id; "
                f"{body.name[:80]!r} cannot be one"
            )
        check_variables(body.values, f"the secret {body.name}")
        async with self._changing:
            environment = self._access.environment(request.caller, body.environment, WRITE)
            before = self._rows.get(self._names.get((environment, body.name), ""))
            if before is not None and body.allow_existing and not body.overwrite:
                return info_of(before)
            if before is not None and not body.overwrite:
                raise AlreadyExistsError(
                    f"there is a secret {body.name!r} in the environment {environment!r} already: use --force to "
                    "replace all its variables, or Secret.update to change some"
                )
            now = self._clock.now()
            row = before or Stored(
                self._ids.new("secret"), environment, body.name, (), "", b"", now, now, 0.0, self._who(request.caller)
            )
            return info_of(await self._write(row, body.values))

    async def find(self, request: Request[SecretFind]) -> SecretInfo:
        body = request.body
        if not body.secret_id:
            environment = self._access.environment(request.caller, body.environment, READ)
            return info_of(self._find(body.name, environment, body.required_keys))
        return info_of(with_keys(self._by_id(request.caller, body.secret_id, READ), body.required_keys))

    async def update(self, request: Request[SecretUpdate]) -> SecretInfo:
        body = request.body
        async with self._changing:
            row = self._by_id(request.caller, body.secret_id, WRITE)
            seal = await self._unlocked()
            values = json.loads(seal.open(row.secret_id, row.sealed))
            for key, value in body.values.items():
                values.pop(key, None)
                if value is not None:
                    values[key] = value
            check_variables(values, f"the secret {row.name}")
            return info_of(await self._write(row, values))

    async def delete(self, request: Request[SecretDelete]) -> Empty:
        body = request.body
        environment = self._access.environment(request.caller, body.environment, WRITE)
        async with self._changing:
            if body.allow_missing and (environment, body.name) not in self._names:
                return Empty()
            row = self._find(body.name, environment)
            await self._db.execute("secret_drop", (row.secret_id,))
            self._forget(row.secret_id)
        return Empty()

    async def list(self, request: Request[SecretList]) -> SecretsReply:
        body = request.body
        environment = self._access.environment(request.caller, body.environment, READ)
        rows = [
            one
            for one in self._rows.values()
            if one.name
            and one.environment == environment
            and (not body.created_before or one.created_at < body.created_before)
        ]
        rows.sort(key=lambda one: (-one.created_at, one.name))
        return SecretsReply(tuple(info_of(one) for one in (rows[: body.limit] if body.limit > 0 else rows)))

    async def rekey(self, request: Request[SecretRekey]) -> SecretRekeyed:
        """Every secret under a new key, in one transaction; see `Keyring`."""
        async with self._changing:
            known = self._naming[0] if self._naming is not None else ""
            old = await asyncio.to_thread(self._ring.old)
            if self._seal is not None:
                old[self._seal.key_id] = self._seal
            rows, lost = openable(self._rows.values(), old)
            if lost and not request.body.discard:
                raise ConflictError(
                    f"no key that is here opens {len(lost)} of the secrets (they are sealed under {lost[0].key_id}): "
                    f"put that key back, see docs/operate/secrets.md, or give --discard to let go of them: "
                    + ", ".join(sorted(one.name or one.secret_id for one in lost)[:20])
                )
            naming = os.urandom(32)
            if self._naming is not None and known in old:
                naming = old[known].open(NAMING, self._naming[1])
            seal = await asyncio.to_thread(self._ring.renew, known)
            new = [
                replace(row, key_id=seal.key_id, sealed=seal.seal(row.secret_id, text.encode())) for row, text in rows
            ]
            sealed = seal.seal(NAMING, naming)

            def write(transaction: Transaction) -> None:
                for row in new:
                    transaction.execute("secret_put", row.row())
                for row in lost:
                    transaction.execute("secret_drop", (row.secret_id,))
                transaction.execute("secret_naming_put", (NAMING, seal.key_id, sealed))

            await self._db.transaction(write)
            self._seal, self._naming, self._naming_key = seal, (seal.key_id, sealed), naming
            for row in lost:
                self._forget(row.secret_id)
            for row in new:
                self._rows[row.secret_id] = row
            await asyncio.to_thread(self._ring.settle)
            _log.info("sealed anew", count=len(new), key_id=seal.key_id)
            return SecretRekeyed(len(new), tuple(sorted(one.name or one.secret_id for one in lost)), seal.key_id)

    def _by_id(self, caller: Caller, secret_id: str, needs: str) -> Stored:
        row = self._rows.get(secret_id)
        if row is None or not row.name:
            raise NotFoundError(f"there is no secret {secret_id[:80]}: it was removed, or it never was")
        self._access.check(caller, row.environment, needs)
        return row

    def _who(self, caller: Caller) -> str:
        return caller.container_id or self._access.standing(caller).user.name


def asked(handler: Callable[[Request[Any]], Awaitable[Any]]) -> Callable[[Request[Any]], Awaitable[Any]]:
    """A handler during which `Secrets.keep` knows the caller."""

    async def asking(request: Request[Any]) -> Any:
        _asking.set(request.caller)  # each request has a task, and so a context, of its own
        return await handler(request)

    return asking


def named(specs: Iterable[FunctionSpec]) -> set[str]:
    """The ids of all secrets that functions name."""
    return {ref.secret_id for spec in specs for ref in spec.secrets}


def handlers(secrets: Secrets) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "secret.create": secrets.create,
        "secret.find": secrets.find,
        "secret.update": secrets.update,
        "secret.delete": secrets.delete,
        "secret.list": secrets.list,
        "secret.rekey": secrets.rekey,
    }
