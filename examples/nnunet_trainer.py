"""nnU-Net's trainer with U-CE. Run it: a minute or two on a CPU, no download.

With data of your own nnU-Net's commands do all of this; what differs is the trainer's name, and
where nnU-Net finds it::

    nnUNetv2_plan_and_preprocess -d 1
    export nnUNet_extTrainer=$(python -m segunc_ops.integrations.nnunet)
    nnUNetv2_train 1 2d 0 -tr nnUNetTrainerUCE

Here scenes are written as nnU-Net's preprocessing leaves them, with the plans of a small network.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from segunc_ops.experiments.datasets import SceneDataset
from segunc_ops.integrations import nnunet

NAME, CONFIGURATION, FOLDER = "Dataset001_Scenes", "2d", "nnUNetPlans_2d"
NUM_CLASSES, IGNORED = len(SceneDataset.class_names), SceneDataset.ignore_index


def make_plans(size: tuple[int, int]) -> dict[str, Any]:
    """What nnUNetv2_plan_experiment finds out, for a network of four stages."""
    network = {
        "n_stages": 4,
        "features_per_stage": [16, 32, 64, 64],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 4,
        "strides": [[1, 1], *[[2, 2]] * 3],
        "n_conv_per_stage": [2] * 4,
        "n_conv_per_stage_decoder": [2] * 3,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": FOLDER,
        "batch_size": 4,
        "patch_size": list(size),
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["NoNormalization"] * 3,
        "use_mask_for_norm": [False] * 3,
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "configurations": {CONFIGURATION: configuration},
        "continue_training": False,
    }


def make_dataset(length: int) -> dict[str, Any]:
    """A dataset.json: nnU-Net wants the ignored label to be the one after the classes."""
    _, *others = SceneDataset.class_names
    labels = {"background": 0, **{name: label for label, name in enumerate(others, 1)}}
    return {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {**labels, "ignore": NUM_CLASSES},
        "numTraining": length,
        "file_ending": ".png",
    }


def write_scenes(base: Path, length: int, size: tuple[int, int]) -> None:
    """Generated street scenes as nnU-Net's preprocessing leaves images."""
    (base / FOLDER).mkdir(parents=True)
    scenes = SceneDataset(length, seed=0, size=size)
    names = [f"scene{number}" for number in range(length)]
    annotated = (-1, *range(NUM_CLASSES))
    for number, name in enumerate(names):
        scene = scenes[number]
        data = np.moveaxis(scene.image, -1, 0)[:, None].astype(np.float32) / 127.5 - 1
        seg = np.where(scene.label == IGNORED, NUM_CLASSES, scene.label)[None, None]
        places = {label: np.argwhere(seg == label) for label in range(1, NUM_CLASSES)}
        properties = {"class_locations": places | {annotated: np.argwhere(seg != NUM_CLASSES)}}
        nnUNetDatasetBlosc2.save_case(
            data, seg.astype(np.int16), properties, str(base / FOLDER / name), seg.shape, seg.shape
        )
    held_out = max(1, length // 4)
    split = {"train": names[held_out:], "val": names[:held_out]}
    (base / "splits_final.json").write_text(json.dumps([split]))
    (base / "dataset_fingerprint.json").write_text("{}")


def train(
    trainer_name: str = "nnUNetTrainerUCE",
    epochs: int = 4,
    steps: int = 10,
    size: tuple[int, int] = (96, 128),
    scenes: int = 32,
) -> dict[str, list[float]]:
    """Trains for so many epochs of so many steps; the losses and nnU-Net's Dice of each epoch."""
    torch.manual_seed(0)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        places = ("raw", "preprocessed", "results")
        os.environ.update({f"nnUNet_{place}": f"{folder}/{place}" for place in places})
        os.environ.update({"nnUNet_n_proc_DA": "0"})
        write_scenes(Path(folder, "preprocessed", NAME), scenes, size)
        trainer = getattr(nnunet, trainer_name)(
            make_plans(size), CONFIGURATION, 0, make_dataset(scenes), torch.device("cpu")
        )
        trainer.num_epochs = epochs
        trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = steps, 4
        trainer.run_training()
        losses, dice = (
            [float(trainer.logger.get_value(name, step=epoch)) for epoch in range(epochs)]
            for name in ("train_losses", "mean_fg_dice")
        )
    return {"losses": losses, "dice": dice}


if __name__ == "__main__":
    print(f"mean Dice {train()['dice'][-1]:.3f}")
