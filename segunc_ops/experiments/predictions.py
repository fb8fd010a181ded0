"""Predictions of images without labels: class map, coloured class map and uncertainty as files.

Dropout is drawn from the seed and the image's pixels, and a file is written whole or not at all, so
the files of an image are the same whichever others it is given with, and whether the process was
left alone or killed and started again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cascade import Cascade, model_map
from .cascades import CascadeNetwork
from .datasets import normalize
from .evaluation import predict_by_dropout, predict_by_ensemble, seeded
from .image_files import DatasetError, check_bytes, open_image, read_file
from .interruption import Interrupted, deferred_interrupt
from .layouts import image_name, list_images
from .map_files import Record, read_map, write_png, write_tiff
from .models import EncoderDecoder
from .networks import reproducible
from .output_files import by_folder, remove_partial_files, try_output
from .plots import class_colours

MapKind = Literal["classes", "colors", "std", "entropy", "model"]
"""What a file holds, and the folder it lies in."""

_SUFFIXES: dict[MapKind, str] = {
    "classes": ".png",
    "colors": ".png",
    "std": ".tif",
    "entropy": ".tif",
    "model": ".png",
}
_PALETTE_SIZE = 256


class PredictionError(ValueError):
    """Predictions that cannot be made, or not in this folder."""


class Source(NamedTuple):
    """An image to predict."""

    path: Path
    name: str
    """What its files are called, less the suffix; sub-folders are kept, parted by "/"."""


@dataclass(frozen=True)
class PredictionRecord(Record):
    """What a file of a prediction was made of, as it tells in its description.

    ``members`` are the SHA-256 digests of the networks' weights, sorted; ``image`` that of the
    image's size and RGB values. Of an ensemble or a cascade, which is not sampled, ``samples`` and
    ``seed`` are None; ``members`` of a cascade are in its order.
    """

    FORMAT = "segunc prediction 1"

    map: MapKind
    members: tuple[str, ...]
    class_names: tuple[str, ...]
    image: str
    samples: int | None
    seed: int | None
    cascade: str | None = None


Predict = Callable[[Tensor], "Prediction"]
"""From normalised images (N, 3, H, W)."""


class Prediction(NamedTuple):
    """Of images, at their size; what a predictor has no map of is None."""

    prediction: Tensor
    """Class indices, (N, H, W)."""
    entropy: Tensor
    """In nats."""
    std: Tensor | None = None
    """Of the predicted class's probability."""
    model: Tensor | None = None
    """Index of the network in its cascade."""


class AnyPredictor(Protocol):
    """What predicts an image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names."""

    @property
    def kinds(self) -> tuple[MapKind, ...]:
        """The maps of an image."""

    @property
    def seed(self) -> int:
        """Of what is random."""

    def record(self, kind: MapKind, image: str) -> PredictionRecord:
        """What a map of the image with this digest will say of itself."""

    def on(self, device: torch.device) -> Predict:
        """The prediction by its networks, which move to a device."""


def _with_colors(kinds: Iterable[MapKind], num_classes: int) -> tuple[MapKind, ...]:
    """Without colours of more than 256 classes, which have no palette."""
    return tuple(kind for kind in kinds if kind != "colors" or num_classes <= _PALETTE_SIZE)


@dataclass(frozen=True)
class Predictor:
    """Networks that predict an image: one by Monte-Carlo dropout, several as an ensemble.

    Args:
        networks: by their digest, as :func:`segunc_ops.experiments.networks.load_networks` gives
            them.
        class_names: C names.
        samples: S of Monte-Carlo dropout.
        seed: of the dropout masks.
    """

    networks: Mapping[str, EncoderDecoder]
    class_names: tuple[str, ...]
    samples: int = 10
    seed: int = 0

    @property
    def kinds(self) -> tuple[MapKind, ...]:
        """The maps of an image."""
        return _with_colors(("classes", "colors", "std", "entropy"), len(self.class_names))

    def record(self, kind: MapKind, image: str) -> PredictionRecord:
        """What a map of the image with this digest will say of itself."""
        sampled = len(self.networks) == 1
        return PredictionRecord(
            kind,
            tuple(self.networks),
            self.class_names,
            image,
            self.samples if sampled else None,
            self.seed if sampled else None,
        )

    def on(self, device: torch.device) -> Predict:
        """The evaluation's own prediction by these networks, which move to a device."""
        models = [model.to(device) for model in self.networks.values()]
        predict = (
            predict_by_ensemble(models)
            if len(models) > 1
            else predict_by_dropout(models[0], self.samples)
        )

        def prediction(images: Tensor) -> Prediction:
            statistics = predict(images)
            return Prediction(statistics.prediction, statistics.entropy, statistics.std)

        return prediction


@dataclass(frozen=True)
class CascadePredictor:
    """A cascade of networks, each in one pass without dropout.

    Args:
        networks: from fast to accurate.
        class_names: C names.
        block_size, stride, thresholds, context: of the :class:`~segunc_ops.Cascade`.
    """

    networks: Sequence[CascadeNetwork]
    class_names: tuple[str, ...]
    block_size: tuple[int, int]
    stride: tuple[int, int]
    thresholds: tuple[float, ...]
    context: int = 0
    seed: int = 0

    @property
    def kinds(self) -> tuple[MapKind, ...]:
        """The maps of an image."""
        return _with_colors(("classes", "colors", "entropy", "model"), len(self.class_names))

    def record(self, kind: MapKind, image: str) -> PredictionRecord:
        """What a map of the image with this digest will say of itself."""
        blocks, stride = (f"{edges[0]}x{edges[1]}" for edges in (self.block_size, self.stride))
        thresholds = " ".join(map(str, self.thresholds))
        scales = " ".join(f"{network.network.scale:g}" for network in self.networks)
        return PredictionRecord(
            kind,
            tuple(network.digest for network in self.networks),
            self.class_names,
            image,
            None,
            None,
            f"thresholds {thresholds}, blocks {blocks}, stride {stride}, context {self.context}, "
            f"scales {scales}",
        )

    def on(self, device: torch.device) -> Predict:
        """The prediction by these networks, which move to a device."""
        cascade = Cascade(
            [network.network for network in self.networks],
            self.block_size,
            self.thresholds,
            self.stride,
            context=self.context,
        ).to(device)

        def prediction(images: Tensor) -> Prediction:
            result = cascade(images, return_probabilities=True)
            assert result.probabilities is not None
            model = model_map(result.model, images.shape[2:], self.block_size, self.stride)
            entropy = torch.special.entr(result.probabilities).sum(1)
            return Prediction(result.prediction, entropy, model=model)

        return prediction

    def check(self, sources: Sequence[Source], checked: Sequence[CheckedImage]) -> None:
        """Raises a PredictionError where blocks are larger than an image."""
        for (path, _), (_, size) in zip(sources, checked, strict=True):
            if size[0] < self.block_size[0] or size[1] < self.block_size[1]:
                raise PredictionError(
                    f"{path}: expected at least the {self.block_size[0]} x {self.block_size[1]} "
                    f"pixels of a block, got {size[0]} x {size[1]}; choose another --block-size"
                )


class PredictionCount(NamedTuple):
    """Images."""

    written: int
    kept: int


class CheckedImage(NamedTuple):
    """What is known of an image once it has been decoded."""

    digest: str
    size: tuple[int, int]


def find_images(paths: Iterable[Path]) -> list[Source]:
    """The images that some paths stand for.

    Args:
        paths: files of any name, and folders, which stand for every image in them and in their
            sub-folders, hidden ones left out. A file that is given twice counts once.

    Raises:
        DatasetError: there is no such path, a folder without images, a checkpoint, or two images
            whose files would be called the same.
    """
    found: dict[str, Path] = {}
    for given in paths:
        if given.is_dir():
            each = [Source(path, image_name(path, given)) for path in list_images(given)]
            if not each:
                raise DatasetError(f"{given}: holds no images")
        elif given.suffix == ".pt":
            raise DatasetError(
                f"{given}: is no image; the checkpoint comes first, further ones go to --members"
            )
        elif given.exists():
            each = [Source(given, given.stem)]
        else:
            raise DatasetError(f"{given}: no such file or folder")
        for path, name in each:
            other = found.setdefault(name, path)
            if other.resolve() != path.resolve():
                raise DatasetError(
                    f"{path}: its files would be called {name}, as those of {other}; rename one or "
                    "predict them to different folders"
                )
    return [Source(path, name) for name, path in found.items()]


def map_path(folder: Path, kind: MapKind, name: str) -> Path:
    """Where a map of the image with this name lies."""
    return folder / kind / f"{name}{_SUFFIXES[kind]}"


def check_folder(folder: Path, given: Iterable[Path], sources: Sequence[Source]) -> None:
    """Tries whether the maps of some images can be written; leaves nothing.

    Args:
        folder: where they are to lie.
        given: the paths that stand for the images.
        sources: the images.

    Raises:
        PredictionError: maps would lie in a folder whose images are predicted.
        OutputError: a file cannot be written there.
    """
    kinds: tuple[MapKind, ...] = get_args(MapKind)
    inputs = [path.resolve() for path in (*given, *(path for path, _ in sources))]
    for place in [(folder / kind).resolve() for kind in kinds]:
        for path in inputs:
            if place.is_relative_to(path) or path.is_relative_to(place):
                raise PredictionError(
                    f"{folder}: maps in it would be taken for images ({path} is one or holds "
                    "them); choose a folder apart with --output"
                )
    try_output(folder)
    paths = (map_path(folder, kind, name) for kind in kinds for _, name in sources)
    for parent, names in by_folder(paths).items():
        try_output(parent, names)


def image_digest(image: NDArray[np.uint8]) -> str:
    """The SHA-256 of an image's size and RGB values (H, W, 3)."""
    digest = hashlib.sha256(f"{image.shape[0]} {image.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def image_seed(seed: int, digest: str) -> int:
    """What the dropout masks of an image are drawn from."""
    return int(np.random.SeedSequence([seed, int(digest, 16)]).generate_state(1, np.uint64)[0])


def check_images(
    sources: Sequence[Source], progress: Callable[[int], object] | None = None
) -> list[CheckedImage]:
    """Decodes every image once, so that a bad one is found before the work.

    Args:
        sources: the images.
        progress: called with 1 after each.

    Returns:
        What :func:`write_predictions` needs to know of them.

    Raises:
        DatasetError: an image that :func:`open_image` refuses.
    """

    def check(source: Source) -> CheckedImage:
        data = read_file(source.path)
        image = np.asarray(open_image(source.path, data=data))
        check_bytes(source.path, data)
        return CheckedImage(image_digest(image), (image.shape[0], image.shape[1]))

    checked = []
    with ThreadPoolExecutor() as pool:
        for each in pool.map(check, sources):
            checked.append(each)
            if progress is not None:
                progress(1)
    return checked


def _is_done(path: Path, record: PredictionRecord, size: tuple[int, int]) -> bool:
    """Whether a map is there already; what is not one of this prediction is left alone."""
    if not path.exists():
        return False
    advice = "move it away or choose another folder"
    try:
        values, _, description = read_map(path)
    except Exception as problem:  # whatever a decoder makes of another file
        raise PredictionError(f"{path}: cannot be read ({problem}); {advice}") from problem
    if (why := record.why_not(PredictionRecord.from_json(description))) is not None:
        raise PredictionError(f"{path}: {why}; {advice}")
    if values.shape != size:
        raise PredictionError(
            f"{path}: is {values.shape[1]} x {values.shape[0]}, its image {size[1]} x {size[0]}; "
            f"{advice}"
        )
    return True


def predict_maps(
    predict: Predict, image: NDArray[np.uint8], seed: int, num_classes: int, device: torch.device
) -> dict[MapKind, NDArray[Any]]:
    """The maps of one image, (H, W); class indices are uint16 where there are more than 256.

    Args:
        predict: makes the prediction, such as :meth:`Predictor.on`.
        image: RGB, (H, W, 3), of any size.
        seed: of the dropout masks; the global random state is left as it was.
        num_classes: C.
        device: of the networks.
    """
    images = torch.from_numpy(image).permute(2, 0, 1)[None]
    with seeded(seed, device):
        prediction = predict(normalize(images, device, channels_last=False))
    index = np.uint8 if num_classes <= 1 << 8 else np.uint16
    classes = prediction.prediction[0].cpu().numpy().astype(index)
    # Where the networks are certain, rounding may take an entropy below 0.
    entropy = prediction.entropy[0].clamp(min=0).cpu().numpy()
    maps: dict[MapKind, NDArray[Any]] = {"classes": classes, "colors": classes, "entropy": entropy}
    if prediction.std is not None:
        maps["std"] = prediction.std[0].cpu().numpy()
    if prediction.model is not None:
        maps["model"] = prediction.model[0].cpu().numpy().astype(np.uint8)
    return maps


def _palette(class_names: Sequence[str]) -> bytes:
    return b"".join(bytes.fromhex(colour[1:]) for colour in class_colours(class_names))


def write_predictions(
    predictor: AnyPredictor,
    sources: Sequence[Source],
    checked: Sequence[CheckedImage],
    folder: Path,
    *,
    device: torch.device,
    progress: Callable[[int], object] | None = None,
) -> PredictionCount:
    """Writes the maps of some images that are not there yet, one image after another.

    Args:
        predictor: makes the predictions.
        sources: as :func:`find_images` gives them, of any sizes.
        checked: what :func:`check_images` found of them.
        folder: gets a folder for each kind of map.
        device: where the networks run.
        progress: called with 1 after each image.

    Returns:
        How many images had maps written, and of how many all were there already.

    Raises:
        PredictionError: a map is damaged, of another program, image, network or setting, or of
            another size than its image; nothing was written then. Or the networks give no number,
            the device has too little memory, or an image has changed since it was checked.
        DatasetError: an image cannot be read.
        OutputError: a map cannot be written.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the maps of the image at hand are
            written.
    """
    kinds = predictor.kinds

    def missing_maps(index: int) -> list[MapKind]:
        name, (digest, size) = sources[index].name, checked[index]
        return [
            kind
            for kind in kinds
            if not _is_done(map_path(folder, kind, name), predictor.record(kind, digest), size)
        ]

    with ThreadPoolExecutor() as pool:
        missing = list(pool.map(missing_maps, range(len(sources))))
    maps = (map_path(Path(), kind, name) for kind in kinds for _, name in sources)
    remove_partial_files(folder, maps)
    todo = [index for index in range(len(sources)) if missing[index]]
    kept = len(sources) - len(todo)
    if progress is not None:
        progress(kept)
    predict = predictor.on(device)
    palette = _palette(predictor.class_names)

    def make(index: int) -> None:
        path, name = sources[index]
        digest, size = checked[index]
        image = np.array(open_image(path))
        if image_digest(image) != digest:
            raise PredictionError(f"{path}: has changed since it was checked; start again")
        seed = image_seed(predictor.seed, digest)
        try:
            maps = predict_maps(predict, image, seed, len(predictor.class_names), device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise PredictionError(
                f"{path}: {size[1]} x {size[0]} pixels take more memory than there is on {device}; "
                "cut it into tiles or choose another --device"
            ) from error
        if not all(np.isfinite(values).all() for values in maps.values()):
            raise PredictionError(
                f"{path}: the networks give no finite uncertainty for it; did their training "
                "diverge?"
            )
        for kind in missing[index]:
            file, record = map_path(folder, kind, name), predictor.record(kind, digest)
            if _SUFFIXES[kind] == ".tif":
                write_tiff(file, maps[kind], record)
            else:
                write_png(file, maps[kind], record, palette if kind == "colors" else None)

    with reproducible(), deferred_interrupt() as stop:
        for index in todo:
            make(index)
            if progress is not None:
                progress(1)
            if stop.is_set():
                raise Interrupted(stop.signum)
    return PredictionCount(len(todo), kept)
