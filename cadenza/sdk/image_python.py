"""Python packages in images: pip, uv, poetry, micromamba. Source: semantics.md section 13.3.

Files are read when the image is resolved: `cadenza.sdk.requirements` and the functions below.
"""

from __future__ import annotations

import os

from cadenza.base.errors import InvalidError
from cadenza.runner.context import current as container
from cadenza.sdk import recipe
from cadenza.sdk.recipe import Step, StepOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Sequence, Union

    from cadenza.sdk.image import Env, Image, Packages, Secrets
    from cadenza.sdk.recipe import Gpu, Made, Mount


class PythonPackages:
    """The methods of `Image` that install packages with Python's tools."""

    if TYPE_CHECKING:

        def _add(self, link: Union[Step, Mount]) -> Image: ...

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
            return self  # type: ignore[return-value]
        recipe.check_no_flags("pip_install", names)
        options = pip_options("pip", find_links, index_url, extra_index_url, pre, extra_options)
        return self._add(
            pip("pip_install", names, options, StepOptions.read("pip_install", force_build, env, secrets, gpu))
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
        """Install Python packages with uv, and those that the files ``requirements`` list. ``uv_version``: another uv
        than this machine's, which is fetched."""
        names = recipe.flatten("uv_pip_install", packages)
        recipe.check_no_flags("uv_pip_install", names)
        if isinstance(requirements, str) or not isinstance(requirements, (list, tuple, type(None))):
            raise InvalidError("uv_pip_install: requirements must be a list of paths")
        if not names and not requirements:
            return self  # type: ignore[return-value]
        options = pip_options("uv", find_links, index_url, extra_index_url, pre, extra_options)
        if uv_version is not None:
            options["uv_version"] = uv_version
        step = StepOptions.read("uv_pip_install", force_build, env, secrets, gpu)
        return self._add(pip("uv_pip_install", names, options, step, tuple(requirements or ())))

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
        options = pip_options("pip", find_links, index_url, extra_index_url, pre, extra_options)
        step = StepOptions.read(name, force_build, env, secrets, gpu)
        return self._add(pip(name, [], options, step, (os.fspath(requirements_txt),)))

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
        """Install the dependencies that a ``pyproject.toml`` lists, and those of its groups ``optional_dependencies``,
        but not the project itself. The file is read when the image is resolved; InvalidError when it lists none."""
        name = "pip_install_from_pyproject"
        groups = recipe.flatten(f"{name}: optional_dependencies", [optional_dependencies])
        options = pip_options("pip", find_links, index_url, extra_index_url, pre, extra_options)
        step = StepOptions.read(name, force_build, env, secrets, gpu)
        path = os.path.abspath(os.path.expanduser(pyproject_toml))

        def make() -> Made:
            from cadenza.sdk import requirements

            names = requirements.of_pyproject(path, groups)
            return ([step.step("pip", sorted(set(names)), options)] if names else []), []

        return self._add(Step(name, make))

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
        """Install packages from private repositories, as ``github.com/owner/name@version``. ``secrets`` hold
        GITHUB_TOKEN, or GITLAB_TOKEN for gitlab.com, which with ``git_user`` opens them. The token is neither in the
        image nor in logs. InvalidError without secrets, and for other hosts."""
        name = "pip_install_private_repos"
        if not secrets:
            raise InvalidError(
                f"{name} needs secrets=[...] with the token that opens the repositories: GITHUB_TOKEN or GITLAB_TOKEN"
            )
        if not isinstance(git_user, str) or not git_user:
            raise InvalidError(f"{name}: git_user is the name of the token's user, a string")
        bad = [one for one in repositories if not isinstance(one, str) or one.partition("/")[0] not in TOKENS]
        if bad:
            raise InvalidError(
                f"{name}: {len(bad)} of {len(repositories)} repositories are not of the form github.com/owner/name or "
                f"gitlab.com/owner/name: {', '.join(map(repr, bad))}"
            )
        if not repositories:
            return self  # type: ignore[return-value]
        options = pip_options("pip", find_links, index_url, extra_index_url, pre, extra_options)
        step = StepOptions.read(name, force_build, env, secrets, gpu)
        known = {key for one in step.secrets if not one._is_stored for key in one._variables()}
        tokens = {TOKENS[one.partition("/")[0]] for one in repositories}
        if container() is None and not any(one._is_stored for one in step.secrets) and tokens - known:
            raise InvalidError(f"{name}: the secrets have no {min(tokens - known)}")

        def make() -> Made:
            from cadenza.sdk import requirements

            lines = requirements.private_commands(repositories, git_user, options)
            git = StepOptions(step.force, {}, ()).step("apt", ("git",))
            return [git, step.step("run", lines)], []

        return self._add(Step(name, make))

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
        """Install what poetry's ``pyproject.toml`` and its lock file name, without the project itself. The lock file
        is ``poetry.lock`` beside it; ``ignore_lockfile=True`` does without. ``poetry_version=None`` uses the poetry
        that the image has."""
        name = "poetry_install_from_file"
        groups = {
            word: ",".join(recipe.flatten(f"{name}: {word}", [given]))
            for word, given in (("with", with_), ("without", without), ("only", only))
        }
        if poetry_version is not None and (not isinstance(poetry_version, str) or not poetry_version):
            raise InvalidError(f'{name}: poetry_version is a string such as "2.1.3", "latest", or None')
        step = StepOptions.read(name, force_build, env, secrets, gpu)
        project = os.path.abspath(os.path.expanduser(poetry_pyproject_toml))
        lock = os.path.abspath(os.path.expanduser(poetry_lockfile)) if poetry_lockfile is not None else None

        def make() -> Made:
            from cadenza.sdk import requirements

            files = requirements.poetry_files(project, lock, ignore_lockfile)
            entries = [one.entry for one in files]
            options = {word: text for word, text in groups.items() if text}
            if old_installer:
                options["old_installer"] = "1"
            if poetry_version is None:
                line = requirements.poetry_command(options)
                return [step.step("copy", files=entries), step.step("run", [line])], [*files]
            options["poetry_version"] = poetry_version
            return [step.step("poetry", options=options, files=entries)], [*files]

        return self._add(Step(name, make))

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
        """Install what the ``uv.lock`` of a project's directory names into an environment at /.uv/.venv, which comes
        first in PATH. Of the project only ``pyproject.toml`` and ``uv.lock`` are used, and it is not installed itself;
        workspaces are an InvalidError. ``frozen``: the lock file, where there is one, is taken as it is."""
        name = "uv_sync"
        options = {
            word: ",".join(recipe.flatten(f"{name}: {word}", [list(given or ())]))
            for word, given in (
                ("groups", _listed(name, "groups", groups)),
                ("extras", _listed(name, "extras", extras)),
            )
        }
        if not isinstance(extra_options, str):
            raise InvalidError(f"{name}: extra_options must be a string, not {type(extra_options).__name__}")
        options.update({"extra_options": extra_options, "uv_version": uv_version or ""})
        step = StepOptions.read(name, force_build, env, secrets, gpu)
        directory = os.path.abspath(os.path.expanduser(uv_project_dir))

        def make() -> Made:
            from cadenza.sdk import requirements

            files = requirements.uv_files(directory)
            found = {word: text for word, text in options.items() if text}
            if frozen and len(files) > 1:
                found["frozen"] = "1"
            return [step.step("uv_sync", options=found, files=[one.entry for one in files])], [*files]

        return self._add(Step(name, make))

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
        """Install packages with micromamba, by name and from a file that lists them, from these channels."""
        name = "micromamba_install"
        names = recipe.flatten(name, packages)
        recipe.check_no_flags(name, names)
        from_channels = recipe.flatten(f"{name}: channels", [channels])
        if not names and spec_file is None:
            return self  # type: ignore[return-value]
        step = StepOptions.read(name, force_build, env, secrets, gpu)
        path = None if spec_file is None else os.path.abspath(os.path.expanduser(spec_file))

        def make() -> Made:
            from cadenza.sdk.source import HashedFile, LocalFile, hash_files

            options = {"channels": ",".join(from_channels)} if from_channels else {}
            files: list[HashedFile] = []
            if path is not None:
                options["spec_file"] = f"/.micromamba/{os.path.basename(path)}"
                files = hash_files([LocalFile(path, options["spec_file"])])
            entries = [one.entry for one in files]
            return [step.step("micromamba", sorted(set(names)), options, entries)], [*files]

        return self._add(Step(name, make))


TOKENS = {"github.com": "GITHUB_TOKEN", "gitlab.com": "GITLAB_TOKEN"}
"""Where private repositories may be, and the variable that opens them."""


def _listed(where: str, name: str, value: object) -> Sequence[str]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise InvalidError(f"{where}: {name} must be a list of names, not {type(value).__name__}")
    return value


def pip_options(
    tool: str,
    find_links: Optional[str],
    index_url: Optional[str],
    extra_index_url: Optional[str],
    pre: bool,
    extra_options: str,
) -> dict[str, str]:
    """The options of a ``pip`` step. InvalidError for what is not text."""
    given = {
        "find_links": find_links,
        "index_url": index_url,
        "extra_index_url": extra_index_url,
        "extra_options": extra_options,
    }
    for name, value in given.items():
        if value is not None and not isinstance(value, str):
            raise InvalidError(f"{name} must be a string, not {type(value).__name__}")
    found = {name: value for name, value in given.items() if value}
    if pre:
        found["pre"] = "1"
    return {"tool": tool, **found}


def pip(
    name: str, packages: Sequence[str], options: dict[str, str], step: StepOptions, files: Sequence[str] = ()
) -> Step:
    """Python packages, by name and from requirements files."""
    paths = [os.path.abspath(os.path.expanduser(one)) for one in files]

    def make() -> Made:
        names = set(packages)
        if not paths:
            return [step.step("pip", sorted(names), options)], []
        from cadenza.sdk import requirements

        return requirements.pip(sorted(names), paths, options, step)

    return Step(name, make)
