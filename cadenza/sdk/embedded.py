"""Find this user's server, and start the embedded one when nobody answers.

The server itself decides who serves: it takes the lock file, and a second one exits with `LOCKED`. So two programs
that start at once may both spawn one; both then connect to the one that won.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Mapping, Optional

from cadenza.base.errors import ConnectionError, InvalidError
from cadenza.sdk.connection import Connection, connect

if TYPE_CHECKING:
    from cadenza.base.config import Config

START_DEADLINE_S = 15.0
FIRST_POLL_S, LAST_POLL_S = 0.005, 0.1
LOCKED = 3
"""The exit status of a server that found the lock taken."""
AGAIN_S = 0.5
"""How long to wait for the holder of the lock before another start: it may be about to end."""
LOG_LINES = 15
ARGUMENTS = ("-m", "cadenza.cli.server")
"""What the interpreter gets to be a server."""

_children: list[subprocess.Popen[bytes]] = []
"""Servers that this process started. They outlive it; kept so that one that exits is reaped and not a zombie."""


async def reach(config: Config, version: str, who: Optional[Mapping[str, str]] = None) -> Connection:
    """A connection to the configured server, which is started if it is the embedded one and nobody answers.

    ConnectionError says which socket and what to do; VersionError is the server's own sentence.
    """
    path = config.socket_path
    if config.server_url and not config.server_url.startswith("unix:"):
        raise InvalidError(
            f"server_url is {config.server_url!r}: it must be unix:/path/to/socket, or empty for your own server"
        )
    try:
        return await connect(path, version, frozenset((os.geteuid(), 0)), who)
    except (FileNotFoundError, ConnectionRefusedError):
        if config.server_url:
            raise ConnectionError(
                f"Could not connect to the Cadenza server at {path}, which the setting server_url names: nothing "
                f"listens there. Start that server, or unset server_url to use your own."
            ) from None
    except OSError as error:
        raise _refused(path, error) from None
    return await _start(config, version, who)


async def _start(config: Config, version: str, who: Optional[Mapping[str, str]]) -> Connection:
    path = config.socket_path
    log = os.path.join(config.state_dir, "server.log")
    try:
        os.makedirs(config.state_dir, mode=0o700, exist_ok=True)
        log_start = os.path.getsize(log) if os.path.exists(log) else 0
        process = _spawn(config.state_dir, log)
    except OSError as error:
        raise ConnectionError(
            f"Could not connect to the Cadenza server at {path}, and it could not be started: {error}"
        ) from None
    deadline = time.monotonic() + START_DEADLINE_S
    poll_s = FIRST_POLL_S
    again_at: Optional[float] = None
    while True:
        code = process.poll()
        if code in (0, LOCKED):
            now = time.monotonic()
            if again_at is None:
                again_at = now + AGAIN_S
            elif now > again_at:
                process, again_at = _spawn(config.state_dir, log), None
        try:
            return await connect(path, version, frozenset((os.geteuid(), 0)), who)
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        except OSError as error:
            raise _refused(path, error) from None
        if code not in (None, 0, LOCKED):
            raise ConnectionError(
                f"Could not connect to the Cadenza server at {path}: it was started and ended at once with exit code "
                f"{code}. {_tail(log, log_start)}"
            )
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"Could not connect to the Cadenza server at {path}: it was started and does not listen after "
                f"{START_DEADLINE_S:.0f} s. {_tail(log, log_start)}"
            )
        await asyncio.sleep(poll_s)
        poll_s = min(LAST_POLL_S, poll_s * 1.5)


def _refused(path: str, error: OSError) -> ConnectionError:
    return ConnectionError(
        f"Could not connect to the Cadenza server at {path}: {error.strerror or error}. The socket belongs to the user "
        f"that runs the server; set CADENZA_SERVER_URL or CADENZA_HOME if you meant another."
    )


_INHERITED = frozenset(
    (
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONHOME",
        "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    )
)  # fmt: skip
_INHERITED_PREFIXES = ("CADENZA_", "MODAL_", "XDG_", "LC_", "PIP_", "UV_", "DBUS_", "COVERAGE_")


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What of a program's environment its server gets: how this machine is set up, not the program's own secrets.

    The server outlives the program that started it, and serves others.
    """
    return {
        name: value
        for name, value in environ.items()
        if (name.upper() in _INHERITED or name.startswith(_INHERITED_PREFIXES))
        and not name.endswith(("_TOKEN_ID", "_TOKEN_SECRET"))
    }


def _spawn(directory: str, log: str) -> subprocess.Popen[bytes]:
    """A server of our own version in its own session: the program's Ctrl-C and its end do not reach it."""
    for one in _children[:]:
        if one.poll() is not None:
            _children.remove(one)
    environ = inherited(os.environ)
    paths = [os.path.abspath(one) for one in environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if package_root not in paths and not package_root.endswith(("site-packages", "dist-packages")):
        paths.insert(0, package_root)
    if paths:
        environ["PYTHONPATH"] = os.pathsep.join(paths)
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [sys.executable, *ARGUMENTS],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=directory,  # -m puts the working directory first on sys.path: not the user's
            env=environ,
            start_new_session=True,
        )
    _children.append(process)
    return process


def _tail(log: str, start: int) -> str:
    """The last lines that were written to ``log`` from byte ``start`` on, as a sentence."""
    text: Optional[str] = None
    try:
        with open(log, "rb") as file:
            file.seek(max(start, os.path.getsize(log) - 16384))
            text = file.read().decode("utf-8", "replace").strip()
    except OSError:
        pass
    if not text:
        return f"Its log, {log}, says nothing of it."
    return f"The end of its log, {log}:\n" + "\n".join("  " + line for line in text.splitlines()[-LOG_LINES:])
