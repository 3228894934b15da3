"""Dockerfiles as recipes. Source: semantics.md section 13.2; Docker's "Dockerfile reference" for the grammar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cadenza import FilePatternMatcher, Image, Secret
from cadenza.exception import InvalidError
from cadenza.protocol.objects import ImageSpec, ImageStep
from cadenza.sdk.dockerfile import Place, pairs, parse, words
from cadenza.sdk.recipe import Resolved, resolve

HERE = Place("f", 1)


def read(text: str) -> list[tuple[str, str]]:
    return [(one.keyword, one.rest) for one in parse(text, "Dockerfile")]


# --- the grammar ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM a\nRUN b", [("FROM", "a"), ("RUN", "b")]),
        ("  from a\n\trun   b  ", [("FROM", "a"), ("RUN", "b")]),
        ("# c\n\nFROM a # b", [("FROM", "a # b")]),
        ("RUN a \\\n  b \\  \n c", [("RUN", "a   b  c")]),
        ("RUN a \\\n# comment\n\n  b", [("RUN", "a   b")]),
        ("RUN a \\\\\nRUN b", [("RUN", "a \\\\"), ("RUN", "b")]),
        ("RUN a \\", [("RUN", "a")]),
        ("# escape=`\nRUN a `\n b\nRUN c\\", [("RUN", "a  b"), ("RUN", "c\\")]),
        ("# syntax=docker/dockerfile:1\n# escape = `\nRUN a `\n b", [("RUN", "a  b")]),
        ("# note\n# escape=`\nRUN a \\\n b", [("RUN", "a  b")]),
        ("\ufeffFROM a\r\nRUN b\r\n", [("FROM", "a"), ("RUN", "b")]),
        ("EXPOSE 80\nLABEL a=b\nVOLUME /x\nSTOPSIGNAL 9\nRUN b", [("RUN", "b")]),
        ("ONBUILD RUN x\nHEALTHCHECK NONE\nMAINTAINER m\nRUN b", [("RUN", "b")]),
        ("CMD\nENTRYPOINT []", [("CMD", ""), ("ENTRYPOINT", "[]")]),
    ],
)  # fmt: skip
def test_lines(text: str, expected: list[tuple[str, str]]) -> None:
    assert read(text) == expected


def test_here_documents() -> None:
    text = "RUN <<EOF cat <<-'TWO'\na\n # not a comment\nEOF\n\tb $x\n\tTWO\nCOPY <<one /x\n1\none\nRUN c"
    first, second, third = parse(text, "Dockerfile")
    assert [(one.name, one.text, one.literal) for one in first.documents] == [
        ("EOF", "a\n # not a comment\n", False),
        ("TWO", "b $x\n", True),
    ]
    assert [one.text for one in second.documents] == ["1\n"]
    assert (third.rest, third.documents) == ("c", ())


@pytest.mark.parametrize("rest", ["echo '<<EOF'", 'echo "a <<EOF"', "cat <<<EOF", "echo $((1<<2))", "echo \\<<EOF"])
def test_what_is_no_here_document(rest: str) -> None:
    [one] = parse(f"RUN {rest}", "Dockerfile")
    assert one.documents == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("FROM a\n\nRUNN x", "Dockerfile:3: 'RUNN' is no instruction"),
        ("RUN <<EOF\nx", "Dockerfile:1: the here-document EOF has no end"),
        ("# escape=x\nRUN a", "Dockerfile:1: escape"),
        ("FROM", "Dockerfile:1: FROM needs"),
    ],
)
def test_faults_name_the_line(text: str, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        parse(text, "Dockerfile")


KNOWN = {"A": "1", "B": "x y", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  b", ["a", "b"]),
        ("$A ${A}b", ["1", "1b"]),
        ("'$A' \"$A b\" \\$A", ["$A", "1 b", "$A"]),
        ("$B", ["x y"]),
        ("a\\ b", ["a b"]),
        ("${NONE:-d}${A:-d} ${EMPTY:-d}", ["d1", "d"]),
        ("${NONE:+d} ${A:+d}", ["", "d"]),
        ("${NONE:-${A}}", ["1"]),
        ("'' a", ["", "a"]),
        ("$NONE", [""]),
        ("$ $5", ["$", "$5"]),
        ('"a\\"b"', ['a"b']),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text, KNOWN.get, "\\", HERE) == expected


@pytest.mark.parametrize("text", ["'a", '"a', "${A", "${}", "${A#x}", "${A:x}"])
def test_words_that_do_not_end(text: str) -> None:
    with pytest.raises(InvalidError, match="f:1: "):
        words(text, KNOWN.get, "\\", HERE)


def test_variables_of_env() -> None:
    assert pairs('A=1 B="a b" C=$A', KNOWN.get, "\\", HERE) == {"A": "1", "B": "a b", "C": "1"}
    assert pairs("A some text $A", KNOWN.get, "\\", HERE) == {"A": "some text 1"}
    for text in ("A", "A=1 B"):
        with pytest.raises(InvalidError):
            pairs(text, KNOWN.get, "\\", HERE)


# --- as recipes ---


class Project:
    """A directory with a Dockerfile."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = self.path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def resolved(self, text: str, **options: Any) -> Resolved:
        (self.path / "Dockerfile").write_text(text)
        return resolve(Image.from_dockerfile(self.path / "Dockerfile", context_dir=self.path, **options)._links)

    def spec(self, text: str, **options: Any) -> ImageSpec:
        return self.resolved(text, **options).spec

    def commands(self, *lines: Any, **options: Any) -> tuple[ImageStep, ...]:
        options.setdefault("context_dir", self.path)
        image = Image.debian_slim("3.11").dockerfile_commands(*lines, **options)
        return resolve(image._links).spec.steps[1:]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def paths(step: ImageStep) -> list[str]:
    return [one.path for one in step.files]


def test_a_plain_dockerfile(project: Project) -> None:
    project.write(a_dot_txt="a")
    spec = project.spec('FROM debian:13\nENV A=1\nCOPY a.txt /x/\nRUN echo $A\nUSER nobody\nWORKDIR /w\nCMD ["x"]')
    base, *steps = spec.steps
    assert (base.kind, base.options) == ("base", {"distribution": "registry", "tag": "debian:13"})
    assert [(one.kind, *one.args) for one in steps] == [
        ("docker", "ENV", "A=1"),
        ("docker", "COPY", "a.txt /x/"),
        ("docker", "RUN", "echo $A"),
        ("docker", "USER", "nobody"),
        ("docker", "WORKDIR", "/w"),
        ("docker", "CMD", '["x"]'),
    ]
    assert paths(steps[1]) == ["/a.txt"]


def test_equal_files_are_equal_images_and_others_are_not(project: Project) -> None:
    project.write(a="1")
    text = "FROM debian\nCOPY a /a\nRUN x"
    one = project.spec(text).image_id()
    assert project.spec(text + "\n# a comment\nEXPOSE 80\n").image_id() == one
    project.write(a="two")
    assert project.spec(text).image_id() != one
    assert project.spec("FROM debian\nRUN x").image_id() != one


def test_arguments_are_in_force_from_where_they_are_declared(project: Project) -> None:
    text = "ARG V=12\nFROM python:$V\nRUN a\nARG V\nARG X=${V}x\nRUN b\nARG Y\nRUN c"
    base, first, second, third = project.spec(text).steps
    assert base.options["tag"] == "python:12"
    assert first.options == {}
    assert json.loads(second.options["args"]) == {"V": "12", "X": "12x"}
    assert third.options == second.options
    given = project.spec(text, build_args={"V": "13", "Y": "y"}).steps
    assert given[0].options["tag"] == "python:13"
    assert json.loads(given[3].options["args"]) == {"V": "13", "X": "13x", "Y": "y"}


def test_the_platform_is_known(project: Project) -> None:
    spec = project.spec("FROM --platform=$TARGETPLATFORM debian\nARG TARGETARCH\nRUN x")
    assert json.loads(spec.steps[1].options["args"]) == {"TARGETARCH": "amd64"}
    with pytest.raises(InvalidError, match=r"Dockerfile:1: .*linux/arm64"):
        project.spec("FROM --platform=linux/arm64 debian")


def test_stages(project: Project) -> None:
    project.write(src="s")
    text = """FROM debian AS build
COPY src /src
RUN make
FROM busybox as unused
COPY absent /x
FROM build AS more
RUN again
FROM scratch
COPY --from=BUILD /out /out
COPY --from=0 --chown=1:1 /out2 /out2
COPY --from=alpine:3 /etc/os-release /
COPY --from=more /a /b
"""
    found = project.resolved(text)
    base, one, two, three, four = found.spec.steps
    assert base.options == {"distribution": "scratch"}
    assert [step.args for step in one.images[0].steps[1:]] == [("COPY", "src /src"), ("RUN", "make")]
    assert two.images == one.images
    assert [step.options for step in three.images[0].steps] == [{"distribution": "registry", "tag": "alpine:3"}]
    assert [step.args[-1] for step in four.images[0].steps[1:]] == ["src /src", "make", "again"]
    assert one.files == ()
    assert [one.entry.path for one in found.files if not isinstance(one, bytes)] == ["/src"]  # type: ignore[union-attr]
    assert {one.digest for one in one.images[0].steps[1].files} <= set(found.spec.uploads())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("RUN x", "Dockerfile:1: RUN comes before the first FROM"),
        ("ARG A", "needs a FROM"),
        ("FROM a b", "AS"),
        ("FROM a AS b\nFROM c AS B", "Dockerfile:2: there are two stages"),
        ("FROM $X", "Dockerfile:1: FROM needs an image"),
        ("FROM a AS b\nCOPY --from=b /x /y", "Dockerfile:2: --from=b"),
        ("FROM a\nCOPY --from=0 /x /y", "Dockerfile:2: --from=0"),
        ("FROM a\nCOPY --from=c /x /y\nFROM b AS c\nCOPY --from=0 /x /y", "Dockerfile:2: --from=c"),
        ("FROM a\nCOPY --parents x /y", "--parents is not supported"),
        ("FROM a\nADD --from=b x /y", "--from is not supported"),
        ("FROM a\nCOPY x", "a source and a destination"),
        ("FROM a\nCOPY ../x /y", r"Dockerfile:2: \.\./x is outside of the context"),
        ("FROM a\nCOPY d/../../x /y", "is outside of the context"),
        ("FROM a\nCOPY /etc/passwd /y", "Dockerfile:2: /etc/passwd: the context .* has no such file"),
        ("FROM a\nCOPY *.none /y", "has no such file"),
        ("FROM a\nCOPY $HOME/x /y", "not known before the build"),
        ("FROM a\nENV B=$PATH:/x\nCOPY $B /y", "not known before the build"),
        ("FROM a\nARG B=$PATH", "ARG B depends on"),
        ("FROM a\nADD https://x.test/a https://x.test/b /y", "ADD takes one address"),
        ("FROM a\nADD https://x.test/a.git /y", "git repository"),
        ("FROM a\nRUN --mount=type=secret,id=x y", "secrets="),
        ("FROM a\nRUN --mount=target=/x y", "COPY the files"),
        ("FROM a\nRUN --mount=type=tmpfs,target=/x y", "type=tmpfs"),
        ("FROM a\nENV A=${B:-c}", r"Dockerfile:2: ENV .* default"),
        ("FROM a\nCOPY ${B:-c} /y", r"Dockerfile:2: COPY .* default"),
        ("FROM a\nARG 1=2", "ARG needs a name"),
        ("FROM a\nENV A", "Dockerfile:2: ENV"),
    ],
)
def test_faults_of_a_dockerfile(project: Project, text: str, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        project.spec(text)


def test_sources(project: Project) -> None:
    project.write(a_dot_txt="a", b_dot_txt="b", d__x="x", d__e__y="y", other__z="z", sp="")
    (project.path / "with space").write_text("")
    (project.path / "d" / ".hidden").write_text("")

    def copied(source: str) -> list[str]:
        [step] = project.commands("ARG D=d\nENV E=e\n" + source)[1:]
        return paths(step)

    assert copied("COPY *.txt /x/") == ["/a.txt", "/b.txt"]
    assert copied("COPY d /x") == ["/d/.hidden", "/d/e/y", "/d/x"]
    assert copied("COPY ./d/ /x") == ["/d/.hidden", "/d/e/y", "/d/x"]
    assert copied("COPY d/*/y a.txt /x/") == ["/d/e/y", "/a.txt"]
    assert copied("COPY ${D}/$E /x") == ["/d/e/y"]
    assert copied("COPY /a.txt /x") == ["/a.txt"]
    assert copied('COPY ["with space", "/x"]') == ["/with space"]
    assert copied("COPY with\\ space /x") == ["/with space"]
    assert copied("COPY [ab].txt /x/") == ["/a.txt", "/b.txt"]
    assert copied("ADD --chown=1 a.txt /x") == ["/a.txt"]
    assert copied("ADD https://x.test/a /x") == []
    assert copied("COPY <<EOF a.txt /x/\ntext\nEOF") == ["/a.txt"]
    assert len(copied("COPY . /x")) == 8


def test_here_documents_travel_with_their_instruction(project: Project) -> None:
    [step] = project.commands("RUN <<EOF", "one", "two", "EOF")
    assert step.args == ("RUN", "<<EOF", "one\ntwo\n")


def test_another_escape_character_is_told(project: Project) -> None:
    spec = project.spec("# escape=`\nFROM a\nRUN b `\n  c")
    assert spec.steps[1].args == ("RUN", "b   c")
    assert spec.steps[1].options == {"escape": "`"}


def test_dockerignore(project: Project) -> None:
    text = "FROM a\nCOPY . /x"
    project.write(a_dot_txt="", b_dot_log="", keep_dot_log="", node_modules__m="")
    (project.path / ".dockerignore").write_text(
        "# comment\n\n*.log\n!keep.log\nnode_modules/\n.dockerignore\nDockerfile*\n"
    )
    assert paths(project.spec(text).steps[1]) == ["/a.txt", "/keep.log"]
    (project.path / "Dockerfile.dockerignore").write_text("*\n!b.log\n")
    assert paths(project.spec(text).steps[1]) == ["/b.log"]
    assert len(project.spec(text, ignore=[]).steps[1].files) == 7
    only = ~FilePatternMatcher("**/*.txt")
    assert paths(project.spec(text, ignore=only).steps[1]) == ["/a.txt"]
    assert paths(project.spec(text, ignore=lambda path: path.suffix != ".txt").steps[1]) == ["/a.txt"]
    with pytest.raises(InvalidError, match=r"a\.txt: .*Dockerfile\.dockerignore leaves it out"):
        project.spec("FROM a\nCOPY a.txt /x")
    assert paths(project.commands("COPY . /x")[0]) == ["/a.txt", "/keep.log"]


def test_only_what_is_named_is_read(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write(wanted__a="", huge__b="")
    seen: list[str] = []
    from cadenza.sdk import build_context, source

    def walk(root: str, *more: Any) -> Any:
        seen.append(root)
        return source.walk(root, *more)

    monkeypatch.setattr(build_context, "walk", walk)
    project.spec("FROM a\nCOPY wanted /x")
    assert seen == [str(project.path / "wanted")]


def test_commands_continue_an_image(project: Project) -> None:
    project.write(own="1")
    local = project.path / "elsewhere"
    local.write_text("2")
    found = project.commands(
        "COPY /.given own /x/", ["ARG A=1", "RUN b"], context_files={"/.given": str(local)}, build_args={"A": "2"}
    )
    assert paths(found[0]) == ["/.given", "/own"]
    assert json.loads(found[1].options["args"]) == {"A": "2"}
    with pytest.raises(InvalidError, match="dockerfile_commands:2: FROM"):
        project.commands("RUN a", "FROM b")


def test_what_run_steps_get(project: Project) -> None:
    secret = Secret.from_dict({"TOKEN": "t"})
    user = Secret.from_dict({"REGISTRY_USERNAME": "u", "REGISTRY_PASSWORD": "p"})
    spec = project.spec(
        "FROM a\nENV A=1\nRUN b", secrets=[secret], env={"M": "1"}, gpu="T4", registry_secret=user, force_build=True
    )
    base, env, run = spec.steps
    assert base.secrets == {"REGISTRY_USERNAME": "u", "REGISTRY_PASSWORD": "p"}
    assert (env.secrets, env.resources) == ({}, None)
    assert run.secrets == {"TOKEN": "t", "M": "1"}
    assert run.resources is not None and run.resources.gpus[0].type == "T4"
    assert all(step.force for step in spec.steps)


def test_a_python_may_be_added(project: Project) -> None:
    assert project.spec("FROM a", add_python="3.12").steps[-1].options == {"version": "3.12"}
    with pytest.raises(InvalidError, match=r"add_python is 3\.12\.1"):
        project.spec("FROM a", add_python="3.12.1")


def test_a_file_is_looked_for_when_resolved(tmp_path: Path) -> None:
    image = Image.from_dockerfile(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        resolve(image._links)
    with pytest.raises(InvalidError, match="no Dockerfile"):
        resolve(Image.from_dockerfile(tmp_path)._links)


def test_directories_without_files_are_told(tmp_path: Path) -> None:
    """A directory of which ``.dockerignore`` leaves nothing, or that is empty, is copied as one."""
    for one in ("sub/deep/a.tmp", "empty/below/", "full/b", "gone/c"):
        path = tmp_path / one
        (path if one.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not one.endswith("/"):
            path.write_text("x")
    (tmp_path / "full/self").symlink_to("..")
    (tmp_path / ".dockerignore").write_text("**/*.tmp\n.dockerignore\ngone\nfull/self\n")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY sub/ /s/\nCOPY full full/b /f/\nCOPY . /all/\n")
    made = resolve(Image.from_dockerfile(tmp_path / "Dockerfile", context_dir=tmp_path)._links).spec.steps[1:]
    assert [json.loads(one.options.get("directories", "[]")) for one in made] == [
        ["/sub/deep"],
        [],
        ["/empty/below", "/sub/deep"],
    ]
