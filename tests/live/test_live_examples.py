"""Every example runs, as its first lines say. (Numbers one to four: test_live_run.py.)"""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT, Home


def ran(home: Home, *argv: str) -> str:
    done = home.cadenza(*argv)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_five_classes(home: Home) -> None:
    said = ran(home, "run", str(ROOT / "examples/05_classes/classes.py"))
    for line in ("score:  [3, 6]", "map:    [0, 3, 6, 9, 12]", "stream: [0, 10, 20, 30]", "bigger: 10"):
        assert line in said
    assert "size 3 answered 7 calls" in said, said


def test_six_at_once(home: Home) -> None:
    said = ran(home, "run", str(ROOT / "examples/06_at_once/at_once.py"))
    assert "fifty at once: 1225" in said
    assert "squares: [0, 1, 4, 9, 16, 25" in said
    assert int(said.split("largest batch: ")[1].split()[0]) > 1


def test_seven_deploy_and_call_by_name(home: Home) -> None:
    ran(home, "deploy", str(ROOT / "examples/07_deploy/counter.py"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/07_deploy/use.py")],
        capture_output=True, text=True, env=home.environ, timeout=60,
    )  # fmt: skip
    assert done.stdout.split("\n")[:3] == ["6", "good morning Ada", "8"], done.stdout + done.stderr
    ran(home, "app", "stop", "counter-example", "--yes")


def test_nine_secrets(home: Home) -> None:
    ran(home, "secret", "create", "example-database", "PASSWORD=correct horse")
    said = ran(home, "run", str(ROOT / "examples/09_secrets/secrets.py"))
    assert "connected with a password of 13 letters" in said
    ran(home, "secret", "delete", "example-database", "--yes")


def test_ten_beyond(home: Home) -> None:
    said = ran(home, "run", str(ROOT / "examples/10_beyond/beyond.py"))
    for line in ("not tried again: /forbidden", "one call: True 42", "five at a time: 9900", "a handle: [0, 2, 4]"):
        assert line in said, said


def test_eleven_images(home: Home) -> None:
    said = ran(home, "run", str(ROOT / "examples/11_images/images.py"))
    assert "counting in English" in said
    assert "good morning from example; site ['greeting', 'page.txt']; mounted ['page.txt']; model 5" in said
    assert "published as example-base: True" in said


def test_twelve_dockerfile(home: Home) -> None:
    said = ran(home, "run", str(ROOT / "examples/12_dockerfile/dockerfile.py"), "--language", "german")
    assert "built and named: im-" in said
    assert "found by its name: True" in said
    shown = ran(home, "image", "inspect", "words:german")
    assert "COPY --from=parts /about/ /about/" in shown and "/data" in shown
    ran(home, "image", "build", str(ROOT / "examples/12_dockerfile"), "--name", "words")


def test_eight_schedules(home: Home) -> None:
    said = ran(home, "run", str(ROOT / "examples/08_schedules/schedules.py"))
    assert said.count("\ntick") >= 2, said
    ran(home, "deploy", str(ROOT / "examples/08_schedules/schedules.py"))
    assert "every_morning" in ran(home, "schedule", "list")
    ran(home, "app", "stop", "schedules-example", "--yes")
