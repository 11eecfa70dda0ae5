"""What public code for the losses computes, where no package has it, in words of our own.

One-hot, softmax, sums, torch.topk; for the losses that need distances, SciPy's transform on the
CPU inside forward, class by class. Functions of (logits, target), the target a class index
``(B, 1, *spatial)`` or, for the binary ones, channels of 0 and 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from _labels import LabelArray
from _references import FloatArray, scipy_boundary, scipy_rrw
from scipy import ndimage
from torch import Tensor

__all__ = [
    "Loss",
    "active_boundary",
    "asymmetric_similarity",
    "balanced_cross_entropy",
    "border_weight",
    "boundary",
    "chan_vese",
    "clamped_balanced",
    "combo",
    "cross_entropy_times",
    "dice_topk",
    "distance_penalty_weight",
    "exp_log",
    "generalized_dice",
    "hausdorff_one_sided",
    "jaccard",
    "non_adjacency",
    "penalty_generalized_dice",
    "region_wise",
    "region_wise_hausdorff",
    "rrw_weight",
    "sensitivity_specificity",
    "topk",
]

Loss = Callable[[Tensor, Tensor], Tensor]


def _one_hot(logits: Tensor, target: Tensor) -> Tensor:
    return torch.zeros_like(logits).scatter_(1, target, 1.0)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _counts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """TP, FP, FN per sample and class, each from a product of its own."""
    p, g = torch.softmax(logits, dim=1), _one_hot(logits, target)
    axes = _spatial(p)
    return (p * g).sum(axes), (p * (1 - g)).sum(axes), ((1 - p) * g).sum(axes)


# --------------------------------------------------------------------------- distribution


def topk(logits: Tensor, target: Tensor, percent: float = 10.0) -> Tensor:
    """Mean of the largest cross-entropies (nnU-Net's arithmetic)."""
    losses = F.cross_entropy(logits, target[:, 0], reduction="none").reshape(-1)
    return torch.topk(losses, int(losses.numel() * percent / 100), sorted=False).values.mean()


def balanced_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """HED: a weight tensor handed to torch's binary cross-entropy; sigmoid, binary channels."""
    off = 1 - target.mean(_spatial(target), keepdim=True)
    weight = torch.where(target > 0, off, 1 - off)
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight)


def clamped_balanced(beta: float) -> Loss:
    """Class by class after a softmax, with the logarithms of clamped probabilities."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        p, g = torch.softmax(logits, dim=1).clamp(1e-7, 1 - 1e-7), _one_hot(logits, target)
        entropy = beta * g * torch.log(p) + (1 - beta) * (1 - g) * torch.log(1 - p)
        return -entropy.mean()

    return loss


def cross_entropy_times(weigh: Callable[[LabelArray, int], FloatArray]) -> Loss:
    """Cross-entropy times a weight that SciPy computes from the label in forward, mean."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        labels, classes = target[:, 0].cpu().numpy(), logits.shape[1]
        weight = torch.from_numpy(np.stack([weigh(label, classes) for label in labels]))
        losses = F.cross_entropy(logits, target[:, 0], reduction="none")
        return (losses * weight.to(logits)).mean()

    return loss


def rrw_weight(label: LabelArray, classes: int) -> FloatArray:
    """d / max d of the voxel's own class."""
    found = scipy_rrw(label, classes, None)
    return np.abs(np.take_along_axis(found, label[None].astype(np.int64), 0)[0])


def distance_penalty_weight(label: LabelArray, classes: int) -> FloatArray:
    """1 + max d - d of the voxel's own class (Caliva et al.)."""
    weight = np.ones(label.shape, np.float32)
    for c in range(classes):
        inside = label == c
        distance = ndimage.distance_transform_edt(inside)
        weight += inside * (distance.max() - distance).astype(np.float32)
    return weight


def border_weight(
    label: LabelArray, classes: int, w0: float = 10.0, sigma: float = 5.0
) -> FloatArray:
    """U-Net's weight: a transform per object, the two smallest distances of each voxel."""
    distances: list[FloatArray] = []
    for c in range(1, classes):
        objects, count = ndimage.label(label == c)
        for number in range(1, count + 1):
            distances.append(ndimage.distance_transform_edt(objects != number).astype(np.float32))
    weight = np.ones(label.shape, np.float32)
    if len(distances) > 1:
        first, second = np.sort(np.stack(distances), axis=0)[:2]
        weight += (label == 0) * w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    return weight


# --------------------------------------------------------------------------- region


def sensitivity_specificity(logits: Tensor, target: Tensor, w: float = 0.05) -> Tensor:
    p, g = torch.softmax(logits, dim=1), _one_hot(logits, target)
    axes, error = _spatial(p), (g - p) ** 2
    sensitivity = (error * g).sum(axes) / (g.sum(axes) + 1e-5)
    specificity = (error * (1 - g)).sum(axes) / ((1 - g).sum(axes) + 1e-5)
    return (w * sensitivity + (1 - w) * specificity).mean()


def jaccard(logits: Tensor, target: Tensor) -> Tensor:
    hit, false_positive, false_negative = _counts(logits, target)
    return (1 - (hit + 1e-5) / (hit + false_positive + false_negative + 1e-5)).mean()


def asymmetric_similarity(logits: Tensor, target: Tensor, b: float = 1.5) -> Tensor:
    hit, false_positive, false_negative = _counts(logits, target)
    share = b**2 / (1 + b**2)
    bottom = hit + share * false_negative + (1 - share) * false_positive
    return (1 - (hit + 1e-5) / (bottom + 1e-5)).mean()


def generalized_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Sudre et al., one ratio a sample, by einsum."""
    p, g = torch.softmax(logits, dim=1).flatten(2), _one_hot(logits, target).flatten(2)
    in_label = torch.einsum("bcn->bc", g)
    weight = 1 / in_label**2
    hit = (weight * torch.einsum("bcn,bcn->bc", p, g)).sum(1)
    both = (weight * (torch.einsum("bcn->bc", p) + in_label)).sum(1)
    return (1 - (2 * hit + 1e-5) / (both + 1e-5)).mean()


def penalty_generalized_dice(logits: Tensor, target: Tensor, k: float = 2.5) -> Tensor:
    """By einsum, so that no product is written out."""
    p, g = torch.softmax(logits, dim=1).flatten(2), _one_hot(logits, target).flatten(2)
    in_label = torch.einsum("bcn->bc", g)
    weight = 1 / in_label**2
    hit = (weight * torch.einsum("bcn,bcn->bc", p, g)).sum(1)
    both = (weight * (torch.einsum("bcn->bc", p) + in_label)).sum(1)
    dice = (2 * hit + 1e-5) / (both + 1e-5)
    return (1 - dice / (1 + k * (1 - dice))).mean()


# --------------------------------------------------------------------------- boundary


def region_wise(own: float, other: float) -> Loss:
    """Mean of the softmax times a map of two numbers."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        region_wise_map = other + (own - other) * _one_hot(logits, target)
        return (torch.softmax(logits, dim=1) * region_wise_map).mean()

    return loss


def _signed(logits: Tensor, target: Tensor) -> Tensor:
    maps = [scipy_boundary(label, logits.shape[1], None) for label in target[:, 0].cpu().numpy()]
    return torch.from_numpy(np.stack(maps)).to(logits)


def boundary(logits: Tensor, target: Tensor) -> Tensor:
    """Kervadec et al. with the distance on both sides of the border."""
    return (torch.softmax(logits, dim=1) * _signed(logits, target)).mean()


def region_wise_hausdorff(logits: Tensor, target: Tensor) -> Tensor:
    outside = _signed(logits, target).clamp(min=0)
    return (torch.softmax(logits, dim=1) ** 2 * outside**2).mean()


def hausdorff_one_sided(logits: Tensor, target: Tensor) -> Tensor:
    """(p - g)^2 d_G^2 of the foreground."""
    p, g = torch.softmax(logits, dim=1), _one_hot(logits, target)
    return ((p - g) ** 2 * _signed(logits, target) ** 2)[:, 1:].mean()


def chan_vese(logits: Tensor, target: Tensor) -> Tensor:
    """Chen et al.: the length over the voxels that have a next one along every axis."""
    u, v = torch.softmax(logits, dim=1), _one_hot(logits, target)
    squared: Tensor | float = 0.0
    for axis in _spatial(u):
        step = torch.diff(u, dim=axis) ** 2
        for other in _spatial(u):
            if other != axis:
                step = step.narrow(other, 0, step.shape[other] - 1)
        squared = squared + step
    length = torch.sqrt(squared + 1e-8).mean()
    return length + (u * (v - 1) ** 2).mean() + ((1 - u) * v**2).mean()


def active_boundary(logits: Tensor, target: Tensor, ratio: float = 0.01) -> Tensor:
    """Wang et al., 2D: a bound raised by a fifth until few enough voxels lie above it."""
    index = target[:, 0]
    border = torch.zeros_like(index, dtype=torch.bool)
    border[:, :-1] |= index[:, 1:] != index[:, :-1]
    border[:, :, :-1] |= index[:, :, 1:] != index[:, :, :-1]
    away = [ndimage.distance_transform_edt(~b) for b in border.cpu().numpy()]
    distance = torch.from_numpy(np.stack(away)).to(logits)

    with torch.no_grad():
        log_p = torch.log_softmax(logits, dim=1)
        change = torch.zeros_like(distance)
        down = (log_p[:, :, :-1].exp() * (log_p[:, :, :-1] - log_p[:, :, 1:])).sum(1)
        right = (log_p[..., :-1].exp() * (log_p[..., :-1] - log_p[..., 1:])).sum(1)
        change[:, :-1] += down
        change[:, :, :-1] += right
        bound = 1e-5
        while (change > bound).sum() > ratio * change.numel():
            bound *= 1.2
        starts = (change > bound).unsqueeze(1).to(logits)
        dilated = F.conv2d(starts, torch.ones_like(starts[:1, :, :3, :3]), padding=1) > 0
        image, row, column = dilated[:, 0].nonzero().unbind(1)

    center = torch.log_softmax(logits[image, :, row, column], dim=1)
    around = F.pad(logits.detach(), (1, 1, 1, 1), mode="replicate")
    around_distance = F.pad(distance, (1, 1, 1, 1), value=torch.inf)
    steps = [s for s in itertools.product((-1, 0, 1), repeat=2) if any(s)]
    steps.sort(key=lambda step: abs(step[0]) + abs(step[1]))
    divergences, distances = [], []
    for down_by, right_by in steps:
        at = (image, slice(None), row + 1 + down_by, column + 1 + right_by)
        other = torch.log_softmax(around[at], dim=1)
        divergences.append((other.exp() * (other - center)).sum(1))
        distances.append(around_distance[image, row + 1 + down_by, column + 1 + right_by])
    here = distance[image, row, column]
    towards = torch.stack([*distances, here], dim=1).argmin(1)
    moves = towards < len(steps)
    losses = F.cross_entropy(
        torch.stack(divergences, dim=1)[moves],
        towards[moves],
        reduction="none",
        label_smoothing=0.2,
    )
    return (losses * here[moves].clamp(max=20) / 20).mean()


def non_adjacency(forbidden: Sequence[tuple[int, int]]) -> Loss:
    """Ganaye et al.: a convolution with a box, and a product for every pair of classes."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        p = torch.softmax(logits, dim=1)
        classes, dims = p.shape[1], p.ndim - 2
        box = torch.full((classes, 1, *[3] * dims), 1 / 3**dims, device=p.device)
        convolve = F.conv2d if dims == 2 else F.conv3d
        near = convolve(p, box, padding=1, groups=classes)
        terms = [(p[:, i] * near[:, j] + p[:, j] * near[:, i]).mean() for i, j in forbidden]
        return torch.stack(terms).mean() / 2

    return loss


# --------------------------------------------------------------------------- compound


def dice_topk(logits: Tensor, target: Tensor) -> Tensor:
    """nnU-Net's Dice from TP, FP and FN, and its TopK."""
    hit, false_positive, false_negative = _counts(logits, target)
    dice = (2 * hit + 1e-5) / (2 * hit + false_positive + false_negative + 1e-5)
    return (1 - dice).mean() + topk(logits, target)


def combo(softmax: bool) -> Loss:
    """Taghanaki et al. with the logarithms of clamped probabilities."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        p = torch.softmax(logits, dim=1) if softmax else torch.sigmoid(logits)
        g = _one_hot(logits, target) if softmax else target
        inside = p.clamp(1e-7, 1 - 1e-7)
        entropy = -(0.5 * g * torch.log(inside) + 0.5 * (1 - g) * torch.log(1 - inside))
        axes = _spatial(p)
        dice = (2 * (p * g).sum(axes) + 1) / (p.sum(axes) + g.sum(axes) + 1)
        return 0.5 * entropy.mean() - 0.5 * dice.mean()

    return loss


def exp_log(logits: Tensor, target: Tensor) -> Tensor:
    """Wong et al. with the frequencies of the batch at hand."""
    p, g = torch.softmax(logits, dim=1), _one_hot(logits, target)
    axes = _spatial(p)
    dice = (2 * (p * g).sum(axes) + 1) / (p.sum(axes) + g.sum(axes) + 1)
    frequency = g.sum([0, *axes])
    weight = torch.sqrt(frequency.sum() / frequency)[target[:, 0]]
    entropy = F.cross_entropy(logits, target[:, 0], reduction="none")
    return 0.8 * ((-torch.log(dice)) ** 0.3).mean() + 0.2 * (weight * entropy**0.3).mean()
