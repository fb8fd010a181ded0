#!/bin/sh
# Builds the wheel and tries it in an empty virtual environment beside torch.
set -eu
if command -v nvcc >/dev/null; then
  export SEGUNC_OPS_CUDA=1
else
  echo "make wheel: nvcc not found, so this wheel has CPU code alone; for CUDA code put nvcc of the" \
    "CUDA toolkit (13.0 or later) on PATH, or let \`make toolkit\` install PyPI's" >&2
  export SEGUNC_OPS_CUDA=0
fi
rm -rf dist build/wheel-venv build/lib* build/bdist.*
python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
ls -l dist/*.whl
python -m venv build/wheel-venv
build/wheel-venv/bin/python -m pip install --quiet -c constraints.txt torch numpy
build/wheel-venv/bin/python -m pip install --quiet --no-deps dist/*.whl
cd build/wheel-venv # away from the source tree
bin/python ../../cmake/smoke_test.py
