"""Label -> map: where, and how much, an error matters.

A *region-wise map* z is multiplied voxel by voxel with the network's probabilities,
loss = mean(p z) (Valverde & Tohka, eq. 1). Its kinds differ only in z, and z comes in two forms:

* **dense**, ``(B, C, *spatial)``: one channel per class, any kind.
* **compact**, ``(B, 1, *spatial)``: for a *rectified* map, whose channels all hold the same
  constant except the true class's. That one value per voxel, with the label, is the whole map
  whatever the number of classes, so it is what transforms cache and move.

The functions named ``<kind>_map`` take a label index and give their kind's natural form;
:func:`region_wise_map` takes a label in any form and gives either. :data:`MAP_KINDS` is the table.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from monai_segloss.distance import Spacing, as_spacing, distance_to_other_label, signed_distance

__all__ = [
    "MAP_KINDS",
    "MapKind",
    "active_contour_map",
    "border_map",
    "boundary_map",
    "count_conflicting_voxels",
    "distance_penalty_map",
    "get_map_kind",
    "hausdorff_map",
    "is_rectified",
    "negative_gradient_components",
    "non_euclidean_map",
    "region_wise_map",
    "rrw_map",
    "to_dense",
    "to_label_index",
]

Inside: TypeAlias = Literal["symmetric", "shifted"]

# exp(-(d1 + d2)^2 / 2 sigma^2) is below 1e-9 beyond this many sigmas, under float32's resolution
# of a weight of order one: objects farther than that from a voxel need no distance there.
_BORDER_REACH = math.sqrt(2 * math.log(1e9))


# Also below the size from which torch starts threads, whose start would cost more than the work.
_PART_VOXELS = 1 << 15
_SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class MapKind:
    """One row of the table of kinds.

    Attributes:
        name: the kind's public name.
        compute: function (label index, num_classes, spacing, **options) -> natural form.
        compact: True if the natural form is the one-channel one.
        off_class: for a compact kind, the value of every channel but the true class's.
        sign: for a compact kind, true-class value of the dense map = sign x compact value.
        squared: whether the probabilities are squared before the product with the map.
        uses_distance: False if the spacing plays no part.
        ignored_region: how ignored voxels enter: as a region of their own, or as background.
        source: paper and equation.
    """

    name: str
    compute: Callable[..., Tensor]
    compact: bool
    source: str
    off_class: float = 0.0
    sign: float = 1.0
    squared: bool = False
    uses_distance: bool = True
    ignored_region: bool = True


# --------------------------------------------------------------------------- one function per kind


def rrw_map(label: Tensor, num_classes: int, spacing: Spacing = None) -> Tensor:
    """Rectified region-wise map: minus the distance to another class over its largest in the class.

    z_y = -d / max d on the true class y and +1 on every other channel, d in any unit and the
    maximum over the sample's voxels of that class (Valverde & Tohka, eq. 4).

    Args:
        label: integer tensor ``(B, *spatial)``, values 0 to C - 1.
        num_classes: number of classes C.
        spacing: voxel size, see :func:`monai_segloss.distance.as_spacing`.

    Returns:
        float32 ``(B, 1, *spatial)``, z_y in [-1, 0), without unit; the other channels are +1. An
        absent class is +1 everywhere. A class that fills the sample has no border: z_y = -1.
    """
    check_range(label, num_classes, "label")
    distance = distance_to_other_label(label, spacing)
    return _with_class_maximum(
        distance, label, num_classes, lambda d, largest: d.div_(largest).neg_()
    ).unsqueeze(1)


def boundary_map(
    label: Tensor, num_classes: int, spacing: Spacing = None, *, inside: Inside = "symmetric"
) -> Tensor:
    """Signed distance to the border of every class.

    +d outside and -d inside (Valverde & Tohka, eq. 3, ``inside="symmetric"``), or -(d - s) inside,
    with s the smallest voxel size of the sample (``"shifted"``: Kervadec et al. 2019, whose
    code has s = 1 and unit voxels), which brings the inner voxels to 0 where the border lies along
    the finest axis.

    Returns:
        float32 ``(B, C, *spatial)`` in the unit of ``spacing`` (voxels if None). A class that is
        absent or fills the sample is 0 everywhere. Not rectified for three classes or more: on
        its own it is unstable, see :func:`count_conflicting_voxels`.

    Raises:
        ValueError: on an unknown ``inside``.
    """
    if inside not in ("symmetric", "shifted"):
        raise ValueError(f"inside: expected 'symmetric' or 'shifted', got {inside!r}")
    check_range(label, num_classes, "label")
    signed = signed_distance(label, num_classes, spacing)
    if inside == "shifted":
        step = as_spacing(spacing, label.shape[0], label.ndim - 1).min(axis=1)
        shift = torch.as_tensor(step, dtype=signed.dtype, device=signed.device)
        shift = shift.reshape(-1, *[1] * (signed.ndim - 1))
        # Where there is no border the value is 0 already and stays so.
        signed = torch.where(signed < 0, signed + shift, signed)
    return signed


def active_contour_map(label: Tensor, num_classes: int, spacing: Spacing = None) -> Tensor:
    """z = 1 - g: 0 on the true class, 1 on the others (Valverde & Tohka, eq. 17).

    Returns:
        float32 zeros ``(B, 1, *spatial)``, the true class's value; without unit. Absent and full
        classes follow the same rule.
    """
    return torch.zeros((label.shape[0], 1, *label.shape[1:]), device=label.device)


def non_euclidean_map(label: Tensor, num_classes: int, spacing: Spacing = None) -> Tensor:
    """z = 1 - 2 g: -1 on the true class, +1 on the others (Cao et al. 2020; V. & T., eq. 29).

    Returns:
        float32 ``(B, 1, *spatial)`` of -1, the true class's value; without unit. Absent and full
        classes follow the same rule.
    """
    return torch.full((label.shape[0], 1, *label.shape[1:]), -1.0, device=label.device)


def hausdorff_map(
    label: Tensor, num_classes: int, spacing: Spacing = None, *, alpha: float = 2.0
) -> Tensor:
    """z = d^alpha outside the class, 0 inside; used with squared probabilities.

    The region-wise form of the one-sided Hausdorff loss (Karimi & Salcudean 2019; Valverde &
    Tohka, eq. 25), d the distance to the class.

    Returns:
        float32 ``(B, C, *spatial)`` >= 0 in the unit of ``spacing`` to the power ``alpha``. An
        absent or full class is 0 everywhere. Not rectified for three classes or more.
    """
    if not alpha > 0:
        raise ValueError(f"alpha: expected a positive number, got {alpha}")
    check_range(label, num_classes, "label")
    return signed_distance(label, num_classes, spacing).clamp_(min=0).pow_(alpha)


def distance_penalty_map(label: Tensor, num_classes: int, spacing: Spacing = None) -> Tensor:
    """Weight that grows towards borders: the class's largest distance minus the voxel's own.

    Phi(x) = max d - d(x), the maximum over the sample's voxels of x's class, d the distance to the
    nearest other class (Caliva et al. 2019, foreground and background treated apart; with more
    than two classes each class is treated apart).

    Returns:
        float32 ``(B, 1, *spatial)`` >= 0 in the unit of ``spacing``; a weight, so positive. An
        absent class has no voxel to weigh; a class that fills the sample gets 0.
    """
    check_range(label, num_classes, "label")
    distance = distance_to_other_label(label, spacing)
    return _with_class_maximum(
        distance, label, num_classes, lambda d, largest: d.neg_().add_(largest)
    ).unsqueeze(1)


def border_map(
    label: Tensor,
    num_classes: int,
    spacing: Spacing = None,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weight: tuple[float, ...] | None = None,
    instances: Tensor | None = None,
) -> Tensor:
    """U-Net's weight, high on the background between touching objects.

    w = w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)), the second term on the background (class 0) only,
    d1 and d2 the distances to the nearest and second nearest object (Ronneberger et al. 2015,
    eq. 2). With fewer than two objects the second term is 0.

    Args:
        label: integer tensor ``(B, *spatial)``, 0 background.
        num_classes: number of classes C.
        spacing: voxel size.
        w0: height of the border term.
        sigma: its width, in the unit of ``spacing`` (voxels if None).
        class_weight: w_c, C numbers; 1 by default.
        instances: object index ``(B, *spatial)``, 0 for none; by default the connected components
            (by faces) of each foreground class, found on the CPU.

    Returns:
        float32 ``(B, 1, *spatial)``, without unit; a weight, positive if ``class_weight`` is.

    Raises:
        ValueError: if ``sigma`` is not positive, or ``class_weight`` or ``instances`` do not fit.
    """
    check_range(label, num_classes, "label")
    if not sigma > 0:
        raise ValueError(f"sigma: expected a positive number, got {sigma}")
    if instances is not None and instances.shape != label.shape:
        raise ValueError(
            f"instances: expected the label's shape {tuple(label.shape)}, "
            f"got {tuple(instances.shape)}"
        )
    if instances is not None and instances.is_floating_point():
        raise ValueError(f"instances: expected an integer dtype, got {instances.dtype}")
    balance = torch.ones(num_classes, device=label.device)
    if class_weight is not None:
        balance = torch.as_tensor(class_weight, dtype=torch.float32, device=label.device)
        if balance.shape != (num_classes,):
            raise ValueError(
                f"class_weight: expected {num_classes} numbers, got {tuple(balance.shape)}"
            )
    sizes = as_spacing(spacing, label.shape[0], label.ndim - 1)
    weight = balance[label.to(torch.int64)]
    for b in range(label.shape[0]):
        objects = _components(label[b]) if instances is None else instances[b].long()
        first, second = _two_nearest(objects, sizes[b], reach=_BORDER_REACH * sigma)
        term = w0 * torch.exp(-(first + second).square() / (2 * sigma**2))
        weight[b] += torch.where(label[b] == 0, term, 0.0)
    return weight.unsqueeze(1)


# ---------------------------------------------------------------------------------- the dispatcher

_PAPER = "Valverde & Tohka 2022"

MAP_KINDS: Mapping[str, MapKind] = {
    kind.name: kind
    for kind in (
        MapKind("rrw", rrw_map, True, f"{_PAPER}, eq. 4", off_class=1.0),
        MapKind("boundary", boundary_map, False, f"{_PAPER}, eq. 3; Kervadec et al. 2019"),
        MapKind(
            "active_contour",
            active_contour_map,
            True,
            f"{_PAPER}, eq. 17; Chen et al. 2019",
            off_class=1.0,
            uses_distance=False,
        ),
        MapKind(
            "hausdorff",
            hausdorff_map,
            False,
            f"{_PAPER}, eq. 25; Karimi & Salcudean 2019",
            squared=True,
        ),
        MapKind(
            "non_euclidean",
            non_euclidean_map,
            True,
            f"{_PAPER}, eq. 29; Cao et al. 2020",
            off_class=1.0,
            uses_distance=False,
        ),
        MapKind("distance_penalty", distance_penalty_map, True, "Caliva et al. 2019", sign=-1.0),
        MapKind(
            "border",
            border_map,
            True,
            "Ronneberger et al. 2015, eq. 2",
            sign=-1.0,
            ignored_region=False,
        ),
    )
}
"""The kinds by name. A weight (``distance_penalty``, ``border``) is positive in its compact form
and enters a region-wise loss as the rectified map -weight on the true class, 0 off it."""


def get_map_kind(kind: str) -> MapKind:
    """The row of :data:`MAP_KINDS`.

    Raises:
        ValueError: on an unknown kind, listing the known ones.
    """
    try:
        return MAP_KINDS[kind]
    except (KeyError, TypeError):
        raise ValueError(f"kind: expected one of {', '.join(MAP_KINDS)}, got {kind!r}") from None


def check_options(kind: str, options: Mapping[str, Any]) -> MapKind:
    """The kind's row, after a check that it knows the options.

    Raises:
        ValueError: on an unknown kind or option, listing the known ones.
    """
    row = get_map_kind(kind)
    known = list(inspect.signature(row.compute).parameters)[3:]
    for option in options:
        if option not in known:
            raise ValueError(
                f"map_options: {kind} knows {', '.join(known) or 'no option'}, got {option!r}"
            )
    return row


def region_wise_map(
    label: Tensor,
    kind: str = "rrw",
    num_classes: int = 2,
    spacing: Spacing = None,
    *,
    dense: bool = False,
    multi_label: bool = False,
    ignore_index: int | None = None,
    **options: Any,
) -> Tensor:
    """The map of a kind, from a label in any form.

    Args:
        label: ``(B, 1, *spatial)`` class index or ``(B, C, *spatial)`` one-hot, of any integer,
            bool or float dtype that holds whole numbers.
        kind: a name of :data:`MAP_KINDS`.
        num_classes: number of classes C, background included.
        spacing: voxel size, see :func:`monai_segloss.distance.as_spacing`.
        dense: give the C-channel form of a compact kind too.
        multi_label: the C channels may overlap and each is a binary problem of its own; the map
            then has C channels, each the foreground channel of its two-class map.
        ignore_index: voxels of this label get 0; for distances they are a region of their own (for
            ``border``, background).
        **options: the kind's own options (``inside``, ``alpha``, ``w0``, ``sigma``, ...).

    Returns:
        float32 ``(B, 1, *spatial)`` for a compact kind, ``(B, C, *spatial)`` for the others, with
        ``dense=True`` and with ``multi_label=True``.

    Raises:
        ValueError: on an unknown kind, a wrong shape, a label that is not whole, negative, or not
            below ``num_classes``, or overlapping one-hot channels.
    """
    row = check_options(kind, options)
    if multi_label:
        if ignore_index is not None:
            raise ValueError(
                "ignore_index: expected None with multi_label=True, where a voxel has no one label "
                f"to ignore, got {ignore_index}"
            )
        return _multi_label_map(label, row, num_classes, spacing, options)
    index, valid = to_label_index(label, num_classes, ignore_index)
    if valid is None or not row.ignored_region:
        natural = row.compute(index[:, 0], num_classes, spacing, **options)
    else:
        region = torch.where(valid, index.long(), num_classes)
        natural = row.compute(region[:, 0], num_classes + 1, spacing, **options)[:, :num_classes]
    if dense and row.compact:
        natural = to_dense(natural, index, row, num_classes)
    return natural if valid is None else torch.where(valid, natural, 0.0)


def to_dense(compact: Tensor, index: Tensor, row: MapKind, num_classes: int) -> Tensor:
    """Spread a compact map over the classes: its value on the true class, a constant off it.

    Args:
        compact: ``(B, 1, *spatial)``.
        index: class index ``(B, 1, *spatial)``.
        row: the map's kind.
        num_classes: number of classes C.

    Returns:
        ``(B, C, *spatial)``.
    """
    shape = (compact.shape[0], num_classes, *compact.shape[2:])
    off = compact.new_full((), row.off_class).expand(shape)
    return off.scatter(1, index.long(), row.sign * compact)


def to_label_index(
    label: Tensor, num_classes: int, ignore_index: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Bring a label index or one-hot label to an integer index, and say what counts.

    Args:
        label: ``(B, 1, *spatial)`` index or ``(B, C, *spatial)`` one-hot.
        num_classes: number of classes C >= 2.
        ignore_index: label value (or class of a one-hot label) that does not count.

    Returns:
        The index ``(B, 1, *spatial)`` in the label's integer dtype where torch computes with it,
        else in int64, ignored voxels set to 0, and a bool mask of the voxels that
        count, None if all do.

    Raises:
        ValueError: naming the label, what was expected and what came.
    """
    if num_classes < 2:
        raise ValueError(
            f"num_classes: expected at least 2 (background included), got {num_classes}"
        )
    if label.ndim not in (4, 5) or label.shape[1] not in (1, num_classes):
        raise ValueError(
            f"label: expected shape (B, 1 or {num_classes}, H, W[, D]) for "
            f"num_classes={num_classes}, got {tuple(label.shape)}"
        )
    if label.shape[1] == 1:
        check_whole(label, "label")
        index = _as_integer(label)
        valid = None if ignore_index is None else index != ignore_index
        index = index if valid is None else torch.where(valid, index, 0)
        check_range(index, num_classes, "label")
        return index, valid
    index = one_hot_to_index(label, "label", "multi_label=True")
    if ignore_index is None:
        return index, None
    valid = index != ignore_index
    return torch.where(valid, index, 0), valid


def one_hot_to_index(label: Tensor, name: str, remedy: str, check: bool = True) -> Tensor:
    """The int64 class index ``(B, 1, *spatial)`` of a one-hot label.

    Args:
        label: ``(B, C, *spatial)``.
        name: what to call it in an error.
        remedy: the argument that allows channels to overlap.
        check: whether to look at the values.

    Raises:
        ValueError: if ``check`` finds anything but exactly one 1 at every voxel.
    """
    if label.device.type == "cpu":
        # On the CPU a matrix product is many times faster than argmax over a strided dimension.
        with torch.autocast("cpu", enabled=False):
            classes = torch.arange(label.shape[1], dtype=torch.float32)
            index = classes @ label.flatten(2).to(torch.float32)
        index = index.reshape(label.shape[0], 1, *label.shape[2:]).to(torch.int64)
    else:
        index = label.to(torch.uint8).argmax(dim=1, keepdim=True)
    if check:
        whole = label if label.dtype in _SMALL_INTEGERS else label.to(torch.float32)
        known = index.clamp(0, label.shape[1] - 1)
        if not torch.equal(torch.zeros_like(whole).scatter_(1, known, 1), whole):
            check_binary(label, name)
            raise ValueError(
                f"{name}: expected one-hot channels with exactly one 1 at every voxel; channels "
                f"that overlap or leave voxels empty need {remedy}"
            )
    return index


def check_whole(label: Tensor, name: str) -> None:
    """Raise ValueError if a float label holds anything but whole numbers."""
    if label.is_floating_point() and not bool((label == label.round()).all()):
        raise ValueError(f"{name}: expected whole numbers, got values such as {_odd_one(label)}")


def check_range(index: Tensor, num_classes: int, name: str) -> None:
    """Raise ValueError if an index lies outside 0 to num_classes - 1."""
    if index.numel() == 0:
        return
    index = _as_integer(index)
    low, high = (int(v) for v in torch.aminmax(index))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name}: expected values from 0 to {num_classes - 1} (num_classes={num_classes}), "
            f"got values from {low} to {high}"
        )


def check_binary(label: Tensor, name: str) -> None:
    """Raise ValueError if a label holds anything but 0 and 1."""
    if label.dtype == torch.bool or label.numel() == 0:
        return
    if label.is_floating_point() or label.dtype in _SMALL_INTEGERS:
        # x - x^2 is 0 for 0 and 1 alone, in wrapping integers too, and takes a quarter of the time
        # of two comparisons.
        low, high = torch.aminmax(torch.addcmul(label, label, label, value=-1))
        binary = bool(low == 0) and bool(high == 0)
    else:
        binary = bool(((label == 0) | (label == 1)).all())
    if not binary:
        raise ValueError(
            f"{name}: expected channels of 0 and 1, got values such as "
            f"{label[(label != 0) & (label != 1)][0].item()}"
        )


def _as_integer(label: Tensor) -> Tensor:
    """The label in an integer dtype that torch computes with: its own if it can be."""
    return label if label.dtype in _SMALL_INTEGERS else label.to(torch.int64)


def _odd_one(label: Tensor) -> float:
    return float(label[label != label.round()][0])


def _multi_label_map(
    label: Tensor, row: MapKind, num_classes: int, spacing: Spacing, options: Mapping[str, Any]
) -> Tensor:
    if label.ndim not in (4, 5) or label.shape[1] != num_classes:
        raise ValueError(
            f"label: expected shape (B, {num_classes}, H, W[, D]) for multi_label=True and "
            f"num_classes={num_classes}, got {tuple(label.shape)}"
        )
    check_binary(label, "label")
    sizes = as_spacing(spacing, label.shape[0], label.ndim - 2)
    binary = label.reshape(-1, *label.shape[2:]).to(torch.int64)
    natural = row.compute(binary, 2, np.repeat(sizes, num_classes, axis=0), **options)
    if row.compact:
        natural = to_dense(natural, binary.unsqueeze(1), row, 2)
    return natural[:, 1].reshape(label.shape)


# --------------------------------------------------------------------------- looking at a map


def is_rectified(region_wise: Tensor, label: Tensor, atol: float = 1e-6) -> bool:
    """Whether, at every voxel, all channels but the true class's hold the same value, not below it.

    Then the gradient of the region-wise loss has at most one negative component per voxel, the
    true class's, whatever the logits (Valverde & Tohka, section 3.3); exactly one where the true
    class's value lies below the others'. Channels of two classes are always equal in that sense,
    so it takes three classes to see a signed boundary map fail.

    Args:
        region_wise: dense map ``(B, C, *spatial)``.
        label: ``(B, 1, *spatial)`` index or ``(B, C, *spatial)`` one-hot.
        atol: values this close count as the same.
    """
    index, _ = to_label_index(label, region_wise.shape[1])
    index = index.long()
    low = region_wise.scatter(1, index, torch.inf).amin(dim=1)
    high = region_wise.scatter(1, index, -torch.inf).amax(dim=1)
    true_class = region_wise.gather(1, index)[:, 0]
    return bool(((high - low <= atol) & (true_class <= low + atol)).all())


def negative_gradient_components(
    logits: Tensor, region_wise: Tensor, squared: bool = False
) -> Tensor:
    """How many components of the region-wise loss's gradient are negative at each voxel.

    The gradient with respect to logit k is p_k (z_k - sum_j p_j z_j) up to a factor (Valverde &
    Tohka, eq. 2), so its sign is that of the bracket: this is what the paper's figure 3 counts.
    With squared probabilities it is 2 p_k (p_k z_k - sum_j p_j^2 z_j).

    Args:
        logits: ``(B, C, *spatial)``.
        region_wise: dense map of the same shape.
        squared: whether the loss squares the probabilities, as it does for ``hausdorff``.

    Returns:
        int64 ``(B, 1, *spatial)``; 1 is as it should be, 2 and more push several classes up at
        once.

    Raises:
        ValueError: if the shapes differ.
    """
    if logits.shape != region_wise.shape:
        raise ValueError(
            f"region_wise: expected the logits' shape {tuple(logits.shape)}, "
            f"got {tuple(region_wise.shape)}"
        )
    z, p = region_wise.double(), torch.softmax(logits.double(), dim=1)
    if squared:
        z = z * p
    mean = (p * z).sum(dim=1, keepdim=True)
    # Where all the probability sits on one class the mean is its value but for rounding.
    return (z - mean < -1e-12 * z.abs().amax(dim=1, keepdim=True)).sum(dim=1, keepdim=True)


def count_conflicting_voxels(logits: Tensor, region_wise: Tensor, squared: bool = False) -> Tensor:
    """Number of voxels per sample whose gradient has more than one negative component.

    Args and errors as :func:`negative_gradient_components`.

    Returns:
        int64 ``(B,)``; 0 for a rectified map.
    """
    return (negative_gradient_components(logits, region_wise, squared) > 1).flatten(1).sum(dim=1)


# --------------------------------------------------------------------------- helpers


def _with_class_maximum(
    distance: Tensor,
    label: Tensor,
    num_classes: int,
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Combine every distance, in place, with the largest one of its sample and class.

    The infinite distances of a volume of one class count as the largest finite number, so that
    their ratio is 1 and their difference 0.
    """
    if distance.numel() == 0:
        return distance
    voxels, classes = distance.view(distance.shape[0], -1), label.flatten(1)
    # Parts that stay in the CPU's cache: a volume-sized int64 index would cost more than edt does.
    part = _PART_VOXELS if distance.device.type == "cpu" else max(1, voxels.shape[1])
    starts = range(0, voxels.shape[1], part)
    largest = distance.new_zeros((distance.shape[0], num_classes))
    for s in starts:
        here = voxels[:, s : s + part].clamp_(max=torch.finfo(distance.dtype).max)
        largest.scatter_reduce_(1, classes[:, s : s + part].long(), here, "amax")
    for s in starts:
        combine(voxels[:, s : s + part], largest.gather(1, classes[:, s : s + part].long()))
    return distance


def _components(label: Tensor) -> Tensor:
    """Connected components of every foreground class, numbered through from 1."""
    values = label.detach().cpu().numpy()
    objects = np.zeros(values.shape, dtype=np.int64)
    count = 0
    for c in np.unique(values[values > 0]):
        found, number = ndimage.label(values == c)
        objects[found > 0] = found[found > 0] + count
        count += number
    return torch.from_numpy(objects).to(label.device)


def _two_nearest(objects: Tensor, size: np.ndarray, reach: float) -> tuple[Tensor, Tensor]:
    """Distances to the nearest and the second nearest object, inf where farther than ``reach``."""
    first = torch.full(objects.shape, torch.inf, device=objects.device)
    second = first.clone()
    margin = np.ceil(reach / size).astype(int)
    boxes = ndimage.find_objects(objects.detach().cpu().numpy())
    for number, box in enumerate(boxes, start=1):
        if box is None:
            continue
        around = tuple(
            slice(max(0, s.start - m), s.stop + m) for s, m in zip(box, margin, strict=True)
        )
        mask = objects[around] == number
        distance = distance_to_other_label(mask.unsqueeze(0), size)[0].masked_fill_(mask, 0.0)
        near, next_near = first[around], second[around]
        torch.minimum(next_near, torch.maximum(near, distance), out=next_near)
        torch.minimum(near, distance, out=near)
    return first, second
