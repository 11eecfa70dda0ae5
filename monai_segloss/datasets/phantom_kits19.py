"""Generated abdomens with a kidney tumour in KiTS19's folder layout.

A phantom is a contrast-enhanced CT in Hounsfield units (HU): body with fat, muscle, ribs and spine,
liver and spleen beside the kidneys and nearly as bright, great vessels as bright as the cortex,
bowel with gas, two kidneys with cortex, medulla and sinus, and on one of them a tumour. Anatomy is
in millimetres, and voxels are anisotropic, by case. The labels are exact; they are not an
observer's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_segloss.datasets._phantom_draw import FloatArray, largest_part, smooth_noise
from monai_segloss.datasets._phantom_files import (
    Recipe,
    check_at_least,
    check_seed,
    write_folders,
    write_volume,
)

__all__ = ["PhantomAbdomen", "make_kits19_phantom", "phantom_abdomen"]

Point = tuple[float, float, float]

_FORMAT = 1  # Raise it when the same seed no longer gives the same arrays.
_MIN_SIZE = 48
_MIN_SLICES = 12
_VOLUMES = 2
_HU_RANGE = (-1024, 3071)


class _Tissue(IntEnum):
    """What is painted; one table turns it into its label, another into its HU."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    BONE = 3
    MARROW = 4
    DISC = 5
    LIVER = 6
    SPLEEN = 7
    BOWEL = 8
    GAS = 9
    AORTA = 10
    VEIN = 11
    SINUS = 12
    CORTEX = 13
    MEDULLA = 14
    TUMOUR = 15
    NECROSIS = 16
    TABLE = 17


_LABEL_OF = np.zeros(len(_Tissue), np.uint8)
_LABEL_OF[[_Tissue.CORTEX, _Tissue.MEDULLA]] = 1
_LABEL_OF[[_Tissue.TUMOUR, _Tissue.NECROSIS]] = 2

_HU = {  # Lowest and highest of a case.
    _Tissue.AIR: (-1000, -1000),
    _Tissue.FAT: (-115, -95),
    _Tissue.MUSCLE: (45, 65),
    _Tissue.BONE: (400, 650),
    _Tissue.MARROW: (150, 260),
    _Tissue.DISC: (70, 100),
    _Tissue.LIVER: (85, 125),
    _Tissue.SPLEEN: (100, 140),
    _Tissue.BOWEL: (20, 70),
    _Tissue.GAS: (-900, -700),
    _Tissue.AORTA: (170, 300),
    _Tissue.VEIN: (100, 180),
    _Tissue.SINUS: (-90, -50),
    _Tissue.CORTEX: (160, 230),
    _Tissue.MEDULLA: (100, 170),
    _Tissue.TUMOUR: (60, 130),
    _Tissue.NECROSIS: (15, 45),
    _Tissue.TABLE: (-250, -100),
}


@dataclass(frozen=True)
class PhantomAbdomen:
    """One case.

    Attributes:
        image: (slices, H, W) int16 HU; axes lead downwards, to the back and to the left.
        label: (slices, H, W) uint8; 0 background, 1 kidney, 2 tumour.
        spacing: voxel size in mm along the three axes.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    spacing: Point


@dataclass(frozen=True)
class _Grid:
    """Sample positions in mm from the middle of the volume, each along its own axis."""

    shape: tuple[int, int, int]
    spacing: Point
    z: FloatArray  # (slices, 1, 1)
    y: FloatArray  # (1, H, 1)
    x: FloatArray  # (1, 1, W)

    def sigma(self, length: float) -> tuple[float, float, float]:
        """A length in mm as samples along each axis."""
        z, y, x = self.spacing
        return length / z, length / y, length / x

    def ellipsoid(self, centre: Point, semi_axes: Point, tilt: float = 0) -> FloatArray:
        """Radius in the ellipsoid's own coordinates; its border has radius 1.

        `tilt` moves it along x, mm per mm along z.
        """
        z, y = self.z - centre[0], self.y - centre[1]
        x = self.x - centre[2] - tilt * z
        squares = (z / semi_axes[0]) ** 2 + (y / semi_axes[1]) ** 2 + (x / semi_axes[2]) ** 2
        return np.asarray(np.sqrt(squares), np.float32)

    def tube(self, centre: tuple[float, float], drift: float) -> FloatArray:
        """Distance in mm from a vertical line that drifts along x, mm per mm along z."""
        x = self.x - centre[1] - drift * self.z
        return np.asarray(np.hypot(self.y - centre[0], x), np.float32)


def phantom_abdomen(
    rng: np.random.Generator, size: int = 96, num_slices: int = 24
) -> PhantomAbdomen:
    """One generated case.

    The field of view is 325 to 390 mm in a slice, and 170 to 230 mm across the slices, whatever the
    number of voxels.

    Args:
        rng: the only source of chance; the same state gives the same arrays.
        size: in-plane size in voxels, at least 48; the official one is 512.
        num_slices: number of slices, at least 12; officially 29 to 1059.

    Raises:
        ValueError: if `size` or `num_slices` is too small.
    """
    _check_sizes(size, num_slices)
    grid = _draw_grid(rng, size, num_slices)
    tissue = _draw_tissue(rng, grid)
    return PhantomAbdomen(_expose(rng, grid, tissue), _LABEL_OF[tissue], grid.spacing)


def _check_sizes(size: int, num_slices: int) -> None:
    check_at_least("size", size, _MIN_SIZE, " voxels")
    check_at_least("num_slices", num_slices, _MIN_SLICES)


def _draw_grid(rng: np.random.Generator, size: int, num_slices: int) -> _Grid:
    in_plane = round(rng.uniform(325, 390) / size, 4)
    spacing = (round(rng.uniform(170, 230) / num_slices, 3), in_plane, in_plane)
    shape = (num_slices, size, size)
    z, y, x = (
        ((np.arange(n) + 0.5 - n / 2) * s).astype(np.float32)
        for n, s in zip(shape, spacing, strict=True)
    )
    return _Grid(shape, spacing, z[:, None, None], y[None, :, None], x[None, None, :])


def _draw_tissue(rng: np.random.Generator, grid: _Grid) -> NDArray[np.uint8]:
    """(slices, H, W) tissue, from the skin inwards; what is painted later lies in front."""
    width, depth = rng.uniform(138, 160), rng.uniform(98, 118)
    rho = ((np.abs(grid.x) / width) ** 2.4 + (np.abs(grid.y) / depth) ** 2.4) ** (1 / 2.4)
    under_skin = (1 - rho) * np.float32(depth)
    fat, wall = rng.uniform(8, 20), rng.uniform(9, 14)
    clutter = smooth_noise(rng, grid.shape, grid.sigma(9))

    tissue = np.full(grid.shape, _Tissue.AIR, np.uint8)

    def paint(mask: NDArray[np.bool_], kind: _Tissue) -> None:
        tissue[np.broadcast_to(mask, grid.shape)] = kind

    couch = depth + 8 + 0.0006 * grid.x**2
    paint((grid.y > couch) & (grid.y < couch + 6) & (np.abs(grid.x) < 170), _Tissue.TABLE)
    paint(under_skin > 0, _Tissue.FAT)
    paint(under_skin > fat * (1 + 0.3 * (grid.y < 0)), _Tissue.MUSCLE)
    inside = under_skin > fat + wall
    paint(inside, _Tissue.FAT)
    paint(inside & (clutter > 0.2) & (grid.y < 0.25 * depth), _Tissue.BOWEL)
    paint(inside & (clutter > 1.4) & (grid.y < 0), _Tissue.GAS)
    ring = (under_skin > fat + 2) & (under_skin < fat + wall - 1)
    # A rib runs forwards and downwards.
    lane = np.cos((grid.z - 0.5 * (depth - grid.y)) * (2 * np.pi / 34))
    paint(ring & (lane > 0.6) & (grid.z < 50) & (grid.y > -0.6 * depth), _Tissue.BONE)

    back = depth - fat - rng.uniform(42, 52)  # Middle of the vertebrae.
    for side in (-1, 1):
        paint(grid.tube((back + 28, side * 30), 0) < 24, _Tissue.MUSCLE)
        psoas = grid.tube((back + 2, side * 34), side * 0.12)
        paint(psoas < 12 + 0.08 * (grid.z + 90), _Tissue.MUSCLE)
    spine = grid.tube((back, 0), 0)
    paint(spine < 21, _Tissue.BONE)
    paint(spine < 18, _Tissue.MARROW)
    between = np.cos((grid.z - rng.uniform(0, 36)) * (2 * np.pi / 36)) > 0.8
    paint((spine < 20) & between, _Tissue.DISC)
    arch = np.hypot((grid.y - back - 28) / 16, grid.x / 20)
    paint((arch < 1) & (arch > 0.65) & ~between, _Tissue.BONE)
    paint(arch <= 0.65, _Tissue.MUSCLE)
    paint(grid.tube((back - 32, 12), 0) < rng.uniform(9, 12), _Tissue.AORTA)
    paint(grid.tube((back - 30, -16), 0) < rng.uniform(9, 13), _Tissue.VEIN)

    edge = 0.06 * smooth_noise(rng, grid.shape, grid.sigma(14))
    liver = grid.ellipsoid((-70, -18, -70), (rng.uniform(85, 110), 78, 82)) + edge
    paint(inside & (liver < 1) & (spine > 45), _Tissue.LIVER)
    spleen = grid.ellipsoid((-75, 30, 105), (rng.uniform(45, 65), 42, 26)) + edge
    paint(inside & (spleen < 1), _Tissue.SPLEEN)

    kidneys = [_draw_kidney(rng, grid, tissue, side, back) for side in (-1, 1)]
    _add_tumour(rng, grid, tissue, *kidneys[rng.integers(2)])
    return tissue


def _draw_kidney(
    rng: np.random.Generator, grid: _Grid, tissue: NDArray[np.uint8], side: int, back: float
) -> tuple[Point, Point]:
    """Paint one kidney in its capsule of fat; returns its centre and its semi-axes (z, y, x)."""
    # The right one, at x < 0, lies lower, under the liver.
    centre = (rng.uniform(-6, 8) - side * 6, back - rng.uniform(6, 16), side * rng.uniform(68, 76))
    semi_axes = (rng.uniform(48, 58), rng.uniform(23, 28), rng.uniform(24, 29))
    tilt = side * rng.uniform(0.08, 0.22)
    lobes = 0.05 * smooth_noise(rng, grid.shape, grid.sigma(8))
    rho = grid.ellipsoid(centre, semi_axes, tilt) + lobes
    tissue[grid.ellipsoid(centre, (66, 36, 37), tilt) < 1] = _Tissue.FAT
    pyramids = smooth_noise(rng, grid.shape, grid.sigma(4.5))
    body = rho < 1
    # The sinus opens towards the spine.
    hilum = (centre[0], centre[1] - 5, centre[2] - side * 0.75 * semi_axes[2])
    sinus = grid.ellipsoid(hilum, (0.5 * semi_axes[0], 9, 17), tilt) < 1
    kidney = largest_part(body & ~sinus)
    tissue[kidney] = _Tissue.CORTEX
    tissue[kidney & (rho < 0.72) & (pyramids > -0.4)] = _Tissue.MEDULLA
    tissue[body & sinus] = _Tissue.SINUS
    pedicle = np.abs(grid.z - centre[0]) < 5
    run = (np.abs(grid.y - centre[1] + 5) < 5) & (side * grid.x > 18) & (side * grid.x < 58)
    tissue[pedicle & run] = _Tissue.VEIN
    return centre, semi_axes


def _add_tumour(
    rng: np.random.Generator,
    grid: _Grid,
    tissue: NDArray[np.uint8],
    centre: Point,
    semi_axes: Point,
) -> None:
    """Paint a tumour that grows out of a kidney's surface, away from the spine."""
    side = np.sign(centre[2])
    turn, height = rng.uniform(-1.0, 1.0), rng.uniform(-0.6, 0.6)
    flat = np.sqrt(1 - height**2)
    away = np.array([height, -np.sin(turn) * flat, side * np.cos(turn) * flat])
    radius = rng.uniform(13, 26)
    cz, cy, cx = np.asarray(centre) + 0.9 * away * semi_axes
    rz, ry, rx = radius * rng.uniform(0.85, 1.15, 3)
    rough = 0.12 * smooth_noise(rng, grid.shape, grid.sigma(0.4 * radius))
    rho = grid.ellipsoid((cz, cy, cx), (rz, ry, rx)) + rough
    host = np.isin(tissue, (_Tissue.CORTEX, _Tissue.MEDULLA))
    allowed = ~np.isin(tissue, (_Tissue.AIR, _Tissue.BONE, _Tissue.MUSCLE, _Tissue.TABLE))
    tumour = largest_part((rho < 1) & allowed | (host & (rho < 1.05)))
    tissue[tumour] = _Tissue.TUMOUR
    if radius > 18:
        tissue[tumour & (rho + 2 * rough < 0.45)] = _Tissue.NECROSIS
    # What the tumour cut off is too small to be a kidney.
    kidney = np.isin(tissue, (_Tissue.CORTEX, _Tissue.MEDULLA))
    whole = kidney & (side * grid.x > 0)
    tissue[whole & ~largest_part(whole)] = _Tissue.FAT


def _expose(rng: np.random.Generator, grid: _Grid, tissue: NDArray[np.uint8]) -> NDArray[np.int16]:
    """(slices, H, W) HU after the scanner's blur and noise."""
    hu = np.array([rng.uniform(*_HU[kind]) for kind in _Tissue], np.float32)
    texture = smooth_noise(rng, grid.shape, grid.sigma(3))
    image = hu[tissue] + rng.uniform(4, 10) * texture * (tissue != _Tissue.AIR)
    image = ndimage.gaussian_filter(image, (0.4, 0.5, 0.5))
    image += rng.uniform(10, 22) * smooth_noise(rng, grid.shape, (0, 0.5, 0.5))
    return np.clip(np.rint(image), *_HU_RANGE).astype(np.int16)


# Files ------------------------------------------------------------------------------------------


def make_kits19_phantom(
    out_dir: str | os.PathLike[str],
    num_patients: int = 12,
    seed: int = 0,
    size: int = 96,
    num_slices: int = 24,
    progress: bool = True,
) -> Path:
    """Write generated cases as `out_dir/data/case_NNNNN`, in KiTS19's layout.

    Case N depends on `seed` and N alone, so a larger phantom contains the smaller one. Each folder
    appears whole or not at all. A second call keeps the cases that are there, and finishes what an
    interrupted call left; hidden folders `.case_NNNNN.partial-*`, left where a process was killed,
    are never read and may be deleted.

    Args:
        out_dir: made if absent.
        num_patients: cases 0 to this number less one are written.
        seed: non-negative.
        size: in-plane size in voxels, at least 48; the official one is 512.
        num_slices: number of slices, the first axis, at least 12.
        progress: show a progress bar.

    Returns:
        `out_dir`, which `kits19_datalist` takes as it is.

    Raises:
        FileExistsError: if a case's folder exists and is not of this phantom (other parameters, or
            not generated at all) or lost files. Nothing is written or overwritten then.
        ValueError: if a number is out of range.
    """
    _check_sizes(size, num_slices)
    check_at_least("num_patients", num_patients, 1)
    check_seed(seed)
    out_dir = Path(out_dir).expanduser()
    folders = {n: out_dir / "data" / f"case_{n:05d}" for n in range(num_patients)}
    recipe: Recipe = {"format": _FORMAT, "seed": seed, "size": size, "num_slices": num_slices}

    def write(folder: Path, name: str, rng: np.random.Generator) -> None:
        case = phantom_abdomen(rng, size, num_slices)
        # As KiTS's files: downwards, to the back, to the left.
        affine = np.zeros((4, 4))
        affine[[2, 1, 0], [0, 1, 2]] = [-length for length in case.spacing]
        affine[3, 3] = 1
        write_volume(folder / "imaging.nii.gz", case.image, affine)
        write_volume(folder / "segmentation.nii.gz", case.label, affine)

    write_folders(folders, recipe, _VOLUMES, write, progress)
    return out_dir
