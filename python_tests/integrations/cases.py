"""Tiny models of transformers, and data for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

CLASSES, SIZE, IGNORED = 5, 32, 255

pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate")

import transformers  # noqa: E402


def segformer(dropout: float = 0.0, **options: Any) -> nn.Module:
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 8, 16, 16],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            classifier_dropout_prob=dropout,
            drop_path_rate=0.0,
            **({"num_labels": CLASSES} | options),
        )
    )


def dpt() -> nn.Module:
    return transformers.DPTForSemanticSegmentation(
        transformers.DPTConfig(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=32,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16,
            image_size=SIZE,
            patch_size=8,
            num_labels=CLASSES,
        )
    )


_BEIT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIZE,
    "patch_size": 8,
    "out_indices": [1, 2, 3, 4],
    "pool_scales": [1, 2],
    "auxiliary_channels": 8,
    "drop_path_rate": 0.0,
    "num_labels": CLASSES,
}


def beit(dropout: float = 0.0) -> nn.Module:
    config = transformers.BeitConfig(hidden_dropout_prob=dropout, **_BEIT)
    return transformers.BeitForSemanticSegmentation(config)


def data2vec() -> nn.Module:
    config = transformers.Data2VecVisionConfig(**_BEIT)
    return transformers.Data2VecVisionForSemanticSegmentation(config)


def mobilevit() -> nn.Module:
    return transformers.MobileViTForSemanticSegmentation(
        transformers.MobileViTConfig(
            image_size=SIZE,
            hidden_sizes=[16, 16, 16],
            neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 16],
            num_attention_heads=2,
            aspp_out_channels=16,
            atrous_rates=[1, 2, 3],
            num_labels=CLASSES,
        )
    )


def mobilenet() -> nn.Module:
    return transformers.MobileNetV2ForSemanticSegmentation(
        transformers.MobileNetV2Config(image_size=SIZE, depth_multiplier=0.25, num_labels=CLASSES)
    )


def upernet() -> nn.Module:
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
        drop_path_rate=0.0,
    )
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=backbone,
            hidden_size=16,
            pool_scales=[1, 2],
            auxiliary_channels=8,
            num_labels=CLASSES,
        )
    )


MODELS = {
    "SegFormer": segformer,
    "DPT": dpt,
    "BEiT": beit,
    "UPerNet": upernet,
    "Data2Vec": data2vec,
    "MobileViT": mobilevit,
    "MobileNetV2": mobilenet,
}


def without_batch_norm(model: nn.Module) -> nn.Module:
    """Nothing of an image depends on the others of its batch."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def batch(count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Images whose numbers of labelled pixels differ."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count, SIZE, SIZE), generator=generator)
    for i, label in enumerate(labels):
        label[: 6 * i + 2] = IGNORED
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return {"pixel_values": images.to(dtype), "labels": labels}


def dataset(
    count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[dict[str, Tensor]]:
    inputs = batch(count, seed, dtype)
    return [{name: value[i] for name, value in inputs.items()} for i in range(count)]


def arguments(folder: Path, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return transformers.TrainingArguments(**(defaults | options))
