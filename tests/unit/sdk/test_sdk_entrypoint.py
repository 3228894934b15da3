"""What is run, and its arguments. Source: semantics.md section 23 ("Entrypoint")."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, Iterator, List, Literal, Optional, Union

import pytest

from cadenza.exception import InvalidError
from cadenza.sdk.entrypoint import (
    Argument,
    describe,
    find_app,
    find_declaration,
    import_program,
    parse_reference,
    resolve,
)


def every(
    a: str, b: int, c: float, d: bool, e: datetime, f: Literal["x", "y"],
    g: Optional[int] = None, h: Any = 3, i="z", j_k: bool = True,
) -> None:  # fmt: skip
    pass


def test_every_kind() -> None:
    assert [(one.name, one.option, one.kind, one.required, one.default) for one in describe(every).arguments] == [
        ("a", "--a", "str", True, None),
        ("b", "--b", "int", True, None),
        ("c", "--c", "float", True, None),
        ("d", "--d", "bool", True, None),
        ("e", "--e", "datetime", True, None),
        ("f", "--f", "choice", True, None),
        ("g", "--g", "int", False, None),
        ("h", "--h", "str", False, 3),
        ("i", "--i", "str", False, "z"),
        ("j_k", "--j-k", "bool", False, True),
    ]


def test_choices_keep_their_values() -> None:
    def choose(n: Literal[1, 2], o: Optional[Literal["a"]] = None) -> None:
        pass

    one, two = describe(choose).arguments
    assert one.choices == (1, 2)
    assert one.convert("2") == 2
    assert two.choices == ("a",)
    assert two.convert(None) is None
    assert Argument("x", "--x", "int", True).convert(5) == 5


@pytest.mark.skipif(sys.version_info < (3, 10), reason="int | None is newer")
def test_the_new_way_to_write_optional() -> None:
    def new(x: int | None = None, y: "float | None" = None) -> None:
        pass

    assert [one.kind for one in describe(new).arguments] == ["int", "float"]


def test_the_raw_rest() -> None:
    def rest(*words: str) -> None:
        pass

    assert describe(rest).rest == "words"
    assert describe(rest).arguments == ()


def more_than_the_rest(x: int, *words: str) -> None:
    pass


def a_list(names: List[str]) -> None:
    pass


def a_dict(table: Dict[str, int]) -> None:
    pass


def a_union(either: Union[int, str]) -> None:
    pass


def keywords(**options: str) -> None:
    pass


def positional(only: int, /) -> None:
    pass


def twins(which: Literal[1, "1"]) -> None:
    pass


def unknown(what: "NoSuchType") -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


def raw_bytes(data: bytes) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (more_than_the_rest, "x"),
        (a_list, "names"),
        (a_dict, "table"),
        (a_union, "either"),
        (keywords, "options"),
        (positional, "only"),
        (twins, "which"),
        (unknown, "NoSuchType"),
        (raw_bytes, "data has the type bytes"),
    ],
)
def test_an_error_names_the_parameter(function: Any, word: str) -> None:
    with pytest.raises(InvalidError, match=word):
        describe(function)


# --- finding it ---


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("entry_"):
            del sys.modules[name]


HEAD = "import cadenza\napp = cadenza.App()\n"
FUNCTION = "@app.function()\ndef {0}(x: int = 1):\n    return x\n"
LOCAL = "@app.local_entrypoint()\ndef {0}(x: int = 1):\n    return x\n"


def write(tmp_path: Path, text: str, name: str = "entry_one.py") -> str:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_the_only_function(tmp_path: Path) -> None:
    found = resolve(write(tmp_path, HEAD + FUNCTION.format("f")))
    assert (found.name, found.is_local, found.raw(4)) == ("f", False, 4)
    assert found.module.__name__ == "entry_one"
    assert found.raw.__module__ == "entry_one"


def test_the_only_local_entrypoint_is_before_functions(tmp_path: Path) -> None:
    text = HEAD + FUNCTION.format("f") + FUNCTION.format("g") + LOCAL.format("main")
    found = resolve(write(tmp_path, text))
    assert (found.name, found.is_local) == ("main", True)


@pytest.mark.parametrize(("name", "is_local"), [("f", False), ("main", True), ("app.f", False), ("alias", False)])
def test_by_name(tmp_path: Path, name: str, is_local: bool) -> None:
    path = write(tmp_path, HEAD + FUNCTION.format("f") + LOCAL.format("main") + "alias = f\n")
    found = resolve(f"{path}::{name}")
    assert found.is_local is is_local


def test_several_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + FUNCTION.format("f") + FUNCTION.format("g"))
    with pytest.raises(InvalidError) as error:
        resolve(path)
    assert f"cadenza run {path}::f\n" in str(error.value) + "\n"
    assert f"cadenza run {path}::g" in str(error.value)


def test_two_apps(tmp_path: Path) -> None:
    text = HEAD + "other = cadenza.App()\n" + FUNCTION.format("f") + "@other.function()\ndef g(): pass\n"
    path = write(tmp_path, text)
    assert resolve(f"{path}::other").name == "g"
    with pytest.raises(InvalidError, match="more than one"):
        resolve(path)


@pytest.mark.parametrize(
    ("text", "name", "word"),
    [
        ("x = 1\n", "", "no App"),
        (HEAD, "", "nothing to run"),
        (HEAD + "def f(): pass\n", "f", "not part of an app"),
        (HEAD + FUNCTION.format("f"), "g", "nothing named 'g'"),
    ],
)
def test_nothing_to_run(tmp_path: Path, text: str, name: str, word: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidError, match=word):
        resolve(path + (f"::{name}" if name else ""))


def test_a_program_that_does_not_parse_shows_the_place(tmp_path: Path) -> None:
    path = write(tmp_path, "import cadenza\ndef f(:\n    pass\n")
    with pytest.raises(InvalidError) as error:
        resolve(path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{path}, line 2: ")
    assert lines[1] == "    def f(:"
    assert lines[2].index("^") == lines[1].index(":")
    assert "entry_one" not in sys.modules


def test_what_the_program_raises_comes_through(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        resolve(write(tmp_path, "1 / 0\n"))
    assert "entry_one" not in sys.modules


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("entry_missing.py", "no file entry_missing.py"),
        ("entry_here", r"did you mean entry_here\.py"),
        ("entry.module", "use -m"),
        (".", "directory"),
        ("entry-dash.py", "rename"),
        ("entry.txt", "Python file"),
        ("::f", "no program"),
        ("a.py::", "no program"),
    ],
)
def test_bad_references(tmp_path: Path, given: str, word: str) -> None:
    for name in ("entry_here.py", "entry-dash.py", "entry.txt"):
        write(tmp_path, "", name)
    with pytest.raises(InvalidError, match=word):
        resolve(given)


def test_a_module(tmp_path: Path) -> None:
    write(tmp_path, "", "entry_pkg/__init__.py")
    write(tmp_path, HEAD + "from .other import y\n" + FUNCTION.format("f"), "entry_pkg/mod.py")
    write(tmp_path, "y = 1\n", "entry_pkg/other.py")
    found = resolve("entry_pkg.mod::f", is_module=True)
    assert found.raw.__module__ == "entry_pkg.mod"
    for name in ("entry_pkg.nothing", "entry_nothing.mod", "entry_nothing"):
        with pytest.raises(InvalidError, match="no module"):
            resolve(name, is_module=True)


def test_the_programs_neighbours_can_be_imported(tmp_path: Path) -> None:
    write(tmp_path, "value = 7\n", "deep/entry_neighbour.py")
    path = write(tmp_path, HEAD + "import entry_neighbour\n" + FUNCTION.format("f"), "deep/entry_main.py")
    assert resolve(path).module.entry_neighbour.value == 7


def test_parse_reference() -> None:
    found = parse_reference("a.py::b.c")
    assert (found.source, found.name, found.is_module) == ("a.py", "b.c", False)


CLASSES = """
import cadenza
app = cadenza.App()

@app.cls()
class Till:
    start: int = cadenza.parameter(default=5)
    unit: str = cadenza.parameter()
    key: bytes = cadenza.parameter(default=b"k")

    @cadenza.method()
    def add(self, n: int, gift: bool = False): ...

    @cadenza.method()
    def words(self, *words): ...

    @cadenza.method()
    def twice(self, start: int): ...

    @cadenza.method()
    def many(self):
        yield 1

@app.cls()
class One:
    @cadenza.method()
    def only(self, *words): ...
"""


def test_a_method_takes_the_parameters_of_its_class_too(tmp_path: Path) -> None:
    found = resolve(write(tmp_path, CLASSES) + "::Till.add")
    assert (found.name, found.method, found.is_local, found.is_generator) == ("Till.add", "add", False, False)
    assert [(one.option, one.kind, one.required, one.default, one.of_class) for one in found.signature().arguments] == [
        ("--start", "int", False, 5, True),
        ("--unit", "str", True, None, True),
        ("--n", "int", True, None, False),
        ("--gift", "bool", False, False, False),
    ]


def test_a_class_with_one_method_names_it(tmp_path: Path) -> None:
    found = resolve(write(tmp_path, CLASSES) + "::One")
    assert found.name == "One.only" and found.signature().rest == "words"
    assert resolve(write(tmp_path, CLASSES, "entry_two.py") + "::Till.many").is_generator


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("::Till", ["more than one method", "::Till.add", "::Till.words"]),
        ("", ["more than one thing", "::Till.add", "::One.only"]),
        ("::Till.nothing", ["nothing named 'Till.nothing'", "::Till.add"]),
    ],
)
def test_methods_are_among_the_choices(tmp_path: Path, name: str, words: List[str]) -> None:
    with pytest.raises(InvalidError) as caught:
        resolve(write(tmp_path, CLASSES) + name)
    assert all(one in str(caught.value) for one in words)


@pytest.mark.parametrize(("name", "word"), [("Till.words", "unit"), ("Till.twice", "both have a parameter 'start'")])
def test_methods_that_no_command_line_can_run(tmp_path: Path, name: str, word: str) -> None:
    found = resolve(write(tmp_path, CLASSES) + "::" + name)
    with pytest.raises(InvalidError, match=word):
        found.signature()


def test_the_app_of_a_program(tmp_path: Path) -> None:
    def find(text: str, name: str = "") -> Any:
        reference = parse_reference(write(tmp_path, text) + (f"::{name}" if name else ""))
        return find_app(import_program(reference), reference, "deploy")

    head = "import cadenza\n"
    assert find(head + "shop = cadenza.App('a')").name == "a"
    assert find(head + "app = also = cadenza.App('a')").name == "a"
    assert find(head + "app = cadenza.App('a')\nother = cadenza.App('b')").name == "a"
    assert find(head + "app = cadenza.App('a')\nother = cadenza.App('b')", "other").name == "b"
    for text, name, words in [
        (head, "", "no App in"),
        (head + "one = cadenza.App('a')\ntwo = cadenza.App('b')", "", "cadenza deploy .*::one"),
        (head + "app = cadenza.App('a')", "shop", "no app named 'shop'"),
    ]:
        with pytest.raises(InvalidError, match=words):
            find(text, name)


@pytest.mark.parametrize(("name", "found"), [("Till", "Till.*"), ("Till.add", "Till.*"), ("One", "One.*")])
def test_the_declaration_that_a_shell_needs(tmp_path: Path, name: str, found: str) -> None:
    reference = parse_reference(write(tmp_path, CLASSES) + "::" + name)
    assert find_declaration(import_program(reference), reference, "shell").name == found


def test_the_choices_of_a_shell(tmp_path: Path) -> None:
    reference = parse_reference(write(tmp_path, CLASSES))
    with pytest.raises(InvalidError, match=r"more than one function(.|\n)*cadenza shell .*::Till\n.*::One"):
        find_declaration(import_program(reference), reference, "shell")
