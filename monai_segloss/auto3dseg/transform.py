"""The transform that packs the map behind the label's channels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks import one_hot
from monai.transforms import MapTransform
from torch import Tensor

from monai_segloss.distance import Spacing, as_spacing
from monai_segloss.maps import check_options, region_wise_map

__all__ = ["PackTargetD", "PackTargetDict", "PackTargetd", "packing_transforms"]

TRANSFORM_TARGET = "monai_segloss.auto3dseg.PackTargetd"


def as_slices(volume: Tensor) -> Tensor:
    """``(B, C, H, W, D)`` -> ``(B D, C, H, W)``; what is 2D already stays."""
    return volume.movedim(-1, 1).flatten(0, 1) if volume.ndim == 5 else volume


class PackTargetd(MapTransform):
    """Turn a label into [one-hot | map], the packed target that keeps Auto3DSeg's accuracy right.

    It stands behind the last random transform, so maps are those of the crop.

    Args:
        keys: keys of the labels, each ``(1, *spatial)`` class index or ``(C, *spatial)`` channels.
        kind: a name of :data:`monai_segloss.maps.MAP_KINDS`.
        num_classes: channels C of the prediction.
        spacing: ``"affine"`` takes the voxel size in mm from the MetaTensor's affine (unit voxels
            for a plain tensor); numbers are used as given; None measures in voxels.
        multi_label: the channels may overlap and each is a binary problem; a single channel is one
            anyway, and gets the map of background and foreground.
        slicewise: a map of each slice ``(H, W)`` of ``(H, W, D)``.
        map_options: the kind's own options.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        ValueError: on an unknown kind or option; at call time on a label that does not fit.
    """

    def __init__(
        self,
        keys: KeysCollection,
        kind: str = "rrw",
        num_classes: int = 2,
        spacing: Spacing | Literal["affine"] = "affine",
        multi_label: bool = False,
        slicewise: bool = False,
        map_options: Mapping[str, Any] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_options(kind, map_options or {})
        if isinstance(spacing, str) and spacing != "affine":
            raise ValueError(f"spacing: expected 'affine', numbers or None, got {spacing!r}")
        self.kind = kind
        self.num_classes = num_classes
        self.spacing = spacing
        self.multi_label = multi_label
        self.slicewise = slicewise
        self.map_options = dict(map_options or {})

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Any]:
        """Replace each label by ``(C + 1 or 2 C, *spatial)``, float32."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self._pack(data[key])
        return out

    def _pack(self, label: Tensor) -> Tensor:
        values = label.as_tensor() if isinstance(label, MetaTensor) else torch.as_tensor(label)
        values = values.unsqueeze(0)
        if values.shape[1] == 1 and self.num_classes > 1:
            values = one_hot(values, self.num_classes)
        packed = torch.cat([values.float(), self._map(values, self._spacing_of(label))], dim=1)[0]
        if isinstance(label, MetaTensor):
            return MetaTensor(packed, meta=label.meta, applied_operations=label.applied_operations)
        return packed

    def _map(self, values: Tensor, spacing: Spacing) -> Tensor:
        slices = self.slicewise and values.ndim == 5
        if slices:
            values = as_slices(values)
            spacing = spacing if spacing is None else as_spacing(spacing, 1, 3)[0, :2]
        region = region_wise_map(
            values,
            self.kind,
            max(self.num_classes, 2),
            spacing,
            multi_label=self.multi_label and self.num_classes > 1,
            **self.map_options,
        )
        return region.movedim(0, -1).unsqueeze(0) if slices else region

    def _spacing_of(self, label: Tensor) -> Spacing:
        if not isinstance(self.spacing, str):
            return self.spacing
        return label.pixdim[: label.ndim - 1] if isinstance(label, MetaTensor) else None


PackTargetD = PackTargetDict = PackTargetd


def packing_transforms(
    num_classes: int,
    sigmoid: bool,
    class_index: Sequence[Any] | None,
    kind: str,
    spacing: Spacing | Literal["affine"] = "affine",
    slicewise: bool = False,
    map_options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What the segresnet templates take as ``custom_data_transforms``, to pack their target.

    Args:
        num_classes, sigmoid, class_index: the template's ``output_classes`` and the like.
        kind, spacing, slicewise, map_options: as in :class:`PackTargetd`.

    Raises:
        ValueError: with ``sigmoid`` or ``class_index``: the templates then rewrite the channels
            behind every custom transform.
    """
    if sigmoid or class_index:
        raise ValueError(
            "maps: expected 'online' with sigmoid or class_index, since the template rewrites the "
            f"label's channels after packing, got 'packed' with sigmoid={sigmoid}, "
            f"class_index={class_index}; patch again with maps='online'"
        )
    transform = {
        "_target_": TRANSFORM_TARGET,
        "keys": "label",
        "kind": kind,
        "num_classes": num_classes,
        "spacing": spacing,
        "slicewise": slicewise,
        "map_options": dict(map_options or {}),
        "allow_missing_keys": True,
    }
    # The template puts the path on sys.path, where the package is found already.
    path = str(Path(__file__).resolve().parents[1])
    return [{"key": "after_augment_transforms", "path": path, "transform": transform}]
