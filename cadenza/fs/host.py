"""What of this machine's network settings a build step sees: proxies, certificates, package indexes.

Pure, but for `read`. None of it goes into the image. File paths of the host never pass: nothing would be at them.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import urllib.parse
from dataclasses import dataclass, field
from typing import Iterable, Mapping, Optional

BUILD = "/.cadenza/build"
"""Where the read-only directory of a build step is mounted: certificates and apt's settings."""

CERTIFICATES = BUILD + "/certificates.pem"

CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""A host that sets one of these has its own authority, and builds need it. The first that names a file counts."""

CERTIFICATE_VARIABLES_INSIDE = (*CERTIFICATE_VARIABLES, "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")

PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")

PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "timeout", "retries", "proxy")
UV_VARIABLES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_INSECURE_HOST",
    "UV_HTTP_TIMEOUT",
)
_PLAIN = {"trusted-host", "timeout", "retries", "UV_INSECURE_HOST", "UV_HTTP_TIMEOUT"}

APT_SETTINGS = (
    "Acquire::http", "Acquire::https", "Acquire::ftp", "Acquire::Check-Valid-Until", "Acquire::Check-Date",
    "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::ForceIPv6",
)  # fmt: skip

_PASSWORD = re.compile(r"(?:^|://|\s)[^/\s:@]*:([^/\s]+)@")
"""The password of an address, with its scheme or, as proxies may be, without; the last ``@`` ends it."""


@dataclass(frozen=True)
class Host:
    """The settings, as found. ``certificates``: the host's path of a bundle, or empty."""

    certificates: str = ""
    proxies: dict[str, str] = field(default_factory=dict)
    pip: dict[str, str] = field(default_factory=dict)
    """Keys of `PIP_KEYS` to values; addresses are http(s)."""
    uv: dict[str, str] = field(default_factory=dict)
    apt: tuple[tuple[str, str], ...] = ()

    def passwords(self) -> tuple[str, ...]:
        """Those in the addresses of proxies and indexes, as they stand there and as they are meant: never shown."""
        values = [*self.proxies.values(), *self.pip.values(), *self.uv.values(), *(value for _, value in self.apt)]
        return passwords(values)

    def apt_conf(self, inside: bool) -> str:
        """Lines of apt.conf. ``inside``: for a build step, where the bundle is at `CERTIFICATES`."""
        lines = [f'{key} "{value}";' for key, value in self.apt if not key.lower().startswith("acquire::https::cainfo")]
        given = [value for key, value in self.apt if key.lower() == "acquire::https::cainfo"]
        bundle = self.certificates or (given[0] if given else "")
        if bundle:
            lines.append(f'Acquire::https::CaInfo "{CERTIFICATES if inside else bundle}";')
        if inside:
            lines.append(f'Dir::Etc::netrc "{BUILD}/auth.conf";')
            # One user id may be all that a build without root has.
            lines += ['APT::Sandbox::User "root";', 'Dpkg::Use-Pty "0";', 'DPkg::Lock::Timeout "60";']
        return "\n".join(lines) + "\n"

    def build_env(self) -> dict[str, str]:
        """Variables of every build step."""
        env = {"DEBIAN_FRONTEND": "noninteractive", "APT_CONFIG": BUILD + "/apt.conf"}
        for name, value in self.proxies.items():
            env[name] = env[name.upper()] = value
        if self.certificates:
            env.update(dict.fromkeys(CERTIFICATE_VARIABLES_INSIDE, CERTIFICATES))
        for key, value in self.pip.items():
            env["PIP_" + key.upper().replace("-", "_")] = value
        if "index-url" in self.pip:
            env["UV_DEFAULT_INDEX"] = self.pip["index-url"]
        if "extra-index-url" in self.pip:
            env["UV_INDEX"] = self.pip["extra-index-url"]
        env.update(self.uv)
        return env


def passwords(values: Iterable[str]) -> tuple[str, ...]:
    """The passwords in these addresses, as they stand there and decoded."""
    found = [one for value in values for one in _PASSWORD.findall(value)]
    return tuple(dict.fromkeys(form for one in found for form in (one, urllib.parse.unquote(one)) if form))


def _addresses(value: str) -> str:
    return " ".join(one for one in value.split() if one.startswith(("http://", "https://")))


def from_settings(
    environ: Mapping[str, str], pip_files: tuple[str, ...] = (), apt_dump: str = "", exists: Optional[object] = None
) -> Host:
    """The settings in these texts: the environment, pip's configuration files lowest first, ``apt-config dump``."""
    there = exists if callable(exists) else os.path.isfile
    proxies = {}
    found = [environ.get(one, "") for one in CERTIFICATE_VARIABLES]
    for name in PROXY_VARIABLES:
        value = environ.get(name) or environ.get(name.upper())
        if value:
            proxies[name] = value
    pip: dict[str, str] = {}
    for text in pip_files:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        for section in ("global", "install"):
            for key, value in parser.items(section) if parser.has_section(section) else ():
                if key in PIP_KEYS or key == "cert":
                    pip[key] = value
    for key in PIP_KEYS:
        value = environ.get("PIP_" + key.upper().replace("-", "_"), "")
        if value:
            pip[key] = value
    found.append(pip.pop("cert", ""))
    certificates = next((one for one in found if one and there(one)), "")
    pip = {key: value if key in _PLAIN else _addresses(value) for key, value in pip.items()}
    uv = {key: environ[key] if key in _PLAIN else _addresses(environ[key]) for key in UV_VARIABLES if environ.get(key)}
    apt = []
    for line in apt_dump.splitlines():
        name, _, rest = line.partition(" ")
        value = rest.rstrip(";")
        if value in ("", '""') or "::" not in name:
            continue
        if any(name == one or name.startswith(one + "::") for one in APT_SETTINGS):
            apt.append((name, shlex.split(value)[0] if value.startswith('"') else value))
    return Host(
        certificates,
        proxies,
        {key: value for key, value in pip.items() if value},
        {key: value for key, value in uv.items() if value},
        tuple(apt),
    )


def read(environ: Mapping[str, str]) -> Host:
    """This machine's settings now."""
    home = environ.get("HOME", "")
    files = ["/etc/pip.conf", "/etc/xdg/pip/pip.conf"]
    if home:
        files += [home + "/.pip/pip.conf", (environ.get("XDG_CONFIG_HOME") or home + "/.config") + "/pip/pip.conf"]
    if environ.get("PIP_CONFIG_FILE"):
        files.append(environ["PIP_CONFIG_FILE"])
    texts = []
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                texts.append(file.read())
        except (OSError, UnicodeDecodeError):
            continue
    try:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        dump = ""
    return from_settings(environ, tuple(texts), dump)
