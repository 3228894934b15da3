"""Every command of modal 1.6.4 (tests/golden/cli_surface.json: names, options and arguments) against ours.

``pytest -s`` prints what is covered, what is missing and the share. Source: semantics.md sections 23 and 26.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from cadenza.cli.main import cli

SURFACE = json.loads((Path(__file__).parents[2] / "golden" / "cli_surface.json").read_text())
COMMANDS = [one for one in SURFACE if not one.get("group")]
LATER = {
    # A command or group that is not built, with the reason.
    "billing": "there is no billing: what runs here is the user's own machine",
    "changelog": "release notes come with the package",
    "curl": "web functions",
    "dashboard": "there is no web page yet",
    "dict": "stored objects",
    "endpoint": "inference endpoints",
    "environment billing": "there is no billing",
    "nfs": "deprecated by Modal itself",
    "queue": "stored objects",
    "server": "servers: web functions",
    "skills": "no part of the product",
    "volume": "volumes",
    "workspace proxy-tokens": "web functions",
}
LATER_OPTIONS = {
    ("config show", "--include-internal"): "there are no internal settings",
    ("shell", "--volume"): "volumes",
    ("shell", "--experimental-option"): "hidden, of Modal's own service",
    ("shell", "--experimental-v2"): "hidden, of Modal's own service",
    ("token new", "--source"): "hidden, of Modal's own web page",
}
LEAST_COVERED = 67
"""How many commands were covered at the last count; it only grows."""


def find(name: str) -> click.Command | None:
    """Our command of that name, or None."""
    here: click.Command = cli
    for word in name.split():
        if not isinstance(here, click.Group):
            return None
        found = here.get_command(click.Context(here), word)
        if found is None:
            return None
        here = found
    return here


def reason(name: str) -> str:
    """Why a command is not there, or an empty string."""
    words = name.split()
    return next((LATER[" ".join(words[:n])] for n in range(len(words), 0, -1) if " ".join(words[:n]) in LATER), "")


def differences(theirs: dict[str, Any], ours: click.Command) -> list[str]:
    """What a script written for theirs would stumble over."""
    found = []
    options = [one for one in ours.params if isinstance(one, click.Option)]
    for wanted in theirs["options"]:
        if (theirs["name"], wanted["names"][-1]) in LATER_OPTIONS:
            continue
        mine = next((one for one in options if wanted["names"][-1] in (*one.opts, *one.secondary_opts)), None)
        if mine is None:
            found.append(f"no {wanted['names'][-1]}")
            continue
        spelt = {*mine.opts, *mine.secondary_opts}
        if not set(wanted["names"]) <= spelt:
            found.append(f"{wanted['names'][-1]} is spelt {sorted(spelt)}")
        if wanted.get("flag", False) != mine.is_flag:
            found.append(f"{wanted['names'][-1]}: flag or value")
        if wanted.get("repeatable", False) and not mine.multiple:
            found.append(f"{wanted['names'][-1]} is not repeatable")
        if "choices" in wanted and not set(wanted["choices"]) <= set(getattr(mine.type, "choices", wanted["choices"])):
            found.append(f"{wanted['names'][-1]} does not take all of {wanted['choices']}")
    arguments = [one for one in ours.params if isinstance(one, click.Argument)]
    required = [one for one in theirs["arguments"] if not one.get("optional")]
    if theirs["name"] == "run":
        return found  # its arguments are made from the program's
    if len(arguments) < len(theirs["arguments"]) or sum(one.required for one in arguments) > len(required):
        found.append(f"arguments {[one.human_readable_name for one in arguments]}")
    if any(one.get("variadic") for one in theirs["arguments"]) and not any(one.nargs == -1 for one in arguments):
        found.append("takes no list of arguments")
    return found


COVERED = [(one, command) for one in COMMANDS if (command := find(one["name"])) is not None]
MISSING = [one["name"] for one in COMMANDS if find(one["name"]) is None]


def test_the_share_of_modals_commands_that_is_covered() -> None:
    print(
        f"\n{len(COVERED)} of {len(COMMANDS)} commands of modal 1.6.4 are covered ({len(COVERED) / len(COMMANDS):.0%})"
    )
    print("covered: " + ", ".join(one["name"] for one, _ in COVERED))
    for name in MISSING:
        print(f"missing: {name} ({reason(name) or 'to come'})")
    assert len(COVERED) >= LEAST_COVERED


def test_what_is_missing_is_listed_with_its_reason() -> None:
    assert [name for name in MISSING if not reason(name)] == []
    assert [name for name in LATER if not any(one == name or one.startswith(name + " ") for one in MISSING)] == []


def test_the_golden_file_is_whole() -> None:
    """The counts that stand at the head of the list from which it was made."""
    assert len(COMMANDS) == 127 + 1  # there `run` counts as a group: it has a command for each thing of a program
    assert sum(len(one["options"]) for one in SURFACE) == 428
    assert sum(len(one["arguments"]) for one in SURFACE) == 125


@pytest.mark.parametrize(("theirs", "ours"), [pytest.param(*one, id=one[0]["name"]) for one in COVERED])
def test_a_covered_command_has_modals_options_and_arguments(theirs: dict[str, Any], ours: click.Command) -> None:
    assert differences(theirs, ours) == []


def every(group: click.Group = cli, path: tuple[str, ...] = ()) -> list[tuple[str, click.Command]]:
    """Our own tree, flat."""
    found: list[tuple[str, click.Command]] = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        found.append((" ".join((*path, name)), command))
        if isinstance(command, click.Group):
            found.extend(every(command, (*path, name)))
    return found


@pytest.mark.parametrize(("name", "command"), [pytest.param(*one, id=one[0]) for one in every()])
def test_every_command_and_option_says_what_it_does(name: str, command: click.Command) -> None:
    assert command.help, f"{name} has no help"
    for one in command.params:
        assert not isinstance(one, click.Option) or one.help or one.hidden, f"{name} {one.opts} has no help"
    with click.Context(command, info_name=f"cadenza {name}") as context:
        assert command.get_help(context)
