"""Generated street scenes with a long tail of rare, thin classes.

A pinhole camera looks down a street: ground, facades and fences are planes through the vanishing
point, everything else is an upright figure painted from far to near. World lengths are in camera
heights (about 1.5 m); at relative depth ``t`` (1 at the bottom row, 0 at the horizon) one unit
covers ``t * (height - horizon)`` pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]

CLASS_NAMES = (
    "sky",
    "building",
    "road",
    "pavement",
    "tree",
    "car",
    "fence",
    "sign",
    "pole",
    "pedestrian",
    "rider",
)
IGNORE_INDEX = 255

SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, FENCE, SIGN, POLE, PEDESTRIAN, RIDER = range(11)

_CLOTHES = np.array(
    [
        (0.12, 0.12, 0.15),
        (0.20, 0.22, 0.32),
        (0.45, 0.42, 0.40),
        (0.55, 0.15, 0.15),
        (0.25, 0.35, 0.25),
        (0.62, 0.58, 0.50),
    ],
    np.float32,
)
_CAR_PAINT = np.array(
    [
        (0.10, 0.10, 0.11),
        (0.70, 0.70, 0.72),
        (0.45, 0.46, 0.48),
        (0.45, 0.10, 0.10),
        (0.12, 0.18, 0.38),
        (0.82, 0.82, 0.80),
    ],
    np.float32,
)
_SIGN_PAINT = np.array(
    [(0.70, 0.12, 0.12), (0.12, 0.25, 0.60), (0.80, 0.78, 0.74), (0.75, 0.62, 0.15)], np.float32
)
_FACADES = np.array(
    [
        (0.52, 0.42, 0.34),
        (0.60, 0.56, 0.48),
        (0.44, 0.44, 0.46),
        (0.50, 0.32, 0.26),
        (0.66, 0.64, 0.60),
        (0.36, 0.34, 0.34),
    ],
    np.float32,
)


@lru_cache(maxsize=8)
def _pixel_grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Pixel centres, (H, 1) and (1, W)."""
    rows = np.arange(height, dtype=np.float32)[:, None] + 0.5
    columns = np.arange(width, dtype=np.float32)[None, :] + 0.5
    return rows, columns


@lru_cache(maxsize=64)
def _between_knots(size: int, cells: int) -> tuple[NDArray[np.int64], Floats]:
    """For ``size`` points over ``cells`` cells: the knot below each, and how far past it."""
    position = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(cells / size)
    low = np.minimum(position.astype(np.int64), cells - 1)
    fraction = (position - low).astype(np.float32)
    return low, fraction * fraction * (3 - 2 * fraction)


def _interpolate(knots: Floats, size: int) -> Floats:
    """Smooth interpolation along the first axis, (K, ...) to (size, ...).

    Written out because BLAS threads make products of matrices this small slower than the rest of
    the scene together, and their rounding depends on the machine.
    """
    low, fraction = _between_knots(size, len(knots) - 1)
    fraction = fraction.reshape(-1, *(1,) * (knots.ndim - 1))
    below = knots[low]
    return below + (knots[low + 1] - below) * fraction


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Floats:
    """(H, W) value noise of unit-variance knots, ``cell`` pixels apart."""
    rows = max(1, round(height / cell))
    columns = max(1, round(width / cell))
    knots = rng.standard_normal((columns + 1, rows + 1), dtype=np.float32)
    return _interpolate(_interpolate(knots, width).T, height)


@dataclass(frozen=True)
class _Camera:
    height: int
    width: int
    horizon: float
    vanishing: float

    @property
    def focal(self) -> float:
        """Pixels per world unit at relative depth 1."""
        return self.height - self.horizon

    def ground(self, lateral: float, depth: float) -> tuple[float, float, float]:
        """Image x and y of a ground point, and pixels per unit there."""
        scale = depth * self.focal
        return self.vanishing + lateral * scale, self.horizon + scale, scale


class _Canvas:
    """Image, labels and relative depth of one scene, painted from far to near."""

    def __init__(self, camera: _Camera, rng: np.random.Generator) -> None:
        shape = (camera.height, camera.width)
        self.camera = camera
        self.rng = rng
        self.image = np.zeros((*shape, 3), np.float32)
        self.label = np.full(shape, SKY, np.uint8)
        self.depth = np.zeros(shape, np.float32)

    def fill(self, mask: Mask, colour: Floats, label: int | None, depth: Floats | float) -> None:
        """Paints a full-size (H, W) mask; ``colour`` is (3,) or (H, W, 3)."""
        self.image[mask] = colour if colour.ndim == 1 else colour[mask]
        if label is not None:
            self.label[mask] = label
        self.depth[mask] = depth if isinstance(depth, float) else depth[mask]

    def figure(
        self,
        box: tuple[float, float, float, float],
        inside: Callable[[Floats, Floats], Mask],
        colour: Floats,
        label: int | None,
        depth: float,
        texture: float = 0.06,
    ) -> None:
        """Paints an upright shape into its ``(left, top, right, bottom)`` box.

        ``inside`` gets box coordinates, x in [-1, 1] and y in [0, 1] downwards. A shape thinner
        than a pixel still covers the pixel that holds its centre, as in annotated photographs.
        """
        left, top, right, bottom = box
        x0, x1 = int(np.floor(left)), int(np.ceil(right))
        y0, y1 = int(np.floor(top)), int(np.ceil(bottom))
        x0, x1 = max(x0, 0), min(x1, self.camera.width)
        y0, y1 = max(y0, 0), min(y1, self.camera.height)
        if x0 >= x1 or y0 >= y1:
            return
        width, height = max(right - left, 1.0), max(bottom - top, 1.0)
        centre = (left + right) / 2
        x = (np.arange(x0, x1, dtype=np.float32)[None, :] + 0.5 - centre) * (2 / width)
        y = (np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5 - top) / height
        mask = np.broadcast_to(inside(x, y), (y1 - y0, x1 - x0)) & (np.abs(x) <= 1)
        grain = 1 + texture * self.rng.standard_normal((*mask.shape, 1), dtype=np.float32)
        self.image[y0:y1, x0:x1][mask] = (colour * grain)[mask]
        if label is not None:
            self.label[y0:y1, x0:x1][mask] = label
        self.depth[y0:y1, x0:x1][mask] = depth

    def shade(self, box: tuple[float, float, float, float], factor: float) -> None:
        """Darkens an ellipse, such as the shadow under a car; labels stay."""
        left, top, right, bottom = box
        x0, x1 = max(int(left), 0), min(int(np.ceil(right)), self.camera.width)
        y0, y1 = max(int(top), 0), min(int(np.ceil(bottom)), self.camera.height)
        if x0 >= x1 or y0 >= y1:
            return
        x = (np.arange(x0, x1)[None, :] + 0.5 - (left + right) / 2) * (2 / max(right - left, 1))
        y = (np.arange(y0, y1)[:, None] + 0.5 - (top + bottom) / 2) * (2 / max(bottom - top, 1))
        self.image[y0:y1, x0:x1][x * x + y * y <= 1] *= factor


def _anywhere(x: Floats, y: Floats) -> Mask:
    return np.ones(np.broadcast_shapes(x.shape, y.shape), np.bool_)


def _disc(x: Floats, y: Floats) -> Mask:
    return x * x + (2 * y - 1) ** 2 <= 1


def _paint_sky(canvas: _Canvas) -> None:
    camera, rng = canvas.camera, canvas.rng
    rows, _ = _pixel_grid(camera.height, camera.width)
    overcast = rng.uniform()
    zenith = np.array((0.35, 0.52, 0.80), np.float32) * (1 - overcast) + 0.78 * overcast
    falloff = np.clip(rows / camera.horizon, 0, 1)[..., None]
    sky = zenith * (1 - falloff) + np.array((0.86, 0.88, 0.90), np.float32) * falloff
    clouds = _smooth_noise(rng, camera.height, camera.width, camera.width / 5)
    clouds = clouds + 0.4 * _smooth_noise(rng, camera.height, camera.width, camera.width / 20)
    canvas.image[:] = sky + 0.06 * np.clip(clouds, -1, 2)[..., None]


def _paint_ground(canvas: _Canvas, left: float, right: float, kerb: float) -> None:
    """Road between lateral positions ``left`` and ``right``, pavement beyond."""
    camera, rng = canvas.camera, canvas.rng
    height, width = camera.height, camera.width
    rows, columns = _pixel_grid(height, width)
    depth = (rows - camera.horizon) / camera.focal
    below = np.broadcast_to(depth > 0, (height, width))
    scale = np.maximum(depth, 1e-3) * camera.focal
    lateral = (columns - camera.vanishing) / scale
    distance = 1 / np.maximum(depth, 1e-3)
    depth_map = np.broadcast_to(depth, (height, width))
    grain = 0.05 * _smooth_noise(rng, height, width, 2)
    grain = grain + 0.05 * _smooth_noise(rng, height, width, 9)

    paving = np.full(3, rng.uniform(0.42, 0.62), np.float32) + np.array((0.03, 0.0, -0.03))
    slabs = ((lateral % 0.5 < 0.03) | (distance % 0.6 < 0.04)) & (depth > 0.12)
    pavement = paving * (1 + grain - 0.12 * slabs)[..., None]
    canvas.fill(below, pavement.astype(np.float32), PAVEMENT, depth_map)

    asphalt = np.full(3, rng.uniform(0.26, 0.46), np.float32)
    patches = 0.06 * (_smooth_noise(rng, height, width, width / 4) > 0.7)
    surface = asphalt * (1 + grain - patches)[..., None]
    middle = (left + right) / 2
    dash = (np.abs(lateral - middle) < 0.045) & (distance % 2.4 < 1.2)
    edge = np.minimum(np.abs(lateral - left - 0.12), np.abs(lateral - right + 0.12)) < 0.035
    worn = _smooth_noise(rng, height, width, 6) > -0.6
    surface[(dash | edge) & worn] = rng.uniform(0.6, 0.85)
    road = below & (lateral > left) & (lateral < right)
    canvas.fill(road, surface.astype(np.float32), ROAD, depth_map)
    from_kerb = np.minimum(np.abs(lateral - left + kerb), np.abs(lateral - right - kerb))
    stone = below & (from_kerb < kerb)
    canvas.image[stone] = canvas.image[stone] * 0.5 + 0.5 * rng.uniform(0.35, 0.8)


def _plane(camera: _Camera, lateral: float) -> tuple[Floats, Floats, Floats]:
    """An upright plane along the street: depth (0 where unseen), distance, height above ground."""
    rows, columns = _pixel_grid(camera.height, camera.width)
    depth = (columns - camera.vanishing) / (lateral * camera.focal)
    depth = np.where(depth > 0.02, depth, 0).astype(np.float32)
    safe = np.maximum(depth, 0.02)
    elevation = (camera.horizon + safe * camera.focal - rows) / (safe * camera.focal)
    return depth, 1 / safe, elevation.astype(np.float32)


def _paint_facades(canvas: _Canvas, lateral: float) -> None:
    """A row of buildings along the plane at ``lateral``, with gaps between some of them."""
    camera, rng = canvas.camera, canvas.rng
    depth, distance, elevation = _plane(camera, lateral)
    ends = 0.4 + np.cumsum(rng.uniform(1.5, 7.0, 16)).astype(np.float32)
    house = np.minimum(np.searchsorted(ends, distance[0]), 15)
    gap = rng.uniform(size=16) < 0.2
    tall = np.where(gap, 0, rng.uniform(2.5, 9.0, 16)).astype(np.float32)
    tint = _FACADES[rng.integers(len(_FACADES), size=16)]
    tint = tint * rng.uniform(0.7, 1.2, (16, 1)).astype(np.float32)
    roof = tall[house] * (1 + 0.03 * np.sin(distance * 5))
    wall = (depth > 0) & (elevation > 0) & (elevation < roof)

    pitch_x = rng.uniform(0.7, 1.3, 16).astype(np.float32)[house]
    pitch_y = rng.uniform(1.1, 1.8, 16).astype(np.float32)[house]
    open_x = rng.uniform(0.35, 0.65, 16).astype(np.float32)[house]
    window = (distance % pitch_x < open_x * pitch_x) & (elevation % pitch_y > 0.5 * pitch_y)
    window = window & (elevation > 0.4)
    shop = (elevation < 0.95) & (rng.uniform(size=16) < 0.35)[house][None, :]
    hoarding = (elevation > 0.95) & (elevation < 1.3) & (rng.uniform(size=16) < 0.3)[house][None, :]
    grain = 0.05 * _smooth_noise(rng, camera.height, camera.width, 2)
    grain = grain + 0.06 * _smooth_noise(rng, camera.height, camera.width, 12)
    colour = tint[house][None] * (1 + grain)[..., None]
    glass = np.where(rng.uniform() < 0.5, 0.22, 0.62).astype(np.float32)
    colour = np.where((window | shop)[..., None], 0.75 * glass + 0.25 * colour, colour)
    advert = _SIGN_PAINT[rng.integers(len(_SIGN_PAINT), size=16)][house][None]
    colour = np.where(hoarding[..., None], 0.7 * advert + 0.3 * colour, colour)
    canvas.fill(wall, colour.astype(np.float32), BUILDING, np.broadcast_to(depth, wall.shape))


def _paint_skyline(canvas: _Canvas) -> None:
    """Distant trees and blocks that close the view at the horizon."""
    camera, rng = canvas.camera, canvas.rng
    rows, columns = _pixel_grid(camera.height, camera.width)
    for label, colour, share in (
        (BUILDING, (0.50, 0.48, 0.46), 0.5),
        (TREE, (0.22, 0.30, 0.16), 0.7),
    ):
        if rng.uniform() > share:
            continue
        cells = int(rng.integers(6, 24))
        knots = rng.uniform(0.0, 0.14, cells + 1).astype(np.float32) * camera.height
        if label == BUILDING:
            top = knots[(columns[0] * cells / camera.width).astype(np.int64)]
        else:
            top = _interpolate(knots, camera.width)
            top = top + rng.uniform(-1, 1, camera.width).astype(np.float32)
        mask = (rows < camera.horizon + 1) & (rows > camera.horizon - top[None, :])
        grain = 1 + 0.1 * _smooth_noise(rng, camera.height, camera.width, 2)
        canvas.fill(mask, np.array(colour, np.float32) * grain[..., None], label, 0.03)


def _paint_fence(canvas: _Canvas, lateral: float, near: float, far: float) -> None:
    """Railings: what shows between the bars keeps its colour but is labelled as fence."""
    camera, rng = canvas.camera, canvas.rng
    depth, distance, elevation = _plane(camera, lateral)
    top = rng.uniform(0.45, 0.8)
    area = (depth > far) & (depth < near) & (elevation > 0) & (elevation < top)
    pitch = rng.uniform(0.08, 0.25)
    bars = (distance % pitch < 0.4 * pitch) | (elevation > top - 0.08) | (elevation < 0.1)
    solid = rng.uniform() < 0.25
    paint = np.full(3, rng.uniform(0.15, 0.7), np.float32)
    if rng.uniform() < 0.4:
        paint = np.array((0.42, 0.30, 0.20), np.float32)
    canvas.label[area] = FENCE
    canvas.depth[area] = np.broadcast_to(depth, area.shape)[area]
    drawn = area if solid else area & bars
    grain = 1 + 0.08 * canvas.rng.standard_normal((int(drawn.sum()), 1), dtype=np.float32)
    canvas.image[drawn] = paint * grain


def _paint_tree(canvas: _Canvas, lateral: float, depth: float) -> None:
    rng = canvas.rng
    x, y, scale = canvas.camera.ground(lateral, depth)
    trunk = rng.uniform(0.07, 0.14) * scale
    crown_base = rng.uniform(1.2, 2.0) * scale
    radius = rng.uniform(0.8, 1.7) * scale
    bark = np.array((0.26, 0.21, 0.17), np.float32) * rng.uniform(0.7, 1.5)
    canvas.figure((x - trunk, y - crown_base * 1.2, x + trunk, y), _anywhere, bark, TREE, depth)
    leaves = np.array((0.20, 0.30, 0.13), np.float32) * rng.uniform(0.6, 1.5)
    if rng.uniform() < 0.2:
        leaves = np.array((0.42, 0.30, 0.14), np.float32)
    knots = rng.standard_normal((7, 7), dtype=np.float32)
    lobes = rng.uniform(0.75, 1.0, 9).astype(np.float32)

    def crown(u: Floats, v: Floats) -> Mask:
        angle = np.arctan2(2 * v - 1, u)
        turn = (angle + np.pi) * (8 / (2 * np.pi))
        low = np.minimum(turn.astype(np.int64), 7)
        reach = lobes[low] + (lobes[(low + 1) % 8] - lobes[low]) * (turn - low)
        row = np.clip(v * 6, 0, 6).astype(np.int64)
        column = np.clip((u + 1) * 3, 0, 6).astype(np.int64)
        holes = 0.06 * knots[row, column]
        return u * u + (2 * v - 1) ** 2 <= (reach + holes) ** 2

    tall = radius * rng.uniform(1.6, 2.4)
    box = (x - radius, y - crown_base - tall, x + radius, y - crown_base * 0.8)
    canvas.figure(box, crown, leaves, TREE, depth, texture=0.25)


def _paint_pole(canvas: _Canvas, lateral: float, depth: float, with_sign: bool) -> None:
    rng = canvas.rng
    x, y, scale = canvas.camera.ground(lateral, depth)
    half = max(rng.uniform(0.03, 0.055) * scale, 0.5)
    tall = (rng.uniform(1.6, 2.3) if with_sign else rng.uniform(2.5, 4.5)) * scale
    paint = np.full(3, rng.uniform(0.18, 0.62), np.float32)
    canvas.figure((x - half, y - tall, x + half, y), _anywhere, paint, POLE, depth)
    if with_sign:
        size = rng.uniform(0.17, 0.3) * scale
        face = _SIGN_PAINT[rng.integers(len(_SIGN_PAINT))] * rng.uniform(0.7, 1.1)
        shape = _disc if rng.uniform() < 0.5 else _anywhere
        centre = y - tall + size
        box = (x - size, centre - size, x + size, centre + size)
        canvas.figure(box, shape, face, SIGN, depth)
        inner = (x - 0.5 * size, centre - 0.5 * size, x + 0.5 * size, centre + 0.5 * size)
        if size > 2:
            canvas.figure(inner, shape, np.full(3, 0.8, np.float32), SIGN, depth)
    elif rng.uniform() < 0.5:
        reach = rng.uniform(0.3, 0.8) * scale * (-1 if lateral > 0 else 1)
        arm = (min(x, x + reach), y - tall, max(x, x + reach), y - tall + max(2 * half, 1))
        canvas.figure(arm, _anywhere, paint, POLE, depth)


def _paint_car(canvas: _Canvas, lateral: float, depth: float) -> None:
    rng = canvas.rng
    x, y, scale = canvas.camera.ground(lateral, depth)
    half = rng.uniform(0.52, 0.68) * scale * (rng.uniform(1.3, 2.0) if rng.uniform() < 0.3 else 1)
    tall = rng.uniform(0.85, 1.2) * scale
    paint = _CAR_PAINT[rng.integers(len(_CAR_PAINT))] * rng.uniform(0.7, 1.2)
    dark = np.full(3, 0.08, np.float32)
    canvas.shade((x - 1.15 * half, y - 0.12 * tall, x + 1.15 * half, y + 0.1 * tall), 0.5)
    for side in (-1, 1):
        wheel = x + side * 0.72 * half
        box = (wheel - 0.17 * half, y - 0.3 * tall, wheel + 0.17 * half, y)
        canvas.figure(box, _anywhere, dark, CAR, depth)
    taper = rng.uniform(0.15, 0.35)
    canvas.figure(
        (x - half, y - tall, x + half, y - 0.4 * tall),
        lambda u, v: np.abs(u) <= 0.95 - taper * (1 - v),
        paint,
        CAR,
        depth,
    )
    glass = np.full(3, rng.uniform(0.12, 0.4), np.float32)
    canvas.figure(
        (x - 0.8 * half, y - 0.93 * tall, x + 0.8 * half, y - 0.58 * tall),
        lambda u, v: np.abs(u) <= 0.95 - taper * (1 - v),
        glass,
        CAR,
        depth,
    )
    body = (x - half, y - 0.6 * tall, x + half, y - 0.12 * tall)
    canvas.figure(body, _anywhere, paint, CAR, depth)
    lamp = np.array((0.75, 0.15, 0.1) if rng.uniform() < 0.6 else (0.9, 0.9, 0.8), np.float32)
    for side in (-1, 1):
        centre = x + side * 0.8 * half
        box = (centre - 0.13 * half, y - 0.52 * tall, centre + 0.13 * half, y - 0.4 * tall)
        canvas.figure(box, _anywhere, lamp, CAR, depth)


def _paint_person(
    canvas: _Canvas, x: float, feet: float, tall: float, label: int, depth: float, stride: float
) -> None:
    rng = canvas.rng
    half = 0.15 * tall
    coat, trousers = _CLOTHES[rng.integers(len(_CLOTHES), size=2)] * rng.uniform(0.7, 1.2)
    skin = np.array((0.62, 0.46, 0.36), np.float32) * rng.uniform(0.5, 1.2)
    canvas.figure(
        (x - half, feet - 0.5 * tall, x + half, feet),
        lambda u, v: (np.abs(u) <= 0.75) & (np.abs(u) >= stride * v - 0.1),
        trousers,
        label,
        depth,
    )
    canvas.figure(
        (x - half, feet - 0.84 * tall, x + half, feet - 0.45 * tall),
        lambda u, v: np.abs(u) <= 0.7 + 0.3 * v,
        coat,
        label,
        depth,
    )
    head = 0.075 * tall
    canvas.figure((x - head, feet - tall, x + head, feet - 0.83 * tall), _disc, skin, label, depth)


def _paint_pedestrian(canvas: _Canvas, lateral: float, depth: float) -> None:
    rng = canvas.rng
    x, y, scale = canvas.camera.ground(lateral, depth)
    tall = rng.uniform(0.95, 1.25) * scale
    canvas.shade((x - 0.2 * tall, y - 0.04 * tall, x + 0.2 * tall, y + 0.04 * tall), 0.6)
    _paint_person(canvas, x, y, tall, PEDESTRIAN, depth, rng.uniform(0.0, 0.5))


def _paint_rider(canvas: _Canvas, lateral: float, depth: float) -> None:
    rng = canvas.rng
    x, y, scale = canvas.camera.ground(lateral, depth)
    tall = rng.uniform(1.0, 1.25) * scale
    wheel = 0.2 * tall
    frame = np.full(3, rng.uniform(0.05, 0.3), np.float32)
    sideways = rng.uniform() < 0.5
    canvas.shade((x - 2 * wheel, y - 0.05 * tall, x + 2 * wheel, y + 0.05 * tall), 0.6)

    def tyre(u: Floats, v: Floats) -> Mask:
        radius = u * u + (2 * v - 1) ** 2
        return (radius <= 1) & ((radius >= 0.5) | (wheel < 3))

    if sideways:
        for side in (-1.1, 1.1):
            centre = x + side * wheel
            box = (centre - wheel, y - 2 * wheel, centre + wheel, y)
            canvas.figure(box, tyre, frame, RIDER, depth)
        bar = (x - 1.1 * wheel, y - 2.1 * wheel, x + 1.1 * wheel, y - 1.4 * wheel)
        canvas.figure(bar, _anywhere, frame, RIDER, depth)
    else:
        half = max(0.2 * wheel, 0.5)
        canvas.figure((x - half, y - 2 * wheel, x + half, y), _anywhere, frame, RIDER, depth)
    _paint_person(canvas, x, y - 0.6 * wheel, 0.95 * tall, RIDER, depth, 0.0)


def _paint_clutter(canvas: _Canvas, lateral: float, depth: float) -> None:
    """A bin or a box: no class of its own, so it is ignored."""
    rng = canvas.rng
    x, y, scale = canvas.camera.ground(lateral, depth)
    half, tall = rng.uniform(0.15, 0.3) * scale, rng.uniform(0.3, 0.8) * scale
    paint = rng.uniform(0.1, 0.6, 3).astype(np.float32)
    canvas.figure((x - half, y - tall, x + half, y), _anywhere, paint, IGNORE_INDEX, depth)


def _populate(
    canvas: _Canvas, left: float, right: float, wall_left: float, wall_right: float
) -> None:
    """Draws how many of each figure stand where, then paints them from far to near."""
    rng = canvas.rng

    def kerbside(margin: float) -> float:
        if rng.uniform() < 0.5:
            return float(rng.uniform(wall_left + margin, left - 0.1))
        return float(rng.uniform(right + 0.1, wall_right - margin))

    def depths(count: int, near: float) -> list[float]:
        """Uniform in log depth: many small far figures, few large near ones."""
        return [float(d) for d in np.exp(rng.uniform(np.log(0.09), np.log(near), count))]

    figures: list[tuple[float, Callable[[], None]]] = []

    def add(depth: float, paint: Callable[..., None], *args: object) -> None:
        figures.append((depth, lambda: paint(canvas, *args)))

    for depth in depths(int(rng.integers(1, 6)), 0.5):
        spot = rng.choice((left + 0.6, right - 0.6, rng.uniform(left + 0.5, right - 0.5)))
        add(depth, _paint_car, float(spot), depth)
    for depth in depths(int(rng.integers(0, 5)), 0.5):
        add(depth, _paint_tree, kerbside(0.2), depth)
    for depth in depths(int(rng.integers(2, 6)), 0.55):
        edge = left - 0.2 if rng.uniform() < 0.5 else right + 0.2
        add(depth, _paint_pole, edge, depth, False)
    for depth in depths(int(rng.integers(0, 4)), 0.5):
        add(depth, _paint_pole, kerbside(0.1), depth, True)
    for depth in depths(int(rng.poisson(1.6)), 0.45):
        spot = kerbside(0.2) if rng.uniform() < 0.8 else float(rng.uniform(left, right))
        add(depth, _paint_pedestrian, spot, depth)
    for depth in depths(int(rng.poisson(0.55)), 0.4):
        add(depth, _paint_rider, float(rng.uniform(left + 0.2, right - 0.2)), depth)
    for depth in depths(int(rng.poisson(0.5)), 0.4):
        add(depth, _paint_clutter, kerbside(0.2), depth)
    if rng.uniform() < 0.6:
        near = float(rng.uniform(0.2, 0.6))
        edge = left - 0.35 if rng.uniform() < 0.5 else right + 0.35
        add(0.6 * near, _paint_fence, edge, near, near * float(rng.uniform(0.3, 0.7)))
    for _, paint in sorted(figures, key=lambda figure: figure[0]):
        paint()


def _light(canvas: _Canvas) -> NDArray[np.uint8]:
    """Shadows, haze, exposure, blur and sensor noise; returns the (H, W, 3) photograph."""
    camera, rng = canvas.camera, canvas.rng
    height, width = camera.height, camera.width
    image = canvas.image
    if rng.uniform() < 0.5:
        shadow = _smooth_noise(rng, height, width, width / 4) > rng.uniform(0.0, 0.8)
        image[shadow & (canvas.depth > 0)] *= rng.uniform(0.45, 0.75)
    distance = 1 / np.maximum(canvas.depth, 0.05)
    haze = 1 - np.exp(-distance * np.float32(rng.uniform(0.005, 0.05)))
    haze = np.where(canvas.depth > 0, haze, 0)[..., None]
    image = image * (1 - haze) + np.float32(rng.uniform(0.65, 0.85)) * haze

    rows, columns = _pixel_grid(height, width)
    slope = rng.uniform(-0.25, 0.25) * (columns / width - 0.5)
    vignette = rng.uniform(0.0, 0.5) * ((rows / height - 0.5) ** 2 + (columns / width - 0.5) ** 2)
    cast = rng.uniform(0.9, 1.1, 3)
    exposure = (1 + slope - vignette)[..., None] * cast * rng.uniform(0.55, 1.25)
    image = np.clip(image * exposure.astype(np.float32), 0, 1) ** np.float32(rng.uniform(0.8, 1.3))

    blur = np.float32(rng.uniform(0.1, 0.3))
    padded = np.pad(image, ((1, 1), (0, 0), (0, 0)), mode="edge")
    image = (1 - 2 * blur) * image + blur * (padded[:-2] + padded[2:])
    padded = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
    image = (1 - 2 * blur) * image + blur * (padded[:, :-2] + padded[:, 2:])
    noise = rng.standard_normal((height, width, 3), dtype=np.float32)
    image = image + np.float32(rng.uniform(0.01, 0.04)) * noise
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)


def _annotate_carelessly(label: Labels, rng: np.random.Generator) -> Labels:
    """Borders drawn a pixel or so off, and left void where the annotator was unsure."""
    height, width = label.shape
    shift_y = np.rint(0.9 * _smooth_noise(rng, height, width, 7)).astype(np.int64)
    shift_x = np.rint(0.9 * _smooth_noise(rng, height, width, 7)).astype(np.int64)
    y = np.clip(np.arange(height)[:, None] + shift_y, 0, height - 1)
    x = np.clip(np.arange(width)[None, :] + shift_x, 0, width - 1)
    drawn = label[y, x]
    border = np.zeros(label.shape, np.bool_)
    vertical, horizontal = drawn[1:] != drawn[:-1], drawn[:, 1:] != drawn[:, :-1]
    border[1:] |= vertical
    border[:-1] |= vertical
    border[:, 1:] |= horizontal
    border[:, :-1] |= horizontal
    unsure = _smooth_noise(rng, height, width, 10) > 0.9
    drawn[border & unsure] = IGNORE_INDEX
    return drawn


def generate_scene(
    seed: int, index: int, size: tuple[int, int] = (160, 240), *, label_noise: bool = True
) -> tuple[NDArray[np.uint8], Labels]:
    """One street scene, the same for the same arguments.

    Args:
        seed: non-negative seed of the series.
        index: number of the scene in its series.
        size: height and width in pixels, at least 32 each.
        label_noise: whether the labels have the misplaced and void borders of human annotation.
            The photograph does not depend on it.

    Returns:
        The image, uint8 (H, W, 3), and its class map, uint8 (H, W) with 255 where ignored.

    Raises:
        ValueError: for a negative seed or index, or a size below 32.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    height, width = size
    if height < 32 or width < 32:
        raise ValueError(f"size must be at least 32 x 32, got {height} x {width}")
    rng = np.random.default_rng([seed, index])
    camera = _Camera(
        height=height,
        width=width,
        horizon=height * float(rng.uniform(0.36, 0.48)),
        vanishing=width * float(rng.uniform(0.35, 0.65)),
    )
    canvas = _Canvas(camera, rng)
    left, right = -float(rng.uniform(0.9, 2.2)), float(rng.uniform(0.9, 2.2))
    wall_left = left - float(rng.uniform(0.6, 1.8))
    wall_right = right + float(rng.uniform(0.6, 1.8))
    _paint_sky(canvas)
    _paint_skyline(canvas)
    _paint_ground(canvas, left, right, kerb=0.04)
    _paint_facades(canvas, wall_left)
    _paint_facades(canvas, wall_right)
    _populate(canvas, left, right, wall_left, wall_right)
    image = _light(canvas)
    label = _annotate_carelessly(canvas.label, rng) if label_noise else canvas.label
    return image, label
