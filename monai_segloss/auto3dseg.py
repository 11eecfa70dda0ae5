"""Losses of the taxonomy in MONAI's Auto3DSeg, without a line of its templates edited by hand.

The public templates build their loss from a flat entry of a YAML file and call it with
(prediction, target), nothing more. :class:`Auto3DSegLoss` is what such an entry names,
:func:`patch_templates` writes it into a copy of the templates, :func:`check` tries it out.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from monai.bundle import ConfigParser
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss
from monai.networks import one_hot
from monai.transforms import MapTransform
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from monai_segloss.distance import Spacing, as_spacing
from monai_segloss.files import replacing
from monai_segloss.losses import SegmentationLoss, WeightedSumLoss, get_loss_row, make_loss
from monai_segloss.maps import check_options, one_hot_to_index, region_wise_map
from monai_segloss.schedule import get_schedule

__all__ = [
    "LAYOUTS",
    "Auto3DSegLoss",
    "Checked",
    "Layout",
    "Maps",
    "PackTargetD",
    "PackTargetDict",
    "PackTargetd",
    "check",
    "input_overrides",
    "loss_config",
    "packing_transforms",
    "patch_bundles",
    "patch_templates",
]

Maps = Literal["online", "packed"]

# ------------------------------------------------------------------------------------------- loss


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
            reduction other than to one number, a schedule without ``steps_per_epoch`` or for
            anything but a sum; at call time on a target of other channels or values.
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
            name, softmax=self.softmax, sigmoid=self.sigmoid, to_onehot_y=self.softmax, **options
        )
        self.terms = _terms(name, self.loss)
        for term, loss in self.terms.items():
            if self.softmax:
                _check_form(term, "softmax")
            if hasattr(loss, "spacing"):
                loss.spacing = spacing if loss.spacing is None else loss.spacing
                if slicewise:
                    loss.register_forward_pre_hook(_as_slices)
        self.schedule = schedule
        self.steps_per_epoch = steps_per_epoch
        self.step = first_step
        self._stepped = False
        self._values_seen = False
        if schedule is not None or steps_per_epoch is not None:
            self._check_schedule()
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
        if not isinstance(self.loss, SegmentationLoss):
            # MONAI's losses compute with the label's dtype.
            label = label.float()
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

    def _check_schedule(self) -> None:
        if self.schedule is None:
            raise ValueError(
                f"schedule: expected a name with steps_per_epoch={self.steps_per_epoch}, got None"
            )
        get_schedule(self.schedule)
        if not isinstance(self.loss, WeightedSumLoss):
            raise ValueError(f"schedule: expected none, since {self.name} is no weighted_sum")
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


def _check_form(name: str, form: str) -> None:
    forms = get_loss_row(name).forms
    if form not in forms:
        raise ValueError(
            f"{name}: expected a prediction of the form {' or '.join(forms)}, got {form}"
        )


def _as_slices(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``(B, C, H, W, D)`` -> ``(B D, C, H, W)``; a 2D input stays."""
    if arguments[0].ndim != 5:
        return arguments
    return tuple(tensor.movedim(-1, 1).flatten(0, 1) for tensor in arguments)


# -------------------------------------------------------------------------------------- transform


class PackTargetd(MapTransform):
    """Turn a label into [one-hot | map], the packed target that keeps Auto3DSeg's accuracy right.

    It stands behind the last random transform, so maps are those of the crop.

    Args:
        keys: keys of the labels, each ``(1, *spatial)`` class index or ``(C, *spatial)`` channels.
        kind: a name of :data:`monai_segloss.maps.MAP_KINDS`.
        num_classes: channels C of the prediction.
        spacing: ``"affine"`` takes the voxel size in mm from the MetaTensor's affine (unit voxels
            for a plain tensor); numbers are used as given; None measures in voxels.
        multi_label: the channels may overlap, or there is one; each is a binary problem.
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
            (values,) = _as_slices(nn.Identity(), (values,))
            spacing = spacing if spacing is None else as_spacing(spacing, 1, 3)[0, :2]
        region = region_wise_map(
            values,
            self.kind,
            self.num_classes,
            spacing,
            multi_label=self.multi_label,
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
        "_target_": _TRANSFORM_TARGET,
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


# ---------------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class _Place:
    """One loss in one file of a template.

    Attributes:
        file: in ``configs/``.
        keys: where it stands.
        softmax, sigmoid, spacing, classes: references to the template's own settings.
    """

    file: str
    keys: tuple[str, ...]
    softmax: str
    sigmoid: str
    spacing: str
    classes: str

    @property
    def key(self) -> str:
        """As MONAI's ConfigParser writes it."""
        return "#".join(self.keys)


@dataclass(frozen=True)
class Layout:
    """How one of the public templates holds its loss.

    Attributes:
        name: of the template.
        places: every loss in it.
        packs: what takes the packing transform: ``"custom"`` (``custom_data_transforms``) or
            ``"list"`` (the end of ``transforms_train``).
        deep_supervision: whether it wraps its loss in DeepSupervisionLoss, built by two parses.
        reads_input: whether AutoRunner's ``input`` reaches its loss.
        slicewise: whether its network sees slices.
    """

    name: str
    places: tuple[_Place, ...]
    packs: Literal["custom", "list"]
    deep_supervision: bool
    reads_input: bool
    slicewise: bool = False


_HYPER = "hyper_parameters.yaml"
_SEARCH = "hyper_parameters_search.yaml"
_TRAIN = "transforms_train.yaml"
# Its name sorts behind hyper_parameters.yaml: segresnet saves its settings to the first file.
_CUSTOM = "monai_segloss.yaml"
_MARK = "monai_segloss.json"
_LOSS_TARGET = "monai_segloss.auto3dseg.Auto3DSegLoss"
_TRANSFORM_TARGET = "monai_segloss.auto3dseg.PackTargetd"


def _segresnet(name: str, spacing: str, slicewise: bool) -> Layout:
    place = _Place(_HYPER, ("loss",), "$not @sigmoid", "$@sigmoid", spacing, "output_classes")
    return Layout(name, (place,), "custom", True, True, slicewise)


def _dints_place(file: str, section: str) -> _Place:
    return _Place(
        file,
        (section, "loss"),
        f"@{section}#softmax",
        f"$not @{section}#softmax",
        f"@{section}#resample_resolution",
        f"{section}#output_classes",
    )


LAYOUTS: Mapping[str, Layout] = {
    "segresnet": _segresnet("segresnet", "@resample_resolution", slicewise=False),
    # The template resamples in the plane only.
    "segresnet2d": _segresnet("segresnet2d", "$@resample_resolution[:2]", slicewise=True),
    "swinunetr": Layout(
        "swinunetr",
        (
            _Place(
                _HYPER,
                ("loss",),
                "$@softmax",
                "$not @softmax",
                "@resample_resolution",
                "output_classes",
            ),
        ),
        "list",
        deep_supervision=False,
        reads_input=False,
    ),
    "dints": Layout(
        "dints",
        (_dints_place(_HYPER, "training"), _dints_place(_SEARCH, "searching")),
        "list",
        deep_supervision=False,
        reads_input=False,
    ),
}
"""The layouts of the public templates, by name."""


def _layout(algo: str) -> Layout:
    if algo not in LAYOUTS:
        raise ValueError(
            f"algo: expected one of {', '.join(LAYOUTS)} (for a template of your own, "
            f"name=one of them), got {algo!r}"
        )
    return LAYOUTS[algo]


# -------------------------------------------------------------------------------------- the entry


def loss_config(
    name: str,
    algo: str,
    *,
    spacing: Spacing | Literal["template"] = "template",
    schedule: str | None = None,
    steps_per_epoch: int | None = None,
    section: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The entry ``loss`` of a template: flat, and free of any object.

    Args:
        name: a name of :data:`monai_segloss.losses.TAXONOMY`.
        algo: a name of :data:`LAYOUTS`.
        spacing: voxel size of maps computed on the fly: ``"template"`` refers to the resolution in
            mm that the template resamples to (in the plane, for slices), numbers are mm, None
            measures in voxels.
        schedule, steps_per_epoch: as in :class:`Auto3DSegLoss`.
        section: for dints, ``"training"`` (the default) or ``"searching"``.
        **options: those of the loss.

    Raises:
        ValueError: on what :class:`Auto3DSegLoss` refuses, an unknown algorithm or section, or an
            option that YAML cannot hold.
    """
    layout = _layout(algo)
    sections = {place.keys[0]: place for place in layout.places}
    place = layout.places[0]
    if section is not None:
        if section not in sections or len(place.keys) == 1:
            raise ValueError(
                f"section: expected None (dints: {', '.join(sections)}), got {section!r}"
            )
        place = sections[section]
    return _entry(name, layout, place, spacing, schedule, steps_per_epoch, options)


def _entry(
    name: str,
    layout: Layout,
    place: _Place,
    spacing: Spacing | Literal["template"],
    schedule: str | None,
    steps_per_epoch: int | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    numbers = _spacing_numbers(spacing, layout)
    own: dict[str, Any] = {"slicewise": True} if layout.slicewise else {}
    if schedule is not None or steps_per_epoch is not None:
        own |= {"schedule": schedule, "steps_per_epoch": steps_per_epoch}
    own |= options
    _try_options(name, numbers, own)
    entry: dict[str, Any] = {
        "_target_": _LOSS_TARGET,
        "name": name,
        "softmax": place.softmax,
        "sigmoid": place.sigmoid,
        "spacing": place.spacing if isinstance(spacing, str) else numbers,
        **own,
    }
    _check_plain(entry)
    return entry


def _spacing_numbers(
    spacing: Spacing | Literal["template"], layout: Layout
) -> list[float] | float | None:
    """A spacing as YAML holds it; None for ``"template"``, whose numbers come with the data."""
    if isinstance(spacing, str) and spacing != "template":
        raise ValueError(f"spacing: expected 'template', numbers or None, got {spacing!r}")
    if spacing is None or isinstance(spacing, str):
        return None
    values = torch.as_tensor(spacing, dtype=torch.float64).tolist()
    if isinstance(values, list) and layout.slicewise:
        values = values[:2]
    as_spacing(values, 1, 2 if layout.slicewise else 3)
    return values


def _try_options(name: str, spacing: Any, options: Mapping[str, Any]) -> Auto3DSegLoss:
    """Build the loss with one activation or, if it does not take that, with the other."""
    rows = [get_loss_row(n) for n in options.get("losses", ())] or [get_loss_row(name)]
    softmax = all("softmax" in row.forms for row in rows)
    return Auto3DSegLoss(name, softmax, not softmax, spacing, **options)


def _check_plain(entry: Mapping[str, Any]) -> None:
    """The first parse would turn a nested ``_target_`` into a component, and refuse the rest."""
    try:
        text = yaml.safe_dump(dict(entry))
    except yaml.YAMLError as error:
        raise ValueError(
            f"options: expected numbers, strings, lists and dictionaries, got {entry}: {error}"
        ) from error
    if text.count("_target_") > 1:
        raise ValueError(f"options: expected no nested _target_, got {entry}")


def input_overrides(
    loss: str, algos: Sequence[str] | str, **options: Any
) -> dict[str, dict[str, Any]]:
    """What to add to AutoRunner's ``input``, for algorithms that take their loss from there.

    ``AutoRunner(input={**data, **input_overrides("rrw", "segresnet")}, algos="segresnet")``. Maps
    are computed online.

    Args:
        loss: a name of :data:`monai_segloss.losses.TAXONOMY`.
        algos: the algorithms that AutoRunner is given, all of them.
        **options: those of :func:`loss_config`.

    Raises:
        ValueError: if an algorithm would ignore it, or two would need different entries.
    """
    names = [algos] if isinstance(algos, str) else list(algos)
    if not names:
        raise ValueError("algos: expected at least one algorithm, got none")
    ignoring = [name for name in names if not _layout(name).reads_input]
    if ignoring:
        raise ValueError(
            f"algos: {', '.join(ignoring)} would ignore a loss in AutoRunner's input without a "
            "word; use patch_templates"
        )
    entries = [loss_config(loss, name, **options) for name in names]
    if any(entry != entries[0] for entry in entries):
        raise ValueError(
            f"algos: {', '.join(names)} need different entries (slices or volumes) and one input "
            "serves all; run them one by one, or use patch_templates"
        )
    return {"loss": entries[0]}


def _packing(loss: str, layout: Layout, options: Mapping[str, Any]) -> dict[str, Any]:
    """The packing transform's arguments that the loss decides.

    Raises:
        ValueError: if the loss does not read maps of one kind made in one way.
    """
    spacing = options.get("spacing", "template")
    own = {k: v for k, v in options.items() if k != "spacing"}
    built = _try_options(loss, None, own)
    if built.map_kind is None:
        raise ValueError(
            f"maps: expected 'online', since {loss} reads no map or maps of several kinds, "
            "got 'packed'"
        )
    if options.get("ignore_index") is not None:
        raise ValueError("maps: expected 'online' with ignore_index, got 'packed'")
    readers = [term for term in built.terms.values() if getattr(term, "map_kind", None)]
    made = [_without_defaults(getattr(term, "map_options", {})) for term in readers]
    if any(one != made[0] for one in made):
        raise ValueError(
            f"maps: expected 'online', since the terms of {loss} read maps made with different "
            f"options, {made}, got 'packed'"
        )
    return {
        "kind": built.map_kind,
        "spacing": "affine" if isinstance(spacing, str) else _spacing_numbers(spacing, layout),
        "slicewise": layout.slicewise,
        "map_options": made[0],
    }


def _without_defaults(map_options: Mapping[str, Any]) -> dict[str, Any]:
    """BoundaryLoss names its map's default, HausdorffLoss does without a name for the same."""
    return {k: v for k, v in map_options.items() if (k, v) != ("inside", "symmetric")}


# ------------------------------------------------------------------------------------- YAML text


def _replace_entry(text: str, keys: Sequence[str], value: Mapping[str, Any]) -> str:
    """A YAML text with the block mapping's entry at ``keys`` replaced, the rest byte for byte.

    Comments inside the entry go with it.

    Raises:
        ValueError: if there is no such entry, or it stands in braces.
    """
    *above, last = keys
    key, old = _find(text, above, last)
    indent = " " * key.start_mark.column
    new = yaml.safe_dump({last: dict(value)}, sort_keys=False, width=100)
    start, end = key.start_mark.index - len(indent), _line_end(text, _end(old))
    return text[:start] + _indented(new, indent) + text[end:]


def _replace_items(
    text: str, keys: Sequence[str], target: str, value: Mapping[str, Any] | None
) -> str:
    """A YAML text whose block list at ``keys`` ends with one item of a ``_target_``, or with none.

    Raises:
        ValueError: if there is no such list.
    """
    *above, last = keys
    _, items = _find(text, above, last)
    if not isinstance(items, yaml.SequenceNode) or items.flow_style or not items.value:
        raise ValueError(f"{'#'.join(keys)}: expected a list of one '- ' a line")
    indent = " " * items.start_mark.column
    end = _line_end(text, _end(items))
    new = ""
    if value is not None:
        new = _indented(yaml.safe_dump([dict(value)], sort_keys=False, width=100), indent)
    if end and text[end - 1] != "\n":
        new = "\n" + new
    text = text[:end] + new + text[end:]
    for item in reversed(items.value):
        if _target_of(item) == target:
            start = text.rindex("\n", 0, item.start_mark.index) + 1
            text = text[:start] + text[_line_end(text, _end(item)) :]
    return text


def _find(text: str, above: Sequence[str], last: str) -> tuple[yaml.Node, yaml.Node]:
    """The nodes of a key and its value in a block mapping."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for name in (*above, last):
        if not isinstance(node, yaml.MappingNode) or node.flow_style:
            raise ValueError(f"{'#'.join((*above, last))}: expected a block of 'key: value' lines")
        found = [(k, v) for k, v in node.value if k.value == name]
        if not found:
            raise ValueError(f"{'#'.join((*above, last))}: expected this entry, found none")
        key, node = found[0]
    return key, node


def _target_of(node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((v.value for k, v in node.value if k.value == "_target_"), None)


def _end(node: yaml.Node) -> int:
    """Index behind a node's last character; a block's own mark lies behind its blank lines."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        child = node.value[-1]
        return _end(child[1] if isinstance(child, tuple) else child)
    return int(node.end_mark.index)


def _line_end(text: str, index: int) -> int:
    newline = text.find("\n", max(index - 1, 0))
    return len(text) if newline < 0 else newline + 1


def _indented(text: str, indent: str) -> str:
    return "".join(indent + line for line in text.splitlines(keepends=True))


# --------------------------------------------------------------------------------------- patching


def patch_templates(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    loss: str,
    algos: Sequence[str] | Mapping[str, str] | str | None = None,
    maps: Maps = "online",
    **options: Any,
) -> Path:
    """Copy Auto3DSeg's templates and give the copy a loss.

    The copy is for AutoRunner's ``templates_path_or_url``; it holds the algorithms that were
    patched, and no other. A folder that an earlier call
    made is replaced, any other is left alone; after an error everything is as it was.

    Args:
        src: folder that holds the templates, one folder an algorithm.
        dst: folder to make.
        loss: a name of :data:`monai_segloss.losses.TAXONOMY`.
        algos: names of algorithms, each a name of :data:`LAYOUTS`, or a mapping of the names of
            your own templates to those they are laid out like; all known ones in ``src`` by
            default.
        maps: ``"online"``: the loss computes them, in the resolution that the template resamples
            to; ``"packed"``: a transform behind the augmentation computes them, in the workers that
            load the data, in each crop's own voxel size.
        **options: those of :func:`loss_config`.

    Returns:
        ``dst``.

    Raises:
        ValueError: on an unknown algorithm, loss or option, a file of another layout, or packed
            maps for a loss that reads none.
        FileNotFoundError: if ``src`` holds no such template.
        FileExistsError: if ``dst`` is there and no earlier call made it.
    """
    source, target = Path(src), Path(dst)
    layouts = _chosen(algos, _templates_in(source), source)
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise ValueError(f"dst: expected a folder outside src={source}, got {target}")
    if target.exists() and not (target / _MARK).is_file():
        raise FileExistsError(
            f"{target}: exists and was not made by patch_templates; choose another folder or "
            "remove it"
        )
    edits: dict[Path, str | None] = {}
    for name, layout in layouts.items():
        for path, text in _edits(source / name, layout, loss, maps, options).items():
            edits[path.relative_to(source)] = text
    named = {name: layout.name for name, layout in layouts.items()}
    mark = {"loss": loss, "maps": maps, "options": options, "algos": named}
    edits[Path(_MARK)] = json.dumps(mark, indent=2, default=str) + "\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        copy = Path(folder) / "new"
        copy.mkdir()
        for name in layouts:
            shutil.copytree(
                source / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        _apply({copy / path: text for path, text in edits.items()})
        _swap(copy, target, Path(folder) / "old")
    return target


def patch_bundles(
    work_dir: str | os.PathLike[str],
    loss: str,
    algos: Sequence[str] | Mapping[str, str] | str | None = None,
    maps: Maps = "online",
    **options: Any,
) -> list[Path]:
    """Give the bundles that AutoRunner has generated in its working directory a loss.

    For a run with ``algo_gen`` done and training still to come. AutoRunner does not train a bundle
    again that has been trained, unless told ``train=True``: patching such a bundle warns.

    Args:
        work_dir: AutoRunner's working directory, or its like.
        loss, algos, maps, **options: as in :func:`patch_templates`; by default all bundles.

    Returns:
        The folders of the bundles.

    Raises:
        ValueError, FileNotFoundError: as :func:`patch_templates`; nothing is changed then.
    """
    root = Path(work_dir)
    bundles = _bundles_in(root, _named(algos))
    layouts = _chosen(algos, sorted({name for _, name in bundles}), root)
    edits: dict[Path, str | None] = {}
    patched = [(path, layouts[name]) for path, name in bundles if name in layouts]
    for path, layout in patched:
        edits |= _edits(path, layout, loss, maps, options)
    _apply(edits)
    trained = [path.name for path, _ in patched if any(path.glob("model*/progress.yaml"))]
    if trained:
        warnings.warn(
            f"{', '.join(trained)}: trained already; AutoRunner skips them unless train=True",
            stacklevel=2,
        )
    return [path for path, _ in patched]


def _edits(
    folder: Path, layout: Layout, loss: str, maps: Maps, options: Mapping[str, Any]
) -> dict[Path, str | None]:
    """The new text of every file to change in a template or bundle; None for one to remove."""
    if maps not in ("online", "packed"):
        raise ValueError(f"maps: expected 'online' or 'packed', got {maps!r}")
    packing = _packing(loss, layout, options) if maps == "packed" else None
    configs = folder / "configs"
    edits: dict[Path, str | None] = {}
    for place in layout.places:
        section = place.keys[0] if len(place.keys) > 1 else None
        entry = loss_config(loss, layout.name, section=section, **options)
        edits[configs / place.file] = _with_entry(configs / place.file, place.keys, entry)
    if layout.packs == "custom":
        edits[configs / _CUSTOM] = None if packing is None else _custom_transforms(configs, packing)
    else:
        item = None if packing is None else _packing_item(layout.places[0], packing)
        edits[configs / _TRAIN] = _with_item(configs / _TRAIN, item)
    return edits


def _with_entry(path: Path, keys: tuple[str, ...], entry: dict[str, Any]) -> str:
    return _edited(path, keys, lambda text: _replace_entry(text, keys, entry), lambda old: entry)


def _with_item(path: Path, item: dict[str, Any] | None) -> str:
    keys = ("transforms_train", "transforms")
    new = [] if item is None else [item]
    return _edited(
        path,
        keys,
        lambda text: _replace_items(text, keys, _TRANSFORM_TARGET, item),
        lambda old: [i for i in old if not _is_ours(i)] + new,
    )


def _custom_transforms(configs: Path, packing: Mapping[str, Any]) -> str:
    """A configuration file of its own.

    In hyper_parameters.yaml the template would look for a Python file to copy, and would leave
    references to its settings unresolved.
    """
    if yaml.safe_load(_read(configs / _HYPER)).get("custom_data_transforms"):
        raise ValueError(
            f"{configs / _HYPER}: expected no custom_data_transforms beside packed maps, which "
            "bring their own; use maps='online'"
        )
    # In an expression MONAI takes the word "import" for a statement.
    references = {k: f"@{k}" for k in ("sigmoid", "class_index")}
    references["num_classes"] = "@output_classes"
    arguments = [f"{k}={v}" for k, v in references.items()]
    arguments += [f"{k}={v!r}" for k, v in packing.items()]
    expression = (
        "$monai.utils.instantiate('monai_segloss.auto3dseg.packing_transforms', 'default', "
        f"{', '.join(arguments)})"
    )
    return "# packs the map behind the label's channels, see monai_segloss\n" + yaml.safe_dump(
        {"custom_data_transforms": expression}, width=100
    )


def _packing_item(place: _Place, packing: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {k: v for k, v in packing.items() if k != "slicewise"}
    return {
        "_target_": _TRANSFORM_TARGET,
        "keys": "@label_key",
        "num_classes": f"@{place.classes}",
        "multi_label": place.sigmoid,
        **arguments,
    }


def _edited(
    path: Path, keys: Sequence[str], edit: Callable[[str], str], change: Callable[[Any], Any]
) -> str:
    """The edited text of a file, once it is sure that nothing else has changed.

    Args:
        edit: what happens to the text.
        change: what that must do to the value at ``keys``.
    """
    text = _read(path)
    try:
        new = edit(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    expected = yaml.safe_load(text)
    *above, last = keys
    part = expected
    for key in above:
        part = part[key]
    part[last] = change(part[last])
    if yaml.safe_load(new) != expected:
        raise ValueError(f"{path}: expected {'#'.join(keys)} in a layout that can be edited")
    return new


def _is_ours(item: Any) -> bool:
    return isinstance(item, dict) and item.get("_target_") == _TRANSFORM_TARGET


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a configuration file of Auto3DSeg, found none")
    return path.read_text(encoding="utf-8")


def _apply(edits: Mapping[Path, str | None]) -> None:
    """Write or remove all files, or after an error none."""
    before = {path: path.read_bytes() if path.is_file() else None for path in edits}
    with ExitStack() as undo:
        for path, text in edits.items():
            undo.callback(_restore, path, before[path])
            if text is None:
                path.unlink(missing_ok=True)
            else:
                with replacing(path) as partial:
                    partial.write_text(text, encoding="utf-8")
        undo.pop_all()


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        with replacing(path) as partial:
            partial.write_bytes(content)


def _swap(new: Path, target: Path, aside: Path) -> None:
    """Put a folder in another's place; the old one goes aside."""
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(new, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise


def _named(algos: Sequence[str] | Mapping[str, str] | str | None) -> dict[str, Layout]:
    """Name of an algorithm -> its layout; all known ones for None."""
    if algos is None:
        return dict(LAYOUTS)
    if isinstance(algos, Mapping):
        return {name: _layout(like) for name, like in algos.items()}
    return {name: _layout(name) for name in ([algos] if isinstance(algos, str) else algos)}


def _chosen(
    algos: Sequence[str] | Mapping[str, str] | str | None, there: Sequence[str], root: Path
) -> dict[str, Layout]:
    """The algorithms asked for, of those that are there."""
    wanted = _named(algos)
    if algos is None:
        wanted = {name: layout for name, layout in wanted.items() if name in there}
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        inside = root / "algorithm_templates"
        hint = f"; did you mean {inside}?" if inside.is_dir() else ""
        raise FileNotFoundError(
            f"{root}: expected {', '.join(missing or LAYOUTS)}, found "
            f"{', '.join(there) or 'no template or bundle of Auto3DSeg'}{hint}"
        )
    return wanted


def _templates_in(root: Path) -> list[str]:
    return sorted(path.parent.parent.name for path in root.glob("*/scripts/algo.py"))


def _bundles_in(root: Path, layouts: Mapping[str, Layout]) -> list[tuple[Path, str]]:
    """Generated bundles, named <algorithm>_<fold>, and their algorithms."""
    found = []
    for path in sorted({path.parent for path in root.glob("*/algo_object.*")}):
        names = [name for name in layouts if path.name.startswith(f"{name}_")]
        if names:
            found.append((path, max(names, key=len)))
    return found


# --------------------------------------------------------------------------------------- checking


@dataclass(frozen=True)
class Checked:
    """A loss that went through :func:`check`.

    Attributes:
        folder: the template or bundle.
        key: where its configuration holds the loss.
        name: of the loss.
        packed: whether its training target is packed.
        cases: calls with a finite value and a finite gradient.
        seconds: they took.
    """

    folder: Path
    key: str
    name: str
    packed: bool
    cases: int
    seconds: float


def check(
    path: str | os.PathLike[str],
    algos: Sequence[str] | Mapping[str, str] | str | None = None,
    cmd_prefix: str | None = None,
) -> list[Checked]:
    """Try the losses of patched templates or bundles before a training does.

    Each is parsed as its template parses it, and called with random logits on the CPU: at two
    resolutions under DeepSupervisionLoss for the segresnet templates, at one for the others; with
    float32 and uint8 targets, with every class and with the background alone, packed and not, the
    map made by the template's own packing transform where it has one. Then the command that will
    start the training imports and builds it. What a template leaves open until data are analysed
    (classes, resolution) gets a stand-in.

    Args:
        path: folder of templates, as :func:`patch_templates` made it, or AutoRunner's working
            directory.
        algos: as in :func:`patch_templates`; by default all that are there.
        cmd_prefix: what starts Python in training, as ``AutoRunner.set_device_info`` takes it; by
            default what AutoRunner takes, the environment's CMD_PREFIX or ``python``.

    Returns:
        What was checked, a row for each loss.

    Raises:
        ValueError: naming folder and entry, if a loss is not ours, does not parse, or fails.
        RuntimeError: if the training command cannot import it.
        FileNotFoundError: if there is no template or bundle.
    """
    root = Path(path)
    named = _named(algos)
    if algos is None and (root / _MARK).is_file():
        named |= _named(json.loads((root / _MARK).read_text(encoding="utf-8"))["algos"])
    folders = [(root / name, name) for name in _templates_in(root)] or _bundles_in(root, named)
    there = [name for _, name in folders]
    layouts = (
        _chosen(algos, there, root) if algos else {n: x for n, x in named.items() if n in there}
    )
    if not layouts:
        _chosen(None, there, root)
    checked: list[Checked] = []
    entries: list[dict[str, Any]] = []
    for folder, name in folders:
        if name in layouts:
            for place in layouts[name].places:
                checked.append(_check_place(folder, layouts[name], place, entries))
    _check_command(cmd_prefix, entries)
    return checked


def _check_place(
    folder: Path, layout: Layout, place: _Place, entries: list[dict[str, Any]]
) -> Checked:
    began = time.perf_counter()
    try:
        parser = _parser(folder, layout)
        entry = parser[place.key]
        if not isinstance(entry, dict) or entry.get("_target_") != _LOSS_TARGET:
            target = entry.get("_target_") if isinstance(entry, dict) else entry
            raise ValueError(f"expected {_LOSS_TARGET}, got {target!r}; patch it first")
        resolved = parser.get_parsed_content(place.key, instantiate=False).config
        # The segresnet templates parse what they have parsed; for the others it is the same.
        loss = ConfigParser(resolved).get_parsed_content(instantiate=True)
        packing = _packing_transform(parser, layout)
        classes = int(parser.get_parsed_content(place.classes))
        cases = 0
        for target in _targets(loss, packing, classes, layout):
            _dry_run(loss, target, classes, layout)
            cases += 1
    except Exception as error:
        raise ValueError(f"{folder}: {place.key}: {_root_cause(error)}") from error
    entries.append(resolved)
    seconds = time.perf_counter() - began
    return Checked(folder, place.key, loss.name, packing is not None, cases, seconds)


def _parser(folder: Path, layout: Layout) -> ConfigParser:
    """A template's configuration as its scripts read it, stand-ins for what is open."""
    files = sorted((folder / "configs").glob("*.yaml"))
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    for place in layout.places:
        section = "".join(f"{key}#" for key in place.keys[:-1])
        for key, value in (("output_classes", 3), ("resample_resolution", [1.0, 1.0, 1.0])):
            if parser[section + key] is None:
                parser[section + key] = value
    return parser


def _packing_transform(parser: ConfigParser, layout: Layout) -> Callable[..., Any] | None:
    if layout.packs == "custom":
        for item in parser.get_parsed_content("custom_data_transforms", default=None) or []:
            if _is_ours(item["transform"]):
                return _built(ConfigParser(dict(item["transform"])), "")
        return None
    items = parser["transforms_train#transforms"]
    ours = [i for i, item in enumerate(items) if _is_ours(item)]
    return _built(parser, f"transforms_train#transforms#{ours[-1]}") if ours else None


def _built(parser: ConfigParser, key: str) -> Callable[..., Any]:
    transform: Callable[..., Any] = parser.get_parsed_content(key, instantiate=True)
    return transform


_SIZE = 16


def _targets(
    loss: Auto3DSegLoss, packing: Callable[..., Any] | None, classes: int, layout: Layout
) -> Iterator[Tensor]:
    """Targets as the template makes them: with every class and with the background alone."""
    depth = 4 if layout.slicewise else _SIZE
    shape = (_SIZE, _SIZE, depth)
    seed = torch.Generator().manual_seed(0)
    blocks = torch.randint(max(classes, 2), (1, 4, 4, depth // 4), generator=seed)
    full = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for label in (full, torch.zeros(1, *shape, dtype=torch.int64)):
        if loss.sigmoid and classes > 1:
            label = torch.cat([label == k for k in range(classes)])
        for dtype in (torch.float32, torch.uint8):
            yield torch.stack([label.to(dtype)] * 2)
        pack = packing or PackTargetd(
            "label",
            loss.map_kind or "rrw",
            classes,
            multi_label=loss.sigmoid,
            slicewise=layout.slicewise,
        )
        if packing is not None or loss.map_kind is not None or not _reads_maps(loss):
            yield torch.stack([pack({"label": label.float()})["label"]] * 2)


def _reads_maps(loss: Auto3DSegLoss) -> bool:
    return any(getattr(term, "map_kind", None) for term in loss.terms.values())


def _dry_run(loss: Auto3DSegLoss, target: Tensor, classes: int, layout: Layout) -> None:
    spatial = tuple(target.shape[2:])
    depth = spatial[2] if layout.slicewise else spatial[2] // 2
    half = (spatial[0] // 2, spatial[1] // 2, depth)
    seed = torch.Generator().manual_seed(1)
    logits = [
        torch.randn(2, classes, *size, generator=seed).requires_grad_()
        for size in ((spatial, half) if layout.deep_supervision else (spatial,))
    ]
    value = (
        DeepSupervisionLoss(loss)(logits, target)
        if layout.deep_supervision
        else loss(logits[0], target)
    )
    value.backward()
    finite = all(x.grad is not None and bool(torch.isfinite(x.grad).all()) for x in logits)
    if value.ndim or not bool(torch.isfinite(value)) or not finite:
        raise ValueError(
            f"expected one finite number with a finite gradient for a {target.dtype} target "
            f"{tuple(target.shape)}, got {value.detach()}"
        )


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


_IMPORT = """
import json, sys
from monai.bundle import ConfigParser
for entry in json.loads(open(sys.argv[1], encoding="utf-8").read()):
    ConfigParser(entry).get_parsed_content(instantiate=True)
"""


def _check_command(cmd_prefix: str | None, entries: Sequence[Mapping[str, Any]]) -> None:
    """Build the losses in a process started as the training will be."""
    prefix = cmd_prefix or os.environ.get("CMD_PREFIX") or "python"
    with tempfile.TemporaryDirectory() as folder:
        # A file outside this folder: with -c, Python would also search the one it is started in.
        script, config = Path(folder) / "build.py", Path(folder) / "losses.json"
        script.write_text(_IMPORT, encoding="utf-8")
        config.write_text(json.dumps(entries), encoding="utf-8")
        try:
            done = subprocess.run(
                [*prefix.split(), str(script), str(config)], capture_output=True, text=True
            )
            failure = done.stderr.strip().splitlines()[-1:] if done.returncode else None
        except OSError as error:
            failure = [str(error)]
    if failure is not None:
        raise RuntimeError(
            f"cmd_prefix: expected a Python that has monai_segloss, got {shlex.quote(prefix)}, "
            f"which ends with: {' '.join(failure) or 'an error'}; in AutoRunner, name this one: "
            "runner.set_device_info(cmd_prefix=sys.executable)"
        )
