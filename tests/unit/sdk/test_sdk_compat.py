"""`modal` as another name, and what importing the package costs. Source: semantics.md sections 1, 34."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

import cadenza
from cadenza import compat
from cadenza.exception import UnimplementedError

ROOT = Path(__file__).parents[3]


def python(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in (str(ROOT), path) if one)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def alias() -> Iterator[Any]:
    compat.install()
    import modal  # type: ignore[import-not-found]

    yield modal
    compat.uninstall()


def test_the_same_objects(alias: Any) -> None:
    from modal import App, Image  # noqa: F401

    assert alias.App is cadenza.App
    assert alias.Image is cadenza.Image
    assert alias.Error is cadenza.Error
    assert alias.__name__ == "modal"


def test_the_same_modules(alias: Any) -> None:
    import modal.config
    import modal.exception
    import modal.file_pattern_matcher
    from modal.exception import InvalidError

    import cadenza.exception

    assert modal.exception is cadenza.exception is sys.modules["modal.exception"]
    assert InvalidError is cadenza.exception.InvalidError
    assert modal.config is cadenza.config
    assert modal.file_pattern_matcher.FilePatternMatcher is cadenza.FilePatternMatcher
    assert cadenza.exception.__spec__ is not None
    assert cadenza.exception.__spec__.name == "cadenza.exception"


def test_versions(alias: Any) -> None:
    assert alias.__version__ == "1.6.4"
    assert cadenza.__version__ == "0.1.0"


def test_what_modal_has_and_we_have_not(alias: Any) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"modal\.no_such"):
        import modal.no_such
    with pytest.raises(ModuleNotFoundError):
        import modal.protocol  # noqa: F401
    with pytest.raises(UnimplementedError, match="Volume"):
        _ = alias.Volume


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Stub", "use App"), ("Mount", "add_local_file"), ("gpu", "strings"), ("build", "run_function")],
)
def test_removed_names_have_a_hint(alias: Any, name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=hint):
        getattr(alias, name)
    with pytest.raises(AttributeError, match=hint):
        getattr(cadenza, name)
    with pytest.raises(ImportError):
        exec(f"from modal import {name}")


def test_installing_again_changes_nothing(alias: Any) -> None:
    before = list(sys.meta_path)
    compat.install()
    assert sys.meta_path == before
    import modal

    assert modal is alias


def test_uninstalled_it_is_gone() -> None:
    compat.install()
    import modal  # noqa: F401

    compat.uninstall()
    assert "modal" not in sys.modules
    assert not [one for one in sys.meta_path if type(one).__module__ == "cadenza.compat"]


def test_all_public_names_are_there() -> None:
    for name in cadenza.__all__:
        assert getattr(cadenza, name) is not None
    assert set(cadenza.__all__) <= set(dir(cadenza))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = cadenza.no_such_name


# --- in a process of its own ---


def test_importing_loads_the_standard_library_alone(tmp_path: Path) -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        "import cadenza; cadenza.App; cadenza.Image; cadenza.Retries; cadenza.Secret; cadenza.is_local()\n"
        "names = {one.partition('.')[0] for one in set(sys.modules) - before}\n"
        "print(sorted(names - set(sys.stdlib_module_names) - {'cadenza'}))\n"
    )
    done = python("-c", program, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_package_itself_imports_next_to_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        "import cadenza, cadenza.compat; cadenza.compat.install()\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    done = python("-c", program, cwd=tmp_path)
    assert done.stdout == "['__future__', 'cadenza', 'cadenza.compat']\n"


PROGRAM = """\
import sys, os
import modal
import neighbour
app = modal.App("x")

@app.function()
def f(): pass

if __name__ == "__main__":
    print(__name__, __file__, sys.argv[1:], os.path.basename(sys.argv[0]), sys.path[0], modal.__version__)
    print(sys.modules["__main__"].app is app, f.local(), app._declarations["f"].raw.__module__)
    sys.exit(int(sys.argv[1]))
"""


def test_a_program_under_the_alias(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "prog.py").write_text(PROGRAM)
    (tmp_path / "deep" / "neighbour.py").write_text("")
    done = python("-m", "cadenza.compat", "deep/prog.py", "7", "--flag", cwd=tmp_path)
    assert done.stderr == ""
    assert done.returncode == 7
    assert done.stdout.splitlines() == [
        f"__main__ deep/prog.py ['7', '--flag'] prog.py {tmp_path / 'deep'} 1.6.4",
        "True None __main__",
    ]


def test_an_exception_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f():\n    raise ValueError('mine')\nf()\n")
    done = python("-m", "cadenza.compat", "bad.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: mine" in done.stderr
    assert "compat.py" not in done.stderr


def test_a_module_under_the_alias(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "mod.py").write_text("import sys, modal\nprint(__name__, modal.__version__, sys.argv[1:])\n")
    done = python("-m", "cadenza.compat", "-m", "pkg.mod", "a", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("__main__ 1.6.4 ['a']\n", 0)


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["-m"], 2), (["--help"], 0), (["nowhere.py"], 2)])
def test_wrong_usage(tmp_path: Path, arguments: list[str], code: int) -> None:
    done = python("-m", "cadenza.compat", *arguments, cwd=tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_the_alias_wins_over_a_real_package_with_one_note(tmp_path: Path) -> None:
    real = tmp_path / "site" / "modal"
    real.mkdir(parents=True)
    (real / "__init__.py").write_text("__version__ = 'real'\n")
    (real / "exception.py").write_text("REAL = True\n")
    (tmp_path / "prog.py").write_text(
        "import modal, modal.exception\nprint(modal.__version__, hasattr(modal.exception, 'REAL'))\n"
    )
    done = python("-m", "cadenza.compat", "prog.py", cwd=tmp_path, path=str(tmp_path / "site"))
    assert done.stdout == "1.6.4 False\n"
    assert done.stderr.count("cadenza: `import modal` means Cadenza here") == 1
    late = "import modal; from cadenza import compat; compat.install(); import modal; print(modal.__version__)"
    assert python("-c", late, cwd=tmp_path, path=str(tmp_path / "site")).stdout == "1.6.4\n"


# --- settings ---


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alias: Any) -> None:
    from modal.config import config

    monkeypatch.setenv("CADENZA_HOME", str(tmp_path))
    monkeypatch.setenv("MODAL_LOGLEVEL", "DEBUG")
    assert config["loglevel"] == "DEBUG"
    assert config.get("loglevel", use_env=False) == "WARNING"
    assert config.get("no_such_setting") is None
    monkeypatch.setenv("CADENZA_TOKEN_SECRET", "hunter2")
    assert "hunter2" not in repr(config)
    assert config.to_dict(include_internal=True)["token_secret"] == "hunter2"


def test_where_am_i() -> None:
    from cadenza.runner import context

    assert (cadenza.is_local(), cadenza.current_input_id(), cadenza.current_function_call_id()) == (True, None, None)
    context.become(context.Container("ta-x"))
    try:
        context.enter("in-1", "fc-1")
        assert (cadenza.is_local(), cadenza.current_input_id(), cadenza.current_function_call_id()) == (
            False,
            "in-1",
            "fc-1",
        )
    finally:
        context.leave()
        context.become(None)
    with pytest.raises(cadenza.exception.InvalidError, match="container"):
        cadenza.interact()
