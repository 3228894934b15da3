"""`Image`: an immutable chain of steps that the server makes into a root filesystem. Source: semantics.md section 13.

A method returns a new image and reads nothing; files are read and the order of steps is checked when the image is
resolved: at ``app.run`` or ``image.build``. `cadenza.sdk.recipe` has the steps themselves, `bases` and `image_python`
more methods.
"""

from __future__ import annotations

import os

from cadenza.base.errors import InvalidError
from cadenza.runner.context import current as container
from cadenza.sdk import _dual, recipe
from cadenza.sdk.bases import Bases, check_ignore
from cadenza.sdk.handle import Object, client_of
from cadenza.sdk.image_python import PythonPackages
from cadenza.sdk.names import check_image_name
from cadenza.sdk.namespaces import unbuilt
from cadenza.sdk.patterns import AUTO_DOCKERIGNORE, NON_PYTHON_FILES, as_predicate
from cadenza.sdk.recipe import Step, StepOptions
from cadenza.sdk.secret import check_variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path, PurePosixPath
    from types import TracebackType
    from typing import Any, Callable, Concatenate, Mapping, Optional, ParamSpec, Sequence, TypeVar, Union

    from cadenza.sdk.app import App
    from cadenza.sdk.client import Client
    from cadenza.sdk.image_logs import ImageLogs
    from cadenza.sdk.patterns import Ignore
    from cadenza.sdk.recipe import Gpu, Made, Mount
    from cadenza.sdk.secret import Secret

    P = ParamSpec("P")
    T = TypeVar("T")
    Packages = Union[str, list[str]]
    Env = Optional[Mapping[str, Optional[str]]]
    Secrets = Optional[Sequence[Secret]]


class Image(Bases, PythonPackages, Object):
    """The filesystem in which a function runs, as a recipe. Begin with a constructor such as `debian_slim`; each method
    adds a step."""

    _links: tuple[Union[Step, Mount], ...]
    _import_errors: list[BaseException]
    _used_here: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Image(...) cannot be called: use Image.debian_slim() or another constructor")

    @classmethod
    def _make(cls, links: tuple[Union[Step, Mount], ...]) -> Image:
        image: Image = cls.__new__(cls)
        image._init_handle()
        image._links = links
        image._import_errors = []
        image._used_here = False
        return image

    def _add(self, link: Union[Step, Mount]) -> Image:
        return Image._make((*self._links, link))

    def _unhydrated_hint(self) -> str:
        if recipe.wanted(self._links):
            return "it is looked up at its first use, or by .hydrate()"
        return "it is built when an app that uses it is run, or by image.build(app)"

    def __repr__(self) -> str:
        return f"<Image {' -> '.join(link.name for link in self._links)}>"

    # --- the system ---

    def apt_install(
        self,
        *packages: Packages,
        force_build: bool = False,
        env: Env = None,
        secrets: Secrets = None,
        gpu: Gpu = None,
    ) -> Image:
        """Install Debian packages; their order does not matter. ``secrets`` and ``env`` are seen by this step alone.
        InvalidError for flags."""
        names = recipe.flatten("apt_install", packages)
        if not names:
            return self
        recipe.check_no_flags("apt_install", names)
        return self._add(recipe.apt(names, StepOptions.read("apt_install", force_build, env, secrets, gpu)))

    def run_commands(
        self,
        *commands: Packages,
        env: Env = None,
        secrets: Secrets = None,
        volumes: Optional[Mapping[Any, Any]] = None,
        gpu: Gpu = None,
        force_build: bool = False,
    ) -> Image:
        """Run shell commands, one after the other, as one step: what the first that fails leaves is not kept."""
        lines = recipe.flatten("run_commands", commands)
        if volumes:
            raise unbuilt("run_commands(volumes=...)", "leave volumes out")
        if not lines:
            return self
        return self._add(recipe.run(lines, StepOptions.read("run_commands", force_build, env, secrets, gpu)))

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
        """Add instructions as a Dockerfile has them, without FROM. COPY and ADD take files below ``context_dir`` (None:
        the working directory) and ``context_files``, paths in the context to local files. See `from_dockerfile`."""
        where = "dockerfile_commands"
        lines = recipe.flatten(where, dockerfile_commands)
        if not lines:
            return self
        options = StepOptions.read(where, force_build, env, secrets, gpu)
        arguments = check_variables(build_args, f"{where}: build_args")
        context = os.path.abspath(os.getcwd() if context_dir is None else context_dir)
        local = {path: os.path.abspath(os.path.expanduser(one)) for path, one in dict(context_files).items()}
        check_ignore(ignore)

        def make() -> Made:
            from cadenza.sdk import stages

            return stages.Build(context, ignore, arguments, options, ()).commands(lines, where, local)

        return self._add(Step(where, make))

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
        """Run a function in a container of the image so far, and keep what it leaves in the filesystem. It runs again
        when its source, the values of the globals that it uses or its arguments change; what the functions that it
        calls do is not looked at. ``cpu`` in cores, ``memory`` in MiB, ``timeout`` in seconds; the arguments have 2 MiB
        at most. InvalidError for lambdas, generators, and functions that cannot be imported."""
        from cadenza.sdk import build_function

        where = "run_function"
        if volumes or network_file_systems:
            name = "volumes" if volumes else "network_file_systems"
            raise unbuilt(f"run_function({name}=...)", f"leave {name} out")
        build_function.check_places(cloud, region)
        limit_s = build_function.check_timeout(timeout)
        options = StepOptions.read(where, force_build, env, secrets, gpu, cpu, memory, limit_s)
        return self._add(build_function.link(raw_f, args, kwargs, include_source, options))

    # --- settings ---

    def env(self, vars: Mapping[str, str]) -> Image:
        """Set environment variables, for later steps and in the container. InvalidError for what is not text."""
        return self._add(recipe.env(vars))

    def workdir(self, path: Union[str, PurePosixPath]) -> Image:
        """Set the working directory of later steps and of the container."""
        return self._add(recipe.setting("workdir", [recipe.path("workdir", "path", path)]))

    def entrypoint(self, entrypoint_commands: Sequence[str]) -> Image:
        """Set the program under which the container's command runs; ``[]`` for none."""
        return self._add(recipe.setting("entrypoint", entrypoint_commands))

    def shell(self, shell_commands: Sequence[str]) -> Image:
        """Set the shell of later `run_commands`, for example ``["/bin/bash", "-c"]``."""
        return self._add(recipe.setting("shell", shell_commands))

    def cmd(self, cmd: Sequence[str]) -> Image:
        """Set the command that a container without one runs."""
        return self._add(recipe.setting("cmd", cmd))

    # --- local files ---

    def add_local_file(
        self, local_path: Union[str, Path], remote_path: Union[str, PurePosixPath], *, copy: bool = False
    ) -> Image:
        """Add one file. ``remote_path`` is absolute; with a slash at its end it is a directory. ``copy=True`` makes it
        a layer; without, it comes in when a container starts, and no build step may follow. InvalidError."""
        target = recipe.absolute("add_local_file", remote_path)
        return self._add(
            recipe.local_file(os.path.abspath(recipe.path("add_local_file", "local_path", local_path)), target, copy)
        )

    def add_local_dir(
        self,
        local_path: Union[str, Path],
        remote_path: Union[str, PurePosixPath],
        *,
        copy: bool = False,
        ignore: Ignore = [],  # noqa: B006  (never changed; part of the signature)
    ) -> Image:
        """Add the files of a directory, without those that ``ignore`` names. ``copy`` as for `add_local_file`."""
        target = recipe.absolute("add_local_dir", remote_path)
        as_predicate(ignore)
        return self._add(
            recipe.local_dir(
                os.path.abspath(recipe.path("add_local_dir", "local_path", local_path)), target, copy, ignore
            )
        )

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore = NON_PYTHON_FILES) -> Image:
        """Add modules and packages that can be imported here, so that they can be imported there: below /root, their
        .py files unless ``ignore`` says otherwise. ``copy`` as for `add_local_file`."""
        if not all(isinstance(one, str) and one for one in modules):
            raise InvalidError('add_local_python_source takes names of modules, such as "my_package"')
        for one in modules:
            if not all(part.isidentifier() for part in one.split(".")):
                raise InvalidError(
                    f"add_local_python_source: {one!r} is no name of a module; for a path use add_local_dir"
                )
        as_predicate(ignore)
        return self._add(recipe.python_source(modules, copy, ignore)) if modules else self

    # --- use ---

    def pipe(self, func: Callable[Concatenate[Image, P], Image], *args: P.args, **kwargs: P.kwargs) -> Image:
        """``func(self, *args, **kwargs)``: for steps that are kept in a function."""
        return func(self, *args, **kwargs)

    def imports(self) -> _Imports:
        """A context for imports that work only in this image: elsewhere an ImportError in it is passed over. In a
        container whose function uses this image, the ImportError is raised when the function is loaded."""
        return _Imports(self)

    def _use_here(self) -> None:
        """The function of this container uses this image: an ImportError that was passed over counts after all."""
        self._used_here = True
        if self._import_errors:
            raise self._import_errors[0]

    @property
    def logs(self) -> ImageLogs:
        """What the steps of its build have written."""
        from cadenza.sdk.image_logs import ImageLogs

        return ImageLogs(self)

    @_dual.method
    async def hydrate(self, client: Optional[Client] = None) -> Image:
        """Build it now if that was not done, or look it up, so that it has an id."""
        if not self._hydrated:
            await self._find(client or await self._any_client())
        return self

    async def _any_client(self) -> Client:
        return await client_of(self._client)

    async def _find(self, client: Client) -> None:
        from cadenza.sdk.output import current
        from cadenza.sdk.publish import build_image

        await build_image(client, self, current())

    @_dual.method
    async def build(self, app: Optional[App] = None) -> Image:
        """Build it now, and show the build where output is enabled. ImageBuildError if a step fails, RemoteError if a
        registry or another server does, ResourceExhaustedError if the disk is full."""
        client = app._client if app is not None else None
        await self._find(client or await self._any_client())
        return self

    @_dual.method
    async def publish(
        self,
        name: str,
        *,
        environment_name: Optional[str] = None,
        experimental_options: Optional[Mapping[str, Any]] = None,
        client: Optional[Client] = None,
    ) -> None:
        """Give the image a name, ``[environment/]name[:tag]``, for `Image.from_name`. A name that another image has
        means this one from now on. InvalidError when it is not built."""
        from cadenza.protocol.images import ImagePublish

        text, environment = check_image_name("Image.publish", name, environment_name)
        if not self._hydrated and not (len(self._links) == 1 and recipe.wanted(self._links)):
            raise InvalidError(f"{self!r} is not built: call image.build() before image.publish({name!r})")
        to = client or await self._any_client()
        if not self._hydrated:
            await self._find(to)
        await to._request("image.publish", ImagePublish(self.object_id, text, environment))


class _Imports:
    """See `Image.imports`."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if isinstance(error, ImportError):
            if container() is not None:
                self._image._import_errors.append(error)
            return not self._image._used_here
        import warnings

        warnings.warn(
            f"{type(error).__name__} inside image.imports(): {error}. Only ImportError is passed over.",
            stacklevel=2,
        )
        return False
