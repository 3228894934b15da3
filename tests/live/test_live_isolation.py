"""What a user may check of isolation, from inside, by the ordinary command line, at each level and runtime."""

from __future__ import annotations

import json
import shutil
import socket
import threading

import pytest

pytestmark = pytest.mark.timeout(200)

PROBE = """
import cadenza, json, os, socket
app = cadenza.App("probe")


def reaches(host, port):
    try:
        socket.create_connection((host, port), 0.5).close()
        return True
    except OSError:
        return False


def calls(number, *arguments):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    return (libc.syscall(number, *arguments), ctypes.get_errno())


@app.function(memory=(128, 512))
def look(port, addresses, data, paths):
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
    masked = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                masked[path] = len(file.read(64))
        except OSError as error:
            masked[path] = 0
    writable = []
    for path in ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/power/state"):
        try:
            os.close(os.open(path, os.O_WRONLY))
            writable.append(path)
        except OSError:
            pass
    return {
        "cap": int(status["CapEff"].strip(), 16),
        "nnp": status.get("NoNewPrivs", "1").strip(),
        "seccomp": status.get("Seccomp", "").strip(),
        "commands": [open(f"/proc/{pid}/cmdline").read() for pid in os.listdir("/proc") if pid.isdigit()],
        "data": os.path.exists(data),
        "net": [where for where in addresses if reaches(where, port)],
        "mount": calls(165, b"none", b"/mnt", b"tmpfs", 0, None)[0],
        "unshare": calls(272, 0x10000000)[0],
        "masked": masked,
        "writable": writable,
        "root": oct(os.stat("/").st_mode),
    }


@app.local_entrypoint()
def main(port: int, data: str, addresses: str):
    found = look.remote(port, addresses.split(","), data, ["/proc/kcore", "/proc/keys", "/proc/timer_list"])
    print("FOUND", json.dumps(found))
"""

JOURNEY = """
import cadenza, os, time
app = cadenza.App("journey")


@app.function()
def square(x):
    return x * x


@app.function()
def fail():
    raise KeyError("lost")


@app.function(timeout=1)
def slow():
    time.sleep(60)


@app.function()
def double(data):
    return data + data


@app.function()
def leave():
    os._exit(4)


@app.function()
def wait():
    time.sleep(100)


@app.local_entrypoint()
def main():
    print("hello", square.remote(5), list(square.map(range(20))) == [x * x for x in range(20)])
    for broken in (fail, slow, leave):
        try:
            broken.remote()
        except BaseException as error:
            print(type(error).__name__, error)
    print("large", len(double.remote(bytes(5 << 20))) >> 20)
    call = wait.spawn()
    time.sleep(0.5)
    call.cancel()
    try:
        call.get(timeout=20)
    except BaseException as error:
        print("cancelled", type(error).__name__)
"""


def host_addresses() -> list[str]:
    """The machine's loopback and outer addresses, and one of its ends of other containers' networks."""
    import subprocess

    found = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, text=True, check=True).stdout)
    pairs = [(link["ifname"], one["local"]) for link in found for one in link["addr_info"] if one["family"] == "inet"]
    outer = [address for name, address in pairs if not name.startswith("cz")]
    return [*outer, *[address for name, address in pairs if name.startswith("cz")][:2]]


@pytest.fixture(scope="module")
def listener():
    """A server on the host that no container may reach."""
    server = socket.socket()
    server.bind(("0.0.0.0", 0))
    server.listen(16)

    def accept() -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


@pytest.mark.parametrize("isolation", ["standard", "strong"])
def test_what_a_container_sees(make_home, listener: int, isolation: str) -> None:
    """The issue: no capabilities, no new privileges, our own seccomp profile, nothing of the host."""
    home = make_home(CADENZA_ISOLATION=isolation)
    program = home.program("probe.py", PROBE)
    addresses = ",".join(host_addresses())
    data = str(home.path / "data")
    done = home.cadenza("run", program, "--port", str(listener), "--data", data, "--addresses", addresses)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.split("FOUND ", 1)[1])
    if (
        isolation == "standard"
    ):  # those of docs/operate/isolation.md, within a user namespace; gVisor's mean nothing here
        assert found["cap"] & ~0x4FB == 0
    assert found["nnp"] == "1"
    if isolation == "standard":  # gVisor's own kernel is the filter there
        assert found["seccomp"] == "2"
    assert len(found["commands"]) <= 3 and not any("cadenza.cli.server" in one for one in found["commands"])
    assert not found["data"]
    assert found["net"] == []
    assert found["mount"] == -1
    assert found["unshare"] == -1 or isolation == "strong"  # a namespace of gVisor's own kernel, not of the host's
    assert not any(found["masked"].values()), found["masked"]
    assert found["writable"] == [] or isolation == "strong"  # gVisor's own kernel settings, not the host's


@pytest.mark.parametrize(
    "settings", [{"CADENZA_RUNTIME": "runc"}, {"CADENZA_ISOLATION": "strong"}], ids=["runc", "strong"]
)
def test_the_same_journey_on_each_runtime(make_home, settings: dict[str, str]) -> None:
    """Hello, a map, a failure, a timeout, a crash, a large value, a cancellation: whatever runs the containers."""
    if "CADENZA_RUNTIME" in settings and shutil.which("runc") is None:
        pytest.fail("runc is not installed: make test installs it")
    home = make_home(**settings)
    done = home.cadenza("run", home.program("journey.py", JOURNEY), timeout=150)
    assert done.returncode == 0, done.stderr + home.server_log()[-2000:]
    lines = done.stdout.splitlines()
    assert "hello 25 True" in lines
    assert "KeyError 'lost'" in lines
    assert any(one.startswith("FunctionTimeoutError") for one in lines)
    assert any(one.startswith("RemoteError") and "code 4" in one for one in lines)
    assert "large 10" in lines
    assert "cancelled RemoteError" in lines


def test_the_memory_limit_holds(home) -> None:
    """The issue: the cgroup's memory limit, and its end is named."""
    path = home.program(
        "limits.py",
        "import cadenza\napp = cadenza.App('limits')\n"
        "@app.function(memory=(128, 256))\ndef hog():\n    return len([bytearray(1 << 24) for _ in range(100)])\n"
        "@app.local_entrypoint()\ndef main():\n    hog.remote()\n",
    )
    done = home.cadenza("run", path, timeout=100)
    assert done.returncode == 1
    assert "RemoteError" in done.stderr and "more than its limit of 256 MiB" in done.stderr


def test_without_isolation_it_is_said(make_home) -> None:
    """The process driver isolates nothing, and `status` and `container list` say so."""
    home = make_home(CADENZA_RUNTIME="process")
    done = home.cadenza("run", home.program("journey.py", JOURNEY), timeout=100)
    assert done.returncode == 0, done.stderr
    assert "hello 25 True" in done.stdout and "large 10" in done.stdout
    assert "KeyError" in done.stdout and "FunctionTimeoutError" in done.stdout
    said = home.cadenza("status").stdout
    assert "process" in said and "no isolation" in said.lower(), said
