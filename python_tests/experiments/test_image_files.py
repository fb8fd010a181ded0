"""Files that are not what a decoder hands over: undone, or refused before training starts."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from python_tests.experiments.cases import write_pair
from segunc_ops import cli
from segunc_ops.experiments.datasets import DatasetError, FolderDataset
from segunc_ops.experiments.image_files import check_bytes, open_image, read_label
from segunc_ops.experiments.label_mapping import parse_mapping

GREY, RGB, PALETTE = 0, 2, 3


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, bits: int = 8, colour: int = GREY) -> bytes:
    fields = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", fields)


def png(values: np.ndarray, bits: int, colour: int = GREY) -> bytes:
    """A PNG of samples of `bits` bits each, which Pillow cannot write itself."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if bits == 16:
        packed = rows.astype(">u2").view(np.uint8)
    else:
        single = (rows[..., None] >> np.arange(bits)[::-1]) & 1
        packed = np.packbits(single.reshape(height, -1).astype(np.uint8), axis=1)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), packed], axis=1)
    palette = chunk(b"PLTE", bytes(i % 256 for i in range(3 << bits))) if colour == PALETTE else b""
    data = chunk(b"IDAT", zlib.compress(filtered.tobytes()))
    return header(width, height, bits, colour) + palette + data + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def oriented(image: Image.Image, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """An image and a label map of 40 rows and 60 columns."""
    write_pair(tmp_path, "train", "a", np.arange(40 * 60).reshape(40, 60) % 3)
    return tmp_path / "train" / "a.jpg", tmp_path / "trainannot" / "a.png"


def dataset_of(pair: tuple[Path, Path], **options: int) -> FolderDataset:
    return FolderDataset(pair[0].parent, pair[1].parent, **options)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape)


# Label maps


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_labels_of_any_depth_are_class_indices(pair, bits):
    label = ramp(40, 60) % min(2**bits, 300)
    pair[1].write_bytes(png(label, bits))
    np.testing.assert_array_equal(dataset_of(pair).label(0), label)
    np.testing.assert_array_equal(dataset_of(pair)[0].label, label)
    dataset = dataset_of(pair)
    dataset.scan()
    assert dataset.num_classes == label.max() + (1 if bits != 8 else 0)  # 255 is ignored


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_labels_of_any_depth_are_indices(pair, bits):
    label = ramp(40, 60) % min(2**bits, 250)
    pair[1].write_bytes(png(label, bits, PALETTE))
    np.testing.assert_array_equal(dataset_of(pair).label(0), label)


def test_lossless_labels_pass_under_the_name_of_png(pair):
    label = (ramp(40, 60) % 7).astype(np.uint8)
    for kind in ("BMP", "TIFF", "GIF"):
        Image.fromarray(label).save(pair[1], kind)
        np.testing.assert_array_equal(read_label(pair[1]), label)


def with_second_part(whole: bytes, name: bytes) -> bytes:
    """A PNG whose pixels lie in two chunks, the second one called `name`."""
    start = whole.index(b"IDAT") - 4
    (size,) = struct.unpack(">I", whole[start : start + 4])
    data = whole[start + 8 : start + 8 + size]
    second = chunk(b"IDAT", data[size // 2 :]).replace(b"IDAT", name)
    return whole[:start] + chunk(b"IDAT", data[: size // 2]) + second + whole[start + 12 + size :]


def spoiled_label(what: str) -> bytes:
    grey = Image.fromarray((ramp(40, 60) % 3).astype(np.uint8))
    turned = Image.fromarray((ramp(60, 40) % 3).astype(np.uint8))
    whole = encoded(grey, "PNG")
    return {
        "JPEG": lambda: encoded(grey, "JPEG", quality=100),
        "WEBP": lambda: encoded(grey, "WEBP", lossless=True),
        "JPEG in TIFF": lambda: encoded(grey, "TIFF", compression="jpeg"),
        "animation": lambda: encoded(grey, "PNG", save_all=True, append_images=[turned]),
        "orientation": lambda: oriented(grey, "PNG", 3),
        "float": lambda: encoded(grey.convert("F"), "TIFF"),
        "inverted": lambda: encoded(grey, "TIFF", tiffinfo={262: 0}),
        "alpha": lambda: encoded(grey.convert("LA"), "PNG"),
        "beginning": lambda: whole.replace(b"IDAT", b"\x00DAT"),
        "chunk name": lambda: with_second_part(whole, b"\x00DAT"),
        "checksum": lambda: with_second_part(whole, b"IDAT\x00"),
        "truncated": lambda: whole[: len(whole) // 2],
        "nothing": lambda: b"",
        "text": lambda: b"<html>404 not found</html>",
        "header": lambda: whole[:20],
        "wrong size": lambda: encoded(turned, "PNG"),
        "14,000 x 14,000": lambda: header(14000, 14000) + chunk(b"IDAT", b""),
    }[what]()


def scan_error(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> str:
    """What the library raises and the command prints, in one line, before training starts."""
    with pytest.raises(DatasetError) as raised:
        dataset_of(pair, num_classes=3).scan()
    root = pair[1].parents[1]
    arguments = ["train", "--data", str(root), "--classes", "3", "--output", str(root / "runs")]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr().err.split("\r")[-1].strip().splitlines()
    assert printed[-1] == f"segunc: error: {raised.value}"
    assert not (root / "runs").exists()
    return str(raised.value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("JPEG", "expected a PNG label map, got a JPEG file"),
        ("WEBP", "expected a PNG label map, got a WEBP file"),
        ("JPEG in TIFF", "got TIFF with jpeg compression"),
        ("animation", "holds 2 pictures, expected one"),
        ("orientation", "got EXIF orientation 3"),
        ("float", "got mode F"),
        ("inverted", "stored inverted"),
        ("alpha", "got mode LA"),
        ("beginning", "cannot be read as an image (of no known format"),
        ("chunk name", "cannot be read as an image (broken PNG file"),
        ("checksum", "cannot be read as an image ("),
        ("truncated", "cannot be read as an image ("),
        ("nothing", "cannot be read as an image ("),
        ("text", "cannot be read as an image ("),
        ("header", "cannot be read as an image ("),
        ("wrong size", "label map is 40 x 60, its image a.jpg 60 x 40"),
        ("14,000 x 14,000", "cut it into tiles"),
    ],
)
def test_label_files_that_are_refused(pair, capsys, what, message):
    pair[1].write_bytes(spoiled_label(what))
    problem = scan_error(pair, capsys)
    assert problem.startswith(f"{pair[1]}: ")
    assert message in problem


def damages(data: bytes) -> Iterator[bytes]:
    """A file with one bit flipped each time, three of each byte."""
    for place in range(len(data)):
        for bit in (0, 3, 6):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, kind):
    label = np.kron(np.random.default_rng(0).integers(0, 3, (8, 12)), np.ones((5, 5))).astype("B")
    options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
    path, wrong = tmp_path / "label", 0
    for data in damages(encoded(Image.fromarray(label), kind, **options)):
        path.write_bytes(data)
        try:
            found = read_label(path)
            wrong += not np.array_equal(found, label)  # what decoders alone let pass
            check_bytes(path)
        except DatasetError:
            pass
        else:
            # Of a TIFF's header, unlike of its pixels, there is no checksum.
            assert kind == "TIFF" or np.array_equal(found, label)
    assert wrong > 5


def test_missing_rows_and_wrong_checksums_are_refused_before_training(pair, capsys):
    label = np.zeros((40, 60), np.uint8)
    rows = np.zeros((20, 61), np.uint8)
    short = header(60, 40) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    whole = bytearray(png(label, 8))
    whole[whole.index(b"IDAT") - 4 + 8 + int.from_bytes(whole[33:37], "big")] ^= 1
    for data, message in (
        (short, "is damaged (1220 bytes of pixels where 2440 belong)"),
        (bytes(whole), "is damaged (wrong checksum of IDAT)"),
    ):
        pair[1].write_bytes(data)
        assert scan_error(pair, capsys) == f"{pair[1]}: {message}"


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bmp_that_decoders_misread_is_refused(pair, capsys, bits):
    """Of several bits, with a palette of black and white alone."""
    row = bytes(60) if bits == 8 else bytes(32)
    palette = b"\0\0\0\0" + b"\xff\xff\xff\0"
    size = struct.pack("<IiiHHIIiiII", 40, 60, 40, 1, bits, 0, 40 * len(row), 0, 0, 2, 2)
    start = struct.pack("<2sIHHI", b"BM", 14 + 40 + 8 + 40 * len(row), 0, 0, 14 + 40 + 8)
    path = pair[1].with_suffix(".bmp")
    pair[1].unlink()
    path.write_bytes(start + size + palette + 40 * row)
    assert f"{path}: is a BMP of {bits} bits whose palette" in scan_error(pair, capsys)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_tiff_labels_of_few_bits_in_reverse_order(tmp_path, bits):
    per_byte = 8 // bits
    label = np.arange(8 * 4 * per_byte).reshape(8, -1) % (1 << bits)
    bytes_of = np.zeros((8, 4), np.uint8)
    for place in range(per_byte):
        bytes_of |= (label[:, place::per_byte] << (8 - bits * (place + 1))).astype(np.uint8)
    reverse = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint8)
    data = reverse[bytes_of].tobytes()
    tags = [(256, label.shape[1]), (257, 8), (258, bits), (259, 1), (262, 1), (266, 2)]
    tags += [(273, 8 + 2 + 10 * 12 + 4), (277, 1), (278, 8), (279, len(data))]
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + data)
    np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), label)


def uint32_tiff(values: np.ndarray) -> bytes:
    """Pillow writes 32 bits as int32 alone, in a file that differs by one tag."""
    data = bytearray(encoded(Image.fromarray(values.astype(np.uint32).view(np.int32)), "TIFF"))
    at = data.index(struct.pack("<HHIHH", 339, 3, 1, 2, 0))
    data[at + 8] = 1
    return bytes(data)


def test_labels_of_uint32_have_no_sign(pair):
    pair[1].unlink()
    path = pair[1].with_suffix(".tif")
    label = ramp(40, 60) % 2
    path.write_bytes(uint32_tiff(label))
    np.testing.assert_array_equal(read_label(path), label)
    label[5, 7] = 4_000_000_000
    path.write_bytes(uint32_tiff(label))
    np.testing.assert_array_equal(read_label(path), label)
    with pytest.raises(DatasetError) as caught:
        dataset_of((pair[0], path)).scan()
    problem = str(caught.value)
    assert problem.startswith(f"{path}: label 4000000000 is no class that was declared")
    assert "--map 4000000000:255" in problem
    with pytest.raises(DatasetError, match="class 4000000000 is outside 0 to 1"):
        dataset_of((pair[0], path), num_classes=2).scan()
    mapping = parse_mapping(["0:0", "1:1", "4000000000:255"], 255)
    dataset = FolderDataset(pair[0].parent, path.parent, mapping=mapping)
    dataset.scan(for_training=True)
    assert sorted(np.unique(dataset[0].label)) == [0, 1, 255]
    path.write_bytes(encoded(Image.fromarray((ramp(40, 60) % 2 - 1).astype(np.int32)), "TIFF"))
    assert read_label(path).min() == -1


def test_what_is_no_file_is_refused(pair, capsys):
    for path in pair:
        path.unlink()
        os.mkfifo(path)
        assert scan_error(pair, capsys) == f"{path}: is no regular file"
        path.unlink()
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(path)


def test_names_need_no_known_encoding(tmp_path):
    write_pair(tmp_path, "train", "\udcff", np.arange(40 * 60).reshape(40, 60) % 3)
    dataset = FolderDataset(tmp_path / "train", tmp_path / "trainannot")
    dataset.scan()
    assert len(dataset.contents()["names of files"]) == 16


# Images


def test_inverted_images_of_sixteen_bits_are_refused(pair, capsys):
    path = pair[0].with_suffix(".tif")
    pair[0].unlink()
    Image.fromarray(ramp(40, 60).astype(np.uint16) * 27).save(path, tiffinfo={262: 0})
    assert f"{path}: is stored inverted" in scan_error(pair, capsys)


def test_images_of_sixteen_bits_keep_the_upper_ones(pair):
    values = ramp(40, 60, 3) * 9
    for samples, colour in ((values, RGB), (values[..., 0], GREY)):
        pair[0].write_bytes(png(samples, 16, colour))
        expected = np.broadcast_to((samples >> 8).reshape(40, 60, -1), (40, 60, 3))
        np.testing.assert_array_equal(np.asarray(open_image(pair[0])), expected)
    Image.fromarray(values[..., 0].astype(np.uint16)).save(pair[0], "TIFF")
    np.testing.assert_array_equal(np.asarray(open_image(pair[0])), expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_images_of_few_bits_reach_from_black_to_white(pair, bits):
    values = ramp(40, 60) % 2**bits
    pair[0].write_bytes(png(values, bits))
    np.testing.assert_array_equal(
        np.asarray(open_image(pair[0]))[..., 0], values * (255 // (2**bits - 1))
    )


def spoiled_image(what: str) -> bytes:
    rgb = Image.fromarray((ramp(40, 60, 3) % 251).astype(np.uint8))
    grey = rgb.convert("L")
    jpeg, whole = encoded(rgb, "JPEG"), encoded(rgb, "PNG")
    return {
        "12 of 16 bits": lambda: png(ramp(40, 60) % 4096, 16),
        "12 of 16 bits, RGB": lambda: png(ramp(40, 60, 3) % 4096, 16, RGB),
        "int32": lambda: encoded(Image.fromarray(ramp(40, 60).astype(np.int32)), "TIFF"),
        "float": lambda: encoded(grey.convert("F"), "TIFF"),
        "pages": lambda: encoded(rgb, "TIFF", save_all=True, append_images=[rgb, grey]),
        "animation": lambda: encoded(rgb, "GIF", save_all=True, append_images=[grey]),
        "chunk name": lambda: with_second_part(whole, b"\x00DAT"),
        "truncated JPEG": lambda: jpeg[: len(jpeg) // 2],
        "truncated PNG": lambda: whole[: len(whole) // 2],
        "nothing": lambda: b"",
        "text": lambda: b"version https://git-lfs.github.com/spec/v1\n",
        "14,000 x 14,000": lambda: header(14000, 14000) + chunk(b"IDAT", b""),
    }[what]()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("12 of 16 bits", "no value of its 16 bits exceeds a quarter of white"),
        ("12 of 16 bits, RGB", "no value of its 16 bits exceeds a quarter of white"),
        ("int32", "got int32; scale it to 0 to 255"),
        ("float", "got float32; scale it to 0 to 255"),
        ("pages", "holds 3 pictures, expected one"),
        ("animation", "holds 2 pictures, expected one"),
        ("chunk name", "cannot be read as an image (broken PNG file"),
        ("truncated JPEG", "cannot be read as an image ("),
        ("truncated PNG", "cannot be read as an image ("),
        ("nothing", "cannot be read as an image ("),
        ("text", "cannot be read as an image ("),
        ("14,000 x 14,000", "cut it into tiles"),
    ],
)
def test_image_files_that_are_refused(pair, capsys, what, message):
    pair[0].write_bytes(spoiled_image(what))
    problem = scan_error(pair, capsys)
    assert problem.startswith(f"{pair[0]}: ")
    assert message in problem


def test_the_first_picture_of_a_phone_is_taken(pair):
    rgb = Image.fromarray((ramp(40, 60, 3) % 251).astype(np.uint8))
    small = rgb.resize((30, 20))
    pair[0].write_bytes(encoded(rgb, "MPO", save_all=True, append_images=[small]))
    assert dataset_of(pair)[0].image.shape == (40, 60, 3)


def test_smaller_copies_in_a_tiff_are_no_pictures(pair):
    rgb = Image.fromarray((ramp(40, 60, 3) % 251).astype(np.uint8))
    small = rgb.resize((30, 20))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    rgb.save(pair[0], "TIFF", save_all=True, append_images=[small])
    np.testing.assert_array_equal(np.asarray(open_image(pair[0])), np.asarray(rgb))


# Bytes


def test_a_file_is_read_once_before_training(pair, monkeypatch):
    """Decoded, checked against its checksums and told from others by the same bytes."""
    reads: list[Path] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read(path))
    opened = Image.open
    monkeypatch.setattr(
        Image,
        "open",
        lambda file: reads.append(file) or opened(file) if isinstance(file, Path) else opened(file),
    )
    dataset = dataset_of(pair)
    dataset.scan()
    contents = dataset.contents()
    assert sorted(reads) == sorted(pair)
    assert dataset_of(pair).contents() == contents


# Orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_image_is_turned_where_its_label_map_is(pair, kind, orientation):
    stored = Image.fromarray((ramp(60, 40) // 10).astype(np.uint8)).convert("RGB")
    pair[0].write_bytes(oriented(stored, kind, orientation))
    with Image.open(io.BytesIO(oriented(stored, "PNG", orientation))) as tagged:
        turned = np.asarray(ImageOps.exif_transpose(tagged), int)
    dataset = dataset_of(pair)
    dataset.scan()
    tolerance = 8 if kind == "JPEG" else 0
    assert abs(dataset[0].image - turned).max() <= tolerance


def test_image_stays_as_stored_where_its_label_map_does(pair):
    stored = Image.fromarray((ramp(40, 60, 3) % 251).astype(np.uint8))
    pair[0].write_bytes(oriented(stored, "PNG", 6))
    np.testing.assert_array_equal(dataset_of(pair)[0].image, np.asarray(stored))
    assert open_image(pair[0]).size == (40, 60)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(("orientation", "side"), [(2, 60), (3, 60), (4, 60), (6, 40)])
def test_orientation_that_leaves_the_label_map_open_is_refused(
    pair, capsys, kind, orientation, side
):
    rgb = Image.fromarray((ramp(40, side, 3) % 251).astype(np.uint8))
    pair[0].write_bytes(oriented(rgb, kind, orientation))
    Image.fromarray((ramp(40, side) % 3).astype(np.uint8)).save(pair[1])
    problem = scan_error(pair, capsys)
    assert problem.startswith(f"{pair[0]}: EXIF orientation {orientation} leaves open")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(("orientation", "size"), [(3, "50 x 30"), (6, "30 x 50")])
def test_an_orientation_is_named_where_sizes_differ(pair, capsys, kind, orientation, size):
    pair[0].write_bytes(oriented(Image.new("RGB", (50, 30)), kind, orientation))
    assert scan_error(pair, capsys) == (
        f"{pair[1]}: label map is 60 x 40, its image {pair[0].name} {size} once turned by its EXIF "
        f"orientation {orientation}"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_images_stay_as_stored_where_their_label_maps_do(pair, orientation):
    stored = Image.fromarray((ramp(40, 60, 3) % 251).astype(np.uint8))
    pair[0].write_bytes(oriented(stored, "TIFF", orientation))
    if orientation in (2, 3, 4):
        with pytest.raises(DatasetError, match="leaves open"):
            dataset_of(pair)[0]
    else:
        np.testing.assert_array_equal(dataset_of(pair)[0].image, np.asarray(stored))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_images_of_sixteen_bits_are_turned(pair, kind, orientation):
    stored = Image.fromarray(27 * ramp(60, 40).astype(np.uint16))
    pair[0].write_bytes(oriented(stored, kind, orientation))
    upper = Image.fromarray((np.asarray(stored) >> 8).astype(np.uint8)).convert("RGB")
    with Image.open(io.BytesIO(oriented(upper, "PNG", orientation))) as tagged:
        turned = np.asarray(ImageOps.exif_transpose(tagged))
    np.testing.assert_array_equal(dataset_of(pair)[0].image, turned)


@pytest.mark.parametrize("orientation", [0, 9])
def test_tiff_orientations_that_say_nothing_are_passed_over(pair, orientation):
    label = Image.fromarray((ramp(40, 60) % 3).astype(np.uint8))
    pair[1].with_suffix(".tif").write_bytes(oriented(label, "TIFF", orientation))
    pair[1].unlink()
    np.testing.assert_array_equal(dataset_of(pair)[0].label, np.asarray(label))


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_orientations_that_say_nothing_are_passed_over(pair, orientation):
    rgb = Image.fromarray((ramp(40, 60, 3) % 251).astype(np.uint8))
    pair[0].write_bytes(oriented(rgb, "PNG", orientation))
    np.testing.assert_array_equal(dataset_of(pair)[0].image, np.asarray(rgb))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_says_nothing(pair):
    rgb = Image.fromarray((ramp(40, 60, 3) % 251).astype(np.uint8))
    for damage in (
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x40",
    ):
        pair[0].write_bytes(encoded(rgb, "JPEG", exif=damage, quality=100))
        assert dataset_of(pair)[0].image.shape == (40, 60, 3)
