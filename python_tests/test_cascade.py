"""Cascades of models: against whole-image results, by hand, and their errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segunc_ops
from segunc_ops import (
    Cascade,
    agreement_map,
    block_oracle,
    model_map,
    pixel_oracle,
    select_pixels,
)
from segunc_ops.functional import block_uncertainty, predictive_statistics

INF = math.inf
CLASSES = 5
SIZE = (48, 96)


def pointwise(seed: int, sharpness: float = 2.0) -> nn.Conv2d:
    """A model whose result for a pixel depends on that pixel alone: crops give what images give."""
    torch.manual_seed(seed)
    model = nn.Conv2d(3, CLASSES, 1)
    model.weight.data.mul_(sharpness)
    return model


def images_of(count: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    """Left certain, right not."""
    torch.manual_seed(7)
    images = torch.randn(count, 3, *size)
    return images * torch.linspace(3, 0.1, size[1])


def statistics_of(model: Callable[[Tensor], Tensor], images: Tensor):
    with torch.no_grad():
        return predictive_statistics([model(images)], size=images.shape[2:], return_mean=True)


def median(uncertainty: Tensor) -> float:
    """A threshold that parts the blocks."""
    return float(uncertainty.flatten().median())


# The two ends


@pytest.mark.parametrize("stride", [None, (12, 10), (16, 24)])
@pytest.mark.parametrize("context", [0, 5])
def test_an_infinite_threshold_is_the_fast_model(stride, context):
    fast = nn.Conv2d(3, CLASSES, 4, 4)  # at a quarter of the resolution
    images = images_of()
    expected = statistics_of(fast, images)
    cascade = Cascade([fast, pointwise(1)], (16, 24), INF, stride, context=context)
    result = cascade(images, return_probabilities=True)
    assert torch.equal(result.prediction, expected.prediction)
    assert torch.equal(result.probabilities, expected.mean)
    assert torch.equal(cascade(images).prediction, expected.prediction)
    assert cascade(images).probabilities is None
    assert not result.model.any()
    logits = fast(images)
    torch.testing.assert_close(
        result.uncertainty,
        block_uncertainty(logits, block_size=(16, 24), stride=cascade.stride, size=SIZE),
    )


@pytest.mark.parametrize("stride", [None, (12, 10)])
def test_minus_infinity_is_the_accurate_model_by_blocks(stride):
    accurate = nn.Conv2d(3, CLASSES, 3, padding=1)
    images = images_of(size=(40, 50))  # no multiple of the block
    cascade = Cascade([pointwise(0), accurate], (16, 24), -INF, stride)
    result = cascade(images, return_probabilities=True)
    assert result.model.all()
    total = torch.zeros(2, CLASSES, 40, 50)
    count = torch.zeros(40, 50)
    rows = [0, 16, 24] if stride is None else [0, 12, 24]
    columns = [0, 24, 26] if stride is None else [0, 10, 20, 26]
    assert result.model.shape == (2, len(rows), len(columns))
    for row in rows:
        for column in columns:
            where = (slice(row, row + 16), slice(column, column + 24))
            block = images[:, :, where[0], where[1]]
            total[:, :, where[0], where[1]] += accurate(block).softmax(1).detach()
            count[where] += 1
    torch.testing.assert_close(result.probabilities, total / count)
    assert torch.equal(result.prediction, result.probabilities.argmax(1))
    assert torch.equal(cascade(images).prediction, result.prediction)


def test_every_block_is_taken_though_it_be_certain_or_no_number():
    images = torch.ones(1, 3, 8, 8)

    def certain(images: Tensor) -> Tensor:
        logits = images.new_zeros(len(images), CLASSES, *images.shape[2:])
        logits[:, 0] = 1e3
        return logits

    def broken(images: Tensor) -> Tensor:
        return certain(images) * math.nan

    for first in (certain, broken):
        assert Cascade([first, certain], 4, -INF)(images).model.all()
        assert not Cascade([first, certain], 4, 0.0)(images).model.any()


def test_the_numbers_of_blocks_are_the_papers():
    """32, 8 and 18 of a 1024 x 2048 image."""
    images = torch.zeros(1, 1, 1024, 2048)

    def model(images: Tensor) -> Tensor:
        return images[:, :, ::64, ::64].expand(-1, 2, -1, -1)

    for block, stride, expected in ((256, None, 32), (512, None, 8), (480, 320, 18)):
        result = Cascade([model, model], block, -INF, stride)(images)
        assert result.model.numel() == expected
        assert result.block_counts(2).tolist() == [[expected, expected]]


# Between


@pytest.mark.parametrize("return_probabilities", [False, True])
def test_blocks_above_the_threshold_are_replaced_and_no_others(return_probabilities):
    fast, accurate = pointwise(0), pointwise(1)
    images = images_of()
    uncertainty = Cascade([fast, accurate], 16, INF)(images).uncertainty
    threshold = median(uncertainty)
    result = Cascade([fast, accurate], 16, threshold)(
        images, return_probabilities=return_probabilities
    )
    taken = uncertainty > threshold  # strictly: the median block is not taken
    assert 0 < taken.sum() < taken.numel()
    assert torch.equal(result.model, taken.long())
    assert torch.equal(result.uncertainty, uncertainty)
    pixels = taken.repeat_interleave(16, 1).repeat_interleave(16, 2)
    expected = torch.where(
        pixels, statistics_of(accurate, images).prediction, statistics_of(fast, images).prediction
    )
    assert torch.equal(result.prediction, expected)


def test_where_taken_blocks_overlap_only_theirs_are_averaged():
    """Each block has a model's answer of its own, told by its mean."""
    images = torch.zeros(1, 1, 4, 10)
    images[..., 5:] = 1

    def fast(images: Tensor) -> Tensor:
        return torch.cat([3 * images, -3 * images], 1)

    def accurate(images: Tensor) -> Tensor:
        mean = images.mean((2, 3), keepdim=True)
        return torch.cat([mean, -mean], 1).expand(-1, -1, *images.shape[2:])

    result = Cascade([fast, accurate], (4, 6), 0.5, (4, 2))(images, return_probabilities=True)
    assert result.model.tolist() == [[[1, 1, 0]]]
    first, second, last = (torch.tensor([m, -m]).softmax(0) for m in (1 / 6, 3 / 6, 3.0))
    expected = torch.stack(
        [first] * 2 + [(first + second) / 2] * 4 + [second] * 2 + [last] * 2,
        1,
    )
    torch.testing.assert_close(result.probabilities[0], expected[:, None].expand(2, 4, 10))


def test_context_lets_a_model_see_beyond_its_block():
    """As much as its receptive field makes a block what it is in the whole image."""
    accurate = nn.Conv2d(3, CLASSES, 7, padding=3, padding_mode="replicate")
    images = images_of(size=(40, 50))
    whole = statistics_of(accurate, images)
    models = [pointwise(0), accurate]
    seen = Cascade(models, 16, -INF, context=3)(images, return_probabilities=True)
    torch.testing.assert_close(seen.probabilities, whole.mean)
    assert torch.equal(seen.prediction, whole.prediction)
    unseen = Cascade(models, 16, -INF)(images, return_probabilities=True)
    assert (unseen.probabilities - whole.mean).abs().max() > 0.01
    everything = Cascade(models, 16, -INF, context=(100, 1000))(images)
    assert torch.equal(everything.prediction, whole.prediction)


def test_all_crops_have_one_size_and_run_in_as_few_batches_as_fit():
    shapes = []

    def accurate(images: Tensor) -> Tensor:
        shapes.append(tuple(images.shape))
        return images.repeat(1, 2, 1, 1)[:, :CLASSES]

    def run(**options) -> list[tuple[int, ...]]:
        shapes.clear()
        Cascade([pointwise(0), accurate], 16, -INF, **options)(images_of())
        return shapes

    # 18 blocks of each of two images.
    assert run() == [(36, 3, 16, 16)]
    assert run(max_batch=8) == [(7, 3, 16, 16)] * 4 + [(8, 3, 16, 16)]
    # As many as have the images' pixels.
    assert run(context=4) == [(12, 3, 24, 24)] * 3
    assert run(context=(4, 100)) == [(4, 3, 24, 96)] * 9
    assert run(max_batch=100, context=(0, 8)) == [(36, 3, 16, 32)]


def test_models_that_need_multiples_of_a_size():
    shapes = []

    def demanding(model: nn.Module) -> Callable[[Tensor], Tensor]:
        def run(images: Tensor) -> Tensor:
            assert images.shape[2] % 16 == images.shape[3] % 16 == 0
            shapes.append(tuple(images.shape))
            return model(images)

        return run

    fast = nn.Conv2d(3, CLASSES, 4, 4)
    accurate = nn.Conv2d(3, CLASSES, 3, padding=1)
    images = images_of(size=(40, 61))
    options = {"context": (2, 4), "multiple_of": 16}
    models = [demanding(fast), demanding(accurate)]
    result = Cascade(models, (20, 24), -INF, **options)(images, return_probabilities=True)
    # 20 + 2 * 2 and 24 + 2 * 4 are at most 32 and 32, which the image has.
    assert shapes[0] == (2, 3, 48, 64)
    assert {shape[1:] for shape in shapes[1:]} == {(3, 32, 32)}
    whole = statistics_of(accurate, images)
    seen = Cascade([fast, accurate], (20, 24), -INF, context=8)(images, return_probabilities=True)
    torch.testing.assert_close(result.probabilities, seen.probabilities)
    torch.testing.assert_close(result.probabilities, whole.mean)
    # Where the image is smaller than a multiple, crops are padded, too.
    shapes.clear()
    small = images[..., :30, :30]
    result = Cascade(models, 30, -INF, multiple_of=16)(small)
    assert shapes == [(2, 3, 32, 32)] * 2
    assert result.prediction.shape == (2, 30, 30)
    padded = F.pad(small, (0, 2, 0, 2), mode="replicate")
    first = Cascade(models, 30, INF, multiple_of=16)(small, return_probabilities=True)
    expected = statistics_of(fast, padded)
    assert torch.equal(first.probabilities, expected.mean[..., :30, :30])
    assert first.prediction.is_contiguous()
    assert result.uncertainty.shape == (2, 1, 1)


def test_batches_change_nothing():
    models = [nn.Conv2d(3, CLASSES, 4, 4), nn.Conv2d(3, CLASSES, 3, padding=1)]
    images = images_of()
    options = {"stride": (12, 10), "context": 2}
    whole = Cascade(models, 16, 0.5, **options)(images, return_probabilities=True)
    single = Cascade(models, 16, 0.5, max_batch=1, **options)(images, return_probabilities=True)
    torch.testing.assert_close(single.probabilities, whole.probabilities)
    alone = Cascade(models, 16, 0.5, **options)(images[1:], return_probabilities=True)
    torch.testing.assert_close(alone.probabilities, whole.probabilities[1:])
    assert torch.equal(alone.model, whole.model[1:])


def test_a_third_model_gets_what_the_second_is_unsure_of():
    models = [pointwise(seed, 1.0) for seed in range(3)]
    images = images_of()
    first = Cascade(models[:2], 16, INF)(images).uncertainty
    second = Cascade([models[1], models[2]], 16, INF)(images).uncertainty
    thresholds = (float(first.quantile(0.3)), float(second.quantile(0.58)))
    result = Cascade(models, 16, thresholds)(images)
    one = first > thresholds[0]
    two = one & (second > thresholds[1])
    assert 0 < two.sum() < one.sum() < one.numel()
    assert torch.equal(result.model, one.long() + two)
    torch.testing.assert_close(result.uncertainty, torch.where(one, second, first))
    pixels = result.model.repeat_interleave(16, 1).repeat_interleave(16, 2)
    predictions = torch.stack([statistics_of(model, images).prediction for model in models])
    assert torch.equal(result.prediction, predictions.gather(0, pixels[None])[0])
    counts = result.block_counts(3)
    assert torch.equal(counts[:, 0], torch.full((2,), 18))
    assert torch.equal(counts[:, 1:], torch.stack([one.sum((1, 2)), two.sum((1, 2))], 1))


# What models may be


def test_models_are_left_as_they_were_and_run_in_evaluation_mode():
    fast = nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.BatchNorm2d(CLASSES), nn.Dropout())
    accurate = nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.Dropout())
    cascade = Cascade([fast, accurate], 16, -INF).train()
    accurate[1].eval()
    before = {name: value.clone() for name, value in cascade.state_dict().items()}
    images = images_of()
    first, again = cascade(images), cascade(images)
    assert torch.equal(first.prediction, again.prediction)
    assert fast.training
    assert not accurate[1].training
    for name, value in cascade.state_dict().items():
        assert torch.equal(value, before[name])
    assert not cascade(images, return_probabilities=True).probabilities.requires_grad


@pytest.mark.parametrize("output", ["out", "logits", "list"])
def test_models_return_what_is_customary(output):
    def wrapped(model: nn.Module) -> Callable[[Tensor], object]:
        if output == "list":
            return lambda images: [model(images), None]
        return lambda images: {output: model(images)}

    models = [pointwise(0), pointwise(1)]
    images = images_of()
    pick = (lambda each: each[0]) if output == "list" else None
    result = Cascade([*map(wrapped, models)], 16, 0.5, output=pick)(images)
    assert torch.equal(result.prediction, Cascade(models, 16, 0.5)(images).prediction)


def test_modules_move_with_the_cascade_and_are_in_its_state():
    cascade = Cascade([pointwise(0), lambda images: images.repeat(1, 2, 1, 1)[:, :5]], 16, 0.5)
    assert set(cascade.state_dict()) == {"models.0.weight", "models.0.bias"}
    result = cascade.double()(images_of().double(), return_probabilities=True)
    assert result.probabilities.dtype == torch.float64
    assert "block_size=(16, 16)" in repr(cascade)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    cascade = Cascade([pointwise(0), pointwise(1)], 16, 0.5, 8).to(dtype)
    result = cascade(images_of().to(dtype), return_probabilities=True)
    assert result.probabilities.dtype == torch.float32
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(2, *SIZE))


def test_autocast():
    models = [nn.Conv2d(3, CLASSES, 4, 4), nn.Conv2d(3, CLASSES, 3, padding=1)]
    plain = Cascade(models, 16, 0.5)(images_of(), return_probabilities=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = Cascade(models, 16, 0.5)(images_of(), return_probabilities=True)
    assert result.probabilities.dtype == result.uncertainty.dtype == torch.float32
    assert torch.equal(result.model, plain.model)
    torch.testing.assert_close(result.probabilities, plain.probabilities, atol=0.05, rtol=0)


def test_crops_keep_the_images_layout():
    layouts = []

    def accurate(images: Tensor) -> Tensor:
        layouts.append(images.is_contiguous(memory_format=torch.channels_last))
        return images.repeat(1, 2, 1, 1)[:, :CLASSES]

    cascade = Cascade([pointwise(0), accurate], 16, -INF)
    plain = cascade(images_of())
    last = cascade(images_of().to(memory_format=torch.channels_last))
    assert layouts == [False, True]
    assert torch.equal(plain.prediction, last.prediction)


def test_no_images():
    result = Cascade([pointwise(0), pointwise(1)], 16, -INF)(torch.zeros(0, 3, 16, 32))
    assert result.prediction.shape == (0, 16, 32)
    assert result.model.shape == (0, 1, 2)


# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"models": [pointwise(0)]}, ValueError, "models: expected at least two, got 1"),
        ({"models": pointwise(0)}, TypeError, "models: expected several, got one; pass a list"),
        ({"models": [pointwise(0), 3]}, TypeError, r"models\[1\]: expected a module or function"),
        ({"threshold": -0.1}, ValueError, "at least 0, got -0.1; -inf takes every block"),
        ({"threshold": math.nan}, ValueError, "threshold: expected bits of at least 0, got nan"),
        ({"threshold": (1.0, 2.0)}, ValueError, "expected one number or 1, one for each model but"),
        ({"threshold": "high"}, TypeError, "threshold: expected a number, got str"),
        ({"block_size": 0}, ValueError, "block_size: expected at least 1, got 0"),
        ({"block_size": (1, 2, 3)}, ValueError, "block_size: expected an integer or"),
        ({"block_size": 1.5}, TypeError, "block_size: expected an integer, got float"),
        ({"stride": 17}, ValueError, r"stride: expected at most block_size \(16, 16\)"),
        ({"context": -1}, ValueError, "context: expected at least 0, got -1"),
        ({"multiple_of": 0}, ValueError, "multiple_of: expected at least 1, got 0"),
        ({"max_batch": 0}, ValueError, "max_batch: expected at least 1, got 0"),
    ],
)
def test_arguments_that_cannot_be(options, error, message):
    given = {"models": [pointwise(0), pointwise(1)], "block_size": 16, "threshold": 0.5, **options}
    with pytest.raises(error, match=message):
        Cascade(**given)


def test_blocks_larger_than_the_images():
    cascade = Cascade([pointwise(0), pointwise(1)], (16, 100), 0.5)
    with pytest.raises(ValueError, match=r"at most the image's \(48, 96\), got \(16, 100\)"):
        cascade(images_of())
    with pytest.raises(ValueError, match=r"images: expected shape \(N, channels, H, W\)"):
        cascade(images_of()[0])
    with pytest.raises(TypeError, match="images: expected a tensor, got list"):
        cascade([images_of()])


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            nn.Conv2d(3, 7, 1),
            ValueError,
            r"models\[1\]: expected logits of 5 classes like models\[0\], got 7",
        ),
        (
            lambda images: images.mean(1),
            ValueError,
            r"models\[1\]: expected logits of shape \(36, C, h, w\)",
        ),
        (lambda images: None, TypeError, "output: expected the model to return a tensor"),
        (nn.LazyConv2d(CLASSES, 1), ValueError, r"models\[1\]: expected initialised parameters"),
    ],
)
def test_models_that_do_not_fit(model, error, message):
    with pytest.raises(error, match=message):
        Cascade([pointwise(0), model], 16, -INF)(images_of())


# By pixels, and with labels


def test_pixels_above_the_threshold_take_the_next_models_result():
    models = [nn.Conv2d(3, CLASSES, 4, 4), pointwise(1), pointwise(2)]
    images = images_of()
    logits = [model(images).detach() for model in models]
    each = [statistics_of(model, images) for model in models]
    entropy = [one.entropy / math.log(2) for one in each]
    thresholds = (median(entropy[0]), median(entropy[1]))
    one = entropy[0] > thresholds[0]
    two = one & (entropy[1] > thresholds[1])
    result = select_pixels(logits, thresholds, size=SIZE)
    assert torch.equal(result.model, one.long() + two)
    expected = torch.where(one, each[1].prediction, each[0].prediction)
    assert torch.equal(result.prediction, torch.where(two, each[2].prediction, expected))
    torch.testing.assert_close(result.uncertainty, torch.where(one, entropy[1], entropy[0]))
    for threshold, number in ((INF, 0), (-INF, 2)):
        end = select_pixels(logits, threshold, size=SIZE)
        assert torch.equal(end.prediction, each[number].prediction)
        assert (end.model == number).all()


def test_blocks_of_a_pixel_are_the_selection_by_pixels():
    fast, accurate = pointwise(0), pointwise(1)
    images = images_of(1, (6, 8))
    blocks = Cascade([fast, accurate], 1, 0.7)(images)
    pixels = select_pixels([fast(images).detach(), accurate(images).detach()], 0.7)
    assert torch.equal(blocks.prediction, pixels.prediction)
    assert torch.equal(blocks.model, pixels.model)


def test_errors_of_a_selection_by_pixels():
    logits = torch.zeros(1, CLASSES, 4, 4)
    with pytest.raises(ValueError, match="logits: expected those of at least two models, got 1"):
        select_pixels([logits], 0.5)
    with pytest.raises(ValueError, match=r"logits\[1\]: expected \(1, 5\) images and classes"):
        select_pixels([logits, torch.zeros(1, 3, 4, 4)], 0.5)
    with pytest.raises(ValueError, match=r"logits\[1\]: expected \(4, 4\) pixels .* pass size="):
        select_pixels([logits, torch.zeros(1, CLASSES, 2, 2)], 0.5)
    with pytest.raises(ValueError, match="threshold: expected bits of at least 0"):
        select_pixels([logits, logits], -1)


def predictions_and_target() -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(3)
    target = torch.randint(0, 4, (2, 10, 14))
    predictions = [
        torch.where(torch.rand(target.shape) < share, target, torch.randint(0, 4, target.shape))
        for share in (0.3, 0.4, 0.5)
    ]
    target[:, :2] = 255
    return predictions, target


def test_oracles_by_hand():
    fast = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 0]]])
    accurate = torch.tensor([[[1, 0, 1, 1], [1, 1, 0, 0]]])
    target = torch.tensor([[[1, 0, 1, 9], [0, 1, 0, 0]]])
    pixels = pixel_oracle([fast, accurate], target, ignore_index=9)
    assert pixels.model.tolist() == [[[1, 0, 0, 0], [0, 0, 1, 0]]]
    assert pixels.prediction.tolist() == [[[1, 0, 1, 1], [0, 1, 0, 0]]]
    # Left three of four right by either: the faster one. Right two, and three by the accurate one.
    blocks = block_oracle([fast, accurate], target, 2, ignore_index=9)
    assert blocks.model.tolist() == [[[0, 1]]]
    assert blocks.prediction.tolist() == [[[0, 0, 1, 1], [0, 1, 0, 0]]]
    assert agreement_map(fast, accurate, target, ignore_index=9).tolist() == [
        [[2, 0, 0, 255], [1, 0, 2, 0]]
    ]
    both = agreement_map(fast, accurate, torch.full_like(target, 5))
    assert (both == 3).all()
    assert both.dtype == torch.uint8


def test_oracles_of_single_pixels_are_one():
    predictions, target = predictions_and_target()
    pixels = pixel_oracle(predictions, target, ignore_index=255)
    blocks = block_oracle(predictions, target, 1, ignore_index=255)
    assert torch.equal(pixels.model, blocks.model)
    assert torch.equal(pixels.prediction, blocks.prediction)
    right = torch.stack([prediction == target for prediction in predictions]).any(0)
    labelled = target != 255
    assert torch.equal((pixels.prediction == target)[labelled], right[labelled])
    assert torch.equal(pixels.prediction[~labelled], predictions[0][~labelled])


@pytest.mark.parametrize("stride", [None, 3])
def test_block_oracles_take_the_model_with_most_right_pixels(stride):
    predictions, target = predictions_and_target()
    found = block_oracle(predictions, target, (4, 5), stride, ignore_index=255)
    rows = [0, 4, 6] if stride is None else [0, 3, 6]
    columns = [0, 5, 9] if stride is None else [0, 3, 6, 9]
    of_pixels = torch.zeros_like(target)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            where = (slice(None), slice(row, row + 4), slice(column, column + 5))
            valid = target[where] != 255
            counts = [
                ((prediction[where] == target[where]) & valid).sum((1, 2))
                for prediction in predictions
            ]
            best = torch.stack(counts).argmax(0)
            assert torch.equal(found.model[:, i, j], best)
            of_pixels[where] = torch.maximum(of_pixels[where], best[:, None, None])
    assert found.model.shape == (2, len(rows), len(columns))
    expected = torch.stack(predictions).gather(0, of_pixels[None])[0]
    assert torch.equal(found.prediction, expected)


def test_errors_of_oracles():
    predictions, target = predictions_and_target()
    with pytest.raises(ValueError, match="predictions: expected those of at least two models"):
        pixel_oracle(predictions[:1], target)
    with pytest.raises(ValueError, match=r"predictions\[1\]: expected the target's shape"):
        pixel_oracle([predictions[0], predictions[1][:1]], target)
    with pytest.raises(ValueError, match=r"target: expected shape \(N, H, W\)"):
        pixel_oracle(predictions, target[0])
    with pytest.raises(TypeError, match="target: expected int64, int32, int16 or uint8"):
        agreement_map(*predictions[:2], target.float())
    with pytest.raises(ValueError, match=r"block_size: expected at most the image's \(10, 14\)"):
        block_oracle(predictions, target, 11)
    with pytest.raises(ValueError, match="stride: expected at most"):
        block_oracle(predictions, target, 4, 5)


def test_the_accurate_models_pixels_are_interpolated_within_the_crop():
    """Logits of crops at a quarter of their resolution, as of whole images."""
    accurate = nn.AvgPool2d(4)
    images = torch.rand(1, CLASSES, 32, 32)
    fast = nn.Identity()
    result = Cascade([fast, accurate], 16, -INF)(images, return_probabilities=True)
    corner = F.interpolate(accurate(images[..., :16, 16:]), (16, 16), mode="bilinear").softmax(1)
    torch.testing.assert_close(result.probabilities[..., :16, 16:], corner)


def test_pixels_have_the_last_model_of_their_blocks():
    model = torch.tensor([[[0, 2, 1]], [[0, 0, 1]]])
    found = model_map(model, (4, 10), (4, 6), (4, 2))
    assert found[:, 0].tolist() == [[0, 0, *[2] * 6, 1, 1], [*[0] * 4, *[1] * 6]]
    assert torch.equal(found, found[:, :1].expand(-1, 4, -1))
    with pytest.raises(ValueError, match=r"model: expected shape \(N, 1, 3\), got \(2, 3\)"):
        model_map(model[:, 0], (4, 10), (4, 6), (4, 2))


def test_names_are_public():
    for name in ("Cascade", "CascadeResult", "OracleResult", "AGREEMENT_COLOURS"):
        assert hasattr(segunc_ops, name)
        assert name in segunc_ops.__all__
