"""Every public name built so far against those of modal 1.6.4, in tests/golden/api_surface.json.

``pytest -s`` prints the share covered. Source: semantics.md section 1; section 33, "definition-time" rows.
"""

from __future__ import annotations

import importlib
import inspect
import json
import types
from pathlib import Path
from typing import Any

import pytest

import cadenza
from cadenza import compat
from cadenza.base.errors import UnimplementedError
from cadenza.sdk import _dual, later

SURFACE = json.loads((Path(__file__).parents[1] / "golden" / "api_surface.json").read_text())
KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "po",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "pk",
    inspect.Parameter.VAR_POSITIONAL: "va",
    inspect.Parameter.KEYWORD_ONLY: "ko",
    inspect.Parameter.VAR_KEYWORD: "vk",
}
LEAST_BUILT = 300
"""How many names were built at the last count; it only grows."""
OTHERS = {
    # Namespaces and members of built classes that are for later, each with its reason.
    "modal.App.sandboxes": "sandboxes",
    "modal.Client": "the server's address has a default",
    "modal.enable_output": "show_progress is documented (semantics.md section 23)",
    "modal.partial_function.PartialFunction": "the shape of a class of Modal's own",
}
MORE = {
    # Parameters that Modal has not: keyword-only, with a default, after all of Modal's.
    "modal.App": {"budget"},
    "modal.Cron": {"missed", "overlap"},
    "modal.Period": {"missed", "overlap"},
    "modal.Function.map": {"max_in_flight"},
    "modal.Function.starmap": {"max_in_flight"},
    "modal.Function.for_each": {"max_in_flight"},
    "modal.Function.spawn_map": {"return_call"},
    "modal.Retries": {"on", "not_on"},
}
LATER_MEMBERS = {
    "modal.Client": {"anonymous", "from_oauth_credentials", "get_input_plane_metadata", "get_stub", "stub", "verify"},
    "modal.Function": {
        "_experimental_get_flash_urls", "_experimental_spawn",
    },
    "modal.Cls": {"_experimental_get_flash_urls"},
    "modal.object.Object": {"hydrate"},
    "modal.partial_function.PartialFunction": {"stack", "validate_flag_composition", "validate_obj_compatibility"},
}  # fmt: skip


MEMBERS = {
    # Namespaces that are properties of an object: their classes.
    "modal.App.logs": "logs.Logs",
    "modal.Environment.members": "environment.EnvironmentMembersManager",
    "modal.Environment.roles": "environment.EnvironmentRolesManager",
    "modal.Function.autoscaler": "scaler.Autoscaler",
    "modal.Function.logs": "logs.Logs",
    "modal.Function.metrics": "metrics.FunctionMetrics",
    "modal.FunctionCall.logs": "logs.CallLogs",
    "modal.Image.logs": "image_logs.ImageLogs",
    "modal.Workspace.member_tokens": "workspace.WorkspaceMemberTokenManager",
    "modal.Workspace.members": "workspace.WorkspaceMembersManager",
    "modal.Workspace.service_users": "workspace.WorkspaceServiceUserManager",
    "modal.Workspace.settings": "workspace.WorkspaceSettingsManager",
}


class Absent(Exception):
    """The name is not there."""


def find(name: str) -> tuple[Any, Any]:
    """``(static attribute, owner)``: what a class or module holds under the name, not what reading it gives."""
    space, _, last = name.rpartition(".")
    if space in MEMBERS:
        module, _, kind = MEMBERS[space].partition(".")
        owner = getattr(importlib.import_module(f"cadenza.sdk.{module}"), kind)
        return inspect.getattr_static(owner, last), owner
    parts = name.split(".")[1:]
    owner: Any = cadenza
    if parts[0] in compat.MODULES and len(parts) > 1:
        try:
            owner = importlib.import_module(compat.MODULES[parts[0]])
        except ImportError:
            raise Absent(name) from None
        parts = parts[1:]
    thing: Any = None
    for number, part in enumerate(parts):
        if number:
            owner = thing
        try:
            if isinstance(owner, types.ModuleType):
                thing = getattr(owner, part)
            else:
                thing = inspect.getattr_static(owner, part)
        except (AttributeError, UnimplementedError):
            raise Absent(name) from None
    return thing, owner


def is_later(thing: Any) -> bool:
    """Whether it is named and not built: see cadenza.sdk.later."""
    inner = getattr(thing, "__wrapped__", None) or getattr(thing, "__func__", None) or thing
    return getattr(inner, "__module__", "") == later.__name__


def parameters(thing: Any, kind: str) -> list[list[str]]:
    """Our parameters in the golden file's notation, self and cls left out."""
    static = isinstance(thing, (staticmethod, _dual.static_method))
    inner = thing
    for attribute in ("__func__", "__wrapped__"):
        if hasattr(inner, attribute) and not isinstance(inner, type):
            inner = getattr(inner, attribute)
    if isinstance(inner, type):
        inner, static = inner.__init__, False
    elif kind.startswith("function"):
        static = True
    found = list(inspect.signature(inner).parameters.values())
    if not static:
        found = found[1:]
    return [[one.name, KINDS[one.kind]] + ([] if one.default is one.empty else [repr(one.default)]) for one in found]


def same(ours: list[list[str]], theirs: list[list[str]]) -> bool:
    """Equal but for defaults that are objects of Modal's own."""
    if [one[:2] for one in ours] != [one[:2] for one in theirs]:
        return False
    for mine, other in zip(ours, theirs):
        if len(mine) != len(other):
            return False
        if len(other) == 3 and not other[2].startswith(("modal.", "<")) and _plain(mine[2]) != _plain(other[2]):
            return False
    return True


def _plain(default: str) -> str:
    return "[]" if default == "()" else default


def has_aio(thing: Any) -> bool:
    if isinstance(thing, (_dual.BothFree, _dual.class_method_at_once)):
        return True
    bound = thing.__get__(None, object) if hasattr(type(thing), "__get__") else thing
    return hasattr(bound, "aio")


BUILT: list[Any] = []
LATER: list[Any] = []
ABSENT: list[str] = []
for _item in SURFACE:
    try:
        _thing, _owner = find(_item["name"])
    except Absent:
        ABSENT.append(_item["name"])
        continue
    if not is_later(_thing):
        BUILT.append((_item, _thing))
    elif "params" in _item:
        LATER.append((_item, _thing))


def test_the_share_of_modals_names_that_is_built() -> None:
    print(f"\n{len(BUILT)} of {len(SURFACE)} names of modal 1.6.4 are built ({len(BUILT) / len(SURFACE):.0%})")
    assert len(BUILT) >= LEAST_BUILT


@pytest.mark.parametrize(
    ("item", "thing"), [pytest.param(i, t, id=i["name"]) for i, t in BUILT if i["name"] not in OTHERS]
)
def test_a_built_name_has_modals_kind_and_parameters(item: dict[str, Any], thing: Any) -> None:
    kind, _, aio = item["kind"].partition("+")
    if kind == "property":
        assert isinstance(thing, property) or not callable(thing)
        return
    if kind in ("str", "namespace", "settings", "namespace(class)"):
        return
    if kind in ("class", "exception", "dataclass"):
        assert isinstance(thing, type)
    else:
        assert callable(thing) or hasattr(thing, "__get__")
    if aio:
        assert has_aio(thing), "has no .aio"
    if kind == "exception":
        assert [base.__name__ for base in thing.__mro__[1:-2]] == item["bases"] or not item["bases"]
    elif "params" in item:
        ours = parameters(thing, kind)
        more = MORE.get(item["name"], set())
        added = [one for one in ours if one[0] in more]
        assert {one[0] for one in added} == more
        assert all(one[1] == "ko" and len(one) == 3 for one in added)
        assert same([one for one in ours if one[0] not in more], item["params"]), ours


@pytest.mark.parametrize(("item", "thing"), [pytest.param(i, t, id=i["name"]) for i, t in LATER])
def test_a_later_name_already_has_modals_parameters(item: dict[str, Any], thing: Any) -> None:
    assert same(parameters(thing, item["kind"]), item["params"]), parameters(thing, item["kind"])


def test_members_of_built_classes_are_there_or_listed() -> None:
    built = {item["name"] for item, thing in BUILT if isinstance(thing, type)}
    missing = {name for name in ABSENT if name.rsplit(".", 1)[0] in built and name not in OTHERS}
    assert {
        name for name in missing if name.rsplit(".", 1)[1] not in LATER_MEMBERS.get(name.rsplit(".", 1)[0], set())
    } == set()
