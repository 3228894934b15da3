"""Instructions of a Dockerfile, one by one. semantics.md section 13.2; the Dockerfile reference."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import http.server
import io
import json
import subprocess
import tarfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cadenza.base.clock import ManualClock
from cadenza.base.errors import InvalidError, RemoteError
from cadenza.fs import tree as trees
from cadenza.fs.docker import evaluate
from cadenza.fs.images import ImageStore
from cadenza.fs.recipe import Copy, Layer, Settings
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from cadenza.protocol.nodes import BuildOrder
from cadenza.protocol.objects import FileEntry, ImageSpec, ImageStep

START = Settings(env={"PATH": "/bin", "WHO": "world"})


def step(text: str, *documents: str, args: dict[str, str] | None = None, **fields: object) -> ImageStep:
    options = {"args": json.dumps(args)} if args else {}
    return ImageStep("docker", args=(*text.split(" ", 1), *documents), options=options, **fields)  # type: ignore[arg-type]


def run(text: str, *documents: str, settings: Settings = START, args: dict[str, str] | None = None) -> Layer:
    return evaluate(step(text, *documents, args=args), settings)[1]


def settled(*lines: str, settings: Settings = START) -> Settings:
    for one in lines:
        settings, _ = evaluate(step(one), settings)
    return settings


def copied(text: str, *documents: str, settings: Settings = START, args: dict[str, str] | None = None) -> Copy:
    (found,) = run(text, *documents, settings=settings, args=args).copies
    return found


def refused(text: str, *documents: str, **fields: object) -> str:
    with pytest.raises(InvalidError) as error:
        evaluate(step(text, *documents, **fields), START)  # type: ignore[arg-type]
    return str(error.value)


# --- RUN ---


def test_a_command_goes_to_the_shell_as_it_is_written() -> None:
    layer = run("RUN echo $WHO \"${X:-1}\" && [ -d / ] \\\\ 'a'")
    assert layer.commands == (("/bin/sh", "-c", "echo $WHO \"${X:-1}\" && [ -d / ] \\\\ 'a'"),)
    assert layer.env["WHO"] == "world"
    assert layer.cwd == "/"


def test_the_exec_form_has_no_shell_and_no_variables() -> None:
    assert run('RUN ["echo", "$WHO", "a b"]').commands == (("echo", "$WHO", "a b"),)
    # What is no JSON is for the shell, as [ is a command.
    assert run("RUN ['echo']").commands == (("/bin/sh", "-c", "['echo']"),)


def test_commands_have_the_settings_so_far() -> None:
    settings = settled('SHELL ["/bin/bash", "-ec"]', "WORKDIR /srv", "USER app:staff", "ENV A=1")
    layer = run("RUN make", settings=settings)
    assert layer.commands == (("/bin/bash", "-ec", "make"),)
    assert (layer.cwd, layer.user, layer.env["A"]) == ("/srv", "app:staff", "1")


def test_commands_see_build_arguments_and_env_wins() -> None:
    layer = run("RUN x", args={"VERSION": "3", "WHO": "nobody"})
    assert layer.env["VERSION"] == "3"
    assert layer.env["WHO"] == "world"


def test_secrets_are_variables_of_the_command() -> None:
    found = evaluate(step("RUN x", secrets={"TOKEN": "s3cr3t"}), START)[1]
    assert found.env["TOKEN"] == "s3cr3t"
    assert "s3cr3t" not in found.text


def shell(layer: Layer, cwd: Path) -> str:
    (command,) = layer.commands
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=20)
    return found.stdout + f"{found.returncode}"


@pytest.mark.parametrize(
    ("line", "document", "wanted"),
    [
        ("RUN <<EOF", "a=1\necho one $a\nexit 3\n", "one 1\n3"),
        ("RUN cat <<EOF", "$((1+1)) two\n", "2 two\n0"),
        ("RUN cat <<'EOF'", "$HOME\n", "$HOME\n0"),
        ("RUN cat <<EOF && echo after", "text\n", "text\nafter\n0"),
        ("RUN <<EOF", "#!/usr/bin/python3\nprint('py')\nraise SystemExit(4)\n", "py\n4"),
        ("RUN <<'END'", "#!/bin/sh\necho $0 | cut -c 1-5; echo 'EOF'\n", "/tmp/\nEOF\n0"),
    ],
)
def test_here_documents_run(tmp_path: Path, line: str, document: str, wanted: str) -> None:
    assert shell(run(line, document), tmp_path) == wanted


def test_two_here_documents_are_in_order(tmp_path: Path) -> None:
    layer = run("RUN cat <<A; cat <<B", "first\n", "second\n")
    assert shell(layer, tmp_path) == "first\nsecond\n0"


def test_a_document_that_is_not_there_is_refused() -> None:
    assert "2 here-documents" in refused("RUN cat <<A <<B", "text\n")


def test_a_cache_mount_is_passed_over_with_a_note() -> None:
    layer = run("RUN --mount=type=cache,target=/root/.cache --network=default pip install x")
    assert layer.commands == (("/bin/sh", "-c", "pip install x"),)
    assert "type=cache" in layer.notes[0]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("RUN --mount=type=secret,id=x cat /run/secrets/x", "secrets="),
        ("RUN --mount=target=/src make", "type=bind"),
        ("RUN --mount=type=ssh git clone x", "type=ssh"),
        ("RUN --network=none make", "--network=none"),
        ("RUN --security=insecure make", "--security=insecure"),
        ("RUN --privileged make", "--privileged"),
        ("RUN []", "command"),
        ("RUN [1]", "texts"),
        ("RUN", "command"),
    ],
)
def test_what_run_cannot_do_is_said(line: str, word: str) -> None:
    assert word in refused(line)


# --- ENV, and words ---


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A=1 B=two", {"A": "1", "B": "two"}),
        ('A="a b" B=c\\ d', {"A": "a b", "B": "c d"}),
        ("A='$WHO' B=\"$WHO\" C=$WHO-${WHO}!", {"A": "$WHO", "B": "world", "C": "world-world!"}),
        ('A="\\$WHO \\"x\\" \\n" B=\\$WHO', {"A": '$WHO "x" \\n', "B": "$WHO"}),
        ("A=$NOTHING B=$ C=$1", {"A": "", "B": "$", "C": "$1"}),
        ("A=", {"A": ""}),
        ("A some  words here", {"A": "some  words here"}),
        ('A "quoted words"', {"A": "quoted words"}),
        ("A=x=y", {"A": "x=y"}),
        ("WHO=you GREETING=hello-$WHO", {"WHO": "you", "GREETING": "hello-world"}),
    ],
)
def test_env_sets_variables(text: str, wanted: dict[str, str]) -> None:
    found = settled("ENV " + text).env
    assert {name: found[name] for name in wanted} == wanted
    assert found["PATH"] == "/bin"


def test_build_arguments_are_variables_that_env_hides() -> None:
    settings, layer = evaluate(step("ENV A=$V-$WHO", args={"V": "7", "WHO": "no"}), START)
    assert settings.env["A"] == "7-world"
    assert not layer.changes


def test_the_escape_character_may_be_another() -> None:
    one = step("ENV A=C:\\dir`$x")
    settings, _ = evaluate(replace(one, options={"escape": "`"}), START)
    assert settings.env["A"] == "C:\\dir$x"


@pytest.mark.parametrize("form", ["${X:-1}", "${X:+1}", "${X-1}", "${X#a}", "${", "${1}", '"${X:-a}"'])
def test_other_forms_of_variables_are_refused(form: str) -> None:
    assert "ENV A=" in refused("ENV A=" + form)


def test_a_default_in_a_variable_is_refused_with_what_to_do() -> None:
    assert refused("ENV A=${X:-1}").endswith("${X:-...} cannot be used, only $NAME and ${NAME}; give ARG a default")


@pytest.mark.parametrize("text", ["ENV A", "ENV A=1 B", "ENV =1", "ENV A='x", 'ENV A="x', "ENV "])
def test_env_that_is_none_is_refused(text: str) -> None:
    assert refused(text).startswith("ENV")


# --- settings ---


def test_workdir_is_relative_to_the_one_before() -> None:
    assert settled("WORKDIR /a", "WORKDIR b", "WORKDIR ../c/").workdir == "/a/c"
    assert settled("WORKDIR $WHO/x").workdir == "/world/x"
    assert settled("WORKDIR //x").workdir == "/x"
    assert run("WORKDIR /a b").directory == "/a b"
    assert run("WORKDIR ../..").directory == "/"


def test_programs_in_both_forms() -> None:
    found = settled('CMD ["python", "-m", "x"]', "ENTRYPOINT run $WHO")
    assert found.cmd == ("python", "-m", "x")
    assert found.entrypoint == ("/bin/sh", "-c", "run $WHO")
    assert settled("CMD []").cmd == ()
    assert settled("ENTRYPOINT ", settings=replace(START, entrypoint=("x",))).entrypoint == ()


def test_a_new_entrypoint_ends_the_bases_cmd_alone() -> None:
    based = replace(START, cmd=("of-the-base",))
    assert settled('ENTRYPOINT ["x"]', settings=based).cmd == ()
    assert settled('CMD ["mine"]', 'ENTRYPOINT ["x"]', settings=based).cmd == ("mine",)


def test_shell_is_a_list() -> None:
    assert "JSON list" in refused("SHELL /bin/bash -c")
    assert "JSON list" in refused("SHELL []")
    assert settled('SHELL ["/bin/bash", "-c"]', "CMD a b").cmd == ("/bin/bash", "-c", "a b")


def test_user() -> None:
    assert settled("USER $WHO:5").user == "world:5"
    for wrong in ("USER a b", "USER :x", "USER a:b:c", "USER $NONE"):
        assert refused(wrong).startswith("USER")


def test_arguments_are_the_clients() -> None:
    settings, layer = evaluate(step("ARG V=1"), START)
    assert settings == START
    assert not layer.changes


@pytest.mark.parametrize(
    "text",
    ["EXPOSE 80", "HEALTHCHECK NONE", "LABEL a=b", "ONBUILD RUN x", "STOPSIGNAL 9", "VOLUME /x", "MAINTAINER me"],
)
def test_what_says_nothing_here_is_passed_over_with_a_note(text: str) -> None:
    settings, layer = evaluate(step(text), START)
    assert settings == START
    assert not layer.changes
    assert layer.notes == (f"{text.split()[0]} says nothing here: passed over",)


def test_what_is_no_instruction_is_refused() -> None:
    for text in ("FROM x", "CROSS_BUILD x"):
        assert "no instruction" in refused(text)
    with pytest.raises(InvalidError, match="JSON object"):
        evaluate(ImageStep("docker", args=("ENV", "A=1"), options={"args": "[]"}), START)


# --- COPY and ADD ---


@pytest.mark.parametrize(
    ("text", "sources", "target"),
    [
        ("a.txt /x", ("/a.txt",), "/x"),
        ("./a.txt b/../c ./*.py dir/", ("/a.txt", "/c", "/*.py"), "/srv/dir/"),
        (". .", ("/",), "/srv/"),
        ("/abs/x ./", ("/abs/x",), "/srv/"),
        ("a ..", ("/a",), "/"),
        ("a /x/../y/", ("/a",), "/y/"),
        ('["a b", "$WHO", "/t/"]', ("/a b", "/world"), "/t/"),
        ("$WHO/a${V}.txt /$WHO", ("/world/a7.txt",), "/world"),
        ("dir/ /", ("/dir",), "/"),
    ],
)
def test_copy_paths(text: str, sources: tuple[str, ...], target: str) -> None:
    found = copied("COPY " + text, settings=replace(START, workdir="/srv"), args={"V": "7"})
    assert (found.sources, found.target) == (sources, target)
    assert (found.owner, found.mode, found.unpack, found.image) == ("", -1, False, None)


def test_copy_flags() -> None:
    found = copied("COPY --chown=$WHO:5 --chmod=755 --link a b")
    assert (found.owner, found.mode) == ("world:5", 0o755)


def test_copy_takes_the_files_of_its_step() -> None:
    files = (FileEntry("/a", "0" * 64, 1),)
    assert evaluate(step("COPY a b", files=files), START)[1].files == files


def test_copy_from_another_image() -> None:
    stage = ImageSpec((ImageStep("base", options={"distribution": "scratch"}),))
    found = evaluate(step("COPY --from=build /out/* /bin/", images=(stage,)), START)[1].copies
    assert found == (Copy(("/out/*",), "/bin/", stage),)
    assert "--from=build" in refused("COPY --from=build /out /bin")


def test_here_documents_are_files() -> None:
    found = copied("COPY --chmod=600 <<one.txt <<'two' /etc/", "hello $WHO \\$WHO\n", "hello $WHO\n")
    assert found.texts == (("one.txt", "hello world $WHO\n"), ("two", "hello $WHO\n"))
    assert (found.sources, found.target, found.mode) == ((), "/etc/", 0o600)


def test_here_documents_and_files_together() -> None:
    first, second = run("COPY a <<EOF /etc/", "x\n").copies
    assert (first.sources, first.texts) == (("/a",), ())
    assert (second.sources, second.texts) == ((), (("EOF", "x\n"),))


def test_add_unpacks_and_fetches() -> None:
    assert copied("ADD a.tar.gz /x/").unpack
    found = copied("ADD --chmod=644 https://host.test/f.tar.gz /x/")
    assert (found.url, found.sources, found.unpack, found.mode) == ("https://host.test/f.tar.gz", (), False, 0o644)
    assert copied("COPY https://host.test/f /x/").url == ""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("COPY a", "source"),
        ("COPY a b c", "write c/"),
        ("COPY ../a b", "outside of the context"),
        ("COPY a/../../b c", "outside of the context"),
        ("COPY --chmod=u+x a b", "octal"),
        ("COPY --chmod=77777 a b", "octal"),
        ("COPY --parents a b", "--parents"),
        ("COPY --link=maybe a b", "--link"),
        ("ADD --from=x a b", "--from"),
        ("ADD --checksum=sha256:00 https://host.test/f /x", "--checksum"),
        ("ADD https://host.test/f https://host.test/g /x/", "only source"),
        ("ADD https://host.test/f.git /x", "git clone"),
        ("COPY $NONE /x", "source"),
        ("COPY ${A:-b} /x", "cannot be used"),
        ('COPY ["a", 1]', "texts"),
    ],
)
def test_copies_that_cannot_be_are_refused(text: str, word: str) -> None:
    assert word in refused(text)


# --- whole Dockerfiles, through the builder ---

SCRATCH = ImageStep("base", options={"distribution": "scratch"})


class NoMounts:
    """Nothing here runs."""

    def show(self, tree: bytes, root: Node | None = None) -> str:
        return tree.hex()


@dataclass
class Built:
    """An image made of instructions, and the lines of its build."""

    store: Store
    root: Node
    settings: Settings
    lines: list[str]

    def text(self, path: str) -> str:
        node = trees.find(self.root, path.encode())
        assert node is not None
        return Path(self.store.fetch(node.data, node.size)).read_text()

    def owner(self, path: str) -> tuple[int, int, int]:
        node = trees.find(self.root, path.encode())
        assert node is not None
        return node.uid, node.gid, node.mode & 0o7777


def build(home: Path, *steps: ImageStep, context: Path | None = None) -> Built:
    store = Store(str(home / "store"))
    mounts: Any = NoMounts()
    images = ImageStore(str(home), store, mounts, environ={"PATH": "/usr/bin:/bin"}, clock=ManualClock())
    spec = ImageSpec((SCRATCH, *steps))
    lines: list[str] = []

    async def refuse(run: object) -> int:
        raise AssertionError("no command is run")

    async def make() -> str:
        found = await images.build(
            BuildOrder(spec.image_id(), spec, False), lambda line: lines.append(line.text), refuse,
            lambda digest: str(context / digest) if context else None,
        )  # fmt: skip
        await images.close()
        return found.image_id

    image_id = asyncio.run(make())
    info = images.image(image_id)
    assert info is not None
    return Built(store, store.tree(bytes.fromhex(info.tree)), images.settings(image_id), lines)


def upload(context: Path, path: str, content: bytes, mode: int = 0o644) -> FileEntry:
    context.mkdir(exist_ok=True)
    name = hashlib.sha256(content).hexdigest()
    (context / name).write_bytes(content)
    return FileEntry(path, name, len(content), mode)


def archive(**members: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def test_a_dockerfile_without_commands(tmp_path: Path) -> None:
    context = tmp_path / "context"
    files = (upload(context, "/src/a.py", b"a"), upload(context, "/src/deep/b.sh", b"b", 0o755))
    built = build(
        tmp_path,
        step("ENV WHO=world"),
        step('CMD ["early"]'),
        step("EXPOSE 80"),
        step("WORKDIR /srv"),
        step("COPY <<passwd <<'group' /etc/", "app:x:7:8::/:\n", "team:x:9:\n"),
        step("COPY --chown=app:team --chmod=750 src/ app/", files=files),
        step("COPY src/a.py src/*/b.sh ./here/", files=files),
        step("COPY src/a.py renamed", files=files),
        step("ADD p.tgz /opt/", files=(upload(context, "/p.tgz", archive(inside=b"unpacked")),)),
        step("COPY <<EOF greeting", "hello $WHO, $$ and \\$WHO\n"),
        step("USER app"),
        step('ENTRYPOINT ["run"]'),
        context=context,
    )
    assert built.text("/srv/app/a.py") == "a"
    assert built.owner("/srv/app/deep/b.sh") == (7, 9, 0o750)
    assert built.owner("/srv/here/b.sh") == (0, 0, 0o755)
    assert (built.text("/srv/renamed"), built.text("/opt/inside")) == ("a", "unpacked")
    assert built.text("/srv/greeting") == "hello world, $$ and $WHO\n"
    assert (built.settings.workdir, built.settings.user, built.settings.env["WHO"]) == ("/srv", "app", "world")
    assert (built.settings.entrypoint, built.settings.cmd) == (("run",), ("early",))
    assert "EXPOSE says nothing here: passed over" in built.lines


def test_what_was_cached_gives_the_same_settings(tmp_path: Path) -> None:
    first = (step('CMD ["mine"]'), step("WORKDIR /w"))
    assert build(tmp_path, *first).settings.cmd == ("mine",)
    again = build(tmp_path, *first, step('ENTRYPOINT ["x"]'))
    assert (again.settings.cmd, again.settings.entrypoint, again.settings.workdir) == (("mine",), ("x",), "/w")


def test_stages_are_other_images(tmp_path: Path) -> None:
    stage = ImageSpec((SCRATCH, step("COPY <<EOF /out/bin/tool", "made\n"), step("COPY <<EOF /out/other", "no\n")))
    built = build(tmp_path, step("COPY --from=0 /out/bin /usr/bin/", images=(stage,)))
    assert built.text("/usr/bin/tool") == "made\n"
    assert trees.find(built.root, b"/usr/bin/other") is None


def test_add_fetches_a_url(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/file.tar").write_bytes(archive(a=b"packed"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        built = build(tmp_path, step(f"ADD --chmod=640 {url}/file.tar /in/"))
        with pytest.raises(RemoteError, match="404"):
            build(tmp_path, step(f"ADD {url}/none /in/"))
        server.shutdown()
    assert built.owner("/in/file.tar") == (0, 0, 0o640)  # fetched archives stay as they are


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"nothing\.py"):
        build(tmp_path, step("COPY nothing.py /x"))


def test_directories_without_files_come_with_the_step() -> None:
    made = step("COPY . /x/")
    told = replace(made, options={**made.options, "directories": '["/logs"]'})
    assert evaluate(told, START)[1].folders == ("/logs",)
    for wrong in ("[", '["logs"]', "{}"):
        with pytest.raises(InvalidError, match="no JSON list"):
            evaluate(replace(made, options={**made.options, "directories": wrong}), START)
