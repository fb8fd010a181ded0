"""Observer: samples for losses that a trainer calls with (input, target)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from python_tests.sampling.cases import Network, assert_untouched, snapshot
from segunc_ops import (
    CrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    Observer,
    UncertaintyAwareCrossEntropyLoss,
    sample_statistics,
)


@pytest.fixture
def labels():
    return torch.randint(0, 4, (2, 6, 6))


@pytest.mark.parametrize("share_forward", [False, True])
@pytest.mark.parametrize(
    "loss", [UncertaintyAwareCrossEntropyLoss, InstanceUncertaintyCrossEntropyLoss]
)
def test_a_trainer_that_knows_nothing_of_samples(images, labels, loss, share_forward):
    model, criterion = Network(), loss()
    twin = copy.deepcopy(model)
    with Observer(model, criterion, 3, share_forward=share_forward) as observer:
        for amp in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                torch.manual_seed(5)
                value = criterion(model(images), labels)
            value.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                torch.manual_seed(5)
                if share_forward:
                    logits = twin(images)
                statistics = sample_statistics(twin, images, 3)
                if not share_forward:
                    logits = twin(images)
                expected = criterion(logits, labels, statistics)
            expected.backward()
            if share_forward:
                torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)
            else:
                assert torch.equal(value, expected)
        assert observer.num_observed == 2
    for name, buffer in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], buffer), name
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
    model(images)
    assert observer.num_observed == 2
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_samples_of_others_leave_the_loss_as_it_is(images, labels):
    model = Network()
    losses = [UncertaintyAwareCrossEntropyLoss(), InstanceUncertaintyCrossEntropyLoss()]
    with Observer(model, losses[0], 3), Observer(model, losses[1], 3, share_forward=True):
        logits = model(images)
        sample_statistics(model, images, 2)
        plain = CrossEntropyLoss()(logits, labels)
        for loss in losses:
            assert loss.training
            assert loss(logits, labels) > plain


@pytest.mark.parametrize("share_forward", [False, True])
def test_evaluation_and_passes_without_gradient_are_not_sampled(images, labels, share_forward):
    model, criterion = Network(), UncertaintyAwareCrossEntropyLoss()
    observer = Observer(model, criterion, 2, share_forward=share_forward)
    model.eval()
    before = snapshot(model)
    plain = criterion(logits := model(images), labels)
    assert torch.equal(plain, CrossEntropyLoss(reduction="mean_all")(logits, labels))
    model.train()
    with torch.no_grad():
        criterion(model(images), labels)
    assert observer.num_observed == 0
    criterion(model(images), labels).backward()
    assert observer.num_observed == 1
    observer.remove()
    observer.remove()
    model.eval()
    assert [len(entry) for entry in before] == [len(entry) for entry in snapshot(model)]


def test_size_inputs_and_output(images, labels):
    model = nn.Sequential(nn.AvgPool2d(2), nn.Dropout(0.5), nn.Conv2d(3, 4, 1))
    criterion = UncertaintyAwareCrossEntropyLoss(upsample="bilinear")
    with Observer(model, criterion, 2):
        criterion(model(images), labels).backward()
    with Observer(model, criterion, 2, size=(6, 6)):
        criterion(model(images), labels).backward()
    with Observer(model, criterion, 2, size=None), pytest.raises(ValueError, match="uncertainty"):
        criterion(model(images), labels)
    network = Network()
    criterion = UncertaintyAwareCrossEntropyLoss()
    inputs = lambda args, kwargs: (args[0],)  # noqa: E731
    with Observer(network, criterion, 2, inputs=inputs, output=lambda z: z * 2):
        criterion(network(images, scale=2.0), labels).backward()
    with Observer(network, criterion, 2), pytest.raises(ValueError, match="inputs: expected"):
        network(images, scale=2.0)


@pytest.mark.parametrize("share_forward", [False, True])
def test_a_pass_that_fails_leaves_nothing_behind(images, share_forward):
    model = Network()
    before = snapshot(model)
    with Observer(model, UncertaintyAwareCrossEntropyLoss(), 2, share_forward=share_forward):
        with pytest.raises(RuntimeError):
            model(images[:, :1])
        assert not any("forward" in module.__dict__ for module in model.modules())
        with torch.no_grad():
            model.eval()(images)
    model.train()
    assert_untouched(model, before)


def test_activation_checkpointing_of_the_model_samples_once(images, labels):
    from torch.utils.checkpoint import checkpoint

    model, criterion = Network(), UncertaintyAwareCrossEntropyLoss()
    with Observer(model, criterion, 2) as observer:
        criterion(checkpoint(model, images, use_reentrant=False), labels).backward()
        assert observer.num_observed == 1


def test_models_and_losses_without_need_are_errors(images):
    with pytest.raises(TypeError, match=r"criterion: .*observe\(\).*got CrossEntropyLoss"):
        Observer(Network(), CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"insert_dropout\(model, p\).*ensemble"):
        Observer(nn.Conv2d(3, 4, 1), UncertaintyAwareCrossEntropyLoss())
    with pytest.raises(ValueError, match="size: expected 'input'"):
        Observer(Network(), UncertaintyAwareCrossEntropyLoss(), size="target")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples: expected at least 1"):
        Observer(Network(), UncertaintyAwareCrossEntropyLoss(), 0)


def test_segformer_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=4,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        num_attention_heads=[1, 1, 2, 2],
        drop_path_rate=0.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.SegformerForSemanticSegmentation(config).train()
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 4, (2, 32, 32))
    criterion = UncertaintyAwareCrossEntropyLoss(upsample="bilinear")
    with Observer(model, criterion, 4, share_forward=True) as observer:
        for step in range(2):  # in its first pass the model sets itself up
            outputs = model(pixel_values=images, labels=labels)
            criterion(outputs.logits, labels).backward()
            assert observer.num_observed == step + 1
    assert all(p.grad is not None for p in model.parameters())
    drawn = []
    for share in (False, True):
        torch.manual_seed(7)
        drawn.append(sample_statistics(model, images, 4, share=share))
    assert torch.equal(drawn[0].std, drawn[1].std)
    assert drawn[0].std.max() > 0


class DropPath(nn.Module):
    drop_prob = 0.5

    def forward(self, input):
        return input * torch.rand(len(input), 1, 1, 1).ge(0.5) if self.training else input


def test_a_pass_that_cannot_be_shared_is_an_error_from_the_second_on(images, labels):
    class Stateful(Network):
        calls = 0

        def forward(self, input):
            self.calls += 1
            return super().forward(input)

    model, criterion = Stateful(), UncertaintyAwareCrossEntropyLoss()
    with Observer(model, criterion, 2, share_forward=True) as observer:
        criterion(model(images), labels).backward()
        assert observer.num_observed == 1
        with pytest.raises(ValueError, match="Stateful keeps something in itself"):
            model(images)


def test_stochastic_depth_counts_if_asked(images):
    model = nn.Sequential(DropPath(), nn.Conv2d(3, 4, 1)).eval()
    with pytest.raises(ValueError, match="at least one dropout layer"):
        sample_statistics(model, images, 8)
    assert sample_statistics(model, images, 8, stochastic_depth=True).std.max() > 0
    assert not model[0].training
