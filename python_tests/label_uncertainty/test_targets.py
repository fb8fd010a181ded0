"""Labels of several classes that become the network's own."""

from __future__ import annotations

import pytest
import torch

import segunc_ops.functional as sf
from python_tests.support import IGNORED, LOGITS_DTYPES, TARGET_DTYPES


def scores(dtype=torch.float32, classes=4):
    mean = torch.randn(3, classes, 6, 7).to(dtype)
    variance = torch.randn(3, classes, 6, 7).exp().to(dtype)
    target = torch.randint(0, classes, (3, 6, 7))
    target[torch.rand(target.shape) < 0.2] = IGNORED
    return mean, variance, target


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_pixel_by_pixel(dtype):
    mean, variance, target = scores(dtype)
    bootstrap = torch.tensor([True, False, True])
    for target_dtype in TARGET_DTYPES:
        given = target.to(target_dtype)
        found = sf.bootstrap_targets(
            mean, variance, given, threshold=2.5, bootstrap=bootstrap, ignore_index=IGNORED
        )
        assert found.dtype == target_dtype
        changed = 0
        for index in torch.cartesian_prod(*map(torch.arange, target.shape)).tolist():
            image, *pixel = index
            of_pixel = (image, slice(None), *pixel)
            wanted = given[tuple(index)]
            uncertain = any(v > 2.5 for v in variance[of_pixel].tolist())
            if wanted != IGNORED and bootstrap[image] and uncertain:
                values = mean[of_pixel].tolist()
                wanted = values.index(max(values))
                changed += 1
            assert found[tuple(index)] == wanted
        assert changed > 10


def test_ignored_pixels_and_exact_images_stay():
    mean, variance, target = scores()
    none = torch.zeros(3, dtype=torch.bool)
    shared = {"threshold": 0.0, "ignore_index": IGNORED}
    every = sf.bootstrap_targets(mean, variance, target, **shared)
    assert torch.equal(every == IGNORED, target == IGNORED)
    assert (every != target).any()
    assert torch.equal(
        sf.bootstrap_targets(mean, variance, target, bootstrap=none, **shared), target
    )


def test_what_is_not_above_the_threshold_stays():
    """A variance that is the threshold, and one that is not a number."""
    mean, _, target = scores()
    for value in (1.0, float("nan")):
        variance = torch.full_like(mean, value)
        found = sf.bootstrap_targets(mean, variance, target, threshold=1.0, ignore_index=IGNORED)
        assert torch.equal(found, target)


def test_nothing_is_differentiated_or_overwritten():
    mean, variance, target = scores()
    before = target.clone()
    found = sf.bootstrap_targets(
        mean.requires_grad_(), variance.requires_grad_(), target, threshold=0.5
    )
    assert not found.requires_grad
    assert torch.equal(target, before)


def test_compiles_to_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(sf.bootstrap_targets, fullgraph=True, backend="aot_eager")
    mean, variance, target = scores()
    flags = torch.tensor([True, False, True])
    options = {"threshold": 1.0, "bootstrap": flags, "ignore_index": IGNORED}
    assert torch.equal(
        compiled(mean, variance, target, **options),
        sf.bootstrap_targets(mean, variance, target, **options),
    )
