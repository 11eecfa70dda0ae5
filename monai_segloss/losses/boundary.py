"""Boundary family: losses that weigh an error by where it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from monai.utils import LossReduction
from torch import Tensor

from monai_segloss.distance import Spacing
from monai_segloss.losses.base import Pair, SegmentationLoss
from monai_segloss.maps import Inside, check_options, region_wise_map, to_dense

__all__ = ["BoundaryLoss", "RegionWiseLoss"]


class RegionWiseLoss(SegmentationLoss):
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

    weighs_true_class: ClassVar[bool] = True

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        kind: str = "rrw",
        spacing: Spacing = None,
        map_options: Mapping[str, Any] | None = None,
        reduction: LossReduction | Literal["mean", "sum", "none"] = "mean",
        weight: Sequence[float] | float | Tensor | None = None,
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
        self.spacing = spacing
        self.map_options = dict(map_options or {})

    def values(self, pair: Pair) -> tuple[Tensor, int]:
        if pair.map is not None and not torch.compiler.is_compiling():
            self._refuse_one_hot(pair, pair.map)
        region_wise = self._map_of(pair) if pair.map is None else pair.map
        region_wise = region_wise.to(pair.logits.dtype)
        if self._reduces_to_true_class(pair, region_wise):
            off = self.kind.off_class
            gain = self.kind.sign * region_wise - off
            return off + gain * pair.true_class_probability, pair.num_channels
        probabilities = pair.probabilities
        factor = probabilities.square() if self.kind.squared else probabilities
        weighted = self._dense(pair, region_wise) * factor
        if pair.num_channels > 1 and not self.include_background:
            weighted = weighted[:, 1:]
        return weighted, 1

    def _reduces_to_true_class(self, pair: Pair, region_wise: Tensor) -> bool:
        return (
            self.kind.compact
            and pair.softmax
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

    def _map_of(self, pair: Pair) -> Tensor:
        """The map computed from the label, on its device."""
        if pair.channels is not None:
            labels = pair.channels
            if pair.valid is not None and pair.num_channels == 1:
                labels = torch.where(pair.valid, labels, 0.0)
            return region_wise_map(
                labels,
                self.kind.name,
                pair.num_channels,
                self.spacing,
                multi_label=True,
                **self.map_options,
            )
        assert pair.index is not None
        ignored = pair.num_channels
        index = pair.index if pair.valid is None else torch.where(pair.valid, pair.index, ignored)
        return region_wise_map(
            index,
            self.kind.name,
            pair.num_channels,
            self.spacing,
            ignore_index=None if pair.valid is None else ignored,
            **self.map_options,
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
        other_act: Callable[[Tensor], Tensor] | None = None,
        inside: Inside = "symmetric",
        spacing: Spacing = None,
        reduction: LossReduction | Literal["mean", "sum", "none"] = "mean",
        weight: Sequence[float] | float | Tensor | None = None,
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
