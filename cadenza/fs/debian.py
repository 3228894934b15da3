"""A base root filesystem from the distribution's packages, without a registry and without the packages' scripts.

The host's apt resolves and fetches, with private state directories, so that an ordinary user can do it and the host's
own state stays as it is; packages are fetched and unpacked in parallel; `cadenza.fs.finish` does what their maintainer
scripts would have done. Measured on two cores: 4-6 s, against 32-80 s for tools that run the scripts.
"""

from __future__ import annotations

import asyncio
import glob
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Callable, Mapping, Optional, Sequence

from cadenza.base.errors import ImageBuildError, InvalidError
from cadenza.base.tasks import all_or_none
from cadenza.fs import dpkg, finish
from cadenza.fs.apt import Apt, Archive, check_space, host_mirror, last, run, shares
from cadenza.fs.sources import KEYRINGS, NEWEST_PLAIN, SUITES, Mirror, deb822, suite_for, without_login

PACKAGES = (
    "apt", "base-files", "base-passwd", "bash", "ca-certificates", "coreutils", "dash", "debconf", "debianutils",
    "diffutils", "dpkg", "findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin", "libstdc++6",
    "login", "mawk", "ncurses-base", "netbase", "openssl", "passwd", "perl-base", "sed", "sysvinit-utils", "tar",
    "tzdata", "usr-is-merged", "util-linux",
)  # fmt: skip
"""The base, small and quick. Compilers are not in it: ``apt_install("build-essential")`` adds them."""

PYTHON_PACKAGES = ("python3", "python3-venv")
NOT_IN = {"bullseye": ("usr-is-merged",), "jammy": ("usr-is-merged",)}
FETCHERS = 6
"""Downloads side by side."""


@dataclass
class Timings:
    """Seconds that each phase of a base took, by name, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, begun: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - begun


@dataclass(frozen=True)
class Base:
    """What a finished base is."""

    python: str
    """The interpreter's path inside."""
    version: str
    distribution: str
    suite: str
    timings: Timings


def supported(distribution: str) -> str:
    """The Python minors that need nothing but the distribution, for a sentence."""
    return ", ".join(sorted(SUITES[distribution], key=lambda one: [int(part) for part in one.split(".")]))


def check_python(python: str) -> str:
    """The minor to use: the one asked for, or this process's own. InvalidError when it is not "major.minor"."""
    if not python:
        return f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not re.fullmatch(r"3\.\d{1,2}t?", python):
        raise InvalidError(
            f"debian_slim needs a Python version of the form 'major.minor', as in '3.11', not {python!r}"
        )
    return python


async def build_base(
    root: str,
    python: Optional[str],
    cache: str,
    settings: str,
    environ: Mapping[str, str],
    progress: Callable[[str], None],
    use: Optional[Mirror] = None,
) -> Base:
    """Make a root filesystem in the empty directory ``root``, with the wanted Python minor in it, or without any.

    ``cache``: a directory for lists and packages. ``settings``: lines of apt.conf. ``progress`` takes lines for people.
    ``use``: this mirror, not the host's.
    InvalidError when the Python cannot be had; ImageBuildError when the mirror fails. OSError when the disk is full.
    """
    timings = Timings()
    mirror: Mirror = use if use is not None else await asyncio.to_thread(host_mirror)
    suite = suite_for(mirror.distribution, python) if python else NEWEST_PLAIN[mirror.distribution]
    standalone = None
    if python and not suite:
        suite = NEWEST_PLAIN[mirror.distribution]
        begun = time.monotonic()
        progress(f"no {mirror.distribution} suite has Python {python}: fetching a standalone build with uv")
        standalone = await standalone_python(python, os.path.join(cache, "python"), mirror.distribution, environ)
        timings.add("python", begun)
    apt = Apt(os.path.join(cache, "apt", f"{mirror.distribution}-{suite}"), mirror, suite, settings, environ)
    await asyncio.to_thread(apt.prepare)
    names = [one for one in PACKAGES if one not in NOT_IN.get(suite, ())]
    names += PYTHON_PACKAGES if python and not standalone else ()
    archives = await _resolve(apt, names, progress, timings)
    total = sum(one.size for one in archives)
    progress(f"{len(archives)} packages of {suite}, {total / 1e6:.0f} MB")
    finish.prepare(root)
    try:
        paths = await _fetch_and_unpack(apt, archives, root, progress, timings)
    except ImageBuildError:
        # The lists may name packages that the mirror has replaced since.
        begun = time.monotonic()
        progress("fetching the package lists again")
        await apt.update()
        archives = await apt.closure(names)
        timings.add("lists", begun)
        shutil.rmtree(root)
        os.mkdir(root)
        finish.prepare(root)
        paths = await _fetch_and_unpack(apt, archives, root, progress, timings)
    begun = time.monotonic()
    await asyncio.to_thread(_database, root, apt, archives, paths)
    await asyncio.to_thread(finish.finish, root)
    _write_sources(root, mirror, suite)
    timings.add("finish", begun)
    if not python:
        return Base("", "", mirror.distribution, suite, timings)
    begun = time.monotonic()
    if standalone:
        await asyncio.to_thread(put_standalone, root, standalone, python)
        await asyncio.to_thread(finish.loader_cache, root)
        interpreter = f"/usr/local/bin/python{python.rstrip('t')}"
    else:
        interpreter = f"/usr/bin/python{python}"
        await asyncio.to_thread(_python, root, python)
    progress("compiling Python's modules")
    await compile_modules(root, interpreter)
    timings.add("compile", begun)
    return Base(
        "/usr/local/bin/python3" if standalone else "/usr/bin/python3", python, mirror.distribution, suite, timings
    )


async def _resolve(apt: Apt, names: Sequence[str], progress: Callable[[str], None], timings: Timings) -> list[Archive]:
    begun = time.monotonic()
    if apt.stale(time.time()):
        progress(f"fetching the package lists of {apt.suite}")
        await apt.update()
    timings.add("lists", begun)
    begun = time.monotonic()
    archives = await apt.closure(names)
    timings.add("resolve", begun)
    return archives


async def _fetch_and_unpack(
    apt: Apt, archives: Sequence[Archive], root: str, progress: Callable[[str], None], timings: Timings
) -> dict[str, tuple[str, ...]]:
    """Fetch in several lots and unpack each as it comes; gives each file's paths."""
    begun = time.monotonic()
    gate = asyncio.Semaphore(os.cpu_count() or 1)
    paths: dict[str, tuple[str, ...]] = {}
    modes: dict[str, int] = {}

    async def unpack(one: Archive) -> None:
        async with gate:
            listing = await _unpack(os.path.join(apt.archives, one.file), root)
        paths[one.file] = tuple(name for _, name in listing)
        for mode, name in listing:
            if mode[0] == "d":
                modes.setdefault(name, permissions(mode))

    async def lot(share: list[Archive]) -> None:
        await apt.fetch(share)
        timings.seconds["fetch"] = time.monotonic() - begun
        await all_or_none(unpack(one) for one in share)

    await all_or_none(lot(share) for share in shares(archives, FETCHERS))
    # tar closes a directory while it works in it: what another one saw of that, it has put back as the mode.
    for name, mode in modes.items():
        whole = os.path.join(root, name)
        if not os.path.islink(whole.rstrip("/")):
            os.chmod(whole, mode)
    progress(f"unpacked {len(paths)} packages")
    timings.add("fetch and unpack", begun)
    return paths


_UNPACK = (
    'set -o pipefail; root=$1; shift; deb=$1; shift; dpkg-deb --fsys-tarfile "$deb" '
    '| tar -x -vv --numeric-owner --warning=no-timestamp -C "$root" -p --keep-directory-symlink --no-overwrite-dir "$@"'
)


def permissions(mode: str) -> int:
    """The number of a mode as ls writes it, ``drwxr-xr-t``; pure."""
    bits = sum(1 << (8 - at) for at, letter in enumerate(mode[1:10]) if letter not in "-ST")
    return bits + sum(0o1000 << (2 - at) for at in range(3) if mode[3 + 3 * at] in "sStT")


def listed(line: str) -> tuple[str, str]:
    """(mode, path) of a line of ``tar -vv``: mode, owner, size, date, time, path, and where a link leads; pure."""
    mode, _, _, _, _, name = line.split(None, 5)
    if mode[0] == "l":
        name = name.partition(" -> ")[0]
    elif mode[0] == "h":
        name = name.partition(" link to ")[0]
    return mode, name


async def _unpack(deb: str, root: str) -> list[tuple[str, str]]:
    excluded = [f"--exclude=./{one}" for one in finish.EXCLUDED]
    excluded += ["--exclude=./usr/share/doc/*/[!c]*", "--exclude=./usr/share/doc/*/ch*"]
    owner = [] if os.geteuid() == 0 else ["--no-same-owner"]
    command = ["bash", "-c", _UNPACK, "unpack", root, deb, *owner, *excluded]
    code, text = await run(command, {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, mixed=False)
    if code != 0:
        check_space(text, root)
        raise ImageBuildError(f"{os.path.basename(deb)} could not be unpacked:\n{last(text)}")
    return [listed(line) for line in text.splitlines()]


def _database(root: str, apt: Apt, archives: Sequence[Archive], paths: Mapping[str, tuple[str, ...]]) -> None:
    packages = []
    for one in archives:
        read = dpkg.read_control(os.path.join(apt.archives, one.file))
        packages.append(dpkg.Package(read.name, read.fields, read.control, read.members, paths[one.file]))
    arch = next(one.fields["Architecture"] for one in packages if one.name == "dpkg")
    dpkg.write_database(root, packages, arch)


def _write_sources(root: str, mirror: Mirror, suite: str) -> None:
    """The same mirror inside, without passwords. Keys in a file that the image does not have are copied into it."""
    mirror = replace(
        mirror,
        archive=tuple(without_login(one)[0] for one in mirror.archive),
        security=tuple(without_login(one)[0] for one in mirror.security),
    )
    signed_by = mirror.signed_by or KEYRINGS[mirror.distribution]
    if "\n" not in signed_by:
        kept = []
        for path in signed_by.split():
            if not os.path.exists(root + path) and os.path.exists(path):
                os.makedirs(os.path.dirname(root + path), exist_ok=True)
                shutil.copyfile(path, root + path)
            if os.path.exists(root + path):
                kept.append(path)
        signed_by = " ".join(kept)
    target = os.path.join(root, f"etc/apt/sources.list.d/{mirror.distribution}.sources")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w", encoding="utf-8") as file:
        file.write(deb822(mirror.sources(suite, signed_by)))


def _python(root: str, python: str) -> None:
    """``python``, and a pip that installs for the whole system."""
    for path in glob.glob(os.path.join(root, "usr/lib/python3*/EXTERNALLY-MANAGED")):
        os.unlink(path)
    if not os.path.lexists(os.path.join(root, "usr/bin/python")):
        os.symlink("python3", os.path.join(root, "usr/bin/python"))
    finish.unpack_wheels(root, f"usr/local/lib/python{python}/dist-packages")
    _pip_scripts(root, python, "/usr/bin/python3")


def put_standalone(root: str, source: str, python: str) -> None:
    """A self-contained Python in /usr/local. Blocks."""
    os.makedirs(os.path.join(root, "usr/local/bin"), exist_ok=True)
    shutil.copytree(source, os.path.join(root, "usr/local"), symlinks=True, dirs_exist_ok=True)
    for path in glob.glob(os.path.join(root, "usr/local/lib/python3*/EXTERNALLY-MANAGED")):
        os.unlink(path)
    for name in ("python", "python3"):
        path = os.path.join(root, "usr/local/bin", name)
        if not os.path.lexists(path):
            os.symlink(f"python{python.rstrip('t')}", path)
    _pip_scripts(root, python.rstrip("t"), "/usr/local/bin/python3")


def _pip_scripts(root: str, python: str, interpreter: str) -> None:
    script = f"#!{interpreter}\nimport sys\nfrom pip._internal.cli.main import main\n\nsys.exit(main())\n"
    for name in ("pip", "pip3", f"pip{python}"):
        path = os.path.join(root, "usr/local/bin", name)
        if os.path.lexists(path):
            os.unlink(path)
        with open(path, "w", encoding="utf-8") as file:
            file.write(script)
        os.chmod(path, 0o755)


async def compile_modules(root: str, interpreter: str) -> None:
    """Precompile, by the tree's own interpreter: halves its start. Never checked against sources that do not change."""
    if interpreter.startswith("/usr/local"):
        command, home = [root + interpreter], os.path.join(root, "usr/local")
    else:
        command, home = finish.inside(root, interpreter.lstrip("/")), os.path.join(root, "usr")
    command += [
        "-B",  # what it imports itself would be compiled by its path here
        "-S",
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        root,
        "-p",
        "/",
        "-i",
        "-",
    ]
    lots = await asyncio.to_thread(_modules, root, os.cpu_count() or 1)
    env = {"PATH": "/usr/bin:/bin", "PYTHONHOME": home, "LC_ALL": "C.UTF-8"}
    # A file that does not compile (templates, bad test data) is left as it is; so the exit codes say nothing. The
    # module's own -j would start the interpreter again by its plain path, which the host's loader may refuse.
    await all_or_none(run(command, env, given="\n".join(lot).encode()) for lot in lots)


def _modules(root: str, count: int) -> list[list[str]]:
    """The Python files to compile, in lots of about equal bytes."""
    found = []
    for folder in ("usr/lib", "usr/local/lib"):
        for top in glob.glob(os.path.join(root, folder, "python3*")):
            for parent, directories, names in os.walk(top):
                directories[:] = [one for one in directories if one not in ("test", "tests", "__pycache__")]
                paths = [os.path.join(parent, one) for one in names if one.endswith(".py")]
                found += [Archive("", path, os.stat(path).st_size, "") for path in paths if not os.path.islink(path)]
    return [[one.file for one in lot] for lot in shares(found, count)] if found else []


async def standalone_python(python: str, cache: str, distribution: str, environ: Mapping[str, str]) -> str:
    """The directory of a self-contained build of this minor, fetched once by uv. InvalidError when that fails."""
    here = os.path.join(cache, python)
    found = sorted(glob.glob(os.path.join(here, "cpython-*")))
    if found:
        return found[-1]
    choices = f"this machine's {distribution} packages have Python {supported(distribution)}"
    program = shutil.which("uv", path=environ.get("PATH", "")) or host_uv(environ)
    if program is None:
        raise InvalidError(
            f"there is no Python {python} for images here: {choices}; for others install uv on this machine "
            "(pip install uv), which fetches them"
        )
    scratch = f"{here}.{os.getpid()}.{os.urandom(4).hex()}.partial"  # builds side by side have one each
    os.makedirs(cache, exist_ok=True)
    command = [program, "python", "install", "--no-bin", "--install-dir", scratch, python.replace("t", "+freethreaded")]
    try:
        code, text = await run(command, dict(environ), timeout_s=300.0)
        if code != 0:
            code, text = await run([one for one in command if one != "--no-bin"], dict(environ), timeout_s=300.0)
        if code != 0 or not glob.glob(os.path.join(scratch, "cpython-*")):
            raise InvalidError(
                f"there is no Python {python} for images here: {choices}, and a standalone build could not be fetched "
                f"by uv:\n{last(text)}"
            )
        try:
            os.rename(scratch, here)
        except OSError:
            if not os.path.isdir(here):
                raise  # else another build was faster
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(glob.glob(os.path.join(here, "cpython-*")))[-1]


def host_uv(environ: Mapping[str, str]) -> Optional[str]:
    """The host's uv program, if it has one: a real program, not a script that finds one."""
    folders = environ.get("PATH", "").split(":")
    folders += [os.path.dirname(sys.executable), os.path.join(sys.prefix, "bin")]
    home = environ.get("HOME", "")
    folders += [os.path.join(home, ".local/bin"), os.path.join(home, ".cargo/bin")] if home else []
    for folder in folders:
        path = os.path.realpath(os.path.join(folder, "uv"))
        try:
            with open(path, "rb") as file:
                if file.read(4) == b"\x7fELF" and os.access(path, os.X_OK):
                    return path
        except OSError:
            continue
    return None
