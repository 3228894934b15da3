"""What each method of an image is told to the server as. Source: semantics.md section 13; protocol/objects.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Callable

import pytest

from cadenza import Image, Secret
from cadenza.exception import InvalidError, NotFoundError
from cadenza.protocol.images import ImageFind, ImageLog, ImageLogLine, ImageLogQuery, ImagePublish, ImageRemove
from cadenza.protocol.nodes import ImageInfo
from cadenza.protocol.objects import ImageStep
from cadenza.runner import context
from cadenza.sdk import experimental, publish
from cadenza.sdk.recipe import resolve
from cadenza.sdk.requirements import private_commands


def base() -> Image:
    return Image.debian_slim("3.11")


def steps(image: Image) -> tuple[ImageStep, ...]:
    return resolve(image._links).spec.steps


def last(image: Image) -> ImageStep:
    return steps(image)[-1]


# --- bases ---


def test_registries() -> None:
    image = Image.from_registry(
        "host.test:5000/a/b@sha256:00", setup_dockerfile_commands=["RUN apk add bash"], add_python="3.12"
    )
    assert [(one.kind, one.args, one.options) for one in steps(image)] == [
        ("base", (), {"distribution": "registry", "tag": "host.test:5000/a/b@sha256:00"}),
        ("docker", ("RUN", "apk add bash"), {}),
        ("python", (), {"version": "3.12"}),
    ]
    assert [one.kind for one in steps(Image.from_registry("a"))] == ["base"]
    assert steps(Image.from_registry("a", force_build=True))[0].force


STATIC = {"REGISTRY_USERNAME": "u", "REGISTRY_PASSWORD": "p"}
AWS = {"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "r"}
GCP = {"SERVICE_ACCOUNT_JSON": "{}"}


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (Image.from_registry, STATIC),
        (Image.from_registry, AWS),
        (Image.from_registry, GCP),
        (Image.from_aws_ecr, AWS),
        (Image.from_aws_ecr, {"AWS_ROLE_ARN": "arn", "AWS_REGION": "r"}),
        (Image.from_gcp_artifact_registry, GCP),
    ],
)
def test_a_registrys_secret_goes_to_its_step_alone(make: Any, values: Any) -> None:
    image = make("a", Secret.from_dict(values)).run_commands("x")
    assert [one.secrets for one in steps(image)] == [values, {}]
    assert "p" not in str(steps(image)[0].content()["secret_keys"]).split()


@pytest.mark.parametrize(
    ("make", "values", "says"),
    [
        (Image.from_registry, {**STATIC, **GCP}, "two kinds"),
        (Image.from_registry, {**AWS, **GCP}, "two kinds"),
        (Image.from_registry, {"USER": "x"}, "none of the keys"),
        (Image.from_registry, {"REGISTRY_USERNAME": "u"}, "REGISTRY_PASSWORD"),
        (Image.from_aws_ecr, STATIC, "AWS_ACCESS_KEY_ID"),
        (Image.from_gcp_artifact_registry, AWS, "SERVICE_ACCOUNT_JSON"),
    ],
)
def test_a_registrys_secret_has_keys_of_one_kind(make: Any, values: Any, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        make("a", Secret.from_dict(values))


def test_a_registrys_secret_may_be_empty_in_a_container() -> None:
    context.become(context.Container("ta-x"))
    try:
        Image.from_registry("a", Secret.from_local_environ(["NONE_OF_THIS_NAME"]))
    finally:
        context.become(None)


def test_stored_secrets_go_by_name() -> None:
    step = last(Image.from_registry("a", Secret.from_name("mine")))
    assert [one.name for one in step.secret_refs] == ["mine"]
    assert step.secrets == {}


def test_other_bases() -> None:
    assert last(Image.from_scratch()).options == {"distribution": "scratch"}
    assert last(Image.micromamba("3.12")).options == {"distribution": "micromamba", "python": "3.12"}
    assert last(Image.micromamba("3.12.4")).options["python"] == "3.12.4"
    with pytest.raises(InvalidError, match=r"3\.10"):
        steps(Image.micromamba("2.7"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image.from_registry(""),
        lambda: Image.from_registry("a b"),
        lambda: Image.from_registry("a", add_python=3.12),  # type: ignore[arg-type]
        lambda: Image.from_registry("a", setup_dockerfile_commands=[1]),  # type: ignore[list-item]
        lambda: Image.from_registry("a", "secret"),  # type: ignore[arg-type]
        lambda: Image.from_id("ab"),
        lambda: Image.from_name("a:b:c"),
        lambda: Image.from_name("a b"),
        lambda: Image.from_name("one/a", environment_name="two"),
        lambda: Image.from_name("im-a:b"),
        lambda: Image.from_dockerfile("D", build_args={"A": 1}),  # type: ignore[dict-item]
        lambda: Image.from_dockerfile("D", ignore="*.md"),
        lambda: Image.micromamba(3.12),  # type: ignore[arg-type]
        lambda: base().pip_install_private_repos("github.com/a/b", git_user="u"),
        lambda: base().pip_install_private_repos(
            "a/b", git_user="u", secrets=[Secret.from_dict({"GITHUB_TOKEN": "x"})]
        ),
        lambda: base().pip_install_private_repos(
            "gitlab.com/a/b", git_user="u", secrets=[Secret.from_dict({"GITHUB_TOKEN": "x"})]
        ),
        lambda: base().uv_sync(groups="dev"),
        lambda: base().micromamba_install("-c x"),
        lambda: base().poetry_install_from_file("p", poetry_version=""),
    ],
)  # fmt: skip
def test_bad_arguments_fail_at_the_call(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidError):
        make()


def test_unknown_arguments_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="ad_python"):
        Image.from_registry("a", ad_python="3.12")


# --- Python packages ---


def test_pyproject(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text('[project]\ndependencies = ["b", "a>=1"]\n[project.optional-dependencies]\ndev = ["c"]\n')
    assert last(base().pip_install_from_pyproject(str(file))).args == ("a>=1", "b")
    step = last(base().pip_install_from_pyproject(str(file), ["dev"], pre=True, index_url="i"))
    assert step.args == ("a>=1", "b", "c")
    assert step.options == {"tool": "pip", "pre": "1", "index_url": "i"}
    with pytest.raises(InvalidError, match="'none'; it has dev"):
        steps(base().pip_install_from_pyproject(str(file), ["none"]))


@pytest.mark.parametrize(
    ("text", "says"), [("[tool.poetry]", "poetry_install_from_file"), ("[project]", "dependencies"), ("x", "no TOML")]
)
def test_pyprojects_without_dependencies(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(text)
    with pytest.raises(InvalidError, match=says):
        steps(base().pip_install_from_pyproject(str(file)))


def test_private_repositories() -> None:
    secret = Secret.from_dict({"GITHUB_TOKEN": "t0k3n"})
    image = base().pip_install_private_repos("github.com/a/b@1", git_user="me@x", pre=True, secrets=[secret])
    _, apt, run = steps(image)
    assert (apt.kind, apt.args, apt.secrets) == ("apt", ("git",), {})
    assert run.secrets == {"GITHUB_TOKEN": "t0k3n"}
    assert "t0k3n" not in str(run.content())
    check, install = run.args
    assert 'test -n "$GITHUB_TOKEN"' in check
    assert 'GIT_CONFIG_KEY_0="url.https://me%40x:${GITHUB_TOKEN}@github.com/.insteadOf"' in install
    assert install.endswith("python3 -m pip install --pre git+https://github.com/a/b@1")


def test_private_repositories_of_two_hosts() -> None:
    *checks, install = private_commands(["gitlab.com/a/b", "github.com/a/b"], "u", {"extra_options": "--no-deps"})
    assert len(checks) == 2
    assert "GIT_CONFIG_COUNT=2" in install
    assert install.endswith("--no-deps")


def test_uv_projects(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    (tmp_path / "other.py").write_text("")
    step = last(base().uv_sync(str(tmp_path)))
    assert (step.kind, [one.path for one in step.files], step.options) == ("uv_sync", ["/.uv/pyproject.toml"], {})
    (tmp_path / "uv.lock").write_text("version = 1")
    image = base().uv_sync(str(tmp_path), groups=["dev", "test"], extras=["x"], extra_options="-v", uv_version="0.8")
    step = last(image)
    assert [one.path for one in step.files] == ["/.uv/pyproject.toml", "/.uv/uv.lock"]
    assert step.options == {
        "groups": "dev,test", "extras": "x", "extra_options": "-v", "uv_version": "0.8", "frozen": "1",
    }  # fmt: skip
    assert "frozen" not in last(base().uv_sync(str(tmp_path), frozen=False)).options


@pytest.mark.parametrize("text", ["[tool.uv.workspace]\nmembers = []", "[tool.uv.sources]\na = { workspace = true }"])
def test_uv_workspaces_are_refused_when_resolved(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    image = base().uv_sync(str(tmp_path))
    with pytest.raises(InvalidError, match="workspace"):
        steps(image)


def test_poetry(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text("")
    image = base().poetry_install_from_file(str(project), with_=["a", "b"], old_installer=True)
    with pytest.raises(FileNotFoundError, match="ignore_lockfile"):
        steps(image)
    (tmp_path / "poetry.lock").write_text("")
    step = last(image)
    assert [one.path for one in step.files] == ["/.poetry/pyproject.toml", "/.poetry/poetry.lock"]
    assert step.options == {"with": "a,b", "old_installer": "1", "poetry_version": "latest"}
    assert len(last(base().poetry_install_from_file(str(project), ignore_lockfile=True)).files) == 1
    own = steps(base().poetry_install_from_file(str(project), only=["main"], poetry_version=None))[1:]
    assert [one.kind for one in own] == ["copy", "run"]
    assert own[1].args[0].endswith("poetry install --directory /.poetry --no-root --only main")


def test_micromamba(tmp_path: Path) -> None:
    file = tmp_path / "spec.yml"
    file.write_text("")
    image = Image.micromamba("3.12")
    assert image.micromamba_install() is image
    step = last(image.micromamba_install("b", ["a"], channels=["conda-forge", "x"], spec_file=str(file)))
    assert step.args == ("a", "b")
    assert step.options == {"channels": "conda-forge,x", "spec_file": "/.micromamba/spec.yml"}
    assert [one.path for one in step.files] == ["/.micromamba/spec.yml"]


def test_what_a_steps_container_may_have() -> None:
    step = last(base().pip_install("a", gpu="A100:2"))
    assert step.resources is not None
    assert [(one.type, one.count) for one in step.resources.gpus] == [("A100-40GB", 2)]
    assert last(base().pip_install("a")).resources is None
    assert last(base().pip_install("a")).content() != step.content()


# --- images that are there ---


class Server:
    """Answers what is asked of images."""

    def __init__(self, **ids: str) -> None:
        self.ids = ids
        self.asked: list[Any] = []

    async def _request(self, method: str, body: Any = None, payload: bytes = b"") -> Any:
        self.asked.append(body)
        if isinstance(body, ImageFind):
            found = body.image_id or self.ids.get(body.name.replace(":", "_"))
            if not found:
                raise NotFoundError(f"no image {body.name}")
            return ImageInfo(found, 0, 0.0, 0.0)
        if isinstance(body, ImageLogQuery):
            return ImageLog((ImageLogLine("one", 1.0, "RUN x"), ImageLogLine("two\n")))
        return None


def test_an_image_by_name_is_looked_up_at_its_first_use() -> None:
    image = Image.from_name("team/tools")
    assert "hydrate" in image._unhydrated_hint()
    server = Server(tools_latest="im-1")
    asyncio.run(publish.build_image(server, image))
    assert image.object_id == "im-1"
    assert server.asked == [ImageFind("", "tools:latest", "team")]
    with pytest.raises(NotFoundError):
        asyncio.run(publish.build_image(server, Image.from_name("none:1")))


def test_a_chain_that_begins_with_an_image_that_is_there() -> None:
    by_name = Image.from_name("tools:v2", environment_name="dev").run_commands("x")
    by_id = Image.from_id("im-2").run_commands("x")
    server = Server(tools_v2="im-2")
    ids = asyncio.run(publish.find_wanted(server, [by_name, by_id, base()]))
    assert len(server.asked) == 2
    one, two = (resolve(image._links, ids).spec for image in (by_name, by_id))
    assert one.steps[0].options == {"distribution": "image", "image_id": "im-2"}
    assert one.image_id() == two.image_id() != "im-2"
    alone = resolve(Image.from_name("tools:v2", environment_name="dev")._links, ids).spec
    assert (alone.steps, alone.built, alone.image_id()) == ((), "im-2", "im-2")


def test_mounted_files_over_an_image_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    found = resolve(Image.from_id("im-2").add_local_file(tmp_path / "f", "/f")._links)
    assert found.spec.built == "im-2"
    assert [one.path for one in found.mounts] == ["/f"]


def test_publish_wants_an_image_that_is_built() -> None:
    server = Server()
    with pytest.raises(InvalidError, match="build"):
        base().publish("x", client=server)  # type: ignore[arg-type]
    image = base()
    image._hydrate("im-3", None)
    image.publish("dev/x", client=server)  # type: ignore[arg-type]
    Image.from_id("im-4").publish("y:2", client=server)  # type: ignore[arg-type]
    assert server.asked == [
        ImagePublish("im-3", "x:latest", "dev"),
        ImageFind("im-4"),
        ImagePublish("im-4", "y:2", ""),
    ]


def test_logs_of_an_image() -> None:
    server: Any = Server()
    image = base()
    image._client = server
    [one, two] = list(image.logs.fetch(layers=2))
    assert (one.message, two.message) == ("one\n", "two\n")
    list(Image.from_id("im-5", client=server).logs.tail(7))
    assert server.asked == [
        ImageLogQuery(resolve(image._links).spec.image_id(), 2, 0),
        ImageFind("im-5"),
        ImageLogQuery("im-5", 0, 7),
    ]
    with pytest.raises(InvalidError):
        image.logs.fetch(layers=0)
    with pytest.raises(InvalidError):
        image.logs.tail(0)


def test_delete() -> None:
    server: Any = Server()
    experimental.image_delete("im-6", client=server)
    assert server.asked == [ImageRemove("im-6")]
    with pytest.raises(InvalidError):
        experimental.image_delete("x", client=server)
