"""Training by instance-wise uncertainty: by masks, by members together, on one rank or several."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.components.cases import component_means
from python_tests.experiments import cases
from python_tests.experiments.cases import (
    CPU,
    IGNORED,
    SIZE,
    InterruptingScenes,
    PartlyLabelled,
    dataset_of,
    write_images,
)
from python_tests.ranks import run_ranks
from segunc_ops import cli
from segunc_ops.experiments import experiment, masks, training
from segunc_ops.experiments.datasets import SceneDataset
from segunc_ops.experiments.mask_files import MaskedDataset, read_mask, write_mask
from segunc_ops.experiments.training import CheckpointError, Trainer, TrainingConfig


def config(**changes: object) -> TrainingConfig:
    options = {"loss": "iu", "samples": 2, "members": 3, "validate_every": 2, **changes}
    return cases.config(**options)


@pytest.fixture(scope="module")
def val_scenes() -> SceneDataset:
    return SceneDataset(3, seed=1, size=SIZE, label_noise=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 6)


@pytest.fixture(scope="module")
def masked(root) -> MaskedDataset:
    """With the masks of two networks trained alone."""
    dataset = dataset_of(root)
    checkpoints = [root / f"{seed}.pt" for seed in range(2)]
    for seed, path in enumerate(checkpoints):
        settings = config(loss="ce", steps=1, crop=(32, 32), seed=seed)
        Trainer(settings, dataset, dataset, path).fit(progress=False)
    members = masks.load_ensemble(checkpoints)
    masks.write_masks(members, dataset, root / "masks", masks.MaskSettings(), device=CPU)
    return MaskedDataset(dataset, root / "masks")


def weights(trainer: Trainer) -> list[dict[str, Tensor]]:
    return [model.state_dict() for model in trainer.models]


def assert_same_weights(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("components", ["target", "prediction"])
def test_a_step_of_members_together(val_scenes, components):
    train = InterruptingScenes()
    trainer = Trainer(config(components=components, dropout=0.0), train, val_scenes)
    twins = [copy.deepcopy(model).double() for model in trainer.models]
    batch = next(trainer.batches.iterate(0, 1))
    loss, _, _ = trainer.train_step(batch)

    images = (batch.images.double() - 115) / 60
    logits = [F.interpolate(twin(images), images.shape[2:], mode="bilinear") for twin in twins]
    p = sum(z.detach().softmax(1) for z in logits) / 3
    labels = batch.target.long() if components == "target" else p.argmax(1)
    weight = (1 + component_means(-(p * p.log()).sum(1), labels, None)) ** 2
    total = 0.0
    for twin, z, model in zip(twins, logits, trainer.models, strict=True):
        each = F.cross_entropy(
            z, batch.target.long(), ignore_index=train.ignore_index, reduction="none"
        )
        own = (weight * each).sum() / each.numel()
        total += float(own.detach()) / 3
        named = dict(twin.named_parameters())
        gradients = torch.autograd.grad(own, [*named.values()])
        for (name, old), gradient in zip(named.items(), gradients, strict=True):
            rate = 0.1 if name.startswith("decoder") else 0.01
            expected = old - rate * (gradient + 1e-4 * old)
            torch.testing.assert_close(
                dict(model.named_parameters())[name].double(), expected, rtol=1e-3, atol=1e-4
            )
    assert float(loss) == pytest.approx(total, rel=1e-4)


def test_members_differ_and_the_first_is_that_of_the_other_losses(val_scenes):
    train = InterruptingScenes()
    alone = Trainer(config(loss="ce"), train, val_scenes).model.state_dict()
    first, *others = weights(Trainer(config(), train, val_scenes))
    assert_same_weights([first], [alone])
    name = "decoder.head.weight"
    assert not any(torch.equal(first[name], other[name]) for other in others)
    assert not torch.equal(others[0][name], others[1][name])


def test_resumed_members_equal_uninterrupted_ones(tmp_path, val_scenes):
    through = Trainer(config(), InterruptingScenes(), val_scenes)
    through.fit(progress=False)
    checkpoint = tmp_path / "checkpoint.pt"
    interrupted = Trainer(config(), InterruptingScenes(countdown=15), val_scenes, checkpoint)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(progress=False)
    assert 0 < interrupted.step < 6
    torch.manual_seed(99)
    resumed = Trainer(config(), InterruptingScenes(), val_scenes, checkpoint)
    assert resumed.resume()
    resumed.fit(progress=False)
    assert_same_weights(weights(resumed), weights(through))
    assert resumed.history.loss == through.history.loss
    assert resumed.history.validation_miou == through.history.validation_miou
    for model, expected in zip(training.load_members(checkpoint), through.models, strict=True):
        assert not model.training
        assert_same_weights([model.state_dict()], [expected.state_dict()])


def test_training_by_masks(masked, tmp_path):
    settings = config(crop=(32, 48), masks=masked.fingerprint)
    trainer = Trainer(settings, masked, masked, tmp_path / "through.pt")
    assert len(trainer.models) == 1
    twin = copy.deepcopy(trainer.model)
    batch = next(trainer.batches.iterate(0, 1))
    assert batch.mask is not None
    assert batch.mask.max() > 0
    torch.manual_seed(5)
    loss, _, _ = trainer.train_step(batch)
    torch.manual_seed(5)
    logits = twin((batch.images.float().contiguous() - 115) / 60).double()
    each = F.cross_entropy(
        F.interpolate(logits, batch.target.shape[1:], mode="bilinear"),
        batch.target.long(),
        ignore_index=IGNORED,
        reduction="none",
    )
    expected = ((1 + batch.mask.double()) ** 2 * each).sum() / each.numel()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)

    through = Trainer(settings, masked, masked)
    through.fit(progress=False)
    half = Trainer(settings, masked, masked, tmp_path / "half.pt")
    for batch in half.batches.iterate(0, 3):
        half.train_step(batch)
    half.save()
    torch.manual_seed(99)
    resumed = Trainer(settings, masked, masked, tmp_path / "half.pt")
    assert resumed.resume()
    resumed.fit(progress=False)
    assert_same_weights(weights(resumed), weights(through))
    other = Trainer(config(crop=(32, 48)), masked, masked, tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match=r"trained with masks = \w+, not None"):
        other.resume()


def test_resume_refuses_other_masks_where_they_count(masked, root, tmp_path):
    folder = tmp_path / "masks"
    shutil.copytree(root / "masks", folder)
    for loss in ("iu", "ce"):
        settings = config(loss=loss, masks=masked.fingerprint)
        Trainer(settings, masked, masked, tmp_path / f"{loss}.pt").save()
    values, record = read_mask(folder / "000.tif")
    assert record is not None
    write_mask(folder / "000.tif", values + 1, record)
    other = MaskedDataset(dataset_of(root), folder)
    assert Trainer(settings, other, other, tmp_path / "ce.pt").resume()
    settings = replace(settings, loss="iu")
    with pytest.raises(CheckpointError, match=r"other training data: masks \w+, not"):
        Trainer(settings, other, other, tmp_path / "iu.pt").resume()
    # What components they are of is in them.
    settings = replace(settings, members=5, connectivity=4)
    assert Trainer(settings, masked, masked, tmp_path / "iu.pt").resume()


def test_masks_other_than_those_of_the_recipe_are_refused(masked, val_scenes):
    with pytest.raises(ValueError, match="train: expected masks abc, got None"):
        Trainer(config(masks="abc"), InterruptingScenes(), val_scenes)
    with pytest.raises(ValueError, match=f"train: expected masks abc, got {masked.fingerprint}"):
        Trainer(config(masks="abc"), masked, val_scenes)
    with pytest.raises(ValueError, match="members: an ensemble needs at least 2, got 1"):
        config(members=1)
    # Those that need no ensemble do not ask for one.
    assert config(members=1, masks="abc").num_models == config(loss="ce", members=1).num_models == 1


# Several ranks


def train_on_ranks(rank: int, size: int, folder: Path) -> dict[str, Any]:
    train, validation = InterruptingScenes(), SceneDataset(3, seed=1, size=SIZE, label_noise=False)
    # Without dropout members do not depend on whose random numbers they draw.
    settings = config(dropout=0.0, steps=2)
    alike = Trainer(settings, PartlyLabelled(settings, {0}), validation)
    alike.fit(progress=False)
    through = Trainer(config(), train, validation)
    through.fit(progress=False)
    # Ctrl-C reaches one rank alone; all stop after the same step.
    checkpoint = folder / "checkpoint.pt"
    scenes = InterruptingScenes(countdown=15 if rank == size - 1 else -1)
    interrupted = Trainer(config(), scenes, validation, checkpoint)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(progress=False)
    torch.distributed.barrier()
    torch.manual_seed(99)
    resumed = Trainer(config(), train, validation, checkpoint)
    assert resumed.resume()
    resumed.fit(progress=False)
    with pytest.raises(training.DivergedError) as diverged:
        Trainer(config(learning_rate=1e30), train, validation).fit(progress=False)
    # The first rank evaluates alone, when the others may have gone.
    table = experiment.run(
        experiment.Experiment(
            config=config(steps=1),
            losses=("iu",),
            train=train,
            validation=validation,
            folder=folder / "run",
            eval_samples=2,
            progress=False,
        )
    )
    return {
        "table": table,
        "alike": weights(alike),
        "loss": alike.history.loss,
        "through": weights(through),
        "resumed": weights(resumed),
        "stopped": interrupted.step,
        "diverged": str(diverged.value),
    }


def refuse_on_ranks(rank: int, size: int, folder: Path) -> list[str]:
    scenes = SceneDataset(3, seed=0, size=SIZE)
    told = []
    for loss in ("cb", "ce"):
        with pytest.raises(ValueError, match="losses: ") as refused:
            experiment.run(
                experiment.Experiment(config(), ("iu", loss), scenes, scenes, folder / "run")
            )
        told.append(str(refused.value))
    return told


@pytest.mark.thorough
def test_losses_of_one_network_are_refused_on_two_ranks(tmp_path):
    """Each rank would count classes, train the same network and write the same files."""
    for told in run_ranks(refuse_on_ranks, 2, tmp_path):
        for loss, message in zip(("cb", "ce"), told, strict=True):
            assert f"on 2 ranks, got {loss}, which trains one network" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_two_ranks_train_the_members_of_one_process(tmp_path, val_scenes):
    found = run_ranks(train_on_ranks, 2, tmp_path)
    # The first of two steps has no labelled pixel.
    settings = config(dropout=0.0, steps=2)
    alone = Trainer(settings, PartlyLabelled(settings, {0}), val_scenes)
    alone.fit(progress=False)
    # Rank 0 has members 0 and 2, rank 1 has member 1.
    assert [len(rank["alike"]) for rank in found] == [2, 1]
    together = [found[0]["alike"][0], found[1]["alike"][0], found[0]["alike"][1]]
    for mine, theirs in zip(together, weights(alone), strict=True):
        for name, expected in theirs.items():
            # Entropies of the same members, summed in another order; a few steps later such
            # differences are as large as the weights.
            torch.testing.assert_close(mine[name], expected, rtol=1e-5, atol=1e-6)
    for rank in found:
        np.testing.assert_allclose(rank["loss"], alone.history.loss, rtol=1e-6)
        assert rank["loss"] == found[0]["loss"]
        assert rank["stopped"] == found[0]["stopped"]
        assert 0 < rank["stopped"] < 6
        assert_same_weights(rank["resumed"], rank["through"])
        assert "lower the learning rate" in rank["diverged"]
    assert "PAvPU" in found[0]["table"]
    assert (tmp_path / "run" / "table.md").read_text() == found[0]["table"]
    assert not found[1]["table"]
    # The first rank has written all members, for whoever reads the file.
    checkpoint = tmp_path / "checkpoint.pt"
    members = [model.state_dict() for model in training.load_members(checkpoint)]
    through = [found[0]["through"][0], found[1]["through"][0], found[0]["through"][1]]
    assert_same_weights(members, through)
    single = Trainer(config(), InterruptingScenes(), val_scenes, checkpoint)
    with pytest.raises(CheckpointError, match="was trained on 2 ranks, not 1"):
        single.resume()


def test_more_ranks_than_members_are_refused(val_scenes, monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 3)):
        monkeypatch.setattr(training.dist, name, lambda value=value: value)
    with pytest.raises(ValueError, match="members: expected one for each of 3 ranks, got 2"):
        Trainer(config(members=2), InterruptingScenes(), val_scenes)


# Experiments and the command line


@pytest.mark.parametrize("by_masks", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_experiment_evaluates_one_network(tmp_path, masked, by_masks):
    settings = config(
        steps=2, crop=(32, 48), masks=masked.fingerprint if by_masks else None, amp="bf16"
    )
    table = experiment.run(
        experiment.Experiment(
            config=settings,
            losses=("ce", "iu"),
            train=masked,
            validation=masked,
            folder=tmp_path,
            eval_samples=2,
            progress=False,
        )
    )
    assert "IoU IU" in table
    assert ("IU statistics of 3 samples" in table) is not by_masks
    if by_masks:
        assert f"IU: weighted by the masks {masked.fingerprint} of an ensemble" in table
    else:
        assert "IU: the first of 3 members trained together." in table
    record = json.loads((tmp_path / "table.json").read_text())
    assert record["results"]["iu"]["evaluation"]["num_samples"] == 2
    assert (tmp_path / "panels-iu.png").exists()


def arguments_of(root: Path, *options: str) -> list[str]:
    arguments = ["train", "--data", str(root), "--ignore-index", str(IGNORED), "--classes", "3"]
    arguments += ["--loss", "iu", "--steps", "2", "--batch-size", "2", "--crop", "32", "48"]
    return [*arguments, "--samples", "2", "--output", str(root / "runs"), *options]


def test_command_trains_by_masks_and_by_members(root, masked, capsys):
    by_masks = arguments_of(root, "--name", "masks", "--masks", str(root / "masks"))
    assert cli.main(by_masks) == 0
    assert f"weighted by the masks {masked.fingerprint}" in capsys.readouterr().out
    assert cli.main([*by_masks, "--resume"]) == 0
    with pytest.raises(SystemExit):
        cli.main([*arguments_of(root, "--name", "masks"), "--resume"])
    assert "argument --resume" in capsys.readouterr().err
    together = ["--name", "members", "--members", "2", "--exponent", "1", "--connectivity", "4"]
    assert cli.main(arguments_of(root, *together, "--components", "prediction")) == 0
    assert "the first of 2 members" in capsys.readouterr().out
    assert len(training.load_members(root / "runs" / "members" / "checkpoint-iu.pt")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--members", "1"], "argument --members: expected at least 2"),
        (["--exponent", "-1"], "argument --exponent"),
        (["--components", "both"], "argument --components"),
        (["--connectivity", "6"], "argument --connectivity"),
        (["--masks", "nowhere"], "argument --masks: nowhere: no such folder"),
        (["--masks", "nowhere", "--loss", "ce"], "argument --masks: expected --loss iu"),
    ],
)
def test_command_names_a_wrong_argument(root, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments_of(root, "--name", "wrong", *options))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (root / "runs" / "wrong").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "ce", "iu"], "argument --loss: expected iu alone on 2 ranks"),
        (["--masks", "masks"], "argument --masks: expected a single rank, got 2"),
        (["--loss", "ce"], "argument --loss: expected iu alone on 2 ranks"),
        (["--loss", "iu", "cb"], "argument --loss: expected iu alone on 2 ranks"),
    ],
)
def test_what_has_no_use_for_ranks_says_so(root, capsys, monkeypatch, options, message):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments_of(root, "--name", "wrong", *options))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (root / "runs" / "wrong").exists()


def test_ranks_that_do_not_know_where_to_meet(root, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert cli.main(arguments_of(root, "--name", "wrong")) == 1
    assert "rank 0 of 2 finds no others (" in capsys.readouterr().err
    assert not (root / "runs" / "wrong").exists()
