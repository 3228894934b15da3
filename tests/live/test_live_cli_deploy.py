"""Deployed apps by the command line: versions, their history, what is there, how it scales. Semantics 11.1, 23, 26."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import cadenza
app = cadenza.App("shop", tags={{"team": "red"}})

@app.function()
def price(n: int = 1):
    print("price of", n)
    return n * {factor}

@app.cls()
class Till:
    start: int = cadenza.parameter(default=5)

    @cadenza.method()
    def add(self, n: int, gift: bool = False) -> str:
        return f"{{self.start + n}}{{' gift' if gift else ''}}"
"""


def call(home, source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "import cadenza\n" + source],
        capture_output=True,
        text=True,
        env=home.environ,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def program(home, factor: int) -> str:
    return home.program("shop.py", PROGRAM.format(factor=factor))


@pytest.fixture(scope="module")
def shop(home) -> None:
    done = home.cadenza("deploy", program(home, 2), "--tag", "first")
    assert done.returncode == 0, done.stderr + home.server_log()
    assert "shop v" in done.stdout and "price" in done.stdout and "Till" in done.stdout
    assert 'cadenza.Cls.from_name("shop", "Till")' in done.stdout and "cadenza app stop shop" in done.stdout


def test_a_deployed_app_is_called_by_name(home, shop) -> None:
    assert call(home, 'print(cadenza.Function.from_name("shop", "price").remote(4))') == "8"
    assert call(home, 'print(cadenza.Cls.from_name("shop", "Till")(start=1).add.remote(2))') == "3"


def test_versions(home, shop) -> None:
    """Unchanged is told; changed is a new version; rollback and rollover are versions too."""
    again = home.cadenza("deploy", program(home, 2))
    assert again.returncode == 0 and "nothing has changed" in again.stderr and "Call it" not in again.stdout
    assert home.cadenza("deploy", program(home, 3), "--tag", "second").returncode == 0
    assert call(home, 'print(cadenza.Function.from_name("shop", "price").remote(4))') == "12"
    back = home.cadenza("app", "rollback", "shop")
    assert back.returncode == 0 and "v3 is in force" in back.stdout, back.stderr
    assert call(home, 'print(cadenza.Function.from_name("shop", "price").remote(4))') == "8"
    assert home.cadenza("app", "rollback", "shop", "v2", "--strategy", "recreate").returncode == 0
    assert home.cadenza("app", "rollover", "shop").returncode == 0
    rows = json.loads(home.cadenza("app", "history", "shop", "--json").stdout)
    assert [(one["version"], one["kind"], one["tag"]) for one in rows][-2:] == [
        (2, "deploy", "second"),
        (1, "deploy", "first"),
    ]
    assert [one["in_force"] for one in rows] == [True] + [False] * (len(rows) - 1)
    assert rows[0]["kind"] == "rollover" and rows[0]["functions"] == ["Till.*", "price"]
    text = home.cadenza("app", "history", "shop").stdout.splitlines()
    assert text[0].split("\t")[:3] == ["Version", "In force", "Deployed at"] and text[1].startswith("v5\tyes\t")


@pytest.mark.parametrize("version", ["0", "v", "-1", "two", "1.0"])
def test_a_version_that_is_none(home, shop, version: str) -> None:
    done = home.cadenza("app", "rollback", "--", "shop", version)
    assert done.returncode == 2 and "is no version" in done.stderr


def test_rollback_to_what_is_not_there(home, shop) -> None:
    done = home.cadenza("app", "rollback", "shop", "99")
    assert done.returncode == 1 and "99" in done.stderr and done.stderr.count("\n") == 1


def test_a_staged_version_waits_for_its_promotion(home, shop) -> None:
    staged = home.cadenza("deploy", program(home, 7), "--staged")
    assert staged.returncode == 0, staged.stderr
    number = int(staged.stdout.split("shop: v")[1].split()[0])
    assert call(home, 'print(cadenza.Function.from_name("shop", "price").remote(1))') != "7"
    assert home.cadenza("app", "promote", "shop", str(number)).returncode == 0
    assert call(home, 'print(cadenza.Function.from_name("shop", "price").remote(1))') == "7"


def test_info(home, shop) -> None:
    found = json.loads(home.cadenza("app", "info", "shop", "--json").stdout)
    assert found["name"] == "shop" and found["state"] == "deployed" and found["tags"] == {"team": "red"}
    assert sorted((one["name"], one["kind"]) for one in found["functions"]) == [
        ("Till", "class"),
        ("price", "function"),
    ]
    one = json.loads(home.cadenza("function", "info", "shop/price", "--json").stdout)
    assert one["kind"] == "function" and one["app"] == found["app_id"] and one["scaledown_window"] == 60
    for word in ("shop.price", "shop::price", one["function_id"]):
        assert json.loads(home.cadenza("function", "info", word, "--json").stdout)["function_id"] == one["function_id"]
    till = json.loads(home.cadenza("function", "info", "shop/Till", "--json").stdout)
    assert till["methods"] == ["add"] and till["class_parameters"] == ["start: int"]
    same = json.loads(home.cadenza("function", "info", "shop/Till.add", "--json").stdout)
    assert same["function_id"] == till["function_id"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("function", "info", "shop/nothing"), 1, "no function"),
        (("function", "info", "nowhere/price"), 1, "no app 'nowhere'"),
        (("function", "info", "price"), 2, "write app/name"),
        (("app", "info", "nowhere"), 1, "no app 'nowhere'"),
        (("app", "info", "shop", "-e", "nowhere"), 1, "no environment 'nowhere'"),
        (("app", "explain", "nowhere"), 1, "nowhere"),
        (("app", "explain", "--input", "in-1", "--container", "ta-1"), 2, "not both"),
        (("function", "autoscaler", "update", "shop/price"), 2, "nothing to change"),
        (("function", "autoscaler", "update", "shop/price", "--min-containers", "-1"), 2, "whole number"),
        (("deploy", "shop.py::nothing"), 2, "no app named 'nothing'"),
        (("app", "dashboard", "shop"), 1, "no web page yet"),
    ],
)  # fmt: skip
def test_wrong_words(home, shop, words: tuple[str, ...], code: int, sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cadenza", *words], capture_output=True, text=True, env=home.environ,
        cwd=home.path / "programs", timeout=60,
    )  # fmt: skip
    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_limits_at_run_time(home, shop) -> None:
    """Semantics 11.1: only what is given changes, none takes it away, a deploy resets."""
    changed = home.cadenza(
        "function", "autoscaler", "update", "shop/price", "--max-containers", "3", "--scaledown-window", "120"
    )
    assert changed.returncode == 0, changed.stderr
    assert "Max containers     3" in changed.stdout and "Scaledown window   120 s" in changed.stdout
    home.cadenza(
        "function", "autoscaler", "update", "shop/price", "--buffer-containers", "0", "--max-containers", "none"
    )
    now = json.loads(home.cadenza("function", "autoscaler", "settings", "shop/price", "--json").stdout)
    assert now["max_containers"] is None and now["scaledown_window"] == 120
    home.cadenza("deploy", program(home, 11))
    reset = json.loads(home.cadenza("function", "autoscaler", "settings", "shop/price", "--json").stdout)
    assert reset["scaledown_window"] in (60, None)


def test_variants(home, shop) -> None:
    call(home, 'cadenza.Cls.from_name("shop", "Till")(start=9).add.remote(2)')
    rows = json.loads(home.cadenza("function", "variants", "shop/Till", "--json").stdout)
    assert any('"start":9' in one["class_parameters"] for one in rows)


def test_logs_of_a_function(home, shop) -> None:
    call(home, 'cadenza.Function.from_name("shop", "price").remote(31)')
    call(home, 'cadenza.Cls.from_name("shop", "Till")().add.remote(2)')
    said = home.cadenza("function", "logs", "shop/price", "--search", "price of 31", "--show-function-id")
    assert said.returncode == 0 and said.stdout.startswith("fu-") and "price of 31" in said.stdout
    both = home.cadenza("function", "logs", "shop/price", "--all-variants", "-n", "1", "-s", "stdout")
    assert both.stdout.count("\n") == 1 and "price of" in both.stdout
    none = home.cadenza("function", "logs", "shop/Till", "--search", "price of")
    assert none.stdout == ""


def test_explain(home, shop) -> None:
    call(home, 'cadenza.Function.from_name("shop", "price").remote(1)')
    said = home.cadenza("app", "explain", "shop")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("App shop (ap-") and "price (fu-" in said.stdout and "Containers:" in said.stdout
    found = json.loads(home.cadenza("app", "explain", "shop", "--json").stdout)
    ids = [each["container_id"] for one in found["functions"] for each in one["containers"]]
    assert ids
    only = home.cadenza("app", "explain", "shop", "--container", ids[0])
    assert ids[0] in only.stdout


def test_methods_run_from_the_command_line(home) -> None:
    """Parameters of the class and of the method are options together."""
    path = program(home, 1)
    done = home.cadenza("run", f"{path}::Till.add", "--n", "4", "--start", "30", "--gift")
    assert done.returncode == 0 and "'34 gift'" in done.stdout, done.stderr
    several = home.cadenza("run", path)
    assert several.returncode == 2 and "shop.py::Till.add" in several.stderr and "shop.py::price" in several.stderr


def test_completion_of_names(home, shop) -> None:
    def complete(*words: str) -> list[str]:
        done = home.cadenza(
            _CADENZA_COMPLETE="bash_complete", COMP_WORDS=" ".join(("cadenza", *words)), COMP_CWORD=str(len(words))
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("app", "info", "sh") == ["shop"]
    assert "main" in complete("app", "list", "-e", "")
    assert complete("function", "info", "shop/pr") == ["shop/price"]
    assert complete("dep") == ["deploy"]


def test_stop(home, shop) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "cadenza", "app", "stop", "shop"], input="n\n", capture_output=True, text=True,
        env=home.environ, timeout=60,
    )  # fmt: skip
    assert asked.returncode == 1 and "Stop app shop" in asked.stdout and "Nothing was done" in asked.stderr
    assert home.cadenza("app", "stop", "shop", "-y").returncode == 0
    assert "is stopped already" in home.cadenza("app", "stop", "shop", "-y").stdout
