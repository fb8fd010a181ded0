"""``segunc predict --cascade``: the maps of a cascade of networks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.experiments.cases import CPU, exit_code, train_member, write_images
from segunc_ops import Cascade, cli, model_map
from segunc_ops.experiments.cascades import Scaled, cascade_networks
from segunc_ops.experiments.datasets import normalize
from segunc_ops.experiments.image_files import open_image
from segunc_ops.experiments.map_files import read_map
from segunc_ops.experiments.training import load_members

THRESHOLD = 0.9
KINDS = {"classes": ".png", "colors": ".png", "entropy": ".tif", "model": ".png"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    """Two networks, one of other classes, and two that trained together."""
    root = write_images(tmp_path_factory.mktemp("training"), 2)
    members = [train_member(root, seed) for seed in (0, 1)]
    return [*members, train_member(root, 2, 4), train_member(root, 3, loss="iu")]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, size in (("wide", (40, 61)), ("high", (50, 33))):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        pixels[:, : size[1] // 2] //= 4
        Image.fromarray(pixels).save(root / f"{name}.png")
    return root


def command(checkpoints: list[Path], images: Path, folder: Path, *options: str) -> list[str]:
    first, *others = map(str, checkpoints)
    arguments = ["predict", first, str(images), "--output", str(folder), "--cascade", *others]
    return [*arguments, "--threshold", str(THRESHOLD), "--block-size", "16x20", *options]


@pytest.mark.parametrize(
    ("options", "stride", "context", "scales"),
    [
        ([], None, 0, (1, 1)),
        (["--stride", "8x12", "--context", "4", "--scale", "0.5", "1"], (8, 12), 4, (0.5, 1)),
    ],
    ids=["plain", "all options"],
)
def test_maps_are_those_of_the_cascade(
    checkpoints, images, tmp_path, capsys, options, stride, context, scales
):
    networks = [load_members(path)[0] for path in checkpoints[:2]]
    scaled = [Scaled(network, scale) for network, scale in zip(networks, scales, strict=True)]
    batches = {}
    for name in ("wide", "high"):
        image = torch.from_numpy(np.array(open_image(images / f"{name}.png")))
        batches[name] = normalize(image.permute(2, 0, 1)[None], CPU, False)
    blocks = {"block_size": (16, 20), "stride": stride, "context": context}
    uncertain = Cascade(scaled, threshold=math.inf, **blocks)
    threshold = float(uncertain(batches["wide"]).uncertainty.median())  # which parts the blocks
    options = [*options, "--threshold", repr(threshold)]
    assert cli.main(command(checkpoints[:2], images, tmp_path / "maps", *options)) == 0
    assert "2 images predicted by a cascade of 2, 0 kept" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {*KINDS}
    cascade = Cascade(scaled, threshold=threshold, **blocks)
    for name, batch in batches.items():
        expected = cascade(batch, return_probabilities=True)
        model = model_map(expected.model, batch.shape[2:], (16, 20), stride)
        if name == "wide":
            assert set(model.unique().tolist()) == {0, 1}
        p = expected.probabilities
        for kind, values in (
            ("classes", expected.prediction),
            ("colors", expected.prediction),
            ("entropy", -(p * p.log()).sum(1)),
            ("model", model),
        ):
            stored = read_map(tmp_path / "maps" / kind / f"{name}{KINDS[kind]}")
            np.testing.assert_allclose(stored.values, values[0].numpy(), atol=1e-6)
            told = json.loads(str(stored.description))
            assert (told["map"], told["samples"], told["seed"]) == (kind, None, None)
            assert told["cascade"].startswith(f"thresholds {threshold}, blocks 16x20, ")
            assert len(told["members"]) == 2


def test_what_is_there_is_kept_or_refused(checkpoints, images, tmp_path, capsys):
    arguments = command(checkpoints[:2], images, tmp_path)
    assert cli.main(arguments) == 0
    (tmp_path / "model" / "wide.png").unlink()
    assert cli.main(arguments) == 0
    assert "1 image predicted by a cascade of 2, 1 kept" in capsys.readouterr().out
    for change, message in (
        (["--threshold=inf"], "made with cascade thresholds 0.9, blocks"),
        (["--context", "1"], "made with cascade thresholds 0.9, blocks"),
        (["--scale", "1", "0.5"], "made with cascade thresholds 0.9, blocks"),
    ):
        assert cli.main([*arguments, *change]) == 1
        assert message in capsys.readouterr().err
    swapped = command([checkpoints[1], checkpoints[0]], images, tmp_path)
    assert cli.main(swapped) == 1
    assert "made with members" in capsys.readouterr().err


def test_the_ends_are_one_network(checkpoints, images, tmp_path):
    for threshold, number in ((math.inf, 0), (-math.inf, 1)):
        folder = tmp_path / str(number)
        options = [f"--threshold={threshold}", "--context", "100"]
        assert cli.main(command(checkpoints[:2], images / "wide.png", folder, *options)) == 0
        network = load_members(checkpoints[number])[0]
        image = torch.from_numpy(np.array(open_image(images / "wide.png")))
        with torch.no_grad():
            logits = network(normalize(image.permute(2, 0, 1)[None], CPU, False))
        expected = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")
        found = read_map(folder / "classes" / "wide.png").values
        assert (found == expected.argmax(1)[0].numpy()).mean() > 0.999
        assert (read_map(folder / "model" / "wide.png").values == number).all()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["{0}", "--threshold", "1"], 2, "argument --threshold: is of --cascade, which is missing"),
        (["{0}", "--block-size", "8"], 2, "argument --block-size: is of --cascade, which is"),
        (["{0}", "--context", "0"], 2, "argument --context: is of --cascade, which is missing"),
        (["{0}", "--cascade", "{1}", "--block-size", "8"], 2, "argument --threshold: is missing"),
        (["{0}", "--cascade", "{1}", "--threshold", "1"], 2, "argument --block-size: is missing"),
        (["{0}", "--cascade", "{1}", "--members", "{1}"], 2, "argument --members: not with"),
        (
            ["{0}", "--cascade", "{1}", "--block-size", "8", "--threshold", "1", "2"],
            2,
            "argument --threshold: expected one, or 1 for as many further networks, got 2",
        ),
        (
            ["{0}", "--cascade", "{1}", "--block-size", "8", "--threshold", "-1"],
            2,
            "argument --threshold",
        ),
        (
            ["{0}", "--cascade", "{1}", "--block-size", "8", "--threshold", "1", "--scale", "1"],
            2,
            "argument --scale: expected 2 factors, got 1",
        ),
        (
            ["{0}", "--cascade", "{1}", "--block-size", "8", "--threshold", "1", "--stride", "9"],
            2,
            "argument --stride: expected at most the block size 8x8, got 9x9",
        ),
        (
            ["{0}", "--cascade", "{2}", "--block-size", "8", "--threshold", "1"],
            2,
            "was trained for 4 classes",
        ),
        (
            ["{0}", "--cascade", "{3}", "--block-size", "8", "--threshold", "1"],
            2,
            "holds 2 networks that trained together",
        ),
        (
            ["{0}", "--cascade", "{1}", "--block-size", "45", "--threshold", "1"],
            1,
            "high.png: expected at least the 45 x 45 pixels of a block, got 50 x 33",
        ),
    ],
)
def test_command_names_what_cannot_be(
    checkpoints, images, tmp_path, capsys, options, code, message
):
    first, *rest = (each.format(*checkpoints) for each in options)
    arguments = ["predict", first, str(images), "--output", str(tmp_path / "maps"), *rest]
    assert exit_code(arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "maps").exists()


def test_scaled_networks_see_images_resized():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(tuple(images.shape))
            return {"out": images}

    images = torch.rand(2, 3, 9, 20)
    for scale, size in ((0.5, (4, 10)), (2, (18, 40)), (0.01, (1, 1)), (1, (9, 20))):
        assert Scaled(Spy(), scale)(images).shape == (2, 3, *size)
    assert seen[-1] == (2, 3, 9, 20)


def test_networks_are_named_with_their_scale(checkpoints):
    networks = cascade_networks(checkpoints[:2], scales=(0.5, 1))
    assert [each.name for each in networks] == [f"{checkpoints[0]} at 0.5", str(checkpoints[1])]
    assert networks[0].digest != networks[1].digest
    assert not any(module.training for each in networks for module in each.network.modules())
