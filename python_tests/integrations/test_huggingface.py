"""transformers' models and trainer, the real ones, with this library's losses."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from segunc_ops import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    ExpectedCrossEntropyLoss,
    FocalCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    Observer,
    PixelAdaptiveCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
    insert_dropout,
    record_forward,
    sample_statistics,
)
from segunc_ops.metrics import MeanIoU, SegmentationMetrics

from ..ranks import run_ranks
from .cases import (
    CLASSES,
    IGNORED,
    MODELS,
    SIZE,
    arguments,
    batch,
    beit,
    dataset,
    segformer,
    transformers,
    upernet,
    without_batch_norm,
)
from .comparison import assert_same, gradients

from segunc_ops.integrations.huggingface import (  # isort: skip # after what skips without it
    BatchMetrics,
    LossReplacement,
    SegmentationTrainer,
)

OPTIONS: dict[str, Any] = {"ignore_index": IGNORED, "upsample": "bilinear"}


def scalar_metrics():
    return SegmentationMetrics(CLASSES, uncertainty=False, ignore_index=IGNORED, scalars_only=True)


def steps_of(model, trained, rate):
    """The gradients that a step of gradient descent has followed."""
    return {
        name: (before - after).detach() / rate
        for (name, before), after in zip(
            model.named_parameters(), trained.parameters(), strict=True
        )
    }


def loss_of_each(criterion, model):
    """The losses of images by themselves."""
    with torch.no_grad():
        return [
            float(criterion(model(each["pixel_values"][None]).logits, each["labels"][None]))
            for each in dataset()
        ]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_models_own(name):
    """The auxiliary heads' share, too: BEiT, DPT and UPerNet have such heads."""
    model, inputs = MODELS[name]().train(), batch()
    own = copy.deepcopy(model)
    torch.manual_seed(1)  # DPT and SegFormer drop
    expected = own(**inputs)
    expected.loss.backward()
    with LossReplacement(model, CrossEntropyLoss(**OPTIONS)):
        torch.manual_seed(1)
        output = model(**inputs)
        output.loss.backward()
        as_tuple = model(**inputs, return_dict=False)
        assert as_tuple[0].dim() == 0
        assert as_tuple[1].shape == output.logits.shape
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)
    assert_same(gradients(model), gradients(own))
    torch.manual_seed(1)
    assert torch.equal(model(**inputs).loss, own_loss(own, inputs))
    assert "accepts_loss_kwargs" not in vars(model)


def own_loss(model, inputs):
    torch.manual_seed(1)
    return model(**inputs).loss


@pytest.mark.parametrize("name", ["SegFormer", "BEiT", "UPerNet"])
def test_a_copy_has_a_replaced_loss_of_its_own(name):
    model, inputs = MODELS[name]().train(), batch()
    replacement = LossReplacement(model, CrossEntropyLoss(**OPTIONS))
    twin = copy.deepcopy(model)
    expected = own_loss(model, inputs)
    replacement.remove()
    assert torch.equal(own_loss(twin, inputs), expected)


def test_upernet_interpolates_for_inference_alone():
    model, inputs = upernet().train(), batch()
    images = inputs["pixel_values"]
    with LossReplacement(model, CrossEntropyLoss(**OPTIONS)):
        small = model(**inputs).logits
        assert small.shape == (4, CLASSES, SIZE // 4, SIZE // 4)
        assert model(images).logits.shape == (4, CLASSES, SIZE, SIZE)
        model.eval()
        output = model(**inputs)
        assert output.logits.shape == (4, CLASSES, SIZE, SIZE)
        expected = F.cross_entropy(output.logits, inputs["labels"], ignore_index=IGNORED)
        assert output.loss > expected  # 0.4 of the auxiliary head
    assert torch.equal(model(images).logits, output.logits)


LOSSES = {
    "CE": lambda: CrossEntropyLoss(**OPTIONS),
    "weights": lambda: CrossEntropyLoss(torch.rand(CLASSES), label_smoothing=0.1, **OPTIONS),
    "all": lambda: CrossEntropyLoss(reduction="mean_all", **OPTIONS),
    "sum": lambda: CrossEntropyLoss(reduction="sum", **OPTIONS),
    "focal": lambda: FocalCrossEntropyLoss(**OPTIONS),
    "PAT": lambda: PixelAdaptiveCrossEntropyLoss(**OPTIONS),
    "U-CE": lambda: UncertaintyAwareCrossEntropyLoss(**OPTIONS),
}
RATE = 1e-3


def trained(model, folder, criterion, steps, dtype=torch.float32):
    args = arguments(
        folder,
        per_device_train_batch_size=4 // steps,
        gradient_accumulation_steps=steps,
        learning_rate=RATE,
    )
    trainer = SegmentationTrainer(
        model, args, criterion=criterion, train_dataset=dataset(dtype=dtype), num_samples=None
    )
    return trainer.train().training_loss


@pytest.mark.parametrize(("name", "steps"), [("CE", 1), ("CE", 2), *((name, 4) for name in LOSSES)])
def test_accumulated_batches_count_as_one(name, steps, tmp_path):
    """In float64, in which the same sum in another order is the same to nine digits."""
    criterion = LOSSES[name]()
    if name == "U-CE":  # the factor of each pixel is 1
        criterion.missing = "plain"
    model = without_batch_norm(segformer()).double()
    whole, inputs = copy.deepcopy(model), batch(dtype=torch.float64)
    loss = trained(model, tmp_path, criterion, steps, torch.float64)
    expected = criterion(whole(inputs["pixel_values"]).logits, inputs["labels"])
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)  # logged in float32
    assert_same(steps_of(whole, model, RATE), gradients(whole), tolerance=1e-9)


def test_a_step_without_labelled_pixels_changes_nothing(tmp_path):
    model = without_batch_norm(segformer())
    before = copy.deepcopy(model)
    args = arguments(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    ignored = [{**each, "labels": torch.full_like(each["labels"], IGNORED)} for each in dataset()]
    trainer = SegmentationTrainer(
        model, args, criterion=CrossEntropyLoss(**OPTIONS), train_dataset=ignored
    )
    assert trainer.train().training_loss == 0
    for one, other in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)
    with LossReplacement(before, CrossEntropyLoss(**OPTIONS)):
        assert before(**batch(), num_items_in_batch=0).loss > 0


def test_the_stock_loss_is_wrong_for_accumulated_batches(tmp_path):
    """Why there is a trainer: with one batch the two are the same."""
    model = without_batch_norm(segformer())
    losses = {}
    for steps in (1, 2):
        args = arguments(
            tmp_path, per_device_train_batch_size=4 // steps, gradient_accumulation_steps=steps
        )
        trainer = transformers.Trainer(copy.deepcopy(model), args, train_dataset=dataset())
        losses[steps] = trainer.train().training_loss
    ours = [
        trained(copy.deepcopy(model), tmp_path, CrossEntropyLoss(**OPTIONS), steps)
        for steps in (1, 2)
    ]
    assert ours == pytest.approx([losses[1], losses[1]], rel=1e-5)
    assert losses[2] > 1.5 * losses[1]


def test_the_stock_trainer_averages_batches(tmp_path):
    """It counts ignored pixels, and so is not asked to."""
    model = without_batch_norm(segformer())
    criterion = CrossEntropyLoss(**OPTIONS)
    expected = sum(loss_of_each(criterion, model))
    args = arguments(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    with LossReplacement(model, criterion):
        loss = transformers.Trainer(model, args, train_dataset=dataset()).train().training_loss
    assert loss == pytest.approx(expected / 4, rel=1e-5)


def on_rank(rank: int, size: int, folder: Path) -> tuple[float, dict[str, Any], float, float]:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="localhost",
        MASTER_PORT="0",
    )
    torch.manual_seed(0)
    model = without_batch_norm(upernet()).double()
    args = arguments(
        folder,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=RATE,
        batch_eval_metrics=True,
    )
    trainer = SegmentationTrainer(
        model,
        args,
        criterion=CrossEntropyLoss(**OPTIONS),
        train_dataset=dataset(dtype=torch.float64),
        eval_dataset=dataset(3, seed=1, dtype=torch.float64),  # one rank has an image twice
        compute_metrics=BatchMetrics(scalar_metrics()),
    )
    assert trainer.args.world_size == size
    loss = trainer.train().training_loss
    result = trainer.evaluate()
    return loss, dict(model.named_parameters()), result["eval_loss"], result["eval_mean_iou"]


@pytest.mark.thorough  # each rank imports transformers: half a minute
def test_ranks_count_as_one(tmp_path):
    """With an auxiliary head, whose logits the model does not return to DistributedDataParallel."""
    model = without_batch_norm(upernet()).double()
    start = copy.deepcopy(model)
    expected = trained(model, tmp_path, CrossEntropyLoss(**OPTIONS), 1, torch.float64)
    losses, states, _, ious = zip(*run_ranks(on_rank, 2, tmp_path), strict=True)
    assert sum(losses) / 2 == pytest.approx(expected, rel=1e-6)
    changes = steps_of(start, model, RATE)
    for state in states:
        on_ranks = {
            name: (before - state[name]).detach() / RATE
            for name, before in start.named_parameters()
        }
        assert_same(on_ranks, changes, tolerance=1e-9)
    inputs = batch(3, seed=1, dtype=torch.float64)
    model.eval()
    metrics = MeanIoU(CLASSES, ignore_index=IGNORED)
    with torch.no_grad():
        metrics.update(model(inputs["pixel_values"]).logits, inputs["labels"])
    assert ious == pytest.approx([float(metrics.compute())] * 2)


def test_dice_is_averaged_over_batches(tmp_path):
    criterion = DiceCrossEntropyLoss.monai(**OPTIONS)
    model = without_batch_norm(segformer())
    losses = loss_of_each(criterion, model)
    loss = trained(model, tmp_path, criterion, 4)
    assert loss == pytest.approx(sum(losses) / 4, rel=1e-5)


@pytest.mark.parametrize(
    "kind", [UncertaintyAwareCrossEntropyLoss, InstanceUncertaintyCrossEntropyLoss]
)
def test_samples_are_drawn_in_training_under_the_steps_autocast(kind, tmp_path):
    model = segformer(dropout=0.2)
    criterion = kind(**OPTIONS)
    seen: list[tuple[bool, bool, torch.dtype]] = []

    def look(module, args, output):
        seen.append((model.training, torch.is_grad_enabled(), output.dtype))

    model.decode_head.register_forward_hook(look)
    args = arguments(tmp_path, per_device_train_batch_size=2, max_steps=2, bf16=True)
    trainer = SegmentationTrainer(
        model,
        args,
        criterion=criterion,
        num_samples=3,
        train_dataset=dataset(),
        eval_dataset=dataset(2, seed=1),
    )
    loss = trainer.train().training_loss
    assert loss == loss
    assert seen == ([(True, False, torch.bfloat16)] * 3 + [(True, True, torch.bfloat16)]) * 2
    assert criterion.training
    seen.clear()
    result = trainer.evaluate()["eval_loss"]
    assert not criterion.training
    assert [each[:2] for each in seen] == [(False, False)]
    inputs = batch(2, seed=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(inputs["pixel_values"]).logits.float()
    plain = CrossEntropyLoss(reduction="mean_all", **OPTIONS)(logits, inputs["labels"])
    assert result == pytest.approx(float(plain), rel=1e-3)


def test_the_loss_weighs_pixels_by_what_was_sampled():
    model, inputs = segformer(dropout=0.3).train(), batch()
    with LossReplacement(model, UncertaintyAwareCrossEntropyLoss(**OPTIONS), num_samples=4):
        weighted = model(**inputs).loss
    with LossReplacement(model, CrossEntropyLoss(reduction="mean_all", **OPTIONS)):
        plain = model(**inputs).loss
    assert weighted > plain


def test_an_auxiliary_head_has_the_same_uncertainty():
    model, inputs = upernet().train(), batch()
    model.decode_head.fpn_bottleneck.activation = torch.nn.Dropout(0.5)
    with LossReplacement(model, UncertaintyAwareCrossEntropyLoss(**OPTIONS), num_samples=2):
        output = model(**inputs)
        output.loss.backward()
    assert output.logits.shape[-1] == SIZE // 4
    assert model.auxiliary_head.classifier.weight.grad.abs().sum() > 0


def test_observed_uncertainty_serves_the_next_call():
    model, inputs = segformer().train(), batch()
    criterion = UncertaintyAwareCrossEntropyLoss(**OPTIONS)
    with LossReplacement(model, criterion, num_samples=None):
        criterion.observe(torch.zeros(inputs["labels"].shape))
        model(**inputs).loss.backward()
        with pytest.raises(ValueError, match="expected one in training mode"):
            model(**inputs)


@pytest.fixture
def encoded_segformer(monkeypatch):
    """One that drops before its classifier alone, and whether its encoder's runs had gradients."""
    model = segformer()
    insert_dropout(model, 0.3, before=["decode_head.classifier"])
    encoded: list[bool] = []
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    convolve = first.forward

    def counted(images):
        encoded.append(torch.is_grad_enabled())
        return convolve(images)

    monkeypatch.setattr(first, "forward", counted)
    return model, encoded


@pytest.mark.parametrize("share_forward", [False, True])
def test_an_observer_samples_for_the_trainer(share_forward, tmp_path, encoded_segformer):
    """Of a network that has no dropout by itself; with one encoder a step where it is shared."""
    model, encoded = encoded_segformer
    criterion = UncertaintyAwareCrossEntropyLoss(**OPTIONS)
    with Observer(model, criterion, 3, share_forward=share_forward) as observer:
        args = arguments(tmp_path, max_steps=2)
        SegmentationTrainer(
            model, args, criterion=criterion, num_samples=None, train_dataset=dataset()
        ).train()
    assert observer.num_observed == 2
    assert encoded.count(True) == 2
    # Of 6 samples; the model sets itself up in its very first pass, which is not shared.
    assert encoded.count(False) <= (1 if share_forward else 3)


def test_samples_may_begin_in_the_steps_own_pass(tmp_path, encoded_segformer):
    model, encoded = encoded_segformer
    trainer = SegmentationTrainer(
        model,
        arguments(tmp_path, max_steps=3),
        criterion=UncertaintyAwareCrossEntropyLoss(**OPTIONS),
        num_samples=3,
        mask_bits=16,
        share_forward=True,
        train_dataset=dataset(),
    )
    assert trainer.train().training_loss > 0
    assert encoded.count(True) == 3
    assert encoded.count(False) <= 1


@pytest.mark.parametrize("mask_bits", [None, 16])
def test_samples_of_a_shared_pass_are_those_of_the_functions(mask_bits):
    model, inputs = segformer(dropout=0.3).train(), batch()
    images, labels = inputs["pixel_values"], inputs["labels"]
    model(images)  # sets itself up
    criterion = UncertaintyAwareCrossEntropyLoss(**OPTIONS)
    torch.manual_seed(1)
    with record_forward(model) as forward:
        logits = model(images).logits
    statistics = sample_statistics(
        model, images, 4, size=labels.shape[1:], share_forward=forward, mask_bits=mask_bits
    )
    expected = criterion(logits, labels, statistics)
    with LossReplacement(model, criterion, num_samples=4, share_forward=True, mask_bits=mask_bits):
        torch.manual_seed(1)
        loss = model(**inputs).loss
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        assert model.eval()(**inputs).loss < loss  # plain cross-entropy, of which nothing is kept


@pytest.mark.parametrize("name", ["SegFormer", "UPerNet"])
def test_a_pass_that_fails_while_it_is_recorded_leaves_nothing_behind(name, monkeypatch):
    model, inputs = MODELS[name]().train(), batch()
    dropped = "decode_head.classifier"
    insert_dropout(model, 0.5, before=[dropped])
    criterion = UncertaintyAwareCrossEntropyLoss(**OPTIONS)
    with LossReplacement(model, criterion, num_samples=2, share_forward=True):
        model(**inputs).loss.backward()
        with monkeypatch.context() as patch:
            patch.setattr(model.decode_head, "forward", failing)
            with pytest.raises(RuntimeError, match="no"):
                model(**inputs)
        for _ in range(2):
            model(**inputs).loss.backward()
    assert not model._forward_pre_hooks
    assert model(**inputs).loss > 0


def failing(*args, **kwargs):
    raise RuntimeError("no")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_other_hooks_may_sample(first, when):
    """Around the pass whose loss is asked for, with heads and gradients of its own."""
    model, inputs = upernet().train(), batch()
    own = copy.deepcopy(model)
    own(**inputs).loss.backward()
    busy = []

    def sample(module, args, kwargs, output=None):
        if not busy:
            busy.append(True)
            with torch.no_grad():
                module(pixel_values=kwargs["pixel_values"] + 1)
            busy.clear()

    def register():
        if when == "before":
            return model.register_forward_pre_hook(sample, with_kwargs=True)
        return model.register_forward_hook(sample, with_kwargs=True)

    handle = register() if first else None
    with LossReplacement(model, CrossEntropyLoss(**OPTIONS)):
        handle = handle or register()
        model(**inputs).loss.backward()
        handle.remove()
    assert_same(gradients(model), gradients(own))


def test_a_loop_of_accelerate_is_right_with_the_number_of_items():
    import accelerate

    model = without_batch_norm(segformer()).double().train()
    inputs = batch(dtype=torch.float64)
    expected = copy.deepcopy(model)
    loss = expected(**inputs).loss
    loss.backward()
    accelerator = accelerate.Accelerator(cpu=True)
    total = (inputs["labels"] != IGNORED).sum()
    with LossReplacement(model, CrossEntropyLoss(**OPTIONS)):
        prepared = accelerator.prepare(model)
        losses = [
            prepared(
                **{name: value[None] for name, value in each.items()}, num_items_in_batch=total
            ).loss
            for each in dataset(dtype=torch.float64)
        ]
        for each in losses:
            accelerator.backward(each)
    torch.testing.assert_close(sum(losses), loss, rtol=1e-9, atol=0)
    assert_same(gradients(model), gradients(expected), tolerance=1e-9)


def test_metrics_are_counted_without_the_logits(tmp_path):
    model = segformer().eval()
    args = arguments(tmp_path, per_device_eval_batch_size=2, batch_eval_metrics=True)
    trainer = SegmentationTrainer(
        model,
        args,
        criterion=CrossEntropyLoss(**OPTIONS),
        eval_dataset=dataset(),
        compute_metrics=BatchMetrics(scalar_metrics()),
    )
    kept = []
    loop = trainer.evaluation_loop

    def keep(*args, **options):
        kept.append(loop(*args, **options))
        return kept[-1]

    trainer.evaluation_loop = keep
    results = [trainer.evaluate() for _ in range(2)]
    assert kept[0].predictions is None
    assert kept[0].label_ids is None
    inputs = batch()
    expected = MeanIoU(CLASSES, ignore_index=IGNORED)
    with torch.no_grad():
        logits = model(inputs["pixel_values"]).logits
    expected.update(logits, inputs["labels"], size=(SIZE, SIZE))
    for result in results:
        assert result["eval_mean_iou"] == pytest.approx(float(expected.compute()))
    alone = BatchMetrics(MeanIoU(CLASSES, ignore_index=IGNORED))
    prediction = transformers.EvalPrediction(predictions=(logits,), label_ids=inputs["labels"])
    assert alone(prediction, compute_result=False) == {}
    assert alone(prediction, compute_result=True) == {
        "MeanIoU": pytest.approx(float(expected.compute()))
    }
    with pytest.raises(ValueError, match="batch_eval_metrics=True"):
        alone(prediction)


# Its newer name is not known to all releases.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_checkpointed_activations_change_nothing(tmp_path):
    losses = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = beit(dropout=0.1)
        if checkpointed:
            model.gradient_checkpointing_enable()
        trainer = SegmentationTrainer(
            model,
            arguments(tmp_path, max_steps=2),
            criterion=UncertaintyAwareCrossEntropyLoss(**OPTIONS),
            num_samples=2,
            train_dataset=dataset(),
        )
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]


def test_models_made_by_a_function_are_trained(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=4)
    trainer = SegmentationTrainer(
        None,
        args,
        criterion=CrossEntropyLoss(**OPTIONS),
        model_init=lambda: segformer(),
        train_dataset=dataset(),
    )
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mask2Former", {}),
        ("MaskFormer", {}),
        ("Eomt", {}),
        ("OneFormer", {}),
    ],
)
def test_mask_classification_is_refused(name, options):
    """By what it is, without building such a network."""
    suffix = "Instance" if name == "MaskFormer" else "Universal"
    kind = getattr(transformers, f"{name}For{suffix}Segmentation")
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    with pytest.raises(TypeError, match=f"{kind.__name__}, which matches masks"):
        LossReplacement(model, CrossEntropyLoss(**OPTIONS))


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (UncertaintyAwareCrossEntropyLoss(**OPTIONS), ValueError, "at least one dropout layer"),
        (torch.nn.CrossEntropyLoss(), TypeError, "a loss of segunc_ops"),
        (ExpectedCrossEntropyLoss(ignore_index=IGNORED), TypeError, "a loss of segunc_ops"),
        (CrossEntropyLoss(ignore_index=IGNORED), ValueError, "upsample='bilinear'"),
        (CrossEntropyLoss(upsample="bilinear"), ValueError, "expected ignore_index=255"),
        (CrossEntropyLoss(reduction="none", **OPTIONS), ValueError, "to one number"),
    ],
)
def test_criteria_that_do_not_fit_are_refused(criterion, error, message):
    with pytest.raises(error, match=message):
        LossReplacement(segformer(), criterion)


def test_other_errors(tmp_path):
    model, criterion = segformer(), CrossEntropyLoss(**OPTIONS)
    with pytest.raises(ValueError, match="; pass label_smoothing to the criterion"):
        SegmentationTrainer(
            model, arguments(tmp_path, label_smoothing_factor=0.1), criterion=criterion
        )
    with pytest.raises(ValueError, match="at least two classes"):
        LossReplacement(segformer(num_labels=1), criterion)
    with pytest.raises(TypeError, match="compute_loss_func"):
        SegmentationTrainer(model, criterion=criterion, compute_loss_func=len)
    with LossReplacement(model, criterion) as replacement:
        with pytest.raises(ValueError, match="remove"):
            LossReplacement(model, criterion)
        replacement.remove()
    with (
        LossReplacement(model, DiceCrossEntropyLoss(**OPTIONS)),
        pytest.raises(ValueError, match="num_items_in_batch: expected None for a Dice loss"),
    ):
        model(**batch(), num_items_in_batch=7)
    with pytest.raises(ValueError, match="num_samples: expected a number"):
        LossReplacement(upernet(), UncertaintyAwareCrossEntropyLoss(**OPTIONS), num_samples=None)
