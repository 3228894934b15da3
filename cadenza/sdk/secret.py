"""Environment variables that are given to functions and never shown: `Secret`. Source: semantics.md section 14."""

from __future__ import annotations

import os
from _collections_abc import Mapping  # as os does: collections.abc would load collections

from cadenza.base.errors import InvalidError, UnimplementedError
from cadenza.runner.context import current as container
from cadenza.sdk import _dual
from cadenza.sdk.handle import Object
from cadenza.sdk.namespaces import LaterNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Sequence, Union

    from cadenza.protocol.objects import SecretRef

MAX_KEY_CHARS = 16_384
MAX_VALUE_CHARS = 32_768


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
        found[key] = value
    return found


class Secret(Object):
    """A set of variables. Made by `from_dict`, `from_dotenv`, `from_local_environ` or `from_name`, never directly."""

    objects = LaterNamespace("Secret.objects", "use Secret.from_dict, from_dotenv or from_local_environ")
    """Stored secrets."""
    _values: Optional[dict[str, str]]
    _name: Optional[str]
    _made_by: str

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
        if not isinstance(name, str):
            raise InvalidError(f"Secret.from_name takes a name, not {type(name).__name__}")
        return Secret._make(None, f"Secret.from_name({name!r})", name)

    def _variables(self) -> dict[str, str]:
        """Its variables. UnimplementedError for a stored one."""
        if self._values is None:
            raise UnimplementedError(
                f"{self._made_by}: stored secrets are not built yet; use Secret.from_dict, "
                "Secret.from_dotenv or Secret.from_local_environ"
            )
        return self._values

    @_dual.method
    async def hydrate(self, client: Any = None) -> Secret:
        """Ask the server for a stored secret. UnimplementedError for now; one that a program made needs no server."""
        self._variables()
        return self

    def _unhydrated_hint(self) -> str:
        return "it is not stored; pass it to secrets=[...] of a function"

    def __repr__(self) -> str:
        if self._values is None:
            return f"<Secret {self._made_by}>"
        return f"<Secret {self._made_by}: {', '.join(sorted(self._values)) or 'empty'}>"


def references(*groups: Sequence[Secret]) -> tuple[SecretRef, ...]:
    """Secrets as a declaration names them, in order: a later one wins. Empty ones are left out."""
    from cadenza.protocol.objects import SecretRef  # late: a container never needs it

    found = []
    for group in groups:
        for one in group:
            values = one._variables()
            if values:
                found.append(SecretRef(values=values, keys=tuple(sorted(values))))
    return tuple(found)


def merge(*groups: Sequence[Secret]) -> dict[str, str]:
    """All variables of secrets whose values this process has; the later wins."""
    merged: dict[str, str] = {}
    for group in groups:
        for one in group:
            merged.update(one._variables())
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
