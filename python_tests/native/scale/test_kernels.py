"""csrc/scale/cuda/kernels.h, run on the host, against float64 NumPy."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from python_tests.native.harness import (
    DTYPES,
    SIZES,
    Array,
    accumulate_type,
    decode,
    encode,
    place,
    run_under_seeds,
)


@pytest.mark.parametrize("factor", [2.5, 1.0, 0.0, np.inf])
@pytest.mark.parametrize("layout", ["planar", "unaligned"])
@pytest.mark.parametrize("count", [0, *SIZES, 40_003])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(host: ModuleType, dtype: str, count: int, layout: str, factor: float) -> None:
    values = np.random.default_rng(count).normal(size=count)
    stored = encode(values, dtype)
    if factor == 1 and count:
        # A signalling NaN, which arithmetic makes a quiet one.
        infinity = encode(np.array([np.inf]), dtype).view(f"u{stored.itemsize}")
        stored[0] = (infinity | 1).view(stored.dtype)[0]
    factor_dtype = "f64" if dtype == "f64" else "f32"

    def run() -> dict[str, Array]:
        data = place((count,), stored.dtype, layout, stored)
        host.scale(
            data=data.view,
            factor=np.array([factor], accumulate_type(factor_dtype)),
            dtype=dtype,
            factor_dtype=factor_dtype,
        )
        data.check_surroundings("data")
        return {"data": data.view.copy()}

    actual = run_under_seeds(host, run)["data"]
    if factor == 1:
        assert actual.tobytes() == stored.tobytes()
        return
    with np.errstate(invalid="ignore"):
        expected = decode(encode(decode(stored, dtype) * factor, dtype), dtype)
    assert np.array_equal(decode(actual, dtype), expected, equal_nan=True)
