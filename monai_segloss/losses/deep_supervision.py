"""MONAI's deep supervision for networks that stack their outputs."""

from __future__ import annotations

import torch
from monai.losses import DeepSupervisionLoss
from torch import Tensor

__all__ = ["StackedDeepSupervisionLoss"]


class StackedDeepSupervisionLoss(DeepSupervisionLoss):
    """``monai.losses.DeepSupervisionLoss`` that also takes outputs stacked along dim 1.

    In training DynUNet with ``deep_supervision=True`` returns one tensor
    ``(B, outputs, C, *spatial)``, all of full size, where DeepSupervisionLoss expects a list. In
    evaluation it returns ``(B, C, *spatial)``, which passes through.
    """

    def forward(self, input: Tensor | list[Tensor] | None, target: Tensor) -> Tensor:
        """
        Args:
            input: ``(B, outputs, C, *spatial)``, or what DeepSupervisionLoss takes.
            target: ``(B, channels, *spatial)``.
        """
        if isinstance(input, Tensor) and input.ndim == target.ndim + 1:
            input = list(torch.unbind(input, dim=1))
        loss: Tensor = super().forward(input, target)
        return loss

    def get_loss(self, input: Tensor, target: Tensor) -> Tensor:
        """One level; an integer target, which torch cannot shrink, becomes float32 first."""
        if not target.is_floating_point():
            target = target.float()
        loss: Tensor = super().get_loss(input, target)
        return loss
