"""Sums of losses: named ones with their papers' defaults, and any weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from monai_segloss.losses.base import Activation, Pair, Reduction, SegmentationLoss, Values, Weight
from monai_segloss.losses.distribution import (
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    FocalPart,
    TopKLoss,
)
from monai_segloss.losses.region import DicePart, concave_power

__all__ = [
    "ComboLoss",
    "CompoundLoss",
    "DiceBCELoss",
    "DiceFocalLoss",
    "DiceTopKLoss",
    "ExpLogLoss",
    "WeightedSumLoss",
]


class CompoundLoss(SegmentationLoss):
    """A sum of factors times parts, computed from one pair of prediction and target.

    Each part is reduced by itself: ``"sum"`` adds the parts' sums, ``"none"`` their values,
    broadcast. :attr:`last_terms` holds every part's value at the last call, without its factor.

    Args:
        parts: name -> (factor, loss); the losses have these same conventions.
        **conventions: those of :class:`SegmentationLoss`.
    """

    def __init__(
        self, parts: Mapping[str, tuple[float, SegmentationLoss]], **conventions: Any
    ) -> None:
        super().__init__(**conventions)
        # The parts hold the weights; as a buffer here too a checkpoint would keep them twice.
        self.class_weight = None
        self.parts = nn.ModuleDict({name: loss for name, (_, loss) in parts.items()})
        self.factors = {name: float(factor) for name, (factor, _) in parts.items()}
        self.last_terms: dict[str, Tensor] = {}

    def compute(self, pair: Pair) -> Tensor:
        terms: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            assert isinstance(part, SegmentationLoss)
            terms[name] = part.compute(pair)
        self.last_terms = {name: term.detach() for name, term in terms.items()}
        total = pair.logits.new_zeros(())
        for name, term in terms.items():
            total = total + self.factors[name] * term
        return total


def _conventions(
    include_background: bool,
    to_onehot_y: bool,
    sigmoid: bool,
    softmax: bool,
    other_act: Activation | None,
    reduction: Reduction,
    weight: Weight,
    ignore_index: int | None,
) -> dict[str, Any]:
    return {
        "include_background": include_background,
        "to_onehot_y": to_onehot_y,
        "sigmoid": sigmoid,
        "softmax": softmax,
        "other_act": other_act,
        "reduction": reduction,
        "weight": weight,
        "ignore_index": ignore_index,
    }


class DiceBCELoss(CompoundLoss):
    r"""Dice + binary cross-entropy, channel by channel.

    ``lambda_dice`` (1 - (2 TP + s) / (sum p + sum g + s)), averaged over samples and classes
    (``monai.losses.DiceLoss``), plus ``lambda_bce`` times the mean of -g log p - (1 - g) log(1 - p)
    (Dubey 2021, Dice-BCE). Unlike ``monai.losses.DiceCELoss`` with ``sigmoid`` and several
    channels, whose cross-entropy takes a softmax, it serves labels that overlap. A perfect
    prediction gives 0. ``reduction="none"`` returns ``(B, C, *spatial)``, the Dice term repeated.

    Args:
        lambda_dice, lambda_bce: factors.
        smooth_nr, smooth_dr: added to Dice's numerator and denominator.
        batch: Dice's counts over the batch rather than per sample.

    The other arguments, and the errors, are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        lambda_dice: float = 1.0,
        lambda_bce: float = 1.0,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        reduction: Reduction = "mean",
        batch: bool = False,
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        own = _conventions(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            weight,
            ignore_index,
        )
        dice = DicePart(smooth_nr=smooth_nr, smooth_dr=smooth_dr, batch=batch, **own)
        # The weighted form with beta = 1 is the plain binary cross-entropy.
        bce = BalancedCrossEntropyLoss(beta=1.0, form="weighted", **own)
        super().__init__({"dice": (lambda_dice, dice), "bce": (lambda_bce, bce)}, **own)


class DiceFocalLoss(CompoundLoss):
    r"""Dice + focal loss, with the same activation in both.

    ``lambda_dice`` times ``monai.losses.DiceLoss`` plus ``lambda_focal`` times the mean over
    samples, **classes** and voxels of (1 - p_y)^gamma l on the true class's channel, as
    ``monai.losses.FocalLoss`` averages (Zhu et al. 2019, AnatomyNet; Lin et al. 2017).
    ``monai.losses.DiceFocalLoss`` takes a sigmoid in the focal part even with ``softmax=True``.
    With ``sigmoid`` every channel is a binary problem. A perfect prediction gives 0.
    ``reduction="none"`` returns ``(B, C, *spatial)``.

    Args:
        gamma: focusing exponent, >= 0.
        alpha: MONAI's balance of foreground and background in the focal part, or None.
        lambda_dice, lambda_focal: factors.
        smooth_nr, smooth_dr: added to Dice's numerator and denominator.
        batch: Dice's counts over the batch rather than per sample.

    Raises:
        ValueError: if ``gamma`` is negative.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        gamma: float = 2.0,
        alpha: float | None = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        reduction: Reduction = "mean",
        batch: bool = False,
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        if not gamma >= 0:
            raise ValueError(f"gamma: expected a number >= 0, got {gamma}")
        own = _conventions(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            weight,
            ignore_index,
        )
        dice = DicePart(smooth_nr=smooth_nr, smooth_dr=smooth_dr, batch=batch, **own)
        focal = FocalPart(gamma=gamma, alpha=alpha, **own)
        super().__init__({"dice": (lambda_dice, dice), "focal": (lambda_focal, focal)}, **own)


class DiceTopKLoss(CompoundLoss):
    r"""Dice + TopK: ``lambda_dice`` DiceLoss + ``lambda_topk`` TopKLoss.

    (Isensee et al., nnU-Net, DC_and_topk_loss; Ma 2020, Dice with TopK.) A perfect prediction gives
    0. ``reduction="none"`` returns ``(B, C, *spatial)``.

    Args:
        k: percent of the voxels in TopK.
        lambda_dice, lambda_topk: factors.
        smooth_nr, smooth_dr: added to Dice's numerator and denominator.
        batch: Dice's counts over the batch rather than per sample.

    Raises:
        ValueError: if ``k`` lies outside (0, 100].

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
        lambda_dice: float = 1.0,
        lambda_topk: float = 1.0,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        reduction: Reduction = "mean",
        batch: bool = False,
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        own = _conventions(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            weight,
            ignore_index,
        )
        dice = DicePart(smooth_nr=smooth_nr, smooth_dr=smooth_dr, batch=batch, **own)
        topk = TopKLoss(k=k, **own)
        super().__init__({"dice": (lambda_dice, dice), "topk": (lambda_topk, topk)}, **own)


class ComboLoss(CompoundLoss):
    r"""Combo loss: alpha times a balanced cross-entropy, minus 1 - alpha times the Dice score.

    :math:`\alpha\, \overline{-[\beta\, g \log p + (1 - \beta)(1 - g) \log(1 - p)]} -
    (1 - \alpha)\, \frac{2 TP + s}{\sum p + \sum g + s}` (Taghanaki et al. 2019), channel by
    channel, averaged. beta weighs a class's own voxels in every channel alike. A perfect prediction
    gives -(1 - alpha), its minimum. ``reduction="none"`` returns ``(B, C, *spatial)``.

    Args:
        alpha: share of the cross-entropy, 0 to 1.
        beta: weight of false negatives, 0 to 1; above 1/2 it punishes them more.
        smooth: s.
        batch: Dice's counts over the batch rather than per sample.

    Raises:
        ValueError: if ``alpha`` or ``beta`` lies outside [0, 1].

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 1.0,
        reduction: Reduction = "mean",
        batch: bool = False,
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}")
        own = _conventions(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            weight,
            ignore_index,
        )
        balanced = BalancedCrossEntropyLoss(beta=beta, **own)
        score = _DiceScore(smooth_nr=smooth, smooth_dr=smooth, batch=batch, **own)
        super().__init__({"bce": (alpha, balanced), "dice": (alpha - 1, score)}, **own)


class _DiceScore(DicePart):
    """The Dice score, for sums that subtract it."""

    def values(self, pair: Pair) -> Values:
        loss = super().values(pair)
        return loss._replace(tensor=1 - loss.tensor)


class ExpLogLoss(CompoundLoss):
    r"""Exponential logarithmic loss.

    :math:`w_d\, \overline{(-\ln Dice_c)^{\gamma_d}} + w_c\, \overline{w_y (-\ln p_y)^{\gamma_c}}`
    (Wong et al. 2018): the first mean over samples and classes, :math:`Dice_c =
    \frac{2 TP + \epsilon}{\sum p + \sum g + \epsilon}`, the second over voxels, :math:`w_y =
    \sqrt{\sum_k f_k / f_y}`, f the number of voxels of each class. The logarithm and the power
    are taken per class, before the mean. Binary channels are two classes each. A perfect prediction
    gives 0, with a finite gradient: powers below 1 go on as straight lines below 1e-7. An absent
    class has no voxel to weigh. ``reduction="none"`` returns ``(B, C, *spatial)``.

    Args:
        w_dice, w_cross: factors of the two terms.
        gamma_dice, gamma_cross: exponents, > 0.
        class_frequencies: f per class, in any unit, as the paper takes it from the training set;
            None for the target at hand. For exclusive labels only.
        eps: the Dice score's epsilon.
        batch: Dice's counts over the batch rather than per sample.

    Raises:
        ValueError: if an exponent or a frequency is not positive.

    The other arguments are those of :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        w_dice: float = 0.8,
        w_cross: float = 0.2,
        gamma_dice: float = 0.3,
        gamma_cross: float = 0.3,
        class_frequencies: Sequence[float] | None = None,
        eps: float = 1.0,
        reduction: Reduction = "mean",
        batch: bool = False,
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        if not (gamma_dice > 0 and gamma_cross > 0):
            raise ValueError(
                "gamma_dice, gamma_cross: expected positive numbers, got "
                f"{gamma_dice}, {gamma_cross}"
            )
        if class_frequencies is not None and not all(f > 0 for f in class_frequencies):
            raise ValueError(
                f"class_frequencies: expected positive numbers, got {list(class_frequencies)}"
            )
        own = _conventions(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            weight,
            ignore_index,
        )
        dice = _LogDice(gamma_dice, smooth_nr=eps, smooth_dr=eps, batch=batch, **own)
        cross = _PowerOfCrossEntropy(gamma_cross, class_frequencies, **own)
        super().__init__({"dice": (w_dice, dice), "cross": (w_cross, cross)}, **own)


class _LogDice(DicePart):
    """(-ln Dice_c)^gamma."""

    def __init__(self, gamma: float, **options: Any) -> None:
        super().__init__(**options)
        self.gamma = gamma

    def values(self, pair: Pair) -> Values:
        loss = super().values(pair)
        # -log of the score 1 - loss, exact where the loss is near 0.
        logarithm = -torch.log1p(-loss.tensor.clamp(max=1 - torch.finfo(loss.tensor.dtype).eps))
        return loss._replace(tensor=concave_power(logarithm, self.gamma))


class _PowerOfCrossEntropy(CrossEntropyLoss):
    """w_y (-ln p_y)^gamma, over the voxels that count."""

    def __init__(self, gamma: float, frequencies: Sequence[float] | None, **options: Any) -> None:
        super().__init__(normalize="voxels", **options)
        self.gamma = gamma
        self.frequencies = frequencies

    def cross_entropy(self, pair: Pair) -> Tensor:
        return self._rarity(pair) * concave_power(super().cross_entropy(pair), self.gamma)

    def _rarity(self, pair: Pair) -> Tensor:
        """sqrt(sum f / f_y) at every value."""
        if not pair.exclusive:
            g = pair.counted(pair.labels)
            axes = [0, *range(2, g.ndim)]
            positive = g.sum(axes, keepdim=True)
            total: Tensor | float = float(g.numel() // g.shape[1])
            if pair.valid is not None:
                total = pair.valid.sum()
            other = total - positive
            count = torch.where(pair.labels[:, pair.first :] > 0, positive, other)
            return torch.sqrt(total / count.clamp(min=1))
        assert pair.index is not None
        if self.frequencies is not None:
            f = pair.logits.new_tensor(self.frequencies)
            if f.numel() != pair.num_channels:
                raise ValueError(
                    f"class_frequencies: expected {pair.num_channels} numbers, got {f.numel()}"
                )
        else:
            labels = pair.labels
            if pair.valid is not None:
                labels = torch.where(pair.valid, labels, 0.0)
            f = labels.sum([0, *range(2, labels.ndim)])
        # A class without a voxel weighs none.
        rarity = torch.sqrt(f.sum() / torch.where(f > 0, f, 1.0))
        return torch.take(rarity, pair.index)


class WeightedSumLoss(_Loss):
    r"""The sum of weight times loss over any losses that take (input, target).

    The way to give a loss that is not safe alone its partner: equal, A + B, or gradual,
    :math:`\alpha A + (1 - \alpha) B` with a falling alpha (Kervadec et al. 2019, section 2.3;
    Valverde & Tohka 2022, section 4), which :class:`monai_segloss.schedule.LossWeightSchedule`
    moves epoch by epoch. The weights are a buffer: a checkpoint keeps them. :attr:`last_terms`
    holds every loss's value at the last call, without its weight.

    A target that brings a map is handed whole to the losses of this package that read that kind of
    map or none; MONAI's losses get its label. Losses that read maps of different kinds need a
    target without one.

    Args:
        losses: name -> loss.
        weights: one number per loss; 1 each by default.

    Raises:
        ValueError: if there is no loss, or the number of weights differs, or one is not finite; at
            call time on a packed target that two losses would read as different kinds.
    """

    def __init__(
        self, losses: Mapping[str, nn.Module], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not losses:
            raise ValueError("losses: expected at least one loss, got none")
        self.losses = nn.ModuleDict(dict(losses))
        self.weights: Tensor
        self.register_buffer("weights", torch.ones(len(losses)))
        self.set_weights([1.0] * len(losses) if weights is None else weights)
        kinds = {getattr(loss, "map_kind", None) for loss in losses.values()}
        self.map_kinds: tuple[str, ...] = tuple(sorted(str(k) for k in kinds if k is not None))
        self.last_terms: dict[str, Tensor] = {}

    @property
    def map_kind(self) -> str | None:
        """The kind of map that the losses read, if it is one kind."""
        return self.map_kinds[0] if len(self.map_kinds) == 1 else None

    def set_weights(self, weights: Sequence[float]) -> None:
        """Change the weights, in the order of the losses."""
        values = torch.as_tensor(list(weights), dtype=torch.float32)
        if values.shape != self.weights.shape or not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"weights: expected {len(self.losses)} finite numbers "
                f"({', '.join(self.losses)}), got {list(weights)}"
            )
        self.weights.copy_(values)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            input: as the losses take it.
            target: label, or label and map.
        """
        label_channels = self._label_channels(input)
        if target.shape[1] > label_channels and len(self.map_kinds) > 1:
            raise ValueError(
                "target: expected the label alone, since the losses read maps of the kinds "
                f"{', '.join(self.map_kinds)} and a target brings one, got "
                f"{target.shape[1]} channels of which {label_channels} are label"
            )
        label = target[:, :label_channels]
        terms = {
            name: loss(input, target if isinstance(loss, _READS_PACKED) else label)
            for name, loss in self.losses.items()
        }
        self.last_terms = {name: term.detach() for name, term in terms.items()}
        weights = self.weights.to(input.device)
        total = torch.zeros((), device=input.device)
        for weight, term in zip(weights, terms.values(), strict=True):
            total = total + weight * term
        return total

    def _label_channels(self, input: Tensor) -> int:
        one = any(getattr(loss, "to_onehot_y", False) for loss in self.losses.values())
        return 1 if one else input.shape[1]


_READS_PACKED = (SegmentationLoss, WeightedSumLoss)
