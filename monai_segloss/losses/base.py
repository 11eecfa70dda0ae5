"""MONAI's loss conventions, written once.

A loss of this package states its formula in :meth:`SegmentationLoss.values`; everything a MONAI
loss has to do around it is here: activation, one-hot labels, the map that travels in the target,
background, ignored voxels, weights, reduction, half precision, and errors that name the argument.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from monai.data import MetaTensor
from monai.utils import LossReduction
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_segloss.maps import check_binary, check_range, check_whole, one_hot_to_index

__all__ = ["Pair", "SegmentationLoss"]


@dataclass
class Pair:
    """A prediction and its target, taken apart.

    Attributes:
        logits: the input as it came, in float32 (or float64), ``(B, C, *spatial)``.
        softmax: whether the logits still await a softmax; if not, :attr:`activated` is set.
        activated: the probabilities, unless ``softmax``.
        index: int64 class index ``(B, 1, *spatial)``; None if the channels are binary labels.
        channels: the target's label channels as float ``(B, C, *spatial)`` if binary, else None.
        map: the map that came in the target, ``(B, 1 or C, *spatial)``, or None.
        valid: bool ``(B, 1, *spatial)``, False where a voxel is ignored; None if all count.
    """

    logits: Tensor
    softmax: bool
    activated: Tensor | None
    index: Tensor | None
    channels: Tensor | None
    map: Tensor | None
    valid: Tensor | None

    @property
    def num_channels(self) -> int:
        return self.logits.shape[1]

    @property
    def probabilities(self) -> Tensor:
        """``(B, C, *spatial)``."""
        if self.activated is None:
            return torch.softmax(self.logits, dim=1)
        return self.activated

    @property
    def true_class_probability(self) -> Tensor:
        """Probability of the true class, ``(B, 1, *spatial)``; for exclusive labels."""
        assert self.index is not None
        if self.activated is None:
            # exp(-CE) is the softmax at one class without the other C - 1 channels in memory.
            cross_entropy = torch.nn.functional.cross_entropy(
                self.logits, self.index[:, 0], reduction="none"
            )
            return torch.exp(-cross_entropy).unsqueeze(1)
        return self.activated.gather(1, self.index)

    @property
    def labels(self) -> Tensor:
        """The label's channels as 0 and 1 in the input's dtype, ``(B, C, *spatial)``."""
        if self.channels is not None:
            return self.channels
        assert self.index is not None
        zeros = self.logits.new_zeros(()).expand(self.logits.shape)
        return zeros.scatter(1, self.index, 1.0)


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

    weighs_true_class: ClassVar[bool] = False
    """Whether ``weight`` belongs to a voxel's true class, rather than to a channel."""

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        *,
        reduction: LossReduction | Literal["mean", "sum", "none"] = "mean",
        weight: Sequence[float] | float | Tensor | None = None,
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
    def values(self, pair: Pair) -> tuple[Tensor, int]:
        """The formula.

        Returns:
            A tensor broadcastable to the input with the counted classes, or their sum, in dim 1;
            and the number of elements each of its values stands for (C for a sum over C classes).
        """

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
            loss = self._reduce(pair, *self.values(pair))
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
        softmax = self.softmax and logits.shape[1] > 1
        activated: Tensor | None = None
        if self.sigmoid:
            activated = torch.sigmoid(logits)
        elif self.other_act is not None:
            activated = self.other_act(logits)
        elif not softmax:
            activated = logits
        return Pair(
            logits=logits,
            softmax=softmax,
            activated=activated,
            index=index,
            channels=None if channels is None else channels.to(logits.dtype),
            map=None if packed is None else packed.to(logits.dtype),
            valid=valid,
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

    # ---------------------------------------------------------------------- reduction

    def _reduce(self, pair: Pair, values: Tensor, elements: int) -> Tensor:
        values = self._weigh(pair, values)
        counted: int | Tensor = values.numel() * elements
        if pair.valid is not None and values.shape[2:] == pair.valid.shape[2:]:
            values = torch.where(pair.valid, values, 0.0)
            counted = pair.valid.sum() * (values.shape[1] * elements)
        if self.reduction == LossReduction.NONE.value:
            return values
        total = values.sum()
        if self.reduction == LossReduction.SUM.value:
            return total
        return total / (counted.clamp(min=1) if isinstance(counted, Tensor) else max(counted, 1))

    def _weigh(self, pair: Pair, values: Tensor) -> Tensor:
        if self.class_weight is None:
            return values
        weight = self.class_weight.to(device=values.device, dtype=values.dtype)
        background = self.include_background or pair.num_channels == 1
        counted = pair.num_channels - (0 if background else 1)
        if weight.ndim == 1 and weight.numel() != counted:
            raise ValueError(
                f"weight: expected one number or {counted} (one per counted class), "
                f"got {weight.numel()}"
            )
        if weight.ndim == 0:
            return values * weight
        if self.weighs_true_class and pair.index is not None:
            if not background:
                weight = torch.cat([weight.new_ones(1), weight])
            return values * weight[pair.index]
        return values * weight.reshape(1, -1, *[1] * (values.ndim - 2))


def _reduction_name(reduction: Any) -> str:
    try:
        return str(LossReduction(reduction).value)
    except ValueError:
        choices = ", ".join(repr(r.value) for r in LossReduction)
        raise ValueError(f"reduction: expected one of {choices}, got {reduction!r}") from None


def _as_weight(weight: Sequence[float] | float | Tensor | None) -> Tensor | None:
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
