"""nnU-Net's trainer, the real one, with this library's losses."""

from __future__ import annotations

import copy
import functools
import runpy
from typing import Any

import pytest
import torch

pytest.importorskip("nnunetv2", reason="needs nnunetv2")

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from segunc_ops import (
    CrossEntropyLoss,
    PixelAdaptiveCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
)
from segunc_ops.integrations import nnunet
from segunc_ops.integrations.nnunet import (
    TRAINER_FOLDER,
    nnUNetTrainerFused,
    nnUNetTrainerIU,
    nnUNetTrainerUCE,
)

from .nnunet_cases import batch, dataset, plans, write_preprocessed

pytestmark = pytest.mark.filterwarnings("ignore")  # of nnU-Net and what it imports


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    torch.manual_seed(0)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    write_preprocessed(tmp_path)
    return tmp_path


def make(trainer_class: type, fold: int = 0, supervised: bool = True, **options: Any) -> Any:
    data = {name: options.pop(name) for name in ("regions", "ignored") if name in options}
    trainer = trainer_class(plans(**options), "tiny", fold, dataset(**data), torch.device("cpu"))
    trainer.enable_deep_supervision = supervised
    trainer.initialize()
    return trainer


def step(trainer, network, inputs):
    """The loss of a network in the trainer, and its gradients."""
    network.zero_grad()
    loss = trainer.loss(network(inputs["data"]), inputs["target"])
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_loss_and_gradients_are_nnunets_own(dim, regions, ignored, supervised):
    options = {"dim": dim, "batch_dice": dim == 2, "regions": regions, "ignored": ignored}
    own = make(nnUNetTrainer, supervised=supervised, **options)
    ours = make(nnUNetTrainerFused, supervised=supervised, **options)
    inputs = batch(own)
    expected, gradients = step(own, own.network, inputs)
    result, found = step(ours, own.network, inputs)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    largest = max(float(value.abs().max()) for value in gradients.values())
    assert largest > 0
    for name, value in gradients.items():  # with a last head of weight 0 some are None in both
        assert float((found[name] - value).abs().max()) <= 1e-5 * largest, name


def test_a_batch_that_is_ignored_whole_is_nnunets_own():
    own, ours = (make(each, ignored=True) for each in (nnUNetTrainer, nnUNetTrainerFused))
    inputs = batch(own)
    for target in inputs["target"]:
        target.fill_(4)
    expected, _ = step(own, own.network, inputs)
    result, gradients = step(ours, own.network, inputs)
    torch.testing.assert_close(result, expected)
    assert not any(value.any() for value in gradients.values())


class nnUNetTrainerPAT(nnUNetTrainerFused):  # noqa: N801
    def build_criterion(self, ignore_index):
        return PixelAdaptiveCrossEntropyLoss(ignore_index=ignore_index)


class nnUNetTrainerCE(nnUNetTrainerFused):  # noqa: N801
    def build_criterion(self, ignore_index):
        return CrossEntropyLoss(ignore_index=ignore_index)


def quick(trainer):
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, 3
    trainer.num_val_iterations_per_epoch = 1
    return trainer


@pytest.mark.parametrize(
    "trainer_class", [nnUNetTrainerFused, nnUNetTrainerCE, nnUNetTrainerPAT, nnUNetTrainerUCE]
)
def test_an_epoch_of_training(trainer_class, folders):
    trainer = quick(make(trainer_class))
    before = copy.deepcopy(trainer.network.state_dict())
    trainer.run_training()
    assert any(not torch.equal(before[k], v) for k, v in trainer.network.state_dict().items())
    assert torch.isfinite(torch.tensor(trainer.logger.get_value("train_losses", step=-1)))
    if trainer_class is nnUNetTrainerUCE:
        assert trainer.observer.num_observed == 3
        assert not trainer.criterion.training  # after validation
    files = list(folders.glob(f"results/*/{trainer_class.__name__}__*/fold_0/checkpoint_final.pth"))
    assert len(files) == 1


def test_cross_entropy_beside_dice_is_the_fused_loss():
    fused, beside = make(nnUNetTrainerFused), make(nnUNetTrainerCE)
    inputs = batch(fused)
    expected, gradients = step(fused, fused.network, inputs)
    result, found = step(beside, fused.network, inputs)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    for name, value in gradients.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_observation_serves_the_head_of_full_resolution():
    trainer = make(nnUNetTrainerUCE)
    inputs = batch(trainer)
    heads = trainer.network(inputs["data"])
    sigma = trainer.criterion._observed
    result = trainer.loss(heads, inputs["target"])
    assert sigma.shape == (2, 32, 32)
    assert float(sigma.max()) > 0
    assert trainer.criterion._observed is None
    weighted, plain = UncertaintyAwareCrossEntropyLoss(reduction="mean"), CrossEntropyLoss()
    (full, half, _), dice = heads, trainer.loss.loss.losses[1]
    labels, half_labels = (each[:, 0] for each in inputs["target"][:2])
    expected = 2 / 3 * (weighted(full, labels, sigma) + dice(full, labels))
    expected = expected + 1 / 3 * (plain(half, half_labels) + dice(half, half_labels))
    torch.testing.assert_close(result, expected)


def test_a_network_with_dropout_keeps_the_plans():
    trainer = make(nnUNetTrainerUCE)
    drops = [m for m in trainer.network.modules() if isinstance(m, torch.nn.Dropout2d)]
    assert drops
    assert {m.p for m in drops} == {0.1}
    assert trainer.configuration_manager.network_arch_init_kwargs["dropout_op"] is None
    network = nnUNetTrainerUCE.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 4, False
    )
    network.load_state_dict(trainer.network.state_dict())


def test_folds_are_an_ensemble():
    with pytest.raises(FileNotFoundError, match="trained before"):
        make(nnUNetTrainerIU)
    for fold in range(3):
        trainer = make(nnUNetTrainer, fold)
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    trainer = make(nnUNetTrainerIU)
    inputs = batch(trainer)
    trainer.network(inputs["data"])
    assert float(trainer.criterion._observed.values.max()) > 0
    losses = [float(trainer.train_step(inputs)["loss"]) for _ in range(4)]
    assert losses[-1] < losses[0]
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        result = trainer.validation_step(batch(trainer))
    assert result["tp_hard"].shape == (3,)


def test_samples_run_within_the_steps_autocast():
    trainer = make(nnUNetTrainerUCE)
    types = []
    handle = trainer.network.decoder.seg_layers[-1].register_forward_hook(
        lambda module, args, output: types.append(output.dtype)
    )
    inputs = batch(trainer)
    with torch.autocast("cpu", torch.bfloat16):
        loss = trainer.loss(trainer.network(inputs["data"]), inputs["target"])
    loss.backward()
    handle.remove()
    assert types == [torch.bfloat16] * 11


def test_a_compiled_network_is_sampled(monkeypatch):
    """On a GPU nnU-Net compiles; here by a backend that takes no compiler."""
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    trainer = make(nnUNetTrainerUCE)
    assert hasattr(trainer.network, "_orig_mod")
    trainer.set_deep_supervision_enabled(True)
    inputs = batch(trainer)
    losses = [float(trainer.train_step(inputs)["loss"]) for _ in range(2)]
    assert losses[0] != losses[1]
    assert trainer.observer.num_observed == 2
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        trainer.validation_step(inputs)
    assert trainer.observer.num_observed == 2
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("base", "criterion", "error", "message"),
    [
        (nnUNetTrainerFused, torch.nn.CrossEntropyLoss(), TypeError, "a loss of segunc_ops"),
        (nnUNetTrainerFused, CrossEntropyLoss(ignore_index=255), ValueError, "ignore_index=4"),
        (
            nnUNetTrainerFused,
            UncertaintyAwareCrossEntropyLoss(ignore_index=4, missing="plain"),
            ValueError,
            "expected a subclass of nnUNetTrainerUCE or nnUNetTrainerIU",
        ),
        (
            nnUNetTrainerUCE,
            UncertaintyAwareCrossEntropyLoss(ignore_index=4),
            ValueError,
            "missing='plain'",
        ),
    ],
)
def test_a_criterion_that_does_not_fit(base, criterion, error, message):
    class Trainer(base):
        def build_criterion(self, ignore_index):
            return criterion

    with pytest.raises(error, match=message):
        make(Trainer, ignored=True)


def test_regions_have_no_uncertainty_aware_loss():
    with pytest.raises(ValueError, match="nnUNetTrainerFused"):
        make(nnUNetTrainerUCE, regions=True)


def test_nnunet_finds_the_trainers(monkeypatch, capsys):
    runpy.run_module("segunc_ops.integrations.nnunet", run_name="__main__")
    printed = capsys.readouterr().out
    assert printed == f"{TRAINER_FOLDER}\n"
    monkeypatch.setenv("nnUNet_extTrainer", printed.strip())
    for name in nnunet.__all__:
        assert recursive_find_trainer_class_by_name(name) is getattr(nnunet, name)
