"""A plain PyTorch trainer with U-CE in place of cross-entropy. Run it: a few seconds on a CPU.

Two lines differ from the usual loop: the loss, and the samples that tell where the model is unsure.
"""

import torch
from torch import Tensor, nn

from segunc_ops import UncertaintyAwareCrossEntropyLoss, sample_statistics

NUM_CLASSES, IGNORED = 4, 255
COLOURS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.6, 0.0]])


def make_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images of vertical stripes, labelled by colour, their borders ignored."""
    columns = torch.randint(0, NUM_CLASSES, (8, 10), generator=generator).repeat_interleave(4, 1)
    labels = columns.unsqueeze(1).repeat(1, 16, 1)
    images = COLOURS[labels].movedim(-1, 1)
    labels[:, :, 3::4] = IGNORED
    return images + 0.4 * torch.randn(images.shape, generator=generator), labels


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(32, NUM_CLASSES, 1),
    )


def train(steps: int = 50) -> list[float]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = make_model()
    criterion = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)  # was nn.CrossEntropyLoss
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    history = []
    for step in range(1, steps + 1):
        images, labels = make_batch(generator)
        uncertainty = sample_statistics(model, images, num_samples=10)  # new
        loss = criterion(model(images), labels, uncertainty)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
        if step % 10 == 0:
            print(f"step {step:3d}: loss {loss.item():.3f}, sigma {uncertainty.std.mean():.3f}")
    return history


if __name__ == "__main__":
    train()
