"""TorchUncertainty's trainer with U-CE. Run it: a minute on a CPU, no download.

What differs from a script that trains by cross-entropy: the criterion and the routine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch_uncertainty import TUTrainer
from torch_uncertainty.methods import mc_dropout

from segunc_ops import UncertaintyAwareCrossEntropyLoss
from segunc_ops.experiments.datasets import SceneDataset
from segunc_ops.integrations.torch_uncertainty import SegmentationMapRoutine

NUM_CLASSES, IGNORED = len(SceneDataset.class_names), SceneDataset.ignore_index


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Generated street scenes as tensors."""

    def __init__(self, length: int, seed: int, size: tuple[int, int]) -> None:
        self.scenes = SceneDataset(length, seed=seed, size=size)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = self.scenes[index]
        image = torch.from_numpy(scene.image).movedim(-1, 0) / 127.5 - 1
        return image, torch.from_numpy(scene.label).long()


def make_model() -> nn.Module:
    """A small network whose logits have a quarter of the images' resolution."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 5, 2, 2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=2, dilation=2), nn.BatchNorm2d(64), nn.ReLU()),
        nn.Dropout2d(0.2),
        nn.Conv2d(64, NUM_CLASSES, 1),
    )


def train(
    epochs: int = 10, size: tuple[int, int] = (96, 144), scenes: int = 64
) -> dict[str, float]:
    """Trains for so many epochs; what the test says of it."""
    torch.manual_seed(0)
    routine = SegmentationMapRoutine(  # was SegmentationRoutine
        mc_dropout(make_model(), num_estimators=5),
        NUM_CLASSES,
        UncertaintyAwareCrossEntropyLoss(  # was nn.CrossEntropyLoss()
            ignore_index=IGNORED, upsample="bilinear", reduction="mean"
        ),
        optim_recipe=lambda model: torch.optim.AdamW(model.parameters(), 2e-3),
    )
    trainer = TUTrainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    held_out = DataLoader(Scenes(max(1, scenes // 4), seed=1, size=size), 4)
    trainer.fit(routine, DataLoader(Scenes(scenes, seed=0, size=size), 4, shuffle=True), held_out)
    (result,) = trainer.test(routine, held_out, verbose=False)
    return dict(result)


if __name__ == "__main__":
    result = train()
    print(f"mean IoU {result['test/seg/mIoU']:.3f}, ECE {result['test/cal/ECE']:.3f}")
