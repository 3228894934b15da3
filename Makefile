# hello: set up and run the first program. test: set up and pass the tests. The rest is for those who work on it.
.PHONY: hello test unit live lint bench lock setup

hello:
	@scripts/setup.sh
	@.venv/bin/cadenza run examples/01_hello/hello.py

test:
	@scripts/setup.sh --dev
	@scripts/test.sh

setup:
	@scripts/setup.sh --dev

unit:
	.venv/bin/pytest -n 2 tests/unit tests/contract

live:
	.venv/bin/pytest tests/live

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench:
	@scripts/setup.sh --dev
	@scripts/bench.sh

lock:
	scripts/lock.sh
