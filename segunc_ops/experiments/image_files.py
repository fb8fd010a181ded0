"""Images and label maps as their files hold them, which is not always what a decoder hands over.

What can be undone is undone; what is ambiguous or lossy is refused, with the file's name.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
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
_UNSIGNED = 1  # a TIFF's sample format
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {
    **_TURNS,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


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


def _orientation(found: object) -> int:
    """How pixels are to be turned, 1 to 8; other numbers say nothing."""
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _exif_orientation(image: Image.Image) -> int:
    """That of a loaded image; damaged EXIF says nothing."""
    try:
        return _orientation(image.getexif().get(Base.Orientation, 1))
    except Exception:
        return 1


def read_file(path: Path) -> bytes:
    """The bytes of an image or label map.

    Raises:
        DatasetError: it is no regular file, or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise DatasetError(f"{path}: is no regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({_one_line(error)})") from error


class _Decoded(NamedTuple):
    """What a file holds."""

    image: Image.Image
    packing: str
    """How its pixels were packed."""
    orientation: int
    turned: bool
    """Whether the decoder has followed the orientation."""


def _load(path: Path, data: bytes, formats: tuple[str, ...] | None = None) -> _Decoded:
    try:
        with Image.open(io.BytesIO(data)) as image:
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
            tag = _orientation(image.tag_v2.get(Base.Orientation)) if is_tiff else 1
            image.load()
            orientation = tag if is_tiff else _exif_orientation(image)
            return _Decoded(image, str(packing), orientation, is_tiff)
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"{path}: too large to be decoded ({_one_line(error)}); cut it into tiles"
        ) from error
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise DatasetError(f"{path}: cannot be read as an image ({_one_line(error)})") from error


def check_bytes(path: Path, data: bytes | None = None) -> None:
    """Compares a file with what it says of its own bytes, which decoders pass over.

    A PNG has checksums and a number of rows, a TIFF that is compressed by deflate checksums; other
    formats have nothing that would tell.

    Args:
        path: the file.
        data: its bytes, where they have been read.

    Raises:
        DatasetError: a checksum is wrong, or pixels are missing.
    """
    data = read_file(path) if data is None else data
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "PNG":
                _check_png(data)
            elif image.format == "TIFF":
                _check_tiff(data, dict(image.tag_v2))
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


def _is_unsigned(image: Image.Image) -> bool:
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    return tags.get(Base.SampleFormat, (_UNSIGNED,)) == (_UNSIGNED,)


def _white_is_zero(image: Image.Image) -> bool:
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    return tags.get(Base.PhotometricInterpretation) == 0


def _upright(
    path: Path, decoded: _Decoded, image: Image.Image, label_size: tuple[int, int] | None
) -> Image.Image:
    """Turns an image as its EXIF tag asks, unless it was labelled as stored."""
    orientation = decoded.orientation
    if orientation == 1:
        return image
    sideways = orientation >= 5
    stored = image.size[::-1] if sideways and decoded.turned else image.size
    if label_size == stored:
        if not sideways or stored[0] == stored[1]:
            raise DatasetError(
                f"{path}: EXIF orientation {orientation} leaves open whether its label map is "
                "turned too; turn the pixels (`mogrify -auto-orient`) or, if they were labelled as "
                "stored, remove the tag (`exiftool -Orientation=`)"
            )
        return image.transpose(_BACK[orientation]) if decoded.turned else image
    return image if decoded.turned else image.transpose(_TURNS[orientation])


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


def open_image(
    path: Path, label_size: tuple[int, int] | None = None, data: bytes | None = None
) -> Image.Image:
    """A decoded RGB image of 8 bits a channel, turned as its label map is.

    Args:
        path: a file in any format that Pillow reads.
        label_size: width and height of the label map; the image is turned as EXIF says unless it
            has that size as stored.
        data: the file's bytes, where they have been read.

    Raises:
        DatasetError: the file is unreadable, damaged, too large or of several pictures; holds
            int32, float32 or 16 bits of which the upper ones are not used; or its EXIF
            orientation leaves open how it was labelled.
    """
    decoded = _load(path, read_file(path) if data is None else data)
    try:
        image = _eight_bits(path, decoded.image, decoded.packing)
        image = _upright(path, decoded, image, label_size)
        return image.convert("RGB")
    except DatasetError:
        raise
    except Exception as error:  # a mode that cannot be converted
        raise DatasetError(f"{path}: cannot be read as RGB ({_one_line(error)})") from error


def told_orientation(path: Path) -> int:
    """How the EXIF tag of an image that can be decoded asks for its pixels to be turned, 1 to 8."""
    return _load(path, read_file(path)).orientation


def read_label(path: Path, data: bytes | None = None) -> NDArray[np.int32] | NDArray[np.int64]:
    """The class indices (H, W) of a label map: grey values or palette indices, as written.

    Args:
        path: the file.
        data: its bytes, where they have been read.

    Returns:
        int32, or int64 where there are values of uint32 that it does not hold.

    Raises:
        DatasetError: the file is unreadable, damaged, too large or of several pictures; of several
            channels or a lossy format; inverted; or to be turned.
    """
    data = read_file(path) if data is None else data
    image, packing, orientation, _ = _load(path, data, _LABEL_FORMATS)
    compression = image.info.get("compression")
    if image.format == "TIFF" and compression in _LOSSY_TIFF:
        raise DatasetError(
            f"{path}: expected a label map without loss, got TIFF with {compression} compression, "
            "which changes class indices; write it as PNG from the labels it was made of"
        )
    if image.mode not in _LABEL_MODES:
        raise DatasetError(
            f"{path}: expected a one-channel label map, got mode {image.mode}; "
            "store class indices as grey values or palette indices (docs/data.md has the lines for "
            "colours), or, if it is an image, exchange images and label maps"
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
        bits = data[_BMP_BITS_AT]
        if bits != 1:
            raise DatasetError(
                f"{path}: is a BMP of {bits} bits whose palette is black and white, which decoders "
                "misread; write it as PNG"
            )
    label = np.asarray(image).astype(np.int32)
    if packing in _STRETCH:
        label //= _STRETCH[packing]
    # Pillow has one type of 32 bits, which has a sign.
    if label.min() < 0 and _is_unsigned(image):
        return label.view(np.uint32).astype(np.int64)
    return label
