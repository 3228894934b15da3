"""Recipes become layers with commands: a transcript that a person can read, and what is refused. semantics.md 13.3."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError
from cadenza.fs import recipe
from cadenza.fs.build import StepRun
from cadenza.fs.recipe import PATH, plan
from cadenza.protocol.objects import FileEntry, FunctionSpec, ImageSpec, ImageStep

GOLDEN = Path(__file__).parents[2] / "golden/fs/recipe.txt"
BASE = ImageStep("base", options={"distribution": "debian_slim", "python": "3.11"})

RECIPES = {
    "the smallest": (BASE,),
    "each kind": (
        BASE,
        ImageStep("apt", args=("git", "build-essential")),
        ImageStep(
            "pip", args=("numpy<2", "requests[socks]==2.32.3"), options={"index_url": "https://index.test/simple"}
        ),
        ImageStep("pip", args=("polars",), options={"tool": "uv", "pre": "1", "extra_options": "--no-deps --no-build"}),
        ImageStep("env", env={"MODE": "fast", "EMPTY": ""}),
        ImageStep("workdir", args=("app",)),
        ImageStep("run", args=("echo $MODE", "make -C /src"), env={"ONCE": "1"}, secrets={"TOKEN": "hidden"}),
        ImageStep("shell", args=("/bin/bash", "-ec")),
        ImageStep("workdir", args=("../srv",)),
        ImageStep("run", args=("echo done",)),
        ImageStep("copy", files=(FileEntry("/srv/a.txt", "ab12", 3), FileEntry("/srv/b.txt", "cd34", 4))),
        ImageStep("entrypoint", args=("/usr/bin/env", "A=b c")),
        ImageStep("cmd", args=("sleep", "48h")),
    ),
    "flags of pip": (
        BASE,
        ImageStep(
            "pip",
            args=("b", "a"),
            options={"find_links": "https://links.test", "extra_index_url": "https://more.test/simple", "pre": "1"},
        ),
    ),
    "installs of nothing": (BASE, ImageStep("apt"), ImageStep("pip")),
}


def transcript() -> str:
    lines = []
    for name, steps in RECIPES.items():
        lines.append(f"# {name}")
        made = plan(ImageSpec(steps))
        for layer in made.layers:
            lines.append(layer.text)
            lines += ["  $ " + " ".join(map(repr, one)) for one in layer.commands]
            if layer.commands:
                lines.append("    in " + layer.cwd + " with " + " ".join(layer.caches))
                lines += [f"    {key}={value}" for key, value in sorted(layer.env.items()) if value != PATH]
            lines += [f"  + {one.path}" for one in layer.files]
            if layer.directory:
                lines.append(f"  + {layer.directory}/")
        end = made.settings
        lines.append(f"= workdir {end.workdir!r} entrypoint {end.entrypoint} cmd {end.cmd} shell {end.shell}")
        lines += [f"= {key}={value}" for key, value in end.env.items()] + [""]
    return "\n".join(line.rstrip() for line in lines)


def test_the_transcript_is_as_reviewed() -> None:
    """Rewrite it with CADENZA_REWRITE=1, and read the difference."""
    if os.environ.get("CADENZA_REWRITE"):
        GOLDEN.parent.mkdir(parents=True, exist_ok=True)
        GOLDEN.write_text(transcript())
    assert transcript() == GOLDEN.read_text()


def test_secrets_are_seen_by_commands_and_are_no_part_of_identity_or_image() -> None:
    def made(value: str) -> ImageSpec:
        return ImageSpec((BASE, ImageStep("run", args=("x",), secrets={"KEY": value}, secret_keys=("KEY",))))

    first, second = plan(made("1")), plan(made("2"))
    assert first.layers[-1].env["KEY"] == "1" and "KEY" not in first.settings.env
    assert first.layers[-1].digest == second.layers[-1].digest
    assert "hidden" not in transcript().replace("TOKEN=hidden", "")


def test_the_order_of_packages_does_not_matter_to_what_runs() -> None:
    one, other = (plan(ImageSpec((BASE, ImageStep("pip", args=args)))) for args in (("a", "b"), ("b", "a")))
    assert one.layers[1].commands == other.layers[1].commands


def test_force_reaches_all_later_steps() -> None:
    steps = (BASE, ImageStep("run", args=("a",), force=True), ImageStep("run", args=("b",)))
    assert [layer.force for layer in plan(ImageSpec(steps)).layers] == [False, True, True]


def test_an_empty_recipe_is_the_plain_base() -> None:
    assert [layer.kind for layer in plan(ImageSpec()).layers] == ["base"]


def test_commands_name_the_base_s_python() -> None:
    made = plan(ImageSpec((BASE, ImageStep("pip", args=("a",)))), "/usr/local/bin/python3")
    assert made.layers[1].commands[0][0] == "/usr/local/bin/python3"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((ImageStep("run", args=("x",)),), "begins with a base"),
        ((BASE, BASE), "one base"),
        ((BASE, ImageStep("teleport")), "teleport"),
        ((ImageStep("base", options={"distribution": "registry"}),), "registry"),
        ((BASE, ImageStep("apt", args=("--allow-unauthenticated",))), "names of packages"),
        ((BASE, ImageStep("apt", args=("git; rm -rf /",))), "names of packages"),
        ((BASE, ImageStep("pip", args=("--index-url=x",))), "extra_options"),
        ((BASE, ImageStep("pip", args=("a",), options={"extra_options": "'open"})), "extra_options"),
        ((BASE, ImageStep("pip", args=("a",), options={"tool": "conda"})), "conda"),
        ((BASE, ImageStep("env", env={"A=B": "c"})), "A=B"),
        ((BASE, ImageStep("workdir")), "one path"),
        ((BASE, ImageStep("shell")), "shell takes"),
        ((BASE, ImageStep("run", args=(" ",))), "shell commands"),
        ((BASE, ImageStep("copy", files=(FileEntry("relative", "ab", 1),))), "relative"),
        ((BASE, ImageStep("copy", files=(FileEntry("/a/../../b", "ab", 1),))), "absolute"),
    ],
)
def test_what_can_never_be_built_is_refused(steps: tuple[ImageStep, ...], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        plan(ImageSpec(steps))


def test_passwords_in_addresses_are_not_shown() -> None:
    """What a layer says of itself goes into logs, errors and lists; its commands have the address as it is."""
    url = "https://user:hidden@index.test/simple"
    steps = (BASE, ImageStep("pip", args=("a",), options={"index_url": url}), ImageStep("run", args=(f"curl {url}",)))
    pip, run = plan(ImageSpec(steps)).layers[1:]
    assert url in pip.commands[0] and url in run.commands[0][-1]
    assert "hidden" not in pip.text + run.text and "https://***@index.test/simple" in pip.text


def test_secrets_are_in_no_representation() -> None:
    """What is printed of a step or a function, in a log or an error, shows none of its variables' values."""
    step = ImageStep("run", args=("true",), secrets={"TOKEN": "hidden"})
    layer = plan(ImageSpec((BASE, step))).layers[1]
    function = FunctionSpec(name="f", env={"TOKEN": "hidden"}, image=ImageSpec((BASE, step)))
    told = StepRun("im-1", ("/l",), "/u", "/w", ("true",), layer.env, "/", lambda data: None)
    assert layer.env["TOKEN"] == told.env["TOKEN"] == "hidden"
    assert "hidden" not in repr((step, layer, function, told))


def test_a_step_s_key_knows_the_architecture() -> None:
    """What another machine built is shared by a bucket, and runs only on machines of its kind."""
    spec = ImageSpec((BASE, ImageStep("run", args=("make",))))
    here, there = (tuple(one.key for one in recipe.steps(spec, machine)) for machine in ("x86_64", "aarch64"))
    assert not set(here) & set(there)
    assert here == tuple(one.key for one in recipe.steps(spec, "x86_64"))
