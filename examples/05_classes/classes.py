"""Number five: a class whose instances live in containers, with parameters, hooks and variants.

Run it with ``cadenza run examples/05_classes/classes.py``.
"""

import cadenza

app = cadenza.App("classes")


@app.cls(scaledown_window=10)
class Model:
    """Loads once for each container, answers many calls. Each ``size`` has containers of its own."""

    size: int = cadenza.parameter(default=3)

    @cadenza.enter()
    def load(self) -> None:
        self.weights = list(range(self.size))
        self.calls = 0

    @cadenza.method()
    def score(self, value: int) -> tuple[int, int]:
        self.calls += 1
        return sum(weight * value for weight in self.weights), self.calls

    @cadenza.method()
    def stream(self, value: int):
        for weight in self.weights:
            yield weight * value

    @cadenza.exit()
    def farewell(self) -> None:
        print(f"size {self.size} answered {self.calls} calls")


@app.local_entrypoint()
def main() -> None:
    model = Model()
    print("score: ", [model.score.remote(value)[0] for value in (1, 2)])
    print("map:   ", sorted(value for value, _ in model.score.map(range(5))))
    print("stream:", list(Model(size=4).stream.remote_gen(10)))
    print("bigger:", Model.with_options(memory=256)(size=5).score.remote(1)[0])
