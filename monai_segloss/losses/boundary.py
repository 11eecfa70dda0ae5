"""Boundary family: losses that weigh an error by where it lies."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from monai.utils import LossReduction
from torch import Tensor
from torch.nn.functional import (
    avg_pool2d,
    avg_pool3d,
    cross_entropy,
    logsigmoid,
    max_pool2d,
    max_pool3d,
    pad,
)

from monai_segloss.distance import Spacing, as_spacing, distance_to_other_label
from monai_segloss.losses.base import (
    Activation,
    Pair,
    Reduction,
    SingleLoss,
    Values,
    Weight,
    map_from_label,
)
from monai_segloss.maps import Inside, check_options, to_dense, to_label_index

__all__ = [
    "ActiveBoundaryLoss",
    "ActiveContourLoss",
    "BoundaryLoss",
    "HausdorffLoss",
    "NonAdjacencyLoss",
    "RegionWiseLoss",
    "non_adjacent_classes",
]


class RegionWiseLoss(SingleLoss):
    """Region-wise loss: mean over samples, classes and voxels of p z.

    p are the probabilities, z the region-wise map (Valverde & Tohka 2022, eq. 1); with
    ``kind="hausdorff"`` p enters squared (eq. 25). The gradient with respect to logit k is
    p_k (z_k - sum_j p_j z_j) / (B C N) (eq. 2; not for squared p).

    The map comes in the target (see :class:`SegmentationLoss`), as the transform
    ``RegionWiseMapd(..., pack=True)`` or ``ConcatItemsd`` put it there; or, if the target holds the
    label alone, it is computed here, on the target's device and with ``spacing``: in voxels unless
    that is given, also for a target that knows its affine. Under deep
    supervision on shrunken targets a packed map keeps the values of the full resolution, while one
    computed here measures in the shrunken grid's voxels.

    With exclusive labels, ``softmax`` and a compact map the loss is mean(b + (z_y - b) p_y) / C, b
    the map's value off the true class: time and memory do not grow with the map's channels. A
    single-channel or multi-label prediction uses each channel's foreground map alone.

    Values: absent classes follow the map kind's rule; rrw lies between -1/C and 1/C with softmax (a
    perfect prediction gives mean(z_y)/C, z_y < 0 the map at the true class). ``reduction="none"``
    returns ``(B, C, *spatial)`` (C without the background if that does not count).
    ``weight`` multiplies a voxel by the weight of its true class (background voxels by 1 if the
    background does not count), which keeps a rectified map rectified; with multi-label
    predictions it multiplies the channel. Ignored voxels do not count in the mean.

    Args:
        kind: a name of :data:`monai_segloss.maps.MAP_KINDS`.
        spacing: voxel size for maps computed here, one number or one per axis; None for voxels.
        map_options: the kind's own options, e.g. ``{"alpha": 1.0}`` for ``hausdorff``.

    The other arguments, and the errors, are those of :class:`SegmentationLoss`.
    """

    weighs: ClassVar[Literal["channel", "true class", "itself"]] = "true class"

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        kind: str = "rrw",
        spacing: Spacing = None,
        map_options: Mapping[str, Any] | None = None,
        reduction: Reduction = "mean",
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
        )
        self.kind = check_options(kind, map_options or {})
        self.map_kind = kind
        self.spacing = spacing
        self.map_options = dict(map_options or {})

    def values(self, pair: Pair) -> Values:
        if pair.map is not None and not torch.compiler.is_compiling():
            self._refuse_one_hot(pair, pair.map)
        region_wise = pair.map
        if region_wise is None:
            region_wise = map_from_label(pair, self.kind.name, self.spacing, self.map_options)
        region_wise = region_wise.to(pair.logits.dtype)
        if self._reduces_to_true_class(pair, region_wise):
            off = self.kind.off_class
            gain = self.kind.sign * region_wise - off
            return Values(off + gain * pair.true_class_probability, pair.num_channels)
        probabilities = pair.probabilities
        factor = probabilities.square() if self.kind.squared else probabilities
        weighted = self._dense(pair, region_wise) * factor
        return Values(weighted[:, pair.first :])

    def _reduces_to_true_class(self, pair: Pair, region_wise: Tensor) -> bool:
        return (
            self.kind.compact
            and pair.activation == "softmax"
            and pair.index is not None
            and region_wise.shape[1] == 1
            and self.include_background
            and self.reduction != LossReduction.NONE.value
        )

    def _refuse_one_hot(self, pair: Pair, region_wise: Tensor) -> None:
        """A one-hot label of two classes has the shape of a label and its map; it is no such."""
        label = pair.index if pair.channels is None else pair.channels
        assert label is not None
        if label.shape != region_wise.shape or label.shape[1] != 1 or label.device.type != "cpu":
            return
        # The foreground map of an active contour is 1 - g and adds up to 1 by right.
        if pair.num_channels > 2 or self.kind.name == "active_contour" or not label.numel():
            return
        if bool((label + region_wise == 1).all()):
            raise ValueError(
                "target: expected a label and its map, got two channels that add up to 1 "
                "everywhere, as a one-hot label's do; give a label index, or predict two channels "
                "with to_onehot_y=False"
            )

    def _dense(self, pair: Pair, region_wise: Tensor) -> Tensor:
        """One channel per predicted class."""
        classes = pair.num_channels
        if pair.channels is None:
            if region_wise.shape[1] == classes:
                return region_wise
            if not self.kind.compact:
                raise ValueError(
                    f"target: kind={self.kind.name!r} needs a map of {classes} channels, "
                    f"got {region_wise.shape[1]}"
                )
            assert pair.index is not None
            return to_dense(region_wise, pair.index, self.kind, classes)
        if region_wise.shape[1] != classes:
            if classes > 1:
                raise ValueError(
                    f"target: a multi-label prediction needs a map of {classes} channels "
                    f"(RegionWiseMapd(multi_label=True)), got {region_wise.shape[1]}"
                )
            return region_wise[:, 1:]
        if not self.kind.compact:
            return region_wise
        # A map made for a label index holds the background's own value on the background; what
        # the foreground channel needs there is the constant.
        inside = region_wise if self.kind.sign > 0 else -region_wise.abs()
        return torch.where(pair.channels > 0, inside, self.kind.off_class)


class BoundaryLoss(RegionWiseLoss):
    """Boundary loss: mean over samples, classes and voxels of p times the signed distance.

    The distance is +d outside a class and, inside, -d (``inside="symmetric"``, Valverde & Tohka
    2022, eq. 3) or -(d - the smallest voxel size) (``"shifted"``: Kervadec et al. 2019 and
    ``monai.losses.BoundaryLoss``, which it equals on unit voxels). An absent or full class gives 0.
    In mm if the map was computed with a spacing in mm, else in voxels.

    Unlike ``monai.losses.BoundaryLoss`` it takes a map computed beforehand, knows the spacing, and
    measures integer one-hot labels without truncation. With three classes or more the map is not
    rectified and on its own the loss is prone to collapse: use it in a sum with a region loss.

    Args:
        inside: the form inside a class, for maps computed here; a packed map is used as it is.
        spacing: as in :class:`RegionWiseLoss`.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        inside: Inside = "symmetric",
        spacing: Spacing = None,
        reduction: Reduction = "mean",
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        if inside not in ("symmetric", "shifted"):
            raise ValueError(f"inside: expected 'symmetric' or 'shifted', got {inside!r}")
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            kind="boundary",
            spacing=spacing,
            map_options={"inside": inside},
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
        )


class HausdorffLoss(SingleLoss):
    r"""Hausdorff loss by distance transforms: errors weighted by their distance to both borders.

    The mean over samples, classes and voxels of :math:`(p - g)^2 (d_G^\alpha + d_S^\alpha)`, d_G
    and d_S the distances to the border of the label and of the prediction p > 0.5, on either side
    of it (Karimi & Salcudean 2019, ``monai.losses.HausdorffDTLoss``). ``one_sided=True`` leaves out
    d_S. A label or a prediction without a border, absent or full, has distance 0. In the unit of
    ``spacing`` to the power ``alpha``, voxels by default; a map in the target is in its own unit.

    For the distances an ignored voxel lies off every class.

    d_G comes from a packed ``boundary`` map (in its symmetric form), else from the label; d_S is
    computed at every call, on the input's device. A perfect prediction gives 0. The loss says
    nothing about a class of which neither label nor prediction has a border, so it is used in a
    sum with a region loss. ``reduction="none"`` returns ``(B, C, *spatial)``.

    Args:
        alpha: exponent of the distances, > 0.
        one_sided: weigh with d_G alone.
        spacing: voxel size, one number or one per axis; None for voxels.

    Raises:
        ValueError: if ``alpha`` is not positive; at call time on a packed map that has not one
            channel per class.

    The other arguments are those of :class:`SegmentationLoss`; as in MONAI's, the background does
    not count by default.
    """

    map_kind: str | None = "boundary"

    def __init__(
        self,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        alpha: float = 2.0,
        one_sided: bool = False,
        spacing: Spacing = None,
        reduction: Reduction = "mean",
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
        )
        if not alpha > 0:
            raise ValueError(f"alpha: expected a positive number, got {alpha}")
        self.alpha = alpha
        self.one_sided = one_sided
        self.spacing = spacing

    def values(self, pair: Pair) -> Values:
        p, g = pair.counted(pair.probabilities), pair.counted(pair.labels)
        distance = self._from_label(pair, g)
        if not self.one_sided:
            of_prediction = _border_distance(p.detach() > 0.5, self.spacing)
            distance = distance + of_prediction.to(p.dtype) ** self.alpha
        return Values((p - g).square() * distance)

    def _from_label(self, pair: Pair, g: Tensor) -> Tensor:
        if pair.map is None:
            distance = _border_distance(g > 0, self.spacing)
        elif pair.map.shape[1] == pair.num_channels:
            distance = pair.map[:, pair.first :].abs()
        elif pair.num_channels == 1:
            distance = pair.map[:, 1:].abs()
        else:
            raise ValueError(
                f"target: HausdorffLoss needs a map of {pair.num_channels} channels (kind "
                f"'boundary'), got {pair.map.shape[1]}"
            )
        return distance.to(g.dtype) ** self.alpha


class ActiveContourLoss(SingleLoss):
    r"""Active contour loss without edges: the length of the contour and the area of the errors.

    :math:`\lambda_{length}\, \overline{\sqrt{|\nabla u|^2 + 10^{-8}}} + \lambda_{region}\,
    \overline{u (1 - v)^2 + (1 - u) v^2}` with u the probabilities, v the label (Chen et al. 2019
    with c1 = 1, c2 = 0; one lambda there, on the region), averaged over samples, classes
    and voxels. The gradient is that of the same voxel: forward differences along every axis, 0 past
    the last voxel, over ``spacing``. Any image size, 2D and 3D. A constant image has the length
    1e-4 a voxel, and a perfect prediction still has its contour's length. An absent class leaves
    the length and the mean of u. ``reduction="none"`` returns ``(B, C, *spatial)``.

    The region term alone is the region-wise loss with the kind ``active_contour``.

    Args:
        lambda_region: weight of the region term.
        lambda_length: weight of the length term.
        spacing: voxel size, one number or one per axis; None for voxels. The length is then per mm.

    The other arguments, and the errors, are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        lambda_region: float = 1.0,
        lambda_length: float = 1.0,
        spacing: Spacing = None,
        reduction: Reduction = "mean",
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
        )
        if not (lambda_region >= 0 and lambda_length >= 0):
            raise ValueError(
                "lambda_region, lambda_length: expected numbers >= 0, got "
                f"{lambda_region}, {lambda_length}"
            )
        self.lambda_region = lambda_region
        self.lambda_length = lambda_length
        self.spacing = spacing

    def values(self, pair: Pair) -> Values:
        u, v = pair.probabilities[:, pair.first :], pair.labels[:, pair.first :]
        region = torch.where(v > 0, 1 - u, u)
        length = torch.sqrt(self._squared_gradient(pair, u) + 1e-8)
        return Values(self.lambda_length * length + self.lambda_region * region)

    def _squared_gradient(self, pair: Pair, u: Tensor) -> Tensor:
        squares = []
        for axis, step in enumerate(_voxel_size(self.spacing, len(pair.spatial))):
            difference = _forward(u, axis, torch.sub)
            if step != 1:
                difference = difference / step
            if pair.valid is not None:
                # A difference with an ignored voxel says nothing.
                both = _forward(pair.valid, axis, torch.logical_and)
                difference = torch.where(both, difference, 0.0)
            squares.append(_pad_end(difference.square(), axis, len(pair.spatial)))
        return functools.reduce(torch.add, squares)


class ActiveBoundaryLoss(SingleLoss):
    r"""Active boundary loss: pulls the predicted border towards the label's, voxel by voxel.

    The predicted border is where the KL divergence between neighbouring class distributions is
    highest, ``boundary_ratio`` of each image's voxels at most, and their neighbours. At each of its
    voxels i the neighbour nearest to the label's border is the right direction; the loss is the
    cross-entropy of :math:`softmax_j\, KL(P_j \| P_i)` over the neighbours j to that direction,
    weighted by :math:`\min(M_i, 20) / 20`, M_i the distance to the label's border, and averaged
    over those voxels that do not lie nearest themselves (Wang et al. 2022; the direction of the
    divergence is that of the authors' code). The label's border is the set of voxels that differ
    from the next one along an axis. 8 neighbours in 2D, 26 in 3D; they get no gradient.

    A neighbour as near as the voxel itself counts as the right direction; past the image's edge the
    neighbour is the edge's voxel again and never the right one, and so it is with an ignored one,
    which predicts all classes alike.

    Without a border in label or prediction the loss is 0, with a gradient of 0. It sees nothing off
    the borders, so it is used in a sum (the authors: with cross-entropy and Lovász-Softmax). Binary
    channels are two classes each. The mean runs over all those voxels of the batch.
    ``reduction="none"`` returns ``(B, 1, *spatial)`` (``(B, C, *spatial)`` for binary channels), 0
    off the predicted border.

    Args:
        boundary_ratio: share of each image's voxels that may start the predicted border, in (0, 1].
        label_smoothing: of the direction's cross-entropy, [0, 1), spread over all neighbours.
        max_distance: the 20 above, in the unit of ``spacing``.
        spacing: voxel size, one number or one per axis; None for voxels.

    Raises:
        ValueError: if a number is out of its range; if ``weight`` is not one number, since a border
            has no class; with ``include_background=False`` for exclusive labels, where it would not
            be known from what the foreground is bordered.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        boundary_ratio: float = 0.01,
        label_smoothing: float = 0.2,
        max_distance: float = 20.0,
        spacing: Spacing = None,
        reduction: Reduction = "mean",
        weight: float | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
        )
        if not 0 < boundary_ratio <= 1:
            raise ValueError(f"boundary_ratio: expected a share in (0, 1], got {boundary_ratio}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected a share in [0, 1), got {label_smoothing}")
        if not max_distance > 0:
            raise ValueError(f"max_distance: expected a positive number, got {max_distance}")
        self._check_one_weight("a border has no class")
        self.boundary_ratio = boundary_ratio
        self.label_smoothing = label_smoothing
        self.max_distance = max_distance
        self.spacing = spacing

    def values(self, pair: Pair) -> Values:
        index, logits = self._as_classes(pair)
        valid = pair.valid
        if valid is not None:
            valid = valid.expand(-1, index.shape[0] // pair.logits.shape[0], *pair.spatial)
            valid = valid.reshape(index.shape)
        distance, bordered = self._distance_to_border(index, valid)
        points = _predicted_border(logits.detach(), self.boundary_ratio, valid)
        loss, number = self._direction_loss(logits, distance, points, bordered, valid)
        channels = index.shape[0] // pair.logits.shape[0]
        return Values(
            loss.reshape(pair.logits.shape[0], channels, *pair.spatial),
            divisor=number,
            per_voxel=False,
        )

    def _as_classes(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Class index ``(M, *spatial)`` and logits ``(M, K, *spatial)``, binary channels apart."""
        if pair.exclusive:
            if pair.first:
                raise ValueError(
                    "include_background: expected True for classes that exclude one another, since "
                    "a border of the foreground is one with the background, got False"
                )
            assert pair.index is not None
            if pair.activation == "softmax":
                return pair.index[:, 0], pair.logits
            return pair.index[:, 0], torch.log(pair.probabilities.clamp(min=1e-12))
        g = pair.labels[:, pair.first :].flatten(0, 1).long()
        if pair.activation == "sigmoid":
            x = pair.logits[:, pair.first :].flatten(0, 1)
            return g, torch.stack([logsigmoid(-x), logsigmoid(x)], dim=1)
        p = pair.probabilities[:, pair.first :].flatten(0, 1)
        return g, torch.log(torch.stack([1 - p, p], dim=1).clamp(min=1e-12))

    def _distance_to_border(self, index: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Distance to the label's border ``(M, *spatial)``, and whether an image has one."""
        border = torch.zeros_like(index, dtype=torch.bool)
        dims = index.ndim - 1
        for axis in range(dims):
            differs = _forward(index, axis - 1, torch.ne)
            if valid is not None:
                differs = differs & _forward(valid, axis - 1, torch.logical_and)
            border = border | _pad_end(differs, axis, dims)
        distance = distance_to_other_label(border, self.spacing)
        bordered = border.flatten(1).any(dim=1)
        return torch.where(border | ~torch.isfinite(distance), 0.0, distance), bordered

    def _direction_loss(
        self,
        logits: Tensor,
        distance: Tensor,
        points: Tensor,
        bordered: Tensor,
        valid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The loss at every voxel ``(M, *spatial)`` and the number of voxels that count."""
        shape = distance.shape
        dims = len(shape) - 1
        at = _where(points, _most_points(shape, self.boundary_ratio))
        image, position = at[:, 0].clamp(min=0), at[:, 1:].clamp(min=0).unbind(1)
        known = at[:, 0] >= 0
        center = torch.log_softmax(_take(logits, image, position), dim=1)
        here: tuple[Any, ...] = (image, *position)
        nearest = distance[here]
        divergences, distances = [], []
        for offset in _neighbours(dims):
            there = [x + o for x, o in zip(position, offset, strict=True)]
            inside = torch.ones_like(known)
            for x, n in zip(there, shape[1:], strict=True):
                inside = inside & (x >= 0) & (x < n)
            there = [x.clamp(0, n - 1) for x, n in zip(there, shape[1:], strict=True)]
            other = torch.log_softmax(_take(logits.detach(), image, there), dim=1)
            around: tuple[Any, ...] = (image, *there)
            # KL(neighbour || centre), no gradient to the neighbour.
            divergences.append((other.exp() * (other - center)).sum(dim=1))
            if valid is not None:
                inside = inside & valid[around]
            distances.append(torch.where(inside, distance[around], torch.inf))
        towards = torch.stack(distances, dim=1)
        counts = known & bordered[image] & (towards.amin(dim=1) <= nearest)
        loss = cross_entropy(
            torch.stack(divergences, dim=1),
            towards.argmin(dim=1),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        weight = nearest.clamp(max=self.max_distance).to(loss.dtype) / self.max_distance
        loss = torch.where(counts, loss * weight, 0.0)
        empty = torch.zeros(shape, dtype=loss.dtype, device=loss.device)
        spread = empty.index_put(here, loss, accumulate=True)
        return spread, counts.sum().to(loss.dtype).clamp(min=1)


class NonAdjacencyLoss(SingleLoss):
    r"""Penalty on neighbouring probabilities of classes that never touch.

    :math:`\sum_{(i,j) \in F} G_{ij} / |F|`, :math:`G_{ij}` the mean over voxels of
    :math:`p_i\, (p_j * K)`, K the box of 3 voxels a side, its centre included, zero past the
    image's edge, and F the ordered pairs that are forbidden (Ganaye et al. 2019). One value per
    sample. It does not read the label but to find F, so it is used in a sum. 0 where no forbidden
    pair of classes has any probability at neighbouring voxels. ``reduction="none"`` returns ``(B,
    1, 1, 1[, 1])``.

    Args:
        forbidden: the pairs, ``[(i, j), ...]``, each meant both ways; :func:`non_adjacent_classes`
            finds them in the training labels, as the paper does. None (our addition): those that
            do not touch in the target at hand.

    Raises:
        ValueError: if a pair is not two different classes; at call time on a class that does not
            exist or count, on a single channel, or if ``weight`` is not one number.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        forbidden: Sequence[Sequence[int]] | None = None,
        reduction: Reduction = "mean",
        weight: float | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
        )
        self._check_one_weight("a pair of classes has no one class")
        pairs = None if forbidden is None else [tuple(int(c) for c in pair) for pair in forbidden]
        for pair in pairs or []:
            if len(pair) != 2 or pair[0] == pair[1] or min(pair) < 0:
                raise ValueError(f"forbidden: expected pairs of two different classes, got {pair}")
        self.forbidden = pairs

    def values(self, pair: Pair) -> Values:
        if pair.num_channels == 1:
            raise ValueError("input: NonAdjacencyLoss needs at least two classes, got one channel")
        p = pair.counted(pair.probabilities)
        forbidden = self._matrix(pair).to(p.dtype)
        near = _box_mean(p)
        voxels: int | Tensor = p[0, 0].numel()
        if pair.valid is not None:
            voxels = pair.valid.flatten(1).sum(1).clamp(min=1).reshape(-1, 1, 1)
        touching = torch.einsum("bin,bjn->bij", p.flatten(2), near.flatten(2)) / voxels
        loss = (forbidden * touching).sum((1, 2)) / forbidden.sum().clamp(min=1)
        return Values(loss.reshape(-1, 1, *[1] * len(pair.spatial)), per_voxel=False)

    def _matrix(self, pair: Pair) -> Tensor:
        """The ordered pairs as a matrix of 0 and 1 over the counted classes."""
        if self.forbidden is None:
            apart = ~_touching(pair.counted(pair.labels))
            return apart.fill_diagonal_(False)
        count = pair.num_channels
        matrix = [[False] * count for _ in range(count)]
        for i, j in self.forbidden:
            if max(i, j) >= count or min(i, j) < pair.first:
                raise ValueError(
                    f"forbidden: expected classes from {pair.first} to {count - 1}, got {(i, j)}"
                )
            matrix[i][j] = matrix[j][i] = True
        rows = torch.tensor(matrix, device=pair.logits.device)
        return rows[pair.first :, pair.first :]


def non_adjacent_classes(
    labels: Sequence[Tensor] | Tensor, num_classes: int
) -> list[tuple[int, int]]:
    """The pairs of classes that touch (share a box of 3 voxels a side) in none of the labels.

    Args:
        labels: class indices ``(1, *spatial)``, one per image, or ``(B, 1, *spatial)``.
        num_classes: number of classes C, background included.

    Returns:
        Pairs (i, j), i < j, for :class:`NonAdjacencyLoss`.

    Raises:
        ValueError: if a label is not an index below ``num_classes``.
    """
    touch = torch.zeros((num_classes, num_classes), dtype=torch.bool)
    for label in labels:
        index, _ = to_label_index(label.unsqueeze(0), num_classes)
        zeros = torch.zeros((1, num_classes, *index.shape[2:]))
        touch |= _touching(zeros.scatter_(1, index.cpu().long(), 1.0))
    pairs = itertools.combinations(range(num_classes), 2)
    return [(i, j) for i, j in pairs if not touch[i, j]]


# --------------------------------------------------------------------------- helpers


def _border_distance(mask: Tensor, spacing: Spacing) -> Tensor:
    """Distance to the border of every channel's mask, on both sides; 0 without a border."""
    distance = distance_to_other_label(mask.flatten(0, 1), spacing)
    return torch.where(torch.isfinite(distance), distance, 0.0).reshape(mask.shape)


def _voxel_size(spacing: Spacing, ndim: int) -> list[float]:
    return [1.0] * ndim if spacing is None else as_spacing(spacing, 1, ndim)[0].tolist()


def _forward(x: Tensor, axis: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """combine(next voxel, voxel) along a spatial axis of ``(B, C, *spatial)``; one shorter."""
    dim, n = axis + 2, x.shape[axis + 2]
    return combine(x.narrow(dim, min(1, n), n - 1), x.narrow(dim, 0, n - 1))


def _pad_end(x: Tensor, axis: int, ndim: int) -> Tensor:
    """One zero (or False) behind the last voxel of a spatial axis, the last ``ndim`` ones."""
    widths = [0] * (2 * ndim)
    widths[2 * (ndim - 1 - axis) + 1] = 1
    return pad(x, widths)


def _box_mean(p: Tensor) -> Tensor:
    pool = avg_pool2d if p.ndim == 4 else avg_pool3d
    # Padded by hand: torch's own padding refuses a volume of one voxel.
    return pool(pad(p, [1] * (2 * (p.ndim - 2))), 3, stride=1)


def _touching(channels: Tensor) -> Tensor:
    """Which classes share a box of 3 voxels a side, bool ``(C, C)``."""
    near = _box_mean(channels)
    return torch.einsum("bin,bjn->ij", channels.flatten(2), near.flatten(2)) > 0


def _neighbours(ndim: int) -> list[tuple[int, ...]]:
    """The steps to the 8 or 26 neighbours, those by faces first."""
    steps = [s for s in itertools.product((-1, 0, 1), repeat=ndim) if any(s)]
    return sorted(steps, key=lambda step: sum(map(abs, step)))


def _predicted_border(logits: Tensor, ratio: float, valid: Tensor | None) -> Tensor:
    """Where the class distributions change most, and the voxels around: bool ``(M, *spatial)``."""
    log_p = torch.log_softmax(logits, dim=1)
    p, ndim = log_p.exp(), logits.ndim - 2
    change = torch.zeros_like(p[:, 0])
    for axis in range(ndim):
        change_of_log = -_forward(log_p, axis, torch.sub)
        here = p.narrow(axis + 2, 0, p.shape[axis + 2] - 1)
        divergence = (here * change_of_log).sum(dim=1)
        if valid is not None:
            both = _forward(valid, axis - 1, torch.logical_and)
            divergence = torch.where(both, divergence, 0.0)
        change = change + _pad_end(divergence, axis, ndim)
    flat = change.flatten(1)
    budget = _budget(flat.shape[1], ratio)
    # The first that the budget leaves out is the bound: an equal one is left out with it.
    bound = flat.new_zeros((flat.shape[0], 1))
    if budget < flat.shape[1]:
        bound = torch.topk(flat, budget + 1, dim=1, sorted=True).values[:, -1:]
    # Not >: a NaN is to be seen, not passed over.
    starts = (~(flat <= bound.clamp(min=1e-5))).reshape(change.shape)
    pool = max_pool2d if ndim == 2 else max_pool3d
    border = pool(starts.unsqueeze(1).float(), 3, stride=1, padding=1)[:, 0] > 0
    return border if valid is None else border & valid


def _budget(voxels: int, ratio: float) -> int:
    return max(1, int(voxels * ratio))


def _most_points(shape: Sequence[int], ratio: float) -> int:
    voxels = math.prod(shape[1:])
    return shape[0] * min(voxels, 3 ** (len(shape) - 1) * _budget(voxels, ratio))


def _where(mask: Tensor, most: int) -> Tensor:
    """Positions ``(K, dims)`` of the True voxels; off the CPU of fixed length, filled with -1."""
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        return mask.nonzero()
    # The number of voxels is known on the device alone, and asking for it would stall it.
    return torch.nonzero_static(mask, size=most, fill_value=-1)


def _take(channels: Tensor, image: Tensor, position: Sequence[Tensor]) -> Tensor:
    """``(M, C, *spatial)`` at some voxels -> ``(K, C)``."""
    where: tuple[Any, ...] = (image, slice(None), *position)
    return channels[where]
