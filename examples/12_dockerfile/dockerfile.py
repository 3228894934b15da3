"""Number twelve: an image from a Dockerfile with two stages, built without a registry and given a name.

Run it with ``cadenza run examples/12_dockerfile/dockerfile.py --language german``. The same from the command line, for
the default language: ``cadenza image build examples/12_dockerfile --name words``.
"""

import pathlib

import cadenza

HERE = pathlib.Path(__file__).parent
app = cadenza.App("dockerfile-example")


@app.local_entrypoint()
def main(language: str = "english") -> None:
    image = cadenza.Image.from_dockerfile(
        HERE / "Dockerfile", context_dir=HERE, build_args={"LANGUAGE": language}
    ).build()
    image.publish(f"words:{language}")
    print("built and named:", image.object_id)
    again = cadenza.Image.from_name(f"words:{language}").hydrate()
    print("found by its name:", again.object_id == image.object_id)
    print("seen by `cadenza image inspect words:" + language + "`")
