"""Number one: a function that runs here, in a container, and in many containers at once.

Run it with ``cadenza run examples/01_hello/hello.py``.
"""

import platform

import cadenza

app = cadenza.App("hello")


@app.function()
def square(number: int) -> int:
    print(f"computing {number} squared in {platform.node()}")
    return number * number


@app.local_entrypoint()
def main(count: int = 5) -> None:
    print("local: ", square.local(3))
    print("remote:", square.remote(4))
    print("map:   ", list(square.map(range(count))))
