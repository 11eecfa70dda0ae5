"""MONAI's loss conventions, written once.

A loss of this package states its formula in :meth:`SingleLoss.values`; everything a MONAI loss has
to do around it is here: activation, one-hot labels, the map that travels in the target, background,
ignored voxels, weights, reduction, half precision, and errors that name the argument.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from monai.data import MetaTensor
from monai.utils import LossReduction
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.modules.loss import _Loss

from monai_segloss.distance import Spacing
from monai_segloss.maps import (
    check_binary,
    check_range,
    check_whole,
    one_hot_to_index,
    region_wise_map,
)

__all__ = [
    "Activation",
    "Pair",
    "Reduction",
    "SegmentationLoss",
    "SingleLoss",
    "Values",
    "Weight",
    "map_from_label",
]

Activation = Callable[[Tensor], Tensor]
Reduction = LossReduction | Literal["mean", "sum", "none"]
Weight = Sequence[float] | float | Tensor | None


@dataclass
class Pair:
    """A prediction and its target, taken apart.

    Attributes:
        logits: the input as it came, in float32 (or float64), ``(B, C, *spatial)``.
        activation: what turns the input into probabilities: ``"softmax"``, ``"sigmoid"``, or
            ``"none"`` if :attr:`given` holds them.
        given: the probabilities, if the input holds them or ``other_act`` made them.
        index: int64 class index ``(B, 1, *spatial)``; None if the channels are binary labels.
        channels: the target's label channels as float ``(B, C, *spatial)`` if binary, else None.
        map: the map that came in the target, ``(B, 1 or C, *spatial)``, or None.
        valid: bool ``(B, 1, *spatial)``, False where a voxel is ignored; None if all count.
        first: the first channel that counts: 1 without the background, else 0.
    """

    logits: Tensor
    activation: Literal["softmax", "sigmoid", "none"]
    given: Tensor | None
    index: Tensor | None
    channels: Tensor | None
    map: Tensor | None
    valid: Tensor | None
    first: int
    _probabilities: Tensor | None = None
    _labels: Tensor | None = None

    @property
    def num_channels(self) -> int:
        return self.logits.shape[1]

    @property
    def spatial(self) -> tuple[int, ...]:
        return tuple(self.logits.shape[2:])

    @property
    def exclusive(self) -> bool:
        """Whether the channels are classes that exclude one another, rather than binary problems.

        A sigmoid makes binary problems even of an exclusive label.
        """
        return self.index is not None and self.activation != "sigmoid"

    @property
    def probabilities(self) -> Tensor:
        """``(B, C, *spatial)``."""
        if self._probabilities is None:
            if self.activation == "softmax":
                self._probabilities = torch.softmax(self.logits, dim=1)
            elif self.activation == "sigmoid":
                self._probabilities = torch.sigmoid(self.logits)
            else:
                assert self.given is not None
                self._probabilities = self.given
        return self._probabilities

    @property
    def true_class_cross_entropy(self) -> Tensor:
        """-log of the true class's probability, ``(B, 1, *spatial)``; for exclusive labels."""
        assert self.index is not None
        if self.activation == "softmax":
            return cross_entropy(self.logits, self.index[:, 0], reduction="none").unsqueeze(1)
        return -_safe_log(self.probabilities.gather(1, self.index))

    @property
    def true_class_probability(self) -> Tensor:
        """Probability of the true class, ``(B, 1, *spatial)``; for exclusive labels."""
        # exp(-CE) is the softmax at one class without the other C - 1 channels in memory.
        return torch.exp(-self.true_class_cross_entropy)

    @property
    def labels(self) -> Tensor:
        """The label's channels as 0 and 1 in the input's dtype, ``(B, C, *spatial)``."""
        if self.channels is not None:
            return self.channels
        if self._labels is None:
            assert self.index is not None
            zeros = self.logits.new_zeros(()).expand(self.logits.shape)
            self._labels = zeros.scatter(1, self.index, 1.0)
        return self._labels

    def counted(self, channels: Tensor) -> Tensor:
        """The channels that count, 0 at the voxels that do not."""
        channels = channels[:, self.first :]
        return channels if self.valid is None else torch.where(self.valid, channels, 0.0)

    def binary_cross_entropy(self, weight: Tensor | None = None) -> Tensor:
        """-g log p - (1 - g) log(1 - p) of the counted channels, each a binary problem.

        Exact where p rounds to 0 or 1, unless the input holds probabilities.

        Args:
            weight: factor at every value.
        """
        labels = self.labels[:, self.first :]
        if self.activation == "sigmoid":
            logits = self.logits[:, self.first :]
            return binary_cross_entropy_with_logits(logits, labels, weight, reduction="none")
        if self.activation == "softmax":
            p = self.probabilities.detach()
            loss = _SoftmaxBinaryCrossEntropy.apply(self.logits, p, self.index)[:, self.first :]
        else:
            p = self.probabilities[:, self.first :]
            loss = -torch.where(labels > 0, _safe_log(p), _safe_log(1 - p))
        return loss if weight is None else weight * loss


class _SoftmaxBinaryCrossEntropy(torch.autograd.Function):
    """-log p_y at the true class y, -log(1 - p_k) at every other class k of a softmax p.

    In float32 1 - p_k loses its digits only where p_k > 1/2, so at one wrong class at most. There
    it is the sum of the other classes, and its logarithm is taken from the softmax without that
    class, q. With autograd's own steps this is twice as slow; the gradient, for factors u, is

    u_k p_k / (1 - p_k) (delta_kj - p_j), summed over k, and -u_y (delta_yj - p_j),

    in which p_j / (1 - p_k) is q_j at a k with p_k > 1/2.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, p: Tensor, index: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=1)
        log_p_true = log_p.gather(1, index)
        wrong = torch.gt(p, 0.5, out=torch.empty_like(p)).scatter_(1, index, 0.0)
        small = torch.addcmul(p, p, wrong, value=-1)
        # The product with a mask of floats is far faster than masked_fill with -inf.
        others = log_p.sub_(wrong, alpha=torch.finfo(p.dtype).max)
        q = torch.softmax(others, dim=1)
        log_rest = others.amax(1, keepdim=True) - q.amax(1, keepdim=True).log_()
        loss = torch.log1p(-small).addcmul_(wrong, log_rest).scatter_(1, index, log_p_true).neg_()
        ctx.save_for_backward(p, small, q, index)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        p, small, q, index = ctx.saved_tensors
        grad = (small / (1 - small)).mul_(factor).scatter_(1, index, -factor.gather(1, index))
        grad.addcmul_(p, grad.sum(1, keepdim=True), value=-1)
        large = (p - small).mul_(factor)
        grad.add_(large).addcmul_(q, large.sum(1, keepdim=True), value=-1)
        return grad, None, None


class Values(NamedTuple):
    """What a loss's formula gives, before the reduction.

    Attributes:
        tensor: broadcastable to the input; its dim 1 holds the counted channels, or what stands
            for all of them. Only if nothing is left to be done with voxels or channels (see
            ``per_voxel`` and :attr:`SegmentationLoss.weighs`) any shape will do.
        elements: how many elements each value stands for (C for a sum over C classes).
        divisor: what the mean divides the sum by; by default the number of elements that count.
        per_voxel: whether ignored voxels are still in it.
    """

    tensor: Tensor
    elements: int = 1
    divisor: Tensor | None = None
    per_voxel: bool = True


class SegmentationLoss(_Loss, ABC):
    """Base of the losses.

    Input ``(B, C, H, W[, D])``. The target's channels are, by ``to_onehot_y``:

    ===================  =====================================================================
    label                target channels
    ===================  =====================================================================
    ``to_onehot_y``      1: class index, or 1 + 1 / 1 + C: class index and map
    not ``to_onehot_y``  C: one-hot (or, with ``sigmoid``, labels that may overlap),
                         or C + 1 / C + C: the same and map
    C = 1                1: binary label, or 1 + 1 / 1 + 2: binary label and map
    ===================  =====================================================================

    Losses that use no map accept the packed forms too and leave the map unread, so that the same
    data pipeline serves every loss.

    Args:
        include_background: if False, channel 0 does not count (ignored for a single channel).
        to_onehot_y: the target's label is a class index.
        sigmoid, softmax, other_act: activation of the input, at most one; none means the input
            holds probabilities already.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``; what the elements are, each loss states.
        weight: a number or one per counted class.
        ignore_index: label value whose voxels do not count; with one-hot labels, a class.

    Raises:
        ValueError: on incompatible activations, or at call time on inputs that do not fit. On the
            CPU the values are checked too (labels that are not whole or out of range, NaN in input
            or map). On an accelerator looking at values would stall it, so there the labels of a
            loss's first call alone are checked; compiled code checks shapes only.
        TypeError: if ``other_act`` cannot be called.
    """

    weighs: ClassVar[Literal["channel", "true class", "itself"]] = "channel"
    """What ``weight`` belongs to; a loss that weighs itself has applied it in its formula."""

    map_kind: str | None = None
    """The kind of map that the loss reads from its target; None if it reads none."""

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        *,
        reduction: Reduction = "mean",
        weight: Weight = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=_reduction_name(reduction))
        if other_act is not None and not callable(other_act):
            raise TypeError(f"other_act: expected a callable or None, got {type(other_act)}")
        if int(sigmoid) + int(softmax) + int(other_act is not None) > 1:
            raise ValueError(
                "sigmoid, softmax, other_act: expected at most one of them, got "
                f"sigmoid={sigmoid}, softmax={softmax}, other_act={other_act}"
            )
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.ignore_index = ignore_index
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", _as_weight(weight))
        self._values_seen = False

    @abstractmethod
    def compute(self, pair: Pair) -> Tensor:
        """The reduced loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            input: logits or probabilities ``(B, C, H, W[, D])``.
            target: see the class.

        Returns:
            0-d float32 tensor (float64 for a float64 input) for ``"mean"`` and ``"sum"``.
        """
        input, target = _plain(input), _plain(target)
        with torch.autocast(device_type=input.device.type, enabled=False):
            pair = self._take_apart(input, target)
            loss = self.compute(pair)
        if input.device.type == "cpu" and not torch.compiler.is_compiling():
            _explain_if_not_finite(loss, pair)
        return loss

    # ---------------------------------------------------------------------- target and input

    def _take_apart(self, input: Tensor, target: Tensor) -> Pair:
        label_channels = self._label_channels(input, target)
        logits = input if input.dtype == torch.float64 else input.float()
        label = target[:, :label_channels]
        packed = target[:, label_channels:] if target.shape[1] > label_channels else None
        index, channels, valid = self._labels(label, logits.shape[1])
        if valid is not None:
            # Whatever stands at an ignored voxel, NaN too, must not reach the gradient.
            logits = torch.where(valid, logits, 0.0)
        activation: Literal["softmax", "sigmoid", "none"] = "none"
        if self.sigmoid:
            activation = "sigmoid"
        elif self.softmax and logits.shape[1] > 1:
            activation = "softmax"
        given = None
        if activation == "none":
            given = logits if self.other_act is None else self.other_act(logits)
        return Pair(
            logits=logits,
            activation=activation,
            given=given,
            index=index,
            channels=None if channels is None else channels.to(logits.dtype),
            map=None if packed is None else packed.to(logits.dtype),
            valid=valid,
            first=0 if self.include_background or logits.shape[1] == 1 else 1,
        )

    def _label_channels(self, input: Tensor, target: Tensor) -> int:
        """Number of leading target channels that are label, after a check of all shapes."""
        classes = input.shape[1] if input.ndim > 1 else 0
        if input.ndim not in (4, 5):
            raise ValueError(f"input: expected (B, C, H, W[, D]), got shape {tuple(input.shape)}")
        if not input.is_floating_point():
            raise ValueError(f"input: expected a floating dtype, got {input.dtype}")
        if classes == 1:
            for flag, name in (
                (self.softmax, "softmax=True"),
                (self.to_onehot_y, "to_onehot_y=True"),
                (not self.include_background, "include_background=False"),
            ):
                if flag and not torch.compiler.is_compiling():
                    warnings.warn(f"single channel prediction, `{name}` ignored.", stacklevel=5)
        label = 1 if self.to_onehot_y else classes
        maps = (0, 1, 2 if classes == 1 else classes)
        allowed = sorted({label + extra for extra in maps})
        wanted = " or ".join(str(n) for n in allowed)
        if (
            target.ndim != input.ndim
            or target.shape[0] != input.shape[0]
            or target.shape[2:] != input.shape[2:]
            or target.shape[1] not in allowed
        ):
            raise ValueError(
                f"target: expected shape ({input.shape[0]}, {wanted}, "
                f"{', '.join(str(n) for n in input.shape[2:])}) for input {tuple(input.shape)} "
                f"with to_onehot_y={self.to_onehot_y} (label, or label and map), "
                f"got {tuple(target.shape)}"
            )
        return label

    def _labels(
        self, label: Tensor, classes: int
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Class index or binary channels, and which voxels count."""
        look = self._may_look_at_values(label)
        if classes == 1 or (self.sigmoid and not self.to_onehot_y):
            if self.ignore_index is None:
                valid = None
            elif classes == 1:
                valid = label != self.ignore_index
                label = torch.where(valid, label, 0)
            elif 0 <= self.ignore_index < classes:
                valid = label[:, self.ignore_index : self.ignore_index + 1] == 0
            else:
                raise ValueError(
                    f"ignore_index: expected a channel from 0 to {classes - 1} for labels that may "
                    f"overlap, got {self.ignore_index}"
                )
            if look:
                check_binary(label, "target")
            return None, label, valid
        if self.to_onehot_y:
            if look:
                check_whole(label, "target")
            index = label.to(torch.int64)
            valid = None if self.ignore_index is None else index != self.ignore_index
            index = index if valid is None else torch.where(valid, index, 0)
            if look:
                check_range(index, classes, "target")
            return index, None, valid
        index = one_hot_to_index(label, "target", "sigmoid=True", check=look)
        if self.ignore_index is None:
            return index, None, None
        valid = index != self.ignore_index
        return torch.where(valid, index, 0), None, valid

    def _may_look_at_values(self, label: Tensor) -> bool:
        if torch.compiler.is_compiling():
            return False
        first, self._values_seen = not self._values_seen, True
        return first or label.device.type == "cpu"

    # ---------------------------------------------------------------------- weights, reduction

    def true_class_weight(self, pair: Pair) -> Tensor | None:
        """The weight of every voxel's true class, ``(B, 1, *spatial)``, or one number for all.

        Background voxels weigh 1 if the background does not count; for exclusive labels.
        """
        weight = self._checked_weight(pair)
        if weight is None or weight.ndim == 0:
            return weight
        assert pair.index is not None
        if pair.first:
            weight = torch.cat([weight.new_ones(1), weight])
        return torch.take(weight, pair.index)

    def channel_weight(self, pair: Pair) -> Tensor | None:
        """The weight of every counted channel, ``(1, C, 1, 1[, 1])``, or one number for all."""
        weight = self._checked_weight(pair)
        if weight is None or weight.ndim == 0:
            return weight
        return weight.reshape(1, -1, *[1] * len(pair.spatial))

    def _checked_weight(self, pair: Pair) -> Tensor | None:
        if self.class_weight is None:
            return None
        weight = self.class_weight.to(device=pair.logits.device, dtype=pair.logits.dtype)
        counted = pair.num_channels - pair.first
        if weight.ndim == 1 and weight.numel() != counted:
            raise ValueError(
                f"weight: expected one number or {counted} (one per counted class), "
                f"got {weight.numel()}"
            )
        return weight

    def _check_one_weight(self, reason: str) -> None:
        """For a loss whose weight cannot belong to a class.

        Raises:
            ValueError: if there is one per class, with the reason.
        """
        if self.class_weight is not None and self.class_weight.ndim > 0:
            raise ValueError(
                f"weight: expected one number, since {reason}, got {self.class_weight.tolist()}"
            )

    def _reduce(self, pair: Pair, values: Values) -> Tensor:
        tensor = self._weigh(pair, values.tensor)
        counted: int | Tensor = tensor.numel() * values.elements
        if pair.valid is not None and values.per_voxel:
            tensor = torch.where(pair.valid, tensor, 0.0)
            counted = pair.valid.sum() * (tensor.shape[1] * values.elements)
        if self.reduction == LossReduction.NONE.value:
            return tensor
        total = tensor.sum()
        if self.reduction == LossReduction.SUM.value:
            return total
        if values.divisor is not None:
            # Where nothing counts the sum is 0, and so is the mean.
            return total / values.divisor.to(total.dtype).clamp(min=torch.finfo(total.dtype).tiny)
        return total / (counted.clamp(min=1) if isinstance(counted, Tensor) else max(counted, 1))

    def _weigh(self, pair: Pair, tensor: Tensor) -> Tensor:
        if self.weighs == "itself":
            return tensor
        by_class = self.weighs == "true class" and pair.index is not None
        weight = self.true_class_weight(pair) if by_class else self.channel_weight(pair)
        return tensor if weight is None else tensor * weight


class SingleLoss(SegmentationLoss):
    """A loss of one formula."""

    @abstractmethod
    def values(self, pair: Pair) -> Values:
        """The formula."""

    def compute(self, pair: Pair) -> Tensor:
        return self._reduce(pair, self.values(pair))


def map_from_label(pair: Pair, kind: str, spacing: Spacing, options: Mapping[str, Any]) -> Tensor:
    """The map of a pair whose target brought none, computed from its label, on its device.

    Returns:
        ``(B, 1 or C, *spatial)`` for exclusive labels; of binary channels each one's foreground
        map, ``(B, C, *spatial)``.
    """
    if pair.channels is not None:
        labels = pair.channels
        if pair.valid is not None and pair.num_channels == 1:
            labels = torch.where(pair.valid, labels, 0.0)
        return region_wise_map(
            labels, kind, pair.num_channels, spacing, multi_label=True, **options
        )
    assert pair.index is not None
    ignored = pair.num_channels
    index = pair.index if pair.valid is None else torch.where(pair.valid, pair.index, ignored)
    return region_wise_map(
        index,
        kind,
        pair.num_channels,
        spacing,
        ignore_index=None if pair.valid is None else ignored,
        **options,
    )


def _safe_log(p: Tensor) -> Tensor:
    """log of a probability that came as one: what lies below the smallest number is that number."""
    return torch.log(p.clamp(min=torch.finfo(p.dtype).tiny))


def _reduction_name(reduction: Any) -> str:
    try:
        return str(LossReduction(reduction).value)
    except ValueError:
        choices = ", ".join(repr(r.value) for r in LossReduction)
        raise ValueError(f"reduction: expected one of {choices}, got {reduction!r}") from None


def _as_weight(weight: Weight) -> Tensor | None:
    if weight is None:
        return None
    # A copy: as a buffer it takes what a state dict brings, which is not the caller's to have.
    values = torch.as_tensor(weight, dtype=torch.float32).detach().clone()
    if values.ndim > 1 or not bool((values >= 0).all()):
        raise ValueError(
            f"weight: expected a number or a sequence of numbers >= 0, got {values.tolist()}"
        )
    return values


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _explain_if_not_finite(loss: Tensor, pair: Pair) -> None:
    if bool(torch.isfinite(loss.detach()).all()):
        return
    for name, tensor in (("input", pair.logits), ("target (its map)", pair.map)):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            bad = ~torch.isfinite(tensor)
            where = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"{name}: expected finite values, got {tensor[where].item()} at {where}, "
                f"one of {int(bad.sum())}"
            )
