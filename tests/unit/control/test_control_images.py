"""Image builds: one at a time for each image, shared by all who ask, cancelled when nobody does."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from test_control_main import World, in_world, until

BASE = {"kind": "base", "options": {"distribution": "debian_slim"}}


def test_askers_share_one_build_and_all_see_it_whole(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.node.go.clear()
        clients = [await world.client() for _ in range(3)]
        asked = [asyncio.create_task(one.stream("image.build", {"spec": {"steps": [BASE]}})) for one in clients[:2]]
        await until(lambda: world.node.building == 1)
        asked.append(asyncio.create_task(clients[2].stream("image.build", {"spec": {"steps": [BASE]}})))
        await asyncio.sleep(0.02)
        world.node.go.set()
        for items, end in await asyncio.gather(*asked):
            assert end["t"] == "end"
            lines = [line["kind"] for head, _ in items for line in head["lines"]]
            assert lines == ["step", "done"]
            assert items[-1][0]["image"]["image_id"] == world.node.built[0]
        assert len(world.node.built) == 1
        listed = await clients[0].ask("image.list")
        assert [one["image_id"] for one in listed["images"]] == [*world.node.there, *world.node.built]
        for one in clients:
            one.close()

    in_world(tmp_path, test)


def test_a_failure_reaches_every_asker_with_the_images_id(tmp_path: Path) -> None:
    """semantics.md section 2: ImageBuildError names the image."""

    async def test(world: World) -> None:
        client = await world.client()
        items, end = await client.stream("image.build", {"spec": {"steps": [{"kind": "fail"}]}})
        assert items[0][0]["lines"][0]["text"] == "base"
        assert end["e"]["kind"] == "image_build"
        assert end["e"]["detail"]["image_id"] == world.node.built[0]
        await client.stream("image.build", {"spec": {"steps": [{"kind": "fail"}]}})
        assert len(world.node.built) == 2  # a failure is not remembered
        client.close()

    in_world(tmp_path, test)


def test_the_last_asker_to_leave_cancels_the_build(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.node.go.clear()
        one, two = await world.client(), await world.client()
        for client in (one, two):
            client.begin("image.build", {"spec": {"steps": [BASE]}})
            await client.next()
        one.close()
        two.send({"t": "ping"})
        await two.next()
        assert world.node.building == 1
        two.send({"t": "cancel", "id": 1})
        assert (await two.next())[0]["e"]["kind"] == "cancelled"
        await until(lambda: world.node.building == 0)
        two.close()

    in_world(tmp_path, test)


def test_a_recipes_files_must_be_uploaded_before(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        step = {"kind": "copy", "files": [{"path": "/x", "digest": "0" * 64, "size": 1}]}
        _, end = await client.stream("image.build", {"spec": {"steps": [step]}})
        assert end["e"]["kind"] == "conflict"
        assert world.node.built == []
        client.close()

    in_world(tmp_path, test)
