"""Streams and models whose logits are interpolated."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import segunc_ops
from python_tests.comparison import assert_raises, assert_same_bits
from python_tests.interpolation import interpolated
from python_tests.statistics.cases import compare
from segunc_ops import PredictiveAccumulator, ensemble_statistics, sample_statistics


def test_samples_of_any_resolution_in_one_stream():
    """Members at different output strides; the state stays one, through copies and merging."""
    size = (12, 20)
    sources = ((3, 5), (6, 10), (12, 20), (13, 11))
    samples = [torch.randn(2, 4, *source) for source in sources]
    accumulator = PredictiveAccumulator()
    for sample in samples[:2]:
        accumulator.update(sample, torch.Size(size))
    accumulator = pickle.loads(pickle.dumps(accumulator))
    rest = PredictiveAccumulator().update(samples[2]).update(samples[3], [*size])
    accumulator = copy.deepcopy(accumulator).merge(rest)
    large = torch.stack([interpolated(sample, size) for sample in samples])
    compare(accumulator.compute(), large.double(), "stream", torch.float32)
    assert repr(accumulator).startswith("PredictiveAccumulator(count=4, shape=(2, 4, 12, 20)")


def strided(stride: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride, padding=1), nn.Dropout(0.3))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_statistics_of_models_are_at_the_size_asked(backend, align_corners):
    images = torch.randn(2, 3, 16, 24)
    options = {"size": images.shape[2:], "align_corners": align_corners}

    def enlarged(logits: Tensor) -> Tensor:
        return interpolated(logits, (16, 24), align_corners).double()

    members = [strided(stride, stride) for stride in (1, 2, 4)]
    model = strided(4, 9).train()
    with segunc_ops.backend(backend), torch.no_grad():
        found = ensemble_statistics(members, images, return_mean=True, **options)
        large = torch.stack([enlarged(member.eval()(images)) for member in members])
        compare(found, large, "ensemble", torch.float32)
        torch.manual_seed(5)
        found = sample_statistics(model, images, 4, return_mean=True, **options)
        torch.manual_seed(5)
        large = torch.stack([enlarged(model(images)) for _ in range(4)])
        compare(found, large, "dropout", torch.float32)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_may_be_interpolated_in_place_of_logits(dtype, align_corners):
    model, images = strided(4, 9).train().to(dtype), torch.randn(2, 3, 16, 24, dtype=dtype)
    options = {"size": (16, 24), "align_corners": align_corners, "return_mean": True}
    torch.manual_seed(5)
    found = sample_statistics(model, images, 4, interpolate="maps", **options)
    torch.manual_seed(5)
    small = sample_statistics(model, images, 4, return_mean=True)
    for name, value in found._asdict().items():
        wanted = getattr(small, name)
        if name == "prediction":
            wanted = wanted.repeat_interleave(4, 1).repeat_interleave(4, 2)
        else:
            wanted = wanted if name == "mean" else wanted.unsqueeze(1)
            wanted = interpolated(wanted, (16, 24), align_corners)
            wanted = wanted if name == "mean" else wanted.squeeze(1)
        torch.testing.assert_close(value, wanted.to(value.dtype), rtol=1e-5, atol=1e-6, msg=name)
        assert value.is_contiguous()
    for size in (None, (4, 6)):
        torch.manual_seed(5)
        own = sample_statistics(model, images, 4, interpolate="maps", size=size, return_mean=True)
        for value, wanted in zip(own, small, strict=True):
            assert_same_bits(value, wanted, name=f"size {size}")


def test_volumes_have_maps_interpolated():
    model = nn.Sequential(nn.Conv3d(1, 3, 1), nn.Dropout(0.5))
    images = torch.randn(2, 1, 2, 3, 4)
    found = sample_statistics(model, images, 3, size=(4, 6, 8), interpolate="maps")
    assert {tuple(value.shape) for value in found[:-1]} == {(2, 4, 6, 8)}


class OneOutput(nn.Module):
    """Writes every result to the same memory, as a model that replays a CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.output = torch.empty(1, 3, 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.output.copy_(self.dropout(x))


# 18 samples of 4 x 6 take less memory than the running state at 8 x 24, 19 more.
@pytest.mark.parametrize("num_samples", [1, 2, 18, 19])
def test_samples_are_kept_or_streamed(num_samples, monkeypatch):
    streamed = []
    update = PredictiveAccumulator.update

    def noted(self, *args):
        streamed.append(args)
        return update(self, *args)

    model, images = OneOutput(), torch.randn(1, 3, 4, 6)
    torch.manual_seed(3)
    expected = PredictiveAccumulator()
    for logits in segunc_ops.sample_logits(model, images, num_samples):
        expected.update(logits, (8, 24))
    monkeypatch.setattr(PredictiveAccumulator, "update", noted)
    torch.manual_seed(3)
    found = sample_statistics(model, images, num_samples, size=(8, 24), return_mean=True)
    assert len(streamed) == (0 if num_samples <= 18 else num_samples)
    for name, value in found._asdict().items():
        wanted = getattr(expected.compute(return_mean=True), name)
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)


X = torch.zeros(2, 3, 4, 5)


def accumulated(*updates: tuple[object, ...]) -> None:
    accumulator = PredictiveAccumulator()
    for update in updates:
        accumulator.update(*update)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_refused_sample_changes_nothing(backend):
    with segunc_ops.backend(backend):
        accumulator = PredictiveAccumulator()
        for bad in ((8,), (0, 9)):
            with pytest.raises(ValueError, match="size"):
                accumulator.update(X, bad)
        assert accumulator.count == 0
        samples = torch.randn(2, 2, 3, 4, 5)
        wanted = accumulator.update(samples[0], (8, 9)).update(samples[1], (8, 9)).compute()
        with pytest.raises(ValueError, match="size"):
            accumulator.update(samples[0], (9, 9))
        assert accumulator.count == 2
        for a, b in zip(accumulator.compute()[:6], wanted[:6], strict=True):
            assert_same_bits(a, b, name="after an error")


ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "stream of two sizes": (
        lambda: accumulated((X, (8, 9)), (X, (8, 8))),
        ValueError,
        "size: expected (8, 9) like the samples so far, got (8, 8)",
    ),
    "stream that loses its size": (
        lambda: accumulated((X, (8, 9)), (X,)),
        ValueError,
        "logits: expected shape (2, 3, 8, 9) like the samples so far, got (2, 3, 4, 5); pass "
        "size=(8, 9) to interpolate, or call reset() before samples of another shape",
    ),
    "stream of other classes": (
        lambda: accumulated((X, (8, 9)), (X[:, :2], (8, 9))),
        ValueError,
        "logits: expected shape (2, 3, 8, 9) like the samples so far, got (2, 2, 8, 9); call "
        "reset()",
    ),
    "size of a stream": (
        lambda: accumulated((X, (8, 9, 10))),
        ValueError,
        "size: expected (H, W) for logits of shape (2, 3, 4, 5), got (8, 9, 10)",
    ),
    "something else interpolated": (
        lambda: sample_statistics(nn.Dropout(), X, size=(8, 9), interpolate="samples"),
        ValueError,
        "interpolate: expected one of ('logits', 'maps'), got 'samples'",
    ),
    "size of maps": (
        lambda: sample_statistics(nn.Dropout(), X, size=(8,), interpolate="maps"),
        ValueError,
        "size: expected (H, W) for logits of shape (2, 3, 4, 5), got (8,)",
    ),
    "corners of maps that stay": (
        lambda: sample_statistics(nn.Dropout(), X, align_corners=True, interpolate="maps"),
        ValueError,
        "align_corners: expected False without size, got True",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_errors(name, backend):
    assert_raises(*ERRORS[name], backend=backend)
