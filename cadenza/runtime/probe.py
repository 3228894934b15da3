"""What this machine can do, found out by trying, each trial with a time limit (gVisor on kvm can hang for good).

The result is a value that says of each ability one sentence and, where it is lacking, the one command that mends it.
It is kept with the boot it was made in, so that an agent's start does not pay for it twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Callable, Iterable, Optional

from cadenza.base.errors import Error
from cadenza.runtime import rootless
from cadenza.runtime.cgroup import Hierarchy, detect
from cadenza.runtime.driver import ContainerConfig, Limits, Mount, RuntimeFault, Stdio
from cadenza.runtime.ids import FIRST_ID, IdRange, make_range, trial
from cadenza.runtime.launcher import Launcher
from cadenza.runtime.oci import Dialect, OciDriver, crun, runc, runsc
from cadenza.runtime.seccomp import ARCHITECTURES

TRIAL_LIMIT_S = 8.0
RUNTIMES = ("crun", "runc", "runsc")
NESTED = ("crun", "runsc")
"""Those that work without the machine's root."""
PLATFORMS = ("systrap", "ptrace")
IDLE_SETTLE_S = 0.3
IDLE_SAMPLE_S = 0.5
IDLE_BUSY_SHARE = 0.02
"""A platform that uses more of a core while its container sleeps is passed over for a quieter one."""
PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
VERSION = 4
KEPT = "probe.json"
USERNS_SWITCHES = (
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    "/proc/sys/user/max_user_namespaces",
)
SHARED = (("crun", crun), ("runc", runc))
"""Those that share the machine's kernel."""
SHARED_ROOT = "Root in a standard container is the machine's root, with few rights"
OLD_KERNEL = "use Linux 5.19 or newer, and ext4, xfs or btrfs for the data directory"

REMEDIES = {
    "crun": "apt-get install crun",
    "runc": "apt-get install runc",
    "runsc": "scripts/install-runsc.sh",
    "network": "apt-get install iproute2 nftables",
}


@dataclass(frozen=True)
class Ability:
    """One thing that a machine can do, or not. ``remedy`` is a command, or "" when none is known or needed."""

    works: bool
    sentence: str
    remedy: str = ""
    variant: str = ""
    """runsc: the platform. Cgroups: v1, hybrid or v2."""


@dataclass(frozen=True)
class Machine:
    """All abilities by name: crun, runc, runsc, cgroups, network, overlay, fuse, seccomp, user namespaces."""

    root: bool
    """The machine's root."""
    abilities: dict[str, Ability] = field(default_factory=dict)

    rootless: bool = False
    """What works, works in a namespace of an ordinary user's own (`cadenza.runtime.rootless`)."""

    @property
    def mapped(self) -> tuple[str, ...]:
        """The runtimes whose containers can have ids of their own."""
        found = self.abilities.get("container ids")
        return tuple(found.variant.split()) if found is not None and found.works else ()

    def can(self, name: str) -> bool:
        found = self.abilities.get(name)
        return found is not None and found.works


def _file_system(name: str) -> bool:
    try:
        with open("/proc/filesystems") as file:
            if any(line.split()[-1] == name for line in file):
                return True
    except OSError:
        pass
    # Perhaps a module that is not loaded yet; loading it is what the first mount would do.
    modprobe = shutil.which("modprobe", path=PROGRAM_PATH)
    if os.geteuid() != 0 or modprobe is None:
        return False
    return subprocess.run([modprobe, "-q", name], check=False, timeout=TRIAL_LIMIT_S).returncode == 0


def _user_namespaces() -> Ability:
    path = shutil.which("unshare", path=PROGRAM_PATH)
    if path is None:
        return Ability(False, "The program unshare is missing.", "apt-get install util-linux")
    try:
        tried = subprocess.run(
            [path, "--user", "--map-root-user", "true"], check=False, capture_output=True, timeout=TRIAL_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return Ability(False, "Making a user namespace hangs.")
    if tried.returncode == 0:
        return Ability(True, "Users may make user namespaces.")
    return Ability(
        False,
        "This user may not make user namespaces, so there are no containers without root.",
        "sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0",
    )


def _network(root: bool) -> Ability:
    if not root:
        return Ability(False, "Containers share the machine's network: a network of their own needs root.")
    missing = [name for name in ("ip", "nft") if shutil.which(name, path=PROGRAM_PATH) is None]
    if missing:
        return Ability(False, f"Missing for container networks: {', '.join(missing)}.", REMEDIES["network"])
    return Ability(True, "Containers get a network of their own.")


def still_abilities(root: bool, hierarchy: Hierarchy, machine: str) -> dict[str, Ability]:
    """What can be told without running a container."""
    if hierarchy.kind == "none":
        cgroups = Ability(False, f"No limits on cpu and memory: {hierarchy.reason}.")
    else:
        cgroups = Ability(True, f"Limits by cgroups ({hierarchy.kind}).", variant=hierarchy.kind)
    fuse = os.path.exists("/dev/fuse")
    overlay = _file_system("overlay")
    filtered = machine in ARCHITECTURES
    return {
        "cgroups": cgroups,
        "network": _network(root),
        "overlay": Ability(overlay, "overlayfs is there." if overlay else "The kernel has no overlayfs."),
        "erofs": (
            Ability(True, "EROFS is there.") if _file_system("erofs") else Ability(False, "The kernel has no EROFS.")
        ),
        "fuse": Ability(fuse, "FUSE is there." if fuse else "There is no /dev/fuse.", "" if fuse else "modprobe fuse"),
        "seccomp": Ability(
            filtered,
            "System calls are filtered." if filtered else f"There is no system call filter for {machine} yet.",
        ),
        "user namespaces": _user_namespaces(),
    }


async def _trial(
    dialect: Dialect,
    launcher: Launcher,
    hierarchy: Hierarchy,
    measure_idle: bool = False,
    id_range: Optional[IdRange] = None,
) -> tuple[str, float]:
    """Run a container. ("" if it worked, else why not; the share of a core that it uses while it sleeps)."""
    folder = tempfile.mkdtemp(prefix="cadenza-probe-", dir=None if id_range is None else "/run")
    os.chmod(folder, 0o711)  # a root with other ids must get through
    driver = OciDriver(dialect, os.path.join(folder, "state"), launcher, hierarchy)
    name = f"probe{os.getpid()}"
    try:
        root, bundle = os.path.join(folder, "root"), os.path.join(folder, "bundle")
        for part in ("usr", "proc", "dev", "sys", "tmp"):
            os.makedirs(os.path.join(root, part))
        mounts = [Mount("/usr", "/usr", read_only=True)]
        for part in ("bin", "lib", "lib64", "sbin"):
            if os.path.islink(f"/{part}"):
                os.symlink(os.readlink(f"/{part}"), os.path.join(root, part))
            elif os.path.isdir(f"/{part}"):
                os.makedirs(os.path.join(root, part))
                mounts.append(Mount(f"/{part}", f"/{part}", read_only=True))
        os.makedirs(bundle)
        argv = ("/bin/sleep", "60") if measure_idle else ("/bin/sh", "-c", "exit 42")
        config = ContainerConfig(name, root, argv, {}, mounts=tuple(mounts), limits=Limits(pids_limit=1000))
        if id_range is not None:
            config = replace(config, id_base=id_range.base)
        await driver.start(config, bundle, Stdio())
        if not measure_idle:
            end = await driver.wait(name)
            return ("" if end.code == 42 else f"a trial ended with {end}"), 0.0
        await asyncio.sleep(IDLE_SETTLE_S)
        before = (await driver.stats(name)).cpu_s
        await asyncio.sleep(IDLE_SAMPLE_S)
        return "", ((await driver.stats(name)).cpu_s - before) / IDLE_SAMPLE_S
    except (Error, OSError) as error:
        return str(error), 0.0
    finally:
        await driver.delete(name)
        shutil.rmtree(folder, ignore_errors=True)


async def _try(
    dialect: Dialect,
    launcher: Launcher,
    hierarchy: Hierarchy,
    idle: bool = False,
    id_range: Optional[IdRange] = None,
) -> tuple[str, float]:
    try:
        return await asyncio.wait_for(_trial(dialect, launcher, hierarchy, idle, id_range), TRIAL_LIMIT_S)
    except asyncio.TimeoutError:
        return f"a trial did not end within {TRIAL_LIMIT_S:g} s", 0.0


async def _probe_runtime(
    name: str, make: Callable[[str], Dialect], launcher: Launcher, hierarchy: Hierarchy
) -> Ability:
    path = shutil.which(name, path=PROGRAM_PATH)
    if path is None:
        return Ability(False, f"{name} is not installed.", REMEDIES[name])
    fault, _ = await _try(make(path), launcher, hierarchy)
    return Ability(True, f"{name} works.") if not fault else Ability(False, f"{name} does not work here: {fault}.")


async def _probe_ids(place: str, made: Iterable[Dialect], launcher: Launcher, hierarchy: Hierarchy) -> Ability:
    """Whether standard containers' root can be nobody on the machine, with layers from the file system of ``place``."""
    id_range = None
    try:
        id_range = await asyncio.to_thread(make_range, FIRST_ID)
        await asyncio.to_thread(trial, place, id_range)
        faults, working = [], []
        for dialect in made:
            fault, _ = await _try(dialect, launcher, hierarchy, id_range=id_range)
            if fault:
                faults.append(f"{dialect.name}: {fault}")
            else:
                working.append(dialect.name)
    except RuntimeFault as error:
        return Ability(False, f"{SHARED_ROOT}: {error}.")
    except OSError as error:
        return Ability(False, f"{SHARED_ROOT}: mapping the ids of {place} fails ({error.strerror}).", OLD_KERNEL)
    finally:
        if id_range is not None:
            os.close(id_range.userns)
    if not working:
        return Ability(False, f"{SHARED_ROOT}: {'; '.join(faults) or 'no runtime for it works'}.")
    return Ability(True, "Root in a standard container is nobody on this machine.", variant=" ".join(working))


async def _probe_runsc(launcher: Launcher, hierarchy: Hierarchy) -> Ability:
    path = shutil.which("runsc", path=PROGRAM_PATH)
    if path is None:
        return Ability(False, "runsc (gVisor) is not installed: no strong isolation.", REMEDIES["runsc"])
    faults, working = [], []
    for platform in PLATFORMS:
        fault, _ = await _try(runsc(path, platform), launcher, hierarchy)
        if fault:
            faults.append(f"{platform}: {fault}")
            continue
        _, busy = await _try(runsc(path, platform), launcher, hierarchy, idle=True)
        working.append((busy > IDLE_BUSY_SHARE, platform))
        if busy <= IDLE_BUSY_SHARE:
            break
    if not working:
        return Ability(False, f"runsc does not work here: {'; '.join(faults)}.", REMEDIES["runsc"])
    # Quiet ones first, else the first that works; the order of PLATFORMS is that of speed.
    chosen = sorted(working, key=lambda one: one[0])[0][1]
    return Ability(True, f"runsc works ({chosen}).", variant=chosen)


async def probe(launcher: Launcher, hierarchy: Optional[Hierarchy] = None, place: str = "/tmp") -> Machine:
    """Try everything. Takes about 2 s on a machine with gVisor. ``place``: on the file system of the images."""
    hierarchy = hierarchy or detect()
    inside = rootless.entered()
    root = os.geteuid() == 0 and not inside
    abilities = await asyncio.to_thread(still_abilities, root, hierarchy, os.uname().machine)
    if root:
        abilities["crun"] = await _probe_runtime("crun", crun, launcher, hierarchy)
        abilities["runc"] = await _probe_runtime("runc", runc, launcher, hierarchy)
        made = [make(str(shutil.which(name, path=PROGRAM_PATH))) for name, make in SHARED if abilities[name].works]
        abilities["container ids"] = await _probe_ids(place, made, launcher, hierarchy)
        abilities["runsc"] = await _probe_runsc(launcher, hierarchy)
    elif inside:
        abilities["crun"] = await _probe_runtime("crun", crun, launcher, hierarchy)
        abilities["runc"] = Ability(False, "runc is used by root only: it insists on cgroups.")
        abilities["container ids"] = Ability(False, "Root in a container is this user, who has no rights beyond.")
        abilities["runsc"] = await _probe_runsc(launcher, hierarchy)
    else:
        for name in RUNTIMES:
            abilities[name] = Ability(False, f"{name} needs root, or user namespaces.")
    return Machine(root, abilities, inside and any(abilities[name].works for name in RUNTIMES))


def rootless_machine(state_dir: str) -> Machine:
    """What an ordinary user's namespace can do, by trying in a process of its own; kept. Blocks, up to some seconds."""
    kept = _kept(state_dir)
    if kept is not None:
        return kept
    try:
        rootless.plan()
    except rootless.Unable as error:
        return _unable(str(error), error.remedy)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *filter(None, sys.path)])}
    argv = [sys.executable, "-m", "cadenza.runtime.probe", state_dir]
    try:
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return _unable("trying took too long", "")
    kept = _kept(state_dir)
    if kept is None:
        try:
            kept = _machine(json.loads(done.stdout.splitlines()[-1]))
        except (ValueError, LookupError, TypeError):
            last = done.stderr.strip().splitlines()[-1:] or [f"a trial ended with code {done.returncode}"]
            return _unable(last[0], "")
    return kept


def _unable(why: str, remedy: str) -> Machine:
    abilities = still_abilities(False, detect(), os.uname().machine)
    abilities["user namespaces"] = Ability(False, f"No containers without root: {why}.", remedy)
    for name in RUNTIMES:
        abilities[name] = Ability(False, f"{name} needs root, or user namespaces.")
    return Machine(False, abilities)


def main(argv: list[str]) -> int:
    """``python -m cadenza.runtime.probe STATE_DIR``: probe in a namespace of this user's own; prints JSON."""
    try:
        rootless.enter(rootless.plan())
    except rootless.Unable as error:
        machine = _unable(str(error), error.remedy)
    else:
        machine = asyncio.run(_probe_here(argv[0]))
    print(json.dumps(asdict(machine)))
    return 0


async def _probe_here(state_dir: str) -> Machine:
    return await kept_probe(state_dir, Launcher())


def _fingerprint() -> dict[str, object]:
    """What a kept result depends on: this boot, this user, these programs."""
    found: dict[str, object] = {"version": VERSION, "uid": rootless.outside_uid()}
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            found["boot"] = file.read().strip()
    except OSError:
        pass
    for name in (*RUNTIMES, "ip", "nft", "newuidmap", "newgidmap"):
        path = shutil.which(name, path=PROGRAM_PATH)
        found[name] = [path, os.stat(path).st_mtime] if path else None
    for path in ("/etc/subuid", "/etc/subgid"):
        found[path] = os.stat(path).st_mtime if os.path.exists(path) else None
    for path in USERNS_SWITCHES:
        try:
            with open(path) as file:
                found[path] = file.read().strip()
        except OSError:
            pass
    return found


def _machine(value: dict[str, Any]) -> Machine:
    abilities = {name: Ability(**one) for name, one in value["abilities"].items()}
    return Machine(bool(value["root"]), abilities, bool(value["rootless"]))


def _kept(state_dir: str) -> Optional[Machine]:
    try:
        with open(os.path.join(state_dir, KEPT)) as file:
            kept = json.load(file)
        return _machine(kept) if kept["fingerprint"] == _fingerprint() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(state_dir: str) -> None:
    """Probe again the next time."""
    try:
        os.unlink(os.path.join(state_dir, KEPT))
    except FileNotFoundError:
        pass


async def kept_probe(state_dir: str, launcher: Launcher) -> Machine:
    """What an earlier `probe` of this boot found, if the programs are the same; else a new one, which is kept."""
    kept = await asyncio.to_thread(_kept, state_dir)
    if kept is not None:
        return kept
    if os.geteuid() != 0:
        return await asyncio.to_thread(rootless_machine, state_dir)
    os.makedirs(state_dir, exist_ok=True)
    machine = await probe(launcher, place=state_dir)
    tried = RUNTIMES if machine.root else NESTED
    if all(machine.can(name) or shutil.which(name, path=PROGRAM_PATH) is None for name in tried):
        path = os.path.join(state_dir, KEPT)
        with open(path + ".new", "w") as file:
            json.dump({"fingerprint": _fingerprint(), **asdict(machine)}, file)
        os.replace(path + ".new", path)
    # Else one is there and failed: perhaps only because the machine was busy. Ask again the next time.
    return machine


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
