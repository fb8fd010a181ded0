"""Images and label maps as their files hold them, which is not always what a decoder hands over.

What can be undone is undone; what is ambiguous or lossy is refused, with the file's name.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

# Formats that keep a class index as it was written, a TIFF unless it is compressed so.
_LABEL_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Extensions of label maps."""
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
_LABEL_MODES = ("L", "P", "1", "I", "I;16", "I;16B")
# Grey values of few bits arrive stretched to 0 to 255 by this factor.
_STRETCH = {"L;2": 85, "L;4": 17, "L;2R": 85, "L;4R": 17}
_PNG_SIGNATURE_BYTES = 8
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_CHECKED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_BMP_BITS_AT = 28  # of a pixel, in the file
_DEFLATE = (8, 32946)  # of TIFF
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_REDUCED_OR_MASK = 1 | 4


class DatasetError(ValueError):
    """Images and label maps that cannot be used; the message names the folder or the file."""


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format, or damaged at its beginning"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _num_pages(image: Image.Image) -> int:
    """Pictures in a file, less the smaller copies and masks of a TIFF's first."""
    frames: int = getattr(image, "n_frames", 1)
    if image.format in _ANIMATED or frames == 1:
        return frames
    if image.format != "TIFF":
        return 1
    pages = 1
    for frame in range(1, frames):
        image.seek(frame)
        kind = image.tag_v2.get(Base.NewSubfileType, 0)  # type: ignore[attr-defined]
        pages += not kind & _REDUCED_OR_MASK
    image.seek(0)
    return pages


def _orientation(image: Image.Image) -> int:
    """How a loaded image's pixels are to be turned, 1 to 8; damaged EXIF says nothing."""
    try:
        found = image.getexif().get(Base.Orientation, 1)
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


def _load(path: Path, formats: tuple[str, ...] | None = None) -> tuple[Image.Image, str, int]:
    """A decoded file, how its pixels were packed, and its orientation."""
    if path.exists() and not path.is_file():
        raise DatasetError(f"{path}: is no regular file")
    try:
        with Image.open(path) as image:
            if formats is not None and image.format not in formats:
                raise DatasetError(
                    f"{path}: expected a PNG label map, got a {image.format} file, which need not "
                    "keep class indices; write it as PNG from the labels it was made of"
                )
            if (pages := _num_pages(image)) > 1:
                raise DatasetError(f"{path}: holds {pages} pictures, expected one; split them")
            arguments = image.tile[0][3] if image.tile else None
            packing = arguments[0] if isinstance(arguments, tuple) else arguments
            # Pillow turns a TIFF as it loads it, and forgets the tag.
            is_tiff = image.format == "TIFF"
            tag = image.tag_v2.get(Base.Orientation, 1) if is_tiff else 1
            image.load()
            return image, str(packing), tag if is_tiff else _orientation(image)
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"{path}: too large to be decoded ({_one_line(error)}); cut it into tiles"
        ) from error
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise DatasetError(f"{path}: cannot be read as an image ({_one_line(error)})") from error


def check_bytes(path: Path) -> None:
    """Compares a file with what it says of its own bytes, which decoders pass over.

    A PNG has checksums and a number of rows, a TIFF that is compressed by deflate checksums; other
    formats have nothing that would tell.

    Raises:
        DatasetError: a checksum is wrong, or pixels are missing.
    """
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                _check_png(path.read_bytes())
            elif image.format == "TIFF":
                _check_tiff(path.read_bytes(), dict(image.tag_v2))
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise DatasetError(f"{path}: is damaged ({_one_line(error)})") from error


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, kind = _PNG_SIGNATURE_BYTES, b""
    while at < len(data) and kind != b"IEND":
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, contents = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        stored = data[at + 8 + size : at + 12 + size]
        if kind in _PNG_CHECKED and stored != struct.pack(">I", zlib.crc32(kind + contents)):
            raise ValueError(f"wrong checksum of {kind.decode()}")
        yield kind, contents
        at += 12 + size


def _check_png(data: bytes) -> None:
    header, packed = b"", []
    for kind, contents in _png_chunks(data):
        if kind == b"IHDR":
            header = contents
        elif kind == b"IDAT":
            packed.append(contents)
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    found = len(zlib.decompress(b"".join(packed)))
    expected = height * (1 + (width * depth * _PNG_CHANNELS[color] + 7) // 8)
    if found < expected and not interlaced:
        raise ValueError(f"{found} bytes of pixels where {expected} belong")


def _check_tiff(data: bytes, tags: dict[int, Any]) -> None:
    if tags.get(Base.Compression) not in _DEFLATE:
        return
    tiled = Base.TileOffsets in tags
    offsets = tags[Base.TileOffsets if tiled else Base.StripOffsets]
    sizes = tags[Base.TileByteCounts if tiled else Base.StripByteCounts]
    for offset, size in zip(offsets, sizes, strict=True):
        zlib.decompress(data[offset : offset + size])


def _white_is_zero(image: Image.Image) -> bool:
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    return tags.get(Base.PhotometricInterpretation) == 0


def _upright(
    path: Path, image: Image.Image, orientation: int, label_size: tuple[int, int] | None
) -> Image.Image:
    """Turns an image as its EXIF tag asks, where that is how it was labelled."""
    if orientation == 1:
        return image
    width, height = image.size
    if label_size is not None and (orientation < 5 or width == height):
        raise DatasetError(
            f"{path}: EXIF orientation {orientation} leaves open whether its label map is turned "
            "too; turn the pixels (`mogrify -auto-orient`) or, if they were labelled as stored, "
            "remove the tag (`exiftool -Orientation=`)"
        )
    if image.format == "TIFF" or label_size == image.size:
        return image
    return ImageOps.exif_transpose(image)


def _eight_bits(path: Path, image: Image.Image, packing: str) -> Image.Image:
    """The upper eight bits of sixteen; other types have no white that could be scaled to 255."""
    if image.mode in ("I", "F"):
        kind = "int32" if image.mode == "I" else "float32"
        raise DatasetError(
            f"{path}: expected an image of 8 or 16 bits a channel, got {kind}; scale it to 0 to "
            "255 and store it with 8 bits"
        )
    if image.mode.startswith("I;16"):
        if _white_is_zero(image):
            raise DatasetError(
                f"{path}: is stored inverted (white is 0) with 16 bits; write it as PNG"
            )
        upper = (np.asarray(image) >> 8).astype(np.uint8)
    elif ";16" in packing:
        upper = np.asarray(image)
    else:
        return image
    if upper.size and upper.max() < 64:
        raise DatasetError(
            f"{path}: no value of its 16 bits exceeds a quarter of white (65535), so that it would "
            "be nearly black; scale it to the whole range or to 8 bits"
        )
    return Image.fromarray(upper)


def open_image(path: Path, label_size: tuple[int, int] | None = None) -> Image.Image:
    """A decoded RGB image of 8 bits a channel, turned as its label map is.

    Args:
        path: a file in any format that Pillow reads.
        label_size: width and height of the label map; None turns the image as EXIF says.

    Raises:
        DatasetError: the file is unreadable, damaged, too large or of several pictures; holds
            int32, float32 or 16 bits of which the upper ones are not used; or its EXIF
            orientation leaves open how it was labelled.
    """
    image, packing, orientation = _load(path)
    try:
        image = _eight_bits(path, image, packing)
        image = _upright(path, image, orientation, label_size)
        return image.convert("RGB")
    except DatasetError:
        raise
    except Exception as error:  # a mode that cannot be converted
        raise DatasetError(f"{path}: cannot be read as RGB ({_one_line(error)})") from error


def read_label(path: Path) -> NDArray[np.int32]:
    """The class indices (H, W) of a label map: grey values or palette indices, as written.

    Raises:
        DatasetError: the file is unreadable, damaged, too large or of several pictures; of several
            channels or a lossy format; inverted; or to be turned.
    """
    image, packing, orientation = _load(path, _LABEL_FORMATS)
    compression = image.info.get("compression")
    if image.format == "TIFF" and compression in _LOSSY_TIFF:
        raise DatasetError(
            f"{path}: expected a label map without loss, got TIFF with {compression} compression, "
            "which changes class indices; write it as PNG from the labels it was made of"
        )
    if image.mode not in _LABEL_MODES:
        raise DatasetError(
            f"{path}: expected a one-channel label map, got mode {image.mode}; "
            "store class indices as grey values or palette indices"
        )
    if (image.mode in ("L", "1") and "I" in packing.partition(";")[2]) or _white_is_zero(image):
        raise DatasetError(
            f"{path}: is stored inverted (white is 0), so that its class indices are ambiguous; "
            "write it as PNG"
        )
    if orientation != 1:
        raise DatasetError(
            f"{path}: expected a label map that is not to be turned, got EXIF orientation "
            f"{orientation}; write it as PNG without that tag"
        )
    if image.format == "BMP" and image.mode == "1":
        bits = path.read_bytes()[_BMP_BITS_AT]
        if bits != 1:
            raise DatasetError(
                f"{path}: is a BMP of {bits} bits whose palette is black and white, which decoders "
                "misread; write it as PNG"
            )
    label = np.asarray(image).astype(np.int32)
    if packing in _STRETCH:
        label //= _STRETCH[packing]
    return label
