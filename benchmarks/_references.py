"""The maps by SciPy, class by class, as the equations stand: what we measure ourselves against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from _labels import LabelArray
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["FloatArray", "scipy_boundary", "scipy_rrw"]

FloatArray = NDArray[np.float32]


def scipy_rrw(label: LabelArray, classes: int, spacing: Sequence[float] | None) -> FloatArray:
    """Valverde & Tohka, eq. 4: one transform per class, divided by its maximum."""
    out = np.empty((classes, *label.shape), np.float32)
    for c in range(classes):
        inside = label == c
        distance = ndimage.distance_transform_edt(inside, sampling=spacing)
        # An absent class has no distance to divide; it is 1 everywhere.
        out[c] = np.where(inside, -distance / max(distance.max(), 1e-12), 1.0)
    return out


def scipy_boundary(label: LabelArray, classes: int, spacing: Sequence[float] | None) -> FloatArray:
    """Valverde & Tohka, eq. 3: two transforms per class."""
    out = np.zeros((classes, *label.shape), np.float32)
    for c in range(classes):
        inside = label == c
        if inside.any() and not inside.all():
            outer = ndimage.distance_transform_edt(~inside, sampling=spacing)
            inner = ndimage.distance_transform_edt(inside, sampling=spacing)
            out[c] = outer - inner
    return out
