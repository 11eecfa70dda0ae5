"""Exact Euclidean distance from every voxel to the nearest voxel of another label.

One transform serves all labels of a volume at once: the distance of a voxel to the nearest voxel
whose label differs from its own is, for every class, the distance *inside* that class. Everything
else in the package (signed distances, maps) is built on it, and only this module knows which
library computes it: ``edt`` on the CPU, plain torch on any other device.

Conventions, the same for both: distances run from voxel centre to voxel centre, so a voxel at a
border has the distance of one spacing, not zero; the edge of the image is not a border; a volume
that holds a single label has no border and gets ``inf``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, cast

import edt
import numpy as np
import torch
from torch import Tensor

__all__ = ["Spacing", "as_spacing", "distance_to_other_label", "signed_distance"]

Spacing: TypeAlias = "float | Sequence[float] | np.ndarray | Tensor | None"
"""Voxel size: one number, one per spatial axis, one row per sample, or None for unit voxels."""

Backend: TypeAlias = Literal["auto", "edt", "torch"]

# Dtypes that torch can hold but hardly compute with.
_BARE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
# Below this many voxels starting threads costs more than it saves.
_SERIAL_VOXELS = 1 << 16
# The torch transform holds about six float32 volumes at once; larger batches go through in parts.
_TORCH_VOXELS = 1 << 26
# Reading back whether the search may stop costs a device synchronisation, so not at every shift.
_SHIFTS_BETWEEN_CHECKS = 16


def as_spacing(spacing: Spacing, batch: int, ndim: int) -> np.ndarray:
    """Bring a spacing to one float64 row per sample.

    Args:
        spacing: None (unit voxels), a number, ``ndim`` numbers, or ``(batch, ndim)`` numbers.
        batch: number of samples.
        ndim: number of spatial axes.

    Returns:
        Array ``(batch, ndim)``.

    Raises:
        ValueError: if the shape does not fit, or a value is not finite and positive.
    """
    if spacing is None:
        return np.ones((batch, ndim))
    values = np.asarray(
        spacing.detach().cpu() if isinstance(spacing, Tensor) else spacing, dtype=np.float64
    )
    if values.shape not in ((), (ndim,), (batch, ndim)):
        raise ValueError(
            f"spacing: expected one number, {ndim} numbers or an array of shape ({batch}, {ndim}), "
            f"got shape {values.shape}"
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"spacing: expected finite positive numbers, got {values.tolist()}")
    return np.broadcast_to(values, (batch, ndim)).copy()


def distance_to_other_label(
    label: Tensor,
    spacing: Spacing = None,
    *,
    backend: Backend = "auto",
    threads: int | None = None,
) -> Tensor:
    """Distance of every voxel to the nearest voxel of the same sample with another label.

    Args:
        label: integer or bool tensor ``(B, *spatial)`` with two or three spatial axes. The values
            are only compared with one another.
        spacing: voxel size, see :func:`as_spacing`. In mm it gives mm; None gives voxels.
        backend: ``"edt"`` (CPU, threaded), ``"torch"`` (any device, stays on it) or ``"auto"``:
            edt for a label on the CPU, torch elsewhere.
        threads: CPU threads for edt; by default torch's own number, one for small volumes.

    Returns:
        float32 tensor like ``label``, on its device; ``inf`` where a sample holds a single label.

    Raises:
        ValueError: on a wrong number of axes, a label that is not integer, or a wrong spacing.
    """
    if torch.compiler.is_compiling():
        return _opaque_distance(label, _plain_numbers(spacing), backend, threads)
    _check_label(label)
    if label.dtype in _BARE_UNSIGNED:
        label = label.to(torch.int64)
    sizes = as_spacing(spacing, label.shape[0], label.ndim - 1)
    if backend == "auto":
        backend = "edt" if label.device.type == "cpu" else "torch"
    if label.numel() == 0:
        return torch.empty(label.shape, dtype=torch.float32, device=label.device)
    if backend == "edt":
        return _edt_distance(label, sizes, threads)
    if backend == "torch":
        per_part = max(1, _TORCH_VOXELS // max(1, label[0].numel()))
        parts = [
            _torch_distance(label[i : i + per_part], sizes[i : i + per_part])
            for i in range(0, label.shape[0], per_part)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    raise ValueError(f"backend: expected 'auto', 'edt' or 'torch', got {backend!r}")


def signed_distance(
    label: Tensor,
    num_classes: int,
    spacing: Spacing = None,
    *,
    backend: Backend = "auto",
    threads: int | None = None,
) -> Tensor:
    """Signed distance to the border of every class: negative inside, positive outside.

    Both sides come from one transform of the two-valued mask, and neither reaches zero: the voxels
    on either side of a border lie one spacing from each other. A class that is absent or fills the
    volume has no border and is 0 throughout.

    Args:
        label: integer tensor ``(B, *spatial)`` of class indices.
        num_classes: number of classes C.
        spacing, backend, threads: as in :func:`distance_to_other_label`.

    Returns:
        float32 tensor ``(B, C, *spatial)``, in the unit of ``spacing`` (voxels if None).
    """
    _check_label(label)
    sizes = as_spacing(spacing, label.shape[0], label.ndim - 1)
    signed = torch.empty(
        (label.shape[0], num_classes, *label.shape[1:]), dtype=torch.float32, device=label.device
    )
    label = label.to(torch.int64)
    for c in range(num_classes):
        inside = label == c
        distance = distance_to_other_label(inside, sizes, backend=backend, threads=threads)
        distance.nan_to_num_(posinf=0.0)
        torch.where(inside, -distance, distance, out=signed[:, c])
    return signed


@torch.library.custom_op("monai_segloss::distance_to_other_label", mutates_args=())
def _opaque_distance(
    label: Tensor, spacing: Sequence[float], backend: str, threads: int | None
) -> Tensor:
    """The distance as one node of a compiled graph, which cannot look into edt."""
    sizes = list(spacing)
    return distance_to_other_label(
        label,
        None if not sizes else sizes[0] if len(sizes) == 1 else sizes,
        backend=cast(Backend, backend),
        threads=threads,
    )


@_opaque_distance.register_fake
def _(label: Tensor, spacing: Sequence[float], backend: str, threads: int | None) -> Tensor:
    return torch.empty(label.shape, dtype=torch.float32, device=label.device)


def _plain_numbers(spacing: Spacing) -> list[float]:
    """A spacing as a compiled graph holds it: none, one number, or one per axis."""
    if spacing is None:
        return []
    if isinstance(spacing, (int, float)):
        return [float(spacing)]
    if isinstance(spacing, Sequence):
        return [float(size) for size in spacing]
    raise ValueError(
        "spacing: expected a number or a sequence of numbers in compiled code, "
        f"got {type(spacing).__name__}"
    )


def _check_label(label: Tensor) -> None:
    if label.ndim not in (3, 4):
        raise ValueError(
            "label: expected (B, *spatial) with two or three spatial axes, "
            f"got shape {tuple(label.shape)}"
        )
    if label.is_floating_point() or label.is_complex():
        raise ValueError(f"label: expected an integer or bool dtype, got {label.dtype}")


def _edt_distance(label: Tensor, sizes: np.ndarray, threads: int | None) -> Tensor:
    voxels = label[0].numel()
    if threads is None:
        threads = torch.get_num_threads() if voxels > _SERIAL_VOXELS else 1
    values = _as_nonzero_unsigned(label.detach().cpu())
    distances = [
        torch.from_numpy(
            edt.edt(value, anisotropy=tuple(size), black_border=False, parallel=threads)
        )
        for value, size in zip(values, sizes, strict=True)
    ]
    # Stacking copies, which one large volume need not pay for.
    out = distances[0].unsqueeze(0) if len(distances) == 1 else torch.stack(distances)
    return out.to(label.device)


def _as_nonzero_unsigned(label: Tensor) -> np.ndarray:
    """The label shifted to start at 1, since edt takes 0 for outside, in the narrowest dtype."""
    if label.dtype == torch.bool:
        return (label.to(torch.uint8) + 1).contiguous().numpy()
    low, high = (int(v) for v in torch.aminmax(label))
    if low >= 0 and high < 255:
        return (label.to(torch.uint8) + 1).contiguous().numpy()
    if high - low < 2**32 - 1:
        return (label.to(torch.int64) - low).contiguous().numpy().astype(np.uint32) + np.uint32(1)
    ranks = torch.unique(label, return_inverse=True)[1]
    return (ranks + 1).contiguous().numpy().astype(np.uint32)


def _torch_distance(label: Tensor, sizes: np.ndarray) -> Tensor:
    """Separable exact transform: squared distances are carried from axis to axis.

    With D the squared distance found along the axes done so far, the next axis gives
    ``min(run(i)^2, min_j (i - j)^2 + D(j))``, where run(i) is the distance along the axis to the
    end of the run of equal labels. No mask is needed to keep j in the run: a j beyond it costs at
    least run(i)^2.
    """
    # The first axis costs O(n), every other O(n^2), so the longest goes first.
    axes = sorted(range(1, label.ndim), key=lambda axis: -label.shape[axis])
    weights = torch.as_tensor(sizes, dtype=torch.float32, device=label.device)
    squared: Tensor | None = None
    for axis in axes:
        weight = weights[:, axis - 1].reshape(-1, *[1] * (label.ndim - 1))
        bound = (_run_distance(label, axis) * weight).square_()
        squared = bound if squared is None else _lower_parabolas(squared, bound, weight, axis)
    assert squared is not None
    return squared.sqrt_()


def _run_distance(label: Tensor, axis: int) -> Tensor:
    """Steps along one axis to the nearest voxel of another label; inf if the line has none."""
    n = label.shape[axis]
    shape = [1] * label.ndim
    shape[axis] = n
    position = torch.arange(n, dtype=torch.float32, device=label.device).reshape(shape)
    start = torch.full(label.shape, -torch.inf, device=label.device)
    changed = label.narrow(axis, 1, n - 1) != label.narrow(axis, 0, n - 1)
    # start[i] = i where a run begins; the voxel before it is the nearest other one on that side.
    start.narrow(axis, 1, n - 1).masked_fill_(changed, 0.0)
    start = (start + position).cummax(axis).values
    end = torch.full(label.shape, torch.inf, device=label.device)
    end.narrow(axis, 0, n - 1).masked_fill_(changed, 0.0)
    end = (end + position).flip(axis).cummin(axis).values.flip(axis)
    return torch.minimum(position - start, end - position) + 1


def _lower_parabolas(squared: Tensor, bound: Tensor, weight: Tensor, axis: int) -> Tensor:
    """min over shifts k of (k weight)^2 + squared shifted by k, starting from ``bound``."""
    n = squared.shape[axis]
    lowest = torch.minimum(bound, squared)
    for k in range(1, n):
        cost = (k * weight).square()
        if k % _SHIFTS_BETWEEN_CHECKS == 0 and bool((cost >= lowest).all()):
            break
        ahead, behind = lowest.narrow(axis, 0, n - k), lowest.narrow(axis, k, n - k)
        torch.minimum(ahead, squared.narrow(axis, k, n - k) + cost, out=ahead)
        torch.minimum(behind, squared.narrow(axis, 0, n - k) + cost, out=behind)
    return lowest
