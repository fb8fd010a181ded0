#!/bin/sh
# Compiles the CUDA library for every target without torch's CUDA build, and prints the registers,
# spills and occupancy of each kernel. Needs nvcc, no GPU.
set -eu
headers=$1
if ! command -v nvcc >/dev/null; then
  echo "make cuda: nvcc not found; install the CUDA toolkit (13.0 or later) and put nvcc on PATH" >&2
  exit 1
fi
cmake -S . -B build/cuda -G Ninja -DSEGUNC_CPU=OFF -DSEGUNC_CUDA=ON \
  -DSEGUNC_TORCH_INCLUDE="$headers" --log-level=WARNING
log=build/cuda/build.log
if cmake --build build/cuda >"$log.new" 2>&1; then
  # An up-to-date build prints nothing about its kernels: the log of the last compile stands.
  if grep -q 'ptxas info' "$log.new" || [ ! -f "$log" ]; then mv "$log.new" "$log"; fi
else
  cat "$log.new" >&2
  exit 1
fi
python cmake/resource_report.py "$log" --sources $(find csrc -name '*.cu') --output build/cuda/resources.md
