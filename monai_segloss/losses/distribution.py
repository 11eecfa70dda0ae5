"""Losses that compare distributions voxel by voxel: cross-entropy and its weightings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from monai.losses.focal_loss import sigmoid_focal_loss, softmax_focal_loss
from monai.utils import LossReduction
from torch import Tensor
from torch.nn.functional import cross_entropy

from monai_segloss.distance import Spacing
from monai_segloss.losses.base import (
    Activation,
    Pair,
    Reduction,
    SingleLoss,
    Values,
    Weight,
    map_from_label,
)
from monai_segloss.maps import check_options, region_wise_map

__all__ = [
    "BalancedCrossEntropyLoss",
    "CrossEntropyLoss",
    "MapCrossEntropyLoss",
    "TopKLoss",
]


class _VoxelCrossEntropy(SingleLoss):
    """What losses made of -log p at a voxel share.

    For exclusive labels there is one value a voxel, l = -log p_y, and a voxel counts if its true
    class does; otherwise one per channel, the binary cross-entropy.
    """

    weighs: ClassVar[Literal["channel", "true class", "itself"]] = "itself"

    def cross_entropy(self, pair: Pair) -> Tensor:
        """``(B, 1, *spatial)`` for exclusive labels, else ``(B, counted C, *spatial)``."""
        return pair.true_class_cross_entropy if pair.exclusive else pair.binary_cross_entropy()

    def counts(self, pair: Pair) -> Tensor | None:
        """Where a value counts, bool, broadcastable to them; None if everywhere."""
        if not (pair.exclusive and pair.first):
            return pair.valid
        assert pair.index is not None
        foreground = pair.index > 0
        return foreground if pair.valid is None else foreground & pair.valid

    def weights(self, pair: Pair) -> Tensor | None:
        """``weight`` for every value; None without one."""
        return self.true_class_weight(pair) if pair.exclusive else self.channel_weight(pair)


class CrossEntropyLoss(_VoxelCrossEntropy):
    r"""Cross-entropy: the mean of :math:`l = -\log p_y` over the voxels.

    With class weights w the mean is :math:`\sum w_y l / \sum w_y`, as torch has it
    (``normalize="weights"``), or :math:`\sum w_y l / N` over the N voxels that count
    (``"voxels"``; Ma 2020, weighted cross-entropy); one number for all is a factor in both.
    Labels that exclude one another give one value a voxel; with ``sigmoid``, or a single channel,
    every channel is a binary problem and the mean runs over channels too. A perfect prediction
    gives 0. An absent class has no voxel and adds nothing. ``include_background=False`` leaves out
    the voxels whose true class is 0 (with ``sigmoid``, channel 0). ``reduction="none"`` returns
    w l, ``(B, 1, *spatial)``, or ``(B, C, *spatial)`` for binary channels.

    Args:
        normalize: what the weighted mean divides by.

    The other arguments, and the errors, are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        normalize: Literal["weights", "voxels"] = "weights",
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
        if normalize not in ("weights", "voxels"):
            raise ValueError(f"normalize: expected 'weights' or 'voxels', got {normalize!r}")
        self.normalize = normalize

    def values(self, pair: Pair) -> Values:
        if self._is_torchs(pair):
            weight = self._checked_weight(pair)
            assert pair.index is not None
            return Values(cross_entropy(pair.logits, pair.index[:, 0], weight), per_voxel=False)
        loss, counts, weight = self.cross_entropy(pair), self.counts(pair), self.weights(pair)
        if counts is not None:
            loss = torch.where(counts, loss, 0.0)
        if weight is None and counts is None:
            return Values(loss)
        share = loss.new_ones(())
        if weight is not None:
            loss = loss * weight
            # One number for all is a factor, not a balance between classes.
            if self.normalize == "weights" and weight.ndim > 0:
                share = weight
        if counts is not None:
            share = torch.where(counts, share, 0.0)
        # A weight or mask that is the same along an axis counts as often as the axis is long.
        return Values(loss, divisor=share.sum() * (loss.numel() // share.numel()), per_voxel=False)

    def _is_torchs(self, pair: Pair) -> bool:
        """Whether torch's own mean is this one; it forms no product with the weights in memory."""
        return (
            pair.activation == "softmax"
            and self.counts(pair) is None
            and self.normalize == "weights"
            and self.reduction == LossReduction.MEAN.value
            and self.class_weight is not None
            and self.class_weight.ndim == 1
        )


class BalancedCrossEntropyLoss(SingleLoss):
    r"""Balanced cross-entropy, channel by channel as a binary problem.

    :math:`-[\beta\, g \log p + (1 - \beta)(1 - g) \log(1 - p)]`, averaged over samples, channels
    and voxels, beta the share of voxels off the class in the sample (Xie & Tu 2015, HED, eq. 2) or
    a number. ``form="weighted"`` weighs the positives alone, :math:`-[\beta\, g \log p +
    (1 - g) \log(1 - p)]` (Nieradzik, weighted cross-entropy), and needs a number: above 1 it
    lowers false negatives, below 1 false positives.

    An absent class has a share of 1 off it and so adds nothing, like one that fills the sample;
    beta = 1 divides nothing. A perfect prediction gives 0. ``reduction="none"`` returns
    ``(B, C, *spatial)``.

    Args:
        beta: weight of a class's own voxels; None for the share of the others, per sample.
        form: ``"balanced"`` or ``"weighted"``.
        batch: take the share over the whole batch, not per sample.

    Raises:
        ValueError: if ``beta`` lies outside [0, 1] (balanced), is negative or missing (weighted).

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        beta: float | None = None,
        form: Literal["balanced", "weighted"] = "balanced",
        reduction: Reduction = "mean",
        batch: bool = False,
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
        if form not in ("balanced", "weighted"):
            raise ValueError(f"form: expected 'balanced' or 'weighted', got {form!r}")
        if form == "weighted" and (beta is None or not 0 <= beta < math.inf):
            raise ValueError(f"beta: expected a number >= 0 with form='weighted', got {beta}")
        if form == "balanced" and beta is not None and not 0 <= beta <= 1:
            raise ValueError(f"beta: expected a number from 0 to 1, or None, got {beta}")
        self.beta = beta
        self.form = form
        self.batch = batch

    def values(self, pair: Pair) -> Values:
        if self.beta == (1 if self.form == "weighted" else 0.5):
            # One number for all voxels.
            return Values(self.beta * pair.binary_cross_entropy())
        labels = pair.labels[:, pair.first :]
        beta: Tensor | float
        if self.beta is not None:
            beta = self.beta
        else:
            axes = [*([0] if self.batch else []), *range(2, labels.ndim)]
            share = pair.counted(pair.labels).sum(axes, keepdim=True)
            counts = torch.ones_like(labels[:, :1]) if pair.valid is None else pair.valid
            beta = 1 - share / counts.sum(axes, keepdim=True).clamp(min=1)
        on_class = labels.new_ones(()) * beta
        off_class = labels.new_ones(()) if self.form == "weighted" else 1 - on_class
        balance = torch.addcmul(off_class, labels, on_class - off_class)
        return Values(pair.binary_cross_entropy(balance))


class TopKLoss(_VoxelCrossEntropy):
    r"""Cross-entropy over the hardest voxels alone.

    The mean of the largest ``k`` percent of l over the batch, at least one (nnU-Net; Wu et al.
    2016); or, with a ``threshold`` t, :math:`\sum 1[p_y < t]\, l / \sum 1[p_y < t]`, 0 if there is
    none (Ma 2020, TopK). With binary channels every voxel of every channel competes. Class weights
    multiply l before the choice. ``include_background`` as in :class:`CrossEntropyLoss`.

    A perfect prediction gives 0. ``reduction="none"`` returns l where it was chosen and 0
    elsewhere, ``(B, 1, *spatial)``, or ``(B, C, *spatial)`` for binary channels.

    Args:
        k: percent, in (0, 100].
        threshold: choose by probability instead, in (0, 1].

    Raises:
        ValueError: if ``k`` or ``threshold`` lies outside its range.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        k: float = 10.0,
        threshold: float | None = None,
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
        if not 0 < k <= 100:
            raise ValueError(f"k: expected a percentage in (0, 100], got {k}")
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold: expected a probability in (0, 1], got {threshold}")
        self.k = k
        self.threshold = threshold

    def values(self, pair: Pair) -> Values:
        loss, counts, weight = self.cross_entropy(pair), self.counts(pair), self.weights(pair)
        if self.threshold is not None:
            # Not >: a NaN is to be seen, not passed over.
            chosen = ~(loss <= -math.log(self.threshold))
            chosen = chosen if counts is None else chosen & counts
        if weight is not None:
            loss = loss * weight
        if self.threshold is not None:
            # The sum of the chosen is divided by their number; without one, 0.
            number = chosen.sum().to(loss.dtype)
            return Values(torch.where(chosen, loss, 0.0), divisor=number, per_voxel=False)
        return self._largest(loss, counts)

    def _largest(self, loss: Tensor, counts: Tensor | None) -> Values:
        flat = loss.flatten()
        room = max(1, int(flat.numel() * self.k / 100))
        if counts is None:
            order = torch.topk(flat.detach(), room, sorted=False).indices
            top = flat[order]
            number = top.new_tensor(float(room))
        else:
            # How many there are to choose is known on the device alone: take as many as could be,
            # the largest first, and drop those too many.
            able = torch.broadcast_to(counts, loss.shape).flatten()
            order = torch.topk(torch.where(able, flat.detach(), -1.0), room).indices
            number = torch.floor(able.sum() * (self.k / 100)).clamp(min=1).to(loss.dtype)
            kept = (torch.arange(room, device=loss.device) < number) & able[order]
            top = torch.where(kept, flat[order], 0.0)
        if self.reduction == LossReduction.NONE.value:
            top = torch.zeros_like(flat).scatter(0, order, top).reshape(loss.shape)
        return Values(top, divisor=number, per_voxel=False)


class MapCrossEntropyLoss(_VoxelCrossEntropy):
    r"""Cross-entropy weighted by a map: the mean of w l over samples and voxels.

    w at a voxel comes from the value of its true class's map:

    ====================  ==========================================================================
    kind                  w
    ====================  ==========================================================================
    ``rrw``               d / max d of the class, the map without its sign, which would turn the
                          loss negative (Valverde & Tohka 2022, section 4, weighted CE)
    ``distance_penalty``  1 + Phi, Phi = max d - d (Caliva et al. 2019)
    ``border``            w_c + w0 exp(-(d1 + d2)^2 / 2 sigma^2) (Ronneberger et al. 2015, eq. 2)
    ====================  ==========================================================================

    The map comes in the target, compact or dense, or is computed here. Several binary channels
    (``sigmoid`` and labels that may overlap) need it computed here: a packed multi-label map does
    not hold the weights off each channel's class. A perfect prediction gives 0; an absent class
    has no voxel to weigh; one that fills the sample has w = 1. ``reduction="none"`` returns w l,
    ``(B, 1, *spatial)``, or ``(B, C, *spatial)`` for binary channels.

    Args:
        kind: ``"rrw"``, ``"distance_penalty"`` or ``"border"``.
        spacing: voxel size for maps computed here, one number or one per axis; None for voxels.
        map_options: the kind's own options.

    Raises:
        ValueError: on another kind or an option it does not know; at call time on a map that does
            not fit.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("rrw", "distance_penalty", "border")

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
        if kind not in self.kinds:
            raise ValueError(f"kind: expected one of {', '.join(self.kinds)}, got {kind!r}")
        self.kind = check_options(kind, map_options or {})
        self.map_kind = kind
        self.spacing = spacing
        self.map_options = dict(map_options or {})

    def values(self, pair: Pair) -> Values:
        loss, counts, weight = self.cross_entropy(pair), self.counts(pair), self.weights(pair)
        loss = loss * self.map_weight(pair).to(loss.dtype)
        if weight is not None:
            loss = loss * weight
        if counts is None:
            return Values(loss)
        number = counts.sum() * (loss.numel() // counts.numel())
        return Values(torch.where(counts, loss, 0.0), divisor=number, per_voxel=False)

    def map_weight(self, pair: Pair) -> Tensor:
        """w, broadcastable to the cross-entropy's values."""
        value = self._of_channels(pair) if not pair.exclusive else self._of_true_class(pair)
        return value + 1 if self.kind.name == "distance_penalty" else value

    def _of_true_class(self, pair: Pair) -> Tensor:
        assert pair.index is not None
        value = pair.map
        if value is None:
            value = map_from_label(pair, self.kind.name, self.spacing, self.map_options)
        return (value if value.shape[1] == 1 else value.gather(1, pair.index)).abs()

    def _of_channels(self, pair: Pair) -> Tensor:
        if pair.map is not None:
            if pair.num_channels > 1:
                raise ValueError(
                    "target: binary channels need the label alone, since a packed map does not "
                    f"hold the weights off each channel's class; got a map of "
                    f"{pair.map.shape[1]} channels"
                )
            if pair.map.shape[1] == 1:
                return pair.map.abs()
            return pair.map.gather(1, pair.labels.long()).abs()
        labels = pair.labels[:, pair.first :]
        ignored = None
        if pair.valid is not None:
            ignored = 2
            labels = torch.where(pair.valid, labels, ignored)
        batch, channels = labels.shape[:2]
        binary = labels.reshape(batch * channels, 1, *pair.spatial)
        spacing = self.spacing
        value = region_wise_map(
            binary, self.kind.name, 2, spacing, ignore_index=ignored, **self.map_options
        )
        return value.abs().reshape(labels.shape)


class FocalPart(SingleLoss):
    """``monai.losses.FocalLoss`` behind this package's target conventions, for sums.

    The mean runs over the channels too, as MONAI's does.
    """

    def __init__(self, *args: Any, gamma: float, alpha: float | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gamma = gamma
        self.alpha = alpha

    def values(self, pair: Pair) -> Values:
        logits = pair.logits
        if pair.activation == "none":
            p = pair.probabilities
            tiny = torch.finfo(p.dtype).tiny
            logits = torch.log(p.clamp(min=tiny))
            if not pair.exclusive:
                logits = logits - torch.log((1 - p).clamp(min=tiny))
        # Of the class's own functions, since the class works in float32 alone.
        if not pair.exclusive:
            loss = sigmoid_focal_loss(logits, pair.labels, self.gamma, self.alpha)
            return Values(loss[:, pair.first :])
        alpha = None
        if self.alpha is not None:
            # As MONAI spreads one number over the classes, without reading it back.
            alpha = logits.new_tensor([1 - self.alpha] + [self.alpha] * (pair.num_channels - 1))
        loss = softmax_focal_loss(logits, pair.labels, self.gamma, alpha)
        return Values(loss[:, pair.first :])
