"""Labels to measure on, made from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["LabelArray", "blobs", "nested_heart"]

LabelArray = NDArray[np.uint8]


def blobs(shape: Sequence[int], classes: int, seed: int = 0) -> LabelArray:
    """Smooth noise cut into classes of equal size."""
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, min(shape) / 16)
    levels = np.quantile(smooth, np.arange(1, classes) / classes)
    return np.searchsorted(levels, smooth).astype(np.uint8)


def nested_heart(shape: Sequence[int]) -> LabelArray:
    """A left cavity in its wall beside a right cavity, as ellipsoids in a large background."""
    x, y, z = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True
    )
    left = (x / 0.35) ** 2 + (y / 0.35) ** 2 + (z / 0.7) ** 2
    right = ((x - 0.35) / 0.3) ** 2 + (y / 0.4) ** 2 + (z / 0.6) ** 2
    values = np.zeros(shape, np.uint8)
    values[right < 1] = 1
    values[left < 1] = 2
    values[left < 0.5] = 3
    return values
