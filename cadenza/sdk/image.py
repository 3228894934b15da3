"""`Image`: an immutable chain of steps that the server makes into a root filesystem. Source: semantics.md section 13.

A method returns a new image and reads nothing; files are read and the order of steps is checked when the image is
resolved: at ``app.run`` or ``image.build``. `cadenza.sdk.recipe` has the steps themselves.
"""

from __future__ import annotations

import os

from cadenza.base.errors import InvalidError
from cadenza.runner.context import current as container
from cadenza.sdk import _dual, recipe
from cadenza.sdk.handle import Object
from cadenza.sdk.later import LaterImage
from cadenza.sdk.namespaces import unbuilt
from cadenza.sdk.patterns import NON_PYTHON_FILES, as_predicate
from cadenza.sdk.recipe import StepOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path, PurePosixPath
    from types import TracebackType
    from typing import Any, Callable, Concatenate, Mapping, Optional, ParamSpec, Sequence, TypeVar, Union

    from cadenza.sdk.app import App
    from cadenza.sdk.client import Client
    from cadenza.sdk.patterns import Ignore
    from cadenza.sdk.recipe import Gpu, Mount, Step
    from cadenza.sdk.secret import Secret

    P = ParamSpec("P")
    T = TypeVar("T")
    Packages = Union[str, list[str]]
    Env = Optional[Mapping[str, Optional[str]]]
    Secrets = Optional[Sequence[Secret]]


class Image(LaterImage, Object):
    """The filesystem in which a function runs, as a recipe. Begin with `debian_slim`; each method adds a step."""

    _links: tuple[Union[Step, Mount], ...]
    _import_errors: list[BaseException]
    _used_here: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Image(...) cannot be called: use Image.debian_slim()")

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
        return "it is built when an app that uses it is run, or by image.build(app)"

    def __repr__(self) -> str:
        return f"<Image {' -> '.join(link.name for link in self._links)}>"

    # --- where to begin ---

    @staticmethod
    def debian_slim(python_version: Optional[str] = None, force_build: bool = False) -> Image:
        """Debian with Python and without compilers, which ``apt_install("build-essential")`` adds. ``python_version``
        is "major.minor"; None is this process's own."""
        if python_version is not None and not isinstance(python_version, str):
            raise InvalidError(f'debian_slim takes a string such as "3.12", not {python_version!r}')
        return Image._make((recipe.debian_slim(python_version, force_build),))

    # --- Python packages ---

    def pip_install(
        self,
        *packages: Packages,
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
        """Install Python packages with pip. Their order does not matter. Flags go into ``extra_options``."""
        names = recipe.flatten("pip_install", packages)
        if not names:
            return self
        recipe.check_no_flags("pip_install", names)
        options = recipe.pip_options("pip", find_links, index_url, extra_index_url, pre, extra_options)
        return self._add(
            recipe.pip("pip_install", names, options, StepOptions.read("pip_install", force_build, env, secrets, gpu))
        )

    def uv_pip_install(
        self,
        *packages: Packages,
        requirements: Optional[Sequence[str]] = None,
        find_links: Optional[str] = None,
        index_url: Optional[str] = None,
        extra_index_url: Optional[str] = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        uv_version: Optional[str] = None,
        env: Env = None,
        secrets: Secrets = None,
        gpu: Gpu = None,
    ) -> Image:
        """Install Python packages with uv, and those that the files ``requirements`` list."""
        names = recipe.flatten("uv_pip_install", packages)
        recipe.check_no_flags("uv_pip_install", names)
        if isinstance(requirements, str) or not isinstance(requirements, (list, tuple, type(None))):
            raise InvalidError("uv_pip_install: requirements must be a list of paths")
        if not names and not requirements:
            return self
        options = recipe.pip_options("uv", find_links, index_url, extra_index_url, pre, extra_options)
        if uv_version is not None:
            options["uv_version"] = uv_version
        step = StepOptions.read("uv_pip_install", force_build, env, secrets, gpu)
        return self._add(recipe.pip("uv_pip_install", names, options, step, tuple(requirements or ())))

    def pip_install_from_requirements(
        self,
        requirements_txt: str,
        find_links: Optional[str] = None,
        *,
        index_url: Optional[str] = None,
        extra_index_url: Optional[str] = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Env = None,
        secrets: Secrets = None,
        gpu: Gpu = None,
    ) -> Image:
        """Install what a requirements file lists. The file is read when the image is resolved."""
        name = "pip_install_from_requirements"
        options = recipe.pip_options("pip", find_links, index_url, extra_index_url, pre, extra_options)
        step = StepOptions.read(name, force_build, env, secrets, gpu)
        return self._add(recipe.pip(name, [], options, step, (os.fspath(requirements_txt),)))

    # --- the system ---

    def apt_install(
        self,
        *packages: Packages,
        force_build: bool = False,
        env: Env = None,
        secrets: Secrets = None,
        gpu: Gpu = None,
    ) -> Image:
        """Install Debian packages. Their order does not matter."""
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
        """Run shell commands, one after the other, as one step."""
        lines = recipe.flatten("run_commands", commands)
        if volumes:
            raise unbuilt("run_commands(volumes=...)", "leave volumes out")
        if not lines:
            return self
        return self._add(recipe.run(lines, StepOptions.read("run_commands", force_build, env, secrets, gpu)))

    # --- settings ---

    def env(self, vars: Mapping[str, str]) -> Image:
        """Set environment variables, for later steps and in the container."""
        return self._add(recipe.env(vars))

    def workdir(self, path: Union[str, PurePosixPath]) -> Image:
        """Set the working directory of later steps and of the container."""
        return self._add(recipe.setting("workdir", [os.fspath(path)]))

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
        """Add one file. A ``remote_path`` with a slash at its end is a directory. ``copy=True`` makes it a layer."""
        target = recipe.absolute("add_local_file", remote_path)
        return self._add(recipe.local_file(os.path.abspath(local_path), target, copy))

    def add_local_dir(
        self,
        local_path: Union[str, Path],
        remote_path: Union[str, PurePosixPath],
        *,
        copy: bool = False,
        ignore: Ignore = [],  # noqa: B006  (never changed; part of the signature)
    ) -> Image:
        """Add the files of a directory, without those that ``ignore`` names. ``copy=True`` makes them a layer."""
        target = recipe.absolute("add_local_dir", remote_path)
        as_predicate(ignore)
        return self._add(recipe.local_dir(os.path.abspath(local_path), target, copy, ignore))

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore = NON_PYTHON_FILES) -> Image:
        """Add modules and packages that can be imported here, so that they can be imported there."""
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

    @_dual.method
    async def hydrate(self, client: Optional[Client] = None) -> Image:
        """Build it now if that was not done, so that it has an id."""
        if not self._hydrated:
            await self._find(client or await self._any_client())
        return self

    async def _any_client(self) -> Client:
        from cadenza.sdk.client import Client

        return await Client._environment()

    async def _find(self, client: Client) -> None:
        from cadenza.sdk.output import current
        from cadenza.sdk.publish import build_image

        await build_image(client, self, current())

    @_dual.method
    async def build(self, app: Optional[App] = None) -> Image:
        """Build it now, and show the build where output is enabled. ImageBuildError if a step fails."""
        client = app._client if app is not None else None
        await self._find(client or await self._any_client())
        return self


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
