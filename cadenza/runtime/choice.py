"""Which driver gives which level of isolation here, and making it."""

from __future__ import annotations

import shutil

from cadenza.base.errors import InvalidError
from cadenza.runtime.cgroup import Hierarchy
from cadenza.runtime.driver import Driver
from cadenza.runtime.launcher import Launcher
from cadenza.runtime.oci import OciDriver, crun, runc, runsc
from cadenza.runtime.probe import PROGRAM_PATH, Machine
from cadenza.runtime.process import ProcessDriver

STANDARD = "standard"
STRONG = "strong"
STANDARD_ORDER = ("crun", "runc", "runsc")


def choose(machine: Machine, runtime: str) -> dict[str, str]:
    """Level of isolation to the runtime that gives it; pure.

    ``runtime`` is the configuration's: ``auto``, or one that must be used for *standard*; InvalidError, with what
    mends it, if that does not work. Without any container runtime *standard* is ``process``, which isolates nothing.
    Where *strong* is absent it cannot be had.
    """
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
    path = shutil.which(name, path=PROGRAM_PATH)
    if path is None:
        raise InvalidError(f"{name} is not installed")
    if name == "runsc":
        return OciDriver(runsc(path, machine.abilities["runsc"].variant), state_dir, launcher, hierarchy)
    return OciDriver({"crun": crun, "runc": runc}[name](path), state_dir, launcher, hierarchy)


def open_drivers(
    machine: Machine, runtime: str, state_dir: str, launcher: Launcher, hierarchy: Hierarchy
) -> dict[str, Driver]:
    """Level to driver, as `choose` says; one driver for each runtime. Raises what that raises."""
    levels = choose(machine, runtime)
    made = {name: open_driver(name, machine, state_dir, launcher, hierarchy) for name in sorted(set(levels.values()))}
    return {level: made[name] for level, name in levels.items()}
