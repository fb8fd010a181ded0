"""csrc/math and csrc/common/element.h: each value against float64, each derivative against the
value's differences, each conversion against every number there is."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from python_tests.native.harness import FLAVOR, Array

pytestmark = pytest.mark.skipif(FLAVOR != "plain", reason="the formulas are the same everywhere")

PRECISIONS = [("f32", np.float32, 2.0**-23), ("f64", np.float64, 2.0**-52)]
precisions = pytest.mark.parametrize(("name", "dtype", "ulp"), PRECISIONS)


def formulas(host: ModuleType, name: str) -> ModuleType:
    module: ModuleType = getattr(host, name)
    return module


def relative_error(actual: Array, expected: Array) -> float:
    return float(np.max(np.abs(actual - expected) / np.abs(expected)))


@precisions
def test_exp_nonpositive(host: ModuleType, name: str, dtype: type, ulp: float) -> None:
    x = -np.logspace(-8, np.log10(86.9), 200_001).astype(dtype)
    actual = formulas(host, name).exp_nonpositive(x).astype(np.float64)
    assert relative_error(actual, np.exp(x.astype(np.float64))) < 1.5 * ulp
    edges = formulas(host, name).exp_nonpositive(np.array([0.0, -0.0, -np.inf, np.nan], dtype))
    assert edges.tolist()[:3] == [1.0, 1.0, 0.0]
    assert np.isnan(edges[3])


@precisions
def test_exponentials_are_never_denormal(
    host: ModuleType, name: str, dtype: type, ulp: float
) -> None:
    if name == "f64":
        pytest.skip("double calls the C library, and underflows only under e^-708")
    values = formulas(host, name).exp_nonpositive(np.linspace(-200, -80, 100_001, dtype=dtype))
    assert np.all((values == 0) | (values >= np.finfo(dtype).tiny))


@precisions
def test_log_positive(host: ModuleType, name: str, dtype: type, ulp: float) -> None:
    x = np.logspace(-30, 30, 200_001).astype(dtype)
    x = x[x != 1]
    actual = formulas(host, name).log_positive(x).astype(np.float64)
    assert relative_error(actual, np.log(x.astype(np.float64))) < 1.5 * ulp
    assert formulas(host, name).log_positive(dtype(1)) == 0
    assert np.isnan(formulas(host, name).log_positive(dtype(np.nan)))


@precisions
def test_cross_entropy_and_its_derivative(
    host: ModuleType, name: str, dtype: type, ulp: float
) -> None:
    """The derivative in each logit is the central difference of the value in float64."""
    f = formulas(host, name)
    exact = formulas(host, "f64")
    generator = np.random.default_rng(1)
    logits = generator.normal(size=7) * 3
    weight = generator.random(7) + 0.1
    label, smoothing = 4, 0.15
    on_target = (1 - smoothing) * weight[label]
    spread = smoothing / 7 * weight

    def value(z: Array) -> float:
        shifted = z - z.max()
        log_sum = np.log(np.exp(shifted).sum())
        smooth = np.sum(spread * exact.negative_log_probability(shifted, log_sum))
        return float(exact.cross_entropy(on_target, smooth, shifted[label], log_sum))

    shifted = logits - logits.max()
    exponential = np.exp(shifted)
    t = spread.copy()
    t[label] += on_target
    derivative = f.cross_entropy_derivative(
        exponential.astype(dtype), dtype(t.sum() / exponential.sum()), t.astype(dtype)
    )
    step = 1e-5
    for c in range(7):
        bump = step * (np.arange(7) == c)
        difference = (value(logits + bump) - value(logits - bump)) / (2 * step)
        assert abs(derivative[c] - difference) < 1e-9 + 8 * ulp


@precisions
def test_target_exponential(host: ModuleType, name: str, dtype: type, ulp: float) -> None:
    """Taken off the labelled exponential, it takes the label's share off the gradient."""
    f = formulas(host, name)
    on_target, total, sum_ = dtype(0.7), dtype(0.9), dtype(3.5)
    part = f.target_exponential(on_target, total, sum_)
    assert abs(part * (total / sum_) - on_target) <= 4 * ulp
    assert f.target_exponential(dtype(0), dtype(0), sum_) == 0


@precisions
def test_sigmoid_and_binary_cross_entropy(
    host: ModuleType, name: str, dtype: type, ulp: float
) -> None:
    """Relative to themselves, where they are far below 1 as well."""
    f = formulas(host, name)
    z = np.linspace(-80, 80, 200_001).astype(dtype)
    exact = z.astype(np.longdouble)
    sigmoid = 1 / (1 + np.exp(-exact))
    assert relative_error(f.sigmoid(z), sigmoid) < 4 * ulp
    derivative = sigmoid * (1 / (1 + np.exp(exact)))
    assert relative_error(f.sigmoid_derivative(z), derivative) < 6 * ulp
    loss = np.log1p(np.exp(-exact))
    assert relative_error(f.binary_cross_entropy(z), loss) < 4 * ulp
    edges = np.array([np.inf, -np.inf, np.nan], dtype)
    assert f.sigmoid(edges).tolist()[:2] == [1, 0]
    assert f.binary_cross_entropy(edges).tolist()[:2] == [0, np.inf]
    assert f.sigmoid_derivative(edges).tolist()[:2] == [0, 0]
    for values in (f.sigmoid, f.binary_cross_entropy, f.sigmoid_derivative):
        assert np.isnan(values(edges)[2])


@precisions
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0), (0.5, 0.0)])
def test_uncertain_loss_and_its_derivatives(
    host: ModuleType, name: str, dtype: type, ulp: float, weights: tuple[float, float]
) -> None:
    """Those of the value's differences in float64. Where the weight is detached, that of the
    log-variance is the first part's alone."""
    f, exact = formulas(host, name).uncertain_loss, formulas(host, "f64").uncertain_loss
    step = 1e-5
    grid = np.array(np.meshgrid([-7.5, -0.5, 0.0, 2.0], [-6.0, -1.0, 0.125, 0.75, 5.0]))
    for mean, log_variance in grid.reshape(2, -1).T.tolist():
        for flags in ((True, True), (True, False), (False, True), (False, False)):
            rest = (*flags, 1.25, *weights)
            around = [
                exact(mean + i * step, log_variance + j * step, *rest, False)[0]
                for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))
            ]
            by_mean, by_log_variance = ((around[i] - around[i + 1]) / (2 * step) for i in (0, 2))
            found = f(mean, log_variance, *rest, False)
            value = exact(mean, log_variance, *rest, False)[0]
            tolerance = 1e-8 + 64 * ulp * (1 + abs(mean))
            assert np.allclose(found, (value, by_mean, by_log_variance), rtol=0, atol=tolerance)
            detached = f(mean, log_variance, *rest, True)
            alone = f(mean, log_variance, *flags, 1.25, weights[0], 0.0, False)
            assert detached[:2] == found[:2]
            assert detached[2] == alone[2]


@precisions
def test_infinite_logits_give_infinite_or_nan_losses(
    host: ModuleType, name: str, dtype: type, ulp: float
) -> None:
    f = formulas(host, name)
    assert f.negative_log_probability(dtype(-np.inf), dtype(1)) == np.inf
    assert np.isnan(f.negative_log_probability(dtype(np.nan), dtype(1)))


@precisions
def test_entropies(host: ModuleType, name: str, dtype: type, ulp: float) -> None:
    f = formulas(host, name)
    logits = np.random.default_rng(2).normal(size=(11, 1000)) * 4
    d = logits - logits.max(0)
    exponential = np.exp(d)
    p = exponential / exponential.sum(0)
    expected = -(p * np.log(p)).sum(0)
    by_terms = f.entropy_term(p.astype(dtype)).sum(0, dtype=np.float64)
    dot = f.weighted_exponent(exponential.astype(dtype), d.astype(dtype)).sum(0, dtype=np.float64)
    total = exponential.sum(0)
    at_once = f.softmax_entropy(
        np.log(total).astype(dtype), dot.astype(dtype), (1 / total).astype(dtype)
    )
    assert np.max(np.abs(by_terms - expected)) < 16 * ulp
    assert np.max(np.abs(at_once - expected)) < 16 * ulp
    assert f.entropy_term(dtype(0)) == 0
    assert f.weighted_exponent(dtype(0), dtype(-np.inf)) == 0


@precisions
def test_moments(host: ModuleType, name: str, dtype: type, ulp: float) -> None:
    values = np.random.default_rng(3).random(50).astype(dtype)
    mean, squares = 0.0, 0.0
    for count, value in enumerate(values, 1):
        mean, squares = formulas(host, name).accumulate_moments(value, count, mean, squares)
    exact = values.astype(np.float64)
    assert abs(mean - exact.mean()) < 50 * ulp
    assert abs(squares / 49 - exact.var(ddof=1)) < 50 * ulp


@precisions
def test_fixed_point(host: ModuleType, name: str, dtype: type, ulp: float) -> None:
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.25, 0.75]) * 2.0**-24
    values = np.concatenate([halves, np.random.default_rng(0).normal(size=5000) * 1000])
    values = values.astype(dtype)
    expected = np.rint(values.astype(np.float64) * 2**24)
    assert np.array_equal(formulas(host, name).to_fixed(values), expected.astype(np.int64))


@precisions
def test_negative_log(host: ModuleType, name: str, dtype: type, ulp: float) -> None:
    """Right for denormal probabilities, too."""
    p = np.logspace(-44.5, 0, 100_001).astype(dtype)
    expected = -np.log(p.astype(np.float64))
    error = np.abs(formulas(host, name).negative_log(p) - expected)
    assert np.all(error <= 1.5 * ulp * np.maximum(expected, 2.0**-24 / ulp / 2))
    edges = formulas(host, name).negative_log(np.array([0.0, -0.0, -1.0, np.nan], dtype))
    assert edges[:2].tolist() == [np.inf, np.inf]
    assert np.isnan(edges[2:]).all()


@precisions
def test_bins_of_uncertainty(host: ModuleType, name: str, dtype: type, ulp: float) -> None:
    """They are in the order of the values and 1/128 of an octave wide."""
    values = np.sort(np.exp(np.random.default_rng(0).uniform(-20, 5.545, 100_000)))
    bins = formulas(host, name).uncertainty_bin(values.astype(dtype))
    assert np.all(np.diff(bins) >= 0)
    within = bins > 0
    rounded = values.astype(np.float32).astype(np.float64)
    lower = 2.0 ** (bins // 128 - 24) * (1 + bins % 128 / 128)
    assert np.all(rounded[within] >= lower[within])
    assert np.all(rounded[within] < lower[within] * (1 + 1 / 128))
    edges = np.array([0.0, -0.0, 2.0**-24, 2.0**-25, 256 - 2.0**-16], dtype)
    assert formulas(host, name).uncertainty_bin(edges).tolist() == [0, 0, 0, 0, 4095]


def test_bins_of_confidence(host: ModuleType) -> None:
    """(a, b], exactly; the ends belong to the first and the last bin."""
    bins = 15
    edges = (np.arange(1, bins + 1) * 2**24 / bins).astype(np.int64)  # rounded down: inside
    assert host.f32.calibration_bin(edges, bins).tolist() == list(range(bins))
    assert host.f32.calibration_bin(edges + 1, bins).tolist() == [*range(1, bins), bins - 1]
    assert host.f32.calibration_bin(np.array([0, 1, 2**24 + 2**17]), bins).tolist() == [0, 0, 14]


AXES = [(n, m) for n in (1, 2, 3, 7, 64, 97) for m in (1, 2, 3, 5, 64, 131, 256)]


@precisions
@pytest.mark.parametrize("align_corners", [False, True])
def test_interpolation_has_torch_s_coordinates(
    host: ModuleType, name: str, dtype: type, ulp: float, align_corners: bool
) -> None:
    """Neighbours and weights are those of torch's formula, each coordinate rounded once."""
    for source, size in AXES:
        if align_corners:
            scale, offset = dtype(source - 1) / dtype(max(size - 1, 1)) * (size > 1), 0.0
        else:
            scale, offset = dtype(source) / dtype(size), 0.5
        exact = np.longdouble(scale) * (np.arange(size) + offset) - offset
        at = np.maximum(exact.astype(dtype), 0)
        lower, upper, weight = formulas(host, name).neighbours(source, size, align_corners)
        assert weight.dtype == dtype
        assert np.array_equal(lower, np.minimum(at.astype(int), source - 1))
        assert np.array_equal(weight, np.where(lower < source - 1, at - lower, 0))
        assert np.array_equal(upper, lower + (weight > 0))
    values = formulas(host, name).interpolate(dtype(2), dtype(5), np.array([0, 0.25, 1], dtype))
    assert values.tolist() == [2, 2.75, 5]


@precisions
@pytest.mark.parametrize("align_corners", [False, True])
def test_interpolation_and_its_adjoint(
    host: ModuleType, name: str, dtype: type, ulp: float, align_corners: bool
) -> None:
    """A source position's share in each position is the derivative of the value, and the range of
    positions is where it may have one: those between it and the source positions beside it."""
    f = formulas(host, name)
    for source, size in AXES:
        lower, upper, weight = f.neighbours(source, size, align_corners)
        ranges, share = f.support(source, size, align_corners)
        for i in range(source):
            one = (np.arange(source) == i).astype(dtype)
            assert np.array_equal(share[i], f.interpolate(one[lower], one[upper], weight))
            inside = np.flatnonzero((lower == i) | (lower == i - 1))
            first, last = ranges[i]
            assert np.array_equal(inside, np.arange(first, last))
            assert not np.delete(share[i], inside).any()


def test_float16_to_float_is_exact(host: ModuleType) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    actual = host.float16_to_float(bits)
    expected = bits.view(np.float16).astype(np.float32)
    assert np.array_equal(actual, expected, equal_nan=True)
    assert np.array_equal(np.signbit(actual), np.signbit(expected))


def test_bfloat16_to_float_is_exact(host: ModuleType) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(host.bfloat16_to_float(bits), expected, equal_nan=True)


def neighbours_of_halfway_points(to_float: Array) -> Array:
    """Every finite 16-bit number, the points halfway to the next one, and their neighbours."""
    finite = np.sort(to_float[np.isfinite(to_float)].astype(np.float64))
    halfway = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    with np.errstate(over="ignore"):
        points = [
            finite.astype(np.float32),
            halfway,
            np.nextafter(halfway, np.float32(np.inf)),
            np.nextafter(halfway, np.float32(-np.inf)),
        ]
    extremes = [65504, 65519.996, 65520, 65536, 3.4e38, np.inf, -np.inf, 1e-45, -1e-45, 0.0, -0.0]
    return np.concatenate([*points, np.array(extremes, np.float32)])


def test_float_to_float16_rounds_to_nearest_even(host: ModuleType) -> None:
    points = neighbours_of_halfway_points(np.arange(1 << 16, dtype=np.uint16).view(np.float16))
    with np.errstate(over="ignore"):
        expected = points.astype(np.float16).view(np.uint16)
    assert np.array_equal(host.float_to_float16(points), expected)
    assert np.isnan(host.float_to_float16(np.array([np.nan], np.float32)).view(np.float16))


def test_float_to_bfloat16_rounds_to_nearest_even(host: ModuleType) -> None:
    every = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    points = neighbours_of_halfway_points(every)
    points = points[np.isfinite(points)]
    actual = (host.float_to_bfloat16(points).astype(np.uint32) << 16).view(np.float32)
    # To the nearer of the two neighbours, and of two equally near ones to the even one.
    truncated = points.view(np.uint32) & np.uint32(0xFFFF0000)
    below = truncated.view(np.float32).astype(np.float64)
    # An infinity stands where the next number would be, if the exponent went on.
    away = (truncated + np.uint32(0x10000)).view(np.float32).astype(np.float64)
    exact = points.astype(np.float64)
    away = np.where(np.isinf(away), np.sign(exact) * 2.0**128, away)
    near_below = np.abs(exact - below) < np.abs(away - exact)
    tie = np.abs(exact - below) == np.abs(away - exact)
    even = (truncated >> 16) % 2 == 0
    expected = np.where(near_below | (tie & even), below, away)
    expected = np.where(np.abs(expected) == 2.0**128, np.copysign(np.inf, exact), expected)
    assert np.array_equal(actual, expected)
    nan = host.float_to_bfloat16(np.array([np.nan], np.float32)).astype(np.uint32) << 16
    assert np.isnan(nan.view(np.float32))


@precisions
def test_complement_of(host: ModuleType, name: str, dtype: type, ulp: float) -> None:
    """1 - e^q, near 0 as well; 0 for what rounding has made positive."""
    q = -np.logspace(-30, 1.9, 200_001).astype(dtype)
    actual = formulas(host, name).complement_of(q).astype(np.float64)
    assert relative_error(actual, -np.expm1(q.astype(np.float64))) < 3 * ulp
    assert formulas(host, name).complement_of(np.array([0.0, 1e-7], dtype)).tolist() == [0, 0]


@pytest.mark.parametrize("peak", [1.0, 3.0])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("kind", ["focal", "falling", "rising"])
@precisions
def test_modulation_and_its_slope(
    host: ModuleType, name: str, dtype: type, ulp: float, kind: str, rate: float, peak: float
) -> None:
    """The slope in log p is the central difference of the value in float64."""
    number = ["none", "focal", "falling", "rising"].index(kind)

    def value(p: float) -> float:
        return {
            "focal": peak * (1 - p) ** rate,
            "falling": peak * np.exp(-rate * p),
            "rising": peak * np.exp(-rate * (1 - p)),
        }[kind]

    for log_p in (-20.0, -3.0, -0.7, -0.34, -0.1, -1e-3):
        q = float(dtype(log_p))
        factor, slope = formulas(host, name).modulated(number, q, rate, peak, False)
        assert formulas(host, name).modulated(number, q, rate, peak, True) == (factor, 0)
        # A complement of 1e-3 has three digits less than p.
        assert factor == pytest.approx(value(np.exp(q)), rel=(8 + 8 * rate) * ulp)
        h = 1e-6 * abs(q)
        difference = (value(np.exp(q + h)) - value(np.exp(q - h))) / (2 * h)
        assert slope == pytest.approx(difference, rel=1e-5, abs=1e-7)
        assert formulas(host, name).modulated(0, q, 0.0, 1.0, False) == (1, 0)


@precisions
def test_cosine_and_sine_of_a_quadrant(
    host: ModuleType, name: str, dtype: type, ulp: float
) -> None:
    v = np.linspace(0, 1, 100_001, dtype=dtype)
    angle = np.pi / 2 * v.astype(np.float64)
    f = formulas(host, name)
    assert np.abs(f.quarter_cos(v) - np.cos(angle)).max() < 3 * ulp
    assert np.abs(f.quarter_sin(v) - np.sin(angle)).max() < 3 * ulp


# Of Random123's own tests.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, 0, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        ([2**32 - 1] * 4, 2**64 - 1, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
        ),
    ],
)
def test_philox(host: ModuleType, counter: list[int], key: int, words: list[int]) -> None:
    assert host.philox(counter, key) == words
