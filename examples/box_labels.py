"""Learning discs from bounding boxes, of which a fifth of the images have exact labels instead.

Run it: some seconds on a CPU. The network tells how unsure it is of each label; the loss replaces
those that it is least sure of.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from segunc_ops import BoxLabels, GaussianHead, LabelUncertaintyLoss


def make_discs(count: int, seed: int, size: int = 48) -> tuple[Tensor, Tensor]:
    """Noisy images with a disc each, and their exact labels."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, 2, 1, 1, generator=generator) * size / 2 + size / 4
    radii = torch.rand(count, 1, 1, generator=generator) * size / 6 + size / 8
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = (rows - places[:, 0]).square() + (columns - places[:, 1]).square() < radii.square()
    images = labels[:, None].float() + 0.4 * torch.randn(count, 1, size, size, generator=generator)
    return images, labels.long()


def make_backbone() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs in (1, 16, 16):
        layers += [nn.Conv2d(inputs, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return [*layers, nn.MaxPool2d(2)]


def enlarge(values: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(values, size=labels.shape[1:], mode="bilinear")


def train(epochs: int = 8) -> list[float]:
    torch.manual_seed(0)
    images, exact = make_discs(160, seed=0)
    others, others_exact = make_discs(40, seed=1)
    dataset = BoxLabels(TensorDataset(images, exact), exact_share=0.2)
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    network = nn.Sequential(*make_backbone(), GaussianHead(16, num_classes=1, start_variance=4.0))
    criterion = LabelUncertaintyLoss(threshold=1.5)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    history = []
    for epoch in range(1, epochs + 1):
        for batch, labels, boxes in loader:
            # Of half the resolution.
            mean, log_variance = (enlarge(each, labels) for each in network(batch))
            # Before the network knows where it is unsure, no label is replaced.
            bootstrap = boxes & (epoch > epochs // 2)
            loss = criterion(mean, log_variance, labels, bootstrap)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        network.eval()
        with torch.no_grad():
            found = enlarge(network(others).mean, others_exact)[:, 0] > 0
        network.train()
        right = others_exact == 1
        iou = (found & right).sum() / (found | right).sum()
        print(f"epoch {epoch}: loss {loss.item():.3f}, IoU of other discs {iou:.3f}")
    return history


if __name__ == "__main__":
    train()
