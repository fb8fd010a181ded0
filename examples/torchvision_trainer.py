"""torchvision's reference training loop with U-CE. Run it: a minute on a CPU, no download.

Three lines differ from the loop of the reference script: the criterion, low-resolution logits in
training, and the Observer, which draws the samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from segunc_ops import Observer, UncertaintyAwareCrossEntropyLoss
from segunc_ops.experiments.datasets import SceneDataset
from segunc_ops.integrations.torchvision import LowResolutionLogits, SegmentationCriterion
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


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[tuple[Tensor, Tensor]],
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> list[float]:
    """The reference script's, as it is."""
    model.train()
    losses = []
    for image, target in loader:
        output = model(image)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def evaluate(model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    metric = MeanIoU(NUM_CLASSES, ignore_index=IGNORED)  # was utils.ConfusionMatrix
    with torch.inference_mode():
        for image, target in loader:
            metric.update(model(image)["out"], target)
    return float(metric.compute())


def train(
    loss: nn.Module | None = None,
    epochs: int = 8,
    size: tuple[int, int] = (96, 160),
    length: int = 64,
) -> tuple[list[float], float]:
    """The losses, and the mean IoU of other scenes."""
    torch.manual_seed(0)
    if loss is None:
        loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED, upsample="bilinear")
    criterion = SegmentationCriterion(loss)  # was a function
    model = deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # as so few steps are taken
    LowResolutionLogits(model, criterion)  # new
    if hasattr(loss, "observe"):
        Observer(model, criterion)  # new
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(scenes(length, 0, size), batch_size=4, shuffle=True)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs * len(loader), power=0.9)
    losses = []
    for epoch in range(epochs):
        losses += train_one_epoch(model, criterion, optimizer, loader, scheduler)
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    return losses, evaluate(model, DataLoader(scenes(max(1, length // 4), 1, size), batch_size=4))


if __name__ == "__main__":
    print(f"mean IoU {train()[1]:.3f}")
