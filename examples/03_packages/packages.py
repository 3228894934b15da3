"""Number three: an image with packages, environment variables and a secret.

Run it with ``cadenza run examples/03_packages/packages.py``.
"""

import os

import cadenza

image = cadenza.Image.debian_slim().pip_install("six").env({"GREETING": "hello"})
app = cadenza.App("packages", image=image)

with image.imports():
    import six


@app.function(secrets=[cadenza.Secret.from_dict({"PASSWORD": "correct horse"})])
def inside() -> str:
    return f"{os.environ['GREETING']} from six {six.__version__}; the secret has {len(os.environ['PASSWORD'])} letters"


@app.local_entrypoint()
def main() -> None:
    print(inside.remote())
