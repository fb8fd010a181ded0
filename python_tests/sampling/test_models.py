"""Samples of compiled models and of models in DDP."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from python_tests.sampling.cases import Network, assert_untouched, snapshot
from segunc_ops import (
    Observer,
    UncertaintyAwareCrossEntropyLoss,
    mc_dropout,
    sample_logits,
    sample_statistics,
)

pytestmark = pytest.mark.usefixtures("each_backend")


def test_compiled_model_samples_and_trains(images):
    model = Network()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for step in range(3):
        before = snapshot(model)
        statistics = sample_statistics(compiled, images, 2)
        assert statistics.std.max() > 0
        assert_untouched(model, before)
        compiled(images).sum().backward()
        assert model.norm.num_batches_tracked == step + 1
    compiled.eval()
    assert torch.equal(compiled(images), compiled(images))
    assert sample_statistics(compiled, images, 2, batch_norm="running").std.max() > 0
    assert torch.equal(compiled(images), compiled(images))
    with pytest.raises(ValueError, match="got none in Conv2d"):
        sample_logits(torch.compile(nn.Conv2d(3, 4, 1)), images)


@pytest.fixture
def process_group(tmp_path):
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("needs gloo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", ["ddp", "ddp-of-compiled", "compiled-ddp"])
def test_ddp_model_samples_without_communication(images, process_group, monkeypatch, wrap):
    model = Network()
    inner = torch.compile(model, backend="eager") if wrap == "ddp-of-compiled" else model
    ddp = nn.parallel.DistributedDataParallel(inner)
    outer = torch.compile(ddp, backend="eager") if wrap == "compiled-ddp" else ddp
    synchronised = []
    monkeypatch.setattr(ddp, "_sync_buffers", lambda: synchronised.append(1))
    synchronises = ddp.require_forward_param_sync
    before = snapshot(model)

    torch.manual_seed(7)
    expected = list(sample_logits(model, images, 3))
    torch.manual_seed(7)
    drawn = list(sample_logits(outer, images, 3))

    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))
    assert not synchronised
    assert ddp.require_forward_param_sync == synchronises
    assert_untouched(model, before)
    with mc_dropout(outer):
        assert model.dropout.training
    outer(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("share_forward", [False, True])
def test_observer_of_a_model_in_ddp(images, process_group, share_forward):
    model, criterion = Network(), UncertaintyAwareCrossEntropyLoss()
    ddp = nn.parallel.DistributedDataParallel(model)
    labels = torch.zeros(2, 6, 6, dtype=torch.int64)
    with Observer(ddp, criterion, 2, share_forward=share_forward) as observer:
        for step in range(2):
            criterion(ddp(images), labels).backward()
            assert observer.num_observed == step + 1
    assert model.norm.num_batches_tracked == 2


def test_observer_of_a_compiled_model(images):
    model, criterion = Network(), UncertaintyAwareCrossEntropyLoss()
    compiled = torch.compile(model, backend="eager")
    labels = torch.zeros(2, 6, 6, dtype=torch.int64)
    with Observer(compiled, criterion, 2) as observer:
        for _ in range(2):
            criterion(compiled(images), labels).backward()
        assert observer.num_observed == 2
    with (
        Observer(compiled, criterion, 2, share_forward=True),
        pytest.raises(ValueError, match="nothing can be shared: it is compiled"),
    ):
        compiled(images)
    assert model.norm.num_batches_tracked == 2
