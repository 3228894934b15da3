"""Images as recipes. Source: semantics.md sections 13 and 34, section 33 rows 9, 10 and 29."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from cadenza import App, Image, Secret
from cadenza.exception import InvalidError, UnimplementedError
from cadenza.protocol.objects import ImageStep
from cadenza.runner import context
from cadenza.sdk.recipe import Resolved, resolve


def base() -> Image:
    return Image.debian_slim("3.11")


def resolved(image: Image) -> Resolved:
    return resolve(image._links)


def last(image: Image) -> ImageStep:
    return resolved(image).spec.steps[-1]


def test_a_method_returns_another_image() -> None:
    one = base()
    two = one.pip_install("numpy")
    assert len(resolved(one).spec.steps) == 1
    assert [step.kind for step in resolved(two).spec.steps] == ["base", "pip"]


def test_the_base() -> None:
    assert last(base()).options == {"distribution": "debian_slim", "python": "3.11"}
    assert last(Image.debian_slim()).options["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.mark.parametrize("version", ["3.7", "3.11.4", "3", "x"])
def test_an_unsupported_python_fails_when_resolved_and_names_the_supported(version: str) -> None:
    image = Image.debian_slim(version)
    with pytest.raises(InvalidError, match=r"3\.10.*3\.13"):
        resolved(image)


def test_the_order_of_packages_makes_no_difference() -> None:
    one = resolved(base().pip_install("b", ["a", "c"])).spec
    two = resolved(base().pip_install("c", "b", "a")).spec
    assert one.image_id() == two.image_id()
    assert last(base().apt_install("git", "curl")).args == ("curl", "git")


def test_options_of_pip() -> None:
    step = last(base().pip_install("a", index_url="i", pre=True, extra_options="--no-deps", find_links="f"))
    assert step.options == {
        "tool": "pip",
        "index_url": "i",
        "pre": "1",
        "extra_options": "--no-deps",
        "find_links": "f",
    }
    assert last(base().uv_pip_install("a")).options == {"tool": "uv"}


def test_nothing_to_install_is_no_step() -> None:
    image = base()
    assert image.pip_install() is image
    assert image.apt_install([]) is image
    assert image.run_commands() is image


@pytest.mark.parametrize(
    "make",
    [
        lambda i: i.pip_install("numpy", "--pre"),
        lambda i: i.pip_install("-r requirements.txt"),
        lambda i: i.uv_pip_install("--index-url x"),
        lambda i: i.apt_install("-y"),
        lambda i: i.pip_install(""),
        lambda i: i.pip_install(3),
        lambda i: i.run_commands(["a", 3]),
        lambda i: i.env({"A": 1}),
        lambda i: i.env({"A-B": "1"}),
        lambda i: i.env({"A": None}),
        lambda i: i.entrypoint("sh"),
        lambda i: i.cmd(["sh", 1]),
        lambda i: i.shell("/bin/sh"),
        lambda i: i.add_local_file("x", "relative"),
        lambda i: i.add_local_dir("x", "relative/dir"),
        lambda i: i.add_local_dir("x", "/x", ignore="*.pyc"),
        lambda i: i.add_local_python_source("./pkg"),
        lambda i: i.add_local_python_source("pkg.py/x"),
        lambda i: i.pip_install("a", secrets=["x"]),
        lambda i: i.pip_install("a", gpu="H1"),
        lambda i: i.run_function(lambda: None),
        lambda i: i.uv_pip_install(requirements="r.txt"),
        lambda i: Image.debian_slim(3.11),
        lambda i: Image.from_name("im-a"),
    ],
)
def test_bad_arguments_fail_at_the_call(make: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidError):
        make(base())


def test_a_step_after_mounted_files_fails_when_resolved(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    image = base().add_local_file(tmp_path / "f", "/f").pip_install("numpy")
    with pytest.raises(InvalidError, match="copy=True"):
        resolved(image)
    assert [
        s.kind for s in resolved(base().add_local_file(tmp_path / "f", "/f", copy=True).pip_install("a")).spec.steps
    ]


def test_mounted_files_are_no_part_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    found = resolved(base().add_local_file(tmp_path / "f", "/data/"))
    assert found.spec.image_id() == resolved(base()).spec.image_id()
    assert [one.path for one in found.mounts] == ["/data/f"]
    assert [one.local for one in found.files] == [str(tmp_path / "f")]


def test_copied_files_are_part_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    image = base().add_local_dir(tmp_path, "/data", copy=True)
    before = resolved(image)
    assert [one.path for one in before.spec.steps[-1].files] == ["/data/f"]
    assert before.mounts == ()
    (tmp_path / "f").write_text("other")
    assert resolved(image).spec.image_id() != before.spec.image_id()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda p: base().add_local_file(p / "none", "/x"), FileNotFoundError),
        (lambda p: base().add_local_dir(p / "none", "/x"), FileNotFoundError),
        (lambda p: base().add_local_file(p, "/x"), InvalidError),
        (lambda p: base().add_local_dir(p / "file", "/x"), InvalidError),
        (lambda p: base().pip_install_from_requirements(str(p / "none")), FileNotFoundError),
    ],
)
def test_files_are_looked_for_when_resolved(tmp_path: Path, make: Any, error: type[Exception]) -> None:
    (tmp_path / "file").write_text("")
    image = make(tmp_path)
    with pytest.raises(error):
        resolved(image)


def test_a_relative_local_path_is_that_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_text("x")
    monkeypatch.chdir(tmp_path)
    image = base().add_local_file("f", "/f")
    monkeypatch.chdir("/")
    assert resolved(image).mounts[0].size == 1


def test_plain_requirements_become_packages(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text('# comment\nb==1  # why\n\na>=2; python_version > "3.8"\n')
    assert last(base().pip_install_from_requirements(str(file))).args == ('a>=2; python_version > "3.8"', "b==1")
    assert last(base().uv_pip_install("c", requirements=[str(file)])).args[-1] == "c"


def test_requirements_with_options_go_in_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("a==1 --hash=sha256:00\n")
    found = resolved(base().pip_install_from_requirements(str(file), extra_options="--no-deps"))
    assert [step.kind for step in found.spec.steps] == ["base", "copy", "pip"]
    [entry] = found.spec.steps[1].files
    assert found.spec.steps[2].options["extra_options"] == f"-r {entry.path} --no-deps"
    assert [one.local for one in found.files] == [str(file)]


def test_secrets_of_a_step_are_seen_by_it_and_change_no_digest() -> None:
    def image(value: str, env: str) -> Image:
        return base().run_commands("x", secrets=[Secret.from_dict({"TOKEN": value})], env={"MODE": env})

    step = last(image("one", "a"))
    assert step.secrets == {"TOKEN": "one", "MODE": "a"}
    assert step.secret_keys == ("MODE", "TOKEN")
    assert resolved(image("one", "a")).spec.image_id() == resolved(image("two", "a")).spec.image_id()
    assert resolved(image("one", "a")).spec.image_id() != resolved(image("one", "b")).spec.image_id()


def test_settings() -> None:
    image = base().env({"A": "1"}).workdir("/w").entrypoint([]).cmd(["python"]).shell(["/bin/bash", "-c"])
    steps = resolved(image).spec.steps[1:]
    assert [(one.kind, one.args) for one in steps] == [
        ("env", ()),
        ("workdir", ("/w",)),
        ("entrypoint", ()),
        ("cmd", ("python",)),
        ("shell", ("/bin/bash", "-c")),
    ]
    assert steps[0].env == {"A": "1"}


def test_force_build() -> None:
    assert last(base().pip_install("a", force_build=True)).force
    assert (
        resolved(base().pip_install("a", force_build=True)).spec.image_id()
        == resolved(base().pip_install("a")).spec.image_id()
    )


def test_pipe() -> None:
    def add(image: Image, name: str, *, more: str) -> Image:
        return image.pip_install(name, more)

    assert last(base().pipe(add, "a", more="b")).args == ("a", "b")


@pytest.mark.parametrize(
    "make",
    [
        lambda: base().run_commands("x", volumes={"/data": object()}),
        lambda: base().run_function(resolved, volumes={"/data": object()}),
        lambda: base().run_function(resolved, network_file_systems={"/data": object()}),
    ],
)
def test_what_is_not_built_says_what_to_use(make: Callable[[], Any]) -> None:
    with pytest.raises(UnimplementedError, match=r"not built yet[;:] "):
        make()


def test_an_image_is_not_made_by_its_class() -> None:
    with pytest.raises(RuntimeError, match="debian_slim"):
        Image()


def test_imports_passes_over_an_import_error_here() -> None:
    with base().imports():
        import no_such_module_at_all  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ZeroDivisionError), pytest.warns(UserWarning, match="ZeroDivisionError"), base().imports():
        _ = 1 / 0


@pytest.mark.parametrize("imports_first", [True, False])
@pytest.mark.parametrize("runs", ["mine", "other"])
def test_imports_counts_in_the_container_that_uses_the_image(imports_first: bool, runs: str) -> None:
    """semantics.md section 33, row 10."""
    context.become(context.Container("ta-x", function={"name": runs}))
    try:
        app, image, other = App(), base(), base()

        def use() -> None:
            with image.imports():
                import no_such_module_at_all  # noqa: F401

        def program() -> None:
            if imports_first:
                use()
            app.function(image=image, serialized=True, name="mine")(lambda: None)
            app.function(image=other, serialized=True, name="other")(lambda: None)
            if not imports_first:
                use()

        if runs == "mine":
            with pytest.raises(ModuleNotFoundError):
                program()
        else:
            program()
    finally:
        context.become(None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda b: b.pip_install("numpy --pre"),
            r"'numpy --pre' holds an option, --pre; options go into extra_options",
        ),
        (lambda b: b.uv_pip_install("--pre"), r"'--pre' is an option and not a package; options go into extra_options"),
        (lambda b: b.apt_install("-y"), r"'-y' is an option and not a package$"),
        (lambda b: b.workdir(3), r"workdir: path must be a path, not int"),
        (lambda b: b.workdir(b"/x"), r"workdir: path must be a path, not b'/x'"),
        (lambda b: b.workdir(""), r"workdir: path must be a path, not ''"),
        (lambda b: b.add_local_file(3, "/x"), r"add_local_file: local_path must be a path, not int"),
        (lambda b: b.add_local_dir(".", None), r"add_local_dir: remote_path must be a path, not NoneType"),
    ],
)
def test_wrong_use_is_said_where_it_is(make, words):
    """semantics.md 13.3: flags go into extra_options; wrong types are InvalidErrors."""
    with pytest.raises(InvalidError, match=words):
        make(Image.debian_slim("3.11"))


def test_python_without_a_global_lock_is_a_version_too():
    """semantics.md 13.1: 3.14t, 3.15t."""
    assert resolved(Image.debian_slim("3.14t")).spec.steps[0].options["python"] == "3.14t"
