"""What a registry asks for before it answers: challenges, tokens, refusals in plain words. Pure.

Sources: RFC 7235 (challenges), the distribution project's token authentication, RFC 9110 (Retry-After).
"""

from __future__ import annotations

import email.utils
import json
import re
from dataclasses import dataclass
from typing import Iterable, Mapping, Optional

from cadenza.base.errors import ImageBuildError

TOKEN_S = 60.0
"""How long a token is good where nothing is said."""
MESSAGE_CHARACTERS = 200

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class RegistryError(ImageBuildError):
    """A registry refused, or could not be used. ``status``: its answer, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class GarbledError(RegistryError):
    """What arrived is not what its digest or its size says: worth one more try from the start."""


@dataclass(frozen=True)
class Challenge:
    """One way to log in that a registry names. ``scheme`` in lower case."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Token:
    """What goes into Authorization, and until when (seconds of the monotonic clock)."""

    header: str
    until: float


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges in the values of WWW-Authenticate."""
    found = []
    for header in headers:
        at = 0
        while at < len(header):
            scheme = _SCHEME.match(header, at)
            if scheme is None:
                break
            at = scheme.end()
            parameters = {}
            while (one := _PARAMETER.match(header, at)) is not None:
                value = one[2] if one[2] is not None else one[3]
                parameters[one[1].lower()] = re.sub(r"\\(.)", r"\1", value)
                at = one.end()
            found.append(Challenge(scheme[1].lower(), parameters))
            while at < len(header) and header[at] in ", ":
                at += 1
    return found


def read_token(body: bytes, now: float) -> Optional[Token]:
    """The token in a token server's answer; None: there is none. ``now`` of the monotonic clock, in seconds."""
    try:
        answer = json.loads(body)
        token = str(answer.get("token") or answer.get("access_token") or "")
        good_s = float(answer.get("expires_in") or TOKEN_S)
    except (ValueError, AttributeError, TypeError):
        return None
    if not token or any(character in token for character in "\r\n"):
        return None
    return Token(f"Bearer {token}", now + max(good_s * 0.8, 5.0))


def retry_after(value: Optional[str], now: float) -> float:
    """Seconds that a Retry-After header asks for; 0: none. ``now`` in epoch seconds."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(min(int(value), 10**6))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError):
        return 0.0


def registry_message(body: bytes) -> str:
    """What a registry says in an error's body, short; empty where that is nothing for people."""
    try:
        first = json.loads(body)["errors"][0]
        text = str(first.get("message") or first.get("code") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""
    text = " ".join(character if character.isprintable() else " " for character in text.split())
    return text[:MESSAGE_CHARACTERS]


def refusal(status: int, what: str, logged_in: bool, push: bool, said: str = "", wait_s: float = 0.0) -> RegistryError:
    """The error for a status that is no answer. ``what`` names the image and, if it is about one, the layer."""
    said = f" (the registry says: {said})" if said else ""
    if status in (401, 403):
        deed = "push to" if push else "pull from"
        if logged_in:
            text = f"the credentials given may not {deed} it: check the secret's name, password and rights{said}"
        else:
            text = (
                "the registry wants a login, or has no such image: check the name, and give secret=... with "
                f"REGISTRY_USERNAME and REGISTRY_PASSWORD{said}"
            )
    elif status == 404:
        private = "" if logged_in else "; private images look the same until secret=... is given"
        text = f"the registry has no such image or tag{private}{said}"
    elif status == 429:
        when = f"try again in {wait_s:.0f} s" if wait_s else "try again later"
        login = "" if logged_in else "log in by secret=..., or "
        text = f"the registry limits how much is asked of it: {login}{when}{said}"
    elif status >= 500:
        text = f"the registry failed with status {status}: try again later{said}"
    else:
        text = f"the registry answered with status {status}{said}"
    return RegistryError(f"{what}: {text}", status)
