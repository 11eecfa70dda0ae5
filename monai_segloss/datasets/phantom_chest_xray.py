"""Generated chest X-rays in the layouts of the Montgomery and Shenzhen sets.

A phantom is a frontal projection: what a ray meets on its way through soft tissue, lungs, ribs,
collar bones, spine, heart and vessels adds up, and the film turns the sum into grey. What is not
lung may be as dark as it: the air beside the body, the windpipe, gas in the stomach. Opacities make
parts of some lungs as bright as the belly. The masks are exact, and as the real ones they leave out
what heart, mediastinum and diaphragm cover.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_segloss.datasets._layout import check_choice
from monai_segloss.datasets._phantom_draw import FloatArray, largest_part, smooth_noise
from monai_segloss.datasets._phantom_files import (
    Recipe,
    check_at_least,
    check_seed,
    write_pictures,
)

__all__ = ["PhantomChest", "make_chest_xray_phantom", "phantom_chest"]

Mask = NDArray[np.bool_]

_FORMAT = 1  # Raise it when the same seed no longer gives the same arrays.
_MIN_SIZE = 48
_LAYOUTS = ("merged", "nlm")
_FRONT, _SHARP = (
    0.25,
    6.0,
)  # How much less the front ends of ribs absorb; steepness of a rib's edge.


@dataclass(frozen=True)
class PhantomChest:
    """One X-ray, seen from the front: the right lung is on the left side of the image.

    Attributes:
        image: (H, W) uint8, bright where much is absorbed.
        left: (H, W) uint8 mask of the left lung, 0 or 255.
        right: likewise of the right lung.
    """

    image: NDArray[np.uint8]
    left: NDArray[np.uint8]
    right: NDArray[np.uint8]


@dataclass(frozen=True)
class _Chest:
    """Shape of a chest in units of half the image's width, from the image's middle, y downwards."""

    x: FloatArray  # (1, W)
    y: FloatArray  # (H, 1)
    width: float  # From the middle to the ribs' outer border at its widest.
    apex: float
    base: float  # Height of the lungs' lowest corners.
    domes: tuple[float, float]  # How far the diaphragm bulges, right and left.
    spine: float  # Half of the mediastinum's width.
    heart: tuple[float, float, float, float]  # Centre (x, y), semi-axes.

    def border(self, y: FloatArray) -> FloatArray:
        """Distance from the middle to the outer border of the lungs at height y."""
        share = np.clip((y - self.apex) / (0.75 * (self.base - self.apex)), 0, 1)
        inner = 0.36 * self.width
        rise = (1 - (1 - share) ** 2.3) ** (1 / 2.0)
        return np.asarray(inner + (self.width - inner) * rise, np.float32)


def phantom_chest(rng: np.random.Generator, size: int = 256) -> PhantomChest:
    """One generated X-ray; each side is `size` pixels plus or minus a tenth.

    Args:
        rng: the only source of chance; the same state gives the same arrays.
        size: in pixels, at least 48.

    Raises:
        ValueError: if `size` is too small.
    """
    check_at_least("size", size, _MIN_SIZE, " pixels")
    chest = _draw_chest(rng, size)
    right, left = _draw_lungs(rng, chest)
    absorbed = _absorb(rng, chest, right, left)
    return PhantomChest(
        _develop(rng, chest, absorbed),
        *(np.where(lung, 255, 0).astype(np.uint8) for lung in (left, right)),
    )


def _draw_chest(rng: np.random.Generator, size: int) -> _Chest:
    height, width = (round(size * rng.uniform(0.9, 1.1)) for _ in range(2))
    y = ((np.arange(height) + 0.5) * 2 / width - height / width).astype(np.float32)
    x = ((np.arange(width) + 0.5) * 2 / width - 1).astype(np.float32)
    tall = height / width
    apex = tall * rng.uniform(-0.84, -0.7)
    spine = rng.uniform(0.1, 0.15)
    base = tall * rng.uniform(0.5, 0.8)
    length = base - apex
    return _Chest(
        x=x[None, :] - np.float32(rng.uniform(-0.05, 0.05)),
        y=y[:, None],
        width=rng.uniform(0.66, 0.8),
        apex=apex,
        base=base,
        domes=(length * rng.uniform(0.16, 0.28), length * rng.uniform(0.12, 0.22)),
        spine=spine,
        heart=(
            rng.uniform(0.1, 0.18),
            base - length * rng.uniform(0.26, 0.34),
            rng.uniform(0.24, 0.34),
            length * rng.uniform(0.2, 0.26),
        ),
    )


def _draw_lungs(rng: np.random.Generator, chest: _Chest) -> tuple[Mask, Mask]:
    """(H, W) masks of the right lung, on the image's left side, and of the left one."""
    x, y = chest.x, chest.y
    shape = y.shape[0], x.shape[1]
    wobble = 0.012 * smooth_noise(rng, shape, (0.06 * shape[1],) * 2)
    heart_x, heart_y, heart_a, heart_b = chest.heart
    heart = np.hypot((x - heart_x) / heart_a, (y - heart_y) / heart_b) + 2 * wobble
    # The heart's lower border lies on the diaphragm.
    outside_heart = (heart > 1) & ~((np.abs(x - heart_x) < 0.7 * heart_a) & (y > heart_y))
    share = np.clip((y - chest.apex) / (chest.base - chest.apex), 0, 1)
    inner = 0.36 * chest.width
    # Towards the apex the lungs part, and at the hila they dent.
    edge = chest.spine + (inner - chest.spine) * np.clip(1 - share / 0.3, 0, 1) ** 2
    edge = edge + 0.05 * np.exp(-(((share - 0.45) / 0.1) ** 2))
    outer = chest.border(y)
    lungs = []
    for side, dome in zip((-1, 1), chest.domes, strict=True):
        across = side * x + wobble
        bulge = 1 - ((across - 0.42 * chest.width) / (0.6 * chest.width)) ** 2
        floor = chest.base - dome * np.clip(bulge, 0, 1)
        mask = (across > edge) & (across < outer) & (y > chest.apex) & (y + wobble < floor)
        lungs.append(largest_part(mask & outside_heart))
    return lungs[0], lungs[1]


def _absorb(rng: np.random.Generator, chest: _Chest, right: Mask, left: Mask) -> FloatArray:
    """(H, W) what the ray through each pixel loses; 1 is about a thick trunk."""
    x, y = chest.x, chest.y
    shape = right.shape
    far = np.abs(x)
    length = chest.base - chest.apex

    # The trunk widens from the neck to the shoulders; arms hang beside it.
    below = np.clip((y - chest.apex + 0.25) / 0.3, 0, 1)
    half = 0.26 + (chest.width + rng.uniform(0.12, 0.22) - 0.26) * np.sqrt(below)
    half = half + 0.25 * np.exp(-(((y - chest.apex - 0.15) / 0.18) ** 2))
    trunk = np.sqrt(np.clip(1 - (far / half) ** 2, 0, 1)) ** 0.6
    total = 0.8 * trunk * (1 + 0.12 * (y - chest.apex) / length)
    belly = 1 / (1 + np.exp(-(y - chest.base + 0.1) / 0.08))
    total = total + rng.uniform(0.12, 0.22) * belly * trunk
    total = total + rng.uniform(0.0, 0.12) * smooth_noise(rng, shape, (0.12 * shape[1],) * 2)
    total = total * (trunk > 0)

    # A lung is thick in its middle and thin at its border.
    pixel = 2 / shape[1]
    air = np.zeros(shape, np.float32)
    for lung in (right, left):
        distance = ndimage.distance_transform_edt(lung) * pixel
        air += np.where(lung, 0.45 + 0.55 * (1 - np.exp(-distance / 0.1)), 0)
    lungs = right | left
    vessels = smooth_noise(rng, shape, (0.008 * shape[1],) * 2)
    hila = np.exp(-(((far - 0.22) / 0.16) ** 2) - ((y - chest.apex - 0.5 * length) / 0.25) ** 2)
    total = total - rng.uniform(0.38, 0.52) * air
    total = total + lungs * (0.015 + 0.09 * hila) * np.abs(vessels) + 0.07 * hila
    for _ in range(rng.integers(0, 4)):
        cx, cy = rng.uniform(0.2, 0.6) * rng.choice((-1, 1)), rng.uniform(chest.apex, chest.base)
        blob = np.exp(-0.5 * ((x - cx) ** 2 + (y - cy) ** 2) / rng.uniform(0.03, 0.12) ** 2)
        total = total + lungs * blob * rng.uniform(0.05, 0.3) * (1 + 0.4 * vessels)

    total = total + _bones(rng, chest) * (trunk > 0)
    heart_x, heart_y, heart_a, heart_b = chest.heart
    heart = np.hypot((x - heart_x) / heart_a, (y - heart_y) / heart_b)
    total = total + 0.16 * np.sqrt(np.clip(1 - heart**2, 0, 1))
    windpipe = np.exp(-((x / 0.05) ** 4)) * (y < chest.apex + 0.35 * length)
    total = total - 0.14 * windpipe * (trunk > 0)
    gas_x, gas_y = rng.uniform(0.2, 0.42), chest.base + rng.uniform(-0.06, 0.12)
    gas = np.hypot((x - gas_x) / rng.uniform(0.06, 0.16), (y - gas_y) / rng.uniform(0.04, 0.1))
    total = total - rng.uniform(0, 0.35) * np.clip(1.3 - gas, 0, 1) * ~lungs
    return np.asarray(np.maximum(total, 0), np.float32)


def _bones(rng: np.random.Generator, chest: _Chest) -> FloatArray:
    """(H, W) what ribs, collar bones and spine absorb."""
    x, y = chest.x, chest.y
    far, length = np.abs(x), chest.base - chest.apex
    cage = chest.border(y) + 0.02
    reach = far / np.maximum(cage, 0.1)
    pitch, start = length / rng.uniform(8, 10), rng.uniform(0, 1)

    def ribs(course: FloatArray) -> FloatArray:
        wave = np.cos(2 * np.pi * ((y - course) / pitch + start))
        return np.asarray(1 / (1 + np.exp(-6 * (wave - 0.2))), np.float32)

    inside = (reach < 1) & (y > chest.apex - 0.05) & (y < chest.base + 0.1)
    # Behind, a rib leaves the spine upwards, turns, and falls; in front it rises to the breastbone.
    behind = ribs(length * (0.32 * reach**2 - 0.1 * reach)) * (far > 0.6 * chest.spine)
    front = ribs(length * (0.35 - 0.3 * reach)) * (reach > 0.45)
    bones = inside * (behind + _FRONT * front) * rng.uniform(0.06, 0.11)
    # Seen edge on, the cage is bright.
    bones = bones + 0.12 * np.exp(-(((reach - 1) / 0.03) ** 2)) * (y > chest.apex) * inside
    collar = chest.apex + 0.1 * length + rng.uniform(-0.02, 0.03) - rng.uniform(0.1, 0.3) * far
    band = np.exp(-(((y - collar) / 0.035) ** 4)) * (far > 0.1) * (far < chest.width + 0.1)
    bones = bones + rng.uniform(0.07, 0.13) * band
    vertebrae = 0.8 + 0.2 * np.cos(2 * np.pi * y / rng.uniform(0.12, 0.16))
    column = rng.uniform(0.08, 0.16) * np.exp(-((far / (0.7 * chest.spine)) ** 4)) * vertebrae
    return np.asarray(bones + column, np.float32)


def _develop(rng: np.random.Generator, chest: _Chest, absorbed: FloatArray) -> NDArray[np.uint8]:
    """(H, W) grey of what was absorbed: the film's curve, blur, noise, letters, a border."""
    shape = absorbed.shape
    scale = shape[1] / 256
    grey = (absorbed / np.percentile(absorbed, 98)) ** np.float32(rng.uniform(0.8, 1.4))
    grey = grey * np.float32(rng.uniform(0.75, 0.95)) + np.float32(rng.uniform(0, 0.06))
    grey = ndimage.gaussian_filter(grey, 0.6 * scale)
    grey = grey + rng.uniform(0.01, 0.025) * smooth_noise(rng, shape, (0.5, 0.5))
    corner = (chest.y < chest.y.min() + 0.16) & (chest.y > chest.y.min() + 0.08)
    if rng.random() < 0.5:
        grey[corner & (np.abs(chest.x + 0.85) < 0.04)] = 1
    if rng.random() < 0.3:
        grey[: round(rng.uniform(0.01, 0.05) * shape[0])] = 0
        grey[-round(rng.uniform(0.01, 0.06) * shape[0]) :] = 0
    return np.clip(np.rint(255 * grey), 0, 255).astype(np.uint8)


# Files ------------------------------------------------------------------------------------------


def make_chest_xray_phantom(
    out_dir: str | os.PathLike[str],
    num_images: int = 12,
    seed: int = 0,
    size: int = 256,
    layout: str = "merged",
    progress: bool = True,
) -> Path:
    """Write generated X-rays, in turn MCUCXR_NNNN_0.png and CHNCXR_NNNN_0.png.

    Image N depends on `seed` and N alone, so a larger phantom contains the smaller one. An image
    appears whole and after its masks, or not at all. A second call keeps the images that are there,
    and finishes what an interrupted call left; hidden files `.*.partial-*`, left where a process
    was killed, are never read and may be deleted.

    Args:
        out_dir: made if absent.
        num_images: images 1 to this number are written.
        seed: non-negative.
        size: of each side in pixels, plus or minus a tenth by image; at least 48.
        layout: "merged" for CXR_png and masks; "nlm" for MontgomerySet, with a mask for each lung,
            and ChinaSet_AllFiles.
        progress: show a progress bar.

    Returns:
        `out_dir`, which `chest_xray_datalist` takes as it is.

    Raises:
        FileExistsError: if `out_dir` holds anything that is not of this phantom (other parameters,
            or not generated at all), or an image without its mask. Nothing is written or
            overwritten then.
        ValueError: if a number is out of range or `layout` is not one of the above.
    """
    check_at_least("size", size, _MIN_SIZE, " pixels")
    check_at_least("num_images", num_images, 1)
    check_seed(seed)
    check_choice("layout", layout, _LAYOUTS)
    out_dir = Path(out_dir).expanduser()
    files = {n: _files_of(n, layout) for n in range(1, num_images + 1)}
    recipe: Recipe = {"format": _FORMAT, "seed": seed, "size": size, "layout": layout}

    def draw(number: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
        chest = phantom_chest(rng, size)
        if len(files[number]) == 3:
            return [chest.left, chest.right, chest.image]
        return [chest.left | chest.right, chest.image]

    write_pictures(out_dir, files, recipe, draw, progress)
    return out_dir


def _files_of(number: int, layout: str) -> tuple[str, ...]:
    """Paths of the masks, then of the image."""
    montgomery = number % 2 == 1
    name = f"{'MCUCXR' if montgomery else 'CHNCXR'}_{(number + 1) // 2:04d}_0"
    if layout == "merged":
        return f"masks/{name}.png", f"CXR_png/{name}.png"
    if not montgomery:
        folder = "ChinaSet_AllFiles"
        return f"{folder}/mask/{name}_mask.png", f"{folder}/CXR_png/{name}.png"
    folder = "MontgomerySet"
    masks = (f"{folder}/ManualMask/{side}Mask/{name}.png" for side in ("left", "right"))
    return *masks, f"{folder}/CXR_png/{name}.png"
