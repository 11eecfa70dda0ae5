"""Where the public templates hold their losses, and what stands there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import yaml

from monai_segloss.auto3dseg.loss import Auto3DSegLoss
from monai_segloss.distance import Spacing, as_spacing
from monai_segloss.losses import get_loss_row

__all__ = ["LAYOUTS", "Layout", "Place", "get_layout", "input_overrides", "loss_config"]


@dataclass(frozen=True)
class Place:
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
    places: tuple[Place, ...]
    packs: Literal["custom", "list"]
    deep_supervision: bool
    reads_input: bool
    slicewise: bool = False


HYPER = "hyper_parameters.yaml"
_SEARCH = "hyper_parameters_search.yaml"
LOSS_TARGET = "monai_segloss.auto3dseg.Auto3DSegLoss"


def _segresnet(name: str, spacing: str, slicewise: bool) -> Layout:
    place = Place(HYPER, ("loss",), "$not @sigmoid", "$@sigmoid", spacing, "output_classes")
    return Layout(name, (place,), "custom", True, True, slicewise)


def _dints_place(file: str, section: str) -> Place:
    return Place(
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
            Place(
                HYPER,
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
        (_dints_place(HYPER, "training"), _dints_place(_SEARCH, "searching")),
        "list",
        deep_supervision=False,
        reads_input=False,
    ),
}
"""The layouts of the public templates, by name."""


def get_layout(algo: str) -> Layout:
    if algo not in LAYOUTS:
        raise ValueError(
            f"algo: expected one of {', '.join(LAYOUTS)} (for a template of your own, "
            f"name=one of them), got {algo!r}"
        )
    return LAYOUTS[algo]


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
    layout = get_layout(algo)
    places = {place.keys[0] if len(place.keys) > 1 else None: place for place in layout.places}
    if section is not None and section not in places:
        raise ValueError(
            f"section: expected one of {', '.join(map(str, places))} for {algo}, got {section!r}"
        )
    place = layout.places[0] if section is None else places[section]
    return _entry(name, layout, place, spacing, schedule, steps_per_epoch, options)


def _entry(
    name: str,
    layout: Layout,
    place: Place,
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
        "_target_": LOSS_TARGET,
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
    ignoring = [name for name in names if not get_layout(name).reads_input]
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


def packing_arguments(loss: str, layout: Layout, options: Mapping[str, Any]) -> dict[str, Any]:
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
