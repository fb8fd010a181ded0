"""Comparison of a result with the float64 truth, and what it says where they differ.

A result passes if its error is that of one rounding to its own type plus a few units of the type it
was computed in; where a peer's result in the same type is at hand (torch's), the error must also be
no larger than the peer's, up to the same rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from torch import Tensor

import segunc_ops

# Units in the last place of the accumulate type, at the scale of the terms that are summed: the
# exponential and the logarithm are within 1.5 each, the rest sums and products of rounded terms.
COMPUTE_UNITS = 16.0
# The same beyond a peer's largest error, which in a small tensor may be 0 by luck.
PEER_UNITS = 4.0
# The mean error, in parts of the allowed one, that the errors of many elements may share. Rounding
# to nearest leaves none; truncation of half-precision results leaves a half.
SHARED_BIAS = 0.25
MIN_ELEMENTS_FOR_BIAS = 256


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that logits of `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def allowed_error(
    truth: Tensor,
    dtype: torch.dtype,
    scale: float,
    compute: torch.dtype,
    roundings: int = 1,
    units: float = COMPUTE_UNITS,
) -> Tensor:
    """What rounding explains, elementwise, in float64.

    Args:
        truth: float64, any shape.
        dtype: the type of the result.
        scale: the size of the terms that the result is a sum of.
        compute: the type it was computed in.
        roundings: how often the result was rounded to its type on the way.
        units: units in the last place of that type.
    """
    info = torch.finfo(dtype)
    # Half a unit of the result's type; below its normal range units stop shrinking.
    rounding = 0.5 * roundings * info.eps * truth.abs().clamp(min=info.smallest_normal)
    if dtype == compute:
        rounding = torch.zeros_like(rounding) + info.smallest_normal
    # Single-precision exponentials under e^-87 are 0: this far below the terms of the sum.
    return rounding + units * torch.finfo(compute).eps * (scale + truth.abs())


def _where(flat_index: int, shape: torch.Size) -> str:
    return str(tuple(int(i) for i in torch.unravel_index(torch.tensor(flat_index), shape)))


def _fail_at(name: str, reason: str, bad: Tensor, actual: Tensor, truth: Tensor) -> None:
    """Raises, naming the first of the elements in `bad`."""
    first = int(bad.flatten().to(torch.uint8).argmax())
    raise AssertionError(
        f"{name}: {reason} at {int(bad.sum())} of {bad.numel()} elements, first at "
        f"{_where(first, bad.shape)}: got {actual.flatten()[first].item()!r}, expected "
        f"{truth.flatten()[first].item()!r}"
    )


def assert_close(
    actual: Tensor,
    truth: Tensor,
    *,
    name: str,
    scale: float = 1.0,
    compute: torch.dtype | None = None,
    roundings: int = 1,
    peer: Tensor | None = None,
    bias: bool = True,
) -> None:
    """Compares a result with the float64 truth; a failure names the worst element.

    Args:
        actual: the result, any float type.
        truth: float64, of the same shape.
        name: of the result, for the message.
        scale: the size of the terms that the result is a sum of.
        compute: the type it was computed in; by default what logits of its type are computed in.
        roundings: how often it was rounded to its own type on the way.
        peer: another implementation's result of the same type, which must not be more accurate.
        bias: whether errors that share a direction fail too.

    Raises:
        AssertionError: shapes differ; NaN or infinities are elsewhere; an error beyond rounding, or
            beyond rounding and the peer's; errors that lean to one side, or towards 0 or away.
    """
    if actual.shape != truth.shape:
        raise AssertionError(
            f"{name}: expected shape {tuple(truth.shape)}, got {tuple(actual.shape)}"
        )
    compute = compute or accumulate_dtype(actual.dtype)
    got, truth = actual.detach().double().cpu(), truth.detach().cpu()
    if (bad := got.isnan() != truth.isnan()).any():
        _fail_at(name, "NaN mismatch", bad, got, truth)
    # What overflows the result's type is infinite there.
    rounded = truth.to(actual.dtype).double()
    if (bad := (got.isinf() | rounded.isinf()) & (got != rounded)).any():
        _fail_at(name, "infinity mismatch", bad, got, rounded)
    finite = got.isfinite() & truth.isfinite()
    if not finite.any():
        return
    zero = torch.zeros((), dtype=torch.float64)
    error = torch.where(finite, got - truth, zero)
    at_finite = torch.where(finite, truth, zero)
    allowed = allowed_error(at_finite, actual.dtype, scale, compute, roundings)
    excess = error.abs() / allowed
    worst = int(excess.argmax())
    if excess.flatten()[worst] > 1:
        raise AssertionError(
            f"{name}: {int((excess > 1).sum())} of {excess.numel()} elements differ; worst at "
            f"{_where(worst, excess.shape)}: got {got.flatten()[worst].item()!r}, expected "
            f"{truth.flatten()[worst].item()!r}, {excess.flatten()[worst].item():.3g} times the "
            f"allowed error {allowed.flatten()[worst].item():.3g}"
        )
    if peer is not None:
        peer_error = torch.where(finite, peer.detach().double().cpu() - truth, zero).abs()
        peer_worst = float(peer_error.max()) if peer_error.isfinite().all() else math.inf
        margin = allowed_error(at_finite, actual.dtype, scale, compute, roundings, PEER_UNITS)
        own = int((error.abs() - margin).argmax())
        if error.abs().flatten()[own] > peer_worst + margin.flatten()[own]:
            raise AssertionError(
                f"{name}: error {error.flatten()[own].item():.3g} at {_where(own, error.shape)}, "
                f"the peer's largest is {peer_worst:.3g}"
            )
    if bias:
        # What is too small for the type always becomes 0: no sign of a mistake.
        counts = finite & (truth.abs() >= torch.finfo(actual.dtype).smallest_normal)
        share = (error / allowed)[counts]
        away = share * truth[counts].sign()
        if share.numel() < MIN_ELEMENTS_FOR_BIAS:
            return
        limit = SHARED_BIAS + 4 / math.sqrt(share.numel())
        for direction, mean in (("upwards", share.mean()), ("away from 0", away.mean())):
            if abs(float(mean)) > limit:
                raise AssertionError(
                    f"{name}: errors lean {direction} by {float(mean):+.3g} of the allowed error "
                    f"on average over {share.numel()} elements"
                )


def assert_gradients_exist(
    gradients: Mapping[str, Tensor | None], wanted: Mapping[str, bool]
) -> None:
    """Checks that exactly the wanted gradients are there, by name.

    Raises:
        AssertionError: a wanted gradient is missing, or one came that nobody wanted.
    """
    for name, expected in wanted.items():
        gradient = gradients.get(name)
        if expected and gradient is None:
            raise AssertionError(f"gradient of {name}: missing")
        if not expected and gradient is not None:
            raise AssertionError(f"gradient of {name}: not wanted, got {tuple(gradient.shape)}")


def assert_same_bits(actual: Tensor, expected: Tensor, *, name: str) -> None:
    """Checks type, shape and every bit; a failure names the first difference."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        raise AssertionError(
            f"{name}: expected {expected.dtype} {tuple(expected.shape)}, got {actual.dtype} "
            f"{tuple(actual.shape)}"
        )
    as_bytes = [
        t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (actual, expected)
    ]
    if torch.equal(*as_bytes):
        return
    size = actual.element_size()
    bad = (as_bytes[0] != as_bytes[1]).view(-1, size).any(1).view(actual.shape)
    _fail_at(name, "bits differ", bad, actual.detach().cpu(), expected.detach().cpu())


def assert_same_bits_on_every_run(
    run: Callable[[], Iterable[Tensor]], *, name: str, runs: int = 60
) -> None:
    """Checks that fresh results have the same bits on every run and for any number of threads, in
    deterministic mode, which fills fresh memory with NaN."""
    torch.use_deterministic_algorithms(True)
    first = [*run()]
    for number in range(runs):
        torch.set_num_threads(1 + number % 3)
        for index, (again, before) in enumerate(zip(run(), first, strict=True)):
            assert_same_bits(again, before, name=f"{name}: run {number}, result {index}")


def assert_raises(
    call: Callable[[], object], exception: type[Exception], message: str, *, backend: str
) -> None:
    """Fails unless a call raises this very type, with a text that starts by `message`."""
    with (
        segunc_ops.backend(backend),
        pytest.raises(exception, match="^" + re.escape(message)) as caught,
    ):
        call()
    assert caught.type is exception
