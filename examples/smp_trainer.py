"""A network of segmentation_models_pytorch with U-CE. Run it: a minute on a CPU, no download.

Three lines differ from a usual loop: the criterion, low-resolution logits in training, and the
Observer, which draws the samples.
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segunc_ops import Observer, UncertaintyAwareCrossEntropyLoss
from segunc_ops.experiments.datasets import SceneDataset
from segunc_ops.integrations.smp import LowResolutionLogits
from segunc_ops.metrics import MeanIoU

NUM_CLASSES, IGNORED = len(SceneDataset.class_names), SceneDataset.ignore_index


def scenes(length: int, seed: int, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """Generated street scenes with their labels."""
    dataset = SceneDataset(length, seed=seed, size=size)
    return [
        (
            torch.from_numpy(scene.image).movedim(-1, 0) / 127.5 - 1,
            torch.from_numpy(scene.label).long(),
        )
        for scene in (dataset[i] for i in range(length))
    ]


def train(
    criterion: nn.Module | None = None,
    steps: int = 120,
    size: tuple[int, int] = (96, 160),
    length: int = 64,
) -> tuple[list[float], float]:
    """Trains for so many steps; the losses, and the mean IoU of other scenes."""
    torch.manual_seed(0)
    if criterion is None:
        criterion = UncertaintyAwareCrossEntropyLoss(  # was smp.losses.SoftCrossEntropyLoss
            ignore_index=IGNORED, upsample="bilinear", align_corners=True
        )
    # It has dropout; insert_dropout(model) gives Segformer or UPerNet some.
    model = smp.FPN("resnet18", encoder_weights=None, classes=NUM_CLASSES)
    LowResolutionLogits(model, criterion)  # new
    if hasattr(criterion, "observe"):
        Observer(model, criterion)  # new
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(scenes(length, 0, size), batch_size=4, shuffle=True)
    losses: list[float] = []
    model.train()
    while len(losses) < steps:
        for images, labels in loader:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) % 20 == 0:
                print(f"step {len(losses)}: loss {losses[-1]:.3f}")
    model.eval()
    metric = MeanIoU(NUM_CLASSES, ignore_index=IGNORED)
    with torch.no_grad():
        for images, labels in DataLoader(scenes(max(1, length // 4), 1, size), batch_size=4):
            metric.update(model(images), labels)
    return losses[:steps], float(metric.compute())


if __name__ == "__main__":
    print(f"mean IoU {train()[1]:.3f}")
