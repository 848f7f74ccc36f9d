#!/bin/sh
# What the library does on one GPU, in at most eight minutes: `sh benchmarks/gpu.sh`.
#
# Each part of benchmarks/gpu.py has its own time limit and its own file, written anew after every
# measurement: $OUT/<card>/<part>.json, or results/gpu/<card>/<part>.json without $OUT. It may be
# stopped at any moment. `--device cpu --tiny` rehearses all of it.
#
# It needs this repository without its checkpoint store, torch, transformers, peft, accelerate,
# numpy, pandas, scipy, scikit-learn, pytest, and the few packages of benchmarks/gpu_wheels.txt. A
# machine without a package index finds those in .whl, filled beforehand for its Python and system:
#
#     python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 \
#         --implementation cp --platform manylinux_2_17_x86_64 -d .whl -r benchmarks/gpu_wheels.txt
#
# A checkout that may carry little leaves the store behind; nothing here reads it:
#
#     git sparse-checkout set --no-cone '/*' '!/.dvcstore/' '!/results/'
#
# (`git sparse-checkout disable` brings it back.)
set -eu
cd "$(dirname "$0")/.."
if ls .whl/*.whl >/dev/null 2>&1; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
PYTHONPATH="lib${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 exec python3 benchmarks/gpu.py "$@"
