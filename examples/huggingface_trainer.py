"""transformers' Trainer with U-CE. Run it: a minute on a CPU, no download.

Three lines differ from a script that trains SegFormer by its own loss: the criterion, the trainer,
and the metrics, which count instead of keeping all logits.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainingArguments

from segunc_ops import UncertaintyAwareCrossEntropyLoss
from segunc_ops.experiments.datasets import SceneDataset
from segunc_ops.integrations.huggingface import BatchMetrics, SegmentationTrainer
from segunc_ops.metrics import SegmentationMetrics

NUM_CLASSES, IGNORED = len(SceneDataset.class_names), SceneDataset.ignore_index


class Scenes(Dataset[dict[str, Any]]):
    """Generated street scenes as transformers' models take them."""

    def __init__(self, length: int, seed: int, size: tuple[int, int]) -> None:
        self.scenes = SceneDataset(length, seed=seed, size=size)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes[index]
        image = torch.from_numpy(scene.image).movedim(-1, 0) / 127.5 - 1
        return {"pixel_values": image, "labels": torch.from_numpy(scene.label).long()}


def make_model() -> SegformerForSemanticSegmentation:
    """A small one; SegformerForSemanticSegmentation.from_pretrained gives you a trained one."""
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 64],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=64,
        num_labels=NUM_CLASSES,
        semantic_loss_ignore_index=IGNORED,
    )
    return SegformerForSemanticSegmentation(config)


def train(
    criterion: nn.Module | None = None,
    steps: int = 120,
    size: tuple[int, int] = (96, 144),
    scenes: int = 64,
) -> dict[str, Any]:
    """Trains for so many steps; what was logged, and what the evaluation says."""
    torch.manual_seed(0)
    if criterion is None:
        criterion = UncertaintyAwareCrossEntropyLoss(  # new
            ignore_index=IGNORED, upsample="bilinear", reduction="mean"
        )
    metrics = SegmentationMetrics(
        NUM_CLASSES, uncertainty=False, ignore_index=IGNORED, scalars_only=True
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SegmentationTrainer(  # was Trainer
            make_model(),
            TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                learning_rate=2e-3,
                logging_steps=max(1, steps // 6),
                batch_eval_metrics=True,  # new
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            criterion=criterion,  # new
            train_dataset=Scenes(scenes, seed=0, size=size),
            eval_dataset=Scenes(max(1, scenes // 4), seed=1, size=size),
            compute_metrics=BatchMetrics(metrics),  # new
        )
        trainer.train()
        result = trainer.evaluate()
    return {"losses": [log["loss"] for log in trainer.state.log_history if "loss" in log], **result}


if __name__ == "__main__":
    print(f"mean IoU {train()['eval_mean_iou']:.3f}")
