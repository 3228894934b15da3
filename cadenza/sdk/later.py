"""What is named and typed and not built yet: each says what to use for now.

A name leaves this file when it is built. What can be refused for good already is.
"""

from __future__ import annotations

from cadenza.base.errors import InvalidError, UnimplementedError
from cadenza.sdk import _dual
from cadenza.sdk.namespaces import LaterNamespace, unbuilt
from cadenza.sdk.patterns import FilePatternMatcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Callable, Mapping, Optional, Sequence, Union

    from cadenza.sdk.image import Env, Image, Packages, Secrets
    from cadenza.sdk.patterns import Ignore
    from cadenza.sdk.recipe import Gpu
    from cadenza.sdk.secret import Secret

AUTO_DOCKERIGNORE = FilePatternMatcher()
"""Stands for: the ``.dockerignore`` next to the Dockerfile or in the context."""
_START = "start from Image.debian_slim() and add pip_install, apt_install or run_commands"


class LaterImage:
    """What an `Image` will do."""

    logs = LaterNamespace("Image.logs", "builds are shown while they run, with enable_output()")

    @staticmethod
    def micromamba(python_version: Optional[str] = None, force_build: bool = False) -> Image:
        """Not built yet."""
        raise unbuilt("Image.micromamba", _START)

    @staticmethod
    def from_scratch(force_build: bool = False) -> Image:
        """Not built yet."""
        raise unbuilt("Image.from_scratch", _START)

    @staticmethod
    def from_registry(
        tag: str,
        secret: Optional[Secret] = None,
        *,
        setup_dockerfile_commands: Sequence[str] = [],
        force_build: bool = False,
        add_python: Optional[str] = None,
        **kwargs: Any,
    ) -> Image:
        """Not built yet."""
        raise unbuilt("Image.from_registry", _START)

    @staticmethod
    def from_gcp_artifact_registry(
        tag: str,
        secret: Optional[Secret] = None,
        *,
        setup_dockerfile_commands: Sequence[str] = [],
        force_build: bool = False,
        add_python: Optional[str] = None,
        **kwargs: Any,
    ) -> Image:
        """Not built yet."""
        raise unbuilt("Image.from_gcp_artifact_registry", _START)

    @staticmethod
    def from_aws_ecr(
        tag: str,
        secret: Optional[Secret] = None,
        *,
        setup_dockerfile_commands: Sequence[str] = [],
        force_build: bool = False,
        add_python: Optional[str] = None,
        **kwargs: Any,
    ) -> Image:
        """Not built yet."""
        raise unbuilt("Image.from_aws_ecr", _START)

    @staticmethod
    def from_dockerfile(
        path: Union[str, Path],
        *,
        force_build: bool = False,
        context_dir: Union[str, Path, None] = None,
        ignore: Ignore = AUTO_DOCKERIGNORE,
        build_args: Mapping[str, str] = {},
        registry_secret: Optional[Secret] = None,
        secrets: Secrets = None,
        env: Env = None,
        gpu: Gpu = None,
        add_python: Optional[str] = None,
    ) -> Image:
        """Not built yet."""
        raise unbuilt("Image.from_dockerfile", _START)

    @_dual.class_method_at_once
    def from_id(cls, image_id: str, client: Any = None) -> Image:
        """Not built yet."""
        raise unbuilt("Image.from_id", _START)

    @staticmethod
    def from_name(name: str, *, environment_name: Optional[str] = None, client: Any = None) -> Image:
        """Not built yet."""
        if isinstance(name, str) and name.startswith("im-"):
            raise InvalidError(
                f"Image.from_name({name!r}): names do not begin with im-; that is an id: use Image.from_id"
            )
        raise unbuilt("Image.from_name", _START)

    def pip_install_from_pyproject(
        self,
        pyproject_toml: str,
        optional_dependencies: Sequence[str] = [],
        *,
        find_links: Optional[str] = None,
        index_url: Optional[str] = None,
        extra_index_url: Optional[str] = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Env = None,
        secrets: Secrets = None,
        gpu: Gpu = None,
    ) -> Image:
        """Not built yet."""
        raise unbuilt("pip_install_from_pyproject", "name the packages in pip_install(...)")

    def pip_install_private_repos(
        self,
        *repositories: str,
        git_user: str,
        find_links: Optional[str] = None,
        index_url: Optional[str] = None,
        extra_index_url: Optional[str] = None,
        pre: bool = False,
        extra_options: str = "",
        gpu: Gpu = None,
        env: Env = None,
        secrets: Secrets = None,
        force_build: bool = False,
    ) -> Image:
        """Not built yet."""
        raise unbuilt("pip_install_private_repos", "use run_commands with a token from secrets=[...]")

    def poetry_install_from_file(
        self,
        poetry_pyproject_toml: str,
        poetry_lockfile: Optional[str] = None,
        *,
        ignore_lockfile: bool = False,
        force_build: bool = False,
        with_: Sequence[str] = [],
        without: Sequence[str] = [],
        only: Sequence[str] = [],
        poetry_version: Optional[str] = "latest",
        old_installer: bool = False,
        env: Env = None,
        secrets: Secrets = None,
        gpu: Gpu = None,
    ) -> Image:
        """Not built yet."""
        raise unbuilt("poetry_install_from_file", "export a requirements file and use pip_install_from_requirements")

    def uv_sync(
        self,
        uv_project_dir: str = "./",
        *,
        force_build: bool = False,
        groups: Optional[Sequence[str]] = None,
        extras: Optional[Sequence[str]] = None,
        frozen: bool = True,
        extra_options: str = "",
        uv_version: Optional[str] = None,
        env: Env = None,
        secrets: Secrets = None,
        gpu: Gpu = None,
    ) -> Image:
        """Not built yet."""
        raise unbuilt("uv_sync", "use uv_pip_install(requirements=[...]) with what `uv export` writes")

    def micromamba_install(
        self,
        *packages: Packages,
        spec_file: Optional[str] = None,
        channels: Sequence[str] = [],
        force_build: bool = False,
        env: Env = None,
        secrets: Secrets = None,
        gpu: Gpu = None,
    ) -> Image:
        """Not built yet."""
        raise unbuilt("micromamba_install", "use pip_install or apt_install")

    def dockerfile_commands(
        self,
        *dockerfile_commands: Packages,
        context_files: Mapping[str, str] = {},
        env: Env = None,
        secrets: Secrets = None,
        gpu: Gpu = None,
        context_dir: Union[str, Path, None] = None,
        force_build: bool = False,
        ignore: Ignore = AUTO_DOCKERIGNORE,
        build_args: Mapping[str, str] = {},
    ) -> Image:
        """Not built yet."""
        raise unbuilt("dockerfile_commands", "use run_commands, env, workdir and add_local_file(copy=True)")

    def run_function(
        self,
        raw_f: Callable[..., Any],
        *,
        env: Env = None,
        secrets: Secrets = None,
        volumes: Mapping[Any, Any] = {},
        network_file_systems: Mapping[Any, Any] = {},
        gpu: Gpu = None,
        cpu: Optional[float] = None,
        memory: Optional[int] = None,
        timeout: int = 3600,
        cloud: Optional[str] = None,
        region: Union[str, Sequence[str], None] = None,
        force_build: bool = False,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        include_source: bool = True,
    ) -> Image:
        """Not built yet."""
        if getattr(raw_f, "__name__", "") == "<lambda>":
            raise InvalidError("run_function cannot take a lambda: define a function with a name in global scope")
        raise unbuilt(
            "run_function", 'use run_commands("python -c ...") or add_local_file(copy=True) with run_commands'
        )

    @_dual.method
    async def publish(
        self,
        name: str,
        *,
        environment_name: Optional[str] = None,
        experimental_options: Optional[Mapping[str, Any]] = None,
        client: Any = None,
    ) -> None:
        """Not built yet."""
        raise unbuilt("Image.publish", "share the code that makes the image; equal steps are built once")


class LaterApp:
    """What an `App` will do."""

    sandboxes = LaterNamespace("App.sandboxes", "sandboxes come later")

    def server(
        self,
        *,
        image: Optional[Image] = None,
        env: Optional[Mapping[str, Optional[str]]] = None,
        secrets: Optional[Sequence[Secret]] = None,
        gpu: Union[str, Sequence[Optional[str]], None] = None,
        serialized: bool = False,
        volumes: Mapping[Any, Any] = {},
        cpu: Union[float, tuple[float, float], None] = None,
        memory: Union[int, tuple[int, int], None] = None,
        ephemeral_disk: Optional[int] = None,
        target_concurrency: Optional[int] = None,
        max_concurrency: Optional[int] = None,
        min_containers: Optional[int] = None,
        max_containers: Optional[int] = None,
        buffer_containers: Optional[int] = None,
        scaleup_window: Optional[int] = None,
        scaledown_window: Optional[int] = None,
        startup_timeout: int = 30,
        name: Optional[str] = None,
        port: int = 8000,
        unauthenticated: bool = False,
        h2_enabled: bool = False,
        exit_grace_period: int = 0,
        routing_region: str = "us-east",
        compute_region: Union[str, Sequence[str], None] = None,
        cloud: Optional[str] = None,
        nonpreemptible: bool = False,
        proxy: Any = None,
        i6pn: Optional[bool] = None,
        enable_memory_snapshot: bool = False,
        include_source: Optional[bool] = None,
        experimental_options: Optional[Mapping[str, Any]] = None,
    ) -> Callable[[Any], Any]:
        """Not built yet."""
        raise UnimplementedError("@app.server is not built yet: web functions come later")


def clustered(*, size: int, rdma: bool = False) -> Callable[[Any], Any]:
    """A function that runs on several machines at once. Not built yet."""
    raise unbuilt("clustered()", "use several calls, or one machine")


def sessioned() -> Callable[[Any], Any]:
    """A function whose containers belong to sessions. Not built yet."""
    raise unbuilt("sessioned()", "use a plain @app.function")
