"""The image language as a stranger meets it: programs, the command line and a real registry. semantics.md 13, 33."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Home
from registry import DockerRegistry

HASH = "$2b$05$qp5Yr0ACYrANmAex1YrJ4e/JJR0kL3OrsH/Mo6GZYCqoQ.LqKo90y"
"""Of the password ``secret``."""
ENTRY = '#!/bin/sh\nexport FROM_ENTRYPOINT=yes\nexec "$@"\n'
CLOSED = "#!/bin/sh\necho nothing else\n"

HEAD = """
import os, sys
import cadenza
from cadenza import Image, Secret

app = cadenza.App()


def attempt(name, make):
    try:
        image = make()
        image.build()
        print(name, "is built")
        return image
    except Exception as error:
        print(name, type(error).__name__, " ".join(str(error).split()))


"""

BASES = """
@app.local_entrypoint()
def main():
    Image.debian_slim("3.11").build().publish("base")
    Image.from_scratch().add_local_file(__file__, "/it", copy=True).build().publish("small")
"""


def run(home: Home, name: str, source: str, **more: str) -> subprocess.CompletedProcess[str]:
    done = home.cadenza("run", home.program(name, HEAD + source), timeout=80, **more)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """One with users."""
    found = DockerRegistry(tmp_path_factory.mktemp("registry"), htpasswd=f"joe:{HASH}\n")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def based(make_home: Callable[..., Home]) -> Home:
    """A home with images of the names ``base``, with a Python, and ``small``."""
    home = make_home()
    run(home, "base.py", BASES)
    return home


def test_images_go_to_registries_with_users_and_come_back(based: Home, registry: DockerRegistry) -> None:
    """`image push` and `image pull` with a secret of the server, with variables of here, and with neither."""
    ref = f"{registry.host}/team/small:1"
    mine = {"REGISTRY_USERNAME": "joe", "REGISTRY_PASSWORD": "secret"}
    names = ("--registry-secret-from-env", "REGISTRY_USERNAME,REGISTRY_PASSWORD")
    based.cadenza("secret", "create", "reg", *(f"{name}={value}" for name, value in mine.items()))
    for argv in (("push", "small", ref), ("pull", ref)):
        refused = based.cadenza("image", *argv)
        assert refused.returncode == 1 and "wants a login" in refused.stderr and "REGISTRY_USERNAME" in refused.stderr
    first = based.cadenza("image", "push", "small", ref, *names, **mine)
    second = based.cadenza("image", "push", "small", ref, "--registry-secret", "reg")
    assert first.returncode == 0 and first.stdout == second.stdout, "the same image has the same digest"
    for way in (("--registry-secret", "reg", "--name", "back:a"), (*names, "--name", "back:b", "--force-build")):
        pulled = based.cadenza("image", "pull", ref, *way, **mine)
        assert pulled.returncode == 0 and "is back:" in pulled.stdout, pulled.stderr
        assert "secret" not in pulled.stdout + pulled.stderr
    found = json.loads(based.cadenza("image", "inspect", "back:b", "--json").stdout)
    assert found["source"] == first.stdout.strip() and found["names"] == ["main/back:b"]


def test_an_entrypoint_starts_functions(based: Home) -> None:
    """13.2: it gets the runner's command and ends in exec "$@"; USER is ignored for functions."""
    source = f"""
def describe():
    return os.environ.get("FROM_ENTRYPOINT"), os.getuid(), os.getcwd()

def made(name, image):
    return app.function(image=image, name=name, serialized=True)(describe)

def under(program, text):
    lines = [f"COPY --chmod=755 <<'EOF' {{program}}", *text.splitlines(), "EOF", "USER nobody", "WORKDIR /srv/w"]
    return Image.from_name("base").dockerfile_commands(*lines, f'ENTRYPOINT ["{{program}}"]')

images = {{"entry": under("/entry.sh", {ENTRY!r}), "closed": under("/closed.sh", {CLOSED!r})}}
images["gone"] = images["entry"].entrypoint(["/gone.sh"])
images["left out"] = images["closed"].entrypoint([])
functions = {{name: made(name.replace(" ", "-"), image) for name, image in images.items()}}

@app.local_entrypoint()
def main():
    for name, function in functions.items():
        try:
            print(name, function.remote())
        except Exception as error:
            print(name, str(error).split("; ")[-1])
"""
    lines = run(based, "entry.py", source).stdout.splitlines()
    hint = (
        'the image\'s ENTRYPOINT {} did not start it: it must end in exec "$@", or be left out by Image.entrypoint([])'
    )
    for line in (
        "entry ('yes', 0, '/srv/w')",
        "closed " + hint.format("/closed.sh"),
        "gone " + hint.format("/gone.sh"),
        "left out (None, 0, '/srv/w')",
    ):
        assert line in lines


def test_steps_that_cannot_be_say_why(based: Home) -> None:
    """Images without a shell, without apt, without a Python; steps that are killed; wrong use."""
    source = """
def eat():
    bytearray(300 << 20)

def leave():
    sys.exit(3)

@app.local_entrypoint()
def main():
    base, empty = Image.from_name("base"), Image.from_scratch()
    attempt("shell", lambda: empty.run_commands("x"))
    attempt("exec", lambda: empty.dockerfile_commands('RUN ["/nope", "x"]'))
    attempt("apt", lambda: empty.apt_install("x"))
    attempt("pip", lambda: empty.pip_install("x"))
    attempt("mamba", lambda: base.micromamba_install("x"))
    attempt("function", lambda: empty.run_function(leave))
    attempt("exit", lambda: base.run_function(leave))
    attempt("memory", lambda: base.run_function(eat, memory=(64, 128)))
    attempt("gpu", lambda: base.run_commands("x", gpu="B200:8"))
    attempt("device", lambda: base.run_commands("mknod /dev0 c 0 0"))
"""
    said = dict(line.split(" ", 1) for line in run(based, "wrong.py", source).stdout.splitlines())
    for name, words in {
        "shell": "needs /bin/sh, which is no program in the image: one without a shell",
        "exec": "needs /nope, which is no program in the image",
        "apt": "the image has no apt-get, which images made from Debian",
        "pip": "needs a Python in the image",
        "mamba": "begin with Image.micromamba()",
        "function": "needs a Python in the image",
        "exit": "failed with exit code 3",
        "memory": "out of memory: the step used more than its limit of 128 MiB: raise it",
        "gpu": "gpu=B200:8 was wanted, and of GPUs this machine has",
        "device": "Operation not permitted",
    }.items():
        assert words in said[name], said[name]


def test_a_dockerfile_with_many_features(based: Home, tmp_path: Path) -> None:
    """13.2: stages, arguments, here-documents, ADD of an address, .dockerignore, directories without files."""
    context = tmp_path / "context"
    for path, text in (("a.txt", "one"), ("b.log", "no"), ("keep.log", "yes"), ("sub/deep/d", "no")):
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        (context / path).write_text(text)
    (context / ".dockerignore").write_text("*.log\n!keep.log\n**/deep\n.dockerignore\nDockerfile\n")
    served = partial(SimpleHTTPRequestHandler, directory=str(context))
    server = ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lines = [
        "ARG WHO=world",
        'ENV GREETING="hello $WHO" \\',
        "    # between",
        "    ESCAPED=a\\ b",
        "WORKDIR /w",
        "WORKDIR x",
        "COPY . /all/",
        "COPY a.txt sub/ ./",
        "COPY --chown=12:34 --chmod=640 a.txt /owned",
        f"ADD http://127.0.0.1:{server.server_port}/a.txt /web/",
        "RUN <<EOF",
        'echo "$GREETING; $ESCAPED; $PWD" > /said',
        "EOF",
        'COPY <<"EOF" /literal',
        "$GREETING",
        "EOF",
        'RUN ["/bin/sh", "-c", "cat /said /literal /web/a.txt; ls /all /w/x; stat -c %u:%g:%a /owned"]',
        "EXPOSE 80",
        "USER nobody",
        "RUN id -un",
    ]
    source = f"""
@app.local_entrypoint()
def main():
    image = Image.from_name("base").dockerfile_commands(
        {lines!r}, context_dir={str(context)!r}, build_args={{"WHO": "me"}})
    image.build()
    for line in image.logs.fetch(layers=2):
        print(line.message, end="")
"""
    try:
        done = run(based, "dockerfile.py", source)
    finally:
        server.shutdown()
        server.server_close()
    whole = done.stdout + done.stderr
    said = "\n".join(line.strip() for line in whole.splitlines())
    assert "hello me; a b; /w/x\n$GREETING\none/all:\na.txt\nkeep.log\nsub\n\n/w/x:\na.txt\n12:34:640" in said
    assert "\nnobody" in said


def test_names_and_forced_builds(based: Home) -> None:
    """13.1, 13.2: names move, environments are apart; the cache is used, replaced and ignored."""
    source = """
@app.local_entrypoint()
def main():
    base = Image.from_name("base")
    one, two = (base.run_commands(f"echo {number} > /v") for number in (1, 2))
    one.build(); two.build()
    one.publish("it"); one.publish("it:old"); two.publish("it"); one.publish("apart/it")
    names = ("it", "it:latest", "main/it:old", "apart/it")
    print(*(Image.from_name(name).hydrate().object_id == two.object_id for name in names))
    stamp = base.run_commands("cat /proc/sys/kernel/random/uuid > /t")
    def stamped(tail, variable="A"):
        os.environ[variable] = "1"
        stamp.run_commands(f"cat /t; echo {tail}").build()
        del os.environ[variable]
    stamped("a")
    stamped("b")
    stamped("c", "MODAL_IGNORE_CACHE")
    stamped("d")
    stamped("e", "CADENZA_FORCE_BUILD")
    stamped("f")
"""
    assert based.cadenza("environment", "create", "apart").returncode == 0
    done = run(based, "names.py", source)
    assert done.stdout == "True True False False\n"
    first, second, ignoring, after, forced, last = re.findall(r"^[0-9a-f]{8}-[0-9a-f-]{27}$", done.stderr, re.MULTILINE)
    assert first == second == after and len({first, ignoring, forced}) == 3 and last == forced
    history = json.loads(based.cadenza("image", "names", "history", "it:latest", "--json").stdout)
    assert len(history) == 2


def test_imports_fail_only_where_the_image_is_used(based: Home) -> None:
    """13.3, 33.10: an ImportError is passed over here, and raised in the container whose function has the image."""
    source = """
with_it = Image.from_name("base").run_commands("echo x = 7 > /usr/lib/python3/dist-packages/only_there.py")
without = Image.from_name("base").env({"OTHER": "1"})

with with_it.imports():
    import only_there
with without.imports():
    import nowhere_at_all

@app.function(image=with_it)
def good():
    return only_there.x

@app.function(image=without)
def bad():
    return 1

@app.local_entrypoint()
def main():
    print(good.remote())
    try:
        bad.remote()
    except Exception as error:
        print(type(error).__name__, error)
"""
    lines = run(based, "imports.py", source).stdout.splitlines()
    assert lines[0] == "7"
    assert "nowhere_at_all" in lines[1]
