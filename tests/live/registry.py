"""Debian's docker-registry on a free loopback port, and images made for it by umoci and skopeo."""

from __future__ import annotations

import json
import hashlib
import os
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

START_S = 20.0
UNPACKED = Path(__file__).resolve().parents[2] / ".cache/docker-registry/usr/bin/docker-registry"
"""Where `scripts/setup.sh --dev` puts it: its package is not installed, for that would start a service."""


class DockerRegistry:
    """A registry with its data below ``path``. ``htpasswd``: its users, as ``htpasswd -B`` writes them."""

    def __init__(self, path: Path, htpasswd: str = "") -> None:
        path.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.path = path
        auth = ""
        if htpasswd:
            (path / "users").write_text(htpasswd)
            auth = f"auth: {{htpasswd: {{realm: test, path: {path}/users}}}}\n"
        (path / "config.yml").write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {path}/data}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '{self.host}'}}\n{auth}"
        )
        self._log = open(path / "log", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(
            [shutil.which("docker-registry") or str(UNPACKED), "serve", str(path / "config.yml")],
            stdout=self._log, stderr=self._log,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{self.host}/v2/", timeout=2)
                break
            except urllib.error.HTTPError:
                break  # it wants a login: it is there
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((path / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def skopeo(self, *argv: str) -> str:
        """Run skopeo, with plain HTTP on both ends; what it prints."""
        tls = {"copy": ["--src-tls-verify=false", "--dest-tls-verify=false"], "inspect": ["--tls-verify=false"]}
        command = ["skopeo", "--insecure-policy", argv[0], *tls[argv[0]], *argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout


def umoci(*argv: str) -> None:
    """Run umoci."""
    done = subprocess.run(["umoci", *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


class Layout:
    """An OCI image layout in a directory, made by umoci: layers are tars that the caller gives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        umoci("init", "--layout", str(path))

    def image(self, tag: str, layers: list[Path], *config: str) -> None:
        """An image ``tag`` of these tars; ``config``: arguments of ``umoci config``."""
        umoci("new", "--image", f"{self.path}:{tag}")
        for one in layers:
            umoci("raw", "add-layer", "--image", f"{self.path}:{tag}", str(one))
        if config:
            umoci("config", "--image", f"{self.path}:{tag}", *config)

    def unpack(self, tag: str, bundle: Path) -> Path:
        """Where umoci unpacked an image."""
        umoci("unpack", "--image", f"{self.path}:{tag}", str(bundle))
        return bundle / "rootfs"

    def blob(self, digest: str) -> bytes:
        """A blob's bytes."""
        return (self.path / "blobs" / digest.replace(":", "/")).read_bytes()

    def put(self, body: bytes) -> str:
        """Keep a blob; its digest."""
        digest = hashlib.sha256(body).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(body)
        return f"sha256:{digest}"

    def index(
        self, tag: str, images: dict[str, str], media_type: str = "application/vnd.oci.image.index.v1+json"
    ) -> None:
        """A multi-platform index ``tag`` of images by platform."""
        whole = json.loads((self.path / "index.json").read_text())
        rows = {one["annotations"]["org.opencontainers.image.ref.name"]: one for one in whole["manifests"]}
        found = []
        for platform, name in images.items():
            row = {key: rows[name][key] for key in ("mediaType", "digest", "size")}
            parts = platform.split("/")
            place = dict(zip(("os", "architecture", "variant"), parts))
            found.append({**row, "platform": place})
        body = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": found}).encode()
        entry = {
            "mediaType": media_type, "digest": self.put(body), "size": len(body),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }  # fmt: skip
        whole["manifests"].append(entry)
        (self.path / "index.json").write_text(json.dumps(whole))


def write_tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A pax tar of these entries."""
    import io

    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
