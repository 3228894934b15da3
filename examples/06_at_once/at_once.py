"""Number six: many inputs in one container at once, and inputs gathered into batches.

Run it with ``cadenza run examples/06_at_once/at_once.py``.
"""

import asyncio

import cadenza

app = cadenza.App("at-once")


@app.function(max_containers=1)
@cadenza.concurrent(max_inputs=50)
async def wait_a_bit(number: int) -> int:
    await asyncio.sleep(0.2)
    return number


@app.function(max_containers=1)
@cadenza.batched(max_batch_size=8, wait_ms=200)
def square(numbers: list[int]) -> list[tuple[int, int]]:
    """Called with single numbers; sees lists of them, and gives a list of the same length."""
    return [(number * number, len(numbers)) for number in numbers]


@app.local_entrypoint()
def main() -> None:
    print("fifty at once:", sum(wait_a_bit.map(range(50))))
    results = list(square.map(range(16)))
    print("squares:", [value for value, _ in results])
    print("largest batch:", max(size for _, size in results))
