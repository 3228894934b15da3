"""Where things are and how they are set: a frozen dataclass from a TOML file and the environment.

Precedence: environment ``CADENZA_<KEY>``, then ``MODAL_<KEY>`` for keys that Modal has too, then the active profile of
``config.toml`` in the configuration directory, then the default. All faults are reported at once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Mapping, Optional

from cadenza.base.errors import InvalidError

MAX_SOCKET_PATH_BYTES = 100
"""The kernel's limit for a unix socket's path is 108 bytes with its final NUL."""


@dataclass(frozen=True)
class Config:
    """Every setting with its default. Names are those of semantics.md section 24 where Modal has the setting."""

    server_url: str = ""
    """Empty: this user's embedded server, started when needed. Else ``unix:/path/to/socket``."""
    token_id: str = ""
    token_secret: str = field(default="", repr=False)
    environment: str = ""
    """Empty: the workspace's default, which is ``main`` where nobody changed it."""
    loglevel: str = "WARNING"
    traceback: bool = False
    force_build: bool = False
    ignore_cache: bool = False
    logs_timeout: float = 10.0
    max_throttle_wait: Optional[float] = None
    heartbeat_interval: float = 15.0
    dev_suffix: str = "dev"
    image_builder_version: str = ""
    # Ours.
    isolation: str = "standard"
    """``standard`` or ``strong`` for functions; see docs/operate/isolation.md."""
    runtime: str = "auto"
    """``auto``, ``crun``, ``runc``, ``runsc`` or ``process``."""
    idle_stop_s: float = 300.0
    """An embedded server that nobody asked to keep stops after this long without clients, apps and containers."""
    pool_containers: int = 1
    """Warm generic containers kept ready for each recently used image; 0 turns the pool off."""
    require_token: bool = False
    """Whether the server wants a token even of its own user; see docs/operate/accounts.md."""
    durability: str = "process"
    """``process``: what was accepted survives any crash of ours. ``power``: also a loss of power (an fsync each)."""
    secrets_key_command: str = ""
    """A shell command that prints the key under which secrets are sealed; empty: the file ``secrets.key`` in the
    configuration directory. See docs/operate/secrets.md."""
    log_retention_days: float = 30.0
    """Output of containers, and recent inputs, are kept for so long."""
    log_max_mib: int = 256
    """How much of one app's output is kept, as it is stored (compressed); the oldest goes first."""
    metrics_address: str = ""
    """``host:port`` of an endpoint for Prometheus, for example ``127.0.0.1:9400``; empty: none."""
    metrics_prefix: str = "modal"
    """What the names of exported metrics begin with: ``modal`` or ``cadenza``."""
    otel_endpoint: str = ""
    """Base address of an OpenTelemetry collector (OTLP over HTTP); empty: none. Needs cadenza[otel]."""
    otel_traces: bool = False
    """Whether inputs are sent to the collector as spans too."""
    node_labels: str = ""
    """What this machine is, for ``region=`` and ``cloud=`` of functions: ``region=home,cloud=local,zone=cellar``."""
    store: str = ""
    """Where images' content is kept beyond this machine's disk, for other machines: ``s3://bucket/prefix``,
    ``gs://bucket/prefix``, ``az://container/prefix``, ``file:///path``. Empty: this machine's disk alone."""
    store_options: str = field(default="", repr=False)
    """Settings of that store, ``name=value``, commas between: ``endpoint=http://...,access_key_id=...``."""
    store_limit_gib: float = 0.0
    """How much content this machine keeps; above it goes what was used longest ago and ``store`` has. 0: no limit."""
    peers: str = ""
    """Other machines' ``peer_address``, as ``http://host:port``, commas between: asked for content before ``store``."""
    peer_address: str = ""
    """``host:port`` on which this machine gives content to others; empty: it gives none."""
    peer_key: str = field(default="", repr=False)
    """What machines show each other when they ask for content; needed with ``peer_address`` beyond this machine."""
    image_retention_days: float = 30.0
    """Images that no app, name or container has had for so long are removed."""
    prices: str = ""
    """Money for a second of each thing, for budgets: ``cpu=...,memory=...,gpu.H100=...`` (a core, a GiB, a GPU)."""
    data_dir: str = ""
    state_dir: str = ""
    runtime_dir: str = ""
    config_dir: str = ""

    @property
    def socket_path(self) -> str:
        """The unix socket on which this user's server listens."""
        if self.server_url.startswith("unix:"):
            return self.server_url[len("unix:") :]
        return os.path.join(self.runtime_dir, "server.sock")

    @property
    def lock_path(self) -> str:
        """The lock file that says which process is this user's server."""
        return os.path.join(self.state_dir, "server.lock")


# Not token_id and token_secret: a credential of another service is neither ours to send nor an error to have.
_SHARED_WITH_MODAL = {
    "server_url", "environment", "loglevel", "traceback", "force_build", "ignore_cache",
    "logs_timeout", "max_throttle_wait", "heartbeat_interval", "dev_suffix", "image_builder_version",
}  # fmt: skip
_CHOICES = {
    "isolation": ("standard", "strong"),
    "runtime": ("auto", "crun", "runc", "runsc", "process"),
    "durability": ("process", "power"),
    "metrics_prefix": ("modal", "cadenza"),
}


LABELS = {"cloud": "local", "region": "local", "zone": "local"}
"""A machine's labels where its configuration does not say."""


def node_labels(text: str) -> dict[str, str]:
    """The labels of ``Config.node_labels``, over `LABELS`. ValueError says what is wrong."""
    found = dict(LABELS)
    for one in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in one.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"{one!r} is no label: write name=value, with commas between them")
        found[name] = value
    return found


def _directories(environ: Mapping[str, str]) -> dict[str, str]:
    """The XDG directories; ``CADENZA_HOME`` puts everything below one directory instead."""
    home = environ.get("CADENZA_HOME")
    if home:
        root = os.path.abspath(os.path.expanduser(home))
        found = {
            "data_dir": os.path.join(root, "data"),
            "state_dir": os.path.join(root, "state"),
            "runtime_dir": os.path.join(root, "run"),
            "config_dir": os.path.join(root, "config"),
        }
    else:
        user_home = environ.get("HOME") or os.path.expanduser("~")
        state = environ.get("XDG_STATE_HOME") or os.path.join(user_home, ".local/state")
        run = environ.get("XDG_RUNTIME_DIR") or ""
        if not run or not os.path.isdir(run):
            run = os.path.join(state, "cadenza", "run")
        else:
            run = os.path.join(run, "cadenza")
        found = {
            "data_dir": os.path.join(
                environ.get("XDG_DATA_HOME") or os.path.join(user_home, ".local/share"), "cadenza"
            ),
            "state_dir": os.path.join(state, "cadenza"),
            "runtime_dir": run,
            "config_dir": os.path.join(environ.get("XDG_CONFIG_HOME") or os.path.join(user_home, ".config"), "cadenza"),
        }
    if len(os.path.join(found["runtime_dir"], "server.sock").encode()) > MAX_SOCKET_PATH_BYTES:
        found["runtime_dir"] = f"/tmp/cadenza-{os.getuid()}"
    return found


def _convert(name: str, kind: str, raw: Any) -> Any:
    if raw is None or not isinstance(raw, str):
        if kind == "bool" and not isinstance(raw, bool):
            raise ValueError("must be true or false")
        if kind == "int" and (isinstance(raw, bool) or not isinstance(raw, int)):
            raise ValueError("must be an integer")
        if kind in ("float", "Optional[float]") and (isinstance(raw, bool) or not isinstance(raw, (int, float))):
            raise ValueError("must be a number")
        if kind == "str":
            raise ValueError("must be a string")
        return raw
    if kind == "bool":
        lowered = raw.strip().lower()
        if lowered in ("1", "true", "yes", "on"):
            return True
        if lowered in ("", "0", "false", "no", "off"):
            return False
        raise ValueError("must be true or false")
    if kind == "int":
        return int(raw)
    if kind == "float":
        return float(raw)
    if kind == "Optional[float]":
        return None if raw.strip().lower() in ("", "none") else float(raw)
    if name == "node_labels":
        node_labels(raw)
    if name in _CHOICES and raw not in _CHOICES[name]:
        raise ValueError("must be one of " + ", ".join(_CHOICES[name]))
    return raw


def _profile(path: Path, environ: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
    """The active profile's settings; a file that is not there is an empty one."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        faults.append(f"{path}: {error.strerror}")
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib  # type: ignore[import-not-found, no-redef, unused-ignore]
        except ImportError:
            faults.append(f"{path}: reading it needs Python 3.11 or the package tomli")
            return {}
    try:
        document = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        faults.append(f"{path}: {error}")
        return {}
    profiles = {name: table for name, table in document.items() if isinstance(table, dict)}
    if loose := sorted(document.keys() - profiles.keys()):
        faults.append(f"{path}: {', '.join(loose)}: settings belong to a profile; put a line [default] above them")
    wanted = environ.get("CADENZA_PROFILE") or environ.get("MODAL_PROFILE")
    if wanted:
        if wanted not in profiles:
            faults.append(f"{path}: no profile {wanted!r}; there are {', '.join(sorted(profiles)) or 'none'}")
        return dict(profiles.get(wanted, {}))
    for table in profiles.values():
        if table.get("active") is True:
            return dict(table)
    return dict(profiles.get("default", {}))


def load(environ: Optional[Mapping[str, str]] = None) -> Config:
    """The configuration in force. InvalidError lists every fault, one a line."""
    env = os.environ if environ is None else environ
    faults: list[str] = []
    values: dict[str, Any] = _directories(env)
    kinds = {one.name: str(one.type) for one in fields(Config)}
    if values["config_dir"]:
        path = Path(values["config_dir"]) / "config.toml"
        for name, raw in _profile(path, env, faults).items():
            if name == "active":
                continue
            if name not in kinds:
                faults.append(f"{path}: unknown setting {name!r}")
                continue
            try:
                values[name] = _convert(name, kinds[name], raw)
            except ValueError as error:
                faults.append(f"{path}: {name} = {raw!r}: {error}")
    for name, kind in kinds.items():
        keys = ["CADENZA_" + name.upper()] + (["MODAL_" + name.upper()] if name in _SHARED_WITH_MODAL else [])
        for key in keys:
            if key in env:
                if key == "MODAL_SERVER_URL" and not env[key].startswith("unix:"):
                    continue  # an address of Modal's own servers; ours are reached by a socket
                try:
                    values[name] = _convert(name, kind, env[key])
                except ValueError as error:
                    faults.append(f"{key}={env[key]!r}: {error}")
                break
    if faults:
        raise InvalidError("the configuration has faults:\n" + "\n".join("  " + one for one in faults))
    return Config(**values)
