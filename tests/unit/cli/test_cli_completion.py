"""Completion in a shell: click's own scripts, and names that a running server knows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cadenza.cli.main import cli


def complete(tmp_path, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cadenza"], capture_output=True, text=True,
        env={**os.environ, "CADENZA_HOME": str(tmp_path), "_CADENZA_COMPLETE": "bash_complete",
             "COMP_WORDS": " ".join(("cadenza", *words)), "COMP_CWORD": str(len(words))},
    )  # fmt: skip
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_commands_and_options(tmp_path) -> None:
    assert complete(tmp_path, "dep") == ["deploy"]
    assert complete(tmp_path, "app", "roll") == ["rollback", "rollover"]
    assert complete(tmp_path, "deploy", "--st") == ["--stream-logs", "--strategy"]
    assert complete(tmp_path, "deploy", "--strategy", "") == ["rolling", "recreate"]


@pytest.mark.parametrize(
    "words", [("app", "info", ""), ("container", "stop", "ta-"), ("app", "list", "-e", ""), ("function", "info", "a/")]
)
def test_no_server_is_started_for_names(tmp_path, words: tuple[str, ...]) -> None:
    assert complete(tmp_path, *words) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0 and f"_CADENZA_COMPLETE={shell}_complete" in done.output


def test_bash_reads_its_script(tmp_path) -> None:
    script = CliRunner().invoke(cli, ["completion", "bash"]).output
    done = subprocess.run(["bash", "--norc", "-c", f"{script}\ncomplete -p cadenza"], capture_output=True, text=True)
    assert done.returncode == 0 and "_cadenza_completion" in done.stdout
