"""A small encoder-decoder with dropout after each residual stage, or in the decoder alone.

Its logits may have a mean and a spread: label uncertainty (Neven et al.).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import Covariance, GaussianHead, GaussianLogits

DropoutPlace = Literal["encoder", "decoder"]
"""After each residual stage, as in U-CE; or in the decoder, after its first fusion."""


def _conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Module:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, stride=stride, dilation=dilation)
        self.second = _conv(outputs, outputs, dilation=dilation)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        inner = F.relu(self.first(features), inplace=True)
        return F.relu(self.second(inner) + self.shortcut(features), inplace=True)


class Encoder(nn.Module):
    """A stem of stride 4 and four residual stages at strides 4, 8, 16 and 16 (dilated)."""

    def __init__(self, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, widths[0] // 2, stride=2),
            nn.ReLU(inplace=True),
            _conv(widths[0] // 2, widths[0], stride=2),
            nn.ReLU(inplace=True),
        )
        stages = []
        inputs = widths[0]
        for outputs, blocks, stride, dilation in zip(
            widths, (1, 1, 2, 2), (1, 2, 2, 1), (1, 1, 1, 2), strict=True
        ):
            stage = nn.Sequential(ResidualBlock(inputs, outputs, stride, dilation))
            stage.extend(
                ResidualBlock(outputs, outputs, dilation=dilation) for _ in range(blocks - 1)
            )
            stages.append(stage.append(nn.Dropout(dropout)))
            inputs = outputs
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to the feature maps of the four stages."""
        features = self.stem(images)
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps


class Decoder(nn.Module):
    """Sums the stages from coarse to fine and predicts class logits at stride 4."""

    def __init__(self, widths: Sequence[int], width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv(inputs, width, 1) for inputs in widths)
        self.fuse = nn.ModuleList(_conv(width, width) for _ in widths[:2])
        self.dropout = nn.Dropout(dropout)
        self.head: nn.Conv2d | GaussianHead = nn.Conv2d(width, num_classes, 1)

    def spread_logits(self, covariance: Covariance, start_variance: float) -> None:
        """Puts a head of mean and spread in the place of the plain one, with its predictions."""
        plain = self.head
        assert isinstance(plain, nn.Conv2d)
        assert plain.bias is not None
        num_classes = plain.out_channels
        one = num_classes == 2
        head = GaussianHead(
            plain.in_channels,
            1 if one else num_classes,
            covariance=covariance,
            start_variance=start_variance,
        )
        mean, weight, bias = head.mean, plain.weight.detach(), plain.bias.detach()
        assert mean.bias is not None
        with torch.no_grad():
            # The logit of the second class is that by which it exceeds the first one's.
            mean.weight.copy_(weight[1:] - weight[:1] if one else weight)
            mean.bias.copy_(bias[1:] - bias[:1] if one else bias)
        self.head = head

    def forward(
        self, maps: Sequence[Tensor], distribution: bool = False
    ) -> Tensor | GaussianLogits:
        """Feature maps to (N, num_classes, H / 4, W / 4) logits, or mean and spread of these."""
        features = self.lateral[3](maps[3]) + self.lateral[2](maps[2])
        for stage in (1, 0):
            features = F.interpolate(features, size=maps[stage].shape[2:], mode="bilinear")
            features = F.relu(features + self.lateral[stage](maps[stage]), inplace=True)
            features = F.relu(self.fuse[stage](features), inplace=True)
            if stage == 1:  # at stride 4 random numbers would take as long as the convolutions
                features = self.dropout(features)
        if distribution:
            gaussian: GaussianLogits = self.head(features)
            return gaussian
        if isinstance(self.head, GaussianHead):
            return class_logits(self.head.mean(features))
        logits: Tensor = self.head(features)
        return logits


def class_logits(mean: Tensor) -> Tensor:
    """Logits of both classes of a binary one: (N, 1, H, W) to (N, 2, H, W); of more as they are."""
    return mean if mean.shape[1] > 1 else torch.cat([torch.zeros_like(mean), mean], 1)


class EncoderDecoder(nn.Module):
    """Semantic segmentation network whose dropout layers make Monte-Carlo samples.

    Args:
        num_classes: C.
        widths: channels of the four residual stages.
        dropout: probability of a value to be dropped.
        dropout_at: ``"encoder"``: after each stage. ``"decoder"``: after its first fusion, at
            stride 8, so that all samples of an image have one pass of the encoder in common. The
            weights are the same.
        covariance: that of a :class:`segunc_ops.GaussianHead`, whose mean are the logits; of two
            classes it has one logit. Weights start where they do without. None: a plain head.
        start_variance: of its logits.

    Raises:
        ValueError: for another number of stages or place of the dropout.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (32, 48, 96, 128),
        dropout: float = 0.2,
        dropout_at: DropoutPlace = "encoder",
        covariance: Covariance | None = None,
        start_variance: float = 1.0,
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ValueError(f"widths: expected four stages, got {len(widths)}")
        if dropout_at not in get_args(DropoutPlace):
            raise ValueError(
                f"dropout_at: expected one of {get_args(DropoutPlace)}, got {dropout_at!r}"
            )
        self.num_classes = num_classes
        self.samples_share_encoder = dropout_at == "decoder"
        in_encoder, in_decoder = (dropout_at == place for place in get_args(DropoutPlace))
        self.encoder = Encoder(widths, dropout * in_encoder)
        self.decoder = Decoder(widths, widths[1], num_classes, dropout * in_decoder)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if covariance is not None:
            self.decoder.spread_logits(covariance, start_variance)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, C, H / 4, W / 4), sizes rounded up.

        Losses, statistics and metrics interpolate them to the size of the images.
        """
        logits: Tensor = self.decoder(self.encoder(images))
        return logits

    def distribution(self, images: Tensor) -> GaussianLogits:
        """Images (N, 3, H, W) to mean and spread of their logits, of a quarter of the size.

        Only with a `covariance`. Of two classes the mean is (N, 1, H / 4, W / 4).
        """
        logits: GaussianLogits = self.decoder(self.encoder(images), distribution=True)
        return logits

    def parameter_groups(
        self, learning_rate: float, decoder_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """Optimizer groups: the decoder and head learn `decoder_factor` times as fast."""
        return [
            {"params": list(self.encoder.parameters()), "lr": learning_rate},
            {"params": list(self.decoder.parameters()), "lr": learning_rate * decoder_factor},
        ]


def from_first_dropout(model: nn.Module, images: Tensor) -> tuple[nn.Module, Any]:
    """What Monte-Carlo dropout has to run for each sample, and its input.

    Args:
        model: an :class:`EncoderDecoder`, whose encoder runs here, without gradient, if its samples
            share it; any other is returned as it is.
        images: (N, 3, H, W).
    """
    if not (isinstance(model, EncoderDecoder) and model.samples_share_encoder):
        return model, images
    with torch.no_grad():
        return model.decoder, (model.encoder(images),)
