"""Image builds: one at a time for each image, shared by all who ask, cancelled when nobody does."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_control_main import World, in_world, until

from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.control.functions import stripped
from cadenza.control.images import (
    CHARS_A_FRAME, LINES_A_FRAME, MAX_CHARS_KEPT, MAX_LINES_KEPT, Build, frame_of, one_of,
)  # fmt: skip
from cadenza.control.names import parse
from cadenza.protocol.nodes import BuildLine, ImageInfo
from cadenza.protocol.objects import FunctionSpec, ImageSpec, ImageStep, SecretRef

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


def test_frames_of_lines_are_bounded_in_characters() -> None:
    lines = [BuildLine("log", 1, 1, "x" * (CHARS_A_FRAME // 3)) for _ in range(10)]
    assert len(frame_of(lines, 0)) == 3 and len(frame_of(lines, 9)) == 1 and frame_of(lines, 10) == []
    large = BuildLine("log", 1, 1, "x" * (2 * CHARS_A_FRAME))
    assert frame_of([large, *lines], 0) == [large]
    assert len(frame_of([BuildLine("log", 1, 1, "x")] * 500, 0)) == LINES_A_FRAME


def test_what_is_kept_of_a_build_for_late_askers_is_bounded() -> None:
    build = Build()
    for number in range(1000):
        build.add(BuildLine("log", 1, 1, str(number) + "x" * 9_000))
    assert sum(len(one.text) for one in build.lines) <= MAX_CHARS_KEPT
    assert build.lines[-1].text.startswith("999x") and build.first + len(build.lines) == 1000
    for number in range(2 * MAX_LINES_KEPT):
        build.add(BuildLine("log", 1, 1, str(number)))
    assert len(build.lines) <= MAX_LINES_KEPT and build.first + len(build.lines) == 1000 + 2 * MAX_LINES_KEPT


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


async def built(client: Any, *words: str) -> list[str]:
    """Images that are built; their ids."""
    found = []
    for word in words:
        items, _ = await client.stream("image.build", {"spec": {"steps": [BASE, {"kind": "run", "args": [word]}]}})
        found.append(items[-1][0]["image"]["image_id"])
    return found


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one", ("", "one", "latest")),
        ("one:v2", ("", "one", "v2")),
        ("prod/one", ("prod", "one", "latest")),
        ("prod/one.a_b-c:2026.1", ("prod", "one.a_b-c", "2026.1")),
    ],
)
def test_a_name_is_environment_name_and_tag(text: str, parts: tuple[str, str, str]) -> None:
    """semantics.md section 13.2: the tag is ``latest`` where none is given."""
    assert parse(text) == parts


@pytest.mark.parametrize("text", ["", "a:", ":a", "a/b/c", "/a", "a b", "im-123", "prod/im-1", "ä", "a" * 65, "a\n"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse(text)


def test_a_name_is_published_moved_and_deleted_and_its_history_stays(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        missing = await client.ask("image.publish", {"image_id": "im-none", "name": "tool"})
        assert missing["kind"] == "not_found" and "not built" in missing["message"]
        one, two = await built(client, "1", "2")
        first = await client.ask("image.publish", {"image_id": one, "name": "tool"})
        assert (first["name"], first["tag"], first["environment"]) == ("tool", "latest", "main")
        world.clock.advance(5)
        await client.ask("image.publish", {"image_id": two, "name": "main/tool:latest"})
        await client.ask("image.publish", {"image_id": one, "name": "tool:v1"})
        assert (await client.ask("image.find", {"name": "tool"}))["image_id"] == two
        assert (await client.ask("image.find", {"name": "tool:v1"}))["image_id"] == one
        listed = (await client.ask("image.names", {"prefix": "tool:l"}))["names"]
        assert [(row["tag"], row["image_id"]) for row in listed] == [("latest", two)]
        detail = await client.ask("image.inspect", {"image_id": one})
        assert detail["names"] == ["main/tool:v1"]
        assert await client.ask("image.unpublish", {"name": "tool"}) == {}
        assert (await client.ask("image.find", {"name": "tool"}))["kind"] == "not_found"
        assert (await client.ask("image.unpublish", {"name": "tool"}))["kind"] == "not_found"
        rows = (await client.ask("image.history", {"name": "tool:latest"}))["names"]
        assert [row["image_id"] for row in rows] == [two, one]
        assert len((await client.ask("image.history", {"name": "tool"}))["names"]) == 3
        client.close()
        await world.control.close()
        await world.start()
        client = await world.client()
        assert [row["tag"] for row in (await client.ask("image.names"))["names"]] == ["v1"], "kept over a restart"
        gone = await client.ask("image.find", {"name": "tool:v1"})
        assert gone["kind"] == "not_found" and one in gone["message"], "the new node has no such image"
        client.close()

    in_world(tmp_path, test)


def test_names_belong_to_environments_and_follow_them(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        (one,) = await built(client, "1")
        for name in ("dev", "test"):
            await client.ask("environment.create", {"name": name})
        await client.ask("image.publish", {"image_id": one, "name": "dev/tool"})
        await client.ask("image.publish", {"image_id": one, "name": "tool", "environment": "test"})
        assert (await client.ask("image.find", {"name": "tool"}))["kind"] == "not_found"
        assert (await client.ask("image.publish", {"image_id": one, "name": "none/tool"}))["kind"] == "not_found"
        await client.ask("environment.update", {"name": "dev", "new_name": "dev2"})
        assert (await client.ask("image.find", {"name": "dev2/tool"}))["image_id"] == one
        await client.ask("environment.delete", {"name": "dev2"})
        await client.ask("environment.create", {"name": "dev2"})
        assert (await client.ask("image.names", {"environment": "dev2"}))["names"] == []
        assert (await client.ask("image.history", {"name": "dev2/tool"}))["kind"] == "not_found"
        assert len((await client.ask("image.names", {"environment": "test"}))["names"]) == 1
        client.close()

    in_world(tmp_path, test)


def test_an_id_may_be_shortened_as_far_as_it_is_one(tmp_path: Path) -> None:
    images = [ImageInfo("im-abcd1", 1, 1.0, 1.0), ImageInfo("im-abcd", 1, 1.0, 1.0), ImageInfo("im-abef", 1, 1.0, 1.0)]
    assert one_of(images, "im-abe").image_id == "im-abef"
    assert one_of(images, "im-abcd").image_id == "im-abcd", "a whole id is meant before those that begin with it"
    with pytest.raises(InvalidError, match="2 images"):
        one_of(images, "im-abc")
    for word in ("", "im-", "im-a", "im-x12"):
        with pytest.raises(NotFoundError):
            one_of(images, word)


def test_an_image_in_use_is_not_removed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        app_id, functions = await client.app("echo")
        (image_id,) = world.node.there
        refused = await client.ask("image.remove", {"image_id": image_id})
        assert refused["kind"] == "conflict" and "the app demo" in refused["message"]
        await client.ask("call.run", {"function_id": functions["echo"], "value": {"size": 1}}, b"x")
        running = await client.ask("image.remove", {"image_id": image_id, "force": True})
        assert running["kind"] == "conflict" and "the container ta-" in running["message"], "not even by force"
        await client.ask("app.stop", {"app": app_id})
        await until(lambda: not world.node.functions)
        await client.ask("image.publish", {"image_id": image_id, "name": "kept"})
        named = await client.ask("image.remove", {"image_id": image_id})
        assert named["kind"] == "conflict" and "main/kept:latest" in named["message"]
        world.node.lent, world.node.built = (image_id,), [image_id]
        lent = await client.ask("image.remove", {"image_id": image_id, "force": True})
        assert lent["kind"] == "conflict" and "starting or ending" in lent["message"], (
            "what stays is not called removed"
        )
        world.node.lent, world.node.there = (), [image_id]
        assert await client.ask("image.remove", {"image_id": image_id, "force": True}) == {}
        assert world.node.orders[-1].images == (image_id,) and not world.node.there
        assert (await client.ask("image.remove", {"image_id": image_id}))["kind"] == "not_found"
        client.close()

    in_world(tmp_path, test)


def test_collections_take_what_nothing_has_used_for_long(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        app, (_, old, named, recent) = await client.app("echo"), (
            world.node.there[0], *await built(client, "old", "named", "recent")
        )  # fmt: skip
        await client.ask("image.publish", {"image_id": named, "name": "tool"})
        world.node.used_at[recent] = world.clock.now() - 86_400
        looked = await client.ask("image.collect", {"dry_run": True})
        assert (looked["images"], looked["objects"], looked["kept_size"], looked["dry_run"]) == ([], 3, 500, True)
        looked = await client.ask("image.collect", {"dry_run": True, "unused_days": 7})
        assert looked["images"] == [old] and old in world.node.built
        await client.ask("image.collect", {"unused_days": 0.5})
        assert world.node.orders[-1].images == (old, recent)
        assert app and named in world.node.built
        client.close()

    in_world(tmp_path, test)


def test_a_collection_by_itself_once_a_day(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        parts = world.control._parts
        assert parts is not None
        keeping, (before,) = parts.keeping, world.node.there
        keeping.tick()
        assert keeping._sweeping is None, "not at once: what the first programs want must be in use before"
        world.clock.advance(61)
        keeping.tick()
        await until(lambda: len(world.node.orders) == 1)
        assert world.node.orders[0].images == (before,) and not world.node.there
        await keeping.sweep()
        assert len(world.node.orders) == 1, "once a day"
        world.clock.advance(86_400)
        await keeping.sweep()
        assert len(world.node.orders) == 2

    in_world(tmp_path, test)


def test_a_push_tells_its_progress_and_ends_with_its_client(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        (one,) = await built(client, "1")
        await client.ask("secret.create", {"name": "registry", "values": {"REGISTRY_USERNAME": "me"}})
        body = {"image_id": one[:12], "ref": "127.0.0.1:5000/x:1", "secrets": [{"name": "registry"}]}
        items, end = await client.stream("image.push", body)
        assert end["t"] == "end"
        assert [line for item, _ in items for line in item["lines"]] == ["layer 0", "layer 1", "layer 2"]
        assert items[-1][0]["digest"].startswith("sha256:")
        order = world.node.pushed[0]
        assert (order.image_id, order.credentials) == (one, {"REGISTRY_USERNAME": "me"})
        _, end = await client.stream("image.push", {**body, "ref": "refused/x"})
        assert end["e"]["kind"] == "permission_denied"
        client.begin("image.push", {**body, "ref": "hang/x"})
        await until(world.node.pushing.is_set)
        client.close()
        await until(lambda: not world.node.pushing.is_set())

    in_world(tmp_path, test)


def test_a_log_is_cut_to_its_last_lines(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        lines = (await client.ask("image.log", {"image_id": "im-1", "layers": 3}))["lines"]
        assert [one["text"] for one in lines] == ["im-1 0", "im-1 1", "im-1 2"]
        lines = (await client.ask("image.log", {"image_id": "im-1", "layers": 0, "entries": 2}))["lines"]
        assert [one["text"] for one in lines] == ["im-1 7", "im-1 8"]
        client.close()

    in_world(tmp_path, test)


def test_secrets_reach_the_images_that_steps_read_and_are_not_kept(tmp_path: Path) -> None:
    inner = ImageSpec((ImageStep("base", secrets={"A": "1"}, secret_refs=(SecretRef(name="x"),)),))
    spec = FunctionSpec("f", image=ImageSpec((ImageStep("docker", images=(inner,)), ImageStep("run"))))
    kept = stripped(spec)
    (below,) = kept.image.steps[0].images
    assert below.steps[0].secrets == {} and below.steps[0].secret_refs == ()
    assert kept.image.image_id() == spec.image.image_id()
    assert stripped(kept) is kept

    async def test(world: World) -> None:
        client = await world.client()
        await client.ask("secret.create", {"name": "x", "values": {"TOKEN": "t"}})
        seen = []
        world.node.build = lambda order, progress: seen.append(order) or done(order)  # type: ignore[method-assign,func-returns-value]

        async def done(order: Any) -> ImageInfo:
            return ImageInfo(order.image_id, 1, 1.0, 1.0)

        step = {"kind": "docker", "images": [{"steps": [{"kind": "base", "secret_refs": [{"name": "x"}]}]}]}
        await client.stream("image.build", {"spec": {"steps": [step]}, "ignore_cache": True})
        assert seen[0].spec.steps[0].images[0].steps[0].secrets == {"TOKEN": "t"}
        assert seen[0].ignore_cache
        client.close()

    in_world(tmp_path, test)
