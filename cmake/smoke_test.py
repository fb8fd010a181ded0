"""Tries an installed segunc_ops: native code is loaded, and agrees with the reference."""

import sys
import zipfile
from pathlib import Path

import torch

import segunc_ops


def main() -> None:
    info = segunc_ops.build_info()
    assert info["cpu"] == "native", info
    torch.manual_seed(0)
    logits = torch.randn(2, 19, 33, 47, requires_grad=True)
    target = torch.randint(0, 19, (2, 33, 47))
    samples = torch.randn(10, 2, 19, 33, 47)
    results = []
    for backend in ("native", "reference"):
        with segunc_ops.backend(backend):
            statistics = segunc_ops.functional.predictive_statistics(samples)
            criterion = segunc_ops.UncertaintyAwareCrossEntropyLoss()
            loss = criterion(logits, target, statistics)
            (gradient,) = torch.autograd.grad(loss, logits)
            results.append((loss.detach(), gradient, statistics.std))
    for native, reference in zip(*results, strict=True):
        torch.testing.assert_close(native, reference, rtol=1e-4, atol=1e-6)
    print(f"segunc_ops {info['version']} beside torch {info['torch']}: {info['cpu_isa']}; ok")
    for wheel in sorted(Path(__file__).parent.parent.glob("dist/*.whl")):
        libraries = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".so")]
        print(f"{wheel.name}: {', '.join(libraries)}")


if __name__ == "__main__":
    sys.exit(main())
