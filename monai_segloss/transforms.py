"""MONAI transforms that write a map beside its label while data loads."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Mapping
from typing import Any, Literal

import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.data.utils import to_affine_nd
from monai.transforms import (
    LoadImage,
    MapLabelValue,
    MapTransform,
    ResampleToMatch,
    Transform,
)
from monai.utils import convert_to_tensor, ensure_tuple
from monai.utils.enums import TransformBackends
from torch import Tensor

from monai_segloss.distance import Spacing, as_spacing
from monai_segloss.map_files import (
    MapRecord,
    check_whole_nifti,
    make_recipe,
    map_path,
    maps_command,
    read_record,
    recipe_differences,
)
from monai_segloss.maps import check_options, region_wise_map

__all__ = [
    "LabelClassesD",
    "LabelClassesDict",
    "LabelClassesd",
    "LoadMapD",
    "LoadMapDict",
    "LoadMapd",
    "RegionWiseMap",
    "RegionWiseMapD",
    "RegionWiseMapDict",
    "RegionWiseMapd",
    "SameGridD",
    "SameGridDict",
    "SameGridd",
    "WholeNiftiD",
    "WholeNiftiDict",
    "WholeNiftid",
]


class RegionWiseMap(Transform):
    """Turn a channel-first label into the map of a kind.

    Where to put it: on the whole volume before the first random transform, so that a CacheDataset
    computes it once (distances then see the whole object, which is what the paper means), or after
    a random crop, when distances should see the crop alone. Flips and rotations by 90 degrees
    commute with every map; crops, zooms and elastic deformations do not: after them the map still
    says where an error matters, in the units of the volume it was computed on. Move it with the
    label, by nearest neighbour.

    Args:
        kind: a name of :data:`monai_segloss.maps.MAP_KINDS`.
        num_classes: number of classes, background included (with ``multi_label``, of channels).
        spacing: ``"affine"`` takes the voxel size from the MetaTensor's affine (unit voxels for a
            plain tensor or array); numbers are used as given; None measures in voxels.
        dense: one channel per class for a compact kind too.
        pack: return [label | map] along the channels, the target that the losses of this package
            read, instead of the map alone.
        multi_label: the label's channels may overlap; each is a binary problem.
        ignore_index: label value that counts as a region of its own and gets 0.
        map_options: the kind's own options, e.g. ``{"sigma": 3.0}`` for ``border``.

    Raises:
        ValueError: on an unknown kind, or at call time on a label that does not fit, see
            :func:`monai_segloss.maps.region_wise_map`.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 - MONAI's own convention

    def __init__(
        self,
        kind: str = "rrw",
        num_classes: int = 2,
        spacing: Spacing | Literal["affine"] = "affine",
        dense: bool = False,
        pack: bool = False,
        multi_label: bool = False,
        ignore_index: int | None = None,
        map_options: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(spacing, str) and spacing != "affine":
            raise ValueError(f"spacing: expected 'affine', numbers or None, got {spacing!r}")
        check_options(kind, map_options or {})
        self.kind = kind
        self.num_classes = num_classes
        self.spacing = spacing
        self.dense = dense
        self.pack = pack
        self.multi_label = multi_label
        self.ignore_index = ignore_index
        self.map_options = dict(map_options or {})

    def __call__(self, label: NdarrayOrTensor) -> Tensor:
        """
        Args:
            label: ``(1, *spatial)`` class index or ``(C, *spatial)`` one-hot or multi-label, 2D or
                3D, of any integer, bool or float dtype that holds whole numbers.

        Returns:
            float32 map ``(1 or C, *spatial)``, or the packed target; a MetaTensor with the
            label's affine and history if the label is one.
        """
        tensor = convert_to_tensor(label, track_meta=get_track_meta())
        values = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
        if values.ndim not in (3, 4):
            raise ValueError(
                f"label: expected a channel-first 2D or 3D label, got shape {tuple(values.shape)}"
            )
        out = region_wise_map(
            values.unsqueeze(0),
            self.kind,
            self.num_classes,
            self._spacing_of(label),
            dense=self.dense,
            multi_label=self.multi_label,
            ignore_index=self.ignore_index,
            **self.map_options,
        )[0]
        if self.pack:
            out = torch.cat([values.to(torch.float32), out])
        if isinstance(tensor, MetaTensor):
            return MetaTensor(out, meta=tensor.meta, applied_operations=tensor.applied_operations)
        return out

    def _spacing_of(self, label: NdarrayOrTensor) -> Spacing:
        ndim = label.ndim - 1
        if isinstance(self.spacing, str):
            if not isinstance(label, MetaTensor):
                return None
            return as_spacing(label.pixdim[:ndim], 1, ndim)
        return self.spacing


class RegionWiseMapd(MapTransform):
    """Dictionary version of :class:`RegionWiseMap`: the label stays, the map gets a new key.

    Args:
        keys: keys of the labels.
        postfix: the new key is ``{key}_{postfix}``.
        allow_missing_keys: do not raise if a key is missing.

    The other arguments are those of :class:`RegionWiseMap`.
    """

    backend = RegionWiseMap.backend

    def __init__(
        self,
        keys: KeysCollection,
        kind: str = "rrw",
        num_classes: int = 2,
        spacing: Spacing | Literal["affine"] = "affine",
        dense: bool = False,
        pack: bool = False,
        multi_label: bool = False,
        ignore_index: int | None = None,
        map_options: Mapping[str, Any] | None = None,
        postfix: str = "map",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not postfix:
            raise ValueError(
                "postfix: expected a non-empty string, got ''; the label would be lost"
            )
        self.postfix = postfix
        self.converter = RegionWiseMap(
            kind, num_classes, spacing, dense, pack, multi_label, ignore_index, map_options
        )

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[f"{key}_{self.postfix}"] = self.converter(data[key])
        return out


class LoadMapd(MapTransform):
    """The map that ``python -m monai_segloss maps`` made of a label, in place of
    :class:`RegionWiseMapd`.

    It stands wherever RegionWiseMapd may: right after the label was loaded, or after it was
    oriented, resampled or resized, before padding and before the first random transform. It finds
    the map by the label's file, makes sure that it is whole, of the kind and options asked for and
    made from just this label, and brings it to the label's grid by nearest neighbour; on the
    label's own grid it is equal to RegionWiseMapd's, bit by bit. On another grid its distances are
    those of the label's own grid, which RegionWiseMapd would measure anew.

    It stands after ``Spacingd``, not before: MONAI 1.6's ``Spacingd`` takes every key that begins
    with ``label_`` for a dictionary of the label's metadata, and fails on ``label_map`` if the
    label came from NIfTI. Resampled here, the map never meets it.

    Args:
        keys: keys of the labels, loaded by ``LoadImaged``.
        map_dir: folder of the maps.
        label_dir: folder of the labels, as they were both given to the command.
        kind, num_classes, spacing, dense, map_options: as of :class:`RegionWiseMapd`.
        label_values, threshold: as the command was given them, if it was; the label itself is
            left as it is.
        pattern: which files the command takes for labels; used in the advice of an error only.
        postfix: the new key is ``{key}_{postfix}``.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        FileNotFoundError: if a label has no map, with the command that makes it.
        ValueError: if the map is damaged, or made of something else; and on a label that was not
            loaded from a file, or has lost an axis since.
    """

    def __init__(
        self,
        keys: KeysCollection,
        map_dir: str | os.PathLike[str],
        label_dir: str | os.PathLike[str],
        kind: str = "rrw",
        num_classes: int | None = None,
        spacing: Spacing | Literal["affine"] = "affine",
        dense: bool = False,
        map_options: Mapping[str, Any] | None = None,
        label_values: Mapping[Any, Any] | None = None,
        threshold: float | None = None,
        pattern: str | None = None,
        postfix: str = "map",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not postfix:
            raise ValueError(
                "postfix: expected a non-empty string, got ''; the label would be lost"
            )
        self.map_dir = map_dir
        self.label_dir = label_dir
        self.pattern = pattern
        self.recipe = make_recipe(
            kind,
            num_classes,
            spacing=spacing,
            dense=dense,
            map_options=map_options,
            label_values=label_values,
            threshold=threshold,
        )
        self.postfix = postfix
        self.load = LoadImage(reader="ITKReader")
        self.resample = ResampleToMatch(mode="nearest", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Any]:
        """
        Args:
            data: labels as channel-first MetaTensors.

        Returns:
            The data, and for each label its map, float32 ``(1 or C, *spatial)``, with the label's
            affine and history.
        """
        out: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(out):
            out[f"{key}_{self.postfix}"] = self._map_of(key, data[key])
        return out

    def _map_of(self, key: Hashable, label: Tensor) -> Tensor:
        if (
            not isinstance(label, MetaTensor)
            or "filename_or_obj" not in label.meta
            or not get_track_meta()
        ):
            raise ValueError(
                f"{key}: expected a label that LoadImaged loaded from one file, with its metadata "
                f"tracked, got {type(label).__name__} without"
            )
        file = str(label.meta["filename_or_obj"])
        path = map_path(file, self.label_dir, self.map_dir, self.recipe["kind"])
        command = maps_command(self.recipe, self.label_dir, self.map_dir, self.pattern)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no map of {file}; make it with: {command}")
        record = read_record(path)
        if record is None:
            raise ValueError(f"{path}: expected a map of monai_segloss, got another NIfTI file")
        differences = recipe_differences(record, self.recipe, file)
        if differences:
            raise ValueError(
                f"{path}: not the map of {file} that is wanted ({differences}); make it anew with: "
                f"{command} --overwrite"
            )
        check_whole_nifti(path)
        found = self._on_the_grid_of(key, label, self._load(path, record, label))
        return MetaTensor(found, meta=label.meta, applied_operations=label.applied_operations)

    def _load(
        self, path: str | os.PathLike[str], record: MapRecord, label: MetaTensor
    ) -> MetaTensor:
        """The map on its own grid, channels first."""
        stored = self.load(path)
        shape = record["label"]["shape"]
        values = stored.as_tensor().reshape(*shape, -1).movedim(-1, 0)
        affine = stored.affine
        if not record["label"]["name"].endswith((".nii", ".nii.gz")):
            # A picture has no place in the world but the one its reader gave it.
            affine = torch.as_tensor(label.meta.get("original_affine", torch.eye(4)))
        return MetaTensor(values, affine=_affine_of(affine, len(shape)))

    def _on_the_grid_of(self, key: Hashable, label: MetaTensor, stored: Any) -> Tensor:
        if label.ndim != stored.ndim:
            raise ValueError(
                f"{key}: expected {stored.ndim - 1} spatial axes, as in the label's file, got "
                f"shape {tuple(label.shape)}; load the map before an axis goes"
            )
        affine = _affine_of(label.affine, label.ndim - 1)
        same = label.shape[1:] == stored.shape[1:]
        if not (same and torch.allclose(affine, stored.affine, rtol=0, atol=1e-4)):
            if any(step.get("class") == "Resize" for step in label.applied_operations):
                # Half-way between two voxels both are nearest: a thousandth of a voxel makes it
                # the later one, as it is for nearest-exact, and not now one, now the other.
                affine = affine.clone()
                affine[:-1, -1] += 1e-3 * affine[:-1, :-1].sum(1)
            target = MetaTensor(label.as_tensor(), affine=affine)
            stored = self.resample(stored.to(label.device), target)
        return torch.as_tensor(stored.as_tensor()).to(label.device)


class WholeNiftid(MapTransform):
    """Stop before a NIfTI file that ends too early or is damaged; ITK reads it without a word.

    It takes paths, so it stands before ``LoadImaged``. Other formats pass unread.

    Args:
        keys: keys of paths, or of sequences of paths.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            for path in ensure_tuple(data[key]):
                if str(path).endswith((".nii", ".nii.gz")):
                    check_whole_nifti(path)
        return dict(data)


class LabelClassesd(MapTransform):
    """Turn the values of a label file into classes, and stop at a value that stands for none.

    Args:
        keys: keys of labels.
        label_values: value in the file -> class.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        ValueError: naming the file and its unknown values.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_values: Mapping[int, int],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_values = {int(value): int(c) for value, c in label_values.items()}
        self.mapper = MapLabelValue(list(self.label_values), list(self.label_values.values()))

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Any]:
        out: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(out):
            unknown = values_of_no_class(torch.as_tensor(data[key]), self.label_values)
            if unknown:
                raise ValueError(
                    f"{key} ({_file_of(data[key])}): expected the values "
                    f"{', '.join(map(str, self.label_values))}, got "
                    f"{', '.join(f'{value:g}' for value in unknown[:10])} too"
                )
            out[key] = self.mapper(data[key])
        return out


def values_of_no_class(label: Tensor, known: Collection[float]) -> list[float]:
    """The values in a label that are not known, sorted."""
    found: list[float] = torch.unique(label).tolist()
    return [value for value in found if value not in known]


class SameGridd(MapTransform):
    """Stop if images that belong together do not lie on the same grid.

    Args:
        keys: keys of channel-first images; the first is the reference.
        atol: how far apart, in mm, the corners of the same grid may lie.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        ValueError: naming both files, the shapes or affines that differ.
    """

    def __init__(
        self, keys: KeysCollection, atol: float = 0.1, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.atol = atol

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        present = list(self.key_iterator(dict(data)))
        for key in present[1:]:
            self._compare(present[0], data[present[0]], key, data[key])
        return dict(data)

    def _compare(self, first_key: Hashable, first: Tensor, key: Hashable, other: Tensor) -> None:
        names = f"{key} ({_file_of(other)}) and {first_key} ({_file_of(first)})"
        if first.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"{names}: expected the same grid, got shapes {tuple(other.shape[1:])} "
                f"and {tuple(first.shape[1:])}"
            )
        if isinstance(first, MetaTensor) and isinstance(other, MetaTensor):
            gap = float((_corners(first) - _corners(other)).abs().max())
            if not gap <= self.atol:
                raise ValueError(
                    f"{names}: expected the same grid, got corners {gap:.4g} mm apart; affines:\n"
                    f"{other.affine}\n{first.affine}"
                )


def _affine_of(affine: Any, axes: int) -> Tensor:
    """An affine of this many axes, float64 on the CPU."""
    return torch.as_tensor(to_affine_nd(axes, torch.as_tensor(affine).double().cpu()))


def _corners(image: MetaTensor) -> Tensor:
    """Positions of the grid's corner voxels in mm, ``(corners, axes)``."""
    size, affine = image.shape[1:], image.affine.double().cpu()
    ends = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in size))
    axes = len(size)
    return ends @ affine[:axes, :axes].T + affine[:axes, -1]


def _file_of(image: Tensor) -> str:
    if isinstance(image, MetaTensor):
        return str(image.meta.get("filename_or_obj", "no file"))
    return "no file"


LoadMapD = LoadMapDict = LoadMapd
RegionWiseMapD = RegionWiseMapDict = RegionWiseMapd
LabelClassesD = LabelClassesDict = LabelClassesd
SameGridD = SameGridDict = SameGridd
WholeNiftiD = WholeNiftiDict = WholeNiftid
