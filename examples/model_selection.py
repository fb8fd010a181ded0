"""A cascade of a fast and an accurate model. Run it: a few seconds on a CPU.

The fast model sees images at an eighth of their size, the accurate one the blocks where that is
unsure: here those that are strewn with squares, too small for the fast one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segunc_ops import Cascade, CrossEntropyLoss

NUM_CLASSES, SIZE, BLOCK = 3, 96, 32


def make_batch(generator: torch.Generator, count: int = 8) -> tuple[Tensor, Tensor]:
    """Noisy images of an upper and a lower half, one corner of which is strewn with squares."""
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    labels[:, SIZE // 2 :] = 1
    for label in labels:
        top, left = (torch.randint(0, 2, (2,), generator=generator) * SIZE // 2).tolist()
        squares = torch.rand(SIZE // 8, SIZE // 8, generator=generator) < 0.4
        corner = label[top : top + SIZE // 2, left : left + SIZE // 2]
        corner[squares.repeat_interleave(4, 0).repeat_interleave(4, 1)] = 2
    images = F.one_hot(labels, NUM_CLASSES).movedim(-1, 1).float()
    return images + 0.5 * torch.randn(images.shape, generator=generator), labels


def make_model(scale: int) -> nn.Module:
    """Sees images at 1 / scale of their size; so large are its logits, too."""
    return nn.Sequential(
        nn.AvgPool2d(scale),
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, NUM_CLASSES, 1),
    )


def train(scale: int, steps: int) -> nn.Module:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = make_model(scale)
    criterion = CrossEntropyLoss(upsample="bilinear")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        images, labels = make_batch(generator)
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()
    return model


def compare(steps: int = 60) -> list[tuple[float, float, float]]:
    """Threshold, share of right pixels and blocks an image of some cascades."""
    fast, accurate = train(8, steps), train(1, steps)
    images, labels = make_batch(torch.Generator().manual_seed(1), 32)
    rows = []
    for threshold in (math.inf, 0.6, 0.3, 0.1, -math.inf):
        result = Cascade([fast, accurate], BLOCK, threshold, context=2)(images)
        right = float((result.prediction == labels).float().mean())
        blocks = float(result.block_counts(2)[:, 1].float().mean())
        print(f"threshold {threshold:4}: {right:.1%} of pixels right, {blocks:.2f} of 9 blocks")
        rows.append((threshold, right, blocks))
    return rows


if __name__ == "__main__":
    compare()
