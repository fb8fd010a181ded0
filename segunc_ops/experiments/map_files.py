"""Maps of an image as files that tell what they were made of: float32 TIFF and PNG."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .output_files import whole_file

_IMAGE_DESCRIPTION = 270
_PNG_KEYWORD = "Description"
_DIGEST = re.compile("[0-9a-f]{64}")
# Fields of records that are digests of what a map was made of, where the digest tells nobody more.
_SOURCES = {"image": "image", "labels": "label map"}

_Record = TypeVar("_Record", bound="Record")


@dataclass(frozen=True)
class Record:
    """What a map was made of, as its file tells; the fields are those of a subclass."""

    FORMAT: ClassVar[str]
    """Tells the files of a subclass from all others."""

    def to_json(self) -> str:
        """The same text for equal records."""
        return json.dumps({"format": self.FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls: type[_Record], text: object) -> _Record | None:
        """The record in a file's description; None in one of another program."""
        try:
            fields: dict[str, Any] = json.loads(str(text))
            if fields.pop("format") != cls.FORMAT:
                return None
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def differs(self, other: Record) -> str:
        """Names the first field in which another record differs, with both values."""
        theirs = asdict(other)
        for name, value in asdict(self).items():
            if value != theirs[name]:
                if name in _SOURCES and value is not None:
                    return f"another {_SOURCES[name]}"
                return f"{name} {_short(value)}, not {_short(theirs[name])}"
        return "nothing"

    def why_not(self, found: Record | None) -> str | None:
        """Why a file that tells `found` is not one of this record, for a message; None if it is."""
        if found is None:
            return "was not written by this program"
        return None if found == self else f"was made with {found.differs(self)}"


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_short, value))
    text = str(value)
    return text[:8] if _DIGEST.fullmatch(text) else text


class StoredMap(NamedTuple):
    """What a file holds."""

    values: NDArray[Any]
    """(H, W); of other files than this module's also (H, W, channels)."""
    mode: str
    """Pillow's, such as "F" for float32."""
    description: object
    """For :meth:`Record.from_json`."""


def write_tiff(path: Path, values: NDArray[np.float32], record: Record) -> None:
    """Writes a float32 TIFF whole or not at all; equal arguments give equal bytes.

    Args:
        path: the file; its folder is made if need be.
        values: (H, W).
        record: goes to its `ImageDescription`.

    Raises:
        OutputError: the file cannot be written.
    """
    encoded = io.BytesIO()
    Image.fromarray(values).save(
        encoded,
        "TIFF",
        compression="tiff_deflate",
        tiffinfo={_IMAGE_DESCRIPTION: record.to_json()},
    )
    with whole_file(path) as file:
        file.write(encoded.getbuffer())


def write_png(
    path: Path,
    values: NDArray[np.uint8] | NDArray[np.uint16],
    record: Record,
    palette: bytes | None = None,
) -> None:
    """Writes a PNG of class indices whole or not at all; equal arguments give equal bytes.

    Args:
        path: the file; its folder is made if need be.
        values: (H, W), stored as grey values of 8 or 16 bits.
        record: goes to its text `Description`.
        palette: red, green and blue of each class; indices of 8 bits are then stored as palette
            indices.

    Raises:
        OutputError: the file cannot be written.
    """
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    text = PngInfo()
    text.add_text(_PNG_KEYWORD, record.to_json())
    encoded = io.BytesIO()
    image.save(encoded, "PNG", pnginfo=text)
    with whole_file(path) as file:
        file.write(encoded.getbuffer())


def read_map(path: Path) -> StoredMap:
    """What a TIFF or PNG holds; raises whatever its decoder does."""
    with Image.open(path) as image:
        values = np.array(image)
        tags = getattr(image, "tag_v2", {})
        return StoredMap(
            values, image.mode, tags.get(_IMAGE_DESCRIPTION, image.info.get(_PNG_KEYWORD))
        )
