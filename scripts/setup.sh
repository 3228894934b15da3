#!/usr/bin/env bash
# All the set-up that `make hello` and `make test` need, and nothing twice. Quiet when there is nothing to do.
#
#   scripts/setup.sh          system packages (as root, or by sudo), .venv, the package
#   scripts/setup.sh --dev    the same, and what the tests, the linters and the live tests use
set -euo pipefail
cd "$(dirname "$0")/.."

dev=0
[ "${1:-}" = "--dev" ] && dev=1
say() { printf '\033[2m== %s\033[0m\n' "$*" >&2; }

# 1. System packages. Without root and without sudo we go on: `cadenza doctor` says what that costs.
wanted="crun nftables iproute2 ca-certificates uidmap procps"
command -v python3 >/dev/null 2>&1 || wanted="$wanted python3"
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || wanted="$wanted python3-venv"
[ $dev = 1 ] && wanted="$wanted runc bubblewrap gcc libc6-dev git attr erofs-utils skopeo umoci zstd fuse3"
missing=""
if command -v dpkg-query >/dev/null 2>&1; then
    for one in $wanted; do
        dpkg-query -W -f '${Status}' "$one" 2>/dev/null | grep -q 'ok installed' || missing="$missing $one"
    done
fi
as_root=""
if [ "$(id -u)" = 0 ]; then
    as_root="env"
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo"
fi
if [ -n "$missing" ]; then
    if [ -n "$as_root" ] && command -v apt-get >/dev/null 2>&1; then
        say "installing$missing"
        $as_root apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        say "not root and no sudo: going on without$missing (cadenza doctor says what that costs)"
    fi
fi
if [ -n "$as_root" ] && [ -x scripts/install-runsc.sh ] && ! command -v runsc >/dev/null 2>&1; then
    say "installing gVisor (strong isolation)"
    scripts/install-runsc.sh >/dev/null 2>&1 || say "gVisor could not be installed: strong isolation is off (cadenza doctor says more)"
fi

# The tests' registry is unpacked, not installed: its package would start a service, now and at every boot.
registry=.cache/docker-registry
fetch_registry() {
    (cd $registry && rm -f ./*.deb && apt-get download -qq docker-registry >/dev/null 2>&1 && dpkg-deb -x ./*.deb . && rm -f ./*.deb)
}
if [ $dev = 1 ] && ! command -v docker-registry >/dev/null 2>&1 && [ ! -x $registry/usr/bin/docker-registry ]; then
    say "unpacking docker-registry (for the tests)"
    mkdir -p $registry
    fetch_registry || { [ -n "$as_root" ] && $as_root apt-get update -qq && fetch_registry; } \
        || say "docker-registry could not be fetched: the live tests of registries will fail"
fi

# 2. uv: the one on PATH, else our own copy below .cache.
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    uv=.cache/uv/bin/uv
    if [ ! -x "$uv" ]; then
        say "fetching uv"
        python3 -m venv .cache/uv
        .cache/uv/bin/python -m pip install -q --disable-pip-version-check uv
    fi
fi

# 3. The virtual environment, from the lock, by hashes. The machine's own Python first: its containers match it.
lock=requirements.lock
[ $dev = 1 ] && lock=requirements-dev.lock
python=python3
for candidate in /usr/bin/python3 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -x .venv/bin/python ] || { say "making .venv"; "$uv" venv -q --python "$python" .venv; }
stamp=.venv/.installed-$(cat "$lock" pyproject.toml | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
    say "installing packages into .venv"
    VIRTUAL_ENV=$PWD/.venv "$uv" pip install -q --require-hashes -r "$lock"
    VIRTUAL_ENV=$PWD/.venv "$uv" pip install -q --no-deps --no-build-isolation -e .
    touch "$stamp"
fi
