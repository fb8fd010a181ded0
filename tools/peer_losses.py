"""Losses of other packages for the batches of `python_tests/peers.py`, written to
`python_tests/peers.json`, with which tests compare this package's where those are not installed:

    python -m pip install nnunetv2 segmentation-models-pytorch monai kornia torchvision
    python -m tools.peer_losses
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from python_tests.peers import BATCHES, RECORDS, Batch, numbers
from python_tests.support import IGNORED

SMOOTH = 1e-5
"""Of nnU-Net's trainer."""


def _nnunet(batch: Batch, batch_dice: bool, **options: Any) -> Tensor:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    loss = DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": SMOOTH, "do_bg": False, "ddp": False},
        {},
        ignore_label=options.get("ignore_label"),
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    targets = [target.unsqueeze(1) for target in batch.targets]
    if "weights" in options:
        return DeepSupervisionWrapper(loss, options["weights"])(list(batch.inputs), targets)
    return loss(batch.input, targets[0])


def _nnunet_regions(batch: Batch, batch_dice: bool, use_ignore_label: bool = False) -> Tensor:
    from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    loss = DC_and_BCE_loss(
        {},
        {"batch_dice": batch_dice, "smooth": SMOOTH, "do_bg": True, "ddp": False},
        use_ignore_label=use_ignore_label,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    return loss(batch.input, batch.target)


def _monai(batch: Batch, /, **options: Any) -> Tensor:
    from monai.losses import DiceCELoss

    loss = DiceCELoss(to_onehot_y=True, softmax=True, **options)
    return loss(batch.input, batch.target.unsqueeze(1))


def _monai_regions(batch: Batch, /, **options: Any) -> Tensor:
    """Of several channels MONAI's other term is the cross-entropy of a softmax over them."""
    from monai.losses import DiceCELoss, DiceLoss

    options = options | {"sigmoid": True}
    if batch.input.shape[1] == 1:
        weight = options.pop("weight", None)
        weight = None if weight is None else torch.tensor(weight, dtype=batch.input.dtype)
        return DiceCELoss(weight=weight, **options)(batch.input, batch.target)
    return DiceLoss(**options)(batch.input, batch.target)


def _monai_region_focal(batch: Batch) -> Tensor:
    from monai.losses import DiceFocalLoss

    return DiceFocalLoss(sigmoid=True, gamma=0.0)(batch.input, batch.target)


def _smp(batch: Batch, ignore_index: int | None = None, smooth_factor: float = 0.0) -> Tensor:
    from segmentation_models_pytorch.losses import DiceLoss, SoftCrossEntropyLoss

    dice = DiceLoss("multiclass", ignore_index=ignore_index)
    other = {} if ignore_index is None else {"ignore_index": ignore_index}
    cross_entropy = SoftCrossEntropyLoss(smooth_factor=smooth_factor, **other)
    return dice(batch.input, batch.target) + cross_entropy(batch.input, batch.target)


def _kornia_focal(batch: Batch, weight: list[float] | None = None, **options: Any) -> Tensor:
    from kornia.losses import focal_loss

    weights = None if weight is None else torch.tensor(weight, dtype=batch.input.dtype)
    options = {"alpha": None, **options}
    return focal_loss(batch.input, batch.target, reduction="sum", weight=weights, **options)


def _monai_focal(batch: Batch, /, **options: Any) -> Tensor:
    from monai.losses import FocalLoss

    loss = FocalLoss(to_onehot_y=True, use_softmax=True, **options)
    return loss(batch.input, batch.target.unsqueeze(1))


def _torchvision_focal(batch: Batch, /, **options: Any) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(batch.input, batch.target, reduction="sum", **options)


LOSSES: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "nnU-Net's DC_and_CE_loss": ("nnunetv2", _nnunet),
    "nnU-Net's DC_and_BCE_loss": ("nnunetv2", _nnunet_regions),
    "MONAI's DiceCELoss(softmax=True)": ("monai", _monai),
    "MONAI's DiceCELoss(sigmoid=True)": ("monai", _monai_regions),
    "MONAI's DiceLoss(sigmoid=True)": ("monai", _monai_regions),
    "MONAI's DiceFocalLoss(sigmoid=True, gamma=0)": ("monai", _monai_region_focal),
    "SMP's DiceLoss + SoftCrossEntropyLoss": ("segmentation_models_pytorch", _smp),
    "kornia's focal_loss": ("kornia", _kornia_focal),
    "MONAI's FocalLoss": ("monai", _monai_focal),
    "torchvision's sigmoid_focal_loss": ("torchvision", _torchvision_focal),
}
"""The package that each is of, and how it is called with a batch and its own options."""

_DICE_OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch": True},
    {"squared_pred": True},
    {"jaccard": True},
    {"include_background": False},
    {"smooth_nr": 1.0, "smooth_dr": 0.5},
    {"squared_pred": True, "jaccard": True, "batch": True},
]
_CE_OPTIONS: list[dict[str, Any]] = [{"lambda_dice": 0.3, "lambda_ce": 0.7}]
_WEIGHT = [0.5, 2.0, 1.0, 0.25, 1.5]

CALLS: dict[str, list[tuple[str, list[dict[str, Any]]]]] = {
    "nnU-Net's DC_and_CE_loss": [
        ("images", [{"batch_dice": True}]),
        ("images without classes", [{"batch_dice": True}, {"batch_dice": False}]),
        ("images with ignored pixels", [{"batch_dice": True, "ignore_label": IGNORED}]),
        ("volumes", [{"batch_dice": False}]),
        ("volumes without classes", [{"batch_dice": False}]),
        ("volumes with ignored voxels", [{"batch_dice": False, "ignore_label": IGNORED}]),
        (
            "three heads",
            [
                {"batch_dice": True, "weights": [2 / 3, 1 / 3, 0.0]},
                {"batch_dice": False, "weights": [0.5, 0.3, 0.2]},
            ],
        ),
    ],
    "nnU-Net's DC_and_BCE_loss": [
        ("regions", [{"batch_dice": True}, {"batch_dice": False}]),
        ("regions in volumes", [{"batch_dice": False}]),
        (
            "regions with ignored pixels",
            [{"batch_dice": over, "use_ignore_label": True} for over in (True, False)],
        ),
    ],
    "MONAI's DiceCELoss(softmax=True)": [
        ("images", [{}, {"batch": True}]),
        (
            "images without classes",
            [*_DICE_OPTIONS, *_CE_OPTIONS, {"label_smoothing": 0.1}],
        ),
        ("volumes without classes", _DICE_OPTIONS[:2]),
    ],
    "MONAI's DiceCELoss(sigmoid=True)": [
        ("one region", [*_DICE_OPTIONS[:4], *_DICE_OPTIONS[5:], *_CE_OPTIONS, {"weight": [2.5]}]),
    ],
    "MONAI's DiceLoss(sigmoid=True)": [
        ("regions", _DICE_OPTIONS),
        ("regions in volumes", _DICE_OPTIONS[:2]),
    ],
    "MONAI's DiceFocalLoss(sigmoid=True, gamma=0)": [("regions", [{}])],
    "SMP's DiceLoss + SoftCrossEntropyLoss": [
        ("images", [{}]),
        ("images without classes", [{}, {"smooth_factor": 0.1}]),
        ("images with ignored pixels", [{"ignore_index": IGNORED}]),
        ("volumes without classes", [{}]),
    ],
    "kornia's focal_loss": [
        ("images", [{"gamma": gamma} for gamma in (0.0, 0.5, 1.0, 2.0, 3.5)]),
        ("images", [{"gamma": 2.0, "alpha": 0.25}, {"gamma": 2.0, "weight": _WEIGHT}]),
        ("images with ignored pixels", [{"gamma": 2.0, "ignore_index": IGNORED}]),
        ("volumes", [{"gamma": 2.0}]),
    ],
    "MONAI's FocalLoss": [
        ("images", [{"gamma": gamma} for gamma in (0.0, 0.5, 1.0, 2.0, 3.5)]),
        ("images", [{"gamma": 2.0, "alpha": 0.25}, {"gamma": 2.0, "weight": _WEIGHT}]),
        ("images with ignored pixels", [{"gamma": 2.0, "ignore_index": IGNORED}]),
        ("volumes", [{"gamma": 2.0}]),
    ],
    "torchvision's sigmoid_focal_loss": [
        ("one region", [{"gamma": gamma, "alpha": -1} for gamma in (0.0, 0.5, 1.0, 2.0, 3.5)]),
        ("one region", [{"gamma": 2.0, "alpha": 0.25}]),
    ],
}


def call(loss: str, batch: Batch, options: dict[str, Any]) -> Tensor:
    """A package's loss of a batch."""
    return LOSSES[loss][1](batch, **options)


def main() -> None:
    """Writes the file anew."""
    found = []
    for loss, batches in CALLS.items():
        for name, every in batches:
            for options in every:
                batch = BATCHES[name]()
                one = numbers(call(loss, batch, options), batch.inputs)
                found.append(
                    {"loss": loss, "batch": name, "options": options, "numbers": one._asdict()}
                )
    packages = sorted({package for package, _ in LOSSES.values()} | {"torch"})
    versions = {package: importlib.metadata.version(package) for package in packages}
    # A record a line, for differences that can be read.
    lines = ",\n".join(f"    {json.dumps(one)}" for one in found)
    head = json.dumps(versions)
    RECORDS.write_text(f'{{\n  "versions": {head},\n  "records": [\n{lines}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
