"""``segunc predict``: classes and uncertainty of images without labels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..experiments.wording import number_of
from .argument_types import bits, height_and_width, whole
from .messages import fail, note, say
from .options import check_stride, device_option, samples_option, scale_option

if TYPE_CHECKING:
    from ..experiments.predictions import CascadePredictor, Predictor


def add_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    predict = add_parser(
        "predict",
        usage="%(prog)s CHECKPOINT IMAGES [IMAGES ...] --output DIR [OPTION ...]",
        help="class map and uncertainty of images without labels",
        description="Writes of each image, at its size and turned as its EXIF tag says: "
        "DIR/classes/NAME.png, the index of each pixel's class as grey value; "
        "DIR/colors/NAME.png, the same in colours (a palette PNG, whose palette indices are the "
        "classes); DIR/std/NAME.tif, the standard deviation of the predicted class's probability "
        "over samples or networks; DIR/entropy/NAME.tif, the predictive entropy in nats. NAME is "
        "the image's file name without its suffix, below the sub-folder it was found in. TIFFs "
        "are float32. A single network is sampled by Monte-Carlo dropout, several are an "
        "ensemble or, with --cascade, a cascade: without std, but with DIR/model/NAME.png, the "
        "index of the network that made each pixel. The same command goes on where it was "
        "stopped.",
    )
    predict.set_defaults(parser=predict, work=_predict, advice="the same command continues")
    predict.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="of `segunc train` or `segunc demo`; holds one network, or all that trained together",
    )
    predict.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGES",
        help="image files, and folders for every image in them and their sub-folders; hidden "
        "files are left out",
    )
    predict.add_argument(
        "--members",
        type=Path,
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="further checkpoints, whose networks make an ensemble with those of the first",
    )
    predict.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="of the maps; may hold those of other images, but no folder of IMAGES and not lie in "
        "one",
    )
    samples_option(predict)
    predict.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        help="of the dropout; an image's results depend on it and on no other image (default: 0)",
    )
    cascade = predict.add_argument_group(
        "cascade",
        "The first network segments whole images, the others the blocks where the one before is "
        "unsure; `segunc sweep` finds thresholds.",
    )
    cascade.add_argument(
        "--cascade",
        type=Path,
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="further checkpoints, from fast to accurate, in place of --members",
    )
    cascade.add_argument(
        "--threshold",
        type=bits,
        nargs="+",
        metavar="T",
        help="of the mean entropy of a block, in bits: one for all, or one for each further "
        "network; inf, or =-inf for every block",
    )
    cascade.add_argument(
        "--block-size",
        type=height_and_width,
        metavar="B",
        help="edge of the blocks in pixels, or HEIGHTxWIDTH",
    )
    cascade.add_argument(
        "--stride",
        type=height_and_width,
        metavar="S",
        help="from one block to the next (default: the block size)",
    )
    cascade.add_argument(
        "--context",
        type=whole(0),
        metavar="P",
        help="pixels around a block that the next network sees too (default: 0)",
    )
    scale_option(cascade)
    device_option(predict.add_argument_group("machine"))


def _check_cascade_options(arguments: argparse.Namespace) -> None:
    """Those of --cascade go together."""
    error = arguments.parser.error
    needed = {"--threshold": arguments.threshold, "--block-size": arguments.block_size}
    others = {
        "--stride": arguments.stride,
        "--context": arguments.context,
        "--scale": arguments.scale or None,
    }
    if not arguments.cascade:
        for name, value in {**needed, **others}.items():
            if value is not None:
                error(f"argument {name}: is of --cascade, which is missing")
        return
    if arguments.members:
        error("argument --members: not with --cascade")
    for name, value in needed.items():
        if value is None:
            error(f"argument {name}: is missing, which --cascade needs")
    further = len(arguments.cascade)
    if len(arguments.threshold) not in (1, further):
        error(
            f"argument --threshold: expected one, or {further} for as many further networks, got "
            f"{len(arguments.threshold)}"
        )
    if arguments.scale and len(arguments.scale) != 1 + further:
        error(
            f"argument --scale: expected {number_of(1 + further, 'factor')}, got "
            f"{len(arguments.scale)}"
        )
    check_stride(arguments, arguments.stride or arguments.block_size, arguments.block_size)


def _predictor(arguments: argparse.Namespace) -> Predictor:
    """By dropout, or an ensemble."""
    from ..experiments.datasets import number_classes
    from ..experiments.networks import load_networks, trained_class_names
    from ..experiments.predictions import Predictor

    checkpoints = [arguments.checkpoint, *arguments.members]
    networks = load_networks(checkpoints)
    names = trained_class_names(checkpoints) or number_classes(
        next(iter(networks.values())).num_classes
    )
    return Predictor(networks, names, arguments.samples, arguments.seed)


def _cascade_predictor(arguments: argparse.Namespace) -> CascadePredictor:
    """By --cascade."""
    from ..experiments.cascades import cascade_networks
    from ..experiments.datasets import number_classes
    from ..experiments.networks import trained_class_names
    from ..experiments.predictions import CascadePredictor

    checkpoints = [arguments.checkpoint, *arguments.cascade]
    networks = cascade_networks(checkpoints, scales=arguments.scale)
    num_classes = networks[0].num_classes
    assert num_classes is not None
    thresholds = tuple(arguments.threshold)
    return CascadePredictor(
        networks,
        trained_class_names(checkpoints) or number_classes(num_classes),
        arguments.block_size,
        arguments.stride or arguments.block_size,
        thresholds * len(arguments.cascade) if len(thresholds) == 1 else thresholds,
        arguments.context or 0,
    )


def _predict(arguments: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from ..experiments.datasets import DatasetError
    from ..experiments.predictions import (
        CascadePredictor,
        PredictionError,
        check_folder,
        check_images,
        find_images,
        write_predictions,
    )
    from ..experiments.training import CheckpointError

    error = arguments.parser.error
    _check_cascade_options(arguments)
    try:
        sources = find_images(arguments.images)
    except DatasetError as problem:
        error(f"argument IMAGES: {problem}")
    try:
        check_folder(arguments.output, arguments.images, sources)
        predictor = _cascade_predictor(arguments) if arguments.cascade else _predictor(arguments)
        with tqdm(total=len(sources), desc="check images", unit="image", dynamic_ncols=True) as bar:
            checked = check_images(sources, bar.update)
        if isinstance(predictor, CascadePredictor):
            predictor.check(sources, checked)
        with tqdm(total=len(sources), desc="predict", unit="image", dynamic_ncols=True) as bar:
            count = write_predictions(
                predictor,
                sources,
                checked,
                arguments.output,
                device=torch.device(arguments.device),
                progress=bar.update,
            )
    except CheckpointError as problem:
        error(f"{problem}")
    except PredictionError as problem:
        return fail(problem)
    if "colors" not in predictor.kinds:
        note(f"no colours of {len(predictor.class_names)} classes, as a palette has 256")
    if arguments.cascade:
        how = f"a cascade of {len(predictor.networks)}"
    elif len(predictor.networks) == 1:
        how = f"{arguments.samples} dropout samples"
    else:
        how = f"an ensemble of {len(predictor.networks)}"
    say(
        f"{number_of(count.written, 'image')} predicted by {how}, {count.kept} kept; in "
        f"{arguments.output}: "
        f"{', '.join(predictor.kinds)}."
    )
    return 0
