"""Scores that MONAI does not have: pixel accuracy, and the chest X-ray study's stepwise IoU.

Each is a pure function of one-hot tensors, and a MONAI metric that gathers it over cases and
processes. Every other score of the package is MONAI's own metric; :mod:`monai_segloss.handlers`
brings all of them to an evaluator.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction, ignore_background
from monai.utils import MetricReduction
from torch import Tensor

__all__ = ["PixelAccuracyMetric", "StepwiseIoUMetric", "pixel_accuracy", "stepwise_iou"]


def pixel_accuracy(
    prediction: Tensor, label: Tensor, *, per_class: bool = False, include_background: bool = False
) -> Tensor:
    """Share of voxels whose predicted label is right.

    Args:
        prediction: one-hot ``(B, C, *spatial)``, or one binary channel, of any dtype.
        label: likewise, of the same shape.
        per_class: one number per class instead, the share of voxels that are in the class in both
            or in neither: binary accuracy. Of two classes that is the same number.
        include_background: with ``per_class``, whether channel 0 of several gets a column.

    Returns:
        float32 ``(B, 1)``, or ``(B, classes)`` with ``per_class``, from 0 to 1. A class absent from
        both is right everywhere, absent from one wrong where the other has it. A sample without
        voxels gives NaN.

    Raises:
        ValueError: if the shapes differ or the values are not 0 and 1.
    """
    prediction, label = _as_masks(prediction, label)
    differs = prediction != label
    if per_class:
        channels = differs if include_background else _foreground(differs)
    else:
        channels = differs.any(dim=1, keepdim=True)
    return 1 - channels.flatten(2).float().mean(dim=2)


def stepwise_iou(prediction: Tensor, label: Tensor, *, include_background: bool = False) -> Tensor:
    """The IoU score of the chest X-ray loss study: floor(20 (IoU - 0.45)) / 10, not below 0.

    A staircase of steps of 0.05: 0 below an IoU of 0.5, 0.1 from 0.5, 1.0 from 0.95, and, since the
    study's code has no upper limit, 1.1 at an IoU of 1. A mean over images can thus lie above the
    mean IoU, and above 1. The study's 0.9140625 is such a mean (Dubey, *A study of loss functions
    for semantic segmentation*, ``get_iou_vector`` of its code).

    The floor is taken in exact arithmetic, floor((20 I - 9 U) / U) of the voxel counts I of the
    intersection and U of the union, so an IoU of exactly 0.5 gives 0.1. The study's NumPy code
    gives 0.0 or 0.1 there as its masks are float64 or float32, since 20 (0.5 - 0.45) is 0.99999...
    in float64; it differs likewise at other exact steps and nowhere else.

    Args:
        prediction: one-hot ``(B, C, *spatial)``, or one binary channel, of any dtype.
        label: likewise, of the same shape.
        include_background: whether channel 0 of several gets a column.

    Returns:
        float32 ``(B, classes)``: 0, 0.1, ..., 1.0 or 1.1. As in the study's code, a class absent
        from both gives 1, absent from one 0.

    Raises:
        ValueError: if the shapes differ or the values are not 0 and 1.
    """
    prediction, label = _as_masks(prediction, label)
    if not include_background:
        prediction, label = _foreground(prediction), _foreground(label)
    intersection = (prediction & label).flatten(2).sum(dim=2)
    union = (prediction | label).flatten(2).sum(dim=2)
    steps = torch.div(20 * intersection - 9 * union, union.clamp(min=1), rounding_mode="floor")
    return torch.where(union > 0, steps.clamp(min=0), 10).float() / 10


class _PerCaseMetric(CumulativeIterationMetric):
    """A MONAI metric of one row per case, averaged as MONAI's other metrics are."""

    def __init__(self, reduction: MetricReduction | str = MetricReduction.MEAN) -> None:
        super().__init__()
        self.reduction = reduction

    def aggregate(self, reduction: MetricReduction | str | None = None) -> Any:
        """The scores of all cases and processes, reduced.

        Args:
            reduction: MONAI's name of one, in place of the metric's own.
        """
        data = self.get_buffer()
        if not isinstance(data, Tensor):
            raise ValueError(f"{type(self).__name__}: expected at least one case, got none")
        return do_metric_reduction(data, reduction or self.reduction)[0]


class PixelAccuracyMetric(_PerCaseMetric):
    """:func:`pixel_accuracy` as a MONAI metric.

    Args:
        per_class: as there.
        include_background: as there.
        reduction: as of MONAI's metrics.
    """

    def __init__(
        self,
        per_class: bool = False,
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
    ) -> None:
        super().__init__(reduction)
        self.per_class = per_class
        self.include_background = include_background

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: Tensor, y: Tensor, **kwargs: Any
    ) -> Tensor:
        return pixel_accuracy(
            y_pred, y, per_class=self.per_class, include_background=self.include_background
        )


class StepwiseIoUMetric(_PerCaseMetric):
    """:func:`stepwise_iou` as a MONAI metric.

    Args:
        include_background: as there.
        reduction: as of MONAI's metrics.
    """

    def __init__(
        self,
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
    ) -> None:
        super().__init__(reduction)
        self.include_background = include_background

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: Tensor, y: Tensor, **kwargs: Any
    ) -> Tensor:
        return stepwise_iou(y_pred, y, include_background=self.include_background)


def _as_masks(prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    if prediction.shape != label.shape or label.ndim < 3:
        raise ValueError(
            "prediction, label: expected one shape (B, C, *spatial), "
            f"got {tuple(prediction.shape)} and {tuple(label.shape)}"
        )
    masks = []
    for name, values in (("prediction", prediction), ("label", label)):
        mask = torch.as_tensor(values) != 0
        if not torch.equal(mask.to(values.dtype), torch.as_tensor(values)):
            raise ValueError(
                f"{name}: expected one-hot values 0 and 1, got values from {float(values.min()):g} "
                f"to {float(values.max()):g}"
            )
        masks.append(mask.as_subclass(Tensor))
    return masks[0], masks[1]


def _foreground(channels: Tensor) -> Tensor:
    foreground: Tensor = ignore_background(channels)[0]
    return foreground
