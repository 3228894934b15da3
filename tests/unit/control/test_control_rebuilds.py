"""A deployed function whose image is gone: it is built again before its containers start, or the start says why not."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from control_fakes import Client
from test_control_main import World, in_world, until

from cadenza.control.rebuilds import lacking
from cadenza.protocol.objects import FileEntry, ImageSpec, ImageStep
from cadenza.protocol.plain import to_plain


async def deployed(world: World, client: Client, step: ImageStep) -> tuple[str, str]:
    """A function on an image of one step: its id and the image's. Then nothing is built any more, nor uploaded."""
    spec = ImageSpec((step,))
    world.node.there.append(spec.image_id())
    app_id = (await client.ask("app.create", {"name": "demo", "detach": True}))["app_id"]
    function = {"name": "echo", "module": "m", "qualname": "echo", "image": to_plain(spec)}
    reply = await client.ask("app.publish", {"app_id": app_id, "functions": [function]})
    world.node.there.clear()
    assert "functions" in reply, reply
    return reply["functions"]["echo"], spec.image_id()


def test_a_call_waits_for_its_image_which_is_built_once(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.node.go.clear()
        client = await world.client()
        function_id, image_id = await deployed(world, client, ImageStep("base"))
        call = asyncio.create_task(client.ask("call.run", {"function_id": function_id, "value": {"size": 5}}, b"hello"))
        await until(lambda: world.node.building == 1)
        world.clock.advance(3.0)
        await asyncio.sleep(0.05)
        parts = world.control._parts
        assert parts is not None and image_id in parts.calls.loop.paused[function_id]
        assert not world.node.functions
        world.node.go.set()
        assert (await asyncio.wait_for(call, 10))["output"]["status"] == "SUCCESS"
        assert world.node.built == [image_id] and client.payload == b"hello"
        assert parts.calls.loop.paused == {}
        client.close()

    in_world(tmp_path, test)


@pytest.mark.parametrize(
    ("step", "said", "builds"),
    [
        (ImageStep("fail"), "its build failed: step 1 failed", 1),
        (ImageStep("run", secret_keys=("TOKEN",)), "read secrets that are not kept", 0),
        (ImageStep("copy", files=(FileEntry("/x", "0" * 64, 1),)), "its build failed: 1 files", 0),
    ],
)
def test_what_cannot_be_built_again_is_the_starts_error(
    tmp_path: Path, step: ImageStep, said: str, builds: int
) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        function_id, image_id = await deployed(world, client, step)
        world.node.images = list  # type: ignore[method-assign]
        client.begin("call.run", {"function_id": function_id, "value": {"size": 1}}, b"x")
        parts = world.control._parts
        assert parts is not None
        function = parts.calls.loop.cluster.functions[function_id]
        await until(lambda: function.start_failures > 0)
        assert said in function.fault and image_id in function.fault and "eploy the app again" in function.fault
        assert len(world.node.built) == builds and not world.node.functions
        client.close()

    in_world(tmp_path, test)


def test_recipes_that_are_kept_whole_lack_nothing() -> None:
    assert lacking(ImageSpec((ImageStep("base"), ImageStep("run", args=("true",))))) == ""
    assert "made elsewhere" in lacking(ImageSpec(built="im-1"))
    inner = ImageSpec((ImageStep("run", secret_keys=("TOKEN",)),))
    assert "secrets" in lacking(ImageSpec((ImageStep("docker", images=(inner,)),)))
