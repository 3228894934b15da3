"""What a container is started with: semantics.md 13.2."""

from __future__ import annotations

from pathlib import Path

from cadenza.agent import attachment
from cadenza.agent.rootfs import Paths
from cadenza.runtime.driver import Limits


def test_an_entrypoint_gets_the_runner_s_command_and_starts_in_the_working_directory(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path))
    plain = attachment.isolated_config("ta-1", paths, "/lib", {}, Limits(), "", (), workdir="/srv")
    under = attachment.isolated_config(
        "ta-1", paths, "/lib", {}, Limits(), "", (), entrypoint=("/tini", "--"), workdir="/srv"
    )
    assert under.argv == ("/tini", "--", *plain.argv)
    assert (plain.cwd, under.cwd) == ("/", "/srv"), "without one the runner changes there itself"


def test_the_hint_names_the_entrypoint_and_the_remedy() -> None:
    assert attachment.entrypoint_hint(()) == ""
    text = attachment.entrypoint_hint(("/run me.sh",))
    assert "'/run me.sh'" in text and 'exec "$@"' in text and "Image.entrypoint([])" in text
