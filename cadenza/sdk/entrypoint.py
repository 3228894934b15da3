"""What ``cadenza run file.py::name --x 3`` means: find the app and what to run in it, and type its arguments.

`resolve` imports the program; `describe` reads a signature and is pure: the command line is made of what it returns.
Source: semantics.md section 23.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import typing
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence, Union

from cadenza.base.errors import InvalidError
from cadenza.runner import instances
from cadenza.sdk import shape
from cadenza.sdk.app import App
from cadenza.sdk.function import Function
from cadenza.sdk.local_entrypoint import LocalEntrypoint

if TYPE_CHECKING:
    from cadenza.sdk.declaration import Declaration

Runnable = Union["LocalEntrypoint[Any, Any]", "Function[Any, Any, Any]"]

STR, INT, FLOAT, BOOL, DATETIME, CHOICE = "str", "int", "float", "bool", "datetime", "choice"
_KINDS: dict[Any, str] = {str: STR, int: INT, float: FLOAT, bool: BOOL, datetime: DATETIME}
_ACCEPTED = "str, int, float, bool, datetime, Literal and Optional of these"


@dataclass(frozen=True)
class Argument:
    """One option of the command line. ``kind`` is one of the words above; ``choices`` are for ``choice``."""

    name: str
    """The parameter's name."""
    option: str
    """As it is typed: ``--learning-rate``; a bool also has ``--no-learning-rate``."""
    kind: str
    required: bool
    default: Any = None
    choices: tuple[Any, ...] = ()
    of_class: bool = False
    """A parameter of the class whose method is run."""

    def convert(self, value: Any) -> Any:
        """A choice's text as the value that was declared; the rest as it is."""
        if self.kind == CHOICE and value is not None:
            return {str(one): one for one in self.choices}.get(value, value)
        return value


@dataclass(frozen=True)
class Signature:
    """A callable's arguments as a command line. ``rest``: the parameter that takes all words as they are, or empty."""

    arguments: tuple[Argument, ...] = ()
    rest: str = ""


def describe(function: Callable[..., Any], name: str = "", method: bool = False) -> Signature:
    """The command line of a function. InvalidError names a parameter that a command line cannot give.

    ``method``: its first parameter is the instance, which nobody types.
    """
    called = name or getattr(function, "__name__", "function")
    parameters = list(inspect.signature(function).parameters.values())[1 if method else 0 :]
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            others = [one.name for one in parameters if one is not parameter]
            if others:
                raise InvalidError(
                    f"{called}: *{parameter.name} takes all words of the command line, so there can be no other "
                    f"parameter: {', '.join(others)}"
                )
            return Signature(rest=parameter.name)
    hints = _hints(function, called)
    return Signature(tuple(_argument(called, one, hints.get(one.name, one.empty)) for one in parameters))


def describe_method(user_cls: type, method: str, name: str) -> Signature:
    """The command line of a class's method: the class's parameters and the method's together. InvalidError where both
    have one of a name, and for what a command line cannot give."""
    signature = describe(instances.methods(user_cls)[method], name, method=True)
    declared = instances.parameters(user_cls)
    hints = _hints(user_cls, name)
    of_class = []
    for each, parameter in declared.items():
        default = getattr(parameter, instances.DEFAULT, inspect.Parameter.empty)
        if hints.get(each) is bytes and default is not inspect.Parameter.empty:
            continue  # no command line can give it; it has a default
        kind, choices = _kind(name, each, hints.get(each, inspect.Parameter.empty))
        required = default is inspect.Parameter.empty
        of_class.append(Argument(each, _option(each), kind, required, None if required else default, choices, True))
    if signature.rest:
        needed = [one.name for one in of_class if one.required]
        if needed:
            raise InvalidError(
                f"{name}: *{signature.rest} takes all words of the command line, so the class's parameters cannot be "
                f"given: {', '.join(needed)}"
            )
        return signature
    both = {one.name for one in of_class} & {one.name for one in signature.arguments}
    if both:
        raise InvalidError(
            f"{name}: the class and the method both have a parameter {min(both)!r}, and a command line has one option "
            "for it: call it from a @app.local_entrypoint()"
        )
    return Signature((*of_class, *signature.arguments))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _hints(function: Callable[..., Any], called: str) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError as error:
        raise InvalidError(f"{called}: an annotation cannot be read: {error}") from None
    except TypeError:
        # `int | None` as text on a Python that cannot evaluate it
        return {
            key: value for key, value in getattr(function, "__annotations__", {}).items() if isinstance(value, type)
        }


def _argument(called: str, parameter: inspect.Parameter, hint: Any) -> Argument:
    if parameter.kind is parameter.VAR_KEYWORD:
        raise InvalidError(f"{called}: **{parameter.name} cannot be given on the command line")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise InvalidError(
            f"{called}: the positional-only parameter {parameter.name} cannot be given on the command line"
        )
    kind, choices = _kind(called, parameter.name, hint)
    required = parameter.default is parameter.empty
    return Argument(
        parameter.name,
        _option(parameter.name),
        kind,
        required,
        None if required else parameter.default,
        choices,
    )


def _kind(called: str, name: str, hint: Any) -> tuple[str, tuple[Any, ...]]:
    if hint is inspect.Parameter.empty or hint is Any:
        return STR, ()
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if len({str(one) for one in choices}) != len(choices):
            raise InvalidError(f"{called}: two choices of {name} look the same on a command line: {choices!r}")
        return CHOICE, choices
    if origin is typing.Annotated:
        return _kind(called, name, typing.get_args(hint)[0])
    if origin is Union or type(hint).__name__ == "UnionType":
        inner = [one for one in typing.get_args(hint) if one is not type(None)]
        if len(inner) == 1:
            return _kind(called, name, inner[0])
    if isinstance(hint, type) and hint in _KINDS:
        return _KINDS[hint], ()
    shown = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise InvalidError(
        f"{called}: parameter {name} has the type {shown}, which a command line cannot give; it can give {_ACCEPTED}"
    )


# --- finding it ---


@dataclass(frozen=True)
class Reference:
    """What was typed: ``file.py::name``, or with ``-m`` ``pkg.mod::name``."""

    source: str
    name: str = ""
    is_module: bool = False


@dataclass(frozen=True)
class Found:
    """An app and what to run of it."""

    app: App
    target: Runnable
    module: ModuleType
    name: str
    method: str = ""
    """Of a class: which method. ``target`` is then the class's function."""

    @property
    def owner(self) -> Any:
        """The class's handle, of a method; else None."""
        return self.target._class if self.method and isinstance(self.target, Function) else None

    @property
    def is_generator(self) -> bool:
        """Whether it gives values one after the other."""
        if self.method:
            return shape.is_generator(self.raw)
        return isinstance(self.target, Function) and bool(self.target._is_generator)

    def signature(self) -> Signature:
        """Its command line. InvalidError for what no command line can give."""
        if self.owner is not None:
            return describe_method(self.owner.__cadenza_raw__, self.method, self.name)
        return describe(self.raw, self.name)

    @property
    def raw(self) -> Callable[..., Any]:
        """The user's own callable."""
        if self.owner is not None:
            return instances.methods(self.owner.__cadenza_raw__)[self.method]
        return self.target.raw if isinstance(self.target, LocalEntrypoint) else self.target.__cadenza_raw__

    @property
    def is_local(self) -> bool:
        """Whether it runs in the user's process."""
        return isinstance(self.target, LocalEntrypoint)


def parse_reference(text: str, is_module: bool = False) -> Reference:
    """``file.py::name`` in its parts. InvalidError for an empty one."""
    source, separator, name = text.partition("::")
    if not source or (separator and not name):
        raise InvalidError(f"{text!r} is no program: write file.py, file.py::name, or -m package.module::name")
    return Reference(source, name, is_module)


def import_program(reference: Reference) -> ModuleType:
    """Import the program, as a module that functions can name. InvalidError if it is not there or does not parse; what
    the program itself raises comes through."""
    if reference.is_module:
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            found = importlib.util.find_spec(reference.source)
        except ModuleNotFoundError as error:
            raise InvalidError(f"no module {reference.source!r}: {error}") from None
        except SyntaxError as error:
            raise _does_not_parse(error) from None
        if found is None:
            hint = f"; for a file leave -m out: {reference.source}" if os.path.exists(reference.source) else ""
            raise InvalidError(f"no module {reference.source!r} on the search path{hint}")
        try:
            return importlib.import_module(reference.source)
        except SyntaxError as error:
            raise _does_not_parse(error) from None
    return _import_file(reference.source)


def _import_file(given: str) -> ModuleType:
    path = os.path.abspath(given)
    if not os.path.exists(path):
        hint = ""
        if not given.endswith(".py"):
            hint = f"; did you mean {given}.py?" if os.path.exists(path + ".py") else "; for a module use -m"
        raise InvalidError(f"no file {given}{hint}")
    if os.path.isdir(path):
        raise InvalidError(f"{given} is a directory: name a file in it")
    stem = os.path.splitext(os.path.basename(path))[0]
    if not path.endswith(".py"):
        raise InvalidError(f"{given} is not a Python file: its name must end in .py")
    if not stem.isidentifier():
        raise InvalidError(
            f"{given}: a container imports the program by its file's name, and {stem!r} is no name for a module: "
            "rename the file"
        )
    directory = os.path.dirname(path)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    spec = importlib.util.spec_from_file_location(stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(stem)
    sys.modules[stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        if before is None:
            sys.modules.pop(stem, None)
        else:
            sys.modules[stem] = before
        if isinstance(error, SyntaxError):
            raise _does_not_parse(error) from None
        raise
    return module


def _does_not_parse(error: SyntaxError) -> InvalidError:
    lines = [f"{error.filename or 'the program'}, line {error.lineno}: {error.msg}"]
    if error.text:
        text = error.text.rstrip("\n")
        lines.append("    " + text.lstrip())
        if error.offset:
            indent = len(text) - len(text.lstrip())
            lines.append("    " + " " * max(0, error.offset - 1 - indent) + "^")
    return InvalidError("\n".join(lines))


def resolve(text: str, is_module: bool = False) -> Found:
    """Import the program and find what to run. InvalidError lists the choices when the name is left out and there are
    several, or when there is no such name."""
    reference = parse_reference(text, is_module)
    return choose(import_program(reference), reference)


def choose(module: ModuleType, reference: Reference) -> Found:
    """What ``reference`` names in a module that is imported."""
    apps = {name: thing for name, thing in vars(module).items() if isinstance(thing, App)}
    different = list({id(app): app for app in apps.values()}.values())
    if reference.name:
        return _named(module, reference, apps, different)
    if not different:
        raise InvalidError(
            f"no App in {reference.source}: define one in global scope, for example app = cadenza.App(), "
            "and put @app.function() on a function"
        )
    return _only(module, reference, different, f"{reference.source} has")


def _only(module: ModuleType, reference: Reference, apps: Sequence[App], begin: str) -> Found:
    """The only entrypoint, else the only function or method. InvalidError lists what there is."""
    locals_ = [Found(app, one, module, name) for app in apps for name, one in app._entrypoints.items()]
    functions = [one for app in apps for one in _runnable(app, module)]
    for group in (locals_, functions):
        if len(group) == 1:
            return group[0]
        if group:
            raise InvalidError(
                f"{begin} more than one thing to run; name one of them:\n"
                + _choices(reference, [one.name for one in (*locals_, *functions)])
            )
    raise InvalidError(f"{begin} nothing to run: put @app.function() on a function")


def _runnable(app: App, module: ModuleType) -> list[Found]:
    """Functions, and the methods of classes."""
    found = []
    for name, one in app._functions.items():
        if app._declarations[name].marks.web:
            continue
        if one._class is not None:
            found.extend(_methods(app, one, module))
        else:
            found.append(Found(app, one, module, name))
    return found


def _methods(app: App, service: Function[Any, Any, Any], module: ModuleType) -> list[Found]:
    assert service._class is not None
    names = instances.methods(service._class.__cadenza_raw__)
    return [Found(app, service, module, f"{service._class._name}.{one}", one) for one in names]


def _named(module: ModuleType, reference: Reference, apps: Mapping[str, App], different: Sequence[App]) -> Found:
    path, _, last = reference.name.rpartition(".")
    searched = [apps[path]] if path in apps else different
    name = last if path in apps else reference.name
    for app in searched:
        entrypoint = app._entrypoints.get(name)
        if entrypoint is not None:
            return Found(app, entrypoint, module, name)
        for one in _runnable(app, module):
            if one.name == name:
                return one
        if name in app._functions:  # a web function: who runs it says why not
            return Found(app, app._functions[name], module, name)
        service = app._functions.get(name + ".*")
        if service is not None:
            return _only_method(_methods(app, service, module), reference, name)
    # It may be another name in the module, or belong to an app that the module does not name.
    thing: Any = getattr(module, reference.name, None)
    if isinstance(thing, LocalEntrypoint):
        return Found(thing.app, thing, module, thing.name)
    if isinstance(thing, Function) and thing._definition is not None:
        return Found(thing.app, thing, module, thing._definition.name)
    if isinstance(thing, App):
        return _only(module, reference, [thing], f"{reference.name} has")
    service = getattr(thing, "_service", None)
    if isinstance(service, Function) and service._class is thing:
        return _only_method(_methods(service.app, service, module), reference, reference.name)
    names = [name for app in different for name in (*app._entrypoints, *(one.name for one in _runnable(app, module)))]
    if callable(thing):
        raise InvalidError(
            f"{reference.name} is not part of an app: put @app.function() or @app.local_entrypoint() on it"
        )
    raise InvalidError(
        f"nothing named {reference.name!r} to run in {reference.source}"
        + (":\n" + _choices(reference, names) if names else "")
    )


def _only_method(methods: Sequence[Found], reference: Reference, name: str) -> Found:
    if len(methods) == 1:
        return methods[0]
    if not methods:
        raise InvalidError(f"the class {name} has nothing to run: put @method() on a method")
    raise InvalidError(
        f"the class {name} has more than one method; name one of them:\n"
        + _choices(reference, [one.name for one in methods])
    )


def _choices(reference: Reference, names: Sequence[str], verb: str = "run") -> str:
    flag = "-m " if reference.is_module else ""
    return "\n".join(f"  cadenza {verb} {flag}{reference.source}::{name}" for name in names)


def find_app(module: ModuleType, reference: Reference, verb: str) -> App:
    """The app of a program that is imported; ``file.py::name`` names the variable that holds it. InvalidError lists
    the choices, written with ``verb``, when there is none or more than one."""
    apps = {name: thing for name, thing in vars(module).items() if isinstance(thing, App)}
    if reference.name:
        found = apps.get(reference.name)
        if found is not None:
            return found
        raise InvalidError(
            f"{reference.source} has no app named {reference.name!r}"
            + (":\n" + _choices(reference, list(apps), verb) if apps else "")
        )
    if not apps:
        raise InvalidError(f"no App in {reference.source}: define one in global scope, for example app = cadenza.App()")
    different = {id(app): name for name, app in reversed(apps.items())}
    if len(different) == 1:
        return next(iter(apps.values()))
    if "app" in apps:
        return apps["app"]
    raise InvalidError(
        f"{reference.source} has more than one app; name one of them:\n" + _choices(reference, list(apps), verb)
    )


def find_declaration(module: ModuleType, reference: Reference, verb: str) -> Declaration:
    """The declaration of the function, or the class, that ``reference`` names; without a name the only one there is.
    InvalidError lists the choices, written with ``verb``."""
    apps = {name: thing for name, thing in vars(module).items() if isinstance(thing, App)}
    different = list({id(app): app for app in apps.values()}.values())
    path, _, last = reference.name.rpartition(".")
    searched, name = ([apps[path]], last) if path in apps else (different, reference.name)
    declared = {key: one for app in searched for key, one in app._declarations.items()}
    for key in (name, name + ".*", name.rpartition(".")[0] + ".*"):
        if name and key in declared:
            return declared[key]
    if not declared:
        raise InvalidError(f"no app with a function in {reference.source}")
    if not name and len(declared) == 1:
        return next(iter(declared.values()))
    begin = (
        f"{reference.source} has no function named {name!r}; there are"
        if name
        else f"{reference.source} has more than one function; name one of them"
    )
    names = [key[:-2] if key.endswith(".*") else key for key in declared]
    raise InvalidError(f"{begin}:\n" + _choices(reference, names, verb))
