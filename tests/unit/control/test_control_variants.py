"""Variants: what a wish changes, when two wishes are one, how many may be made. semantics.md sections 12.2 and 12.3."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cadenza.base.errors import InvalidError, ResourceExhaustedError
from cadenza.base.resources import Gpu, Resources
from cadenza.control.functions import DECLARED, PINNED, VARIANT, Function, plan, stripped
from cadenza.control.lookups import App, absent, apart
from cadenza.control.variants import (
    CREATE_BURST,
    Bucket,
    Wish,
    callable_base,
    derived,
    described,
    merged,
    normalised,
    read_wish,
    text_of,
)
from cadenza.protocol import parameters
from cadenza.protocol.objects import (
    FunctionSpec,
    ImageSpec,
    ImageStep,
    MethodSpec,
    OptionsPatch,
    ParameterSpec,
    RetryPolicy,
    SecretRef,
)

PLAIN = FunctionSpec(
    "f",
    "m",
    "f",
    env={"A": "1"},
    secrets=(SecretRef("st-1"),),
    min_containers=3,
    options={"region": "eu", "schedule": '{"kind":"cron","cron_string":"* * * * *","timezone":"UTC"}'},
)
CLASS = FunctionSpec(
    "C.*", "m", "C", methods=(MethodSpec("go"),), min_containers=2, buffer_containers=1,
    class_parameters=(ParameterSpec("size", "int", "1"), ParameterSpec("name", "str", '"a"')),
)  # fmt: skip
NEEDY = replace(CLASS, class_parameters=(ParameterSpec("size", "int"),))


def wish(parameters: str = "", **patch: Any) -> Wish:
    return Wish(parameters, OptionsPatch(**patch))


@pytest.mark.parametrize(
    ("patch", "path", "value"),
    [
        ({"cpu_milli": 2000}, ("resources", "cpu_milli"), 2000),
        ({"memory_mib": 512}, ("resources", "memory_mib"), 512),
        ({"disk_mib": 512}, ("resources", "disk_mib"), 512),
        ({"gpus": (Gpu("H100"),)}, ("resources", "gpus"), (Gpu("H100"),)),
        ({"secrets": (SecretRef("st-2"),)}, ("secrets",), (SecretRef("st-2"),)),
        ({"secrets": ()}, ("secrets",), ()),
        ({"env": {"B": "2"}}, ("env",), {"B": "2"}),
        ({"env": {}}, ("env",), {}),
        ({"retries": RetryPolicy(2)}, ("retries",), RetryPolicy(2)),
        ({"timeout_s": 9.0}, ("timeout_s",), 9.0),
        ({"max_containers": 7}, ("max_containers",), 7),
        ({"buffer_containers": 7}, ("buffer_containers",), 7),
        ({"scaledown_window_s": 7.0}, ("scaledown_window_s",), 7.0),
        ({"batch_max": 7, "batch_wait_ms": 1}, ("batch_max",), 7),
        ({"options": {"region": "us"}}, ("options",), {"region": "us"}),
    ],
)
def test_each_option_changes_what_it_names_and_nothing_else(
    patch: dict[str, Any], path: tuple[str, ...], value: Any
) -> None:
    """Section 12.3: secrets and env replace the whole set; min_containers does not hold for variants."""
    found = derived(PLAIN, wish(**patch))
    there: Any = found
    for name in path:
        there = getattr(there, name)
    assert there == value
    assert found.min_containers == 0
    assert "schedule" not in found.options
    undone = {path[0]: getattr(PLAIN, path[0]), "min_containers": 3, "batch_wait_ms": 0, "options": PLAIN.options}
    assert replace(found, **undone) == PLAIN


def test_a_new_request_takes_the_old_limit_away() -> None:
    base = replace(
        PLAIN, resources=Resources(cpu_milli=1000, cpu_limit_milli=2000, memory_mib=100, memory_limit_mib=200)
    )
    assert derived(base, wish(cpu_milli=4000)).resources == replace(base.resources, cpu_milli=4000, cpu_limit_milli=0)
    found = derived(base, wish(memory_mib=400, memory_limit_mib=800)).resources
    assert (found.memory_mib, found.memory_limit_mib) == (400, 800)


def test_max_inputs_alone_is_also_the_target() -> None:
    base = replace(PLAIN, max_concurrent=10, target_concurrent=8)
    assert derived(base, wish(max_concurrent=4)).target_concurrent == 4
    assert derived(base, wish(max_concurrent=4, target_concurrent=2)).target_concurrent == 2


def test_wishes_merge_one_by_one_and_sets_as_a_whole() -> None:
    """Section 12.3: scalars one by one; volumes and secrets replace; what is set cannot be unset."""
    first = wish('{"size":2}', timeout_s=5.0, env={"A": "1"}, options={"region": "eu"})
    second = wish(max_containers=2, env={"B": "2"}, options={"cloud": "own"})
    assert merged(first, second) == wish(
        '{"size":2}', timeout_s=5.0, max_containers=2, env={"B": "2"}, options={"region": "eu", "cloud": "own"}
    )
    assert merged(first, wish('{"size":3}', timeout_s=6.0)).parameters == '{"size":3}'
    assert merged(first, wish(timeout_s=6.0)).patch.timeout_s == 6.0


def test_equal_wishes_have_one_text() -> None:
    """Section 33, 12: equal options in different processes share one pool."""
    one = wish(env={"A": "1", "B": "2"}, timeout_s=5.0)
    other = wish(timeout_s=5.0, env={"B": "2", "A": "1"})
    assert text_of(one) == text_of(other)
    assert text_of(one) != text_of(wish(timeout_s=5.0))
    assert text_of(wish(env={})) != text_of(wish())
    assert text_of(wish(secrets=())) != text_of(wish())
    for each in (one, wish("x", gpus=(Gpu("H100", 2),), retries=RetryPolicy(1)), wish(env={}), wish(secrets=())):
        assert read_wish(text_of(each)) == each


def test_parameters_are_checked_and_filled_in() -> None:
    """Section 12.2: C() and C(x=<default>) share a pool; unknown names and wrong types are InvalidError."""
    assert normalised(CLASS, wish('{"size":1}')).empty
    assert normalised(CLASS, wish('{"name":"a","size":1}')).empty
    assert normalised(CLASS, wish()).empty
    assert normalised(CLASS, wish('{"size":2}')).parameters == '{"name":"a","size":2}'
    for bad in ('{"size":"2"}', '{"size":true}', '{"other":1}', "[1]", "{", '{"size":1.5}'):
        with pytest.raises(InvalidError):
            normalised(CLASS, wish(bad))
    with pytest.raises(InvalidError, match="no default"):
        normalised(NEEDY, wish())
    with pytest.raises(InvalidError, match="no parameters"):
        normalised(PLAIN, wish('{"size":1}'))
    with pytest.raises(InvalidError, match="schedule"):
        normalised(PLAIN, wish(options={"schedule": "now"}))


def test_parameters_at_their_limit_and_one_past_it() -> None:
    """Section 30: class parameters have at most 16 KiB, whatever is in them and however they travel."""
    for fits, more in (
        ("x" * 16383, "x"),
        ("\u00e9" * 8191 + "x", "x"),
        ("\x00" * 16383, "\x00"),
        ("\ud800" * 5461, "x"),
    ):
        assert normalised(CLASS, wish(json.dumps({"size": 2, "name": fits}))).parameters
        with pytest.raises(InvalidError, match="16 KiB"):
            normalised(CLASS, wish(json.dumps({"size": 2, "name": fits + more})))
    with pytest.raises(InvalidError, match=r"^C: the parameters together"):
        callable_base(replace(CLASS, class_parameters=(ParameterSpec("name", "str", json.dumps("x" * 16385)),)))
    data = (ParameterSpec("data", "bytes"),)
    assert parameters.values(parameters.bind(data, {"data": b"\xff" * 16384})) == {"data": b"\xff" * 16384}
    with pytest.raises(InvalidError, match="16 KiB"):
        parameters.bind(data, {"data": b"\xff" * 16385})


def test_an_integer_that_cannot_be_written_down_is_bad_input() -> None:
    with pytest.raises(InvalidError, match="cannot be written"):
        parameters.bind((ParameterSpec("n", "int"),), {"n": 10**5000})


def test_nothing_is_kept_warm_for_a_class_that_cannot_be_made_without_parameters() -> None:
    assert callable_base(CLASS) is CLASS
    assert (callable_base(NEEDY).min_containers, callable_base(NEEDY).buffer_containers) == (0, 0)


def test_what_people_read_of_a_wish_has_no_values_of_variables() -> None:
    patch = OptionsPatch(
        timeout_s=5.0, env={"KEY": "hidden"}, secrets=(SecretRef("st-1", keys=("TOKEN",)),), gpus=(Gpu("H100", 2),),
        retries=RetryPolicy(2), options={"region": "eu"},
    )  # fmt: skip
    assert described(patch) == "gpu=H100:2, secrets=TOKEN, env=KEY, retries=2, timeout_s=5, region=eu"


def test_variants_are_made_one_a_second_after_a_thousand() -> None:
    """Section 12.2: 1 per second sustained, burst 1,000."""
    bucket = Bucket(at=100.0)
    for _ in range(int(CREATE_BURST)):
        bucket.take("f", 100.0)
    with pytest.raises(ResourceExhaustedError, match="1000 at once") as caught:
        bucket.take("f", 100.9)
    assert caught.value.throttle is True
    bucket.take("f", 101.0)
    with pytest.raises(ResourceExhaustedError):
        bucket.take("f", 101.0)
    bucket.take("f", 99.0 + 10_000)
    assert bucket.tokens == CREATE_BURST - 1


# --- what putting specs in force does ---


def function(name: str, spec: FunctionSpec, kind: str = DECLARED, base_id: str = "", of: Wish = Wish()) -> Function:
    return Function("fu-" + name, "ap-1", spec.name, False, spec, kind, base_id, of, 1)


def new(spec: FunctionSpec) -> Function:
    return function("new-" + spec.name, spec)


def test_names_keep_their_ids_and_what_is_gone_goes() -> None:
    f, g = function("f", PLAIN), function("g", replace(PLAIN, name="g"))
    changed = replace(PLAIN, timeout_s=9.0)
    change = plan([changed, replace(PLAIN, name="h")], [f, g], new, 2)
    assert change.layout == {"f": "fu-f", "h": "fu-new-h"}
    assert list(change.dropped) == ["fu-g"]
    assert [(one.function_id, one.spec.timeout_s, one.version) for one in change.put] == [
        ("fu-f", 9.0, 2), ("fu-new-h", 300.0, 2),
    ]  # fmt: skip


def test_variants_follow_their_base_and_pinned_ones_do_not() -> None:
    f = function("f", PLAIN)
    variant = function("v", derived(PLAIN, wish(max_containers=2)), VARIANT, "fu-f", wish(max_containers=2))
    pinned = function("p", PLAIN, PINNED, "fu-f")
    of_pinned = function("pv", PLAIN, VARIANT, "fu-p", wish(timeout_s=2.0))
    change = plan([replace(PLAIN, timeout_s=9.0)], [f, variant, pinned, of_pinned], new, 2)
    by_id = {one.function_id: one.spec for one in change.put}
    assert set(by_id) == {"fu-f", "fu-v"}
    assert (by_id["fu-v"].timeout_s, by_id["fu-v"].max_containers, by_id["fu-v"].min_containers) == (9.0, 2, 0)
    gone = plan([], [f, variant, pinned, of_pinned], new, 3)
    assert set(gone.dropped) == {"fu-f", "fu-v"} and gone.put == []


def test_a_variant_whose_wish_fits_no_more_goes_with_a_reason() -> None:
    base = function("c", CLASS)
    good = function("good", CLASS, VARIANT, "fu-c", wish('{"name":"a","size":2}'))
    bad = function("bad", CLASS, VARIANT, "fu-c", wish('{"name":"b","size":1}'))
    spec = replace(CLASS, class_parameters=(ParameterSpec("size", "int", "1"), ParameterSpec("more", "int", "0")))
    change = plan([spec], [base, good, bad], new, 2)
    assert set(change.dropped) == {"fu-good", "fu-bad"}
    assert "name" in change.dropped["fu-bad"]
    spec = replace(CLASS, class_parameters=(*CLASS.class_parameters, ParameterSpec("more", "int", "0")))
    change = plan([spec], [base, good, bad], new, 2)
    assert {one.function_id: one.spec.parameters for one in change.put if one.kind == VARIANT} == {
        "fu-good": '{"more":0,"name":"a","size":2}', "fu-bad": '{"more":0,"name":"b","size":1}',
    }  # fmt: skip


def test_two_variants_do_not_become_one_when_a_default_changes() -> None:
    base = function("c", CLASS)
    explicit = function("e", CLASS, VARIANT, "fu-c", wish('{"name":"a","size":2}', timeout_s=5.0))
    default = function("d", CLASS, VARIANT, "fu-c", wish(timeout_s=5.0))
    spec = replace(CLASS, class_parameters=(ParameterSpec("size", "int", "2"), ParameterSpec("name", "str", '"a"')))
    change = plan([spec], [base, explicit, default], new, 2)
    texts = [text_of(one.wish) for one in change.put if one.kind == VARIANT]
    assert len(set(texts)) == 2


def test_what_only_a_build_needs_is_not_kept() -> None:
    step = ImageStep("run", ("x",), secrets={"TOKEN": "hidden"}, secret_keys=("TOKEN",), force=True)
    spec = replace(PLAIN, image=ImageSpec((step,)))
    kept = stripped(spec)
    assert "hidden" not in repr(kept.image.steps[0].secrets) and not kept.image.steps[0].force
    assert kept.image.image_id() == spec.image.image_id()
    assert stripped(PLAIN) is PLAIN


def test_a_class_that_is_not_there_is_spoken_of_as_a_class() -> None:
    app = App.__new__(App)
    app.app_id, app.name = "ap-1", "shop"
    known = ["C.*", "f", "D.*"]
    assert absent(app, "E.*", known) == "the app shop has no class 'E'; it has C, D"
    assert absent(app, "g", known) == "the app shop has no function 'g'; it has C.*, D.*, f"
    assert "Cls.from_name('shop', 'C')" in absent(app, "C", known)


def test_what_sets_a_variant_apart_is_said_in_short() -> None:
    def of(kind: str, values: str = "", patch: OptionsPatch = OptionsPatch(), pinned_to: int = 0) -> str:
        spec = replace(CLASS, parameters=values)
        one = Function("fu-1", "ap-1", "C.*", False, spec, kind, "fu-0", Wish(values, patch), 4)
        return apart(one, pinned_to)

    assert of(DECLARED, '{"size":1}') == ""
    assert of(PINNED, pinned_to=4) == "version 4"
    assert of(VARIANT, '{"size":2}', pinned_to=4) == "version 4, size=2"
    assert of(VARIANT, '{"name":"größe","size":2}', OptionsPatch(max_containers=3)) == (
        'name="größe", size=2, max_containers=3'
    )
    assert len(of(VARIANT, json.dumps({"name": "x" * 10_000}))) < 60
