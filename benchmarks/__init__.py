"""Benchmarks of the fused operations against plain PyTorch; `python -m benchmarks --help`."""
