#!/bin/sh
# Compiles the CUDA library for every target without torch's CUDA build, and reads from its machine
# code what each kernel uses and costs. Needs nvcc, no GPU.
set -eu
headers=$1
if ! command -v nvcc >/dev/null; then
  echo "make cuda: nvcc not found; put nvcc of the CUDA toolkit (13.0 or later) on PATH, or let" \
    "\`make toolkit\` install PyPI's" >&2
  exit 1
fi
cmake -S . -B build/cuda -G Ninja -DSEGUNC_CPU=OFF -DSEGUNC_CUDA=ON -DSEGUNC_CUDA_LINES=ON \
  -DSEGUNC_TORCH_INCLUDE="$headers" --log-level=WARNING
log=build/cuda/build.log
if ! cmake --build build/cuda >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
python -m tools.machine_code build/cuda/segunc_ops_cuda.so build/cuda/segunc_ops_lines.so \
  --resources build/cuda/resources.md --table benchmarks/results/machine-code.md \
  --predictions benchmarks/predictions.json
