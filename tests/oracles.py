"""What the package should give, once more: plain float64 NumPy, slow, written from the papers.

Arrays here are one sample without channel, ``(*spatial)``, for a label and ``(C, *spatial)`` for
a map or probabilities; the losses take a batch. Nothing here imports the package. Sources:

* V&T: Valverde & Tohka, Region-wise loss for biomedical image segmentation, 2022.
* Caliva et al., Distance map loss penalty term for semantic segmentation, 2019.
* Ronneberger et al., U-Net, 2015.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
Spacing = float | Sequence[float] | None

# --------------------------------------------------------------------------- inputs


def blobs(rng: np.random.Generator, shape: Sequence[int], classes: int) -> Array:
    """A label of smooth regions in which every class occurs."""
    while True:
        noise = rng.normal(size=(classes, *shape))
        smooth = [ndimage.gaussian_filter(channel, min(shape) / 8) for channel in noise]
        label = np.argmax([s / s.std() for s in smooth], axis=0)
        if len(np.unique(label)) == classes:
            return label


def label_volumes(max_classes: int = 4, max_side: int = 5) -> st.SearchStrategy[Array]:
    """Hypothesis: any small 2D or 3D label, single-voxel axes and single classes included."""
    return st.integers(1, max_classes).flatmap(
        lambda classes: hnp.arrays(
            np.int64,
            hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=max_side),
            elements=st.integers(0, classes - 1),
        )
    )


def spacings() -> st.SearchStrategy[list[float]]:
    """Hypothesis: three voxel sizes; a 2D label takes the first two."""
    return st.lists(st.floats(0.2, 5.0), min_size=3, max_size=3)


def one_hot(label: Array, classes: int) -> Array:
    """``(*spatial)`` -> float64 ``(C, *spatial)``."""
    return np.stack([label == c for c in range(classes)]).astype(np.float64)


# --------------------------------------------------------------------------- distances


def distance_to(points: Array, spacing: Spacing = None) -> Array:
    """Distance of every voxel centre to the nearest voxel centre in a mask; inf if it is empty."""
    size = np.broadcast_to(1.0 if spacing is None else np.asarray(spacing, float), points.ndim)
    here = np.argwhere(np.ones(points.shape, bool)) * size
    there = np.argwhere(points) * size
    if len(there) == 0:
        return np.full(points.shape, np.inf)
    pairs = np.sqrt(((here[:, None] - there[None]) ** 2).sum(-1))
    nearest: Array = pairs.min(1).reshape(points.shape)
    return nearest


def distance_to_other_label(label: Array, spacing: Spacing = None) -> Array:
    """Distance of every voxel to the nearest voxel of another label."""
    out = np.full(label.shape, np.inf)
    for value in np.unique(label):
        out = np.where(label == value, distance_to(label != value, spacing), out)
    return out


def signed_distance(label: Array, classes: int, spacing: Spacing = None) -> Array:
    """V&T eq. 3: minus the distance inside a class, plus outside; 0 without a border."""
    out = np.zeros((classes, *label.shape))
    for c in range(classes):
        mask = label == c
        if mask.any() and not mask.all():
            out[c] = np.where(mask, -distance_to(~mask, spacing), distance_to(mask, spacing))
    return out


def class_maximum(values: Array, label: Array) -> Array:
    """The largest value among the voxels of the same class."""
    out = np.zeros(values.shape)
    for c in np.unique(label):
        out[label == c] = values[label == c].max()
    return out


# --------------------------------------------------------------------------- maps, all (C, ...)


def rrw(label: Array, classes: int, spacing: Spacing = None) -> Array:
    """V&T eq. 4: -d / max d on the true class, 1 off it; a class without border is -1."""
    distance = distance_to_other_label(label, spacing)
    if np.isinf(distance).any():
        distance = np.ones(label.shape)
    inside = -distance / class_maximum(distance, label)
    return np.stack([np.where(label == c, inside, 1.0) for c in range(classes)])


def boundary(
    label: Array, classes: int, spacing: Spacing = None, inside: str = "symmetric"
) -> Array:
    """V&T eq. 3, or with -(d - one voxel) inside (Kervadec et al. 2019), one voxel its least
    side."""
    signed = signed_distance(label, classes, spacing)
    if inside == "shifted":
        step = 1.0 if spacing is None else float(np.min(spacing))
        signed = np.where(signed < 0, signed + step, signed)
    return signed


def active_contour(label: Array, classes: int, spacing: Spacing = None) -> Array:
    """V&T eq. 17: 1 - g."""
    return 1 - one_hot(label, classes)


def non_euclidean(label: Array, classes: int, spacing: Spacing = None) -> Array:
    """V&T eq. 29: -1 on the true class, 1 off it."""
    return 1 - 2 * one_hot(label, classes)


def hausdorff(label: Array, classes: int, spacing: Spacing = None, alpha: float = 2.0) -> Array:
    """V&T eq. 25: d^alpha outside a class, 0 inside; an absent class has no distance and is 0."""
    out = np.zeros((classes, *label.shape))
    for c in np.unique(label):
        out[c] = distance_to(label == c, spacing) ** alpha
    return out


def distance_penalty_weight(label: Array, classes: int, spacing: Spacing = None) -> Array:
    """Caliva et al.: Phi = max d - d, class by class; 0 without a border."""
    distance = distance_to_other_label(label, spacing)
    if np.isinf(distance).any():
        return np.zeros(label.shape)
    return class_maximum(distance, label) - distance


def distance_penalty(label: Array, classes: int, spacing: Spacing = None) -> Array:
    """A weight as a rectified map: -w on the true class, 0 off it."""
    return -distance_penalty_weight(label, classes, spacing) * one_hot(label, classes)


def face_components(label: Array) -> Array:
    """Connected components (by faces) of every class but 0, numbered from 1: a flood fill."""
    out = np.zeros(label.shape, dtype=np.int64)
    number = 0
    for seed in np.argwhere(label > 0):
        if out[tuple(seed)]:
            continue
        number += 1
        todo = [tuple(seed)]
        while todo:
            voxel = todo.pop()
            inside = all(0 <= i < n for i, n in zip(voxel, label.shape, strict=True))
            if not inside or out[voxel] or label[voxel] != label[tuple(seed)]:
                continue
            out[voxel] = number
            for axis, step in itertools.product(range(label.ndim), (-1, 1)):
                todo.append(tuple(i + step * (a == axis) for a, i in enumerate(voxel)))
    return out


def border_weight(
    label: Array,
    classes: int,
    spacing: Spacing = None,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weight: Sequence[float] | None = None,
    instances: Array | None = None,
) -> Array:
    """Ronneberger et al. eq. 2: w_c + w0 exp(-(d1 + d2)^2 / 2 sigma^2), the term on background."""
    objects = face_components(label) if instances is None else instances
    weight = np.asarray([1.0] * classes if class_weight is None else class_weight, float)[label]
    to_each = [distance_to(objects == i, spacing) for i in np.unique(objects[objects > 0])]
    if len(to_each) >= 2:
        first, second = np.sort(to_each, axis=0)[:2]
        term = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
        weight = weight + np.where(label == 0, term, 0.0)
    return weight


def border(label: Array, classes: int, spacing: Spacing = None, **options: Any) -> Array:
    """A weight as a rectified map: -w on the true class, 0 off it."""
    return -border_weight(label, classes, spacing, **options) * one_hot(label, classes)


MAPS: dict[str, Callable[..., Array]] = {
    "rrw": rrw,
    "boundary": boundary,
    "active_contour": active_contour,
    "hausdorff": hausdorff,
    "non_euclidean": non_euclidean,
    "distance_penalty": distance_penalty,
    "border": border,
}

COMPACT = ("rrw", "active_contour", "non_euclidean", "distance_penalty", "border")
"""Kinds that one value per voxel describes; exactly the rectified ones."""

WEIGHTS = ("distance_penalty", "border")
"""Compact kinds whose one value is a positive weight."""


def region_wise_map(
    kind: str,
    label: Array,
    classes: int,
    spacing: Spacing = None,
    ignored: Array | None = None,
    **options: Any,
) -> Array:
    """Dense map of a kind; ignored voxels are 0 and, for distances, a region of their own (for
    ``border``, background)."""
    if ignored is None:
        return MAPS[kind](label, classes, spacing, **options)
    if kind == "border":
        dense = border(np.where(ignored, 0, label), classes, spacing, **options)
    else:
        region = np.where(ignored, classes, label)
        dense = MAPS[kind](region, classes + 1, spacing, **options)[:classes]
    return np.where(ignored, 0.0, dense)


def multi_label_map(kind: str, channels: Array, spacing: Spacing = None, **options: Any) -> Array:
    """Every channel a binary problem of its own: the foreground channel of its map."""
    return np.stack([MAPS[kind](c.astype(int), 2, spacing, **options)[1] for c in channels])


# --------------------------------------------------------------------------- losses, on batches


def softmax(logits: Array) -> Array:
    """Over axis 1."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    normalised: Array = powers / powers.sum(1, keepdims=True)
    return normalised


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


def region_wise_values(
    p: Array,
    z: Array,
    label: Array,
    *,
    power: int = 1,
    include_background: bool = True,
    weight: float | Sequence[float] | None = None,
    ignored: Array | None = None,
) -> Array:
    """V&T eq. 1 before the mean, ``(B, counted classes, *spatial)``: p^power z.

    ``weight`` multiplies a voxel by its true class's (1 for a background that does not count).
    ``label`` and ``ignored`` are ``(B, *spatial)``.
    """
    values = p**power * z
    if not include_background:
        values = values[:, 1:]
    if weight is not None:
        by_class = np.broadcast_to(weight, p.shape[1] - (not include_background))
        if not include_background:
            by_class = np.concatenate([[1.0 if np.ndim(weight) else float(by_class[0])], by_class])
        values = values * by_class[label][:, None]
    if ignored is not None:
        values = np.where(ignored[:, None], 0.0, values)
    return values


def mean_over_counted(values: Array, ignored: Array | None = None) -> float:
    """Mean over samples, counted classes and the voxels that are not ignored."""
    counted = values.size
    if ignored is not None:
        counted = int((~ignored).sum()) * values.shape[1]
    return float(values.sum() / max(counted, 1))


def region_wise_gradient(p: Array, z: Array, power: int = 1) -> Array:
    """V&T eq. 2 over the number of values: d mean(p^power z) / d logits.

    power 1: p_k (z_k - sum_j p_j z_j) / (B C N). In general, p_k times (what stands in the mean
    is f_j = p_j^power z_j, with derivative power p_j^(power-1) z_j).
    """
    derivative = power * p ** (power - 1) * z
    gradient: Array = p * (derivative - (p * derivative).sum(1, keepdims=True)) / p.size
    return gradient
