"""Number two: what happens when things go wrong: retries, timeouts, exceptions, background calls.

Run it with ``cadenza run examples/02_failures/failures.py``.
"""

import time

import cadenza

app = cadenza.App("failures")


@app.function(retries=2, max_containers=1)
def flaky(path: str) -> str:
    """Fails the first time it runs in a container, for want of a file that it then makes."""
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        with open(path, "w") as file:
            file.write("second time lucky")
        raise


@app.function(timeout=1)
def slow() -> None:
    time.sleep(60)


@app.function()
def divide(a: int, b: int) -> float:
    return a / b


@app.function()
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.local_entrypoint()
def main() -> None:
    print("retried:", flaky.remote("/tmp/note"))

    try:
        slow.remote()
    except cadenza.exception.FunctionTimeoutError as error:
        print("timeout:", error)

    try:
        divide.remote(1, 0)
    except ZeroDivisionError as error:
        print("the function's own exception:", repr(error))

    print("some failed:", list(divide.map([6, 6, 6], [1, 0, 3], return_exceptions=True)))

    call = nap.spawn(0.2)
    try:
        call.get(timeout=0)
    except TimeoutError:
        print("spawned:", call.object_id[:3] + "... is still running")
    print("and done:", call.get())
