"""Every loss against its formula, once more in plain float64 NumPy.

The formulas are those of the papers as the classes state them; none is taken from the package's
arithmetic. A case is a loss's own arguments and the function that says what it should give; every
case runs in 2D and 3D, on exclusive classes (softmax), overlapping channels and a single channel
(sigmoid), and with every convention: no background, weights, ignored voxels, all three reductions.
The inputs hold a class that is absent from a sample and one that fills a sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from oracles import Array, blobs, distance_to, one_hot
from torch import nn

from monai_segloss.losses import (
    ActiveBoundaryLoss,
    ActiveContourLoss,
    AsymmetricSimilarityLoss,
    BalancedCrossEntropyLoss,
    ComboLoss,
    CrossEntropyLoss,
    DiceBCELoss,
    DiceFocalLoss,
    DiceTopKLoss,
    ExpLogLoss,
    FocalTverskyLoss,
    HausdorffLoss,
    JaccardLoss,
    LovaszHingeLoss,
    LovaszSoftmaxLoss,
    MapCrossEntropyLoss,
    NonAdjacencyLoss,
    PenaltyGeneralizedDiceLoss,
    SensitivitySpecificityLoss,
    TopKLoss,
    WeightedSumLoss,
    non_adjacent_classes,
)

SHAPES = {"2D": (7, 6), "3D": (4, 5, 4)}
FORMS = ("softmax", "sigmoid", "single")

# --------------------------------------------------------------------------- problems


@dataclass
class Problem:
    """One batch, and what the loss's conventions make of it.

    ``label`` is the class index ``(B, *spatial)`` of exclusive classes; ``g`` the binary channels
    ``(B, C, *spatial)``; ``valid`` is False at ignored voxels, ``(B, 1, *spatial)``.
    """

    form: str
    logits: Array
    label: Array | None
    g: Array
    valid: Array
    first: int
    weight: float | list[float] | None
    arguments: dict[str, Any]

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.g.shape[2:]

    @property
    def p(self) -> Array:
        return (oracles.softmax if self.label is not None else oracles.sigmoid)(self.logits)

    @property
    def log_p(self) -> Array:
        if self.label is None:
            return -np.logaddexp(0, -self.logits)
        return self.logits - np.logaddexp.reduce(self.logits, axis=1, keepdims=True)

    @property
    def log_rest(self) -> Array:
        """log(1 - p)."""
        if self.label is None:
            return -np.logaddexp(0, self.logits)
        everything = np.logaddexp.reduce(self.logits, axis=1, keepdims=True)
        rest = [
            np.logaddexp.reduce(np.delete(self.logits, c, axis=1), axis=1)
            for c in range(self.g.shape[1])
        ]
        return np.stack(rest, axis=1) - everything

    @property
    def channel_weight(self) -> Array:
        """Per counted channel."""
        counted = self.g.shape[1] - self.first
        return np.broadcast_to(1.0 if self.weight is None else self.weight, counted).astype(float)

    def target(self) -> torch.Tensor:
        return torch.as_tensor(self.g if self.label is None else self.label[:, None])


def spread(per_channel: Array, ndim: int) -> Array:
    """``(..., C)`` -> ``(..., C, 1, 1[, 1])``."""
    return per_channel.reshape(*per_channel.shape, *[1] * ndim)


CONVENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-background": {"include_background": False},
    "weights": {"weight": [0.5, 2.0, 3.0]},
    "number": {"weight": 0.25},
    "ignore": {"ignore_index": 2},
    "all": {"include_background": False, "weight": [2.0, 0.5], "ignore_index": 1},
}


def problem(form: str, shape: tuple[int, ...], convention: str, seed: int = 1) -> Problem:
    rng = np.random.default_rng(seed)
    arguments = dict(CONVENTIONS[convention])
    ignore = arguments.get("ignore_index")
    weight = arguments.get("weight")
    first = int(arguments.get("include_background") is False)
    parts = [blobs(rng, shape, 3), blobs(rng, shape, 2), np.ones(shape, int)]
    label = np.stack([*parts, rng.integers(0, 3, shape)] if len(shape) == 2 else parts)
    logits = rng.normal(scale=2.0, size=(len(label), 3, *shape))
    valid = np.ones((len(label), 1, *shape), bool)
    if form == "softmax":
        arguments.update(softmax=True, to_onehot_y=True)
        if ignore is not None:
            valid = (label != ignore)[:, None]
        g = np.stack([one_hot(one, 3) for one in label]) * valid
        return Problem(form, logits, label, g, valid, first, weight, arguments)
    arguments["sigmoid"] = True
    # Channels that overlap and leave gaps; channel 2 absent from sample 1, channel 1 full in 2.
    g = np.stack([one_hot(one, 3) for one in label])
    g[:, 0] = np.stack([blobs(rng, shape, 2) for _ in label])
    g[:, 2] *= rng.random(g[:, 2].shape) < 0.8
    if form == "sigmoid":
        if ignore is not None:
            valid = g[:, ignore : ignore + 1] == 0
        return Problem(form, logits, None, g, valid, first, weight, arguments)
    g = g[:, [1]]
    if isinstance(weight, list):
        weight = arguments["weight"] = weight[:1]
    if ignore is not None:
        arguments["ignore_index"] = 7
        valid = rng.random(g.shape) < 0.8
        g = np.where(valid, g, 7)
    return Problem(form, logits[:, [1]], None, g, valid, 0, weight, arguments)


@dataclass
class Answer:
    none: Array
    mean: float
    sum: float


def over_voxels(x: Problem, values: Array) -> Answer:
    """Values ``(B, counted C, *spatial)``, each channel with its weight, over voxels that count."""
    values = np.where(x.valid, values * spread(x.channel_weight, len(x.spatial)), 0.0)
    count = int(x.valid.sum()) * values.shape[1]
    return Answer(values, float(values.sum()) / count, float(values.sum()))


def over_classes(x: Problem, values: Array) -> Answer:
    """Values ``(B or 1, counted C)``, each with its weight."""
    values = values * x.channel_weight
    return Answer(spread(values, len(x.spatial)), float(values.mean()), float(values.sum()))


def over_samples(x: Problem, values: Array) -> Answer:
    """Values ``(B or 1)``; a weight is one number."""
    assert x.weight is None or isinstance(x.weight, float)
    values = values[:, None] * (1.0 if x.weight is None else x.weight)
    return Answer(spread(values, len(x.spatial)), float(values.mean()), float(values.sum()))


def combine(*terms: tuple[float, Answer]) -> Answer:
    shape = np.broadcast_shapes(*(a.none.shape for _, a in terms))
    none = sum((f * np.broadcast_to(a.none, shape) for f, a in terms), np.zeros(shape))
    return Answer(none, sum(f * a.mean for f, a in terms), sum(f * a.sum for f, a in terms))


def counted(x: Problem) -> tuple[Array, Array]:
    """p and g of the counted channels, 0 at ignored voxels."""
    return np.where(x.valid, x.p, 0.0)[:, x.first :], np.where(x.valid, x.g, 0.0)[:, x.first :]


def totals(x: Problem, values: Array, batch: bool) -> Array:
    """Sums over voxels ``(B, C)``, or over the batch too ``(1, C)``."""
    sums = np.where(x.valid, values, 0.0).reshape(*values.shape[:2], -1).sum(-1)
    return sums.sum(0, keepdims=True) if batch else sums


def soft_counts(x: Problem, batch: bool) -> tuple[Array, Array, Array]:
    p, g = counted(x)
    return totals(x, p * g, batch), totals(x, p * (1 - g), batch), totals(x, g * (1 - p), batch)


# --------------------------------------------------------------------------- distribution

Oracle = Callable[..., Answer]


def true_class(x: Problem) -> tuple[Array, Array, Array]:
    """l at every value, which values count, and the weight of each.

    One value a voxel for exclusive classes, else one a channel (binary cross-entropy).
    """
    if x.label is None:
        loss = -np.where(x.g == 1, x.log_p, x.log_rest)[:, x.first :]
        counts = np.broadcast_to(x.valid, loss.shape)
        return loss, counts, np.broadcast_to(spread(x.channel_weight, len(x.spatial)), loss.shape)
    index = x.label[:, None]
    loss = -np.take_along_axis(x.log_p, index, axis=1)
    counts = x.valid & (index >= x.first)
    weight = np.concatenate([np.ones(x.first), x.channel_weight])[index]
    return loss, counts, weight


def cross_entropy(x: Problem, normalize: str = "weights") -> Answer:
    loss, counts, weight = true_class(x)
    values = np.where(counts, weight * loss, 0.0)
    # One number is a factor of the loss, not a weight of a class.
    by_class = normalize == "weights" and isinstance(x.weight, list)
    by = weight[counts].sum() if by_class else counts.sum()
    return Answer(values, float(values.sum() / by), float(values.sum()))


def balanced(
    x: Problem, beta: float | None = None, form: str = "balanced", batch: bool = False
) -> Answer:
    ndim = len(x.spatial)
    _, g = counted(x)
    voxels = totals(x, np.ones(g.shape), batch)
    share = 1 - totals(x, g, batch) / np.maximum(voxels, 1)
    b = spread(share if beta is None else np.full_like(share, beta), ndim)
    log_p, log_rest = x.log_p[:, x.first :], x.log_rest[:, x.first :]
    negatives = 1 - b if form == "balanced" else 1.0
    return over_voxels(x, -(b * g * log_p + negatives * (1 - g) * log_rest))


def top_k(x: Problem, k: float = 10.0, threshold: float | None = None) -> Answer:
    loss, counts, weight = true_class(x)
    if threshold is not None:
        chosen = counts & (np.exp(-loss) < threshold)
    else:
        order = np.argsort(np.where(counts, -weight * loss, np.inf), axis=None)
        number = max(1, int(counts.sum() * k / 100))
        chosen = np.zeros(loss.size, bool)
        chosen[order[:number]] = True
        chosen = chosen.reshape(loss.shape)
    values = np.where(chosen, weight * loss, 0.0)
    return Answer(values, float(values.sum() / max(chosen.sum(), 1)), float(values.sum()))


def weight_map(
    kind: str, label: Array, classes: int, spacing: Any, ignored: Array | None, **options: Any
) -> Array:
    """The weight of every voxel's true class, ``(*spatial)``."""
    z = oracles.region_wise_map(kind, label, classes, spacing, ignored, **options)
    at_true = np.take_along_axis(z, np.where(label < classes, label, 0)[None], axis=0)[0]
    return -at_true + (1.0 if kind == "distance_penalty" else 0.0)


def map_cross_entropy(
    x: Problem,
    kind: str = "rrw",
    spacing: Any = None,
    map_options: dict[str, Any] | None = None,
) -> Answer:
    loss, counts, weight = true_class(x)
    options = map_options or {}
    ignoring = "ignore_index" in x.arguments
    w = np.zeros(loss.shape)
    for b, c in np.ndindex(loss.shape[:2]):
        if x.label is not None:
            label, classes = x.label[b], x.g.shape[1]
        else:
            label, classes = np.where(x.g[b, c + x.first] == 1, 1, 0), 2
        ignored = ~x.valid[b, 0] if ignoring else None
        w[b, c] = weight_map(kind, label, classes, spacing, ignored, **options)
    values = np.where(counts, w * weight * loss, 0.0)
    return Answer(values, float(values.sum() / counts.sum()), float(values.sum()))


# --------------------------------------------------------------------------- region


def sensitivity_specificity(
    x: Problem, w: float = 0.05, eps: float = 1e-5, batch: bool = False
) -> Answer:
    p, g = counted(x)
    error = (g - p) ** 2
    on = totals(x, error * g, batch) / (totals(x, g, batch) + eps)
    off = totals(x, error * (1 - g), batch) / (totals(x, 1 - g, batch) + eps)
    return over_classes(x, w * on + (1 - w) * off)


def focal_tversky(
    x: Problem,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    power: str = "1/gamma",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
) -> Answer:
    tp, fp, fn = soft_counts(x, batch)
    index = (tp + smooth_nr) / (tp + alpha * fp + beta * fn + smooth_dr)
    return over_classes(x, (1 - index) ** (gamma if power == "gamma" else 1 / gamma))


def jaccard(x: Problem, **options: Any) -> Answer:
    return focal_tversky(x, alpha=1, beta=1, gamma=1, **options)


def asymmetric(x: Problem, b: float = 1.5, **options: Any) -> Answer:
    return focal_tversky(x, 1 / (1 + b**2), b**2 / (1 + b**2), 1, **options)


def penalty_generalized_dice(
    x: Problem,
    k: float = 2.5,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
) -> Answer:
    p, g = counted(x)
    tp, size, predicted = (totals(x, v, batch) for v in (p * g, g, p))
    weight = np.zeros(size.shape)
    for b in range(len(size)):
        present = size[b] > 0
        weight[b, present] = 1 / size[b, present] ** 2
        weight[b, ~present] = weight[b, present].max(initial=0.0)
    score = 2 * (weight * tp).sum(1) + smooth_nr
    score = score / ((weight * (size + predicted)).sum(1) + smooth_dr)
    return over_samples(x, 1 - score / (1 + k * (1 - score)))


def jaccard_of_mistakes(mistakes: Array, positive: Array) -> float:
    """Berman et al. eq. 4: the Jaccard loss of a set of mispredicted voxels."""
    union = (mistakes | positive).sum()
    return float(mistakes.sum() / union) if union else 0.0


def lovasz(errors: Array, positive: Array) -> float:
    """Berman et al. definition 2."""
    total, before = 0.0, 0.0
    mistakes = np.zeros(errors.shape, bool)
    for i in np.argsort(-errors):
        mistakes[i] = True
        now = jaccard_of_mistakes(mistakes, positive)
        total += errors[i] * (now - before)
        before = now
    return total


def by_image(x: Problem, values: Array, per_image: bool) -> list[list[Array]]:
    """Every image's channels, its counted voxels in a row; without ``per_image`` one image."""
    images = [values[b][:, x.valid[b, 0]] for b in range(len(values))]
    return [list(i) for i in (images if per_image else [np.concatenate(images, axis=1)])]


def lovasz_softmax(x: Problem, classes: Any = "present", per_image: bool = False) -> Answer:
    p, g = (values[:, x.first :] for values in (x.p, x.g))
    values = []
    for errors, truth in zip(
        by_image(x, np.abs(g - p), per_image), by_image(x, g, per_image), strict=True
    ):
        terms = []
        for c, (error, positive) in enumerate(zip(errors, truth, strict=True)):
            if classes == "present":
                counts = bool(positive.any())
            else:
                counts = classes == "all" or c + x.first in classes
            if counts:
                terms.append(x.channel_weight[c] * lovasz(error, positive == 1))
        values.append(np.mean(terms) if terms else 0.0)
    none = spread(np.array(values)[:, None], len(x.spatial))
    return Answer(none, float(np.mean(values)), float(np.sum(values)))


def lovasz_hinge(x: Problem, per_image: bool = True) -> Answer:
    g, logits = x.g[:, x.first :], x.logits[:, x.first :]
    hinge = np.maximum(1 - logits * (2 * g - 1), 0)
    values = [
        [lovasz(e, t == 1) for e, t in zip(errors, truth, strict=True)]
        for errors, truth in zip(
            by_image(x, hinge, per_image), by_image(x, g, per_image), strict=True
        )
    ]
    return over_classes(x, np.array(values))


# --------------------------------------------------------------------------- boundary


def border_distance(mask: Array, spacing: Any) -> Array:
    if mask.all() or not mask.any():
        return np.zeros(mask.shape)
    return distance_to(mask, spacing) + distance_to(~mask, spacing)


def hausdorff(
    x: Problem, alpha: float = 2.0, one_sided: bool = False, spacing: Any = None
) -> Answer:
    p, g = counted(x)  # an ignored voxel lies off every class
    values = np.zeros(p.shape)
    for b, c in np.ndindex(p.shape[:2]):
        distance = border_distance(g[b, c] == 1, spacing) ** alpha
        if not one_sided:
            distance = distance + border_distance(p[b, c] > 0.5, spacing) ** alpha
        values[b, c] = (p[b, c] - g[b, c]) ** 2 * distance
    return over_voxels(x, values)


def active_contour(
    x: Problem, lambda_region: float = 1.0, lambda_length: float = 1.0, spacing: Any = None
) -> Answer:
    u, v = x.p[:, x.first :], x.g[:, x.first :]
    size = np.broadcast_to(1.0 if spacing is None else spacing, len(x.spatial))
    squared = np.zeros(u.shape)
    for at in np.ndindex(*u.shape):
        for axis, step in enumerate(size):
            there = list(at)
            there[axis + 2] += 1
            if there[axis + 2] == u.shape[axis + 2]:
                continue
            # A difference with an ignored voxel says nothing.
            valid = x.valid[at[0], 0]
            if valid[tuple(at[2:])] and valid[tuple(there[2:])]:
                squared[at] += ((u[tuple(there)] - u[at]) / step) ** 2
    region = u * (1 - v) ** 2 + (1 - u) * v**2
    return over_voxels(x, lambda_length * np.sqrt(squared + 1e-8) + lambda_region * region)


def all_channels(values: Array, at: tuple[int, ...]) -> Array:
    """``(C)`` of one voxel."""
    column: Array = values.reshape(len(values), -1)[:, np.ravel_multi_index(at, values.shape[1:])]
    return column


def neighbours(at: tuple[int, ...], ndim: int) -> list[tuple[int, ...]]:
    """The 8 or 26 voxels around one, those by faces first; some may lie outside the image."""
    steps = [s for s in itertools.product((-1, 0, 1), repeat=ndim) if any(s)]
    steps.sort(key=lambda s: sum(abs(i) for i in s))
    return [tuple(i + j for i, j in zip(at, s, strict=True)) for s in steps]


def is_inside(at: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(0 <= i < n for i, n in zip(at, shape, strict=True))


def next_voxels(at: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    ahead = [tuple(i + (a == axis) for a, i in enumerate(at)) for axis in range(len(shape))]
    return [a for a in ahead if all(i < n for i, n in zip(a, shape, strict=True))]


def divergence(log_p: Array, log_q: Array) -> float:
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def active_boundary_image(
    log_p: Array,
    label: Array,
    valid: Array,
    ratio: float,
    smoothing: float,
    maximum: float,
    spacing: Any,
) -> tuple[Array, Array]:
    """The loss at every voxel of one image, and which voxels the mean counts.

    As in the authors' code the image's edge is repeated outwards for the divergences, its
    distances are infinite there, and a neighbour as near as the voxel itself is a direction. No
    border runs, and no direction goes, between an ignored voxel and its neighbour; nothing is
    known of its prediction, which is uniform.
    """
    shape = label.shape
    log_p = np.where(valid, log_p, -np.log(len(log_p)))
    values, counts = np.zeros(shape), np.zeros(shape, bool)
    border = np.zeros(shape, bool)
    change = np.zeros(shape)
    for at in np.ndindex(*shape):
        for ahead in next_voxels(at, shape):
            if not (valid[at] and valid[ahead]):
                continue
            border[at] |= label[at] != label[ahead]
            change[at] += divergence(all_channels(log_p, at), all_channels(log_p, ahead))
    budget = max(1, int(ratio * label.size))
    ranked = np.sort(change, axis=None)[::-1]
    bound = max(ranked[budget] if budget < label.size else 0.0, 1e-5)
    predicted = np.zeros(shape, bool)
    for at in np.ndindex(*shape):
        nearby = [at, *(i for i in neighbours(at, label.ndim) if is_inside(i, shape))]
        predicted[at] = valid[at] and any(change[i] > bound for i in nearby)
    if not border.any():
        return values, counts
    distance = distance_to(border, spacing)
    for at in np.argwhere(predicted):
        here = tuple(at)
        around = neighbours(here, label.ndim)
        distances = [distance[i] if is_inside(i, shape) and valid[i] else np.inf for i in around]
        nearest = int(np.argmin(distances))
        if distances[nearest] > distance[here]:
            continue
        own = all_channels(log_p, here)
        repeated = [tuple(np.clip(i, 0, np.array(shape) - 1)) for i in around]
        kl = np.array([divergence(all_channels(log_p, i), own) for i in repeated])
        log_direction = kl - np.logaddexp.reduce(kl)
        truth = np.full(len(around), smoothing / len(around))
        truth[nearest] += 1 - smoothing
        counts[here] = True
        values[here] = -(truth * log_direction).sum() * min(distance[here], maximum) / maximum
    return values, counts


def active_boundary(
    x: Problem,
    boundary_ratio: float = 0.01,
    label_smoothing: float = 0.2,
    max_distance: float = 20.0,
    spacing: Any = None,
) -> Answer:
    own = (boundary_ratio, label_smoothing, max_distance, spacing)
    channels = 1 if x.label is not None else x.g.shape[1] - x.first
    values = np.zeros((len(x.g), channels, *x.spatial))
    counts = np.zeros(values.shape, bool)
    for b, c in np.ndindex(values.shape[:2]):
        if x.label is not None:
            pair = active_boundary_image(x.log_p[b], x.label[b], x.valid[b, 0], *own)
        else:
            at = (b, c + x.first)
            log_p = np.stack([x.log_rest[at], x.log_p[at]])
            pair = active_boundary_image(log_p, x.g[at].astype(int), x.valid[b, 0], *own)
        values[b, c], counts[b, c] = pair
    values = values * (1.0 if x.weight is None else x.weight)
    return Answer(values, float(values.sum() / max(counts.sum(), 1)), float(values.sum()))


def box(at: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(max(i - 1, 0), min(i + 2, n)) for i, n in zip(at, shape, strict=True))


def touching(channels: Array) -> Array:
    """Which of the channels ``(B, C, *spatial)`` share a box of 3 voxels a side."""
    classes, shape = channels.shape[1], channels.shape[2:]
    touch = np.zeros((classes, classes), bool)
    for sample in channels:
        for at in np.ndindex(*shape):
            near = [channel[box(at, shape)].any() for channel in sample]
            here = all_channels(sample, at) > 0
            touch |= np.outer(here, near)
    return touch | touch.T


def non_adjacency(x: Problem, forbidden: Any = None) -> Answer:
    p, g = counted(x)
    if forbidden is None:
        apart = ~touching(g)
        np.fill_diagonal(apart, False)
        ordered = [tuple(pair) for pair in np.argwhere(apart)]
    else:
        both = {(i, j) for i, j in forbidden} | {(j, i) for i, j in forbidden}
        ordered = [(i - x.first, j - x.first) for i, j in sorted(both)]
    near = np.zeros(p.shape)
    for at in np.ndindex(*x.spatial):
        where: Any = (slice(None), slice(None), *box(at, x.spatial))
        axes = tuple(range(2, p.ndim))
        here: Any = (slice(None), slice(None), *at)
        near[here] = p[where].sum(axes) / 3 ** len(x.spatial)
    values = np.zeros(len(p))
    voxels = x.valid.reshape(len(p), -1).sum(1)
    for i, j in ordered:
        values += (p[:, i] * near[:, j]).reshape(len(p), -1).sum(1) / voxels / len(ordered)
    return over_samples(x, values)


# --------------------------------------------------------------------------- compound


def dice_score(x: Problem, smooth_nr: float, smooth_dr: float, batch: bool) -> Array:
    p, g = counted(x)
    above = 2 * totals(x, p * g, batch) + smooth_nr
    score: Array = above / (totals(x, p, batch) + totals(x, g, batch) + smooth_dr)
    return score


def dice(
    x: Problem, smooth_nr: float = 1e-5, smooth_dr: float = 1e-5, batch: bool = False
) -> Answer:
    return over_classes(x, 1 - dice_score(x, smooth_nr, smooth_dr, batch))


def dice_bce(
    x: Problem, lambda_dice: float = 1.0, lambda_bce: float = 1.0, **options: Any
) -> Answer:
    _, g = counted(x)
    bce = -(g * x.log_p[:, x.first :] + (1 - g) * x.log_rest[:, x.first :])
    return combine((lambda_dice, dice(x, **options)), (lambda_bce, over_voxels(x, bce)))


def dice_focal(
    x: Problem,
    gamma: float = 2.0,
    alpha: float | None = None,
    lambda_dice: float = 1.0,
    lambda_focal: float = 1.0,
    **options: Any,
) -> Answer:
    g = x.g
    loss = -np.where(g == 1, x.log_p, x.log_rest)
    focal = (1 - np.exp(-loss)) ** gamma * loss
    if x.label is not None:
        focal = focal * (g == 1)
        if alpha is not None:
            focal = np.concatenate([(1 - alpha) * focal[:, :1], alpha * focal[:, 1:]], axis=1)
    elif alpha is not None:
        focal = focal * np.where(g == 1, alpha, 1 - alpha)
    return combine(
        (lambda_dice, dice(x, **options)), (lambda_focal, over_voxels(x, focal[:, x.first :]))
    )


def dice_top_k(
    x: Problem,
    k: float = 10.0,
    lambda_dice: float = 1.0,
    lambda_topk: float = 1.0,
    **options: Any,
) -> Answer:
    return combine((lambda_dice, dice(x, **options)), (lambda_topk, top_k(x, k)))


def combo(
    x: Problem, alpha: float = 0.5, beta: float = 0.5, smooth: float = 1.0, batch: bool = False
) -> Answer:
    score = over_classes(x, dice_score(x, smooth, smooth, batch))
    return combine((alpha, balanced(x, beta)), (alpha - 1, score))


def exp_log(
    x: Problem,
    w_dice: float = 0.8,
    w_cross: float = 0.2,
    gamma_dice: float = 0.3,
    gamma_cross: float = 0.3,
    class_frequencies: Any = None,
    eps: float = 1.0,
    batch: bool = False,
) -> Answer:
    region = over_classes(x, (-np.log(dice_score(x, eps, eps, batch))) ** gamma_dice)
    loss, counts, weight = true_class(x)
    rarity = np.ones(loss.shape)
    if x.label is not None:
        f = np.array(class_frequencies or [(x.label[x.valid[:, 0]] == c).sum() for c in range(3)])
        rarity = np.sqrt(f.sum() / np.maximum(f, 1e-300))[x.label[:, None]]
    else:
        for c in range(loss.shape[1]):
            truth = x.g[:, c + x.first]
            ones = ((truth == 1) & x.valid[:, 0]).sum()
            zeros = x.valid.sum() - ones
            share = np.where(truth == 1, ones, np.maximum(zeros, 1e-300)) / x.valid.sum()
            rarity[:, c] = np.sqrt(1 / np.maximum(share, 1e-300))
    values = np.where(counts, rarity * weight * loss**gamma_cross, 0.0)
    cross = Answer(values, float(values.sum() / counts.sum()), float(values.sum()))
    return combine((w_dice, region), (w_cross, cross))


# --------------------------------------------------------------------------- the table


@dataclass
class Rule:
    """A loss: its class, its oracle, and sets of its own arguments to try."""

    make: type[Any]
    oracle: Oracle
    settings: list[dict[str, Any]]
    forms: tuple[str, ...] = FORMS
    conventions: tuple[str, ...] = tuple(CONVENTIONS)
    rtol: float = 1e-6


ONE_NUMBER = ("plain", "no-background", "number", "ignore")
SMOOTH: list[dict[str, Any]] = [
    {"batch": True},
    {"smooth_nr": 0.1, "smooth_dr": 0.5},
    {"smooth_nr": 0.0, "smooth_dr": 1e-3, "batch": True},
]
ANISOTROPIC = {2: (1.5, 0.5), 3: (2.0, 0.5, 1.0)}
HALF = {2: 0.5, 3: 0.5}
"""Spacings by number of axes."""

MAP_SETTINGS: dict[str, list[dict[str, Any]]] = {
    "rrw": [{}, {"spacing": ANISOTROPIC}, {"spacing": HALF}],
    "distance_penalty": [{}, {"spacing": ANISOTROPIC}, {"spacing": HALF}],
    "border": [
        {},
        {"spacing": ANISOTROPIC, "map_options": {"w0": 4.0, "sigma": 2.0}},
        {"spacing": HALF, "map_options": {"w0": 1.0}},
    ],
}

RULES: dict[str, Rule] = {
    "CrossEntropy": Rule(CrossEntropyLoss, cross_entropy, [{}, {"normalize": "voxels"}]),
    "BalancedCrossEntropy": Rule(
        BalancedCrossEntropyLoss,
        balanced,
        [
            {},
            {"batch": True},
            {"beta": 0.3},
            {"beta": 1.0},
            {"beta": 0.0},
            {"form": "weighted", "beta": 3.0},
            {"form": "weighted", "beta": 0.4},
        ],
    ),
    "TopK": Rule(
        TopKLoss,
        top_k,
        [{}, {"k": 0.1}, {"k": 37.0}, {"k": 100.0}]
        + [{"threshold": t} for t in (0.3, 0.9, 1.0, 1e-9)],
    ),
    **{
        f"MapCrossEntropy-{kind}": Rule(
            MapCrossEntropyLoss,
            map_cross_entropy,
            [{"kind": kind, **own} for own in more],
            rtol=1e-5,
        )
        for kind, more in MAP_SETTINGS.items()
    },
    "SensitivitySpecificity": Rule(
        SensitivitySpecificityLoss,
        sensitivity_specificity,
        [{}, {"w": 0.5}, {"w": 1.0, "eps": 0.1}, {"w": 0.0, "eps": 1.0}, {"batch": True}],
    ),
    "FocalTversky": Rule(
        FocalTverskyLoss,
        focal_tversky,
        [
            {},
            {"alpha": 0.6, "beta": 0.4, "gamma": 2.0},
            {"alpha": 1.0, "beta": 0.2, "gamma": 1.0},
            {"power": "gamma"},
            {"power": "gamma", "gamma": 3.0, "batch": True},
            *SMOOTH,
        ],
    ),
    "Jaccard": Rule(JaccardLoss, jaccard, [{}, *SMOOTH]),
    "AsymmetricSimilarity": Rule(
        AsymmetricSimilarityLoss, asymmetric, [{}, {"b": 1.0}, {"b": 0.0}, {"b": 3.0}, *SMOOTH]
    ),
    "PenaltyGeneralizedDice": Rule(
        PenaltyGeneralizedDiceLoss,
        penalty_generalized_dice,
        [{}, {"k": 0.0}, {"k": 0.7}, *SMOOTH],
        conventions=ONE_NUMBER,
    ),
    "LovaszSoftmax": Rule(
        LovaszSoftmaxLoss,
        lovasz_softmax,
        [
            {},
            {"per_image": True},
            {"classes": "all"},
            {"classes": "all", "per_image": True},
        ],
    ),
    "LovaszSoftmax-classes": Rule(
        LovaszSoftmaxLoss,
        lovasz_softmax,
        [{"classes": [1]}, {"classes": (2, 1)}, {"classes": [1, 2], "per_image": True}],
        forms=("softmax", "sigmoid"),
    ),
    "LovaszHinge": Rule(
        LovaszHingeLoss, lovasz_hinge, [{}, {"per_image": False}], forms=("sigmoid", "single")
    ),
    "Hausdorff": Rule(
        HausdorffLoss,
        hausdorff,
        [
            {},
            {"one_sided": True},
            {"alpha": 1.0},
            {"alpha": 0.5, "one_sided": True},
            {"spacing": ANISOTROPIC},
            {"spacing": HALF, "alpha": 1.0, "one_sided": True},
        ],
        conventions=("plain", "no-background", "weights", "number", "ignore"),
        rtol=1e-5,
    ),
    "ActiveContour": Rule(
        ActiveContourLoss,
        active_contour,
        [
            {},
            {"lambda_region": 0.0},
            {"lambda_length": 0.0},
            {"lambda_region": 2.0, "lambda_length": 0.3},
            {"spacing": ANISOTROPIC},
            {"spacing": HALF},
        ],
    ),
    "ActiveBoundary": Rule(
        ActiveBoundaryLoss,
        active_boundary,
        [
            {},
            {"boundary_ratio": 0.1},
            {"boundary_ratio": 1.0, "label_smoothing": 0.0},
            {"boundary_ratio": 0.3, "label_smoothing": 0.7, "max_distance": 1.0},
            {"boundary_ratio": 0.2, "spacing": ANISOTROPIC, "max_distance": 3.0},
            {"boundary_ratio": 0.2, "spacing": HALF},
        ],
        conventions=("plain", "number", "ignore"),
        rtol=1e-5,
    ),
    "ActiveBoundary-channels": Rule(
        ActiveBoundaryLoss,
        active_boundary,
        [{"boundary_ratio": 0.1}],
        forms=("sigmoid",),
        conventions=("no-background",),
        rtol=1e-5,
    ),
    "NonAdjacency": Rule(
        NonAdjacencyLoss,
        non_adjacency,
        [{}, {"forbidden": [(1, 2)]}],
        forms=("softmax", "sigmoid"),
        conventions=ONE_NUMBER,
    ),
    "NonAdjacency-pairs": Rule(
        NonAdjacencyLoss,
        non_adjacency,
        [{"forbidden": [(0, 2), (1, 0)]}, {"forbidden": [(0, 2), (2, 0), (0, 2)]}],
        forms=("softmax", "sigmoid"),
        conventions=("plain", "number"),
    ),
    "DiceBCE": Rule(
        DiceBCELoss,
        dice_bce,
        [{}, {"lambda_dice": 0.3, "lambda_bce": 2.0}, {"lambda_dice": 0.0}, *SMOOTH],
    ),
    "DiceFocal": Rule(
        DiceFocalLoss,
        dice_focal,
        [
            {},
            {"gamma": 0.0},
            {"gamma": 3.5, "lambda_dice": 0.2, "lambda_focal": 3.0},
            *SMOOTH,
        ],
    ),
    "DiceFocal-alpha": Rule(
        DiceFocalLoss,
        dice_focal,
        [{"alpha": 0.25}, {"alpha": 0.8, "gamma": 1.0}],
        conventions=("plain", "weights", "number", "ignore"),
    ),
    "DiceTopK": Rule(
        DiceTopKLoss,
        dice_top_k,
        [{}, {"k": 50.0, "lambda_dice": 0.2, "lambda_topk": 3.0}, {"k": 100.0}, *SMOOTH],
    ),
    "Combo": Rule(
        ComboLoss,
        combo,
        [
            {},
            {"alpha": 0.3, "beta": 0.8},
            {"alpha": 1.0, "beta": 0.1},
            {"alpha": 0.0},
            {"smooth": 1e-5, "batch": True},
            {"smooth": 0.3},
        ],
    ),
    "ExpLog": Rule(
        ExpLogLoss,
        exp_log,
        [
            {},
            {"w_dice": 0.5, "w_cross": 2.0},
            {"gamma_dice": 1.0, "gamma_cross": 2.0},
            {"gamma_dice": 0.7, "gamma_cross": 0.5, "batch": True},
            {"eps": 1e-3},
            {"eps": 0.2, "batch": True},
        ],
    ),
    "ExpLog-frequencies": Rule(
        ExpLogLoss,
        exp_log,
        [{"class_frequencies": [0.8, 0.15, 0.05]}, {"class_frequencies": [10, 1, 400]}],
        forms=("softmax",),
    ),
}


def with_spacing(setting: dict[str, Any], ndim: int) -> dict[str, Any]:
    return {
        name: value[ndim] if isinstance(value, dict) and ndim in value else value
        for name, value in setting.items()
    }


def cases() -> list[Any]:
    return [
        pytest.param(name, form, convention, id=f"{name}-{form}-{convention}")
        for name, rule in RULES.items()
        for form in rule.forms
        for convention in rule.conventions
        if form != "single" or convention not in ("no-background", "all")
    ]


LARGEST: dict[str, float] = {}
"""The largest relative difference from the oracle that a run has seen, by loss."""


@pytest.mark.parametrize(("name", "form", "convention"), cases())
def test_formula(name: str, form: str, convention: str) -> None:
    rule = RULES[name]
    if rule.make is ActiveBoundaryLoss and form != "softmax" and convention == "number":
        pytest.skip("the same as the others, and slow")
    for ndim, shape in enumerate(SHAPES.values(), start=2):
        x = problem(form, shape, convention)
        if rule.make is HausdorffLoss and "include_background" not in x.arguments:
            if form == "single" or convention == "weights":
                x.arguments["include_background"] = True
            else:
                x.first = 1  # the default
        logits = torch.as_tensor(x.logits)
        for setting in rule.settings:
            own = with_spacing(setting, ndim)
            expected = rule.oracle(x, **own)
            for reduction in ("mean", "sum", "none"):
                loss = rule.make(reduction=reduction, **x.arguments, **own)
                found = loss(logits, x.target()).numpy()
                wanted = getattr(expected, reduction)
                about = f"{own}, {reduction}, {shape}"
                assert found.dtype == np.float64, about
                if reduction == "none":
                    assert found.shape == wanted.shape, about
                scale = float(np.abs(wanted).max())
                off = float(np.abs(found - wanted).max()) / scale if scale > 0 else 0.0
                LARGEST[name] = max(LARGEST.get(name, 0.0), off)
                np.testing.assert_allclose(
                    found, wanted, rtol=rule.rtol, atol=1e-9 * scale + 1e-12, err_msg=about
                )


# --------------------------------------------------------------------------- single statements


def indices(*labels: Array) -> torch.Tensor:
    return torch.as_tensor(np.stack(labels)[:, None])


def test_exp_log_counts_the_target_by_default() -> None:
    """Frequencies counted in the target are the default, whatever counts."""
    for convention in CONVENTIONS:
        x = problem("softmax", SHAPES["2D"], convention)
        assert x.label is not None
        inside = x.label[x.valid[:, 0]]
        f = [max(float((inside == c).sum()), 1e-9) for c in range(3)]
        logits = torch.as_tensor(x.logits)
        torch.testing.assert_close(
            ExpLogLoss(**x.arguments, class_frequencies=f)(logits, x.target()),
            ExpLogLoss(**x.arguments)(logits, x.target()),
            rtol=1e-6,
            atol=0,
            msg=convention,
        )


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("BalancedCrossEntropy", {"beta": 0.3}),
        ("BalancedCrossEntropy", {"beta": 0.3, "form": "weighted"}),
        ("Combo", {"beta": 0.8}),
        ("DiceFocal", {"alpha": 0.3}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_float64_is_float64_throughout(name: str, own: dict[str, Any], form: str) -> None:
    x = problem(form, SHAPES["2D"], "plain")
    found = RULES[name].make(**x.arguments, **own)(torch.as_tensor(x.logits), x.target())
    np.testing.assert_allclose(found.item(), RULES[name].oracle(x, **own).mean, rtol=1e-13)


def test_non_adjacency_has_no_pair_of_a_class_with_itself() -> None:
    """Class 2 does not occur; it is apart from 0 and 1, not from itself."""
    label = np.zeros((4, 4), int)
    label[:, 2:] = 1
    logits = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    make = partial(NonAdjacencyLoss, softmax=True, to_onehot_y=True)
    found = make()(logits, indices(label))
    torch.testing.assert_close(found, make(forbidden=[(0, 2), (1, 2)])(logits, indices(label)))


@pytest.mark.parametrize("ndim", [2, 3])
def test_non_adjacent_classes(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    found = []
    for number in (1, 2, 4):
        voxels = (5,) * ndim
        labels = np.where(rng.random((number, *voxels)) < 0.1, rng.integers(0, 5, voxels), 0)
        touch = touching(np.stack([one_hot(a, 6) for a in labels]))
        expected = {(i, j) for i, j in itertools.combinations(range(6), 2) if not touch[i, j]}
        for given in (indices(*labels), [torch.as_tensor(a[None]) for a in labels]):
            assert {tuple(pair) for pair in non_adjacent_classes(given, 6)} == expected
        found.append(expected)
    assert any(len(e) < 15 for e in found)
    assert all(found)
    # Classes that touch across a corner alone do touch; a voxel between them parts them.
    corner = np.zeros((5,) * ndim, int)
    corner[(0,) * ndim], corner[(1,) * ndim], corner[(3,) * ndim] = 1, 2, 3
    assert {tuple(p) for p in non_adjacent_classes(indices(corner), 4)} == {(1, 3), (2, 3)}
    with pytest.raises(ValueError, match="label"):
        non_adjacent_classes(indices(corner), 3)


def test_lovasz_softmax_without_any_class_is_0() -> None:
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    settings: list[dict[str, Any]] = [{}, {"per_image": True}]
    for options in settings:
        loss = LovaszSoftmaxLoss(sigmoid=True, **options)(logits, torch.zeros(2, 1, 4, 4))
        loss.backward()
        assert loss.item() == 0
    absent = LovaszSoftmaxLoss(sigmoid=True, classes="all")(logits, torch.zeros(2, 1, 4, 4))
    torch.testing.assert_close(absent, torch.sigmoid(logits).max())


@pytest.mark.parametrize("form", FORMS)
def test_weighted_sum(form: str) -> None:
    x = problem(form, SHAPES["2D"], "plain")
    logits, target = torch.as_tensor(x.logits), x.target()
    parts = {"ce": CrossEntropyLoss(**x.arguments), "jaccard": JaccardLoss(**x.arguments)}
    ce, ratio = cross_entropy(x).mean, jaccard(x).mean
    loss = WeightedSumLoss(parts)
    np.testing.assert_allclose(loss(logits, target).item(), ce + ratio, rtol=1e-12)
    loss = WeightedSumLoss(parts, weights=[0.3, 2.0])
    np.testing.assert_allclose(loss(logits, target).item(), 0.3 * ce + 2 * ratio, rtol=1e-6)
    for alpha in (1.0, 0.99, 0.01):
        loss.set_weights([alpha, 1 - alpha])
        expected = alpha * ce + (1 - alpha) * ratio
        np.testing.assert_allclose(loss(logits, target).item(), expected, rtol=1e-6)
    np.testing.assert_allclose(loss.last_terms["ce"].item(), ce, rtol=1e-12)
    np.testing.assert_allclose(loss.last_terms["jaccard"].item(), ratio, rtol=1e-12)
    other = WeightedSumLoss(parts)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(logits, target), loss(logits, target))
    none: dict[str, nn.Module] = {}
    for make in (
        lambda: WeightedSumLoss(none),
        lambda: WeightedSumLoss(parts, weights=[1.0]),
        lambda: WeightedSumLoss(parts, weights=[1.0, float("nan")]),
        lambda: loss.set_weights([1.0, 2.0, 3.0]),
        lambda: loss.set_weights([float("inf"), 1.0]),
    ):
        with pytest.raises(ValueError, match=r"^(losses|weights): "):
            make()


# --------------------------------------------------------------------------- minima

ZERO_WHEN_PERFECT = [
    name for name in RULES if name.split("-")[0] not in ("Combo", "ActiveContour", "ActiveBoundary")
]


def sure(x: Problem, size: float = 200.0) -> Array:
    """Logits of a perfect prediction."""
    g = np.stack([one_hot(one, 3) for one in x.label]) if x.label is not None else x.g
    return size * (2 * g - 1)


def own_of(rule: Rule, ndim: int) -> list[dict[str, Any]]:
    return [with_spacing(setting, ndim) for setting in rule.settings]


def minimum_cases(names: list[str]) -> list[Any]:
    return [pytest.param(n, f, id=f"{n}-{f}") for n in names for f in RULES[n].forms]


def plain(name: str, form: str, ndim: int) -> Problem:
    x = problem(form, SHAPES[f"{ndim}D"], "plain")
    if RULES[name].make is HausdorffLoss:
        x.arguments["include_background"] = True
    return x


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("name", "form"), minimum_cases(ZERO_WHEN_PERFECT))
def test_a_perfect_prediction_gives_0(name: str, form: str, ndim: int) -> None:
    x = plain(name, form, ndim)
    for own in own_of(RULES[name], ndim):
        if "smooth_nr" in own or "forbidden" in own:
            continue  # Unequal smoothing moves the minimum; forbidden pairs may touch here.
        for dtype in (torch.float64, torch.float32):
            loss = RULES[name].make(**x.arguments, **own)
            found = loss(torch.as_tensor(sure(x)).to(dtype), x.target())
            assert abs(found.item()) < 1e-6, own


@pytest.mark.parametrize("form", FORMS)
def test_the_minima_that_are_not_0(form: str) -> None:
    x = plain("Combo", form, 2)
    logits = torch.as_tensor(sure(x))
    settings: list[dict[str, Any]] = [{}, {"alpha": 0.3, "beta": 0.8}, {"alpha": 0}, {"alpha": 1}]
    for own in settings:
        found = ComboLoss(**x.arguments, **own)(logits, x.target()).item()
        assert found == pytest.approx(-(1 - own.get("alpha", 0.5)), abs=1e-9)
    contour = ActiveContourLoss(**x.arguments)(logits, x.target()).item()
    length = 0.0
    for image in x.g.reshape(-1, *x.spatial):
        down, right = np.zeros(image.shape), np.zeros(image.shape)
        down[:-1], right[:, :-1] = np.diff(image, axis=0), np.diff(image, axis=1)
        length += float(np.sqrt(down**2 + right**2 + 1e-8).sum())
    assert contour == pytest.approx(length / x.g.size, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [20.0, 200.0])
@pytest.mark.parametrize(("name", "form"), minimum_cases(["FocalTversky", "ExpLog"]))
def test_a_perfect_prediction_has_a_finite_gradient(
    name: str, form: str, size: float, dtype: torch.dtype
) -> None:
    x = plain(name, form, 2)
    steep = [{"gamma": 3.0}] if name == "FocalTversky" else [{"gamma_dice": 0.1}]
    for own in [*RULES[name].settings, *steep]:
        logits = torch.as_tensor(sure(x, size)).to(dtype).requires_grad_()
        RULES[name].make(**x.arguments, **own)(logits, x.target()).backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all(), own
        if form != "softmax" or "smooth_nr" in own:
            continue
        p = torch.as_tensor(np.stack([one_hot(a, 3) for a in x.label])).to(dtype)  # type: ignore[union-attr]
        p.requires_grad_()
        loss = RULES[name].make(to_onehot_y=True, **own)(p, x.target())
        loss.backward()
        assert abs(loss.item()) < 1e-6
        assert p.grad is not None
        assert torch.isfinite(p.grad).all(), own


# --------------------------------------------------------------------------- hard inputs


def every_loss() -> list[Any]:
    return [pytest.param(n, f, id=f"{n}-{f}") for n, r in RULES.items() for f in r.forms]


@pytest.mark.parametrize(("name", "form"), every_loss())
def test_saturated_logits(name: str, form: str) -> None:
    """Logits of +-200, right, wrong and mixed: a finite value and gradient in float32."""
    for ndim in (2, 3):
        x = plain(name, form, ndim)
        right = sure(x)
        wrong = np.roll(right, 1, axis=1) if x.label is not None else -right
        mixed = np.where(np.random.default_rng(3).random(right.shape) < 0.5, right, -right)
        for own in own_of(RULES[name], ndim):
            for kind, given in {"right": right, "wrong": wrong, "mixed": mixed}.items():
                logits = torch.as_tensor(given).float().requires_grad_()
                loss = RULES[name].make(**x.arguments, **own)(logits, x.target().float())
                loss.backward()
                assert loss.dtype == torch.float32
                assert torch.isfinite(loss), (own, kind)
                assert logits.grad is not None, (own, kind)
                assert torch.isfinite(logits.grad).all(), (own, kind)


@pytest.mark.parametrize(("name", "form"), every_loss())
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 5)], ids=["1x1", "1x1x1", "1x5"])
def test_an_image_of_one_voxel(name: str, form: str, shape: tuple[int, ...]) -> None:
    channels = 1 if form == "single" else 3
    rng = np.random.default_rng(4)
    arguments: dict[str, Any] = {"softmax": True, "to_onehot_y": True}
    target = torch.as_tensor(rng.integers(0, 3, (2, 1, *shape))).float()
    if form != "softmax":
        arguments = {"sigmoid": True}
        target = torch.as_tensor(rng.integers(0, 2, (2, channels, *shape))).float()
    if RULES[name].make is HausdorffLoss:
        arguments["include_background"] = True
    for scale in (1.0, 200.0):
        for own in own_of(RULES[name], len(shape)):
            values = rng.normal(size=(2, channels, *shape)) * scale
            logits = torch.as_tensor(values).float().requires_grad_()
            loss = RULES[name].make(**arguments, **own)(logits, target)
            loss.backward()
            assert torch.isfinite(loss), own
            assert logits.grad is not None
            assert torch.isfinite(logits.grad).all(), own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("name", "form"), every_loss())
def test_half_precision(name: str, form: str, dtype: torch.dtype) -> None:
    """Under autocast the value is that of the same numbers in float32, and has its dtype."""
    x = plain(name, form, 2)
    own = own_of(RULES[name], 2)[0]
    half = torch.as_tensor(x.logits).to(dtype)
    for given in (half, torch.as_tensor(sure(x)).to(dtype)):
        leaf = given.clone().requires_grad_()
        loss = RULES[name].make(**x.arguments, **own)
        with torch.autocast("cpu", dtype=dtype):
            found = loss(leaf, x.target().float())
        found.backward()
        assert found.dtype == torch.float32
        assert torch.isfinite(found)
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        torch.testing.assert_close(found, loss(given.float(), x.target().float()))


# --------------------------------------------------------------------------- errors

NAN = float("nan")
WRONG: list[tuple[type[Any], str, dict[str, Any]]] = [
    (CrossEntropyLoss, "normalize", {"normalize": "voxel"}),
    *((BalancedCrossEntropyLoss, "beta", {"beta": b}) for b in (-0.1, 1.1, NAN)),
    *(
        (BalancedCrossEntropyLoss, "beta", {"beta": b, "form": "weighted"})
        for b in (-0.1, None, NAN, float("inf"))
    ),
    (BalancedCrossEntropyLoss, "form", {"form": "other"}),
    *((TopKLoss, "k", {"k": k}) for k in (0, -1, 100.1, NAN)),
    *((TopKLoss, "threshold", {"threshold": t}) for t in (0, -1, 1.1, NAN)),
    *((MapCrossEntropyLoss, "kind", {"kind": k}) for k in ("boundary", "hausdorff", "none")),
    (MapCrossEntropyLoss, "map_options", {"kind": "rrw", "map_options": {"w0": 1.0}}),
    *((SensitivitySpecificityLoss, "w", {"w": w}) for w in (-0.1, 1.1, NAN)),
    *((FocalTverskyLoss, "alpha", {"alpha": a}) for a in (-0.1, NAN)),
    *((FocalTverskyLoss, "beta", {"beta": b}) for b in (-0.1, NAN)),
    *((FocalTverskyLoss, "gamma", {"gamma": g}) for g in (0, -1, NAN)),
    (FocalTverskyLoss, "power", {"power": "square"}),
    *((AsymmetricSimilarityLoss, "b", {"b": b}) for b in (-0.1, NAN)),
    *((PenaltyGeneralizedDiceLoss, "k", {"k": k}) for k in (-0.1, NAN)),
    (PenaltyGeneralizedDiceLoss, "weight", {"weight": [1.0, 2.0, 3.0]}),
    (LovaszSoftmaxLoss, "classes", {"classes": "absent"}),
    (LovaszSoftmaxLoss, "classes", {"classes": [3]}),
    (LovaszSoftmaxLoss, "classes", {"classes": [-1]}),
    (LovaszSoftmaxLoss, "classes", {"classes": [0], "include_background": False}),
    *((HausdorffLoss, "alpha", {"alpha": a}) for a in (0, -1, NAN)),
    *((ActiveContourLoss, "lambda_region", {"lambda_region": v}) for v in (-1, NAN)),
    *((ActiveContourLoss, "lambda_length", {"lambda_length": v}) for v in (-1, NAN)),
    *((ActiveBoundaryLoss, "boundary_ratio", {"boundary_ratio": v}) for v in (0, -1, 1.1, NAN)),
    *((ActiveBoundaryLoss, "label_smoothing", {"label_smoothing": v}) for v in (-0.1, 1, NAN)),
    *((ActiveBoundaryLoss, "max_distance", {"max_distance": v}) for v in (0, -1, NAN)),
    (ActiveBoundaryLoss, "weight", {"weight": [1.0, 2.0, 3.0]}),
    (ActiveBoundaryLoss, "include_background", {"include_background": False}),
    *((NonAdjacencyLoss, "forbidden", {"forbidden": f}) for f in ([(1, 1)], [(0, 1, 2)], [(0,)])),
    *((NonAdjacencyLoss, "forbidden", {"forbidden": f}) for f in ([(0, 3)], [(-1, 1)])),
    (NonAdjacencyLoss, "forbidden", {"forbidden": [(0, 1)], "include_background": False}),
    (NonAdjacencyLoss, "weight", {"weight": [1.0, 2.0, 3.0]}),
    *((DiceFocalLoss, "gamma", {"gamma": g}) for g in (-0.1, NAN)),
    *((DiceTopKLoss, "k", {"k": k}) for k in (0, 101, NAN)),
    *((ComboLoss, "alpha", {"alpha": a}) for a in (-0.1, 1.1, NAN)),
    *((ComboLoss, "beta", {"beta": b}) for b in (-0.1, 1.1, NAN)),
    *((ExpLogLoss, "gamma_dice", {"gamma_dice": g}) for g in (0, -1, NAN)),
    *((ExpLogLoss, "gamma_cross", {"gamma_cross": g}) for g in (0, -1, NAN)),
    (ExpLogLoss, "class_frequencies", {"class_frequencies": [1.0, 0.0, 2.0]}),
    (ExpLogLoss, "class_frequencies", {"class_frequencies": [1.0, NAN, 2.0]}),
    (ExpLogLoss, "class_frequencies", {"class_frequencies": [1.0, 2.0]}),
]


@pytest.mark.parametrize(
    ("make", "name", "own"), WRONG, ids=[f"{m.__name__}-{list(o.items())}" for m, _, o in WRONG]
)
def test_errors_begin_with_the_argument(make: type[Any], name: str, own: dict[str, Any]) -> None:
    """At construction, or at the first call where it takes a prediction to see."""
    x = problem("softmax", SHAPES["2D"], "plain")
    with pytest.raises(ValueError, match=rf"^([a-z_]+, )*{name}(, [a-z_]+)*: "):
        make(**x.arguments, **own)(torch.as_tensor(x.logits), x.target())


@pytest.mark.parametrize(
    "own", [{"softmax": True}, {"other_act": torch.relu}], ids=["softmax", "other_act"]
)
def test_the_hinge_is_taken_on_logits(own: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(softmax|other_act)"):
        LovaszHingeLoss(**own)
