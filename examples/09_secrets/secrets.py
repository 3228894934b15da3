"""Number nine: a secret that the server keeps, sealed. Make it first; its value is asked for and never shown:

cadenza secret create example-database PASSWORD
cadenza run examples/09_secrets/secrets.py
"""

import os

import cadenza

app = cadenza.App("secrets-example")


@app.function(secrets=[cadenza.Secret.from_name("example-database", required_keys=["PASSWORD"])])
def connect() -> str:
    return f"connected with a password of {len(os.environ['PASSWORD'])} letters"


@app.local_entrypoint()
def main() -> None:
    print(connect.remote())
