"""Several samples in a pass."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.statistics.cases import compare
from segunc_ops import record_forward, sample_statistics
from segunc_ops.sampling import folding


class Notes:
    """What passes note; in an object of its own, as a module's own lists prevent sharing."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.tried: list[Any] = []


class Counting(nn.Module):
    """Notes the batch of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Conv2d(8, 4, 1)
        self.notes = Notes()
        self.memory_for = 100

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        self.notes.batches.append(x.shape[0])
        features = self.encoder(x)
        if x.shape[0] > self.memory_for:
            self.notes.tried.append(weakref.ref(features))
            raise torch.OutOfMemoryError("not enough")
        return self.head(self.dropout(features))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("asked", "batches"),
    [(1, [2] * 6), (2, [4] * 3), (4, [6] * 2), (6, [12]), (100, [12]), ("auto", [12])],
)
def test_samples_are_folded_into_the_batch(asked, batches, memory_format):
    model, size = Counting().train(), (12, 20)
    images = torch.randn(2, 3, 6, 10).contiguous(memory_format=memory_format)
    torch.manual_seed(3)
    found = sample_statistics(model, images, 6, size=size, return_mean=True, samples_per_pass=asked)
    assert model.notes.batches == batches
    in_pass = batches[0] // 2
    torch.manual_seed(3)
    folded = torch.cat([images] * in_pass)
    with torch.no_grad():
        samples = [s for _ in batches for s in model(folded).chunk(in_pass)]
    large = [nn.functional.interpolate(s.double(), size, mode="bilinear") for s in samples]
    compare(found, torch.stack(large), "folded", torch.float32)


def test_what_is_no_batch_of_images_is_not_repeated():
    model, images = Counting().train(), torch.randn(2, 3, 6, 10)
    seen: list[Any] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args))
    given = (images, torch.arange(2), torch.arange(5), torch.tensor(1.0), 7, [images])
    sample_statistics(model, given, 3, samples_per_pass=3)
    ((_, labels, five, one, seven, nested),) = seen
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert five.tolist() == [0, 1, 2, 3, 4]
    assert (one, seven) == (1.0, 7)
    assert nested[0].shape == (6, 3, 6, 10)


def test_a_cpu_folds_small_images_alone():
    model = Counting().train()
    for size, batches in (((16, 16), [10]), ((64, 64), [2] * 5), ((128, 128), [1] * 10)):
        model.notes.batches.clear()
        sample_statistics(model, torch.randn(1, 3, *size), 10, samples_per_pass="auto")
        assert model.notes.batches == batches


@pytest.mark.parametrize("share", [None, False])
def test_too_little_memory_means_fewer_samples_in_a_pass(share, monkeypatch):
    model, images = Counting().train(), torch.randn(1, 3, 4, 4)
    model.memory_for = 3
    # The CPU in an accelerator's place.
    monkeypatch.setattr(folding, "_on_cpu", lambda images: False)
    sample_statistics(model, images, 10, samples_per_pass="auto", share=share)
    assert model.notes.batches == [10, 5, 2, 2, 2, 2, 2]
    gc.collect()
    assert all(features() is None for features in model.notes.tried)
    model.notes.batches.clear()
    sample_statistics(model, images, 10, samples_per_pass="auto", share=share)
    assert model.notes.batches == [2] * 5
    model.memory_for = 0
    with pytest.raises(torch.OutOfMemoryError, match="not enough"):
        sample_statistics(model, images, 10, samples_per_pass="auto", share=share)


def test_prefixes_are_shared_between_passes_of_several_samples():
    model, images = Counting().train(), torch.randn(1, 3, 4, 4)
    results = []
    for share in (True, False):
        torch.manual_seed(1)
        results.append(sample_statistics(model, images, 6, samples_per_pass=2, share=share)[:-1])
    for shared, whole in zip(*results, strict=True):
        assert torch.equal(shared, whole)


def test_errors():
    model, images = Counting().train(), torch.randn(1, 3, 4, 4)
    for asked in (0, -1):
        with pytest.raises(ValueError, match="samples_per_pass: expected at least 1 or 'auto'"):
            sample_statistics(model, images, 6, samples_per_pass=asked)
    with pytest.raises(TypeError, match="integer"):
        sample_statistics(model, images, 6, samples_per_pass=2.0)
    reduced = nn.Sequential(model, nn.Flatten(0), nn.Unflatten(0, (1, 4, -1)))
    with pytest.raises(ValueError, match="expected logits of each of the images of 2 batches"):
        sample_statistics(reduced, images, 6, samples_per_pass=2)
    with record_forward(model) as forward:
        model(images)
    with pytest.raises(ValueError, match="samples_per_pass: expected 1 or 'auto' with share_for"):
        sample_statistics(model, images, 6, samples_per_pass=2, share_forward=forward)
    sample_statistics(model, images, 6, samples_per_pass="auto", share_forward=forward)
