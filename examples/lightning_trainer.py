"""Lightning's Trainer with U-CE. Run it: a minute on a CPU, no download.

Three lines differ from a script that trains by torch's cross-entropy: the criterion, and two
callbacks, of which one draws the samples and the other counts the validation.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from segunc_ops import UncertaintyAwareCrossEntropyLoss
from segunc_ops.experiments.datasets import SceneDataset
from segunc_ops.integrations.lightning import MetricsCallback, SamplingCallback
from segunc_ops.metrics import SegmentationMetrics

NUM_CLASSES, IGNORED = len(SceneDataset.class_names), SceneDataset.ignore_index


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Generated street scenes, as images and labels."""

    def __init__(self, length: int, seed: int, size: tuple[int, int]) -> None:
        self.scenes = SceneDataset(length, seed=seed, size=size)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = self.scenes[index]
        image = torch.from_numpy(scene.image).movedim(-1, 0) / 127.5 - 1
        return image, torch.from_numpy(scene.label).long()


def block(inputs: int, outputs: int, dilation: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class Segmenter(L.LightningModule):
    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *block(3, 16),
            *block(16, 32, 2),
            *block(32, 32, 4),
            nn.Dropout2d(0.2),
            nn.Conv2d(32, NUM_CLASSES, 1),
        )
        self.criterion = criterion
        self.losses: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.criterion(self.network(images), labels)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> dict[str, Tensor]:
        images, labels = batch
        logits = self.network(images)
        self.log("val_loss", self.criterion(logits, labels))
        return {"logits": logits, "labels": labels}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(
    criterion: nn.Module | None = None,
    steps: int = 120,
    size: tuple[int, int] = (96, 144),
    scenes: int = 64,
) -> dict[str, Any]:
    """Trains for so many steps; the losses, and what the validation says."""
    L.seed_everything(0, verbose=False)
    callbacks: list[L.Callback] = []
    if criterion is None:
        criterion = UncertaintyAwareCrossEntropyLoss(  # new
            ignore_index=IGNORED, reduction="mean"
        )
    if hasattr(criterion, "observe"):
        callbacks.append(SamplingCallback(num_samples=10))  # new
    metrics = SegmentationMetrics(
        NUM_CLASSES, uncertainty=False, ignore_index=IGNORED, scalars_only=True
    )
    callbacks.append(MetricsCallback(metrics))  # new
    module = Segmenter(criterion)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    validation = DataLoader(Scenes(max(1, scenes // 4), 1, size), batch_size=4)
    trainer.fit(module, DataLoader(Scenes(scenes, 0, size), batch_size=4, shuffle=True), validation)
    result = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"losses": [float(loss) for loss in module.losses], **result}


if __name__ == "__main__":
    print(f"mean IoU {train()['val_mean_iou']:.3f}")
