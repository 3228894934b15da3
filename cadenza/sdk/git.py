"""The commit from which an app is deployed, as far as git tells within a moment.

Never fails and never waits long: without git, outside of a repository, or where git is slow, less is known. Nothing is
written into the repository, and no program that its configuration names is run.
"""

from __future__ import annotations

import os
import subprocess
import time
from typing import Optional, Sequence

from cadenza.protocol.deployments import GitInfo

LIMIT_S = 2.0
"""How long all questions together may take."""
MAX_MESSAGE_CHARS = 500


def describe(directory: str, limit_s: float = LIMIT_S) -> GitInfo:
    """The commit of ``directory``; empty when it is in no repository."""
    until = time.monotonic() + limit_s
    log = _git(directory, ("log", "-1", "--no-show-signature", "--format=%H%n%an <%ae>%n%s"), until)
    if not log:
        return GitInfo()
    commit, author, message = (*log.split("\n", 2), "", "")[:3]
    branch = _git(directory, ("rev-parse", "--abbrev-ref", "HEAD"), until) or ""
    status = _git(directory, ("status", "--porcelain", "--untracked-files=no"), until)
    repository = _git(directory, ("config", "--get", "remote.origin.url"), until) or ""
    return GitInfo(
        commit=commit.strip(),
        branch="" if branch.strip() == "HEAD" else branch.strip(),
        dirty=bool(status and status.strip()),
        repository=without_credentials(repository.strip()),
        author=author.strip(),
        message=message.strip()[:MAX_MESSAGE_CHARS],
    )


def without_credentials(url: str) -> str:
    """A repository's address without the user and password that may be in it."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path


def _git(directory: str, arguments: Sequence[str], until: float) -> Optional[str]:
    """What git says; None where it fails, is not there, or takes too long."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        return None
    environ = {
        **{name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")},
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments],
            cwd=directory, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=left_s,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
