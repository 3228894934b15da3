"""References to images, and who pulls them. semantics.md 13.2."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError
from cadenza.fs.credentials import AwsKeys, Login, choose, docker_login, ecr_login, ecr_request, sign_v4
from cadenza.fs.reference import DEFAULT_HOST, DEFAULT_NAME, Reference, is_loopback, parse

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("python", DEFAULT_HOST, "library/python", "latest", ""),
        ("python:3.12-slim", DEFAULT_HOST, "library/python", "3.12-slim", ""),
        ("some/one", DEFAULT_HOST, "some/one", "latest", ""),
        (f"{DEFAULT_NAME}/python:3", DEFAULT_HOST, "library/python", "3", ""),
        (f"index.{DEFAULT_NAME}/library/python:3", DEFAULT_HOST, "library/python", "3", ""),
        ("localhost/a", "localhost", "a", "latest", ""),
        ("127.0.0.1:5000/a/b/c:v1.0_x", "127.0.0.1:5000", "a/b/c", "v1.0_x", ""),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest", ""),
        ("registry.test/a-b/c__d.e", "registry.test", "a-b/c__d.e", "latest", ""),
        (f"registry.test/a@{DIGEST}", "registry.test", "a", "", DIGEST),
        (f"registry.test:443/a:t@{DIGEST}", "registry.test:443", "a", "t", DIGEST),
    ],
)
def test_what_a_reference_means(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    assert parse(text) == Reference(host, repository, tag, digest)
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no image"),
        ("https://registry.test/a", "without https://"),
        ("registry.test/A", "lower case"),
        ("registry.test/a:", "no tag"),
        ("registry.test/a:b c", "no tag"),
        ("registry.test/a//b", "no repository"),
        ("registry.test/../a", "no repository"),
        ("registry.test:99999/a", "port"),
        ("a_b.test/a", "no host"),
        ("registry.test/a@sha256:12", "no digest"),
        ("registry.test/a@md5:" + "a" * 32, "no digest"),
        ("registry.test/" + "a" * 256, "no repository"),
    ],
)
def test_what_no_reference_can_be(text: str, why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        parse(text)


def test_plain_http_is_for_this_machine_alone() -> None:
    for host in ("localhost", "localhost:5000", "a.localhost:1", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"):
        assert is_loopback(host)
    for host in ("localhost.test", "128.0.0.1", "registry.test:5000", "[fe80::1]:5000", "notlocalhost"):
        assert not is_loopback(host)


def test_secrets_of_each_kind() -> None:
    assert choose({}, "registry.test") is None
    assert choose({"REGISTRY_USERNAME": "a", "REGISTRY_PASSWORD": "b", "OTHER": "c"}, "x") == Login("a", "b")
    assert choose({"SERVICE_ACCOUNT_JSON": '{"a": 1}'}, "x") == Login("_json_key", '{"a": 1}')
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "elsewhere"}
    found = choose(keys, "123456789012.dkr.ecr.eu-west-1.amazonaws.com")
    assert found == AwsKeys("id", "key", "", "eu-west-1", "https://api.ecr.eu-west-1.amazonaws.com")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"REGISTRY_USERNAME": "a", "SERVICE_ACCOUNT_JSON": "{}"}, "two kinds"),
        ({"REGISTRY_USERNAME": "a", "AWS_ACCESS_KEY_ID": "b"}, "two kinds"),
        ({"REGISTRY_USERNAME": "a"}, "lacks REGISTRY_PASSWORD"),
        ({"OTHER": "a"}, "nothing that logs in"),
        ({"SERVICE_ACCOUNT_JSON": "not"}, "not JSON"),
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, "registries of AWS only"),
        ({"AWS_ROLE_ARN": "a"}, "OIDC"),
    ],
)
def test_secrets_that_cannot_log_in(given: dict[str, str], why: str) -> None:
    """semantics.md 13.2: keys of two kinds are an InvalidError."""
    with pytest.raises(InvalidError, match=why):
        choose(given, "registry.test")


def test_a_login_is_not_shown() -> None:
    assert "hunter2" not in repr(Login("me", "hunter2")) + repr(AwsKeys("id", "hunter2", "hunter2", "r", "e"))


def test_the_signature_is_that_of_the_published_example() -> None:
    """post-vanilla of the published test suite of AWS Signature Version 4."""
    keys = AwsKeys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "", "us-east-1", "")
    headers = {"host": "example.amazonaws.com", "x-amz-date": "20150830T123600Z"}
    signed = sign_v4("POST", "/", headers, b"", keys, "service")
    assert signed == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        "SignedHeaders=host;x-amz-date, "
        "Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
    )


def test_a_password_of_aws() -> None:
    keys = AwsKeys("id", "key", "session", "r", "https://api.ecr.r.amazonaws.com")
    url, headers, body = ecr_request(keys, datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc))
    assert url == "https://api.ecr.r.amazonaws.com/" and body == b"{}"
    assert headers["x-amz-date"] == "20260102T030405Z" and headers["x-amz-security-token"] == "session"
    assert "x-amz-security-token;x-amz-target" in headers["authorization"]
    token = base64.b64encode(b"AWS:pass:word").decode()
    answer = json.dumps({"authorizationData": [{"authorizationToken": token}]}).encode()
    assert ecr_login(answer) == Login("AWS", "pass:word")
    with pytest.raises(InvalidError):
        ecr_login(b"{}")


def test_what_docker_login_left(tmp_path: Path) -> None:
    environ = {"DOCKER_CONFIG": str(tmp_path)}
    assert docker_login("registry.test", environ) is None
    auth = base64.b64encode(b"me:se:cret").decode()
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "auths": {
                    "https://registry.test": {"auth": auth},
                    f"https://index.{DEFAULT_NAME}/v1/": {"username": "a", "password": "b"},
                    "kept.test": {},
                    "token.test": {"auth": auth, "identitytoken": "refresh"},
                    "broken.test": {"auth": "%%%"},
                },
                "credsStore": "desktop",
            }
        )
    )
    assert docker_login("registry.test", environ) == Login("me", "se:cret")
    assert docker_login(DEFAULT_HOST, environ) == Login("a", "b")
    assert docker_login("token.test", {"HOME": "/nowhere", **environ}) == Login("me", "se:cret", "refresh")
    for other in ("kept.test", "broken.test", "registry.test:5000"):
        assert docker_login(other, environ) is None
    for wrong in ("[]", '{"auths": []}', "{"):
        (tmp_path / "config.json").write_text(wrong)
        assert docker_login("registry.test", environ) is None
