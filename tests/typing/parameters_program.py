"""Parameters of classes as pyright sees them: keyword arguments of the constructor. (mypy does not look into the
decorator of an instance, ``@app.cls()``, and so takes the class to have no arguments.)"""

from __future__ import annotations

import cadenza

app = cadenza.App("typed")


@app.cls()
class Model:
    size: int = cadenza.parameter(default=3)
    name: str = cadenza.parameter()

    @cadenza.method()
    def get(self) -> int:
        return self.size


def use() -> None:
    Model(name="a", size=3).get.remote()
    Model()  # error
    Model(name=3)  # error
    Model("a")  # error
    Model(name="a", other=1)  # error
