"""The table of losses by name, and the one way to build any of them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import monai.losses
from torch import nn

from monai_segloss.losses.boundary import BoundaryLoss, RegionWiseLoss

__all__ = ["TAXONOMY", "LossRow", "get_loss_row", "make_loss"]


@dataclass(frozen=True)
class LossRow:
    """One loss.

    Attributes:
        name: what users type.
        family: ``"distribution"``, ``"region"``, ``"boundary"`` or ``"compound"``.
        build: the class.
        map_kind: the map it reads from its target, None if it reads none.
        safe_alone: False if it is known to collapse without a partner.
        source: paper and equation.
        options: arguments that make this name out of the class.
        renames: what the class calls an argument that the others call otherwise.
    """

    name: str
    family: str
    build: Callable[..., nn.Module]
    source: str
    map_kind: str | None = None
    safe_alone: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)


_PAPER = "Valverde & Tohka 2022"


def _region_wise(kind: str, source: str, safe_alone: bool = True) -> LossRow:
    return LossRow(
        kind, "boundary", RegionWiseLoss, source, kind, safe_alone, options={"kind": kind}
    )


TAXONOMY: Mapping[str, LossRow] = {
    row.name: row
    for row in (
        LossRow(
            "focal",
            "distribution",
            monai.losses.FocalLoss,
            "Lin et al. 2017, eq. 5",
            renames={"softmax": "use_softmax"},
        ),
        LossRow("dice", "region", monai.losses.DiceLoss, "Milletari et al. 2016"),
        LossRow(
            "generalized_dice", "region", monai.losses.GeneralizedDiceLoss, "Sudre et al. 2017"
        ),
        LossRow("tversky", "region", monai.losses.TverskyLoss, "Salehi et al. 2017, eq. 4"),
        _region_wise("rrw", f"{_PAPER}, eq. 1 and 4"),
        LossRow(
            "boundary",
            "boundary",
            BoundaryLoss,
            f"{_PAPER}, eq. 3; Kervadec et al. 2019, eq. 5",
            "boundary",
            safe_alone=False,
        ),
        _region_wise("active_contour", f"{_PAPER}, eq. 17; Chen et al. 2019"),
        _region_wise("non_euclidean", f"{_PAPER}, eq. 29; Cao et al. 2020"),
        _region_wise("hausdorff", f"{_PAPER}, eq. 25; Karimi & Salcudean 2019", safe_alone=False),
        LossRow(
            "dice_ce",
            "compound",
            monai.losses.DiceCELoss,
            "Isensee et al. 2021",
        ),
    )
}
"""The losses by name. A row whose ``map_kind`` is set reads that map from its target, or computes
it from the label if the target brings none."""


def get_loss_row(name: str) -> LossRow:
    """The row of :data:`TAXONOMY`.

    Raises:
        ValueError: on an unknown name, with the nearest known one.
    """
    if name in TAXONOMY:
        return TAXONOMY[name]
    raise ValueError(
        f"loss name: expected one of {', '.join(TAXONOMY)}, got {name!r}{_nearest(name, TAXONOMY)}"
    )


def make_loss(name: str, **options: Any) -> nn.Module:
    """Build a loss of the taxonomy.

    Args:
        name: a name of :data:`TAXONOMY`.
        **options: arguments of its class.

    Raises:
        ValueError: on an unknown name, or an option its class does not know, with the nearest
            match.
    """
    row = get_loss_row(name)
    options = {row.renames.get(option, option): value for option, value in options.items()}
    known = inspect.signature(row.build).parameters
    for option in options:
        if option in row.options and options[option] != row.options[option]:
            raise ValueError(
                f"{name}: {option} is {row.options[option]!r} by name, got {options[option]!r}"
            )
        if option not in known:
            raise ValueError(
                f"{name}: unknown option {option!r}{_nearest(option, known)} "
                f"(known: {', '.join(known)})"
            )
    return row.build(**{**row.options, **options})


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(word).lower(), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
