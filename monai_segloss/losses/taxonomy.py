"""The table of losses by name, and the one way to build any of them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import monai.losses
import torch
from torch import nn

from monai_segloss.losses.boundary import (
    ActiveBoundaryLoss,
    ActiveContourLoss,
    BoundaryLoss,
    HausdorffLoss,
    NonAdjacencyLoss,
    RegionWiseLoss,
)
from monai_segloss.losses.compound import (
    ComboLoss,
    DiceBCELoss,
    DiceFocalLoss,
    DiceTopKLoss,
    ExpLogLoss,
    WeightedSumLoss,
)
from monai_segloss.losses.distribution import (
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    MapCrossEntropyLoss,
    TopKLoss,
)
from monai_segloss.losses.region import (
    AsymmetricSimilarityLoss,
    FocalTverskyLoss,
    JaccardLoss,
    LovaszHingeLoss,
    LovaszSoftmaxLoss,
    PenaltyGeneralizedDiceLoss,
    SensitivitySpecificityLoss,
)

__all__ = ["TAXONOMY", "LossRow", "get_loss_row", "make_loss"]

_ALL = ("softmax", "multi-label", "binary")
_WEIGHTED_SUM = "weighted_sum"


@dataclass(frozen=True)
class LossRow:
    """One loss.

    Attributes:
        name: what users type.
        family: ``"distribution"``, ``"region"``, ``"boundary"`` or ``"compound"``.
        build: the class.
        source: paper, and the equation where we could look it up.
        map_kind: the map it reads from its target, None if it reads none.
        forms: the predictions it takes: ``"softmax"`` (classes that exclude one another),
            ``"multi-label"`` (sigmoid, channels that may overlap), ``"binary"`` (one channel).
        partner: the loss that it is trained in a sum with, since on its own it has minima that are
            no segmentation; None if it is safe alone.
        schedule: name of the schedule (:mod:`monai_segloss.schedule`) of that sum's weights.
        options: arguments that make this name out of the class.
        renames: what the class calls an argument that the others call otherwise; None for one that
            it does without.
    """

    name: str
    family: str
    build: Callable[..., nn.Module]
    source: str
    map_kind: str | None = None
    forms: tuple[str, ...] = _ALL
    partner: str | None = None
    schedule: str = "equal"
    options: Mapping[str, Any] = field(default_factory=dict)
    renames: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        return getattr(self.build, "__name__", str(self.build))

    @property
    def safe_alone(self) -> bool:
        return self.partner is None

    @property
    def owner(self) -> str:
        """``"MONAI"`` or ``"ours"``."""
        return "MONAI" if self.build.__module__.startswith("monai.") else "ours"


_DEFAULT = "default"
_NONE = "none"
_VT = "Valverde & Tohka 2022"
# Losses in units of distance start from Dice alone and end almost alone, as Kervadec et al. 2019.


def _region_wise(
    name: str, kind: str, source: str, partner: str | None = None, schedule: str = "equal"
) -> LossRow:
    return LossRow(
        name,
        "boundary",
        RegionWiseLoss,
        source,
        kind,
        partner=partner,
        schedule=schedule,
        options={"kind": kind},
    )


def _map_cross_entropy(kind: str, source: str) -> LossRow:
    return LossRow(
        f"{kind}_cross_entropy",
        "distribution",
        MapCrossEntropyLoss,
        source,
        kind,
        options={"kind": kind},
    )


def _table(rows: Iterable[LossRow]) -> Mapping[str, LossRow]:
    return {row.name: row for row in rows}


TAXONOMY: Mapping[str, LossRow] = _table(
    (
        LossRow("cross_entropy", "distribution", CrossEntropyLoss, "Ma 2020, weighted CE"),
        LossRow(
            "balanced_cross_entropy",
            "distribution",
            BalancedCrossEntropyLoss,
            "Xie & Tu 2015, eq. 2",
        ),
        LossRow("topk", "distribution", TopKLoss, "Wu et al. 2016; Ma 2020, TopK"),
        LossRow(
            "focal",
            "distribution",
            monai.losses.FocalLoss,
            "Lin et al. 2017, eq. 5",
            renames={"softmax": "use_softmax", "sigmoid": None},
        ),
        _map_cross_entropy("rrw", f"{_VT}, eq. 4 as a weight"),
        _map_cross_entropy("distance_penalty", "Caliva et al. 2019"),
        _map_cross_entropy("border", "Ronneberger et al. 2015, eq. 1 and 2"),
        LossRow(
            "sensitivity_specificity",
            "region",
            SensitivitySpecificityLoss,
            "Brosch et al. 2015",
        ),
        LossRow("dice", "region", monai.losses.DiceLoss, "Milletari et al. 2016"),
        LossRow(
            "generalized_dice", "region", monai.losses.GeneralizedDiceLoss, "Sudre et al. 2017"
        ),
        LossRow(
            "penalty_generalized_dice", "region", PenaltyGeneralizedDiceLoss, "Yang et al. 2019"
        ),
        LossRow("jaccard", "region", JaccardLoss, "Rahman & Wang 2016; Ma 2020, IoU"),
        LossRow("tversky", "region", monai.losses.TverskyLoss, "Salehi et al. 2017, eq. 4"),
        LossRow("focal_tversky", "region", FocalTverskyLoss, "Abraham & Khan 2018"),
        LossRow("asymmetric_similarity", "region", AsymmetricSimilarityLoss, "Hashemi et al. 2018"),
        LossRow("lovasz_softmax", "region", LovaszSoftmaxLoss, "Berman et al. 2018, section 3.2"),
        LossRow(
            "lovasz_hinge",
            "region",
            LovaszHingeLoss,
            "Berman et al. 2018, section 3.1",
            forms=("multi-label", "binary"),
        ),
        _region_wise("rrw", "rrw", f"{_VT}, eq. 1 and 4"),
        LossRow(
            "boundary",
            "boundary",
            BoundaryLoss,
            f"{_VT}, eq. 3; Kervadec et al. 2019, eq. 5",
            "boundary",
            partner="dice",
            schedule="gradual",
        ),
        _region_wise("region_wise_active_contour", "active_contour", f"{_VT}, eq. 17"),
        _region_wise("non_euclidean", "non_euclidean", f"{_VT}, eq. 29; Cao et al. 2020"),
        _region_wise("region_wise_hausdorff", "hausdorff", f"{_VT}, eq. 25", "dice", "gradual"),
        LossRow(
            "hausdorff",
            "boundary",
            HausdorffLoss,
            "Karimi & Salcudean 2019",
            "boundary",
            partner="dice",
            schedule="gradual",
        ),
        LossRow(
            "hausdorff_one_sided",
            "boundary",
            HausdorffLoss,
            "Karimi & Salcudean 2019",
            "boundary",
            partner="dice",
            schedule="gradual",
            options={"one_sided": True},
        ),
        LossRow("active_contour", "boundary", ActiveContourLoss, "Chen et al. 2019"),
        LossRow(
            "active_boundary",
            "boundary",
            ActiveBoundaryLoss,
            "Wang et al. 2022",
            partner="dice",
        ),
        LossRow(
            "non_adjacency",
            "boundary",
            NonAdjacencyLoss,
            "Ganaye et al. 2019",
            forms=("softmax", "multi-label"),
            partner="dice",
        ),
        LossRow(
            "dice_ce",
            "compound",
            monai.losses.DiceCELoss,
            "Isensee et al. 2021",
            # With a sigmoid and several channels its cross-entropy takes a softmax.
            forms=("softmax", "binary"),
        ),
        LossRow("dice_bce", "compound", DiceBCELoss, "Dubey 2021, Dice-BCE"),
        LossRow("dice_focal", "compound", DiceFocalLoss, "Zhu et al. 2019"),
        LossRow("dice_topk", "compound", DiceTopKLoss, "Isensee et al. 2021"),
        LossRow("combo", "compound", ComboLoss, "Taghanaki et al. 2019"),
        LossRow("exp_log", "compound", ExpLogLoss, "Wong et al. 2018"),
        LossRow(
            _WEIGHTED_SUM,
            "compound",
            WeightedSumLoss,
            f"{_VT}, section 4; Kervadec et al. 2019",
        ),
    )
)
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
    """Build a loss of the taxonomy from a flat set of options.

    ``make_loss("weighted_sum", losses=["dice", "boundary"], weights=[1, 0.01], softmax=True,
    boundary_inside="shifted")`` builds a :class:`WeightedSumLoss`: an option that begins with the
    name of one of its losses is that loss's, any other goes to every one of them.

    Args:
        name: a name of :data:`TAXONOMY`.
        **options: arguments of its class.

    Raises:
        ValueError: on an unknown name, or an option its class does not know, with the nearest
            match.
    """
    row = get_loss_row(name)
    if name == _WEIGHTED_SUM:
        return _weighted_sum(**options)
    known = inspect.signature(row.build).parameters
    arguments = dict(row.options)
    for option, value in options.items():
        if option in row.options and value != row.options[option]:
            raise ValueError(f"{name}: {option} is {row.options[option]!r} by name, got {value!r}")
        argument = row.renames.get(option, option)
        if argument is None:
            continue
        if argument not in known:
            raise ValueError(
                f"{name}: unknown option {option!r}{_nearest(option, known)} "
                f"(known: {', '.join(known)})"
            )
        if argument == "weight" and row.owner == "MONAI" and isinstance(value, Sequence):
            # DiceCELoss takes a tensor alone, and a configuration has none.
            value = torch.as_tensor(value, dtype=torch.float32)
        arguments[argument] = value
    return row.build(**arguments)


def make_training_loss(
    name: str,
    options: Mapping[str, Any] | None = None,
    partner: str | None = _DEFAULT,
    **conventions: Any,
) -> nn.Module:
    """A loss that a network can be trained with: by itself, or with the partner that it needs.

    Args:
        name: a name of :data:`TAXONOMY`.
        options: further arguments of that loss, which may be other conventions than the partner's.
        partner: ``"default"`` for the row's own; None or ``"none"`` for the loss alone; or another
            name. MONAI's command line drops an override that is None, hence the word.
        **conventions: arguments of both, such as ``softmax`` and ``to_onehot_y``.

    Returns:
        The loss, or the :class:`WeightedSumLoss` of partner and loss, in this order.

    Raises:
        ValueError: see :func:`make_loss`.
    """
    second = get_partner(name, partner)
    loss = make_loss(name, **{**conventions, **(options or {})})
    if second is None:
        return loss
    return WeightedSumLoss({second: make_loss(second, **conventions), name: loss})


def get_partner(name: str, partner: str | None = _DEFAULT) -> str | None:
    """The loss that a loss is trained in a sum with.

    Raises:
        ValueError: on an unknown name, or a loss with itself as its partner.
    """
    row = get_loss_row(name)
    if partner == _DEFAULT:
        return row.partner
    if partner == _NONE:
        return None
    if partner is not None and get_loss_row(partner) is row:
        raise ValueError(f"partner: expected another loss than {name!r}, None or 'default'")
    return partner


def _weighted_sum(
    losses: Sequence[str] = ("dice", "boundary"),
    weights: Sequence[float] | None = None,
    **options: Any,
) -> WeightedSumLoss:
    """A sum of losses by name; by default Dice and its usual partner, the boundary loss."""
    if isinstance(losses, str) or len(set(losses)) != len(losses):
        raise ValueError(f"losses: expected a sequence of different names, got {losses!r}")
    for loss in losses:
        if get_loss_row(loss).name == _WEIGHTED_SUM:
            raise ValueError(f"losses: expected names of single losses, got {loss!r}")
    own: dict[str, dict[str, Any]] = {loss: {} for loss in losses}
    for option, value in options.items():
        # dice_ce_batch is dice_ce's, not dice's.
        owners = [loss for loss in losses if option.startswith(f"{loss}_")]
        if owners:
            owner = max(owners, key=len)
            own[owner][option.removeprefix(f"{owner}_")] = value
        else:
            for arguments in own.values():
                arguments.setdefault(option, value)
    return WeightedSumLoss({loss: make_loss(loss, **own[loss]) for loss in losses}, weights)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word).lower(), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
