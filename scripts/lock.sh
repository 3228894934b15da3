#!/usr/bin/env bash
# Write the two lock files anew: every version by hash, no address of any index in them.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .cache/uv/bin/uv)
common="--universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header -q"
# shellcheck disable=SC2086
"$uv" pip compile $common pyproject.toml --group pyproject.toml:build -o requirements.lock
# shellcheck disable=SC2086
"$uv" pip compile $common pyproject.toml --group pyproject.toml:build --group pyproject.toml:dev -c requirements.lock -o requirements-dev.lock
! grep -nE 'https?://|^--|^-f|^-i' requirements.lock requirements-dev.lock
