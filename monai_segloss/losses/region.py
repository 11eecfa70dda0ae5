"""Losses of overlap: ratios of soft counts, and the Lovász extension of the Jaccard index.

TP, FP and FN are soft counts per sample and class, sum g p, sum (1 - g) p and sum g (1 - p): every
ratio is taken per class, before the mean. One ratio over all classes at once would make soft Dice
the mean of p_y, and the weights of FP and FN interchangeable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from monai_segloss.losses.base import Activation, Pair, Reduction, SingleLoss, Values, Weight

__all__ = [
    "AsymmetricSimilarityLoss",
    "FocalTverskyLoss",
    "JaccardLoss",
    "LovaszHingeLoss",
    "LovaszSoftmaxLoss",
    "PenaltyGeneralizedDiceLoss",
    "SensitivitySpecificityLoss",
    "concave_power",
]

# Below this a concave power goes on as a straight line to 0.
_STRAIGHT_BELOW = 1e-7


def concave_power(x: Tensor, exponent: float) -> Tensor:
    """x to a power for x >= 0, with a finite slope at 0 also where the exponent is below 1.

    There the curve is replaced, below 1e-7, by the straight line from the origin to it, so that a
    perfect prediction still gives 0, and a gradient that is a number.
    """
    if exponent >= 1:
        return x.clamp(min=0) ** exponent
    straight = x < _STRAIGHT_BELOW
    line = x * _STRAIGHT_BELOW ** (exponent - 1)
    return torch.where(straight, line, torch.where(straight, 1.0, x) ** exponent)


class _RatioLoss(SingleLoss):
    """What losses made of soft counts share: ``smooth_nr``, ``smooth_dr`` and ``batch``."""

    def __init__(
        self,
        *conventions: Any,
        smooth_nr: float,
        smooth_dr: float,
        batch: bool,
        **options: Any,
    ) -> None:
        super().__init__(*conventions, **options)
        if not (smooth_nr >= 0 and smooth_dr >= 0):
            raise ValueError(
                f"smooth_nr, smooth_dr: expected numbers >= 0, got {smooth_nr}, {smooth_dr}"
            )
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch

    def soft_counts(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """TP, FP and FN, each ``(B, C, 1, 1[, 1])``, or ``(1, C, ...)`` with ``batch``."""
        p, g = pair.counted(pair.probabilities), pair.counted(pair.labels)
        axes = [*([0] if self.batch else []), *range(2, p.ndim)]
        hit = (p * g).sum(axes, keepdim=True)
        # Sums of float32 may differ in the last digit where in truth they do not.
        false_positive = (p.sum(axes, keepdim=True) - hit).clamp(min=0)
        false_negative = (g.sum(axes, keepdim=True) - hit).clamp(min=0)
        return hit, false_positive, false_negative

    def tversky(self, pair: Pair, alpha: float, beta: float) -> Tensor:
        """1 - (TP + nr) / (TP + alpha FP + beta FN + dr) without the loss of digits near 0."""
        hit, false_positive, false_negative = self.soft_counts(pair)
        missing = alpha * false_positive + beta * false_negative
        return (missing + (self.smooth_dr - self.smooth_nr)) / (hit + missing + self.smooth_dr)


class SensitivitySpecificityLoss(_RatioLoss):
    r"""Squared errors on and off a class, each averaged over its own voxels.

    :math:`w \frac{\sum (g - p)^2 g}{\sum g + \epsilon} + (1 - w) \frac{\sum (g - p)^2 (1 - g)}
    {\sum (1 - g) + \epsilon}`, the first term being sensitivity's (Brosch et al. 2015), per
    sample and class, then averaged. The survey's slide sums over the classes inside the fractions;
    here each class has its own, as in NiftyNet. A perfect prediction gives 0; an absent class
    leaves the second term, one that fills the sample the first. ``reduction="none"`` returns
    ``(B, C, 1, 1[, 1])``.

    Args:
        w: weight of the sensitivity term, 0 to 1.
        eps: added to the denominators.
        batch: count over the batch rather than per sample.

    Raises:
        ValueError: if ``w`` lies outside [0, 1].

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        w: float = 0.05,
        eps: float = 1e-5,
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
            smooth_nr=0.0,
            smooth_dr=eps,
            reduction=reduction,
            batch=batch,
            weight=weight,
            ignore_index=ignore_index,
        )
        if not 0 <= w <= 1:
            raise ValueError(f"w: expected a number from 0 to 1, got {w}")
        self.w = w

    def values(self, pair: Pair) -> Values:
        g = pair.counted(pair.labels)
        squared = (g - pair.counted(pair.probabilities)).square()
        axes = [*([0] if self.batch else []), *range(2, g.ndim)]
        inside = g.sum(axes, keepdim=True)
        counted = torch.ones_like(g[:, :1]) if pair.valid is None else pair.valid
        outside = counted.sum(axes, keepdim=True) - inside
        on = (squared * g).sum(axes, keepdim=True)
        off = (squared * (1 - g)).sum(axes, keepdim=True)
        eps = self.smooth_dr
        loss = self.w * on / (inside + eps) + (1 - self.w) * off / (outside + eps)
        return Values(loss, per_voxel=False)


class FocalTverskyLoss(_RatioLoss):
    r"""Tversky loss to a power, per class: the mean of :math:`(1 - T_c)^{1/\gamma}`.

    :math:`T_c = \frac{TP + s}{TP + \alpha FP + \beta FN + s}` (Abraham & Khan 2018, whose
    alpha weighs the false negatives; here, as in Salehi et al. and Ma, alpha weighs FP and beta
    FN). The power is taken per class, before the mean. Dubey 2021 raises to gamma itself:
    ``power="gamma"``. A perfect prediction gives 0, with a finite gradient; an absent class gives
    about 1 as soon as there are false positives. ``reduction="none"`` returns ``(B, C, 1, 1[,
    1])``.

    Args:
        alpha: weight of the false positives.
        beta: weight of the false negatives.
        gamma: see above, > 0; the paper's range is [1, 3].
        power: ``"1/gamma"`` or ``"gamma"``.
        smooth_nr, smooth_dr: added to numerator and denominator.
        batch: count over the batch rather than per sample.

    Raises:
        ValueError: if a number is out of its range.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 4 / 3,
        power: Literal["1/gamma", "gamma"] = "1/gamma",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
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
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            reduction=reduction,
            batch=batch,
            weight=weight,
            ignore_index=ignore_index,
        )
        if not (alpha >= 0 and beta >= 0):
            raise ValueError(f"alpha, beta: expected numbers >= 0, got {alpha}, {beta}")
        if not gamma > 0:
            raise ValueError(f"gamma: expected a positive number, got {gamma}")
        if power not in ("1/gamma", "gamma"):
            raise ValueError(f"power: expected '1/gamma' or 'gamma', got {power!r}")
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.power = power

    def values(self, pair: Pair) -> Values:
        exponent = self.gamma if self.power == "gamma" else 1 / self.gamma
        loss = self.tversky(pair, self.alpha, self.beta)
        return Values(concave_power(loss, exponent), per_voxel=False)


class JaccardLoss(FocalTverskyLoss):
    r"""Jaccard (IoU) loss: the mean over classes of :math:`1 - \frac{TP + s}{TP + FP + FN + s}`.

    (Ma 2020, IoU loss.) It is the Tversky loss with alpha = beta = 1. ``monai.losses.DiceLoss(
    jaccard=True)`` is the same with twice the smoothing in the denominator. A perfect prediction
    gives 0. ``reduction="none"`` returns ``(B, C, 1, 1[, 1])``.

    The arguments are those of :class:`FocalTverskyLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
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
            alpha=1.0,
            beta=1.0,
            gamma=1.0,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            reduction=reduction,
            batch=batch,
            weight=weight,
            ignore_index=ignore_index,
        )


class AsymmetricSimilarityLoss(FocalTverskyLoss):
    r"""Tversky loss with the weights of the F_beta score.

    :math:`1 - F_b`, :math:`F_b = \frac{TP + s}{TP + \frac{b^2}{1 + b^2} FN + \frac{1}{1 + b^2} FP
    + s}` (Hashemi et al. 2018). b above 1 favours recall, b = 1 is Dice. A perfect
    prediction gives 0. ``reduction="none"`` returns ``(B, C, 1, 1[, 1])``.

    Args:
        b: the paper's beta, >= 0.

    Raises:
        ValueError: if ``b`` is negative.

    The other arguments are those of :class:`FocalTverskyLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        b: float = 1.5,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        reduction: Reduction = "mean",
        batch: bool = False,
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        if not b >= 0:
            raise ValueError(f"b: expected a number >= 0, got {b}")
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            alpha=1 / (1 + b**2),
            beta=b**2 / (1 + b**2),
            gamma=1.0,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            reduction=reduction,
            batch=batch,
            weight=weight,
            ignore_index=ignore_index,
        )


class DicePart(_RatioLoss):
    """``monai.losses.DiceLoss`` behind this package's target conventions, for sums."""

    def values(self, pair: Pair) -> Values:
        hit, false_positive, false_negative = self.soft_counts(pair)
        missing = false_positive + false_negative
        numerator = missing + (self.smooth_dr - self.smooth_nr)
        return Values(numerator / (2 * hit + missing + self.smooth_dr), per_voxel=False)


class PenaltyGeneralizedDiceLoss(_RatioLoss):
    r"""Generalised Dice loss with a penalty on false counts.

    :math:`1 - \frac{GD}{1 + k (1 - GD)}`, GD the generalised Dice score (Yang et al. 2019; GD as in
    ``monai.losses.GeneralizedDiceLoss``, Sudre et al. 2017: weights 1 / (sum g)^2, an absent class
    taking the largest finite one). The survey writes L / (1 + k (1 - L)) with the loss L = 1 - GD,
    another function: where this one multiplies a small loss by 1 + k, that one divides it. One
    value per sample. A perfect prediction gives 0. ``reduction="none"`` returns
    ``(B, 1, 1, 1[, 1])``.

    Args:
        k: the penalty, >= 0; 0 gives the generalised Dice loss.
        smooth_nr, smooth_dr: added to GD's numerator and denominator.
        batch: count over the batch rather than per sample.

    Raises:
        ValueError: if ``k`` is negative. ``weight`` may be one number only, since GD weighs the
            classes itself.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        k: float = 2.5,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        reduction: Reduction = "mean",
        batch: bool = False,
        weight: float | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            reduction=reduction,
            batch=batch,
            weight=weight,
            ignore_index=ignore_index,
        )
        if not k >= 0:
            raise ValueError(f"k: expected a number >= 0, got {k}")
        self._check_one_weight("generalised Dice weighs the classes itself")
        self.k = k

    def values(self, pair: Pair) -> Values:
        hit, false_positive, false_negative = self.soft_counts(pair)
        present = hit + false_negative
        weight = torch.where(present > 0, present, 1.0) ** -2
        largest = torch.where(present > 0, weight, 0.0).amax(dim=1, keepdim=True)
        weight = torch.where(present > 0, weight, largest)
        missing = (weight * (false_positive + false_negative)).sum(1, keepdim=True)
        overlap = 2 * (weight * hit).sum(1, keepdim=True)
        loss = (missing + (self.smooth_dr - self.smooth_nr)) / (overlap + missing + self.smooth_dr)
        # 1 - GD / (1 + k (1 - GD)) with the loss 1 - GD, which is exact near 0.
        return Values((1 + self.k) * loss / (1 + self.k * loss), per_voxel=False)


class _LovaszLoss(SingleLoss):
    """The Lovász extension of the Jaccard loss: errors times the loss's growth, in falling order.

    Sorted by falling error, the i-th voxel of G positive ones adds its error times J_i - J_{i-1},
    the growth of the Jaccard loss when it becomes wrong. With U_i = G + (negatives among the first
    i) the growth is 1 / U_i for a positive voxel and (positives behind i) / (U_i (U_i - 1)) for a
    negative one: a difference of neighbours in float32 would lose its digits on a volume.
    """

    weighs: ClassVar[Literal["channel", "true class", "itself"]] = "itself"
    per_image: bool

    def extension(self, pair: Pair, errors: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted extension ``(images, C)`` and the number of positive voxels, likewise."""
        if pair.valid is not None:
            errors = torch.where(pair.valid, errors, 0.0)
            positive = positive & pair.valid
        errors, positive = self._by_image(errors), self._by_image(positive)
        if errors.shape[0] == 1 and errors.device.type == "cpu":
            # One class after the other stays in the CPU's cache.
            rows = zip(errors.split(1, dim=1), positive.split(1, dim=1), strict=True)
            loss = torch.cat([self._of_classes(e, p) for e, p in rows], dim=1)
        else:
            loss = self._of_classes(errors, positive)
        weight = self.channel_weight(pair)
        if weight is not None:
            loss = loss * (weight if weight.ndim == 0 else weight.reshape(1, -1))
        return loss, positive.sum(-1)

    @staticmethod
    def _of_classes(errors: Tensor, positive: Tensor) -> Tensor:
        order = errors.detach().argsort(dim=-1, descending=True)
        in_order = _jaccard_growth(positive.gather(-1, order), errors.dtype)
        growth = torch.empty_like(in_order).scatter_(-1, order, in_order)
        return (errors * growth).sum(-1)

    def _by_image(self, channels: Tensor) -> Tensor:
        """``(B, C, *spatial)`` -> ``(images, C, voxels)``."""
        if self.per_image:
            return channels.flatten(2)
        return channels.transpose(0, 1).flatten(1).unsqueeze(0)


class LovaszSoftmaxLoss(_LovaszLoss):
    r"""Lovász-Softmax: the Lovász extension of the Jaccard loss of |g - p|, per class.

    (Berman et al. 2018, section 3.2.) Averaged over the classes that occur, over the whole batch
    or image by image. With ``sigmoid`` every channel is a class of its own. A perfect prediction
    gives 0; an absent class adds nothing with ``"present"`` and its largest p otherwise; where no
    class occurs the loss is 0. ``reduction="none"`` returns one value per image,
    ``(B, 1, 1, 1[, 1])``, or one in all, ``(1, 1, 1, 1[, 1])``.

    Args:
        classes: ``"present"`` (in the batch, or in the image), ``"all"``, or the class numbers.
        per_image: image by image, then averaged.

    Raises:
        ValueError: if ``classes`` is none of these, or at call time holds a class that does not
            count.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        classes: Literal["present", "all"] | Sequence[int] = "present",
        per_image: bool = False,
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
        if isinstance(classes, str) and classes not in ("present", "all"):
            raise ValueError(
                f"classes: expected 'present', 'all' or class numbers, got {classes!r}"
            )
        self.classes = classes if isinstance(classes, str) else tuple(classes)
        self.per_image = per_image

    def values(self, pair: Pair) -> Values:
        p, positive = pair.probabilities[:, pair.first :], pair.labels[:, pair.first :] > 0
        errors = torch.where(positive, 1 - p, p)
        loss, occurs = self.extension(pair, errors, positive)
        counts = self._counting(pair, occurs)
        mean = torch.where(counts, loss, 0.0).sum(1) / counts.sum(1).clamp(min=1)
        return Values(mean.reshape(-1, 1, *[1] * len(pair.spatial)), per_voxel=False)

    def _counting(self, pair: Pair, occurs: Tensor) -> Tensor:
        """Which classes count in the mean, bool ``(images, C)``."""
        if self.classes == "present":
            return occurs > 0
        if self.classes == "all":
            return torch.ones_like(occurs, dtype=torch.bool)
        numbers = [int(c) - pair.first for c in self.classes]
        if not all(0 <= c < occurs.shape[1] for c in numbers):
            raise ValueError(
                f"classes: expected numbers from {pair.first} to {pair.num_channels - 1}, "
                f"got {list(self.classes)}"
            )
        chosen = [c in numbers for c in range(occurs.shape[1])]
        return torch.tensor(chosen, device=occurs.device).expand(occurs.shape)


class LovaszHingeLoss(_LovaszLoss):
    r"""Lovász hinge: the Lovász extension of the Jaccard loss of the hinge errors, per channel.

    The errors are :math:`1 - x (2 g - 1)` of the **logits** x, those below 0 not counted (Berman et
    al. 2018, section 3.1; for binary problems). For one channel, or several that are binary
    problems each; channels that exclude one another belong to :class:`LovaszSoftmaxLoss`.
    ``sigmoid=True`` says that labels may overlap, and is not applied. A prediction that is right by
    a margin of 1 gives 0; an absent class gives its largest error. ``reduction="none"`` returns
    ``(B, C, 1, 1[, 1])`` with ``per_image``, else ``(1, C, 1, 1[, 1])``.

    Args:
        per_image: image by image, then averaged, as the authors do for binary problems.

    Raises:
        ValueError: with ``softmax`` or ``other_act``, since the hinge is taken on logits.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        per_image: bool = True,
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
        if softmax or other_act is not None:
            raise ValueError(
                "softmax, other_act: expected neither, since the hinge is taken on the logits of "
                "binary channels (lovasz_softmax serves classes that exclude one another), got "
                f"softmax={softmax}, other_act={other_act}"
            )
        self.per_image = per_image

    def values(self, pair: Pair) -> Values:
        x, positive = pair.logits[:, pair.first :], pair.labels[:, pair.first :] > 0
        errors = 1 - torch.where(positive, x, -x)
        loss, _ = self.extension(pair, errors.clamp(min=0), positive)
        return Values(loss.reshape(*loss.shape, *[1] * len(pair.spatial)), per_voxel=False)


def _jaccard_growth(positive: Tensor, dtype: torch.dtype) -> Tensor:
    """J_i - J_{i-1} for voxels in the order of their errors, bool ``(..., voxels)``."""
    total = positive.sum(-1, keepdim=True)
    # Whole numbers of int32: a float32 running sum stops being exact at 2^24 voxels.
    seen = positive.to(torch.int32).cumsum(-1, dtype=torch.int32)
    position = torch.arange(1, positive.shape[-1] + 1, device=positive.device, dtype=torch.int32)
    union = (total + position - seen).to(dtype)
    behind = (total - seen).to(dtype)
    # Of a class without a voxel the first error makes the whole loss.
    grown = torch.where(union > 1, behind / (union * (union - 1)).clamp(min=1), 1.0)
    return torch.where(positive, 1 / union, grown)
