"""The loss that an entry of a template names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.networks import one_hot
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from monai_segloss.auto3dseg.transform import as_slices
from monai_segloss.distance import Spacing
from monai_segloss.losses import SegmentationLoss, WeightedSumLoss, get_loss_row, make_loss
from monai_segloss.maps import one_hot_to_index
from monai_segloss.schedule import get_schedule

__all__ = ["Auto3DSegLoss"]


class Auto3DSegLoss(_Loss):
    """Any loss of the taxonomy, from options that hold no other object.

    Prediction ``(B, C, H, W[, D])``, raw logits. The target's channels tell what it is:

    ================  =========================  ===============================================
    prediction        target channels            label
    ================  =========================  ===============================================
    C > 1             1                          class index
    C > 1             C                          one-hot; with ``sigmoid``, labels that may overlap
    C > 1             C + 1 or 2 C               the same and its map, [one-hot | map]
    C = 1             1; 2 or 3                  binary label; binary label and map
    ================  =========================  ===============================================

    A loss that reads a map and gets none computes it, on the target's device; one that reads none
    leaves a packed map unread. Any integer or floating dtype will do for the target. [label | map]
    is no target here: Auto3DSeg takes its training accuracy from the first C channels.

    **Schedules.** The templates have no hook at which an epoch begins, so ``schedule`` counts
    optimiser steps: an epoch is ``steps_per_epoch`` of them. A step is a backward pass through a
    value of this loss, however many outputs deep supervision has put into it; validation, without a
    gradient, counts none. Two backward passes before one optimiser step (as accumulation would do,
    which no public template does), a step that mixed precision skips and a step of DiNTS's
    architecture count as well. The templates keep no state of their loss, so a training that is
    taken up again begins at ``first_step``.

    Args:
        name: a name of :data:`monai_segloss.losses.TAXONOMY`.
        softmax, sigmoid: the activation; exactly one is True.
        spacing: voxel size for every loss that measures distances and was given none of its own:
            mm, one number or one per axis; None for voxels.
        slicewise: such losses see a volume ``(B, C, H, W, D)`` as B D slices; ``spacing`` then is
            that of the two first axes.
        schedule: a name of :data:`monai_segloss.schedule.SCHEDULES`, for ``weighted_sum``.
        steps_per_epoch: optimiser steps that make one epoch of the schedule.
        first_step: the step to begin with.
        **options: those of the loss, see :func:`monai_segloss.losses.make_loss`.

    Raises:
        ValueError: on an unknown name or option, a loss that does not take the activation, a
            reduction other than to one number, a schedule without ``steps_per_epoch``, beside
            ``weights`` or for anything but a sum; at call time on a target of other channels or
            values.
    """

    def __init__(
        self,
        name: str,
        softmax: bool = True,
        sigmoid: bool = False,
        spacing: Spacing = None,
        slicewise: bool = False,
        schedule: str | None = None,
        steps_per_epoch: int | None = None,
        first_step: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if bool(softmax) == bool(sigmoid):
            raise ValueError(
                "softmax, sigmoid: expected exactly one of them, got "
                f"softmax={softmax}, sigmoid={sigmoid}"
            )
        if options.get("reduction", "mean") not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {options['reduction']!r}")
        if "to_onehot_y" in options:
            raise ValueError(
                "to_onehot_y: expected not to be given, since the target tells, got "
                f"{options['to_onehot_y']!r}"
            )
        self.name = name
        self.softmax, self.sigmoid = bool(softmax), bool(sigmoid)
        self.slicewise = slicewise
        self.loss = make_loss(
            name,
            softmax=self.softmax,
            sigmoid=self.sigmoid,
            to_onehot_y=self.softmax,
            **_with_tensors(options),
        )
        self.terms = _terms(name, self.loss)
        for loss in self.terms.values():
            if hasattr(loss, "spacing"):
                loss.spacing = spacing if loss.spacing is None else loss.spacing
                if slicewise:
                    loss.register_forward_pre_hook(_slice_arguments)
        self.schedule = schedule
        self.steps_per_epoch = steps_per_epoch
        self.step = first_step
        self._stepped = False
        self._values_seen = False
        if schedule is not None or steps_per_epoch is not None:
            self._check_schedule(options)
            self._apply_schedule()

    @property
    def map_kind(self) -> str | None:
        """The kind of map that the loss reads, if it is one kind."""
        return getattr(self.loss, "map_kind", None)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            input: logits ``(B, C, H, W[, D])``.
            target: see the class.

        Returns:
            0-d float32 tensor (float64 for a float64 input) on the input's device.
        """
        self._follow(input.device)
        self._advance()
        with torch.autocast(device_type=input.device.type, enabled=False):
            logits = input if input.dtype == torch.float64 else input.float()
            loss: Tensor = self.loss(logits, self._target(logits, target))
        if self.schedule is not None and loss.requires_grad:
            loss.register_hook(self._saw_backward)
        return loss

    def get_extra_state(self) -> dict[str, int]:
        """The step, for those who do put the loss into a checkpoint."""
        return {"step": self.step + int(self._stepped)}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Go on with the step that was saved."""
        self.step, self._stepped = int(state["step"]), False
        if self.schedule is not None:
            self._apply_schedule()

    # ---------------------------------------------------------------------------- target

    def _target(self, logits: Tensor, target: Tensor) -> Tensor:
        """The target as the loss takes it: index with softmax, channels with sigmoid."""
        if isinstance(target, MetaTensor):
            target = target.as_tensor()
        classes = logits.shape[1]
        label_channels = self._label_channels(logits, target)
        label, region = target[:, :label_channels], target[:, label_channels:]
        if classes > 1 and self.softmax and label_channels > 1:
            label = one_hot_to_index(label, "target", "sigmoid=True", check=self._may_look(label))
        elif classes > 1 and self.sigmoid and label_channels == 1:
            label = one_hot(label, classes)
        if not isinstance(self.loss, _READ_PACKED) or not region.shape[1]:
            return label
        return torch.cat([label.to(region.dtype), region], dim=1)

    def _label_channels(self, logits: Tensor, target: Tensor) -> int:
        classes = logits.shape[1] if logits.ndim > 1 else 0
        if logits.ndim not in (4, 5):
            raise ValueError(f"input: expected (B, C, H, W[, D]), got shape {tuple(logits.shape)}")
        if classes == 1 and self.softmax:
            raise ValueError("input: expected at least 2 channels with softmax=True, got 1")
        if self.sigmoid:
            for term in self.terms:
                _check_form(term, "multi-label" if classes > 1 else "binary")
        label = {1: 1, **dict.fromkeys((classes, classes + 1, 2 * classes), classes)}
        if classes == 1:
            label = {1: 1, 2: 1, 3: 1}
        channels = target.shape[1] if target.ndim > 1 else 0
        if (
            target.ndim != logits.ndim
            or target.shape[0] != logits.shape[0]
            or target.shape[2:] != logits.shape[2:]
            or channels not in label
        ):
            raise ValueError(
                f"target: expected shape ({logits.shape[0]}, "
                f"{' or '.join(map(str, sorted(label)))}, "
                f"{', '.join(map(str, logits.shape[2:]))}) for input {tuple(logits.shape)} "
                "(index, channels, or [channels | map]; never [index | map], from whose channels "
                f"Auto3DSeg would take a wrong accuracy), got {tuple(target.shape)}"
            )
        return label[channels]

    def _may_look(self, label: Tensor) -> bool:
        """As in the losses: on an accelerator, looking at values would stall it at every call."""
        first, self._values_seen = not self._values_seen, True
        return first or label.device.type == "cpu"

    def _follow(self, device: torch.device) -> None:
        """No template moves its loss to a device."""
        if any(buffer.device != device for buffer in self.buffers()):
            self.to(device)

    # ---------------------------------------------------------------------------- schedule

    def _check_schedule(self, options: Mapping[str, Any]) -> None:
        if self.schedule is None:
            raise ValueError(
                f"schedule: expected a name with steps_per_epoch={self.steps_per_epoch}, got None"
            )
        get_schedule(self.schedule)
        if not isinstance(self.loss, WeightedSumLoss):
            raise ValueError(f"schedule: expected none, since {self.name} is no weighted_sum")
        if options.get("weights") is not None:
            raise ValueError(
                f"weights: expected none, since the schedule sets them, got {options['weights']}"
            )
        if not isinstance(self.steps_per_epoch, int) or self.steps_per_epoch < 1:
            raise ValueError(
                "steps_per_epoch: expected a whole number >= 1, since Auto3DSeg tells its loss "
                f"nothing of epochs, got {self.steps_per_epoch!r}"
            )

    def _saw_backward(self, gradient: Tensor) -> None:
        self._stepped = True

    def _advance(self) -> None:
        """Count the step that the last backward pass made, once for all outputs that were in it."""
        if not self._stepped:
            return
        self.step, self._stepped = self.step + 1, False
        assert self.steps_per_epoch is not None
        if self.step % self.steps_per_epoch == 0:
            self._apply_schedule()

    def _apply_schedule(self) -> None:
        assert self.schedule is not None
        assert self.steps_per_epoch is not None
        assert isinstance(self.loss, WeightedSumLoss)
        self.loss.set_weights(get_schedule(self.schedule)(self.step // self.steps_per_epoch))


_READ_PACKED = (SegmentationLoss, WeightedSumLoss)


def _terms(name: str, loss: nn.Module) -> dict[str, nn.Module]:
    """The losses of the taxonomy in it, by name."""
    return dict(loss.losses.items()) if isinstance(loss, WeightedSumLoss) else {name: loss}


def _with_tensors(options: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of classes as tensors: YAML holds lists, MONAI's losses do not all take them."""
    return {
        name: torch.as_tensor(value, dtype=torch.float32)
        if isinstance(value, (list, tuple)) and f"_{name}".endswith("_weight")
        else value
        for name, value in options.items()
    }


def _check_form(name: str, form: str) -> None:
    forms = get_loss_row(name).forms
    if form not in forms:
        raise ValueError(
            f"{name}: expected a prediction of the form {' or '.join(forms)}, got {form}"
        )


def _slice_arguments(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(as_slices(tensor) for tensor in arguments)
