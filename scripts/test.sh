#!/usr/bin/env bash
# All the tests: linters and types, then the quick ones side by side, then the live ones one after the other.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
step() { printf '\n== %s\n' "$*"; }
step "lint"; $bin/ruff check .; $bin/ruff format --check .
step "types"; $bin/mypy
step "imports"; $bin/lint-imports
step "unit, contract, simulation"; $bin/pytest -n 2 --dist loadfile tests/tidy.py tests/unit tests/contract tests/sim tests/typing
step "live"; $bin/pytest tests/live
