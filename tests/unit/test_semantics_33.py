"""Items of the checklist of semantics.md section 33: each has a test, here or in the files that `ELSEWHERE` names."""

from __future__ import annotations

import ast
import builtins
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "sdk"), str(HERE / "runner")]

from fake_server import FakeServer  # noqa: E402
from runner_peer import Agent  # noqa: E402

from cadenza.cli import run as cli_run  # noqa: E402
from cadenza.exception import FunctionTimeoutError, TimeoutError  # noqa: E402
from cadenza.protocol.statuses import FAILURE, TIMEOUT  # noqa: E402
from cadenza.runner import values  # noqa: E402
from cadenza.sdk.client import Client  # noqa: E402
from cadenza.sdk.function import Definition, Function  # noqa: E402

ELSEWHERE = {
    1: ["sdk/test_sdk_call.py::test_timeout_zero_asks_once_and_raises_the_builtin"],
    3: [
        "sdk/test_sdk_retries.py::test_an_integer_waits_one_second_each_time",
        "sdk/test_sdk_retries.py::test_the_class_is_exponential_by_default",
        "test_semantics_34.py::test_row",
    ],
    4: [
        "runner/test_runner_execute.py::test_every_base_exception_is_a_result",
        "runner/test_runner_execute.py::test_keyboard_interrupt_ends_the_container",
    ],
    6: [
        "runner/test_runner_classes.py::test_cancelling_a_sync_input_among_others_ends_the_container_and_gives_them_back"
    ],
    11: [
        "sdk/test_sdk_cls.py::test_defaults_share_a_pool",
        "sdk/test_sdk_cls.py::test_nothing_happens_before_it_is_used",
        "sdk/test_sdk_cls.py::test_plain_attributes_are_those_of_an_instance_that_has_not_entered",
    ],
    12: [
        "sdk/test_sdk_cls.py::test_options_merge_one_by_one",
        "sdk/test_sdk_cls.py::test_options_of_a_class_and_its_instances",
        "control/test_control_variants.py::test_wishes_merge_one_by_one_and_sets_as_a_whole",
        "control/test_control_variants.py::test_equal_wishes_have_one_text",
    ],
    13: [
        "sdk/test_sdk_mapping.py::test_nothing_runs_before_the_first_iteration",
        "sdk/test_sdk_mapping.py::test_results_come_while_the_inputs_still_wait",
        "sdk/test_sdk_mapping.py::test_endless_inputs_are_taken_only_as_far_as_allowed",
        "sdk/test_sdk_mapping.py::test_return_exceptions_puts_them_in_their_slots_unwrapped",
        "control/test_control_calls.py::test_a_flaky_input_is_retried_after_its_delay_and_spares_others",
    ],
    14: [
        "sdk/test_sdk_mapping.py::test_spawn_map_makes_a_call_for_each_input_and_returns_none",
        "sdk/test_sdk_mapping.py::test_experimental_spawn_map_is_one_call",
        "sdk/test_sdk_cls.py::test_spawn_map_returns_a_handle_where_it_is_wished",
    ],
    15: [
        "control/test_control_calls.py::test_a_caller_that_is_gone_takes_its_attached_calls_along",
        "control/test_control_calls.py::test_a_restart_goes_on_with_detached_calls_and_adopts_what_runs",
    ],
    16: ["control/test_control_apps.py::test_a_detached_app_needs_work_once_its_client_has_left"],
    17: [
        "control/test_control_schedules.py::test_a_period_restarts_at_each_deploy_and_a_line_does_not",
        "control/test_control_schedules.py::test_taking_a_function_away_and_stopping_the_app",
    ],
    26: [
        "sdk/test_sdk_cls.py::test_from_name_is_lazy",
        "sdk/test_sdk_secret.py::test_from_name_asks_nothing_until_it_is_used",
        "control/test_control_secrets.py::test_a_missing_name_and_a_missing_key_are_said_at_publishing",
    ],
    27: [
        "sdk/test_sdk_function.py::test_handles_travel_as_references_and_unhydrated_ones_do_not",
        "sdk/test_sdk_cls.py::test_instances_classes_and_methods_travel",
        "sdk/test_sdk_cls.py::test_what_is_not_hydrated_does_not_travel",
    ],
    28: [
        "sdk/test_sdk_secret.py::test_the_later_wins",
        "control/test_control_secrets.py::test_the_later_wins_and_env_is_on_top",
    ],
    30: [
        "test_semantics_34.py::test_row",
        "sdk/test_sdk_function.py::test_from_name_is_lazy_and_finds_at_first_use",
        "sdk/test_sdk_app.py::test_a_serialized_function_has_limits",
        "sdk/test_sdk_cls.py::test_parameters_are_checked_when_they_are_bound",
    ],
}


@pytest.mark.parametrize("item", ELSEWHERE)
def test_the_item_is_tested_there(item: int) -> None:
    for name in ELSEWHERE[item]:
        file, _, test = name.partition("::")
        body = ast.parse((HERE / file).read_text()).body
        assert test in {one.name for one in body if isinstance(one, ast.FunctionDef)}, f"{file} has no {test}"


@pytest.fixture
def server(tmp_path: Path) -> Any:
    one = FakeServer(str(tmp_path / "s.sock"))
    yield one
    one.close()


@pytest.fixture
def function(server: FakeServer) -> Any:
    def work(x: int) -> int:
        return x + 1

    client = Client("unix:" + server.path)
    made = Function._from_definition(None, Definition(work, "work", "m", "work", False, False, lambda: None))
    made._hydrate("fu-1", client)
    server.functions["fu-1"] = work
    yield made
    client.close()


def test_a_functions_own_time_limit_is_not_the_pollers_timeout(server: FakeServer, function: Any) -> None:
    """Item 1: a program that polls must not take a function that ran out of time for one that is not done yet."""

    async def out_of_time(peer: Any, number: int, body: dict[str, Any], payload: bytes) -> None:
        output = {"index": 0, "input_id": "in-0", "status": TIMEOUT, "error": "ran out", "value": {"size": 0}}
        peer.send("rep", number, {"call_id": "fc-1", "output": output})

    server.handlers["call.get"] = out_of_time
    call = function.spawn(1)
    with pytest.raises(FunctionTimeoutError, match="ran out") as caught:
        call.get(timeout=0)
    assert not isinstance(caught.value, builtins.TimeoutError)
    assert issubclass(FunctionTimeoutError, TimeoutError) and not issubclass(TimeoutError, builtins.TimeoutError)


def test_a_timeout_that_the_function_raised_is_the_users_own(server: FakeServer, function: Any) -> None:
    """Item 1, the other way round: what user code raises comes through as it is, the builtin too."""

    async def raised(peer: Any, number: int, body: dict[str, Any], payload: bytes) -> None:
        data = values.pack_exception(builtins.TimeoutError("its own"))
        output = {"index": 0, "input_id": "in-0", "status": FAILURE, "error": "", "value": {"size": len(data)}}
        peer.send("rep", number, {"call_id": "fc-1", "output": output}, data)

    server.handlers["call.get"] = raised
    with pytest.raises(builtins.TimeoutError, match="its own"):
        function.spawn(1).get()


@pytest.mark.parametrize(("most", "expected"), [(1, (True, False)), (2, (False, True))])
def test_the_thread_that_user_code_runs_on(most: int, expected: tuple[bool, bool]) -> None:
    """Item 5: the main thread, so that signals and event loops work; daemon threads when inputs run side by side."""
    with Agent() as agent:
        agent.attach(
            "import threading\n"
            "def f(x):\n    here = threading.current_thread()\n"
            "    return here is threading.main_thread(), here.daemon\n",
            max_concurrent=most,
        )
        assert agent.call(0) == expected


def test_user_code_on_the_main_thread_may_use_signals_and_loops() -> None:
    """Item 5."""
    with Agent() as agent:
        agent.attach(
            "import asyncio, signal\n"
            "async def later(): return 7\n"
            "def f(x):\n    signal.signal(signal.SIGALRM, lambda *_: None)\n    return asyncio.run(later())\n"
        )
        assert agent.call(0) == 7


@pytest.mark.parametrize("detach", [True, False])
def test_a_detached_run_of_a_function_spawns_it(monkeypatch: pytest.MonkeyPatch, detach: bool) -> None:
    """Item 16: an attached input would be dropped with its caller."""
    said: list[str] = []

    class App:
        name = "a"

        def run(self, **options: Any) -> Any:
            assert options["detach"] is detach
            return self

        def __enter__(self) -> None:
            said.append("enter")

        def __exit__(self, *_: object) -> None:
            said.append("exit")

    class Target:
        def spawn(self, *args: Any, **kwargs: Any) -> Any:
            said.append("spawn")
            return SimpleNamespace(get=lambda: kwargs["x"])

        def remote(self, *args: Any, **kwargs: Any) -> Any:
            said.append("remote")
            return kwargs["x"]

    found = SimpleNamespace(app=App(), target=Target(), is_local=False, module=None, owner=None)
    assert cli_run.execute(found, (), {"x": 5}, set(), None, True, detach, False, None, False) == 5
    assert said == ["enter", "spawn" if detach else "remote", "exit"]
