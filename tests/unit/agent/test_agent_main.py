"""The agent with fakes around it: lives from want to gone. No real time passes but the loop's own."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from agent_fakes import FakeDriver, FakeRunner, World, attempt, echo, spec

from cadenza.agent import files, surroundings
from cadenza.base.errors import ConflictError, NotFoundError
from cadenza.base.resources import Resources
from cadenza.protocol import calls, nodes
from cadenza.protocol.calls import AttemptOutput
from cadenza.protocol.nodes import StopOrder


def test_a_container_starts_runs_inputs_and_is_drained(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            one = spec(env={"A": "1"})
            world.want(one)
            ready = await world.control.state("ta-1", nodes.READY)
            assert [state for _, state in world.control.history] == ["preparing", "starting", "ready"]
            # Every phase is there, and together they are the wall time from demand to readiness.
            assert set(ready.phases) == set(nodes.PHASES)
            assert sum(ready.phases.values()) == pytest.approx(ready.ready_at - one.wanted_at, rel=0.02)
            assert not ready.warm
            assert ready.runtime == "process"
            world.agent.deliver("ta-1", [attempt(0, b"abc"), attempt(1, b"de")])
            await world.control.until(lambda: len(world.control.given) == 2)
            first, second = (one for _, one in world.control.given)
            assert (first.attempt_id, first.status, first.data, first.finished_at) == ("in-0:1", "SUCCESS", b"abc", 2.0)
            assert second.data == b"de"
            world.want(one, stops=(StopOrder("ta-1", 5.0, True),))
            gone = await world.control.state("ta-1", nodes.GONE)
            assert (gone.reason, gone.exit_code) == (nodes.EXITED, 0)
            assert "raw\n" in world.control.text("ta-1", 1)
            world.want()
        assert world.networks.out == []
        assert os.listdir(os.path.join(tmp_path, "containers")) == []
        assert world.driver.deleted == ["ta-1"]

    asyncio.run(go())


def test_the_attach_frame_has_all_that_the_function_needs(tmp_path: Any) -> None:
    """semantics.md sections 11.2 and 14: threads by the CPU request; env over it; reserved names on top."""

    async def go() -> None:
        async with World(tmp_path) as world:
            pickled = tmp_path / "pickled"
            pickled.write_bytes(b"PICKLE")
            source = tmp_path / "source"
            source.write_bytes(b"print()")
            world.control.objects = {"d1": str(pickled), "d2": str(source)}
            world.want(
                spec(
                    serialized="d1",
                    files=(nodes.FileEntry("/root/m.py", "d2", 7),),
                    env={"A": "1", "OMP_NUM_THREADS": "7", "MODAL_TASK_ID": "forged"},
                    max_concurrent=3,
                )
            )
            await world.control.state("ta-1", nodes.READY)
            runner = world.driver.runners["ta-1"]
            header, payload = next(one for one in runner.frames if one[0]["t"] == "attach")
            assert payload == b"print()PICKLE"
            assert header["serialized"] == 6
            root = runner.config.env["CADENZA_ROOT"]
            assert header["files"] == [{"path": f"{root}/m.py", "size": 7, "mode": 0o644}]
            assert header["cwd"] == f"{root}/work"
            env = header["env"]
            assert (env["A"], env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("1", "7", "1")
            assert env["MODAL_TASK_ID"] == "ta-1"
            assert env["MODAL_IS_REMOTE"] == "1"
            assert header["function"]["max_concurrent"] == 3
            assert runner.config.env["FROM_IMAGE"] == "1"

    asyncio.run(go())


def test_a_runner_that_ignores_its_drain_is_killed_at_the_deadline(tmp_path: Any) -> None:
    def stubborn(runner: FakeRunner, header: dict[str, Any], payload: bytes) -> None:
        runner.stubborn = True
        echo(runner, header, payload)

    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.behave = stubborn
            world.want(spec())
            await world.control.state("ta-1", nodes.READY)
            world.want(spec(), stops=(StopOrder("ta-1", 0.05, True),))
            gone = await world.control.state("ta-1", nodes.GONE)
            assert gone.reason == nodes.STOPPED
            assert "grace" in gone.message
            assert ("ta-1", signal.SIGKILL) in world.driver.signals

    asyncio.run(go())


def test_what_is_no_longer_wanted_is_stopped_at_once(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            world.want(spec("ta-1"), spec("ta-2"))
            await world.control.state("ta-1", nodes.READY)
            await world.control.state("ta-2", nodes.READY)
            world.want(spec("ta-2"))
            gone = await world.control.state("ta-1", nodes.GONE)
            assert gone.reason == nodes.STOPPED
            assert world.control.containers["ta-2"].state == nodes.READY

    asyncio.run(go())


def test_an_older_desired_state_is_ignored_and_a_gone_container_is_told_again_not_started_again(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            world.want(spec())
            await world.control.state("ta-1", nodes.READY)
            world.agent.want(nodes.Desired(0))
            world.driver.runners["ta-1"].exit(3)
            gone = await world.control.state("ta-1", nodes.GONE)
            assert gone.reason == nodes.CRASHED
            assert "exit code 3" in gone.message
            assert "exit code 3" in world.control.text("ta-1", 0)
            await world.control.until(lambda: True)
            world.control.containers.clear()
            world.want(spec())
            assert (await world.control.state("ta-1", nodes.GONE)).reason == nodes.CRASHED
            assert list(world.driver.limits) == ["ta-1"]

    asyncio.run(go())


def test_out_of_memory_names_the_limit(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            world.want(spec(resources=Resources(memory_limit_mib=64)))
            await world.control.state("ta-1", nodes.READY)
            world.driver.runners["ta-1"].exit(137, oom=True)
            gone = await world.control.state("ta-1", nodes.GONE)
            assert gone.reason == nodes.OOM
            assert "64 MiB" in gone.message
            assert "64 MiB" in world.control.text("ta-1", 0)

    asyncio.run(go())


def test_import_failure_carries_the_packed_exception(tmp_path: Any) -> None:
    def fail(runner: FakeRunner, header: dict[str, Any], payload: bytes) -> None:
        if header["t"] == "attach":
            runner.send({"t": "failed", "where": "import", "text": "ValueError: no", "n": 3}, b"EXC")

    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.behave = fail
            world.want(spec())
            gone = await world.control.state("ta-1", nodes.GONE)
            assert (gone.reason, gone.message, gone.error) == (nodes.INIT_FAILED, "ValueError: no", b"EXC")

    asyncio.run(go())


def test_a_start_that_takes_too_long_ends_by_its_own_limit(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.boots = False
            world.want(spec(startup_timeout_s=0.05))
            gone = await world.control.state("ta-1", nodes.GONE)
            assert gone.reason == nodes.START_TIMEOUT

    asyncio.run(go())


def test_a_runtime_that_fails_is_the_platforms_fault(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.fault = "crun: no"
            world.want(spec())
            gone = await world.control.state("ta-1", nodes.GONE)
            assert gone.reason == nodes.RUNTIME_FAILED
            assert "crun: no" in gone.message
        assert world.networks.out == []
        assert os.listdir(os.path.join(tmp_path, "containers")) == []

    asyncio.run(go())


def test_cancel_is_a_frame_and_then_a_signal_only_for_synchronous_functions(tmp_path: Any) -> None:
    """semantics.md section 9."""

    def hold(runner: FakeRunner, header: dict[str, Any], payload: bytes) -> None:
        if header["t"] == "cancel":
            runner.send({"t": "out", "outs": [{"a": one, "s": "TERMINATED"} for one in header["a"]]})
        elif header["t"] == "revoke":
            runner.send({"t": "out", "outs": [{"a": one, "s": "REVOKED"} for one in header["a"]]})
        elif header["t"] != "run":
            echo(runner, header, payload)

    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.behave = hold
            world.want(spec("ta-1"), spec("ta-2", is_async=True))
            await world.control.state("ta-1", nodes.READY)
            await world.control.state("ta-2", nodes.READY)
            for one in ("ta-1", "ta-2"):
                world.agent.deliver(one, [attempt(0), attempt(1)])
                world.agent.cancel(one, ["in-0:1"])
                world.agent.cancel(one, ["in-1:1"], revoke=True)
            await world.control.until(lambda: len(world.control.given) == 4)
            assert sorted(one.status for _, one in world.control.given) == ["REVOKED"] * 2 + ["TERMINATED"] * 2
            assert world.driver.signals == [("ta-1", signal.SIGUSR1)] * 2  # to cancel, and to give back

    asyncio.run(go())


def test_what_comes_after_the_drain_began_is_given_back(tmp_path: Any) -> None:
    def stubborn(runner: FakeRunner, header: dict[str, Any], payload: bytes) -> None:
        runner.stubborn = True
        echo(runner, header, payload)

    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.behave = stubborn
            world.want(spec())
            await world.control.state("ta-1", nodes.READY)
            world.want(spec(), stops=(StopOrder("ta-1", 5.0, True),))
            world.agent.deliver("ta-1", [attempt(0)])
            await world.control.until(lambda: world.control.given)
            assert world.control.given == [("ta-1", AttemptOutput("in-0:1", calls.REVOKED))]

    asyncio.run(go())


def test_starts_wait_for_their_turn(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            world.agent.cores = 2
            world.driver.boots = False
            specs = [spec(f"ta-{number}") for number in range(6)]
            world.want(*specs)
            await world.control.until(
                lambda: sum(1 for one in world.control.containers.values() if one.state == nodes.STARTING) == 3
            )
            assert len(world.driver.runners) <= 3  # one more than cores: each also waits

    asyncio.run(go())


def test_the_pool_keeps_a_warm_container_for_the_next_start(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path, pool_containers=1) as world:
            world.want(spec("ta-1"), images=("im-1",))
            await world.control.state("ta-1", nodes.READY)
            while not any(one.life.state == "idle" for one in world.agent._cells.values()):
                await asyncio.sleep(0.01)
            two = spec("ta-2", resources=Resources(memory_limit_mib=99))
            world.want(spec("ta-1"), two, images=("im-1",))
            ready = await world.control.state("ta-2", nodes.READY)
            assert ready.warm
            assert set(ready.phases) == set(nodes.PHASES)
            assert sum(ready.phases.values()) == pytest.approx(ready.ready_at - two.wanted_at, rel=0.02)
            assert 99 in [one.memory_limit_mib for one in world.driver.limits.values()]
            world.agent.deliver("ta-2", [attempt(0)])
            await world.control.until(lambda: world.control.given)
            assert world.control.given[0][0] == "ta-2"
        assert os.listdir(os.path.join(tmp_path, "containers")) == []

    asyncio.run(go())


def test_a_warm_container_is_no_reason_to_keep_an_image(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path, pool_containers=1) as world:
            world.want(spec("ta-1"), images=("im-1",))
            await world.control.state("ta-1", nodes.READY)
            while not any(one.life.state == "idle" for one in world.agent._cells.values()):
                await asyncio.sleep(0.01)
            await world.agent.let_go(("im-2",))
            assert any(one.life.generic for one in world.agent._cells.values())
            await world.agent.let_go(("im-1",))
            assert [one.container_id for one in world.agent._cells.values()] == ["ta-1"]
            world.agent._pool()
            assert len(world.agent._cells) == 1, "and none is made in its place"

    asyncio.run(go())


def test_connections_go_on_with_the_containers_identity(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            world.want(spec())
            await world.control.state("ta-1", nodes.READY)
            run = world.driver.runners["ta-1"].config.env["CADENZA_SUPPORT"]
            await asyncio.open_unix_connection(os.path.join(run, "client.sock"))
            await asyncio.open_unix_connection(os.path.join(run, "lane.sock"))
            while not (world.clients and world.lanes):
                await asyncio.sleep(0)
            assert [one for _, one in world.clients + world.lanes] == ["ta-1", "ta-1"]
            for sock, _ in world.clients + world.lanes:
                assert not sock.getblocking()
                sock.close()

    asyncio.run(go())


def test_two_servers_do_not_share_a_data_directory(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path):
            with pytest.raises(ConflictError, match="CADENZA_HOME"):
                await World(tmp_path).agent.start()

    asyncio.run(go())


def test_what_an_earlier_agent_left_is_removed_at_start(tmp_path: Any) -> None:
    async def go() -> None:
        left = tmp_path / "containers" / "ta-old"
        (left / "upper").mkdir(parents=True)
        (left / "made.json").write_text("{")
        driver = FakeDriver()
        driver.runners["ta-old"] = FakeRunner(driver, None)  # type: ignore[arg-type]
        driver.ends["ta-old"] = asyncio.get_running_loop().create_future()
        driver.runners["ta-old"].config = type("C", (), {"container_id": "ta-old"})()
        async with World(tmp_path, driver):
            assert driver.deleted == ["ta-old"]
            assert not left.exists()

    asyncio.run(go())


def test_exec_in_what_does_not_run_is_not_found(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            with pytest.raises(NotFoundError):
                await world.agent.exec("ta-9", ["true"], False, lambda fd, data: None)

    asyncio.run(go())


def test_a_start_that_fails_leaves_nothing_open(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        world = World(tmp_path)

        async def fail(around: Any, containers_dir: str) -> list[str]:
            raise OSError("no clean-up")

        with monkeypatch.context() as patch:
            patch.setattr(surroundings, "clean", fail)
            with pytest.raises(OSError, match="no clean-up"):
                await world.agent.start()
        assert world.networks.closed
        async with World(tmp_path):
            pass  # the data directory was given back

    asyncio.run(go())


def test_a_plain_process_gets_copies_of_what_was_sent(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may write to its files; those of the store are of other containers too."""
    monkeypatch.setattr(files, "INLINE_BYTES", 1)

    async def go() -> None:
        async with World(tmp_path) as world:
            source = tmp_path / "source"
            source.write_bytes(b"print()")
            os.chmod(source, 0o644)
            world.control.objects = {"d2": str(source)}
            world.want(spec(files=(nodes.FileEntry("/root/m.py", "d2", 7),)))
            await world.control.state("ta-1", nodes.READY)
            placed = os.path.join(world.driver.runners["ta-1"].config.env["CADENZA_ROOT"], "m.py")
            with open(placed, "ab") as file:
                file.write(b"#")
            assert source.read_bytes() == b"print()"

    asyncio.run(go())
