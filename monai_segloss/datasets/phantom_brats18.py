"""Generated brains with a glioma in BraTS18's folder layout.

A phantom is a brain without its skull: folded cortex, white matter, deep nuclei, ventricles, and an
irregular tumour of oedema around an enhancing rim around a necrotic core. Four modalities see the
same tissue with their own contrast, coil shading and noise. What is not tumour mimics it: vessels
and the choroid plexus are as bright on T1ce as the rim, lesions of the white matter as bright on
FLAIR as oedema, fluid as dark on T1 as necrosis. The labels are exact; they are not an observer's.
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
from monai_segloss.datasets.brats18 import BRATS18_MODALITIES

__all__ = ["PhantomBrain", "make_brats18_phantom", "phantom_brain"]

Mask = NDArray[np.bool_]

_FORMAT = 1  # Raise it when the same seed no longer gives the same arrays.
_MIN_SIZE = 48
_MIN_SLICES = 32
_VOLUMES = 5  # Four modalities and the label.
_SEMI_AXES = (68.0, 86.0, 66.0)  # Of a brain of scale 1, mm.


class _Tissue(IntEnum):
    """What is painted; one table turns it into its label, another into its brightness."""

    FLUID = 0
    GREY = 1
    WHITE = 2
    NUCLEUS = 3
    PLEXUS = 4
    VESSEL = 5
    LESION = 6
    OEDEMA = 7
    RIM = 8
    NECROSIS = 9


_LABEL_OF = np.zeros(len(_Tissue), np.uint8)
_LABEL_OF[_Tissue.NECROSIS] = 1
_LABEL_OF[_Tissue.OEDEMA] = 2
_LABEL_OF[_Tissue.RIM] = 4

# Brightness relative to white matter on T1, in the order of BRATS18_MODALITIES.
_BRIGHTNESS = {
    _Tissue.FLUID: (0.15, 0.25, 0.25, 1.30),
    _Tissue.GREY: (0.72, 0.75, 0.76, 0.75),
    _Tissue.WHITE: (0.60, 1.00, 1.00, 0.55),
    _Tissue.NUCLEUS: (0.66, 0.84, 0.85, 0.62),
    _Tissue.PLEXUS: (0.60, 0.60, 1.50, 0.95),
    _Tissue.VESSEL: (0.45, 0.60, 1.60, 0.40),
    _Tissue.LESION: (1.15, 0.80, 0.80, 0.95),
    _Tissue.OEDEMA: (1.20, 0.70, 0.70, 1.05),
    _Tissue.RIM: (0.95, 0.72, 1.55, 0.90),
    _Tissue.NECROSIS: (0.55, 0.45, 0.48, 1.15),
}


@dataclass(frozen=True)
class PhantomBrain:
    """One patient.

    Attributes:
        images: (4, x, y, z) int16 in the order of `BRATS18_MODALITIES`; 0 outside the brain and
            nowhere inside. Axes lead to the left, to the back and upwards, voxels are 1 mm.
        label: (x, y, z) uint8; 0 background, 1 necrotic core, 2 oedema, 4 enhancing rim.
    """

    images: NDArray[np.int16]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class _Brain:
    """Where a sample lies: lengths are mm of a brain of scale 1."""

    scale: float  # Voxels per mm.
    x: FloatArray  # (x, 1, 1), from the plane between the hemispheres.
    y: FloatArray  # (1, y, 1)
    z: FloatArray  # (1, 1, z)
    mask: Mask
    depth: FloatArray  # Distance to the brain's surface.
    folds: FloatArray  # Noise of unit variance that cortex and surface follow.

    def ellipsoid(
        self, centre: tuple[float, float, float], semi_axes: tuple[float, float, float]
    ) -> FloatArray:
        """Radius in the ellipsoid's own coordinates; its border has radius 1."""
        squares = (
            ((axis - np.float32(c)) / np.float32(a)) ** 2
            for axis, c, a in zip((self.x, self.y, self.z), centre, semi_axes, strict=True)
        )
        return np.asarray(np.sqrt(sum(squares)), np.float32)


def phantom_brain(rng: np.random.Generator, size: int = 80, num_slices: int = 48) -> PhantomBrain:
    """One generated patient.

    Voxels are 1 mm. The brain shrinks to fit a field of view smaller than BraTS's 240 x 240 x 155,
    the tumour somewhat less.

    Args:
        rng: the only source of chance; the same state gives the same arrays.
        size: in-plane size in voxels, at least 48; the official one is 240.
        num_slices: number of slices, at least 32; the official number is 155.

    Raises:
        ValueError: if `size` or `num_slices` is too small.
    """
    _check_sizes(size, num_slices)
    brain = _draw_brain(rng, (size, size, num_slices))
    tissue = _draw_tissue(rng, brain)
    _add_tumour(rng, brain, tissue)
    images = np.stack(
        [_expose(rng, brain, tissue, channel) for channel in range(len(BRATS18_MODALITIES))]
    )
    return PhantomBrain(images, np.where(brain.mask, _LABEL_OF[tissue], 0).astype(np.uint8))


def _check_sizes(size: int, num_slices: int) -> None:
    check_at_least("size", size, _MIN_SIZE, " voxels")
    check_at_least("num_slices", num_slices, _MIN_SLICES)


def _draw_brain(rng: np.random.Generator, shape: tuple[int, int, int]) -> _Brain:
    fit = min(0.42 * shape[0] / _SEMI_AXES[1], 0.45 * shape[2] / _SEMI_AXES[2])
    scale = min(fit, 1.0) * rng.uniform(0.92, 1.04)
    x, y, z = (
        ((np.arange(n) + 0.5 - n / 2) / scale + shift).astype(np.float32)
        for n, shift in zip(shape, rng.uniform(-3, 3, 3), strict=True)
    )
    axes = x[:, None, None], y[None, :, None], z[None, None, :]
    folds = smooth_noise(rng, shape, (3.5 * scale,) * 3)
    a, b, c = np.asarray(_SEMI_AXES) * rng.uniform(0.93, 1.03, 3)
    # Narrower at the front, flatter below.
    width = a * (1 - 0.12 * np.clip(-axes[1] / b, 0, 1))
    height = np.where(axes[2] < 0, 0.85 * c, c)
    rho = np.sqrt((axes[0] / width) ** 2 + (axes[1] / b) ** 2 + (axes[2] / height) ** 2)
    rho = rho + 0.012 * folds
    # The fissure between the hemispheres opens towards the surface.
    rho = rho + 0.12 * np.exp(-np.abs(axes[0]) / 2.5) * (axes[2] > -0.3 * c)
    mask = largest_part(rho < 1)
    depth = ndimage.distance_transform_edt(mask).astype(np.float32) / np.float32(scale)
    return _Brain(scale, *axes, mask, depth, folds)


def _draw_tissue(rng: np.random.Generator, brain: _Brain) -> NDArray[np.uint8]:
    """(x, y, z) tissue of a healthy brain; what it is outside the brain means nothing."""
    x, y, z = brain.x, brain.y, brain.z
    shape, scale = brain.mask.shape, brain.scale
    tissue = np.full(shape, _Tissue.WHITE, np.uint8)
    cortex = 9 + 6 * brain.folds
    tissue[brain.depth < np.maximum(cortex, 3.5)] = _Tissue.GREY
    tissue[(brain.depth < 9) & (brain.folds > 1.3)] = _Tissue.FLUID
    tissue[(np.abs(x) < 1) & (brain.depth < 22) & (z > -20)] = _Tissue.FLUID

    lateral = rng.uniform(7, 11)
    size = rng.uniform(0.8, 1.5)
    for side in (-1, 1):
        nuclei = brain.ellipsoid((side * 1.9 * lateral, -4, -4), (8.0, 15.0, 11.0))
        tissue[nuclei < 1] = _Tissue.NUCLEUS
        # A horn in front and one behind, which lean outwards.
        middle = side * (lateral + 0.012 * (y + 5) ** 2 / 3)
        across, along, up = (x - middle) / (6 * size), (y + 2) / 36, (z - 10) / (14 * size)
        ventricle = np.sqrt(across**2 + along**2 + up**2) + 0.06 * brain.folds < 1
        tissue[ventricle] = _Tissue.FLUID
        plexus = brain.ellipsoid((side * (lateral + 2.5), 18, 6), (3.0, 7.0, 3.0))
        tissue[ventricle & (plexus < 1)] = _Tissue.PLEXUS

    # Tubes run where two fields of noise cross zero.
    first, second = (smooth_noise(rng, shape, (9 * scale,) * 3) for _ in range(2))
    tubes = np.hypot(first, second) < 0.27
    tissue[tubes & (brain.depth < 24)] = _Tissue.VESSEL
    spots = smooth_noise(rng, shape, (2.5 * scale,) * 3)
    tissue[(tissue == _Tissue.WHITE) & (spots > rng.uniform(2.3, 3.0))] = _Tissue.LESION
    return tissue


def _add_tumour(rng: np.random.Generator, brain: _Brain, tissue: NDArray[np.uint8]) -> None:
    """Paint a tumour: the core within a rim within oedema, each connected, all in the brain."""
    shape, scale = brain.mask.shape, brain.scale
    grow = max(1.0, 0.55 / scale) ** 0.5  # Rim and core keep some voxels in a small brain.
    outer = grow * rng.uniform(23, 34)
    inner = outer * rng.uniform(0.5, 0.68)
    rim = max(grow * rng.uniform(2.5, 6), 1.2 / scale)

    side = rng.choice((-1.0, 1.0))
    wanted = brain.ellipsoid(
        (side * rng.uniform(28, 42), rng.uniform(-45, 45), rng.uniform(-10, 30)), (1.0, 1.0, 1.0)
    )
    wanted[brain.depth < 0.85 * inner] = np.inf
    if not np.isfinite(wanted.min()):
        wanted = -brain.depth
    i, j, k = np.unravel_index(wanted.argmin(), shape)
    centre = float(brain.x[i, 0, 0]), float(brain.y[0, j, 0]), float(brain.z[0, 0, k])

    def blob(shift: float, radius: float, roughness: float, grain: float) -> FloatArray:
        stretch = rng.uniform(0.85, 1.15, 3)
        noise = smooth_noise(rng, shape, (grain * radius * scale,) * 3)
        cx, cy, cz = np.asarray(centre) + rng.uniform(-shift, shift, 3)
        ax, ay, az = radius * stretch
        rho = brain.ellipsoid((cx, cy, cz), (ax, ay, az))
        return np.asarray(rho + roughness * noise, np.float32)

    cube = ndimage.generate_binary_structure(3, 3)
    inside = ndimage.binary_erosion(brain.mask, cube)
    core_rho = blob(0, inner, 0.13, 0.35)
    core = largest_part((core_rho < 1) & ndimage.binary_erosion(inside, cube))
    # The rim is thick here and thin there, and at least a voxel wide.
    width = rim / inner * (1 + 0.5 * smooth_noise(rng, shape, (0.3 * inner * scale,) * 3))
    width = np.minimum(width, 0.5)
    necrosis = largest_part((core_rho < 1 - width) & ndimage.binary_erosion(core, cube))
    spread = blob(0.25 * (outer - inner), outer, 0.2, 0.3)
    # Oedema follows white matter and spares cortex and fluid.
    spread = spread + 0.3 * ((tissue == _Tissue.GREY) | (tissue == _Tissue.FLUID))
    around = ndimage.binary_dilation(core, cube)
    oedema = largest_part(inside & ((spread < 1) | around))
    tissue[oedema] = _Tissue.OEDEMA
    tissue[core] = _Tissue.RIM
    tissue[necrosis] = _Tissue.NECROSIS


def _expose(
    rng: np.random.Generator, brain: _Brain, tissue: NDArray[np.uint8], channel: int
) -> NDArray[np.int16]:
    """(x, y, z) one modality: its contrast, seen through blur, texture, shading and noise."""
    shape, scale = brain.mask.shape, brain.scale
    brightness = np.array([_BRIGHTNESS[kind][channel] for kind in _Tissue], np.float32)
    brightness *= rng.uniform(0.93, 1.07, len(_Tissue)).astype(np.float32)
    # A tumour differs more, from patient to patient and within itself.
    sick = tissue >= _Tissue.OEDEMA
    brightness[_Tissue.OEDEMA :] *= np.float32(rng.uniform(0.85, 1.1))
    patches = np.exp(rng.uniform(0.05, 0.18) * smooth_noise(rng, shape, (3 * scale,) * 3) * sick)
    # Else the voxels at the brain's border would darken.
    weight = ndimage.gaussian_filter(brain.mask.astype(np.float32), 0.5)
    clean = ndimage.gaussian_filter(brightness[tissue] * patches * brain.mask, 0.5)
    clean /= np.maximum(weight, 0.1)
    coarse = smooth_noise(rng, shape, (30 * scale,) * 3)
    fine = smooth_noise(rng, shape, (max(1.5 * scale, 0.6),) * 3)
    clean *= np.exp(rng.uniform(0.02, 0.06) * coarse + rng.uniform(0.02, 0.05) * fine)
    noise = rng.uniform(0.03, 0.07) * smooth_noise(rng, shape, (0.4, 0.4, 0.4))
    image = np.rint(rng.uniform(200, 600) * (clean + noise))
    return np.where(brain.mask, np.clip(image, 1, np.iinfo(np.int16).max), 0).astype(np.int16)


# Files ------------------------------------------------------------------------------------------


def make_brats18_phantom(
    out_dir: str | os.PathLike[str],
    num_patients: int = 12,
    seed: int = 0,
    size: int = 80,
    num_slices: int = 48,
    progress: bool = True,
) -> Path:
    """Write generated high-grade patients in BraTS18's layout.

    They are `out_dir/MICCAI_BraTS_2018_Data_Training/HGG/Brats18_PHANTOM_NNN_1`. Patient N depends
    on `seed` and N alone, so a larger phantom contains the smaller one. Each folder appears whole
    or not at all. A second call keeps the patients that are there, and finishes what an interrupted
    call left; hidden folders `.Brats18_PHANTOM_NNN_1.partial-*`, left where a process was killed,
    are never read and may be deleted.

    Args:
        out_dir: made if absent.
        num_patients: patients 1 to this number are written.
        seed: non-negative.
        size: in-plane size in voxels of 1 mm, at least 48; the official one is 240.
        num_slices: number of slices, at least 32; the official number is 155.
        progress: show a progress bar.

    Returns:
        `out_dir`, which `brats18_datalist` takes as it is.

    Raises:
        FileExistsError: if a patient's folder exists and is not of this phantom (other parameters,
            or not generated at all) or lost files. Nothing is written or overwritten then.
        ValueError: if a number is out of range.
    """
    _check_sizes(size, num_slices)
    check_at_least("num_patients", num_patients, 1)
    check_seed(seed)
    out_dir = Path(out_dir).expanduser()
    grade = out_dir / "MICCAI_BraTS_2018_Data_Training" / "HGG"
    folders = {n: grade / f"Brats18_PHANTOM_{n:03d}_1" for n in range(1, num_patients + 1)}
    recipe: Recipe = {"format": _FORMAT, "seed": seed, "size": size, "num_slices": num_slices}

    def write(folder: Path, name: str, rng: np.random.Generator) -> None:
        patient = phantom_brain(rng, size, num_slices)
        # As BraTS's files: to the left, to the back, upwards.
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        affine[1, 3] = size - 1
        for modality, image in zip(BRATS18_MODALITIES, patient.images, strict=True):
            write_volume(folder / f"{name}_{modality}.nii.gz", image, affine)
        write_volume(folder / f"{name}_seg.nii.gz", patient.label, affine)

    write_folders(folders, recipe, _VOLUMES, write, progress)
    return out_dir
