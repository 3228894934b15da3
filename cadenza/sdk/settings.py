"""`modal.config`: the settings in force, by the names of semantics.md section 24, from `cadenza.base.config`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

from cadenza.base import profiles
from cadenza.base.config import load
from cadenza.base.errors import InvalidError, NotFoundError


class Config:
    """Reads settings by name, environment first. A setting that does not exist is None."""

    def __init__(self) -> None:
        self._overrides: dict[str, Any] = {}

    def get(self, key: str, *, profile: Optional[str] = None, use_env: bool = True) -> Any:
        """The value of a setting; ``profile``: not of the active one; ``use_env=False``: not of the environment."""
        if key in self._overrides:
            return self._overrides[key]
        environ = dict(os.environ)
        if not use_env:
            kept = ("CADENZA_HOME", "CADENZA_PROFILE", "MODAL_PROFILE")
            environ = {
                name: value
                for name, value in environ.items()
                if name in kept or not name.startswith(("CADENZA_", "MODAL_"))
            }
        if profile is not None:
            environ["CADENZA_PROFILE"] = profile
        return getattr(load(environ), key, None)

    def override_locally(self, key: str, value: str) -> None:
        """Set a setting for this process and its children."""
        if not isinstance(value, str):
            raise InvalidError(f"override_locally: {key} must be a string, not {type(value).__name__}")
        self._overrides[key] = value
        os.environ["CADENZA_" + key.upper()] = value

    def __getitem__(self, key: str) -> Any:
        return self.get(key)

    def to_dict(self, *, include_internal: bool = False) -> dict[str, Any]:
        """All settings. Secrets are left out unless ``include_internal``."""
        found = {**vars(load()), **self._overrides}
        return found if include_internal else {key: value for key, value in found.items() if key != "token_secret"}

    def __repr__(self) -> str:
        return f"Config({self.to_dict()!r})"


def config_profiles() -> list[str]:
    """The names of the profiles in the configuration file."""
    return profiles.names(_text(_file()))


def config_set_active_profile(profile: str) -> None:
    """Make a profile of the configuration file the active one, from the next time that the configuration is read on.

    NotFoundError when there is none of the name."""
    file = _file()
    text = _text(file)
    if profile not in profiles.names(text):
        raise NotFoundError(f"{file} has no profile {profile!r}; it has {', '.join(profiles.names(text)) or 'none'}")
    profiles.replace(file, profiles.activated(text, profile))


def _file() -> Path:
    named = ("CADENZA_PROFILE", "MODAL_PROFILE")  # one that is not there is no reason not to find the file
    return Path(load({key: value for key, value in os.environ.items() if key not in named}).config_dir) / "config.toml"


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


config = Config()
