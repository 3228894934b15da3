"""Dockerfiles as recipes: stages, their variables, and the steps for what they say. Source: semantics.md 13.2.

What an instruction does is decided by the server, which knows the base image. Here is decided what must be known
before: which stages are needed, what they begin with, and which files of the context COPY and ADD name.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Mapping, Optional, Sequence, Union

from cadenza.base.errors import InvalidError
from cadenza.protocol.objects import ImageSpec, ImageStep
from cadenza.sdk import dockerfile
from cadenza.sdk.build_context import Context
from cadenza.sdk.dockerfile import UNKNOWN, Instruction, Lookup
from cadenza.sdk.recipe import StepOptions, plain
from cadenza.sdk.source import HashedFile, LocalFile, hash_files

if TYPE_CHECKING:
    from cadenza.sdk.patterns import Ignore
    from cadenza.sdk.recipe import Made
    from cadenza.sdk.secret import Secret
    from cadenza.sdk.source import Upload

PLATFORM = {
    "TARGETPLATFORM": "linux/amd64", "TARGETOS": "linux", "TARGETARCH": "amd64", "TARGETVARIANT": "",
    "BUILDPLATFORM": "linux/amd64", "BUILDOS": "linux", "BUILDARCH": "amd64", "BUILDVARIANT": "",
}  # fmt: skip
"""Arguments that are there without being given."""
_COPY_FLAGS = {"COPY": ("from", "chown", "chmod", "link"), "ADD": ("chown", "chmod", "link")}
_EXPANDED = ("ENV", "COPY", "ADD", "WORKDIR", "USER")
"""Where the server expands variables: it knows ``$NAME`` and ``${NAME}``."""
_FORM = re.compile(r"(?<!\\)\$\{[A-Za-z_][A-Za-z0-9_]*[^A-Za-z0-9_}]")
_URL = re.compile(r"https?://", re.IGNORECASE)
_GIT = re.compile(r"git@|git://|ssh://|https?://\S+\.git(#|\Z)", re.IGNORECASE)


class Stage:
    """One stage: its recipe so far, and the variables that are known of it."""

    def __init__(
        self, steps: Sequence[ImageStep], env: Mapping[str, str], args: Mapping[str, str], empty: bool
    ) -> None:
        self.steps = list(steps)
        self.env = dict(env)
        self.args = dict(args)
        self.empty = empty
        """It begins with nothing, so that all its variables are known."""

    def lookup(self, name: str) -> Optional[str]:
        """A variable's value as far as it is known before the build."""
        if name in self.env:
            return self.env[name]
        if name in self.args:
            return self.args[name]
        return None if self.empty else UNKNOWN


class Build:
    """One Dockerfile's way into a recipe. ``options``: of its RUN steps; ``credentials``: of the registries."""

    def __init__(
        self,
        context: str,
        ignore: Ignore,
        arguments: Mapping[str, str],
        options: StepOptions,
        credentials: tuple[Secret, ...],
    ) -> None:
        self._directory, self._ignore = context, ignore
        self._arguments = dict(arguments)
        self._options = options
        self._credentials = credentials
        self._context = Context(context, ignore)
        self._files: list[Union[HashedFile, Upload]] = []
        self._global: dict[str, str] = {}
        self._sections: list[tuple[Instruction, str, list[Instruction]]] = []
        """For each stage its FROM, its name, and what follows."""
        self._done: dict[int, Stage] = {}

    def dockerfile(self, path: str) -> Made:
        """The steps of a Dockerfile's last stage, and the files that they need. InvalidError names file and line."""
        try:
            with open(path, encoding="utf-8-sig") as stream:
                text = stream.read()
        except FileNotFoundError:
            raise FileNotFoundError(f"from_dockerfile: no file {path}") from None
        except (IsADirectoryError, UnicodeDecodeError) as error:
            raise InvalidError(f"from_dockerfile: {path} is no Dockerfile: {error}") from None
        self._context = Context(self._directory, self._ignore, path)
        self._split(dockerfile.parse(text, path), path)
        return self._stage(len(self._sections) - 1).steps, self._files

    def commands(self, lines: Sequence[str], where: str, files: Mapping[str, str]) -> Made:
        """The steps of instructions that continue an image. ``files``: paths in the context to local files."""
        self._context = Context(self._directory, self._ignore, files=files)
        stage = Stage((), {}, {}, False)
        for one in dockerfile.parse("\n".join(lines), where):
            if one.keyword == "FROM":
                raise one.place.fault("FROM has no place here: the image so far is what these commands continue")
            self._add(stage, one, 0)
        return stage.steps, self._files

    # --- stages ---

    def _split(self, instructions: Sequence[Instruction], path: str) -> None:
        for one in instructions:
            if one.keyword == "FROM":
                self._sections.append((one, self._stage_name(one), []))
            elif self._sections:
                self._sections[-1][2].append(one)
            elif one.keyword == "ARG":
                self._global.update(self._declared(one, self._from_globals))
            else:
                raise one.place.fault(f"{one.keyword} comes before the first FROM: only ARG may")
        if not self._sections:
            raise InvalidError(f"{path}: a Dockerfile needs a FROM")

    def _from_globals(self, name: str) -> Optional[str]:
        return self._global.get(name, PLATFORM.get(name))

    def _stage_name(self, one: Instruction) -> str:
        _, words = self._from_words(one)
        if len(words) == 1:
            return ""
        if len(words) != 3 or words[1].upper() != "AS":
            raise one.place.fault("FROM takes an image, and AS with a name: FROM image AS name")
        name = words[2].lower()
        if any(name == other for _, other, _ in self._sections):
            raise one.place.fault(f"there are two stages {words[2]!r}")
        return name

    def _from_words(self, one: Instruction) -> tuple[dict[str, str], list[str]]:
        flags, rest = _flags(one, ("platform",))
        words = dockerfile.words(rest, self._from_globals, one.escape, one.place)
        if not words or not words[0]:
            raise one.place.fault(f"FROM needs an image, and {rest!r} names none")
        return flags, words

    def _stage(self, index: int) -> Stage:
        """A stage with all its steps."""
        if index not in self._done:
            begin, _, instructions = self._sections[index]
            stage = self._begin(begin, index)
            for one in instructions:
                self._add(stage, one, index)
            self._done[index] = stage
        return self._done[index]

    def _begin(self, one: Instruction, index: int) -> Stage:
        flags, words = self._from_words(one)
        platform = flags.get("platform", "")
        wanted = "".join(dockerfile.words(platform, self._from_globals, one.escape, one.place))
        if platform and wanted not in ("linux/amd64", "linux/x86_64"):
            raise one.place.fault(f"images are built for linux/amd64, not for {wanted or platform!r}")
        before = self._stage_index(words[0], index, numbers=False)
        if before is not None:
            parent = self._stage(before)
            return Stage(parent.steps, parent.env, parent.args, parent.empty)
        if words[0] == "scratch":
            empty = plain(self._options.force).step("base", options={"distribution": "scratch"})
            return Stage((empty,), {}, {}, True)
        return Stage((self._registry(words[0]),), {}, {}, False)

    def _registry(self, tag: str) -> ImageStep:
        options = StepOptions(self._options.force, {}, self._credentials)
        return options.step("base", options={"distribution": "registry", "tag": tag})

    def _stage_index(self, name: str, before: int, numbers: bool = True) -> Optional[int]:
        """The number of an earlier stage, by its name or number; None for what is no stage."""
        if numbers and name.isdigit():
            return int(name)
        for index, (_, own, _) in enumerate(self._sections[:before]):
            if own and own == name.lower():
                return index
        return None

    # --- instructions ---

    def _add(self, stage: Stage, one: Instruction, index: int) -> None:
        if one.keyword == "ARG":
            stage.args.update(self._declared(one, stage.lookup, in_stage=True))
            return
        if one.keyword in _EXPANDED and _FORM.search(re.sub("'[^']*'", "", one.rest)):
            raise one.place.fault(
                f"{one.keyword} {one.rest}: only $NAME and ${{NAME}} are expanded here: give ARG a default instead"
            )
        files: list[HashedFile] = []
        images: tuple[ImageSpec, ...] = ()
        options = {}
        if one.keyword in _COPY_FLAGS:
            files, images, empty = self._sources(stage, one, index)
            self._files.extend(files)
            if empty:
                options["directories"] = json.dumps(empty)
        elif one.keyword == "RUN":
            self._check_run(one)
        if stage.args:
            options["args"] = json.dumps(stage.args, sort_keys=True)
        if one.escape != "\\":
            options["escape"] = one.escape
        by = self._options if one.keyword == "RUN" else plain(self._options.force)
        args = (one.keyword, one.rest, *(each.text for each in one.documents))
        stage.steps.append(by.step("docker", args, options, [each.entry for each in files], images))
        if one.keyword == "ENV":
            stage.env.update(
                (name, UNKNOWN if UNKNOWN in value else value)
                for name, value in dockerfile.pairs(one.rest, stage.lookup, one.escape, one.place).items()
            )

    def _declared(self, one: Instruction, lookup: Lookup, in_stage: bool = False) -> dict[str, str]:
        """The arguments that an ARG declares and that have a value."""
        found: dict[str, str] = {}

        def known(name: str) -> Optional[str]:
            return found[name] if name in found else lookup(name)

        for word in dockerfile.words(one.rest, known, one.escape, one.place):
            name, equals, value = word.partition("=")
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                raise one.place.fault(f"ARG needs a name, or NAME=value, and {word!r} is neither")
            if name in self._arguments:
                found[name] = self._arguments[name]
            elif equals:
                if UNKNOWN in value:
                    raise one.place.fault(
                        f"the value of ARG {name} depends on a variable of the base image, which is not known before "
                        "the build: write the value"
                    )
                found[name] = value
            elif in_stage:
                inherited = self._from_globals(name)
                if inherited is not None:
                    found[name] = inherited
        return found

    def _check_run(self, one: Instruction) -> None:
        for word in one.rest.split():
            if not word.startswith("--"):
                return
            name, _, value = word[2:].partition("=")
            kinds = [part[len("type=") :] for part in value.split(",") if part.startswith("type=")]
            kind = kinds[-1] if kinds else "bind"
            if name == "mount" and kind != "cache":
                hint = (
                    "COPY the files"
                    if kind not in ("secret", "ssh")
                    else "pass secrets=[...], which commands see as variables"
                )
                raise one.place.fault(f"RUN --mount=type={kind} is not supported: {hint}")

    def _sources(
        self, stage: Stage, one: Instruction, index: int
    ) -> tuple[list[HashedFile], tuple[ImageSpec, ...], list[str]]:
        """What COPY or ADD takes: files of the context, or another image, and empty directories of the context."""
        flags, rest = _flags(one, _COPY_FLAGS[one.keyword])
        words = _paths(rest, stage, one)
        documents = {f"<<{each.name}" for each in one.documents} | {f"<<-{each.name}" for each in one.documents}
        sources = [word for word in words[:-1] if word not in documents]
        if len(words) < 2:
            raise one.place.fault(f"{one.keyword} needs a source and a destination")
        if "from" in flags:
            return [], (self._other(one, flags["from"], index),), []
        if any(UNKNOWN in word for word in sources):
            raise one.place.fault(
                f"{one.keyword} {rest}: a variable in a source comes from the base image and is not known before the "
                "build: set it by ARG or ENV, or write its value"
            )
        urls = [word for word in sources if _URL.match(word) or _GIT.match(word)]
        if one.keyword == "ADD" and urls:
            if any(_GIT.match(word) for word in urls):
                raise one.place.fault(f"ADD of a git repository ({urls[0]}) is not supported: use RUN git clone")
            if len(words) > 2:
                raise one.place.fault("ADD takes one address, and nothing beside it: write an ADD for each")
            return [], (), []
        files: list[LocalFile] = []
        empty: set[str] = set()
        for word in sources:
            here = self._context.find(word, one.place)
            files += here
            empty.update(self._context.empty(word, here))
        return hash_files(files), (), sorted(empty)

    def _other(self, one: Instruction, name: str, index: int) -> ImageSpec:
        """The image that ``--from`` names."""
        name = "".join(dockerfile.words(name, self._from_globals, one.escape, one.place))
        number = self._stage_index(name, index)
        if number is None and any(own == name.lower() for _, own, _ in self._sections[index:] if own):
            raise one.place.fault(f"--from={name}: that stage does not come before this one")
        if number is not None:
            if number >= index:
                raise one.place.fault(f"--from={name}: there is no stage {name} before this one")
            return ImageSpec(tuple(self._stage(number).steps))
        if not name:
            raise one.place.fault("--from needs a stage or an image")
        return ImageSpec((self._registry(name),))


def _flags(one: Instruction, known: Sequence[str]) -> tuple[dict[str, str], str]:
    """The flags in front of what an instruction says, and the rest. InvalidError for one that is not ``known``."""
    found: dict[str, str] = {}
    rest = one.rest
    while rest.startswith("--"):
        flag, rest = (*rest.split(None, 1), "")[:2]
        name, _, value = flag[2:].partition("=")
        if name not in known:
            raise one.place.fault(f"{one.keyword} --{name} is not supported")
        found[name] = value
    return found, rest


def _paths(rest: str, stage: Stage, one: Instruction) -> list[str]:
    """The sources and the destination of COPY or ADD: words, or a JSON list of them."""
    if rest.startswith("["):
        try:
            listed = json.loads(rest)
        except ValueError:
            listed = None
        if isinstance(listed, list) and all(isinstance(word, str) for word in listed):
            return ["".join(dockerfile.spaced(word, stage.lookup, one.escape, one.place)) for word in listed]
    return dockerfile.words(rest, stage.lookup, one.escape, one.place)
