"""Resources: semantics.md sections 11.2, 11.3 and 34."""

from __future__ import annotations

import pytest

from cadenza.base import resources
from cadenza.base.errors import InvalidError
from cadenza.base.resources import Gpu, Resources


def test_defaults() -> None:
    parsed = resources.parse()
    assert (parsed.cpu_milli, parsed.memory_mib) == (125, 128)
    assert parsed.cpu_limit_milli == 125 + 16_000
    assert parsed.memory_limit_mib == 0


def test_requests_and_limits() -> None:
    parsed = resources.parse(cpu=(0.5, 2), memory=(256, 1024), ephemeral_disk=2048)
    assert (parsed.cpu_milli, parsed.cpu_limit_milli) == (500, 2000)
    assert (parsed.memory_mib, parsed.memory_limit_mib, parsed.disk_mib) == (256, 1024, 2048)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"cpu": "2"}, "cpu"),
        ({"cpu": -1}, "positive"),
        ({"cpu": (2, 1)}, "below"),
        ({"cpu": (1, 2, 3)}, "tuple"),
        ({"memory": 1.5}, "integer"),
        ({"memory": True}, "integer"),
        ({"memory": 0}, "positive"),
        ({"ephemeral_disk": 4_000_000}, "3145728"),
        ({"gpu": 3}, "string"),
        ({"gpu": "H100:x"}, "integer"),
        ({"gpu": "H100:9"}, "between 1 and 8"),
        ({"gpu": "A10:5"}, "between 1 and 4"),
        ({"gpu": "GTX"}, "unknown type"),
    ],
)
def test_nonsense_is_named(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidError, match=word):
        resources.parse(**arguments)  # type: ignore[arg-type]


def test_gpus() -> None:
    asked = resources.parse(gpu=["h100:2", None, "a10g", "A100"]).gpus
    assert asked == (Gpu("H100", 2), Gpu("A10"), Gpu("A100-40GB"))
    assert resources.gpu_text((Gpu("H100", 2), Gpu("T4"))) == "H100:2, T4"


def test_the_cards_that_serve_a_wish() -> None:
    """semantics.md section 11.3: an exact wish is that card alone, H100 may be a larger one, any is each of them."""
    wishes = resources.parse(gpu=["H100!:2", "H100", "T4"]).gpus
    assert resources.gpu_choices(wishes) == [Gpu("H100", 2), Gpu("H100"), Gpu("H200"), Gpu("T4")]
    assert {"T4", "H100", "B300"} <= {one.type for one in resources.gpu_choices(resources.parse(gpu="any").gpus)}


def test_arithmetic() -> None:
    room = Resources(cpu_milli=1000, memory_mib=1000, disk_mib=10)
    want = Resources(cpu_milli=400, memory_mib=500)
    assert want.fits_in(room) and want.plus(want).fits_in(room)
    assert not want.plus(want).plus(want).fits_in(room)
    assert room.minus(want).plus(want) == room
