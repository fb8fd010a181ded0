"""Tiny plans, data and steps for nnU-Net's trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import Tensor

NAME = "Dataset001_Tiny"


def plans(dim: int = 2, batch_dice: bool = True, stages: int = 4) -> dict[str, Any]:
    size, axes = (32, 16)[dim - 2], range(dim)
    configuration = {
        "data_identifier": "nnUNetPlans_tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [size for _ in axes],
        "median_image_size_in_voxels": [size for _ in axes],
        "spacing": [1.0 for _ in axes],
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": batch_dice,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [4, 6, 8, 8][:stages],
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": [[3 for _ in axes]] * stages,
                "strides": [[1 for _ in axes]] + [[2 for _ in axes]] * (stages - 1),
                "n_conv_per_stage": [1] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"tiny": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "continue_training": False,
    }


def dataset(regions: bool = False, ignored: bool = False) -> dict[str, Any]:
    labels: dict[str, Any] = {"background": 0, "a": 1, "b": 2, "c": 3}
    if regions:
        labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "c": 3}
    if ignored:
        labels["ignore"] = 4
    order = {"regions_class_order": [1, 2, 3]} if regions else {}
    return {
        "channel_names": {"0": "noise"},
        "labels": labels,
        "numTraining": 4,
        "file_ending": ".png",
        **order,
    }


def write_preprocessed(root: Path) -> None:
    """Four cases as nnU-Net's preprocessing leaves them, one slice each."""
    base = root / "preprocessed" / NAME
    folder = base / "nnUNetPlans_tiny"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for case in range(4):
        seg = generator.integers(0, 4, (1, 1, 40, 40)).astype(np.int16)
        data = (seg + generator.normal(size=seg.shape)).astype(np.float32)
        places = {c: np.argwhere(seg == c)[:50] for c in range(1, 4)}
        properties = {"class_locations": places, "spacing": [1.0, 1.0, 1.0]}
        nnUNetDatasetBlosc2.save_case(
            data, seg, properties, str(folder / f"case{case}"), data.shape, data.shape
        )
    (base / "dataset_fingerprint.json").write_text("{}")
    splits = [{"train": ["case0", "case1", "case2"], "val": ["case3"]}] * 5
    (base / "splits_final.json").write_text(json.dumps(splits))


def batch(trainer: Any, seed: int = 0) -> dict[str, Any]:
    """What nnU-Net's data loader gives: int16 maps for each head; of regions a channel each."""
    generator = torch.Generator().manual_seed(seed)
    size = trainer.configuration_manager.patch_size
    ignore = trainer.label_manager.ignore_label
    top = 4 if ignore is None else 5
    full = torch.randint(0, top, (2, 1, *size), generator=generator).to(torch.int16)
    data = full.float() + torch.randn(2, 1, *size, generator=generator)
    targets = [full]
    for scale in (trainer._get_deep_supervision_scales() or [None])[1:]:
        step = int(1 / scale[0])
        targets.append(full[(slice(None), slice(None), *[slice(None, None, step)] * len(size))])
    if trainer.label_manager.has_regions:
        targets = [_regions(each, ignore) for each in targets]
    return {"data": data, "target": targets if trainer.enable_deep_supervision else targets[0]}


def _regions(labels: Tensor, ignore: int | None) -> Tensor:
    parts = [(labels >= 1) & (labels <= 3), (labels >= 2) & (labels <= 3), labels == 3]
    if ignore is not None:
        parts.append(labels == ignore)
    return torch.cat(parts, 1)
