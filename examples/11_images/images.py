"""Number eleven: an image from several kinds of steps, all of which work without the internet.

Instructions of a Dockerfile, a function that runs while the image is built, local files that are copied or mounted, and
a name for what came of it. Run it with ``cadenza run examples/11_images/images.py``.
"""

import json
import pathlib

import cadenza

HERE = pathlib.Path(__file__).parent
WORDS = ("one", "two", "three")


def count(language: str) -> None:
    """Runs once, while the image is built: a model would be downloaded here. A change of it, of the globals that it
    uses or of its arguments makes it run again."""
    print(f"counting in {language}")
    pathlib.Path("/model.json").write_text(json.dumps({word: len(word) for word in WORDS}))


image = (
    cadenza.Image.debian_slim()
    .dockerfile_commands(
        "ARG GREETING=hello",
        "ENV MODE=example",
        "COPY --chmod=755 site/*.txt /site/",
        "RUN <<EOF",
        "set -e",
        'echo "$GREETING from $MODE" > /site/greeting',
        "ls /site",
        "EOF",
        context_dir=HERE,
        ignore=["**/draft*"],
        build_args={"GREETING": "good morning"},
    )
    .run_function(count, args=("English",))
    .add_local_dir(HERE / "site", "/mounted", ignore=cadenza.FilePatternMatcher("draft*"))
)
app = cadenza.App("images-example", image=image)


@app.function()
def inside() -> str:
    site = sorted(one.name for one in pathlib.Path("/site").iterdir())
    mounted = sorted(one.name for one in pathlib.Path("/mounted").iterdir())
    greeting = pathlib.Path("/site/greeting").read_text().strip()
    model = json.loads(pathlib.Path("/model.json").read_text())
    return f"{greeting}; site {site}; mounted {mounted}; model {model['three']}"


@app.local_entrypoint()
def main() -> None:
    print(inside.remote())
    image.publish("example-base")
    later = cadenza.Image.from_name("example-base")
    later.hydrate()
    print("published as example-base:", later.object_id.startswith("im-"))
