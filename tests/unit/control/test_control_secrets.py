"""Secrets in the control plane: what is kept, what is shown, who sees which values, and what a lost key does."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Awaitable, Callable, Optional

import pytest

from cadenza.base.clock import ManualClock
from cadenza.base.config import Config
from cadenza.base.errors import (
    AlreadyExistsError,
    ConflictError,
    Error,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
)
from cadenza.base.ids import IdSource
from cadenza.control.access import MAIN, Access
from cadenza.control.directory import Environment
from cadenza.control.functions import stripped
from cadenza.control.request import Caller, Request
from cadenza.control.sealed import MAX_VARIABLES_BYTES
from cadenza.control.secrets import KEPT_S, Secrets
from cadenza.protocol.objects import FunctionSpec, ImageSpec, ImageStep, SecretRef, to_json
from cadenza.protocol.secrets import SecretCreate, SecretDelete, SecretFind, SecretList, SecretRekey, SecretUpdate
from cadenza.storage.db import Database
from cadenza.storage.seal import write_key_file

MARKER = "hunter2-correct-horse"
USER = Caller("co-1")


class Home:
    """A directory of a server's, where control planes come and go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = Config(config_dir=str(path / "config"))
        self.clock = ManualClock()
        self.access = Access(lambda container_id: MAIN)
        self.access.directory.environments["dev"] = Environment("en-dev", "dev", 0.0)

    @property
    def key(self) -> Path:
        return self.path / "config/secrets.key"

    def run(self, work: Callable[[Secrets], Awaitable[Any]]) -> Any:
        """A life of a control plane."""

        async def life() -> Any:
            db = await Database.open(str(self.path / "cadenza.db"))
            try:
                secrets = Secrets(self.config, db, self.clock, IdSource(), self.access)
                await secrets.start()
                return await work(secrets)
            finally:
                await db.close()

        return asyncio.run(life())

    def on_disk(self) -> bytes:
        return b"".join(one.read_bytes() for one in self.path.rglob("*") if one.is_file())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def ask(body: Any, caller: Caller = USER) -> Request[Any]:
    return Request(1, body, b"", caller, None)  # type: ignore[arg-type]


def function(*secrets: SecretRef, **more: Any) -> FunctionSpec:
    return FunctionSpec("f", "m", "f", secrets=secrets, **more)


async def create(secrets: Secrets, name: str = "db", environment: str = "", **values: str) -> str:
    made = await secrets.create(ask(SecretCreate(name, values or {"A": MARKER}, environment)))
    return made.secret_id


def inline(**values: str) -> SecretRef:
    return SecretRef(values=values)


def test_no_value_is_on_the_disk(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        await create(secrets)
        kept = await secrets.keep([function(inline(B=MARKER), SecretRef(name="db"))], MAIN)
        assert MARKER not in to_json(kept[0]) + repr(secrets.__dict__["_rows"])
        assert secrets.variables(kept[0]) == {"A": MARKER, "B": MARKER}

    home.run(work)
    assert MARKER.encode() not in home.on_disk()
    assert base64.b64encode(MARKER.encode())[:16] not in home.on_disk()


def test_what_is_kept_is_the_same_in_the_next_life(home: Home) -> None:
    declared = [function(inline(B="1"), SecretRef(name="db", required=("A",)))]

    async def first(secrets: Secrets) -> Any:
        await create(secrets)
        return await secrets.keep(declared, MAIN)

    async def second(secrets: Secrets) -> Any:
        assert secrets.variables(kept[0]) == {"A": MARKER, "B": "1"}
        return await secrets.keep(declared, MAIN), await secrets.keep(kept, MAIN)

    kept = home.run(first)
    assert home.run(second) == (kept, kept)


def test_equal_values_have_one_id_in_one_environment(home: Home) -> None:
    """An unchanged deploy stays unchanged; nobody learns from ids that two environments share a value."""

    async def work(secrets: Secrets) -> None:
        async def id_of(environment: str, **values: str) -> str:
            return (await secrets.refs([inline(**values)], environment))[0].secret_id

        one = await id_of(MAIN, A="1", B="2")
        assert one.startswith("st-") and len(one) == 25
        assert await id_of(MAIN, B="2", A="1") == one
        assert len({one, await id_of("dev", A="1", B="2"), await id_of(MAIN, A="1"), await id_of(MAIN, A="12")}) == 4

    home.run(work)


def test_the_later_wins_and_env_is_on_top(home: Home) -> None:
    """Semantics 33 (28): `env={}` beats secrets, later secrets beat earlier ones, app-level secrets are first."""

    async def work(secrets: Secrets) -> None:
        await create(secrets, "db", A="stored", B="stored", C="stored")
        spec = function(inline(A="app", Z="app"), SecretRef(name="db"), inline(C="own"), env={"B": "env"})
        (kept,) = await secrets.keep([spec], MAIN)
        assert secrets.variables(kept) == {"A": "stored", "B": "env", "C": "own", "Z": "app"}

    home.run(work)


def test_a_missing_name_and_a_missing_key_are_said_at_publishing(home: Home) -> None:
    """Semantics 33 (26) and 14: the error comes when the secret is first used, and names what lacks."""

    async def work(secrets: Secrets) -> None:
        await create(secrets)
        with pytest.raises(NotFoundError, match="cadenza secret create nothing"):
            await secrets.keep([function(SecretRef(name="nothing"))], MAIN)
        with pytest.raises(InvalidError, match="lacks B, C: it has A"):
            await secrets.keep([function(SecretRef(name="db", required=("A", "B", "C")))], MAIN)
        with pytest.raises(NotFoundError, match="removed"):
            await secrets.keep([function(SecretRef(secret_id="st-" + "x" * 22))], MAIN)

    home.run(work)


def test_environments_are_apart(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        await create(secrets, environment="dev", A="dev")
        with pytest.raises(NotFoundError):
            await secrets.keep([function(SecretRef(name="db"))], MAIN)
        reaching = [function(SecretRef(name="db", environment="dev"))]
        (kept,) = await secrets.keep(reaching, MAIN, USER)
        assert secrets.variables(kept) == {"A": "dev"}
        for caller in (None, Caller("co-2", "ta-1")):  # a container of main
            with pytest.raises(PermissionDeniedError):
                await secrets.keep(reaching, MAIN, caller)
        with pytest.raises(NotFoundError, match="environment"):
            await create(secrets, environment="nowhere")
        (nameless,) = await secrets.refs([inline(A="1")], "dev")
        with pytest.raises(NotFoundError):
            await secrets.refs([nameless], MAIN)

    home.run(work)


def test_a_container_sees_its_own_environment_and_no_values(home: Home) -> None:
    inside = Caller("co-2", "ta-1")

    async def work(secrets: Secrets) -> None:
        await create(secrets)
        secret_id = await create(secrets, environment="dev", A="dev")
        found = await secrets.find(ask(SecretFind("db"), inside))
        assert (found.environment, found.keys) == (MAIN, ("A",))
        assert MARKER not in repr(found)
        for body in (SecretFind("db", "dev"), SecretFind(secret_id=secret_id)):
            with pytest.raises(PermissionDeniedError):
                await secrets.find(ask(body, inside))
        with pytest.raises(PermissionDeniedError):
            await secrets.update(ask(SecretUpdate(secret_id, {"A": "x"}), inside))
        with pytest.raises(PermissionDeniedError):
            await secrets.delete(ask(SecretDelete("db", "dev"), inside))

    home.run(work)


def test_creating_twice(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        secret_id = await create(secrets, A="1", B="1")
        with pytest.raises(AlreadyExistsError, match="--force"):
            await create(secrets, A="2")
        kept = await secrets.create(ask(SecretCreate("db", {"A": "2"}, allow_existing=True)))
        assert (kept.secret_id, kept.keys) == (secret_id, ("A", "B"))
        forced = await secrets.create(ask(SecretCreate("db", {"A": "3"}, overwrite=True)))
        assert (forced.secret_id, forced.keys) == (secret_id, ("A",))
        assert secrets.variables(function(SecretRef(secret_id=secret_id))) == {"A": "3"}

    home.run(work)


def test_two_creations_at_once_make_one_secret(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        done = await asyncio.gather(*(create(secrets, A=str(one)) for one in range(5)), return_exceptions=True)
        assert sum(isinstance(one, str) for one in done) == 1
        assert sum(isinstance(one, AlreadyExistsError) for one in done) == 4

    home.run(work)


def test_update_changes_single_variables(home: Home) -> None:
    """Semantics 14: changes reach only new containers."""

    async def work(secrets: Secrets) -> None:
        secret_id = await create(secrets, A="1", B="1")
        spec = function(SecretRef(secret_id=secret_id))
        before = secrets.variables(spec)
        info = await secrets.update(ask(SecretUpdate(secret_id, {"A": None, "C": "3", "D": None})))
        assert info.keys == ("B", "C")
        assert (before, secrets.variables(spec)) == ({"A": "1", "B": "1"}, {"B": "1", "C": "3"})
        with pytest.raises(InvalidError, match="1A"):
            await secrets.update(ask(SecretUpdate(secret_id, {"1A": "x"})))
        with pytest.raises(NotFoundError):
            await secrets.update(ask(SecretUpdate("st-" + "x" * 22, {"A": "x"})))

    home.run(work)


def test_a_secret_removed_while_in_use(home: Home) -> None:
    """The next start fails with a sentence; a new one of the same name takes a new deploy."""

    async def work(secrets: Secrets) -> None:
        await create(secrets)
        (kept,) = await secrets.keep([function(SecretRef(name="db"))], MAIN)
        await secrets.delete(ask(SecretDelete("db")))
        with pytest.raises(NotFoundError, match=r"the secret 'db' .* was removed.*deploy"):
            secrets.variables(kept)
        with pytest.raises(NotFoundError):
            await secrets.delete(ask(SecretDelete("db")))
        await secrets.delete(ask(SecretDelete("db", allow_missing=True)))
        await create(secrets, A="again")
        with pytest.raises(NotFoundError):
            secrets.variables(kept)
        (kept,) = await secrets.keep([function(SecretRef(name="db"))], MAIN)
        assert secrets.variables(kept) == {"A": "again"}

    home.run(work)


def test_lists_are_newest_first_and_of_one_environment(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        for name in ("one", "two", "three"):
            home.clock.advance(10)
            await create(secrets, name, A="1")
        await create(secrets, "other", "dev")
        await secrets.refs([inline(A="nameless")], MAIN)

        async def names(**more: Any) -> list[str]:
            return [one.name for one in (await secrets.list(ask(SecretList(**more)))).secrets]

        assert await names() == ["three", "two", "one"]
        assert await names(limit=2) == ["three", "two"]
        assert await names(created_before=home.clock.now()) == ["two", "one"]
        assert await names(environment="dev") == ["other"]
        assert (await secrets.list(ask(SecretList()))).secrets[0].created_by

    home.run(work)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ä", "a\n", "ap-" + "a" * 22])
def test_names_that_cannot_be(home: Home, name: str) -> None:
    async def work(secrets: Secrets) -> None:
        with pytest.raises(InvalidError, match="name"):
            await create(secrets, name)
        await create(secrets, "x" * 64)

    home.run(work)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"1A": MARKER}, "no name"),
        ({"A-B": MARKER}, "no name"),
        ({"": MARKER}, "no name"),
        ({"Ä": MARKER}, "no name"),
        ({"A" * 16_385: MARKER}, "16,384"),
        ({"A": MARKER + "x" * 32_768}, "32,768"),
        ({"A": MARKER + "\0"}, "NUL"),
        ({"A": MARKER + "\ud800"}, "Unicode"),
        ({f"A{number}": MARKER + "x" * 32_000 for number in range(21)}, "KiB together"),
    ],
)
def test_variables_that_cannot_be(home: Home, values: dict[str, str], fault: str) -> None:
    """Semantics 14 and 30: the limits and one past them. No value is in an error."""

    async def work(secrets: Secrets) -> None:
        for attempt in (
            secrets.create(ask(SecretCreate("db", values))),
            secrets.keep([function(inline(**values))], MAIN),
        ):
            with pytest.raises(InvalidError, match=fault) as raised:
                await attempt
            assert MARKER not in str(raised.value)

    home.run(work)


def test_the_limits_themselves_are_allowed(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        (ref,) = await secrets.refs([inline(**{"A" * 16_384: "ä" * 32_768, "E": ""})], MAIN)
        assert secrets.variables(function(ref)) == {"A" * 16_384: "ä" * 32_768, "E": ""}

    home.run(work)


def test_all_secrets_of_a_function_together_have_a_limit(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        parts = [inline(**{f"A{number}_{k}": "x" * 32_000 for k in range(10)}) for number in range(3)]
        with pytest.raises(InvalidError, match=f"{MAX_VARIABLES_BYTES >> 10} KiB"):
            await secrets.keep([function(*parts)], MAIN)
        await secrets.keep([function(*parts[:2])], MAIN)

    home.run(work)


def test_build_steps_get_values_and_kept_functions_none(home: Home) -> None:
    step = ImageStep("run", ("true",), secrets={"E": "env"}, secret_refs=(SecretRef(name="db"), inline(B=MARKER)))
    image = ImageSpec((ImageStep("base"), step))

    async def work(secrets: Secrets) -> None:
        await create(secrets, A="stored", B="stored", E="stored")
        filled = await secrets.filled(image, "", USER)
        assert filled.steps[1].secrets == {"A": "stored", "B": MARKER, "E": "env"}
        assert filled.image_id() == image.image_id()
        (kept,) = await secrets.keep([stripped(function(image=image))], MAIN)
        assert MARKER not in to_json(kept) and "env" not in kept.image.steps[1].secrets.values()
        assert kept.image.image_id() == image.image_id()
        with pytest.raises(NotFoundError):
            await secrets.filled(
                replace(image, steps=(ImageStep("run", secret_refs=(SecretRef(name="no"),)),)), "", USER
            )

    home.run(work)


def test_nameless_secrets_go_when_nothing_names_them(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        await create(secrets)
        used, unused, fresh = await secrets.refs([inline(A="used"), inline(A="unused"), inline(A="fresh")], MAIN)
        home.clock.advance(KEPT_S / 2 + 1)
        await secrets.refs([inline(A="fresh")], MAIN)
        home.clock.advance(KEPT_S / 2)
        assert await secrets.sweep({used.secret_id}) == 1
        assert secrets.variables(function(used, fresh)) == {"A": "fresh"}
        with pytest.raises(NotFoundError):
            secrets.variables(function(unused))

    home.run(work)

    async def again(secrets: Secrets) -> None:
        assert len(secrets._rows) == 3

    home.run(again)


def test_what_is_declared_while_it_is_swept_is_there(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        await secrets.refs([inline(A="1")], MAIN)
        home.clock.advance(KEPT_S + 1)
        sweeping = asyncio.ensure_future(secrets.sweep(set()))
        await asyncio.sleep(0)
        (again,) = await secrets.refs([inline(A="1")], MAIN)
        assert await sweeping == 1
        assert secrets.variables(function(again)) == {"A": "1"}

    home.run(work)

    async def later(secrets: Secrets) -> None:
        assert len(secrets._rows) == 1

    home.run(later)


def test_no_secret_is_made_in_an_environment_that_goes_meanwhile(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        async with secrets._changing:
            making = asyncio.ensure_future(create(secrets, environment="dev"))
            await asyncio.sleep(0)
            del home.access.directory.environments["dev"]
        with pytest.raises(NotFoundError, match="no environment 'dev'"):
            await making
        assert not secrets._rows

    home.run(work)


def test_when_a_secret_was_used(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        secret_id = await create(secrets)
        assert (await secrets.find(ask(SecretFind("db")))).used_at == 0.0
        secrets.variables(function(SecretRef(secret_id=secret_id)))
        await secrets.list(ask(SecretList()))

    home.run(work)
    found = home.run(lambda secrets: secrets.find(ask(SecretFind("db"))))
    assert found.used_at == home.clock.now()


# --- the key ---


def fault_of(home: Home, kept: FunctionSpec) -> Optional[str]:
    """What the start of a container says in a new life; None when it starts."""

    async def work(secrets: Secrets) -> Optional[str]:
        try:
            assert secrets.variables(kept) == {"A": MARKER}
        except Error as error:
            return str(error)
        return None

    return home.run(work)  # type: ignore[no-any-return]


@pytest.fixture
def kept(home: Home) -> FunctionSpec:
    """A function with a secret, of an earlier life."""

    async def work(secrets: Secrets) -> FunctionSpec:
        await create(secrets)
        return (await secrets.keep([function(SecretRef(name="db"))], MAIN))[0]

    return home.run(work)  # type: ignore[no-any-return]


def test_a_lost_key(home: Home, kept: FunctionSpec) -> None:
    """The server starts; what needs a secret says what to do; the old key put back mends it; discarding too."""
    text = home.key.read_bytes()
    home.key.unlink()
    assert "put" in str(fault_of(home, kept)) and "--discard" in str(fault_of(home, kept))

    async def refused(secrets: Secrets) -> None:
        with pytest.raises(ConflictError, match="put"):
            await create(secrets, "other")
        with pytest.raises(ConflictError, match=r"--discard.*db"):
            await secrets.rekey(ask(SecretRekey()))

    home.run(refused)
    assert not home.key.exists()
    home.key.write_bytes(text)
    home.key.chmod(0o600)
    assert fault_of(home, kept) is None

    home.key.unlink()

    async def discard(secrets: Secrets) -> None:
        done = await secrets.rekey(ask(SecretRekey(discard=True)))
        assert (done.sealed, done.discarded) == (0, ("db",))
        await create(secrets)

    home.run(discard)
    assert "removed" in str(fault_of(home, kept))


def test_a_wrong_key_is_recognised(home: Home, kept: FunctionSpec) -> None:
    home.key.unlink()
    write_key_file(str(home.key), bytes(32))
    assert "sealed under" in str(fault_of(home, kept))


def test_a_key_that_others_may_read(home: Home, kept: FunctionSpec) -> None:
    home.key.chmod(0o644)
    assert f"chmod 600 {home.key}" in str(fault_of(home, kept))


def test_a_key_that_comes_back_is_found_without_a_restart(home: Home, kept: FunctionSpec) -> None:
    text = home.key.read_bytes()
    home.key.unlink()

    async def work(secrets: Secrets) -> None:
        with pytest.raises(ConflictError):
            secrets.variables(kept)
        home.key.write_bytes(text)
        home.key.chmod(0o600)
        home.clock.advance(60)
        with pytest.raises(ConflictError):
            secrets.variables(kept)  # it looks, and does not wait
        looking = secrets._looking
        assert looking is not None
        await looking
        assert secrets.variables(kept) == {"A": MARKER}

    home.run(work)


def test_sealing_anew(home: Home, kept: FunctionSpec) -> None:
    """Ids of nameless secrets stay, so that unchanged deploys stay unchanged over a change of the key."""
    before = home.key.read_bytes()

    async def work(secrets: Secrets) -> Any:
        (ref,) = await secrets.refs([inline(B="1")], MAIN)
        old_id = secrets._rows[ref.secret_id].key_id
        done = await secrets.rekey(ask(SecretRekey()))
        assert (done.sealed, done.discarded) == (2, ())
        assert {one.key_id for one in secrets._rows.values()} == {done.key_id} != {old_id}
        assert await secrets.refs([inline(B="1")], MAIN) == (ref,)
        assert secrets.variables(kept) == {"A": MARKER}
        return ref

    ref = home.run(work)
    assert home.key.read_bytes() != before
    assert fault_of(home, kept) is None
    assert home.run(lambda secrets: secrets.refs([inline(B="1")], MAIN)) == (ref,)
    home.key.write_bytes(before)
    assert "sealed under" in str(fault_of(home, kept))


def test_a_command_gives_the_key(home: Home) -> None:
    """From a file to a command, and to the command's next key; no error has what it prints."""

    def command(number: int) -> str:
        return f"echo {base64.b64encode(bytes([number]) * 32).decode()}"

    async def make(secrets: Secrets) -> FunctionSpec:
        await create(secrets)
        return (await secrets.keep([function(SecretRef(name="db"))], MAIN))[0]

    async def rekey(secrets: Secrets) -> None:
        assert (await secrets.rekey(ask(SecretRekey()))).sealed == 1

    kept = home.run(make)
    home.config = replace(home.config, secrets_key_command=command(1))
    assert "secrets_key_command" in str(fault_of(home, kept))
    home.run(rekey)
    assert not home.key.exists()
    assert fault_of(home, kept) is None
    home.config = replace(home.config, secrets_key_command=command(2))
    assert "write the old one to" in str(fault_of(home, kept))
    write_key_file(str(home.key), bytes([1]) * 32)
    home.run(rekey)
    assert fault_of(home, kept) is None
    home.config = replace(home.config, secrets_key_command="exit 1")
    assert "status 1" in str(fault_of(home, kept))


def test_no_key_is_made_for_those_who_have_no_secrets(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        assert await secrets.keep([function()], MAIN) == (function(),)
        assert secrets.variables(function(env={"A": "1"})) == {"A": "1"}

    home.run(work)
    assert not home.key.exists()


def test_rows_cannot_be_exchanged(home: Home) -> None:
    """Who can write to the database and has no key cannot give one secret the values of another."""

    async def work(secrets: Secrets) -> None:
        first, second = await create(secrets, "one", A="1"), await create(secrets, "two", A="2")
        sealed = secrets._rows[first].sealed
        secrets._rows[second] = replace(secrets._rows[second], sealed=sealed)
        with pytest.raises(Error, match="damaged"):
            secrets.variables(function(SecretRef(secret_id=second)))

    home.run(work)


def test_what_is_json_here_has_no_surprises(home: Home) -> None:
    async def work(secrets: Secrets) -> None:
        value = "\x01\n\t\"'\\ ü 漢 🎵 =$(x)"
        (kept,) = await secrets.keep([function(inline(A=value))], MAIN)
        assert secrets.variables(kept) == {"A": value}
        assert json.loads(to_json(kept))["secrets"][0]["values"] == {}

    home.run(work)
