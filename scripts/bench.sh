#!/usr/bin/env bash
# Every benchmark, one after the other, each against its peer or floor in the same run. The peer gets its own environment.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .cache/uv/bin/uv)
if [ ! -x .cache/bench/bin/ray ]; then
    echo "== installing the peer into .cache/bench" >&2
    "$uv" venv -q --python .venv/bin/python .cache/bench
    VIRTUAL_ENV=$PWD/.cache/bench "$uv" pip install -q ray numpy
fi
# Those of the file system need root; file_access needs a directory of packages, given to it by hand.
for one in "${@:-import_time call cold_start idle ingest image_change lazy_read large_image}"; do
    for name in $one; do
        echo "== $name"
        .venv/bin/python "bench/$name.py"
    done
done
