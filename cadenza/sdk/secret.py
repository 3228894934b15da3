"""Environment variables that are given to functions and never shown: `Secret`. Source: semantics.md section 14."""

from __future__ import annotations

import os
from _collections_abc import Mapping  # as os does: collections.abc would load collections

from cadenza.base.errors import InvalidError
from cadenza.runner.context import current as container
from cadenza.sdk import _dual
from cadenza.sdk.handle import Object, client_of, travels
from cadenza.sdk.names import check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any, Optional, Sequence, Union

    from cadenza.protocol import secrets as protocol
    from cadenza.protocol.objects import SecretRef
    from cadenza.sdk.client import Client
    from cadenza.sdk.types import SecretInfo

MAX_KEY_CHARS = 16_384
MAX_VALUE_CHARS = 32_768
MAX_VARIABLES_BYTES = 640 << 10
"""Of all together, as JSON. The same number is in `cadenza.control.sealed`, where it is a rule."""


def check_variables(variables: object, where: str, *, drop_none: bool = False) -> dict[str, str]:
    """A copy of a mapping of variables whose names and sizes are right. InvalidError names what is not.

    ``drop_none`` leaves out entries whose value is None; else they are an error.
    """
    if not isinstance(variables, Mapping):
        raise InvalidError(f"{where} takes a dictionary of strings, not {type(variables).__name__}")
    found: dict[str, str] = {}
    for key, value in variables.items():
        if not isinstance(key, str):
            raise InvalidError(f"{where}: names of variables are strings, not {type(key).__name__}")
        if value is None and drop_none:
            continue
        if not isinstance(value, str):
            raise InvalidError(
                f"{where}: the value of {key!r} must be a string, not {type(value).__name__}; write str(...) around it"
            )
        if len(key) > MAX_KEY_CHARS or not (key.isascii() and key.isidentifier()):
            shown = key if len(key) <= 64 else key[:64] + "..."
            raise InvalidError(
                f"{where}: {shown!r} is no name for a variable: letters, digits and _, no digit first, "
                f"at most {MAX_KEY_CHARS:,} characters"
            )
        if len(value) > MAX_VALUE_CHARS:
            raise InvalidError(
                f"{where}: the value of {key!r} has {len(value):,} characters, at most {MAX_VALUE_CHARS:,} are allowed"
            )
        if "\0" in value:
            raise InvalidError(f"{where}: the value of {key!r} has a NUL character in it")
        try:
            value.encode()
        except UnicodeEncodeError:  # bytes that are no UTF-8, as os.environ gives them
            raise InvalidError(f"{where}: the value of {key!r} is not valid Unicode") from None
        found[key] = value
    _check_total(found, where)
    return found


def _check_total(variables: dict[str, str], where: str) -> None:
    """As the server does, before they are too large for a frame."""
    if sum(map(len, variables)) + sum(map(len, variables.values())) < MAX_VARIABLES_BYTES >> 4:
        return
    import json

    if len(json.dumps(variables, ensure_ascii=False).encode()) > MAX_VARIABLES_BYTES:
        raise InvalidError(
            f"{where}: its variables have over {MAX_VARIABLES_BYTES >> 10} KiB together: put large values into a file"
        )


class SecretManager:
    """The stored secrets of an environment, as a whole."""

    @_dual.static_method
    @staticmethod
    async def create(
        name: str,
        env_dict: dict[str, str],
        *,
        allow_existing: bool = False,
        environment_name: Optional[str] = None,
        client: Optional[Client] = None,
    ) -> None:
        """Store variables under a name. AlreadyExistsError when it is taken; with ``allow_existing`` what is there
        stays as it is."""
        from cadenza.protocol.secrets import SecretCreate

        check_name(name, "Secret")
        values = check_variables(env_dict, "Secret.objects.create")
        request = SecretCreate(name, values, environment_name or "", allow_existing=allow_existing)
        await (await client_of(client))._request("secret.create", request)

    @_dual.static_method
    @staticmethod
    async def list(
        *,
        max_objects: Optional[int] = None,
        created_before: Union[datetime, str, None] = None,
        environment_name: str = "",
        client: Optional[Client] = None,
    ) -> list[Secret]:
        """Handles of stored secrets, newest first. ``created_before``: a time, or one in ISO 8601."""
        from cadenza.protocol.secrets import SecretList

        if max_objects is not None and (isinstance(max_objects, bool) or not isinstance(max_objects, int)):
            raise InvalidError("Secret.objects.list: max_objects is a number")
        if max_objects is not None and max_objects < 0:
            raise InvalidError("Secret.objects.list: max_objects cannot be negative")
        if max_objects == 0:
            return []
        before = epoch_of(created_before, "Secret.objects.list")
        to = await client_of(client)
        found = await to._request("secret.list", SecretList(environment_name, max_objects or 0, before))
        return [Secret._from_info(one, to) for one in found.secrets]

    @_dual.static_method
    @staticmethod
    async def delete(
        name: str,
        *,
        allow_missing: bool = False,
        environment_name: Optional[str] = None,
        client: Optional[Client] = None,
    ) -> None:
        """Remove a stored secret. Containers that run keep its variables; no new one starts with it. NotFoundError
        unless ``allow_missing``."""
        from cadenza.protocol.secrets import SecretDelete

        check_name(name, "Secret")
        request = SecretDelete(name, environment_name or "", allow_missing)
        await (await client_of(client))._request("secret.delete", request)


def epoch_of(moment: Union[datetime, str, None], where: str) -> float:
    """Epoch seconds; 0 for None. InvalidError for what is no time. A time without a zone is a local one."""
    if moment is None:
        return 0.0
    from datetime import datetime as Moment

    if isinstance(moment, str):
        try:
            moment = Moment.fromisoformat(moment[:-1] + "+00:00" if moment.endswith("Z") else moment)
        except ValueError:
            raise InvalidError(f"{where}: {moment!r} is no time in ISO 8601") from None
    if not isinstance(moment, Moment):
        raise InvalidError(f"{where}: created_before is a datetime or a string, not {type(moment).__name__}")
    return moment.timestamp()


@travels
class Secret(Object):
    """A set of variables. Made by `from_dict`, `from_dotenv`, `from_local_environ` or `from_name`, never directly.

    One that is found by name is stored with the server, sealed; its values never come back to a program.
    """

    objects = SecretManager
    """Stored secrets."""
    _values: Optional[dict[str, str]] = None
    _name: Optional[str] = None
    _made_by: str = "stored"
    _environment: str = ""
    _required: tuple[str, ...] = ()
    _information: Optional[protocol.SecretInfo] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "Secret(...) cannot be called: use Secret.from_dict, from_dotenv, from_local_environ or from_name"
        )

    @classmethod
    def _make(cls, values: Optional[dict[str, str]], made_by: str, name: Optional[str] = None) -> Secret:
        self = cls.__new__(cls)
        self._init_handle()
        self._values = values
        self._made_by = made_by
        self._name = name
        return self

    @property
    def name(self) -> Optional[str]:
        """The name under which it is stored; None for one that a program made itself."""
        return self._name

    @staticmethod
    def from_dict(env_dict: dict[str, Optional[str]] = {}) -> Secret:  # noqa: B006  (never changed; part of the signature)
        """A secret with these variables; entries that are None are left out. InvalidError for wrong types or names."""
        return Secret._make(check_variables(env_dict, "Secret.from_dict", drop_none=True), "Secret.from_dict()")

    @staticmethod
    def from_local_environ(env_keys: list[str]) -> Secret:
        """A secret with these variables of this process. InvalidError if one is not set. Empty in a container."""
        if not isinstance(env_keys, (list, tuple, set, frozenset)):
            raise InvalidError("Secret.from_local_environ takes a list of names")
        if container() is not None:
            return Secret._make({}, "Secret.from_local_environ()")
        missing = [key for key in env_keys if key not in os.environ]
        if missing:
            raise InvalidError(
                f"Secret.from_local_environ: not set in this environment: {', '.join(map(str, missing))}; "
                "set it, or take the name out of the list"
            )
        values = {key: os.environ[key] for key in env_keys}
        return Secret._make(check_variables(values, "Secret.from_local_environ"), "Secret.from_local_environ()")

    @staticmethod
    def from_dotenv(
        path: Union[str, os.PathLike[str], None] = None,
        *,
        filename: str = ".env",
        client: Any = None,
    ) -> Secret:
        """A secret with the variables of a ``.env`` file, searched for from ``path`` (a file or directory; else the
        working directory) upward. Needs the package python-dotenv. Empty in a container."""
        if container() is not None:
            return Secret._make({}, "Secret.from_dotenv()")
        try:
            from dotenv import dotenv_values
        except ImportError:
            raise ImportError("Secret.from_dotenv needs the package python-dotenv: pip install python-dotenv") from None
        from pathlib import Path

        start = Path(path) if path is not None else Path.cwd()
        if not start.exists():
            raise InvalidError(f"Secret.from_dotenv: {str(path)!r} is not there")
        start = start.absolute()
        directories = (start, *start.parents) if start.is_dir() else start.parents
        found = next((one / filename for one in directories if (one / filename).is_file()), None)
        if found is None:
            import warnings

            warnings.warn(
                f"Secret.from_dotenv: no file {filename!r} in {start} or above it: the secret is empty", stacklevel=2
            )
            return Secret._make({}, "Secret.from_dotenv()")
        values = {key: value for key, value in dotenv_values(found).items() if value is not None}
        return Secret._make(check_variables(values, f"Secret.from_dotenv: {found}"), "Secret.from_dotenv()")

    @staticmethod
    def from_name(
        name: str,
        *,
        environment_name: Optional[str] = None,
        required_keys: list[str] = [],  # noqa: B006  (never changed; part of the signature)
        client: Any = None,
    ) -> Secret:
        """A stored secret by name. Nothing is asked of the server until it is first used."""
        check_name(name, "Secret")
        if not isinstance(required_keys, (list, tuple)) or not all(isinstance(one, str) for one in required_keys):
            raise InvalidError("Secret.from_name: required_keys is a list of names of variables")
        self = Secret._make(None, f"Secret.from_name({name!r})", name)
        self._environment = environment_name or ""
        self._required = tuple(required_keys)
        self._client = client
        return self

    @classmethod
    def _from_info(cls, info: protocol.SecretInfo, client: Client) -> Secret:
        """The handle of a stored secret that the server has just named."""
        self = cls._make(None, f"Secret.from_name({info.name!r})", info.name)
        self._environment = info.environment
        self._information = info
        self._hydrate(info.secret_id, client)
        return self

    @property
    def _is_stored(self) -> bool:
        return self._values is None

    def _metadata(self) -> dict[str, Any]:
        return {"name": self._name or "", "environment": self._environment}

    def _take_metadata(self, metadata: dict[str, Any]) -> None:
        self._name = metadata["name"] or None
        self._environment = metadata["environment"]
        self._made_by = f"Secret.from_name({self._name!r})"

    def _variables(self) -> dict[str, str]:
        """Its variables. InvalidError for a stored one: their values do not leave the server."""
        if self._values is None:
            raise InvalidError(f"{self._made_by}: the values of a stored secret are seen in containers only")
        return self._values

    async def _find(self, client: Client) -> None:
        from cadenza.protocol.secrets import SecretFind

        self._stored("be looked up")
        self._take_info(
            await client._request(
                "secret.find", SecretFind(self._name or "", self._environment, "", tuple(self._required))
            ),
            client,
        )

    def _take_info(self, info: protocol.SecretInfo, client: Client) -> None:
        self._information = info
        self._hydrate(info.secret_id, client)

    def _stored(self, verb: str) -> None:
        if not self._is_stored:
            raise InvalidError(
                f"{self._made_by} is not stored with the server, so it cannot {verb}: use Secret.from_name"
            )

    @_dual.method
    async def hydrate(self, client: Optional[Client] = None) -> Secret:
        """Ask the server for a stored secret. NotFoundError when there is none of the name, InvalidError when it lacks
        one of ``required_keys``. One that a program made needs no server."""
        if client is not None:
            self._client = client
        if self._is_stored:
            await self._ready()
        return self

    @_dual.method
    async def update(self, env_dict: dict[str, Optional[str]]) -> None:
        """Change single variables of a stored secret; None removes one, the others stay. New containers see it."""
        from cadenza.protocol.secrets import SecretUpdate

        self._stored("be updated")
        where = "Secret.update"
        changes: dict[str, Optional[str]] = dict(check_variables(env_dict, where, drop_none=True))
        removed = [key for key, value in env_dict.items() if value is None]
        check_variables(dict.fromkeys(removed, ""), where)
        changes.update(dict.fromkeys(removed))
        client = await self._ready()
        self._take_info(await client._request("secret.update", SecretUpdate(self.object_id, changes)), client)

    @_dual.method
    async def info(self, *, refresh: bool = False) -> SecretInfo:
        """What is known of a stored secret; asked once, and with ``refresh`` again. No values."""
        from datetime import datetime as Moment
        from datetime import timezone

        from cadenza.protocol.secrets import SecretFind
        from cadenza.sdk.types import SecretInfo as Info

        self._stored("be described")
        client = await self._ready()
        if refresh or self._information is None:
            self._take_info(await client._request("secret.find", SecretFind(secret_id=self.object_id)), client)
        found = self._information
        assert found is not None
        used = Moment.fromtimestamp(found.used_at, timezone.utc) if found.used_at else None
        created = Moment.fromtimestamp(found.created_at, timezone.utc)
        return Info(found.name or None, found.environment, created, found.created_by or None, used)

    def _unhydrated_hint(self) -> str:
        if self._is_stored:
            return "call .hydrate() first"
        return "it is not stored; pass it to secrets=[...] of a function"

    def __repr__(self) -> str:
        if self._values is None:
            return f"<Secret {self._made_by}>"
        return f"<Secret {self._made_by}: {', '.join(sorted(self._values)) or 'empty'}>"


def references(*groups: Sequence[Secret]) -> tuple[SecretRef, ...]:
    """Secrets as a declaration names them, in order: a later one wins. Empty ones are left out.

    Stored ones go by name: the server finds them, in the app's environment unless they name one.
    """
    from cadenza.protocol.objects import SecretRef  # late: a container never needs it

    found = []
    for group in groups:
        for one in group:
            if one._values:
                found.append(SecretRef(values=one._values, keys=tuple(sorted(one._values))))
            elif one._name:
                found.append(SecretRef(name=one._name, environment=one._environment, required=one._required))
    return tuple(found)


def merge(*groups: Sequence[Secret]) -> dict[str, str]:
    """All variables of secrets whose values this process has; the later wins. Stored ones are passed over."""
    merged: dict[str, str] = {}
    for group in groups:
        for one in group:
            merged.update(one._values or {})
    return merged


def check_secrets(secrets: object, where: str) -> tuple[Secret, ...]:
    """``secrets=`` as a tuple. InvalidError if it is not a sequence of Secrets."""
    if secrets is None:
        return ()
    if isinstance(secrets, Secret) or not isinstance(secrets, (list, tuple)):
        raise InvalidError(f"{where}: secrets must be a list of Secrets, for example secrets=[Secret.from_dict(...)]")
    for one in secrets:
        if not isinstance(one, Secret):
            raise InvalidError(f"{where}: secrets must be a list of Secrets; it holds {type(one).__name__}")
    return tuple(secrets)
