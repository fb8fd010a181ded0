"""Dropout by random numbers of few bits."""

import pytest
import torch
from torch import nn

from segunc_ops import Observer, UncertaintyAwareCrossEntropyLoss, sample_logits, sample_statistics
from segunc_ops.sampling.masks import quick_masks

BITS = [8, 16]


def dropped(layer, values, bits):
    model = nn.Sequential(layer)
    with quick_masks(model, bits), torch.no_grad():
        return model(values)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_values_are_dropped_with_the_rounded_probability(p, bits):
    torch.manual_seed(0)
    shape = (100, 7, 31, 47)  # its last word is not used up
    found = dropped(nn.Dropout(p), torch.ones(shape), bits)
    share = round(p * 2**bits) / 2**bits
    assert found[found != 0].unique().tolist() == [pytest.approx(1 / (1 - share), rel=1e-6)]
    number = found.numel()
    deviation = (share * (1 - share) / number) ** 0.5
    assert (found == 0).double().mean().item() == pytest.approx(share, abs=4 * deviation)
    is_dropped = (found == 0).flatten().double() - share
    for lag in (1, 2, 3, 4, 7, 8, 31, 47, 624 * 4):  # within a number, a row, the generator's state
        together = (is_dropped[lag:] * is_dropped[:-lag]).mean().item()
        assert abs(together) < 4 * share * (1 - share) / number**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
def test_layouts_and_types_are_the_inputs(dtype, inplace):
    plain = torch.randn(2, 5, 6, 8, dtype=dtype)
    for values in (
        plain,
        plain.contiguous(memory_format=torch.channels_last),
        plain.transpose(1, 3),
        plain[:, ::2, :, 1:],
        plain[0, 0, 0, 0],
        plain[:0],
    ):
        given = values.clone(memory_format=torch.preserve_format)
        found = dropped(nn.Dropout(0.25, inplace), given, 16)
        assert (found is given) == inplace
        assert found.dtype == dtype
        assert found.stride() == nn.functional.dropout(values).stride()
        kept = found != 0
        torch.testing.assert_close(found[kept], (values / 0.75)[kept])


def test_other_layers_and_probabilities_are_torchs():
    class Own(nn.Dropout):
        pass

    values = torch.randn(4, 8, 5, 5)
    for layer in (
        nn.Dropout2d(0.5),
        Own(0.5),
        nn.Dropout(1.0),
        nn.Dropout(1e-6),
        nn.AlphaDropout(),
    ):
        torch.manual_seed(0)
        expected = layer(values)
        torch.manual_seed(0)
        assert torch.equal(dropped(layer, values, 16), expected)
    assert torch.equal(dropped(nn.Dropout(0.5).eval(), values, 16), values)


def test_a_compiled_model_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(0.3))
    compiled, images = torch.compile(model, backend="eager"), torch.randn(2, 3, 4, 4)
    found = []
    for bits in (None, 16, 8):
        torch.manual_seed(1)
        found.append(sample_statistics(compiled, images, 3, mask_bits=bits).std)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("bits", BITS)
def test_samples_are_the_same_shared_and_whole(bits):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 4, 3), nn.Dropout(0.1)
    )
    images = torch.randn(2, 3, 12, 14)
    found = []
    for share in (True, False):
        torch.manual_seed(1)
        found.append(
            sample_statistics(model, images, 4, mask_bits=bits, share=share, size=(12, 14))
        )
    torch.manual_seed(1)
    samples = torch.stack([*sample_logits(model, images, 4, mask_bits=bits)])
    assert all(map(torch.equal, found[0][:-1], found[1][:-1]))
    assert len(samples.unique(dim=0)) == 4
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_it_estimates_is_what_torchs_numbers_do():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Dropout(0.2), nn.Conv2d(64, 5, 1))
    images = torch.randn(1, 3, 8, 8)
    mine, torchs = (
        sample_statistics(model, images, 4000, mask_bits=bits, share=True) for bits in (16, None)
    )
    # Of 4,000 samples a deviation is known to about 1 / sqrt(8000) of itself.
    torch.testing.assert_close(mine.std, torchs.std, rtol=0.08, atol=0)
    torch.testing.assert_close(mine.entropy, torchs.entropy, rtol=0.02, atol=0)


def test_a_failing_pass_leaves_nothing_behind():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    model = nn.Sequential(nn.Dropout(0.5), Failing())
    with pytest.raises(RuntimeError, match="no"):
        sample_statistics(model, torch.randn(1, 2, 3, 3), 2, mask_bits=8)
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize("mask_bits", [0, 4, 32])
def test_errors(mask_bits):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5))
    for call in (
        lambda: sample_logits(model, torch.randn(1, 3, 2, 2), mask_bits=mask_bits),
        lambda: sample_statistics(model, torch.randn(1, 3, 2, 2), mask_bits=mask_bits),
        lambda: Observer(model, UncertaintyAwareCrossEntropyLoss(), mask_bits=mask_bits),
    ):
        with pytest.raises(ValueError, match=f"mask_bits: expected None, 8 or 16, got {mask_bits}"):
            call()


def test_an_observer_passes_it_on(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.Conv2d(4, 3, 1))
    criterion = UncertaintyAwareCrossEntropyLoss()
    seen = []
    random = torch.Tensor.random_
    monkeypatch.setattr(
        torch.Tensor, "random_", lambda *given: seen.append(len(given[0])) or random(*given)
    )
    with Observer(model, criterion, 3, mask_bits=16, share_forward=True):
        labels = torch.zeros(2, 4, 4, dtype=torch.long)
        for _ in range(2):
            criterion(model(torch.randn(2, 3, 4, 4)), labels).backward()
    assert seen == [32] * 6  # of 128 values four in a number
