"""Who pulls and pushes: credentials from a secret's variables, or from what ``docker login`` left.

Three kinds of secrets (semantics.md 13.2): a name and a password, AWS keys for its registry (ECR), a Google service
account. ECR gives a password for 12 hours against a signed request; the signature (AWS Signature Version 4) is made
here with the standard library.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import hmac
import json
import os
import re
from dataclasses import dataclass
from typing import Mapping, Optional

from cadenza.base.errors import InvalidError
from cadenza.fs.reference import DEFAULT_ALIASES, DEFAULT_HOST, DEFAULT_NAME

BASIC_KEYS = ("REGISTRY_USERNAME", "REGISTRY_PASSWORD")
AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
AWS_ROLE_KEY = "AWS_ROLE_ARN"
GOOGLE_KEY = "SERVICE_ACCOUNT_JSON"
DOCKER_CONFIG_BYTES = 4 << 20

_ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(?P<fips>-fips)?\.(?P<region>[a-z0-9-]+)\.(?P<domain>amazonaws\.com(?:\.cn)?)"
)


@dataclass(frozen=True)
class Login:
    """A name and a password, or an identity token in its place. Never written anywhere, and in no message."""

    username: str
    password: str
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Login({self.username!r})"

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class AwsKeys:
    """Keys that can ask ECR for a password."""

    key_id: str
    secret: str
    session_token: str
    region: str
    endpoint: str
    """Where ECR's interface answers, without a slash at its end."""

    def __repr__(self) -> str:
        return f"AwsKeys({self.region!r})"


def choose(credentials: Mapping[str, str], host: str) -> Optional[Login | AwsKeys]:
    """What a secret's variables say for a registry's host; None: there are no variables.

    InvalidError when they are of two kinds, incomplete, or of no kind.
    """
    if not credentials:
        return None
    kinds = {
        "a name and a password": any(credentials.get(key) for key in BASIC_KEYS),
        "AWS keys": any(credentials.get(key) for key in (*AWS_KEYS, AWS_ROLE_KEY)),
        "a Google service account": bool(credentials.get(GOOGLE_KEY)),
    }
    found = [kind for kind, there in kinds.items() if there]
    wanted = f"{' and '.join(BASIC_KEYS)}, or {' and '.join(AWS_KEYS)}, or {GOOGLE_KEY}"
    if len(found) > 1:
        raise InvalidError(
            f"The registry's secret holds keys of two kinds ({' and '.join(found)}): keep one of {wanted}"
        )
    if not found:
        raise InvalidError(f"The registry's secret holds nothing that logs in: it needs {wanted}")
    if kinds["a Google service account"]:
        account = credentials[GOOGLE_KEY]
        try:
            json.loads(account)
        except ValueError:
            raise InvalidError(f"{GOOGLE_KEY} is not JSON: it holds the key file of a service account") from None
        return Login("_json_key", account)
    if kinds["AWS keys"]:
        return _aws(credentials, host)
    _complete(credentials, BASIC_KEYS)
    return Login(credentials[BASIC_KEYS[0]], credentials[BASIC_KEYS[1]])


def _complete(credentials: Mapping[str, str], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if not credentials.get(key)]
    if missing:
        raise InvalidError(f"The registry's secret lacks {' and '.join(missing)}")


def _aws(credentials: Mapping[str, str], host: str) -> AwsKeys:
    if credentials.get(AWS_ROLE_KEY) and not credentials.get(AWS_KEYS[0]):
        raise InvalidError(
            f"{AWS_ROLE_KEY} alone does not log in here: give {' and '.join(AWS_KEYS)} (no roles by OIDC)"
        )
    _complete(credentials, AWS_KEYS)
    place = _ECR.fullmatch(host)
    region = place["region"] if place else credentials.get("AWS_REGION") or credentials.get("AWS_DEFAULT_REGION") or ""
    endpoint = credentials.get("AWS_ENDPOINT_URL_ECR", "").rstrip("/")
    if not endpoint:
        if not place:
            raise InvalidError(
                f"AWS keys log in to registries of AWS only, and {host} is none: use {' and '.join(BASIC_KEYS)}"
            )
        kind = "ecr-fips" if place["fips"] else "api.ecr"
        endpoint = f"https://{kind}.{region}.{place['domain']}"
    if not region:
        raise InvalidError("The registry's secret lacks AWS_REGION")
    return AwsKeys(
        credentials[AWS_KEYS[0]], credentials[AWS_KEYS[1]], credentials.get("AWS_SESSION_TOKEN", ""), region, endpoint
    )


def ecr_request(keys: AwsKeys, now: datetime.datetime) -> tuple[str, dict[str, str], bytes]:
    """URL, headers and body of the signed POST that gives a password. ``now`` in UTC.

    Source: AWS Signature Version 4, and ECR's GetAuthorizationToken.
    """
    url, host = keys.endpoint + "/", keys.endpoint.partition("://")[2].partition("/")[0]
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": host,
        "x-amz-date": stamp,
        "x-amz-target": "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
    }
    if keys.session_token:
        headers["x-amz-security-token"] = keys.session_token
    body = b"{}"
    headers["authorization"] = sign_v4("POST", "/", headers, body, keys, "ecr")
    return url, headers, body


def sign_v4(method: str, path: str, headers: Mapping[str, str], body: bytes, keys: AwsKeys, service: str) -> str:
    """The Authorization header of a request without a query. ``headers`` in lower case, with ``x-amz-date``."""
    names = sorted(headers)
    signed = ";".join(names)
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names)
    canonical = f"{method}\n{path}\n\n{lines}\n{signed}\n{hashlib.sha256(body).hexdigest()}"
    stamp = headers["x-amz-date"]
    scope = f"{stamp[:8]}/{keys.region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{keys.secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return f"AWS4-HMAC-SHA256 Credential={keys.key_id}/{scope}, SignedHeaders={signed}, Signature={signature}"


def ecr_login(answer: bytes) -> Login:
    """The login in ECR's answer. InvalidError when there is none."""
    try:
        token = json.loads(answer)["authorizationData"][0]["authorizationToken"]
        username, _, password = base64.b64decode(token).decode().partition(":")
    except (ValueError, KeyError, IndexError, TypeError):
        raise InvalidError("AWS gave no password for its registry") from None
    return Login(username, password)


def docker_login(host: str, environ: Mapping[str, str]) -> Optional[Login]:
    """What ``docker login`` left for a registry in ``$DOCKER_CONFIG/config.json``; None: nothing that can be used.

    Entries under ``auths`` only: no program that keeps credentials is run.
    """
    directory = environ.get("DOCKER_CONFIG") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".docker")
    try:
        with open(os.path.join(directory, "config.json"), "rb") as file:
            auths = json.loads(file.read(DOCKER_CONFIG_BYTES)).get("auths") or {}
    except (OSError, ValueError, AttributeError):
        return None
    if not isinstance(auths, dict):
        return None
    names = {host}
    if host == DEFAULT_HOST:
        names = {*DEFAULT_ALIASES, f"index.{DEFAULT_NAME}/v1", f"index.{DEFAULT_NAME}/v2"}
    for key, value in auths.items():
        plain = str(key).partition("://")[2] or str(key)
        if plain.rstrip("/") in names and isinstance(value, dict):
            found = _stored(value)
            if found is not None:
                return found
    return None


def _stored(entry: Mapping[str, object]) -> Optional[Login]:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            username, _, password = base64.b64decode(str(entry["auth"])).decode().rstrip("\0").partition(":")
        except (binascii.Error, ValueError):
            return None
    token = str(entry.get("identitytoken") or "")
    if not token and not (username and password):
        return None
    return Login(username, password, token)
