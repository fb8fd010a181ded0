"""mmsegmentation's Runner with U-CE. Run it: minutes on a CPU, no download.

Three lines differ from a config that trains SegFormer by cross-entropy: the import, the loss of the
head, and the hook, which draws the samples.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch.utils.data import Dataset

import segunc_ops.integrations.mmseg  # noqa: F401  # new; in a config file custom_imports
from segunc_ops.experiments.datasets import SceneDataset

NUM_CLASSES = len(SceneDataset.class_names)


class Scenes(Dataset[dict[str, Any]]):
    """Generated street scenes as mmsegmentation's pipelines pack them."""

    def __init__(self, length: int, seed: int, size: tuple[int, int]) -> None:
        self.scenes = SceneDataset(length, seed=seed, size=size)
        self.metainfo = {"classes": SceneDataset.class_names}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes[index]
        shape = scene.label.shape
        sample = SegDataSample(metainfo={"img_shape": shape, "ori_shape": shape})
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(scene.label).long()[None])
        image = torch.from_numpy(scene.image).movedim(-1, 0).contiguous()
        return {"inputs": image, "data_samples": sample}


def make_config(loss: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [127.5] * 3,
            "std": [127.5] * 3,
            "size": size,
            "seg_pad_val": SceneDataset.ignore_index,
        },
        "backbone": {
            "type": "MixVisionTransformer",
            "embed_dims": 16,
            "num_layers": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 4],
        },
        "decode_head": {
            "type": "SegformerHead",
            "in_channels": [16, 16, 32, 64],
            "in_index": [0, 1, 2, 3],
            "channels": 64,
            "dropout_ratio": 0.1,
            "num_classes": NUM_CLASSES,
            "ignore_index": SceneDataset.ignore_index,
            "norm_cfg": {"type": "BN"},
            "loss_decode": loss,
        },
        "test_cfg": {"mode": "whole"},
    }


def train(
    criterion: str = "UncertaintyAwareCrossEntropyLoss",
    steps: int = 120,
    size: tuple[int, int] = (96, 160),
    length: int = 64,
) -> tuple[list[float], float]:
    """Trains for so many steps; the losses, and the mean IoU of other scenes in percent."""
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model=ConfigDict(
                make_config({"type": "SeguncLoss", "criterion": criterion}, size)  # new
            ),
            work_dir=folder,
            train_dataloader={
                "batch_size": 4,
                "num_workers": 0,
                "sampler": {"type": "InfiniteSampler", "shuffle": True},
                "dataset": Scenes(length, seed=0, size=size),
            },
            val_dataloader={
                "batch_size": 4,
                "num_workers": 0,
                "sampler": {"type": "DefaultSampler", "shuffle": False},
                "dataset": Scenes(max(1, length // 4), seed=1, size=size),
            },
            train_cfg={"by_epoch": False, "max_iters": steps, "val_interval": steps + 1},
            val_cfg={},
            val_evaluator={"type": "IoUMetric", "iou_metrics": ["mIoU"]},
            optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 2e-3}},
            custom_hooks=[{"type": "SeguncHook", "num_samples": 10}],  # new
            default_hooks={"checkpoint": None},
            log_processor={"by_epoch": False},
            default_scope="mmseg",
            randomness={"seed": 0},
        )
        runner.train()
        losses = runner.message_hub.get_scalar("train/loss").data[0].tolist()
        return losses, float(runner.val()["mIoU"])


if __name__ == "__main__":
    print(f"mean IoU {train()[1]:.1f} %")
