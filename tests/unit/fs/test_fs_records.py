"""What the builder remembers, and what of it is believed."""

from __future__ import annotations

import json

import pytest

from cadenza.fs.recipe import Settings
from cadenza.fs.records import Believer, ImageRecord, write
from cadenza.protocol.nodes import ImageInfo


@pytest.mark.parametrize(
    ("machine", "here", "believed"),
    [
        ("x86_64", "x86_64", True),
        ("aarch64", "aarch64", True),
        ("aarch64", "x86_64", False),
        (None, "x86_64", True),
        (None, "aarch64", False),
    ],
)
def test_an_image_of_another_architecture_is_not_believed(machine: str | None, here: str, believed: bool) -> None:
    """docs/formats/records.md: a record that names no architecture is of x86_64."""
    record = ImageRecord(ImageInfo("im-a", 1, 0.0, 0.0, tree="00" * 32), Settings(), ())
    value = json.loads(write(record))
    del value["machine"]
    if machine is not None:
        value["machine"] = machine
    found = Believer("this boot", here).image(json.dumps(value).encode())
    assert (found is not None) is believed
    assert found is None or found.machine == here
