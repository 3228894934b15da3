"""A container's description becomes an OCI ``config.json``; pure.

Two levels. *standard* is for kernels shared with the host (crun, runc): few capabilities, no new privileges, our
seccomp profile, masked and read-only kernel files. *strong* is for runsc, whose own kernel stands in between: there
the capabilities are those of a kernel that belongs to the container, and the profile would be ignored.

The fields are those of the OCI runtime specification 1.0.2. Resources are absent on purpose: `cadenza.runtime.cgroup`
owns them.
"""

from __future__ import annotations

import re
from typing import Any, Optional

from cadenza.base.errors import InvalidError
from cadenza.runtime.driver import HOST_NETWORK, Command, ContainerConfig, Mount
from cadenza.runtime.ids import ID_COUNT
from cadenza.runtime.seccomp import profile

OPEN_FILES = 1_048_576
"""Most open files of a process, if this process may have as many."""
ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What a root user inside needs to own files, to drop to another user and to serve port 80; nothing that reaches out.
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID")
BUILD_CAPABILITIES = ("AUDIT_WRITE", "SETFCAP", "SETPCAP", "SYS_CHROOT")
"""In addition, for package managers."""
STRONG_CAPABILITIES = (*CAPABILITIES, *BUILD_CAPABILITIES, "NET_RAW", "SYS_PTRACE")

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
SHOWN_SYS_MASKED_PATHS = ("/sys/class/net", "/sys/devices/virtual/net", "/sys/fs/cgroup")
"""In addition, where /sys is the machine's own."""
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def check(config: ContainerConfig) -> None:
    """InvalidError, with what to change, when no runtime could ever start this."""
    if not ID_PATTERN.fullmatch(config.container_id):
        raise InvalidError(f"container id {config.container_id!r}: use 1 to 64 of letters, digits, '_', '.' and '-'")
    check_command(config.argv, config.env, config.cwd)
    if "\0" in config.hostname or not 0 < len(config.hostname) <= 64:
        raise InvalidError("hostname: use 1 to 64 characters")
    for mount in config.mounts:
        if not mount.target.startswith("/") or mount.target == "/" or ".." in mount.target.split("/"):
            raise InvalidError(f"mount target {mount.target!r} must be an absolute path below /, without '..'")
        if mount.kind == "bind" and not mount.source.startswith("/"):
            raise InvalidError(f"mount source {mount.source!r} must be an absolute path")
    for name, value in vars(config.limits).items():
        if value < 0:
            raise InvalidError(f"limit {name} is {value}: use 0 for no limit, or more")


def check_command(argv: tuple[str, ...], env: dict[str, str], cwd: str) -> None:
    """InvalidError when execve(2) or chdir(2) could not take these."""
    if not argv or not argv[0]:
        raise InvalidError("no program to run: argv is empty")
    if any("\0" in part for part in argv):
        raise InvalidError("a program's arguments cannot contain NUL characters")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidError(f"environment variable {name!r}: names have no '=', and neither part has NUL characters")
    if not cwd.startswith("/"):
        raise InvalidError(f"working directory {cwd!r} must be an absolute path")


def _mount(mount: Mount) -> dict[str, Any]:
    options = list(mount.options)
    if mount.kind == "bind":
        options = ["rbind", "nosuid", "nodev", *options]
    if mount.kind == "tmpfs":
        options = ["nosuid", "nodev", *options]
    options.append("ro" if mount.read_only else "rw")
    source = mount.source or mount.kind
    return {"destination": mount.target, "type": mount.kind, "source": source, "options": options}


def _kernel_mounts(config: ContainerConfig, strong: bool, machines_sys: bool) -> list[dict[str, Any]]:
    shm = ["nosuid", "noexec", "nodev", "mode=1777", f"size={config.shm_mib}m"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=64k"],
        },
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": shm},
    ]
    sysfs = ["nosuid", "noexec", "nodev", "ro"]
    if machines_sys:
        # "rro": what is mounted below it is read-only too.
        mounts.append({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", *sysfs, "rro"]})
    else:
        mounts.append({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": sysfs})
    if not strong:
        mqueue = ["nosuid", "noexec", "nodev"]
        mounts.append({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": mqueue})
    return mounts


def _namespaces(config: ContainerConfig) -> list[dict[str, str]]:
    names = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    if config.netns == "":
        names.append({"type": "network"})
    elif config.netns != HOST_NETWORK:
        names.append({"type": "network", "path": config.netns})
    if config.id_base:
        names.append({"type": "user"})
    return names


def _capabilities(config: ContainerConfig, strong: bool) -> dict[str, list[str]]:
    if strong:
        names = STRONG_CAPABILITIES
    else:
        names = (*CAPABILITIES, *(BUILD_CAPABILITIES if config.privileged_build else ()))
    full = ["CAP_" + name for name in sorted(names)]
    held = [] if config.user[0] else full
    return {"bounding": full, "effective": held, "permitted": held, "inheritable": [], "ambient": []}


def process(
    command: Command,
    capabilities: dict[str, list[str]],
    no_new_privileges: bool,
    open_files: int,
    user: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """OCI's ``process`` object, for a container's first program and for those that exec adds."""
    env = dict(command.env)
    env.setdefault("PATH", DEFAULT_PATH)
    sized = command.pty and command.rows > 0 and command.columns > 0
    return {
        "terminal": command.pty,
        **({"consoleSize": {"height": command.rows, "width": command.columns}} if sized else {}),
        "user": {"uid": user[0], "gid": user[1]},
        "args": list(command.argv),
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": command.cwd,
        "capabilities": capabilities,
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": open_files, "soft": open_files}],
        "noNewPrivileges": no_new_privileges,
    }


def exec_process(first: dict[str, Any], command: Command) -> dict[str, Any]:
    """The ``process`` for one more program, beside ``first``: no more rights than that has."""
    return process(command, first["capabilities"], first["noNewPrivileges"], first["rlimits"][0]["hard"])


def oci_spec(
    config: ContainerConfig,
    *,
    strong: bool = False,
    machine: str = "x86_64",
    cgroup: Optional[str] = None,
    rootless_ids: Optional[tuple[int, int]] = None,
    nested: bool = False,
    open_files: int = OPEN_FILES,
) -> dict[str, Any]:
    """The whole ``config.json``.

    ``cgroup``: a cgroup to join, relative to each hierarchy's root, for programs that insist on one (runc).
    ``rootless_ids``: the caller's own uid and gid; the container's root is that user and there are no other ids.
    ``nested``: the caller is root of a user namespace only (`cadenza.runtime.rootless`).
    Raises what `check` raises.
    """
    check(config)
    command = Command(config.argv, config.env, config.cwd)
    mapped = bool(config.id_base) or rootless_ids is not None or nested
    # The kernel mounts sysfs only for the owner of the network namespace; gVisor has its own.
    machines_sys = mapped and config.netns != "" and not strong
    masked = (*MASKED_PATHS, *(SHOWN_SYS_MASKED_PATHS if machines_sys else ()))
    linux: dict[str, Any] = {
        "namespaces": _namespaces(config),
        "maskedPaths": list(masked),
        "readonlyPaths": list(READONLY_PATHS),
    }
    if not strong:
        filter_ = profile(machine)
        if filter_ is not None:
            linux["seccomp"] = filter_
    if cgroup is not None:
        linux["cgroupsPath"] = cgroup
    if config.id_base:
        ids = [{"containerID": 0, "hostID": config.id_base, "size": ID_COUNT}]
        linux["uidMappings"] = ids
        linux["gidMappings"] = ids
    elif rootless_ids is not None:
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = [{"containerID": 0, "hostID": rootless_ids[0], "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": rootless_ids[1], "size": 1}]
    return {
        "ociVersion": "1.0.2",
        "process": process(
            command, _capabilities(config, strong), not config.privileged_build, open_files, config.user
        ),
        "root": {"path": config.rootfs, "readonly": config.read_only_root},
        "hostname": config.hostname,
        "mounts": [*_kernel_mounts(config, strong, machines_sys), *(_mount(mount) for mount in config.mounts)],
        "linux": linux,
    }
