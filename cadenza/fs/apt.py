"""The host's own apt, used with private state: an ordinary user can, and the state of the host stays as it is."""

from __future__ import annotations

import asyncio
import errno
import glob
import os
import re
import shutil
import signal
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

from cadenza.base.errors import ImageBuildError, InvalidError
from cadenza.fs.recipe import shown
from cadenza.fs.sources import KEYRINGS, Mirror, Source, deb822, mirror_of, parse_deb822, parse_one_line, without_login

LISTS_FRESH_S = 3600.0


@dataclass(frozen=True)
class Archive:
    """One package to fetch."""

    uri: str
    file: str
    size: int
    digest: str


def host_mirror(etc: str = "/etc/apt") -> Mirror:
    """The mirror that this machine's own apt uses. InvalidError when there is none."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise InvalidError(
            "images are made from Debian or Ubuntu packages by this machine's apt, which is not installed here: "
            "install the packages apt and dpkg (other distributions have them too), or use an image made elsewhere"
        )
    found: list[Source] = []
    for path in [os.path.join(etc, "sources.list"), *sorted(glob.glob(os.path.join(etc, "sources.list.d/*")))]:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        if path.endswith(".sources"):
            found += parse_deb822(text)
        elif path.endswith(".list"):
            found += parse_one_line(text)
    return mirror_of(found)


def host_logins(etc: str = "/etc/apt") -> str:
    """What apt_auth.conf(5) of this machine and the addresses of its sources say of names and passwords."""
    lines = []
    for path in [os.path.join(etc, "auth.conf"), *sorted(glob.glob(os.path.join(etc, "auth.conf.d/*.conf")))]:
        try:
            with open(path, encoding="utf-8") as file:
                lines.append(file.read().rstrip("\n"))
        except OSError:
            continue
    try:
        mirror = host_mirror(etc)
    except InvalidError:
        return "\n".join(lines)
    lines += [line for _, line in map(without_login, (*mirror.archive, *mirror.security)) if line]
    return "\n".join(lines)


class Apt:
    """The host's apt with its own state under ``directory``: lists and packages of one suite, kept between bases."""

    def __init__(self, directory: str, mirror: Mirror, suite: str, settings: str, environ: Mapping[str, str]) -> None:
        """``settings``: further lines of apt.conf, the host's proxies and certificates."""
        self.directory = directory
        self.archives = os.path.join(directory, "archives")
        self.lists = os.path.join(directory, "lists")
        self.mirror = mirror
        self.suite = suite
        self._settings = settings
        self._env = {**environ, "APT_CONFIG": os.path.join(directory, "apt.conf"), "LC_ALL": "C"}

    def prepare(self) -> None:
        """Write the private configuration."""
        for name in (
            "lists/partial",
            "archives/partial",
            "cache",
            "log",
            "nothing/partial",
            "etc/sources.list.d",
            "etc/conf.d",
        ):
            os.makedirs(os.path.join(self.directory, name), exist_ok=True)
        signed_by = self.mirror.signed_by or KEYRINGS[self.mirror.distribution]
        if "\n" not in signed_by and not all(os.path.exists(one) for one in signed_by.split()):
            signed_by = ""
        lines = [
            f'Dir "{self.directory}";',
            f'Dir::State "{self.directory}";',
            f'Dir::State::status "{self.directory}/status";',
            f'Dir::State::lists "{self.lists}";',
            f'Dir::Cache "{self.directory}/cache";',
            f'Dir::Cache::archives "{self.archives}";',
            f'Dir::Log "{self.directory}/log";',
            f'Dir::Etc "{self.directory}/etc";',
            f'Dir::Etc::parts "{self.directory}/etc/conf.d";',
            f'Dir::Etc::preferencesparts "{self.directory}/etc/conf.d";',
            # Keys without Signed-By are the host's.
            'Dir::Etc::trusted "/etc/apt/trusted.gpg";',
            'Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d";',
            'Dir::Etc::netrc "/etc/apt/auth.conf";',
            'Dir::Etc::netrcparts "/etc/apt/auth.conf.d";',
            'APT::Sandbox::User "root";',
            'APT::Install-Recommends "false";',
            'APT::Get::Assume-Yes "true";',
            'Acquire::Languages "none";',
            'Acquire::ForceHash "SHA256";',
            'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";',
            'Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";',
            'Acquire::Retries "3";',
            self._settings,
        ]
        for name, text in (
            ("apt.conf", "\n".join(lines) + "\n"),
            ("etc/sources.list.d/mirror.sources", deb822(self.mirror.sources(self.suite, signed_by))),
            ("status", ""),
        ):
            with open(os.path.join(self.directory, name), "w", encoding="utf-8") as file:
                file.write(text)

    def stale(self, now: float) -> bool:
        """Whether the lists are older than `LISTS_FRESH_S`, or not there."""
        try:
            return now - os.stat(os.path.join(self.directory, "updated")).st_mtime > LISTS_FRESH_S
        except FileNotFoundError:
            return True

    async def update(self) -> None:
        """Fetch the lists. ImageBuildError with apt's words when the mirror cannot be reached."""
        code, text = await run(["apt-get", "update", "-q"], self._env)
        check_space(text, self.directory)
        # apt goes on when a list cannot be had. A mirror may lack the updates, but not the suite itself.
        if code != 0 or re.search(rf"^Err:\d+ \S+ {self.suite} ", text, re.MULTILINE):
            raise ImageBuildError(f"the package lists of {self.suite} could not be fetched:\n{last(text)}")
        with open(os.path.join(self.directory, "updated"), "w"):
            pass

    async def closure(self, packages: Sequence[str]) -> list[Archive]:
        """All packages that the named ones need, themselves included."""
        # With its own archives in view, apt would leave out what is downloaded already.
        nowhere = f"Dir::Cache::archives={self.directory}/nothing"
        command = ["apt-get", "install", "-qq", "--print-uris", "--no-install-recommends", "-o", nowhere, *packages]
        code, text = await run(command, self._env)
        found = parse_uris(text)
        if code != 0 or not found:
            raise ImageBuildError(f"the packages of {self.suite} do not resolve:\n{last(text)}")
        return found

    async def fetch(self, archives: Sequence[Archive]) -> None:
        """Download what is not in `archives` yet, digests checked. ImageBuildError when one cannot be had."""
        missing = [one for one in archives if not self._there(one)]
        if not missing:
            return
        partial = os.path.join(self.archives, "partial")
        command = ["/usr/lib/apt/apt-helper", "download-file"]
        for one in missing:
            command += [one.uri, os.path.join(partial, f"{os.getpid()}.{one.file}"), one.digest]
        code, text = await run(command, self._env)
        if code != 0:
            check_space(text, self.directory)
            raise ImageBuildError(f"packages of {self.suite} could not be fetched:\n{last(text)}")
        for one in missing:
            os.replace(os.path.join(partial, f"{os.getpid()}.{one.file}"), os.path.join(self.archives, one.file))

    def _there(self, one: Archive) -> bool:
        try:
            return os.stat(os.path.join(self.archives, one.file)).st_size == one.size
        except FileNotFoundError:
            return False


def parse_uris(text: str) -> list[Archive]:
    """The lines that ``apt-get --print-uris`` prints: ``'uri' file size digest``."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"'([^']+)' (\S+) (\d+) (\S+)", line.strip())
        if match:
            found.append(Archive(match[1], match[2], int(match[3]), match[4]))
    return found


def shares(archives: Sequence[Archive], count: int) -> list[list[Archive]]:
    """The archives in at most ``count`` lots of about equal bytes, the largest first in each."""
    lots: list[tuple[int, list[Archive]]] = [(0, []) for _ in range(max(1, min(count, len(archives))))]
    for one in sorted(archives, key=lambda one: -one.size):
        index = min(range(len(lots)), key=lambda number: lots[number][0])
        lots[index] = (lots[index][0] + one.size, [*lots[index][1], one])
    return [lot for _, lot in lots]


async def run(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    mixed: bool = True,
    timeout_s: float = 600.0,
    given: Optional[bytes] = None,
) -> tuple[int, str]:
    """A program's exit code and output. ``given``: its stdin. ``mixed``: stderr too; else stderr if it fails."""
    error = asyncio.subprocess.STDOUT if mixed else asyncio.subprocess.PIPE
    # A file, not a pipe: a program may end before it has read anything.
    source = os.memfd_create("given") if given is not None else asyncio.subprocess.DEVNULL
    try:
        if given is not None:
            with open(os.dup(source), "wb") as file:
                file.write(given)
            os.lseek(source, 0, os.SEEK_SET)
        process = await asyncio.create_subprocess_exec(
            *command,
            start_new_session=True,  # to be ended with all its children
            env=dict(env),
            stdin=source,
            stdout=asyncio.subprocess.PIPE,
            stderr=error,
        )
    finally:
        if given is not None:
            os.close(source)
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout_s)
    except BaseException as why:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if isinstance(why, asyncio.TimeoutError):
            return 124, f"{command[0]} did not end within {timeout_s:.0f} s"
        raise
    code = process.returncode or 0
    text = (err if code and err else out).decode(errors="replace")
    return code, text


def check_space(text: str, where: str) -> None:
    """OSError when a program's words are that the disk is full."""
    if os.strerror(errno.ENOSPC) in text:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)


def last(text: str, lines: int = 12) -> str:
    """The end of a program's words, for an error; without the passwords of addresses, such as a proxy's."""
    return shown("\n".join(text.strip().splitlines()[-lines:]))
