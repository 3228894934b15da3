"""Number seven, first half: an app that stays. ``cadenza deploy examples/07_deploy/counter.py``."""

import cadenza

app = cadenza.App("counter-example")


@app.function()
def count_words(text: str) -> int:
    return len(text.split())


@app.cls()
class Greeter:
    greeting: str = cadenza.parameter(default="hello")

    @cadenza.method()
    def greet(self, name: str) -> str:
        return f"{self.greeting} {name}"
