"""One instruction of a Dockerfile becomes a layer and settings. Pure; stages and FROM are the client's business.

Source: the Dockerfile reference; semantics.md section 13.2 for what is left out of it.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from dataclasses import dataclass, replace
from typing import Callable, Mapping, Optional

from cadenza.base.errors import InvalidError
from cadenza.fs.recipe import Copy, Layer, Settings, command_env, layer_of
from cadenza.protocol.objects import ImageStep

IGNORED = ("EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "STOPSIGNAL", "VOLUME")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|\Z)")
_DOCUMENT = re.compile(r"<<(-?)(?:\"([^\"\s]+)\"|'([^'\s]+)'|([A-Za-z_][\w.-]*))")
_URL = re.compile(r"https?://", re.IGNORECASE)
_REPOSITORY = re.compile(r"git@|git://|ssh://|https?://\S+\.git(#|\Z)", re.IGNORECASE)


@dataclass(frozen=True)
class _Line:
    """An instruction with what it is read by."""

    keyword: str
    rest: str
    documents: tuple[str, ...]
    escape: str
    arguments: Mapping[str, str]
    """Build arguments in force."""
    env: Mapping[str, str]

    def value(self, name: str) -> str:
        """A variable's: ENV wins over ARG; one that is not set is empty."""
        return self.env[name] if name in self.env else self.arguments.get(name, "")

    def fault(self, text: str) -> InvalidError:
        return InvalidError(f"{self.keyword} {_short(self.rest)}: {text}")


def evaluate(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    """What an `ImageStep` of the kind ``docker`` does, and the settings after it. InvalidError for what cannot be.

    ``options``: ``args``, build arguments in force as a JSON object; ``escape``, the escape character, unless it is the
    backslash.
    """
    if not step.args or not step.args[0]:
        raise InvalidError("a step of a Dockerfile needs an instruction")
    keyword = step.args[0].upper()
    make = _MAKERS.get(keyword)
    if make is None and keyword not in IGNORED:
        raise InvalidError(f"{keyword} is no instruction that can be built here")
    rest = step.args[1].strip() if len(step.args) > 1 else ""
    line = _Line(keyword, rest, step.args[2:], step.options.get("escape", "\\"), _arguments(step), settings.env)
    if make is None:
        return settings, layer_of(_text(line), changes=False, notes=(f"{keyword} says nothing here: passed over",))
    return make(line, step, settings)


def _arguments(step: ImageStep) -> dict[str, str]:
    try:
        found = json.loads(step.options.get("args") or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise InvalidError("the build arguments of a Dockerfile's step are no JSON object of texts")
    return found


def _folders(step: ImageStep) -> tuple[str, ...]:
    try:
        found = json.loads(step.options.get("directories") or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) and one.startswith("/") for one in found):
        raise InvalidError("the directories of a Dockerfile's step are no JSON list of absolute paths")
    return tuple(found)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:79] + "\u2026"


def _text(line: _Line) -> str:
    shown = [line.rest, *(one.strip().split("\n")[0] for one in line.documents)]
    return f"{line.keyword} " + " ".join(one for one in shown if one)


# --- words, quotes, variables ---


def _words(line: _Line, text: str, blanks: bool = False) -> list[str]:
    """The words of a text, quotes removed and variables expanded; ``blanks``: all of it as one word."""
    found: list[str] = []
    current: Optional[str] = None
    at = 0
    while at < len(text):
        if text[at].isspace() and not blanks:
            if current is not None:
                found.append(current)
            current = None
            at += 1
            continue
        piece, at = _piece(line, text, at)
        current = (current or "") + piece
    return found if current is None else [*found, current]


def _piece(line: _Line, text: str, at: int) -> tuple[str, int]:
    """What one character, escape, quoted part or variable stands for, and where it ends."""
    char = text[at]
    if char == "'":
        end = text.find("'", at + 1)
        if end < 0:
            raise line.fault("a single quote does not end")
        return text[at + 1 : end], end + 1
    if char == '"':
        return _quoted(line, text, at + 1)
    if char == line.escape:
        return (text[at + 1], at + 2) if at + 1 < len(text) else (char, at + 1)
    if char == "$":
        return _variable(line, text, at)
    return char, at + 1


def _quoted(line: _Line, text: str, at: int) -> tuple[str, int]:
    found = ""
    while at < len(text):
        char = text[at]
        if char == '"':
            return found, at + 1
        if char == "$":
            piece, at = _variable(line, text, at)
            found += piece
        elif char == line.escape and text[at + 1 : at + 2] in ('"', "$", line.escape):
            found += text[at + 1]
            at += 2
        else:
            found += char
            at += 1
    raise line.fault("a double quote does not end")


def _variable(line: _Line, text: str, at: int) -> tuple[str, int]:
    braced = text.startswith("{", at + 1)
    match = _NAME.match(text, at + 1 + braced)
    if match is None:
        if braced:
            raise line.fault(f"{text[at : at + 12]!r} names no variable")
        return "$", at + 1
    if not braced:
        return line.value(match[0]), match.end()
    if not text.startswith("}", match.end()):
        raise line.fault(
            f"${{{match[0]}{text[match.end() : match.end() + 2]}...}} cannot be used, only $NAME and ${{NAME}}; "
            "give ARG a default"
        )
    return line.value(match[0]), match.end() + 1


def _expanded(line: _Line, text: str) -> str:
    """A here-document: variables are expanded, quotes stay."""
    found = []
    at = 0
    while at < len(text):
        if text[at] == line.escape and text[at + 1 : at + 2] in ("$", line.escape):
            found.append(text[at + 1])
            at += 2
        elif text[at] == "$":
            piece, at = _variable(line, text, at)
            found.append(piece)
        else:
            found.append(text[at])
            at += 1
    return "".join(found)


def _list(line: _Line, text: str) -> Optional[tuple[str, ...]]:
    """The exec form: a JSON list of texts; None: the text is none. InvalidError for a list of something else."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise line.fault("the list may hold texts alone")
    return tuple(found)


def _flags(line: _Line, known: tuple[str, ...]) -> tuple[list[tuple[str, str]], str]:
    """The ``--name=value`` at the front, as written, and the rest."""
    found: list[tuple[str, str]] = []
    rest = line.rest
    while True:
        match = _FLAG.match(rest)
        if match is None:
            return found, rest
        if match[1] not in known:
            raise line.fault(f"--{match[1]} cannot be used here")
        found.append((match[1], match[2] or ""))
        rest = rest[match.end() :]


# --- instructions ---


def _run(line: _Line, step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    flags, rest = _flags(line, ("mount", "network", "security"))
    notes = []
    for name, value in flags:
        if name == "mount":
            kind = dict(one.partition("=")[::2] for one in value.split(",")).get("type", "bind")
            if kind != "cache":
                hint = ": give secrets=... to the step, they are variables" if kind == "secret" else ": COPY the files"
                raise line.fault(f"--mount=type={kind} cannot be used here" + hint)
            notes.append(f"--mount={value} is passed over: the caches of apt, pip and uv are shared anyway")
        elif value != {"network": "default", "security": "sandbox"}[name]:
            raise line.fault(f"--{name}={value} cannot be used here: leave it out")
    if not rest or "\0" in rest:
        raise line.fault("it needs a command")
    command = _list(line, rest)
    if command is None:
        command = _script(line, rest, settings)
    elif not command:
        raise line.fault("it needs a command")
    # Commands see build arguments too; ENV wins over ARG.
    arguments = {name: value for name, value in line.arguments.items() if name not in settings.env}
    return settings, layer_of(
        _text(replace(line, rest=rest)),
        commands=(command,), env=command_env(step, settings, **arguments), cwd=settings.workdir or "/",
        user=settings.user, notes=tuple(notes),
    )  # fmt: skip


def _script(line: _Line, rest: str, settings: Settings) -> tuple[str, ...]:
    """The shell form, with its here-documents."""
    if not line.documents:
        return (*settings.shell, rest)
    names = _document_names(line, rest)
    if not _DOCUMENT.fullmatch(rest):
        parts = [rest]
        for (name, _), text in zip(names, line.documents):
            parts.append(f"{text}{name}")
        return (*settings.shell, "\n".join(parts) + "\n")
    text = line.documents[0]
    if not text.startswith("#!"):
        return (*settings.shell, text)
    # A script with an interpreter of its own must be a file; it is gone when it has run.
    end = "CADENZA_END_OF_SCRIPT"
    while f"\n{end}\n" in text:
        end += "_"
    script = (
        f"file=$(mktemp) || exit 1\ncat >\"$file\" <<'{end}' || exit 1\n{text}{end}\n"
        'chmod 700 "$file" && "$file"\nstatus=$?\nrm -f "$file"\nexit $status\n'
    )
    return ("/bin/sh", "-c", script)


def _document_names(line: _Line, rest: str) -> list[tuple[str, bool]]:
    """The here-documents that a line announces: the delimiter, and whether it is quoted."""
    found = [(one[2] or one[3] or one[4], one[4] is None) for one in _DOCUMENT.finditer(rest)]
    if len(found) != len(line.documents):
        raise line.fault(f"it announces {len(found)} here-documents and has {len(line.documents)}")
    return found


def _env(line: _Line, step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    first = line.rest.split(None, 1)
    if first and "=" not in first[0]:
        if len(first) < 2:
            raise line.fault("it needs a value, as in ENV NAME=value")
        pairs = {first[0]: "".join(_words(line, first[1], blanks=True))}
    else:
        pairs = {}
        for one in _words(line, line.rest):
            name, equals, value = one.partition("=")
            if not equals:
                raise line.fault(f"{one!r} is no NAME=value")
            pairs[name] = value
    for name, value in pairs.items():
        if not name or "\0" in name + value:
            raise line.fault(f"{name!r} cannot be a variable")
    if not pairs:
        raise line.fault("it needs NAME=value")
    return replace(settings, env={**settings.env, **pairs}), layer_of(_text(line), changes=False)


def _argument(line: _Line, step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    return settings, layer_of(_text(line), changes=False)


def _one(line: _Line) -> str:
    found = "".join(_words(line, line.rest, blanks=True))
    if not found or "\0" in found:
        raise line.fault("it needs a value, and this is empty")
    return found


def _absolute(settings: Settings, path: str) -> str:
    """A path as a container sees it, without a slash at its end."""
    return "/" + posixpath.normpath(posixpath.join(settings.workdir or "/", path)).lstrip("/")


def _workdir(line: _Line, step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    path = _absolute(settings, _one(line))
    return replace(settings, workdir=path), layer_of("WORKDIR " + path, directory=path)


def _user(line: _Line, step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    user = _one(line)
    if len(user.split()) != 1 or user.startswith(":") or user.count(":") > 1:
        raise line.fault("it takes user[:group], names or numbers")
    return replace(settings, user=user), layer_of("USER " + user, changes=False)


def _program(line: _Line, settings: Settings) -> tuple[str, ...]:
    found = _list(line, line.rest)
    if found is not None:
        return found
    return (*settings.shell, line.rest) if line.rest else ()


def _cmd(line: _Line, step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    return replace(settings, cmd=_program(line, settings), own_cmd=True), layer_of(_text(line), changes=False)


def _entrypoint(line: _Line, step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    # The base's CMD was for the base's ENTRYPOINT.
    cmd = settings.cmd if settings.own_cmd else ()
    return replace(settings, entrypoint=_program(line, settings), cmd=cmd), layer_of(_text(line), changes=False)


def _shell(line: _Line, step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    found = _list(line, line.rest)
    if not found:
        raise line.fault('it takes a JSON list, as in SHELL ["/bin/bash", "-c"]')
    return replace(settings, shell=found), layer_of("SHELL " + shlex.join(found), changes=False)


# --- COPY and ADD ---


def _copy(line: _Line, step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    adds = line.keyword == "ADD"
    flags, rest = _flags(line, ("chown", "chmod", "link") if adds else ("from", "chown", "chmod", "link"))
    given = {name: "".join(_words(line, value)) for name, value in flags}
    if given.get("link", "") not in ("", "true", "false"):
        raise line.fault("--link is true or false")
    names = _document_names(line, rest) if line.documents else []
    listed = _list(line, rest)
    # In the exec form blanks are part of a word, and variables are expanded all the same.
    words = _words(line, rest) if listed is None else ["".join(_words(line, one, blanks=True)) for one in listed]
    if len(words) < 2 or not all(words):
        raise line.fault("it needs one source or more, and where they go")
    *sources, target = words
    target = _target(line, settings, target, len(sources))
    # A quoted delimiter has lost its quotes by now.
    delimiters = {f"<<{dash}{name}" for name, _ in names for dash in ("", "-")}
    local = tuple(one for one in sources if not (names and one in delimiters) and not _is_url(adds, one))
    plain = Copy((), target, owner=given.get("chown", ""), mode=_mode(line, given.get("chmod", "")))
    copies = []
    if local:
        image = None
        if given.get("from"):
            if len(step.images) != 1:
                raise line.fault(f"what --from={given['from']} names did not come with it")
            image = step.images[0]
        taken = tuple(_source(line, one) for one in local)
        copies.append(replace(plain, sources=taken, image=image, unpack=adds))
    for one in sources:
        if _is_url(adds, one):
            if len(sources) > 1:
                raise line.fault("a URL must be the only source")
            if _REPOSITORY.match(one):
                raise line.fault("repositories cannot be added: RUN git clone")
            copies.append(replace(plain, url=one))
    if names:
        texts = tuple(
            (name, text if literal else _expanded(line, text))
            for (name, literal), text in zip(names, line.documents, strict=True)
        )
        copies.append(replace(plain, texts=texts))
    return settings, layer_of(_text(line), files=step.files, copies=tuple(copies), folders=_folders(step))


def _is_url(adds: bool, source: str) -> bool:
    return adds and bool(_URL.match(source) or _REPOSITORY.match(source))


def _target(line: _Line, settings: Settings, target: str, sources: int) -> str:
    """Absolute; a slash at its end says that it is a directory."""
    folder = target.endswith("/") or posixpath.basename(target) in (".", "..")
    if sources > 1 and not folder:
        raise line.fault(f"with several sources the target is a directory: write {target}/")
    path = _absolute(settings, target)
    return path + "/" if folder and path != "/" else path


def _source(line: _Line, source: str) -> str:
    """A path from the root of the context, or of the stage that it is taken from."""
    path = posixpath.normpath(source.lstrip("/") or ".")
    if path == ".." or path.startswith("../"):
        raise line.fault(f"{source} is outside of the context")
    return "/" if path == "." else "/" + path


def _mode(line: _Line, text: str) -> int:
    if not text:
        return -1
    if not re.fullmatch(r"[0-7]{3,5}", text) or int(text, 8) > 0o7777:
        raise line.fault(f"--chmod takes an octal number, as in 755, not {text}")
    return int(text, 8)


_Maker = Callable[[_Line, ImageStep, Settings], tuple[Settings, Layer]]
_MAKERS: dict[str, _Maker] = {
    "ADD": _copy, "ARG": _argument, "CMD": _cmd, "COPY": _copy, "ENTRYPOINT": _entrypoint, "ENV": _env, "RUN": _run,
    "SHELL": _shell, "USER": _user, "WORKDIR": _workdir,
}  # fmt: skip
