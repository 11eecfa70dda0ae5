"""Generated hearts in ACDC's folder layout, so that everything runs with no download.

A phantom is a short-axis cine frame drawn from a formula: nested cavity, myocardium and right
ventricle that taper from base to apex, amid a thorax with vessels as bright as the cavity, seen
through a scanner's slice profile, blur, coil shading and noise. Anatomy is in millimetres, so the
voxel spacing, which differs by case, matters. The labels are exact; they are not an observer's.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

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

__all__ = ["PhantomFrame", "make_acdc17_phantom", "phantom_heart"]

TissueArray = NDArray[np.uint8]
Point = tuple[float, float]

_FORMAT = 1  # Raise it when the same seed no longer gives the same arrays.
_MIN_SIZE = 48
_MIN_SLICES = 6
_FRAMES_PER_CYCLE = 30
_OVERSAMPLING = 2  # In-plane samples per voxel side.
_SUBSLICES = 5
_BLUR = 0.55  # Standard deviation of the in-plane point spread, voxels.
_VOLUMES = 4  # Image and label of two frames.


class _Tissue(IntEnum):
    """What is painted; one table turns it into its label, another into its brightness."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    LUNG = 3
    LIVER = 4
    STOMACH = 5
    VESSEL = 6
    HEART_FAT = 7
    RV_WALL = 8
    RV_BLOOD = 9
    TRABECULA = 10
    MYOCARDIUM = 11
    LV_BLOOD = 12
    PAPILLARY = 13


_LABEL_OF = np.zeros(len(_Tissue), np.uint8)
_LABEL_OF[[_Tissue.RV_BLOOD, _Tissue.TRABECULA]] = 1
_LABEL_OF[_Tissue.MYOCARDIUM] = 2
_LABEL_OF[[_Tissue.LV_BLOOD, _Tissue.PAPILLARY]] = 3  # ACDC counts papillary muscles as cavity.


@dataclass(frozen=True)
class PhantomFrame:
    """One frame of a phantom.

    Attributes:
        image: (x, y, z) int16, slices from base to apex.
        label: (x, y, z) uint8; 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle.
        spacing: voxel size in mm along x, y, z.
        phase: "ED" or "ES".
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    spacing: tuple[float, float, float]
    phase: str


@dataclass(frozen=True)
class _Grid:
    """Voxels of a case; the origin is the middle of the first slice, mm."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def extent(self) -> tuple[float, float]:
        """In-plane field of view, mm."""
        return self.shape[0] * self.spacing[0], self.shape[1] * self.spacing[1]

    @property
    def heights(self) -> NDArray[np.float64]:
        """(slices,) positions along z, mm."""
        return np.arange(self.shape[2], dtype=np.float64) * self.spacing[2]

    def axes(self, oversampling: int = 1) -> tuple[FloatArray, FloatArray]:
        """Sample positions along x (n, 1) and y (1, m), mm, zero in the middle of the image."""
        x, y = (
            ((np.arange(n * oversampling) + 0.5) / oversampling - n / 2) * s
            for n, s in zip(self.shape[:2], self.spacing[:2], strict=True)
        )
        return x[:, None].astype(np.float32), y[None, :].astype(np.float32)


@dataclass(frozen=True)
class _Heart:
    """What does not move: lengths in mm, angles in radians, positions from the image's middle."""

    centre: Point
    tilt: Point  # In-plane drift of the long axis, mm per mm along z.
    slice_shift: FloatArray  # (slices, 2); breath holds differ.
    septum: float  # Direction from the left ventricle to the right one.
    outline: tuple[tuple[int, float, float], ...]  # (order, amplitude, phase) of the left one.
    skew: float  # Shear of the right ventricle along the septum.
    thick_side: float
    papillary: tuple[tuple[float, float, float], ...]  # (angle, radius, share of depth it ends at).
    trabeculae: FloatArray  # (n, 3) along, across, depth; shares of the right ventricle's extent.
    fat_side: float
    fat: float


@dataclass(frozen=True)
class _Phase:
    """What moves, mm."""

    base: float
    apex: float
    endo: float  # Cavity radius where it is widest.
    wall: float
    rv_width: float  # From the septum's right face to the free wall, at the base.
    rv_height: float  # Half of the extent along the septum, at the base.

    @property
    def epi(self) -> float:
        return self.endo + self.wall


def phantom_heart(
    rng: np.random.Generator, size: int = 128, num_slices: int | None = None
) -> tuple[PhantomFrame, PhantomFrame]:
    """One generated case: the same heart at end-diastole and at end-systole.

    Each in-plane side is `size` voxels plus or minus an eighth, 1.2 to 1.8 mm each; slices are 5
    to 10 mm apart. The heart shrinks to fit a field of view narrower than 180 mm. The first and
    the last slice never hold any of it.

    Args:
        rng: the only source of chance; the same state gives the same arrays.
        size: in-plane size in voxels, at least 48.
        num_slices: number of slices, at least 6; None draws 8 to 12.

    Returns:
        The frames (ED, ES), of equal shape and spacing.

    Raises:
        ValueError: if `size` or `num_slices` is too small.
    """
    _check_sizes(size, num_slices)
    grid, phase_ed, phase_es = _draw_geometry(rng, size, num_slices)
    heart = _draw_heart(rng, grid, phase_ed)
    thorax = _draw_thorax(rng, grid, heart, phase_ed)
    brightness = _draw_brightness(rng)
    shading = _draw_shading(rng, grid, heart)
    noise, gain = rng.uniform(0.015, 0.04), rng.uniform(130, 420)

    def frame(name: str, phase: _Phase) -> PhantomFrame:
        clean = _expose(grid, heart, phase, thorax, brightness) * shading
        image = gain * _add_rician_noise(rng, clean, noise)
        return PhantomFrame(
            image=np.clip(np.rint(image), 0, np.iinfo(np.int16).max).astype(np.int16),
            label=_draw_label(grid, heart, phase),
            spacing=grid.spacing,
            phase=name,
        )

    return frame("ED", phase_ed), frame("ES", phase_es)


def _check_sizes(size: int, num_slices: int | None) -> None:
    check_at_least("size", size, _MIN_SIZE, " voxels")
    if num_slices is not None and num_slices < _MIN_SLICES:
        raise ValueError(f"num_slices must be None or at least {_MIN_SLICES}, got {num_slices}.")


# What a case is like ----------------------------------------------------------------------------


def _draw_geometry(
    rng: np.random.Generator, size: int, num_slices: int | None
) -> tuple[_Grid, _Phase, _Phase]:
    nx, ny = (round(size * rng.uniform(0.875, 1.125)) for _ in range(2))
    in_plane, thickness = round(rng.uniform(1.2, 1.8), 3), round(rng.uniform(5, 10), 2)
    scale = min(1.0, min(nx, ny) * in_plane / 180) * rng.uniform(0.9, 1.1)

    crossed = math.ceil(scale * rng.uniform(65, 90) / thickness)
    if num_slices is None:
        num_slices = int(np.clip(crossed + rng.integers(2, 4), 8, 12))
    crossed = min(crossed, num_slices - 2)
    above = int(rng.integers(1, num_slices - crossed))
    base = thickness * (above - rng.uniform(0.2, 0.8))
    apex = thickness * (above + crossed - 1 + rng.uniform(0.3, 0.8))

    ed = _Phase(
        base=base,
        apex=apex,
        endo=scale * rng.uniform(20, 28),
        wall=scale * rng.uniform(7, 11),
        rv_width=scale * rng.uniform(20, 32),
        rv_height=scale * rng.uniform(33, 42),
    )
    endo = ed.endo * rng.uniform(0.62, 0.82)
    ring = (ed.epi**2 - ed.endo**2) * rng.uniform(1.0, 1.15)
    rv = rng.uniform(0.65, 0.85)
    es = _Phase(
        base=base + (apex - base) * rng.uniform(0.06, 0.18),
        apex=apex,
        endo=endo,
        wall=math.sqrt(endo**2 + ring) - endo,  # Muscle keeps its volume, so the wall thickens.
        rv_width=ed.rv_width * rv,
        rv_height=ed.rv_height * (1 + rv) / 2,
    )
    return _Grid((nx, ny, num_slices), (in_plane, in_plane, thickness)), ed, es


def _draw_heart(rng: np.random.Generator, grid: _Grid, ed: _Phase) -> _Heart:
    septum = math.pi + rng.normal(0, 0.45)
    # The pair of ventricles, not the left one alone, sits near the middle.
    off_x, off_y = rng.uniform(-0.06, 0.06, 2) * grid.extent
    scale = ed.endo / 24
    return _Heart(
        centre=_beside((off_x, off_y), septum + math.pi, ed.rv_width / 2),
        tilt=(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)),
        slice_shift=rng.normal(0, 0.8, (grid.shape[2], 2)).astype(np.float32),
        septum=septum,
        outline=tuple(
            (order, rng.uniform(0, most), rng.uniform(0, 2 * math.pi))
            for order, most in ((2, 0.09), (3, 0.03), (4, 0.015))
        ),
        skew=rng.uniform(-0.25, 0.25),
        thick_side=rng.uniform(0, 2 * math.pi),
        papillary=tuple(
            (
                septum + math.pi + side * rng.uniform(0.7, 1.2),
                scale * rng.uniform(3.0, 4.5),
                rng.uniform(0.6, 0.8),
            )
            for side in (-1, 1)
        ),
        trabeculae=rng.uniform([0.1, -0.9, 0.1], [1.0, 0.9, 0.9], (24, 3)).astype(np.float32),
        fat_side=septum + rng.normal(0, 0.8),
        fat=rng.uniform(2, 7),
    )


def _draw_brightness(rng: np.random.Generator) -> FloatArray:
    """(tissue,) brightness relative to the left ventricle's blood."""
    myocardium = rng.uniform(0.3, 0.44)
    brightness = {
        _Tissue.AIR: 0.02,
        _Tissue.FAT: rng.uniform(0.7, 1.2),
        _Tissue.MUSCLE: rng.uniform(0.15, 0.32),
        _Tissue.LUNG: rng.uniform(0.06, 0.16),
        _Tissue.LIVER: rng.uniform(0.3, 0.6),
        _Tissue.STOMACH: rng.uniform(0.5, 1.1),
        _Tissue.VESSEL: rng.uniform(0.85, 1.1),
        _Tissue.HEART_FAT: rng.uniform(0.5, 0.8),
        _Tissue.RV_WALL: myocardium * rng.uniform(0.9, 1.1),
        _Tissue.RV_BLOOD: rng.uniform(0.84, 1.0),
        _Tissue.TRABECULA: rng.uniform(0.55, 0.8),
        _Tissue.MYOCARDIUM: myocardium,
        _Tissue.LV_BLOOD: 1.0,
        _Tissue.PAPILLARY: myocardium * rng.uniform(1.0, 1.2),
    }
    return np.array([brightness[tissue] for tissue in _Tissue], np.float32)


def _draw_thorax(
    rng: np.random.Generator, grid: _Grid, heart: _Heart, ed: _Phase
) -> list[TissueArray]:
    """Tissue around the heart, one oversampled (x, y) array per slice; it does not beat."""
    unit = ed.epi
    x, y = grid.axes(_OVERSAMPLING)

    # The right ventricle lies close behind the chest wall.
    body_x, body_y = unit * rng.uniform([2.8, 3.2], [3.8, 4.5])
    fat, chest_wall = rng.uniform(4, 12), rng.uniform(3, 8)
    front = unit + ed.rv_width + fat + chest_wall + rng.uniform(2, 14)
    body_centre = _beside(heart.centre, heart.septum, front - body_x)
    turn = heart.septum - math.pi + rng.uniform(-0.15, 0.15)
    rho, angle = _elliptic(x, y, body_centre, (body_x, body_y), turn)
    depth = (1 - rho) * np.float32(min(body_x, body_y))
    rim = fat * (1 + 0.5 * np.cos(angle - rng.uniform(0, 2 * math.pi)))
    inside = depth > rim + chest_wall

    lateral = heart.septum + math.pi + rng.uniform(-0.6, 0.6)
    lung_centre = _beside(heart.centre, lateral, 1.2 * unit)
    lung_x, lung_y = unit * rng.uniform(1.6, 2.3, 2)
    lung_rho, _ = _elliptic(x, y, lung_centre, (lung_x, lung_y), 0)
    lung_vessels = np.column_stack(  # Position, drift per mm along z, radius.
        [
            lung_centre + rng.uniform(-1.2, 1.2, (40, 2)) * (lung_x, lung_y),
            rng.normal(0, 0.4, (40, 2)),
            rng.gamma(4, 0.5, 40),
        ]
    )
    dome_x = heart.centre[0] + unit * rng.uniform(-0.8, 0.4)
    dome_y = heart.centre[1] + unit * rng.uniform(1.0, 1.4)
    dome_rise, dome_bend = rng.uniform(0, 0.2), rng.uniform(0.1, 0.4) / unit
    stomach_centre = _beside((dome_x, dome_y), rng.uniform(0.3, 1.2), 1.1 * unit)
    stomach_radius, stomach_wall = unit * rng.uniform(0.4, 0.7), rng.uniform(2, 5)
    # The aorta is the hard one: a disc as bright as the cavity in a ring as dark as its muscle.
    aorta_centre = _beside(heart.centre, rng.uniform(0.5, 1.3), unit * rng.uniform(1.5, 1.8))
    aorta_radius, aorta_wall = unit * rng.uniform(0.28, 0.42), rng.uniform(1.5, 4)

    grain = 5 * _OVERSAMPLING / grid.spacing[0]
    clutter = smooth_noise(rng, (grid.shape[2], *rho.shape), (0.7, grain, grain))

    slices = []
    for z, noise in zip(grid.heights, clutter, strict=True):
        tissue = np.full(rho.shape, _Tissue.MUSCLE, np.uint8)
        tissue[noise > 1.5] = _Tissue.FAT
        tissue[noise < -1.2] = _Tissue.LIVER
        tissue[inside & (lung_rho + 0.05 * noise < 1)] = _Tissue.LUNG
        below = inside & (y > dome_y - dome_rise * z + dome_bend * (x - dome_x) ** 2)
        tissue[below] = _Tissue.LIVER
        tissue[below & (noise > 1.5)] = _Tissue.FAT
        tissue[below & (noise < -1.5)] = _Tissue.MUSCLE
        stomach = _distance(x, y, stomach_centre) - stomach_radius
        tissue[below & (stomach < stomach_wall)] = _Tissue.MUSCLE
        tissue[below & (stomach < 0)] = _Tissue.STOMACH
        vessels = np.zeros_like(inside)
        for px, py, dx, dy, radius in lung_vessels:
            vessels |= _distance(x, y, (px + dx * z, py + dy * z)) < radius
        tissue[vessels & ((tissue == _Tissue.LUNG) | (tissue == _Tissue.LIVER))] = _Tissue.VESSEL
        aorta = _distance(x, y, aorta_centre) - aorta_radius
        tissue[inside & (aorta < aorta_wall)] = _Tissue.MUSCLE
        tissue[inside & (aorta < 0)] = _Tissue.VESSEL
        tissue[depth < rim] = _Tissue.FAT
        tissue[depth < 0] = _Tissue.AIR
        slices.append(tissue)
    return slices


def _draw_shading(rng: np.random.Generator, grid: _Grid, heart: _Heart) -> FloatArray:
    """(x, y, slices) smooth factor: the coil's reach times the unevenness of tissue and flow.

    Both frames share it, as those of a cine series do.
    """
    near = max(grid.extent) * rng.uniform(0.6, 1.0)
    coil = _beside(heart.centre, rng.uniform(0, 2 * math.pi), 0.4 * near)
    reach = np.exp(-0.5 * (_distance(*grid.axes(), coil) / np.float32(near)) ** 2)
    reach += np.float32(rng.uniform(0.5, 0.9))
    reach /= reach.mean()
    voxel = grid.spacing[0]
    coarse = smooth_noise(rng, grid.shape, (12 / voxel, 12 / voxel, 1))
    fine = smooth_noise(rng, grid.shape, (2.5 / voxel, 2.5 / voxel, 0.4))
    uneven = np.exp(rng.uniform(0.02, 0.06) * coarse + rng.uniform(0.03, 0.08) * fine)
    return np.asarray(reach[..., None] * uneven, np.float32)


# Geometry ---------------------------------------------------------------------------------------


def _beside(centre: Point, angle: float, distance: float) -> Point:
    return centre[0] + distance * math.cos(angle), centre[1] + distance * math.sin(angle)


def _turned(x: FloatArray, y: FloatArray, centre: Point, turn: float) -> tuple[Any, Any]:
    """Coordinates around `centre` along the direction `turn` and across it."""
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    return dx * cos + dy * sin, dy * cos - dx * sin


def _distance(x: FloatArray, y: FloatArray, centre: Point) -> FloatArray:
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    return np.asarray(np.hypot(dx, dy), np.float32)


def _elliptic(
    x: FloatArray, y: FloatArray, centre: Point, semi_axes: Point, turn: float
) -> tuple[FloatArray, FloatArray]:
    """(radius, angle) in the ellipse's own coordinates; its border has radius 1."""
    along, across = _turned(x, y, centre, turn)
    along, across = along / np.float32(semi_axes[0]), across / np.float32(semi_axes[1])
    return np.hypot(along, across), np.arctan2(across, along)


def _left_profile(share: float) -> float:
    """Relative radius of the left ventricle, base (0) to apex (1); widest a sixth of the way."""
    return math.sqrt(max(0.0, 1 - (abs(share - 0.16) / 0.84) ** 2.3))


def _right_profile(share: float) -> float:
    """Relative extent of the right ventricle, which ends before the left one."""
    return math.pow(max(0.0, 1 - (share / 0.88) ** 1.4), 0.7)


def _paint_heart(
    tissue: TissueArray,
    x: FloatArray,
    y: FloatArray,
    z: float,
    shift: FloatArray,
    heart: _Heart,
    phase: _Phase,
) -> TissueArray:
    """A copy of `tissue` (x, y) with the heart's cut at height `z` painted over it."""
    tissue = tissue.copy()
    share = (z - phase.base) / (phase.apex - phase.base)
    if share >= 1:
        return tissue
    centre = (
        heart.centre[0] + heart.tilt[0] * z + float(shift[0]),
        heart.centre[1] + heart.tilt[1] * z + float(shift[1]),
    )
    along, across = _turned(x, y, centre, heart.septum)
    radius, angle = np.hypot(along, across), np.arctan2(across, along) + heart.septum
    outline = np.ones_like(radius)
    for order, amplitude, start in heart.outline:
        outline += amplitude * np.cos(order * angle - start)
    wall = phase.wall * (1 + 0.15 * np.cos(angle - heart.thick_side))

    if share >= 0:
        endo = phase.endo * outline * _left_profile(share / 0.92)
        epi = (phase.endo * outline + wall) * _left_profile(share)
        epi = np.maximum(epi, endo + 0.7 * wall * (endo > 0))
        right = _right_profile(share)
    else:
        # Over the base, the atria and the outflow tract: as bright, but thin-walled and unlabelled.
        fade = max(0.0, 1 - (share * (phase.apex - phase.base) / (1.4 * phase.epi)) ** 2)
        endo = 0.9 * math.sqrt(fade) * phase.endo * outline
        epi = endo + 2 * (endo > 0)
        right = 0.9 * math.sqrt(fade)

    # A blunt ellipse that reaches under the left ventricle, which is painted later and makes a
    # crescent of it.
    middle = 0.6 * float(epi.mean())
    half = 0.4 * float(epi.mean()) + phase.rv_width * right
    height = phase.rv_height * right
    u, v = np.abs(along - middle), np.abs(across - heart.skew * along)

    def within_right(margin: FloatArray | float) -> NDArray[np.bool_]:
        if height == 0:
            return np.zeros(u.shape, bool)
        blunt = (u / (half + margin)) ** 2.3 + (v / (height + margin)) ** 2.3
        return np.asarray(blunt < 1)

    if share < 0:
        tissue[within_right(2)] = _Tissue.MUSCLE
        tissue[within_right(0)] = _Tissue.VESSEL
        tissue[radius < epi] = _Tissue.MUSCLE
        tissue[radius < endo] = _Tissue.VESSEL
        return tissue

    fat = heart.fat * (0.65 + 0.35 * np.cos(angle - heart.fat_side))
    tissue[(radius < epi + fat) | within_right(3 + fat)] = _Tissue.HEART_FAT
    tissue[within_right(3)] = _Tissue.RV_WALL
    cavity = within_right(0)
    tissue[cavity] = _Tissue.RV_BLOOD
    for a, b, depth in heart.trabeculae[np.abs(heart.trabeculae[:, 2] - share) < 0.12]:
        knot = np.hypot(along - (middle + a * half), across - heart.skew * along - b * height)
        tissue[cavity & (knot < 1.5 + 2 * depth)] = _Tissue.TRABECULA
    tissue[radius < epi] = _Tissue.MYOCARDIUM
    cavity = radius < endo
    tissue[cavity] = _Tissue.LV_BLOOD
    for direction, thickness, end in heart.papillary:
        if 0.15 < share < end:
            turned = direction - heart.septum
            reach = 0.68 * phase.endo * _left_profile(share)
            knot = np.hypot(along - reach * math.cos(turned), across - reach * math.sin(turned))
            tissue[cavity & (knot < thickness)] = _Tissue.PAPILLARY
    return tissue


# What the scanner makes of it -------------------------------------------------------------------


def _expose(
    grid: _Grid, heart: _Heart, phase: _Phase, thorax: list[TissueArray], brightness: FloatArray
) -> FloatArray:
    """(x, y, slices) brightness averaged over each voxel, after an in-plane blur."""
    x, y = grid.axes(_OVERSAMPLING)
    nx, ny, num_slices = grid.shape
    within = ((np.arange(_SUBSLICES) + 0.5) / _SUBSLICES - 0.5) * grid.spacing[2]
    image = np.empty(grid.shape, np.float32)
    for k in range(num_slices):
        layers = [
            brightness[_paint_heart(thorax[k], x, y, z, heart.slice_shift[k], heart, phase)]
            for z in grid.heights[k] + within
        ]
        blurred = ndimage.gaussian_filter(np.mean(layers, axis=0), _BLUR * _OVERSAMPLING)
        image[..., k] = blurred.reshape(nx, _OVERSAMPLING, ny, _OVERSAMPLING).mean((1, 3))
    return image


def _add_rician_noise(rng: np.random.Generator, clean: FloatArray, sigma: float) -> FloatArray:
    real, imaginary = (sigma * smooth_noise(rng, clean.shape, (0.4, 0.4, 0)) for _ in range(2))
    return np.asarray(np.hypot(clean + real, imaginary), np.float32)


def _draw_label(grid: _Grid, heart: _Heart, phase: _Phase) -> NDArray[np.uint8]:
    """(x, y, slices) label of the tissue in the middle of each voxel."""
    x, y = grid.axes()
    label = np.zeros(grid.shape, np.uint8)
    empty = np.full(grid.shape[:2], _Tissue.AIR, np.uint8)
    for k, z in enumerate(grid.heights):
        cut = _LABEL_OF[_paint_heart(empty, x, y, z, heart.slice_shift[k], heart, phase)]
        # The crescent's tips are thinner than a voxel, which leaves single voxels there.
        cut[(cut == 1) & ~largest_part(cut == 1)] = 0
        # So may the muscle be, in a heart shrunk to a small field of view.
        cut[ndimage.binary_dilation(cut == 3) & (cut != 3)] = 2
        label[..., k] = cut
    return label


# Files ------------------------------------------------------------------------------------------


def make_acdc17_phantom(
    out_dir: str | os.PathLike[str],
    num_patients: int = 12,
    seed: int = 0,
    size: int = 128,
    num_slices: int | None = None,
    progress: bool = True,
) -> Path:
    """Write generated patients as `out_dir/training/patientNNN`, in ACDC's layout.

    Patient N depends on `seed` and N alone, so a larger phantom contains the smaller one. Each
    folder appears whole or not at all. A second call keeps the patients that are there, and
    finishes what an interrupted call left; hidden folders `.patientNNN.partial-*`, left where a
    process was killed, are never read and may be deleted.

    Args:
        out_dir: made if absent.
        num_patients: patients 1 to this number are written.
        seed: non-negative.
        size: in-plane size in voxels, plus or minus an eighth by case; at least 48.
        num_slices: number of slices, at least 6; None draws 8 to 12 by case.
        progress: show a progress bar.

    Returns:
        `out_dir`, which `acdc17_datalist` takes as it is.

    Raises:
        FileExistsError: if a patient's folder exists and is not of this phantom (other parameters,
            or not generated at all) or lost files. Nothing is written or overwritten then.
        ValueError: if a number is out of range.
    """
    _check_sizes(size, num_slices)
    check_at_least("num_patients", num_patients, 1)
    check_seed(seed)
    out_dir = Path(out_dir).expanduser()
    recipe: Recipe = {"format": _FORMAT, "seed": seed, "size": size, "num_slices": num_slices}
    folders = {
        index: out_dir / "training" / f"patient{index:03d}" for index in range(1, num_patients + 1)
    }

    def write(folder: Path, name: str, rng: np.random.Generator) -> None:
        frames = phantom_heart(rng, size, num_slices)
        _write_patient(folder, name, frames, int(rng.integers(7, 16)))

    write_folders(folders, recipe, _VOLUMES, write, progress)
    return out_dir


def _write_patient(
    folder: Path, name: str, frames: tuple[PhantomFrame, PhantomFrame], es_frame: int
) -> None:
    ed, es = frames
    for number, frame in ((1, ed), (es_frame, es)):
        x, y, z = frame.spacing
        # As ACDC's files: the identity in the coordinates of DICOM and ITK.
        affine = np.diag([-x, -y, z, 1])
        write_volume(folder / f"{name}_frame{number:02d}.nii.gz", frame.image, affine)
        write_volume(folder / f"{name}_frame{number:02d}_gt.nii.gz", frame.label, affine)
    info = {
        "ED": 1,
        "ES": es_frame,
        "Group": "PHANTOM",
        "Height": 170.0,
        "NbFrame": _FRAMES_PER_CYCLE,
        "Weight": 70.0,
    }
    lines = "".join(f"{key}: {value}\n" for key, value in info.items())
    (folder / "Info.cfg").write_text(lines, encoding="utf-8")
