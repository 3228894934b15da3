"""Devices for containers by the Container Device Interface: what a vendor's file says a container needs of the machine.

``nvidia-ctk cdi generate`` writes such files. Source: the CDI specification, version 0.6 (SPEC.md of
cncf-tags/container-device-interface). Only JSON files are read. `apply` is pure.
"""

from __future__ import annotations

import glob
import json
import os
import stat
from typing import Any, Mapping, Sequence

from cadenza.base.errors import InvalidError

FOLDERS = ("/etc/cdi", "/var/run/cdi")
"""Searched in this order; of two files that name a device, the later one counts."""
REMEDY = "write one by: nvidia-ctk cdi generate --format=json --output=/etc/cdi/nvidia.json"


def find(names: Sequence[str], folders: Sequence[str] = FOLDERS) -> list[Mapping[str, Any]]:
    """The ``containerEdits`` for devices such as ``nvidia.com/gpu=0``: those of each file once, then the devices' own.

    InvalidError says which device is in no file and how to write one.
    """
    common: dict[str, Mapping[str, Any]] = {}
    own: dict[str, tuple[str, Mapping[str, Any]]] = {}
    yaml: list[str] = []
    for folder in folders:
        yaml += glob.glob(f"{glob.escape(folder)}/*.yaml") + glob.glob(f"{glob.escape(folder)}/*.yml")
        for path in sorted(glob.glob(f"{glob.escape(folder)}/*.json")):
            content = _read(path)
            common[path] = content.get("containerEdits") or {}
            for one in content.get("devices") or ():
                own[f"{content.get('kind')}={one.get('name')}"] = (path, one.get("containerEdits") or {})
    found: list[Mapping[str, Any]] = []
    used: list[str] = []
    for name in names:
        if name not in own:
            there = f"; {', '.join(sorted(yaml))} is YAML, which is not read" if yaml else ""
            raise InvalidError(f"no file of {' and '.join(folders)} describes the device {name}{there}; {REMEDY}")
        path, edits = own[name]
        if path not in used:
            used.append(path)
            found.append(common[path])
        found.append(edits)
    return found


def _read(path: str) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise InvalidError(f"the device file {path} cannot be read: {error}; {REMEDY}") from None
    if not isinstance(content, dict) or not isinstance(content.get("devices") or [], list):
        raise InvalidError(f"the device file {path} is no CDI specification; {REMEDY}")
    return content


def known(names: Sequence[str], folders: Sequence[str] = FOLDERS) -> bool:
    """Whether `find` would find them."""
    try:
        find(names, folders)
    except InvalidError:
        return False
    return True


def numbers(path: str) -> tuple[str, int, int]:
    """A device node's type (``c`` or ``b``), major and minor number. InvalidError when it is none."""
    try:
        node = os.stat(path)
    except OSError as error:
        raise InvalidError(f"the device {path} is not there: {error.strerror}") from None
    if not (stat.S_ISCHR(node.st_mode) or stat.S_ISBLK(node.st_mode)):
        raise InvalidError(f"{path} is no device")
    return ("c" if stat.S_ISCHR(node.st_mode) else "b"), os.major(node.st_rdev), os.minor(node.st_rdev)


def apply(spec: dict[str, Any], edits: Sequence[Mapping[str, Any]], nodes: Mapping[str, tuple[str, int, int]]) -> None:
    """Put the edits into an OCI configuration. ``nodes``: `numbers` of all host paths that `paths` gives."""
    devices = spec["linux"].setdefault("devices", [])
    for one in edits:
        for node in one.get("deviceNodes") or ():
            kind, major, minor = nodes[_host(node)]
            device = {"path": node["path"], "type": node.get("type") or kind, "major": major, "minor": minor}
            device["fileMode"] = node.get("fileMode", 0o666)
            if device["path"] not in [known["path"] for known in devices]:
                devices.append(device)
        for mount in one.get("mounts") or ():
            options = list(mount.get("options") or ("ro", "nosuid", "nodev", "bind"))
            options += [] if {"bind", "rbind"} & set(options) else ["rbind"]
            spec["mounts"].append(
                {
                    "destination": mount["containerPath"],
                    "type": mount.get("type") or "bind",
                    "source": mount["hostPath"],
                    "options": options,
                }
            )
        for hook in one.get("hooks") or ():
            kept = {key: hook[key] for key in ("path", "args", "env", "timeout") if key in hook}
            spec.setdefault("hooks", {}).setdefault(hook["hookName"], []).append(kept)
        env = spec["process"]["env"]
        for variable in one.get("env") or ():
            name = variable.partition("=")[0]
            env[:] = [other for other in env if other.partition("=")[0] != name]
            env.append(variable)


def paths(edits: Sequence[Mapping[str, Any]]) -> list[str]:
    """The device nodes of the host that the edits name."""
    return [_host(node) for one in edits for node in one.get("deviceNodes") or ()]


def _host(node: Mapping[str, Any]) -> str:
    return str(node.get("hostPath") or node["path"])
