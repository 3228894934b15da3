"""Number ten: what Modal does not have: retries by kind of failure, calls made once, bounded maps, hard budgets.

Run it with ``cadenza run examples/10_beyond/beyond.py``.
"""

import cadenza

app = cadenza.App("beyond", budget=cadenza.Budget(container_seconds=600))


@app.function(retries=cadenza.Retries(max_retries=3, on=(OSError,), not_on=(PermissionError,)), timeout=60)
def read(path: str) -> str:
    """A missing file is tried again, a forbidden one is not, and neither is a bug."""
    if path == "/forbidden":
        raise PermissionError(path)
    with open(path) as file:
        return file.read()


@app.function(timeout=60)
def double(number: int) -> int:
    return 2 * number


@app.local_entrypoint()
def main() -> None:
    try:
        read.remote("/forbidden")
    except PermissionError as error:
        print("not tried again:", error)
    first, second = double.spawn_once("order-17", 21), double.spawn_once("order-17", 21)
    print("one call:", first.object_id == second.object_id, first.get())
    print("five at a time:", sum(double.map(range(100), max_in_flight=5)))
    call = double.spawn_map(range(3), return_call=True)
    print("a handle:", [call.get(index=index) for index in range(3)])
