"""Which driver gives which level of isolation here, and making it."""

from __future__ import annotations

import shutil
from dataclasses import replace

from cadenza.base.errors import InvalidError
from cadenza.runtime import rootless
from cadenza.runtime.cgroup import Hierarchy
from cadenza.runtime.driver import Driver
from cadenza.runtime.launcher import Launcher
from cadenza.runtime.oci import OciDriver, crun, runc, runsc
from cadenza.runtime.probe import PROGRAM_PATH, Machine
from cadenza.runtime.process import ProcessDriver

STANDARD = "standard"
STRONG = "strong"
STANDARD_ORDER = ("crun", "runc", "runsc")
ROOTLESS = "-rootless"
"""At the end of a runtime's name where it is run by an ordinary user."""


def choose(machine: Machine, runtime: str) -> dict[str, str]:
    """Level of isolation to the runtime that gives it; pure.

    ``runtime`` is the configuration's: ``auto``, or one that must be used for *standard*; InvalidError, with what
    mends it, if that does not work. Without any container runtime *standard* is ``process``, which isolates nothing.
    Where *strong* is absent it cannot be had.
    """
    found = _levels(machine, runtime)
    return {level: _shown(machine, name) for level, name in found.items()}


def _shown(machine: Machine, name: str) -> str:
    return name + ROOTLESS if machine.rootless and name != "process" else name


def _levels(machine: Machine, runtime: str) -> dict[str, str]:
    found = {}
    if runtime == "auto":
        found[STANDARD] = next((name for name in STANDARD_ORDER if machine.can(name)), "process")
    elif runtime == "process" or machine.can(runtime):
        found[STANDARD] = runtime
    else:
        ability = machine.abilities.get(runtime)
        why = ability.sentence if ability is not None else f"{runtime} is not known."
        remedy = f" Try: {ability.remedy}" if ability is not None and ability.remedy else ""
        raise InvalidError(f"The configuration asks for the runtime {runtime}. {why}{remedy}")
    if machine.can("runsc"):
        found[STRONG] = "runsc"
    return found


def open_driver(name: str, machine: Machine, state_dir: str, launcher: Launcher, hierarchy: Hierarchy) -> Driver:
    """The driver of that name. Needs a running event loop; takes over what an earlier agent left in ``state_dir``."""
    if name == "process":
        return ProcessDriver(state_dir, launcher, hierarchy)
    program = name.removesuffix(ROOTLESS)
    path = shutil.which(program, path=PROGRAM_PATH)
    if path is None:
        raise InvalidError(f"{program} is not installed")
    if program == "runsc":
        dialect = runsc(path, machine.abilities["runsc"].variant)
    else:
        dialect = {"crun": crun, "runc": runc}[program](path)
    return OciDriver(replace(dialect, name=name), state_dir, launcher, hierarchy)


def open_drivers(
    machine: Machine, runtime: str, state_dir: str, launcher: Launcher, hierarchy: Hierarchy
) -> dict[str, Driver]:
    """Level to driver, as `choose` says; one driver for each runtime. Raises what that raises."""
    if machine.rootless and not rootless.entered():
        levels = {STANDARD: "process"}  # the namespace is entered when a process begins, or not at all
    else:
        levels = choose(machine, runtime)
    made = {name: open_driver(name, machine, state_dir, launcher, hierarchy) for name in sorted(set(levels.values()))}
    return {level: made[name] for level, name in levels.items()}
