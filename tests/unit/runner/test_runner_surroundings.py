"""Variables, files and paths that user code finds: semantics.md sections 4 and 14."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from runner_peer import LIB, Agent

from cadenza.runner import surroundings


def test_place_maps_root_where_there_is_no_container() -> None:
    assert surroundings.place("/root/a.py", "/root") == "/root/a.py"
    assert surroundings.place("/root/a.py", "/tmp/x") == "/tmp/x/a.py"
    assert surroundings.place("/root", "/tmp/x") == "/tmp/x"
    assert surroundings.place("/root/data/x/a.py", "/root/data/x") == "/root/data/x/a.py"
    assert surroundings.place("/rooted/a.py", "/tmp/x") == "/rooted/a.py"


def test_write_file_makes_parents_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.sh"
    surroundings.write_file(str(path), b"one", 0o755)
    surroundings.write_file(str(path), b"2", 0o640)
    assert path.read_bytes() == b"2" and stat.S_IMODE(path.stat().st_mode) == 0o640


def test_our_cloudpickle_comes_before_the_image_s(tmp_path: Path) -> None:
    for where, version in (("lib", "3.1"), ("image", "1.0")):
        package = tmp_path / where / "cloudpickle"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"version = {version!r}")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path / 'image')!r}, {LIB!r}]\n"
        "from cadenza.runner import surroundings\n"
        f"sys.meta_path.insert(0, surroundings.Bundled({str(tmp_path / 'lib')!r}))\n"
        "import cloudpickle; assert cloudpickle.version == '3.1'\n"
        "import json.tool"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_and_variables_of_the_attach_frame() -> None:
    with Agent() as agent:
        agent.attach(
            "import os, sys, pkg.deep\ndef f(k): return os.environ.get(k), pkg.deep.__file__, open('x/data').read()",
            files={"/root/pkg/__init__.py": b"", "/root/pkg/deep.py": b"", "/root/x/data": b"content"},
            env={"MODAL_TASK_ID": "forged", "OWN": "yes"},
        )
        assert agent.call("OWN") == ("yes", os.path.join(agent.root, "pkg/deep.py"), "content")
        for name, value in (
            ("TASK_ID", "ta-1"), ("IMAGE_ID", "im-1"), ("IS_REMOTE", "1"),
        ):  # fmt: skip
            assert agent.call(f"MODAL_{name}")[0] == agent.call(f"CADENZA_{name}")[0] == value


def test_a_virtual_environment_counts(tmp_path: Path) -> None:
    """The image's `python` may be one of a venv: its packages are found, as by an ordinary start."""
    import venv

    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    site = next((tmp_path / "env/lib").glob("python3.*/site-packages"))
    (site / "only_here.py").write_text("value = 5")
    (site / "extra.pth").write_text(str(tmp_path / "more") + "\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/by_pth.py").write_text("value = 6")
    with Agent(str(tmp_path / "env/bin/python3")) as agent:
        agent.attach("import sys, only_here, by_pth\ndef f(): return only_here.value, by_pth.value, sys.prefix")
        assert agent.call() == (5, 6, str(tmp_path / "env"))


def test_modal_is_another_name_in_the_container() -> None:
    with Agent() as agent:
        agent.attach(
            "import modal\nfrom modal import App\napp = App('x')\n@app.function()\ndef f(x):\n"
            "    return x, modal.is_local(), modal.current_input_id(), modal.current_function_call_id()"
        )
        assert agent.call(4) == (4, False, "in-0", "fc-1")
