"""What every loss owes its user and MONAI, over the table of losses.

A new loss is one line in ``LOSSES``; if it reads a map, one more in ``MAP_OF``, and its values and
gradients are then compared with equations 1 and 2 of Valverde & Tohka as well.
"""

from __future__ import annotations

import copy
import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import monai.losses
import numpy as np
import oracles
import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.losses import DeepSupervisionLoss
from monai.utils import LossReduction
from oracles import COMPACT, WEIGHTS, Array, blobs, one_hot
from torch import Tensor
from torch.nn import functional

from monai_segloss.losses import (
    ActiveBoundaryLoss,
    ActiveContourLoss,
    AsymmetricSimilarityLoss,
    BalancedCrossEntropyLoss,
    BoundaryLoss,
    ComboLoss,
    CrossEntropyLoss,
    DiceBCELoss,
    DiceFocalLoss,
    DiceTopKLoss,
    ExpLogLoss,
    FocalTverskyLoss,
    HausdorffLoss,
    JaccardLoss,
    LovaszSoftmaxLoss,
    MapCrossEntropyLoss,
    NonAdjacencyLoss,
    PenaltyGeneralizedDiceLoss,
    RegionWiseLoss,
    SegmentationLoss,
    SensitivitySpecificityLoss,
    TopKLoss,
)
from monai_segloss.maps import MAP_KINDS

Make = Callable[..., SegmentationLoss]

WEIGHTINGS = MapCrossEntropyLoss.kinds

LOSSES: list[tuple[str, Make]] = [
    *((f"RegionWise-{kind}", partial(RegionWiseLoss, kind=kind)) for kind in MAP_KINDS),
    ("Boundary-symmetric", partial(BoundaryLoss, inside="symmetric")),
    ("Boundary-shifted", partial(BoundaryLoss, inside="shifted")),
    ("CrossEntropy", CrossEntropyLoss),
    ("CrossEntropy-voxels", partial(CrossEntropyLoss, normalize="voxels")),
    ("BalancedCrossEntropy", BalancedCrossEntropyLoss),
    ("TopK", partial(TopKLoss, k=50)),
    ("TopK-threshold", partial(TopKLoss, threshold=0.6)),
    *((f"MapCrossEntropy-{kind}", partial(MapCrossEntropyLoss, kind=kind)) for kind in WEIGHTINGS),
    ("SensitivitySpecificity", SensitivitySpecificityLoss),
    ("FocalTversky", FocalTverskyLoss),
    ("Jaccard", JaccardLoss),
    ("AsymmetricSimilarity", AsymmetricSimilarityLoss),
    ("PenaltyGeneralizedDice", PenaltyGeneralizedDiceLoss),
    ("LovaszSoftmax", LovaszSoftmaxLoss),
    ("LovaszSoftmax-image", partial(LovaszSoftmaxLoss, per_image=True)),
    ("Hausdorff", partial(HausdorffLoss, include_background=True)),
    ("Hausdorff-one-sided", partial(HausdorffLoss, include_background=True, one_sided=True)),
    ("ActiveContour", ActiveContourLoss),
    ("ActiveBoundary", partial(ActiveBoundaryLoss, boundary_ratio=0.2)),
    ("NonAdjacency", partial(NonAdjacencyLoss, forbidden=[(0, 1)])),
    ("DiceBCE", DiceBCELoss),
    ("DiceFocal", DiceFocalLoss),
    ("DiceTopK", partial(DiceTopKLoss, k=50)),
    ("Combo", ComboLoss),
    ("ExpLog", ExpLogLoss),
]

MAP_OF: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"RegionWise-{kind}": (kind, {}) for kind in MAP_KINDS},
    "Boundary-symmetric": ("boundary", {"inside": "symmetric"}),
    "Boundary-shifted": ("boundary", {"inside": "shifted"}),
}
"""The kind and options of the map that a region-wise loss multiplies with p (or p squared)."""

READS: dict[str, tuple[str, dict[str, Any]]] = {
    **MAP_OF,
    **{f"MapCrossEntropy-{kind}": (kind, {}) for kind in WEIGHTINGS},
    "Hausdorff": ("boundary", {}),
    "Hausdorff-one-sided": ("boundary", {}),
}
"""Those of every map that a loss reads; a loss that reads none is handed that of rrw."""

COMPOUND = ("DiceBCE", "DiceFocal", "DiceTopK", "Combo", "ExpLog")
NEEDS_BACKGROUND = ("ActiveBoundary", "NonAdjacency")
"""Losses that look at class 0's borders, NonAdjacency because the test forbids it one."""
ONE_WEIGHT = ("PenaltyGeneralizedDice", "ActiveBoundary", "NonAdjacency")
OVER_FOREGROUND = (
    "CrossEntropy-voxels",
    *(f"MapCrossEntropy-{kind}" for kind in WEIGHTINGS),
    "ExpLog",
)
"""Losses whose mean runs over the foreground's voxels alone if the background does not count."""
UNPACKED_CHANNELS = tuple(f"MapCrossEntropy-{kind}" for kind in WEIGHTINGS)
"""Losses that need a label alone if the channels are binary problems."""
OWN_MEAN = ("CrossEntropy", "TopK", "TopK-threshold", "DiceTopK", "ActiveBoundary")
"""Losses whose mean divides by something else than the number of values."""

NAMES = [name for name, _ in LOSSES]
REGION_WISE = [(name, make) for name, make in LOSSES if name in MAP_OF]
FORMS = ["index", "one-hot", "index+compact", "index+dense", "one-hot+compact", "one-hot+dense"]
SHAPES = [(7, 6), (4, 5, 6)]
CLASSES = 3

each_loss = pytest.mark.parametrize(("name", "make"), LOSSES, ids=NAMES)
each_region_wise = pytest.mark.parametrize(
    ("name", "make"), REGION_WISE, ids=[name for name, _ in REGION_WISE]
)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])


# --------------------------------------------------------------------------- inputs and oracles


def samples(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Three labels ``(B, *spatial)``: blobs, noise, and one without class 2."""
    return np.stack([blobs(rng, shape, 3), rng.integers(0, 3, shape), blobs(rng, shape, 2)])


def logits_for(label: Array, rng: np.random.Generator, channels: int = CLASSES) -> Array:
    return rng.normal(scale=2.0, size=(len(label), channels, *label.shape[1:]))


def map_of(name: str, label: Array, ignored: Array | None = None, spacing: Any = None) -> Array:
    """The oracle's dense map ``(B, C, *spatial)`` (that of rrw for a loss that reads none)."""
    kind, options = READS.get(name, ("rrw", {}))
    masks = [None] * len(label) if ignored is None else list(ignored)
    return np.stack(
        [
            oracles.region_wise_map(kind, one, CLASSES, spacing, mask, **options)
            for one, mask in zip(label, masks, strict=True)
        ]
    )


def forms_of(name: str) -> list[str]:
    kind = READS.get(name, ("rrw", {}))[0]
    return [form for form in FORMS if kind in COMPACT or "compact" not in form]


def target_of(
    name: str, label: Array, form: str, ignored: Array | None = None
) -> tuple[bool, Tensor]:
    """``to_onehot_y`` and the target of one form, float32; its map is the oracle's."""
    to_onehot_y = form.startswith("index")
    parts = [label[:, None] if to_onehot_y else np.stack([one_hot(a, CLASSES) for a in label])]
    if "+" in form:
        z = map_of(name, label, ignored)
        if form.endswith("compact"):
            z = np.take_along_axis(z, label[:, None], axis=1)
            z = -z if READS.get(name, ("rrw", {}))[0] in WEIGHTS else z
        parts.append(z)
    return to_onehot_y, torch.as_tensor(np.concatenate(parts, axis=1)).float()


def power_of(name: str) -> int:
    return 2 if MAP_OF[name][0] == "hausdorff" else 1


def expected_values(name: str, p: Array, label: Array, **options: Any) -> Array:
    z = map_of(name, label, options.get("ignored"))
    return oracles.region_wise_values(p, z, label, power=power_of(name), **options)


def close(actual: Tensor, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(actual.detach().cpu().numpy(), expected, rtol=rtol, atol=atol)


def packed(name: str, label: Array) -> Tensor:
    """The cheapest packed target with a class index."""
    return target_of(
        name, label, "index+compact" if "index+compact" in forms_of(name) else "index+dense"
    )[1]


def weights(name: str, *values: float) -> Any:
    """Weights of the classes, or one number for a loss whose weight has no class."""
    return values[0] if name in ONE_WEIGHT else list(values)


def without_background(name: str) -> list[dict[str, Any]]:
    """Arguments that leave out the background, if the loss can."""
    return [] if name in NEEDS_BACKGROUND else [{"include_background": False}]


# --------------------------------------------------------------------------- equation 1

ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("defaults", {}),
    ("no-background", {"include_background": False}),
    ("weights", {"weight": [0.5, 2.0, 3.0]}),
    ("number", {"weight": 0.25}),
    ("number-no-background", {"weight": 0.25, "include_background": False}),
    ("weights-no-background", {"weight": [2.0, 3.0], "include_background": False}),
    ("ignore", {"ignore_index": 2}),
    ("ignore-background", {"ignore_index": 0}),
    (
        "all",
        {"ignore_index": 1, "weight": torch.tensor([2.0, 3.0]), "include_background": False},
    ),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("arguments", [a for _, a in ARGUMENTS], ids=[i for i, _ in ARGUMENTS])
@each_region_wise
def test_every_form_equals_equation_1(
    name: str,
    make: Make,
    arguments: dict[str, Any],
    reduction: str,
    devices: torch.device,
    rng: np.random.Generator,
) -> None:
    options = dict(arguments)
    ignore_index = options.pop("ignore_index", None)
    for shape in SHAPES:
        label = samples(rng, shape)
        logits = logits_for(label, rng)
        options["ignored"] = None if ignore_index is None else label == ignore_index
        values = expected_values(name, oracles.softmax(logits), label, **options)
        expected = {
            "mean": oracles.mean_over_counted(values, options["ignored"]),
            "sum": values.sum(),
            "none": values,
        }[reduction]
        for form in forms_of(name):
            to_onehot_y, target = target_of(name, label, form, options["ignored"])
            loss = make(to_onehot_y=to_onehot_y, softmax=True, reduction=reduction, **arguments).to(
                devices
            )
            found = loss(torch.as_tensor(logits).to(devices), target.to(devices))
            assert found.dtype == torch.float64
            close(found, expected)
            single = loss(torch.as_tensor(logits).float().to(devices), target.to(devices))
            assert single.dtype == torch.float32
            close(single, expected, rtol=1e-4, atol=1e-4)


def twice(x: Tensor) -> Tensor:
    return torch.softmax(2 * x, dim=1)


@each_shape
@each_region_wise
def test_activations(
    name: str, make: Make, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    label = samples(rng, shape)
    logits = logits_for(label, rng)
    cases: list[tuple[dict[str, Any], Array, Array]] = [
        ({"other_act": twice}, logits, oracles.softmax(2 * logits)),
        ({}, oracles.softmax(logits), oracles.softmax(logits)),
        ({"sigmoid": True}, logits, oracles.sigmoid(logits)),
    ]
    for arguments, given, p in cases:
        expected = oracles.mean_over_counted(expected_values(name, p, label))
        for form in forms_of(name):
            to_onehot_y, target = target_of(name, label, form)
            if "sigmoid" in arguments and not to_onehot_y:
                continue  # labels that may overlap: another map
            loss = make(to_onehot_y=to_onehot_y, **arguments)
            close(loss(torch.as_tensor(given), target), expected)


@each_shape
@each_region_wise
def test_spacing_of_a_map_computed_in_the_loss(
    name: str, make: Make, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    label, spacing = samples(rng, shape), (0.5, 2.0, 1.25)[: len(shape)]
    logits = logits_for(label, rng)
    z, p = map_of(name, label, spacing=spacing), oracles.softmax(logits)
    for form in ("index", "one-hot"):
        to_onehot_y, target = target_of(name, label, form)
        loss = make(to_onehot_y=to_onehot_y, softmax=True, spacing=spacing)
        close(loss(torch.as_tensor(logits), target), (p ** power_of(name) * z).mean())


def test_map_options_reach_the_map(rng: np.random.Generator) -> None:
    label = samples(rng, (7, 6))
    logits = logits_for(label, rng)
    p, target = oracles.softmax(logits), torch.as_tensor(label[:, None])
    for kind, options in (
        ("hausdorff", {"alpha": 1.0}),
        ("border", {"w0": 3.0, "sigma": 1.5}),
        ("boundary", {"inside": "shifted"}),
    ):
        loss = RegionWiseLoss(to_onehot_y=True, softmax=True, kind=kind, map_options=options)
        z = np.stack([oracles.region_wise_map(kind, one, 3, **options) for one in label])
        expected = (p ** (2 if kind == "hausdorff" else 1) * z).mean()
        close(loss(torch.as_tensor(logits), target), expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"include_background": False},
        {"weight": [0.5, 2.0, 3.0]},
        {"weight": [2.0, 3.0], "include_background": False},
        {"ignore_index": 2},
    ],
    ids=str,
)
@each_shape
@each_region_wise
def test_sigmoid_multi_label(
    name: str,
    make: Make,
    shape: tuple[int, ...],
    arguments: dict[str, Any],
    rng: np.random.Generator,
) -> None:
    """Each channel a binary problem: p^power times the foreground channel of its own map."""
    channels = np.stack([np.stack([blobs(rng, shape, 2) for _ in range(3)]) for _ in range(2)])
    channels[0, 1] = 0
    logits = rng.normal(size=channels.shape)
    kind, options = MAP_OF[name]
    z = np.stack([oracles.multi_label_map(kind, one, **options) for one in channels])
    values = oracles.sigmoid(logits) ** power_of(name) * z
    start = 0 if arguments.get("include_background", True) else 1
    weight = np.reshape(arguments.get("weight", 1.0), (1, -1, *[1] * len(shape)))
    values = values[:, start:] * weight
    counted = np.ones((2, 1, *shape), bool)
    if "ignore_index" in arguments:
        counted = channels[:, 2:3] == 0
    values = np.where(counted, values, 0.0)
    expected = values.sum() / (counted.sum() * values.shape[1])
    label, with_map = torch.as_tensor(channels), torch.as_tensor(np.concatenate([channels, z], 1))
    for target in (label, label.to(torch.uint8), label.bool(), label.float(), with_map):
        close(make(sigmoid=True, **arguments)(torch.as_tensor(logits), target), expected)
        none = make(sigmoid=True, reduction="none", **arguments)(torch.as_tensor(logits), target)
        close(none, values)


@pytest.mark.parametrize("ignore_index", [None, 255])
@each_shape
@each_region_wise
def test_sigmoid_single_channel(
    name: str,
    make: Make,
    shape: tuple[int, ...],
    ignore_index: int | None,
    rng: np.random.Generator,
) -> None:
    label = np.stack([blobs(rng, shape, 2), np.zeros(shape, int), np.ones(shape, int)])
    logits = logits_for(label, rng, channels=1)
    ignored = np.zeros(label.shape, bool)
    if ignore_index is not None:
        ignored[:, 1:3, 2:4] = True
    kind, options = MAP_OF[name]
    z = np.stack(
        [
            oracles.region_wise_map(
                kind, one, 2, ignored=None if ignore_index is None else mask, **options
            )
            for one, mask in zip(label, ignored, strict=True)
        ]
    )
    foreground = z[:, 1:]
    values = np.where(ignored[:, None], 0.0, oracles.sigmoid(logits) ** power_of(name) * foreground)
    expected = values.sum() / (~ignored).sum()
    seen = np.where(ignored, 255, label)[:, None]
    targets = [seen, np.concatenate([seen, foreground], 1), np.concatenate([seen, z], 1)]
    if kind in COMPACT:
        value = np.take_along_axis(z, label[:, None], 1)
        targets.append(np.concatenate([seen, -value if kind in WEIGHTS else value], 1))
    for target in targets:
        loss = make(sigmoid=True, ignore_index=ignore_index)
        close(loss(torch.as_tensor(logits), torch.as_tensor(target)), expected)


@each_loss
def test_reductions_agree(name: str, make: Make, rng: np.random.Generator) -> None:
    label = samples(rng, (7, 6))
    target = packed(name, label)
    input = torch.as_tensor(logits_for(label, rng))
    for arguments in ({}, *without_background(name), {"weight": weights(name, 1.0, 2.0, 3.0)}):
        by = {
            r: make(to_onehot_y=True, softmax=True, reduction=r, **arguments)(input, target)
            for r in ("mean", "sum", "none", LossReduction.MEAN)
        }
        # A mean over the foreground's voxels alone divides by their number.
        over_foreground = "include_background" in arguments and name in OVER_FOREGROUND
        if name not in OWN_MEAN and not over_foreground:
            torch.testing.assert_close(by["mean"], by["none"].mean())
        if name not in COMPOUND:  # whose sum is that of each part
            torch.testing.assert_close(by["sum"], by["none"].sum())
        assert by[LossReduction.MEAN] == by["mean"]
        shape = by["none"].shape
        assert shape[0] == (1 if name == "LovaszSoftmax" else 3)
        counted = 3 - ("include_background" in arguments)
        assert torch.broadcast_shapes(shape, (3, counted, 7, 6)) == (3, counted, 7, 6)


@each_loss
def test_an_ignored_label_beyond_the_classes(
    name: str, make: Make, rng: np.random.Generator
) -> None:
    """255 in an index means what the same voxels as a class to ignore mean."""
    label = samples(rng, (7, 6))
    input = torch.as_tensor(logits_for(label, rng))
    by_class = make(to_onehot_y=True, softmax=True, ignore_index=2)(
        input, torch.as_tensor(label[:, None])
    )
    for value, dtype in ((255, torch.uint8), (-1, torch.int8), (-100, torch.float32)):
        seen = torch.as_tensor(np.where(label == 2, value, label)[:, None]).to(dtype)
        found = make(to_onehot_y=True, softmax=True, ignore_index=value)(input, seen)
        torch.testing.assert_close(found, by_class)


@each_loss
def test_everything_ignored(name: str, make: Make) -> None:
    input = torch.randn(2, 3, 5, 4, requires_grad=True)
    target = torch.full((2, 1, 5, 4), 255)
    found = make(to_onehot_y=True, softmax=True, ignore_index=255)(input, target)
    found.backward()
    assert found == (-0.5 if name == "Combo" else 0)  # minus half the Dice of nothing, 1
    assert input.grad is not None
    assert not input.grad.any()


# --------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("to_onehot_y", [True, False])
@each_loss
def test_label_dtypes(name: str, make: Make, to_onehot_y: bool, rng: np.random.Generator) -> None:
    label = np.stack([blobs(rng, (6, 7), 2), blobs(rng, (6, 7), 2)])
    input = torch.as_tensor(logits_for(label, rng, 2)).float()
    channels = label[:, None] if to_onehot_y else np.stack([one_hot(a, 2) for a in label])
    loss = make(to_onehot_y=to_onehot_y, softmax=True)
    expected = loss(input, torch.as_tensor(channels).float())
    for dtype in (
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
        torch.float16,
        torch.bfloat16,
        torch.float64,
    ):
        found = loss(input, torch.as_tensor(channels).to(dtype))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["index", "one-hot", "packed"])
@each_loss
def test_half_precision_and_autocast_give_float32(
    name: str, make: Make, form: str, rng: np.random.Generator
) -> None:
    label = samples(rng, (7, 6))
    to_onehot_y, target = (
        target_of(name, label, form) if form != "packed" else (True, packed(name, label))
    )
    loss = make(to_onehot_y=to_onehot_y, softmax=True)
    for dtype in (torch.bfloat16, torch.float16):
        input = torch.as_tensor(30 * logits_for(label, rng)).to(dtype).requires_grad_()
        expected = loss(input.detach().float(), target)
        found = loss(input, target)
        found.backward()
        assert found.shape == ()
        assert found.dtype == torch.float32
        assert input.grad is not None
        assert input.grad.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        with torch.autocast("cpu", dtype=dtype):
            assert loss(input, target) == expected
            weight = torch.eye(3, requires_grad=True)
            mixed = torch.einsum("dc,bchw->bdhw", weight, input.detach().float())
            assert mixed.dtype == dtype
            inside = loss(mixed, target)
        assert inside.dtype == torch.float32
        torch.testing.assert_close(inside, loss(mixed.float(), target), rtol=0, atol=0)


@each_loss
def test_input_and_target_stay_as_they_were(
    name: str, make: Make, rng: np.random.Generator
) -> None:
    label = samples(rng, (7, 6))
    for form in forms_of(name):
        to_onehot_y, target = target_of(name, label, form)
        input = torch.as_tensor(logits_for(label, rng))
        before = input.clone(), target.clone()
        make(to_onehot_y=to_onehot_y, softmax=True, ignore_index=1)(input, target)
        assert torch.equal(input, before[0])
        assert torch.equal(target, before[1])


@each_loss
def test_meta_tensors(name: str, make: Make, rng: np.random.Generator) -> None:
    label = samples(rng, (7, 6))
    target = packed(name, label)
    input = torch.as_tensor(logits_for(label, rng)).requires_grad_()
    loss = make(to_onehot_y=True, softmax=True)
    found = loss(MetaTensor(input), MetaTensor(target))
    assert type(found) is Tensor
    assert found == loss(input, target)
    found.backward()
    assert input.grad is not None


# --------------------------------------------------------------------------- gradients


@each_loss
def test_gradcheck(name: str, make: Make, rng: np.random.Generator) -> None:
    if name == "ActiveBoundary":
        pytest.skip("its neighbours are detached, which a numerical gradient does not know")
    label = samples(rng, (3, 4))[:2]
    input = torch.as_tensor(logits_for(label, rng)).requires_grad_()
    for form in ("index", "packed"):
        target = packed(name, label) if form == "packed" else torch.as_tensor(label[:, None])
        foreground = {"softmax": True, "weight": weights(name, 1.0, 2.0)}
        for arguments in (
            {"softmax": True},
            *({**foreground, **a} for a in without_background(name)),
            {"sigmoid": True, "ignore_index": 1},
        ):
            if form == "packed" and "sigmoid" in arguments and name in UNPACKED_CHANNELS:
                continue
            loss = make(to_onehot_y=True, **arguments)
            assert torch.autograd.gradcheck(partial(loss, target=target), (input,))


@each_shape
@each_region_wise
def test_gradient_is_equation_2(
    name: str, make: Make, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    label = samples(rng, shape)
    logits = logits_for(label, rng)
    z, p = map_of(name, label), oracles.softmax(logits)
    expected = oracles.region_wise_gradient(p, z, power_of(name))
    for form in forms_of(name):
        to_onehot_y, target = target_of(name, label, form)
        input = torch.as_tensor(logits).requires_grad_()
        make(to_onehot_y=to_onehot_y, softmax=True)(input, target).backward()
        assert input.grad is not None
        close(input.grad, expected, atol=1e-9)


@pytest.mark.parametrize("wrong", [False, True])
@each_loss
def test_saturated_logits(name: str, make: Make, wrong: bool, rng: np.random.Generator) -> None:
    label = samples(rng, (7, 6))
    certain = (label + wrong) % 3
    logits = 200 * (2 * np.stack([one_hot(one, 3) for one in certain]) - 1)
    for form in forms_of(name):
        to_onehot_y, target = target_of(name, label, form)
        for activation in ("softmax", "sigmoid"):
            if activation == "sigmoid" and (
                not to_onehot_y or ("+" in form and name in UNPACKED_CHANNELS)
            ):
                continue
            input = torch.as_tensor(logits).float().requires_grad_()
            loss = make(to_onehot_y=to_onehot_y, **{activation: True})(input, target)
            loss.backward()
            assert torch.isfinite(loss)
            assert input.grad is not None
            assert torch.isfinite(input.grad).all()
            if name in MAP_OF:
                p = np.stack([one_hot(one, 3) for one in certain])
                close(loss, expected_values(name, p, label).mean())


# --------------------------------------------------------------------------- special labels


@pytest.mark.parametrize("value", [0, 2])
@each_shape
@each_loss
def test_one_class_everywhere(
    name: str, make: Make, shape: tuple[int, ...], value: int, rng: np.random.Generator
) -> None:
    """All background, or one class that fills the image."""
    label = np.full((2, *shape), value)
    logits = logits_for(label, rng)
    for form in forms_of(name):
        to_onehot_y, target = target_of(name, label, form)
        for arguments in ({}, *without_background(name)):
            input = torch.as_tensor(logits).requires_grad_()
            loss = make(to_onehot_y=to_onehot_y, softmax=True, **arguments)(input, target)
            loss.backward()
            assert torch.isfinite(loss)
            assert input.grad is not None
            assert torch.isfinite(input.grad).all()
            if name in MAP_OF:
                values = expected_values(name, oracles.softmax(logits), label, **arguments)
                close(loss, values.mean())


@each_shape
def test_rrw_at_its_best_and_worst(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """A perfect prediction gives -mean |w| / C, w the map at the true class; all wrong, 1 / C."""
    label = samples(rng, shape)
    distance = [oracles.distance_to_other_label(one) for one in label]
    w = [d / oracles.class_maximum(d, one) for d, one in zip(distance, label, strict=True)]
    target = torch.as_tensor(label[:, None])
    right = torch.as_tensor(np.stack([one_hot(one, 3) for one in label]))
    close(RegionWiseLoss(to_onehot_y=True)(right, target), -np.mean(w) / 3)
    close(RegionWiseLoss(to_onehot_y=True, softmax=True)(1000 * right, target), -np.mean(w) / 3)
    wrong = torch.roll(right, 1, dims=1)
    close(RegionWiseLoss(to_onehot_y=True)(wrong, target), 1 / 3)


@each_shape
def test_identities_between_kinds(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """Active contour is (1 - mean p_y) / C; non-Euclidean is twice that less 1 / C."""
    label = samples(rng, shape)
    logits = logits_for(label, rng)
    p_y = np.take_along_axis(oracles.softmax(logits), label[:, None], 1)
    target = torch.as_tensor(label[:, None])

    def loss(kind: str) -> Tensor:
        make = RegionWiseLoss(to_onehot_y=True, softmax=True, kind=kind)
        return make(torch.as_tensor(logits), target)

    close(loss("active_contour"), (1 - p_y.mean()) / 3)
    close(loss("non_euclidean"), 2 * (1 - p_y.mean()) / 3 - 1 / 3)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_hausdorff_is_half_the_one_sided_loss_of_two_classes(
    alpha: float, rng: np.random.Generator
) -> None:
    """Karimi & Salcudean: mean (p - g)^2 d_G^alpha of the foreground, d_G on both sides."""
    label = np.stack([blobs(rng, (7, 6), 2), rng.integers(0, 2, (7, 6))])
    logits = logits_for(label, rng, 2)
    distance = np.stack([oracles.distance_to_other_label(one) for one in label])
    error = (oracles.softmax(logits)[:, 1] - label) ** 2
    loss = RegionWiseLoss(
        to_onehot_y=True, softmax=True, kind="hausdorff", map_options={"alpha": alpha}
    )
    found = loss(torch.as_tensor(logits), torch.as_tensor(label[:, None]))
    close(found, (error * distance**alpha).mean() / 2)


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 2, 0), (2, 1, 0)], ids=str)
@each_loss
def test_names_of_classes_do_not_matter(
    name: str, make: Make, order: tuple[int, ...], rng: np.random.Generator
) -> None:
    if name.endswith("-border") and order[0] != 0:
        pytest.skip("border treats the background apart")
    if name == "NonAdjacency":
        pytest.skip("its pairs are named")
    label = samples(rng, (7, 6))
    logits = logits_for(label, rng)
    renamed = np.array(order)[label]
    moved = np.empty_like(logits)
    moved[:, list(order)] = logits
    for form in forms_of(name):
        to_onehot_y, target = target_of(name, label, form)
        loss = make(to_onehot_y=to_onehot_y, softmax=True)
        expected = loss(torch.as_tensor(logits), target)
        found = loss(torch.as_tensor(moved), target_of(name, renamed, form)[1])
        torch.testing.assert_close(found, expected)


@each_loss
def test_a_batch_of_copies_is_one_sample(name: str, make: Make, rng: np.random.Generator) -> None:
    label = samples(rng, (7, 6))[:1]
    input, target = torch.as_tensor(logits_for(label, rng)), packed(name, label)
    loss = make(to_onehot_y=True, softmax=True, weight=weights(name, 1.0, 2.0, 3.0))
    expected = loss(input, target)
    torch.testing.assert_close(loss(input.repeat(4, 1, 1, 1), target.repeat(4, 1, 1, 1)), expected)
    on_the_fly = make(to_onehot_y=True, softmax=True, weight=weights(name, 1.0, 2.0, 3.0))
    found = on_the_fly(input.repeat(4, 1, 1, 1), target[:, :1].repeat(4, 1, 1, 1))
    torch.testing.assert_close(found, expected)


def test_trap_04_integer_one_hot_truncates_nothing(rng: np.random.Generator) -> None:
    label = samples(rng, (7, 6))
    channels = torch.as_tensor(np.stack([one_hot(one, 3) for one in label]))
    input = torch.as_tensor(logits_for(label, rng))
    for make in (BoundaryLoss, RegionWiseLoss):
        loss = make(softmax=True, spacing=0.3)
        torch.testing.assert_close(loss(input, channels.to(torch.int32)), loss(input, channels))


# --------------------------------------------------------------------------- inside MONAI


@pytest.mark.parametrize(
    "arguments",
    [
        {"softmax": True},
        {"softmax": True, "include_background": False},
        {"softmax": True, "to_onehot_y": True},
        {"sigmoid": True},
        {"other_act": torch.tanh},
        {},
    ],
    ids=["softmax", "no-background", "index", "sigmoid", "tanh", "none"],
)
@each_shape
def test_shifted_boundary_loss_equals_monai(
    shape: tuple[int, ...], arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    label = np.concatenate([samples(rng, shape), np.zeros((1, *shape), int)])
    channels = torch.as_tensor(np.stack([one_hot(one, 3) for one in label])).float()
    if arguments.get("to_onehot_y"):
        channels = torch.as_tensor(label[:, None]).float()
    input = torch.as_tensor(logits_for(label, rng)).float()
    ours = BoundaryLoss(inside="shifted", **arguments)(input, channels)
    theirs = monai.losses.BoundaryLoss(**arguments)(input, channels)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@each_loss
def test_arguments_come_in_monai_order(name: str, make: Make) -> None:
    names = list(inspect.signature(type(make()).__init__).parameters)[1:]
    first = ["include_background", "to_onehot_y", "sigmoid", "softmax", "other_act"]
    last = [n for n in names if n in ("reduction", "batch", "weight", "ignore_index")]
    assert names[:5] == first
    assert names[-len(last) :] == last
    assert last == [n for n in ("reduction", "batch", "weight", "ignore_index") if n in last]
    assert {"reduction", "weight", "ignore_index"} <= set(last)
    defaults = inspect.signature(type(make()).__init__).parameters
    background = not name.startswith("Hausdorff")  # as in monai.losses.HausdorffDTLoss
    assert [defaults[n].default for n in first] == [background, False, False, False, None]
    assert [defaults[n].default for n in ("reduction", "weight", "ignore_index")] == [
        "mean",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ({"softmax": True}, "softmax=True"),
        ({"to_onehot_y": True}, "to_onehot_y=True"),
        ({"include_background": False}, "include_background=False"),
    ],
    ids=["softmax", "to_onehot_y", "include_background"],
)
@each_loss
def test_single_channel_warnings(
    name: str, make: Make, arguments: dict[str, Any], flag: str, rng: np.random.Generator
) -> None:
    if name == "NonAdjacency":
        pytest.skip("takes no single channel")
    label = torch.as_tensor(np.stack([blobs(rng, (7, 6), 2)])[:, None])
    input = torch.rand(1, 1, 7, 6)
    with pytest.warns(UserWarning, match=f"single channel prediction, `{flag}` ignored"):
        found = make(**arguments)(input, label)
    assert found == make()(input, label)


@pytest.mark.parametrize("form", ["packed", "index", "one-hot"])
@each_loss
def test_deep_supervision(name: str, make: Make, form: str, rng: np.random.Generator) -> None:
    label = samples(rng, (8, 12))
    to_onehot_y, target = (
        target_of(name, label, form) if form != "packed" else (True, packed(name, label))
    )
    inputs = [
        torch.as_tensor(rng.normal(size=(3, 3, *size))).float().requires_grad_()
        for size in [(8, 12), (4, 6), (2, 3)]
    ]
    loss = make(to_onehot_y=to_onehot_y, softmax=True)
    found = DeepSupervisionLoss(loss)(inputs, target)
    levels = [
        loss(input, functional.interpolate(target, size=input.shape[2:], mode="nearest-exact"))
        for input in inputs
    ]
    torch.testing.assert_close(found, levels[0] + levels[1] / 2 + levels[2] / 4)
    found.backward()
    for input in inputs:
        assert input.grad is not None
        assert torch.isfinite(input.grad).all()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_equals_eager(
    loss: SegmentationLoss, target: Tensor, rng: np.random.Generator, backend: str
) -> None:
    compiled = torch.compile(copy.deepcopy(loss), fullgraph=True, backend=backend)
    logits = torch.as_tensor(rng.normal(size=(target.shape[0], 3, *target.shape[2:]))).float()
    results = []
    for call in (loss, compiled):
        input = logits.clone().requires_grad_()
        value = call(input, target)
        value.backward()
        results.append((value.detach(), input.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.usefixtures("fresh_compiler")
@each_loss
def test_compiles_without_a_graph_break(name: str, make: Make, rng: np.random.Generator) -> None:
    label = samples(rng, (7, 6))
    loss = make(to_onehot_y=True, softmax=True, weight=weights(name, 1.0, 2.0, 3.0), ignore_index=2)
    compiled_equals_eager(loss, packed(name, label), rng, "aot_eager")


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        ({"softmax": True}, "one-hot+dense"),
        ({"softmax": True, "include_background": False}, "one-hot+compact"),
        ({"sigmoid": True}, "one-hot+dense"),
        ({"softmax": True, "reduction": "sum"}, "index+dense"),
    ],
    ids=str,
)
def test_other_paths_compile(
    arguments: dict[str, Any], form: str, rng: np.random.Generator
) -> None:
    to_onehot_y, target = target_of("RegionWise-rrw", samples(rng, (4, 5, 6)), form)
    loss = RegionWiseLoss(to_onehot_y=to_onehot_y, **arguments)
    compiled_equals_eager(loss, target, rng, "aot_eager")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.skipif(
    not any(shutil.which(c) for c in ("g++", "clang++", "cl")), reason="no C++ compiler"
)
def test_compiles_with_inductor(rng: np.random.Generator) -> None:
    name, make = LOSSES[0]
    target = packed(name, samples(rng, (7, 6)))
    compiled_equals_eager(make(to_onehot_y=True, softmax=True), target, rng, "inductor")


@each_loss
def test_supervised_trainer(name: str, make: Make, rng: np.random.Generator) -> None:
    label = samples(rng, (7, 6))
    batches = [
        {"image": torch.as_tensor(rng.normal(size=(3, 1, 7, 6))).float(), "label": target}
        for target in (packed(name, label), target_of(name, label, "index")[1])
    ]
    network = torch.nn.Conv2d(1, 3, 3, padding=1)
    before = network.weight.detach().clone()
    losses: list[float] = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=make(to_onehot_y=True, softmax=True),
        postprocessing=None,
    )
    trainer.logger.disabled = True

    @trainer.on("ITERATION_COMPLETED")
    def note(engine: Any) -> None:
        losses.append(engine.state.output[0]["loss"])

    trainer.run()
    assert trainer.state.iteration == 2
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert not torch.equal(network.weight, before)


@each_loss
def test_weights_move_and_are_saved(
    name: str, make: Make, devices: torch.device, rng: np.random.Generator
) -> None:
    loss = make(to_onehot_y=True, softmax=True, weight=weights(name, 1.0, 2.0, 3.0))
    assert {b.device.type for b in loss.to("meta").buffers()} == {"meta"}
    loss = make(to_onehot_y=True, softmax=True, weight=weights(name, 1.0, 2.0, 3.0)).to(devices)
    assert all(b.device.type == devices.type for b in loss.buffers())
    assert {key.rpartition(".")[2] for key in loss.state_dict()} == {"class_weight"}
    other = make(to_onehot_y=True, softmax=True, weight=weights(name, 9.0, 9.0, 9.0)).to(devices)
    other.load_state_dict(loss.state_dict())
    label = samples(rng, (7, 6))
    input = torch.as_tensor(logits_for(label, rng)).to(devices)
    target = packed(name, label).to(devices)
    assert other(input, target) == loss(input, target)
    assert list(make().state_dict()) == []
    make().load_state_dict({})


@each_loss
def test_a_given_weight_tensor_stays_the_callers(name: str, make: Make) -> None:
    weight = torch.as_tensor(weights(name, 1.0, 2.0, 3.0))
    loss = make(weight=weight)
    loss.load_state_dict({key: value + 6 for key, value in loss.state_dict().items()})
    assert weight.tolist() == weights(name, 1, 2, 3)


# --------------------------------------------------------------------------- errors

INPUT = torch.zeros((2, 3, 4, 5))
INDEX = torch.zeros((2, 1, 4, 5))
ONE_HOT = torch.eye(3)[[0]].reshape(1, 3, 1, 1).repeat(2, 1, 4, 5)


def fails(loss: SegmentationLoss, input: Tensor, target: Tensor, *parts: str) -> None:
    """The error is a ValueError, begins with the argument's name and holds all parts."""
    with pytest.raises(ValueError, match=f"^{re.escape(parts[0])}") as error:
        loss(input, target)
    for part in parts:
        assert part in str(error.value)


@each_loss
def test_error_target_shape(name: str, make: Make) -> None:
    by_index, by_channels = make(to_onehot_y=True, softmax=True), make(softmax=True)
    for shape in [(2, 1, 4, 6), (1, 1, 4, 5), (2, 1, 4), (2, 4, 5), (2, 3, 4, 5), (2, 5, 4, 5)]:
        fails(by_index, INPUT, torch.zeros(shape), "target: ", str(shape), "(2, 3, 4, 5)")
    for shape in [(2, 1, 4, 5), (2, 2, 4, 5), (2, 5, 4, 5), (2, 7, 4, 5), (2, 3, 4, 5, 1)]:
        fails(by_channels, INPUT, torch.zeros(shape), "target: ", str(shape), "(2, 3, 4, 5)")


@each_loss
def test_error_input(name: str, make: Make) -> None:
    loss = make(to_onehot_y=True, softmax=True)
    for shape in [(2, 3), (2, 3, 4), (2, 3, 4, 5, 6, 7), ()]:
        fails(loss, torch.zeros(shape), INDEX, "input: expected (B, C, H, W[, D])", str(shape))
    fails(loss, INPUT.long(), INDEX, "input: expected a floating dtype", "int64")


@pytest.mark.parametrize(
    ("value", "came"),
    [(3, "to 3"), (-1, "from -1"), (0.5, "0.5"), (float("nan"), "nan")],
    ids=["too-high", "negative", "fractional", "nan"],
)
@each_loss
def test_error_index_values(name: str, make: Make, value: float, came: str) -> None:
    loss = make(to_onehot_y=True, softmax=True)
    loss(INPUT, INDEX)
    target = INDEX.clone()
    target[1, 0, 2, 2] = value
    fails(loss, INPUT, target, "target: expected", came)
    zeros = torch.cat([target, torch.zeros_like(target)], dim=1)
    if name not in MAP_OF or MAP_OF[name][0] in COMPACT:
        fails(loss, INPUT, zeros, "target: expected", came)


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, float("nan")])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@each_loss
def test_error_channel_values(name: str, make: Make, activation: str, value: float) -> None:
    target = ONE_HOT.clone()
    target[1, 1, 2, 2] = value
    fails(make(**{activation: True}), INPUT, target, "target: expected channels of 0", str(value))
    fails(make(sigmoid=True), INPUT[:, :1], target[:, 1:2], "target: expected ch", str(value))


@each_loss
def test_error_not_one_hot(name: str, make: Make) -> None:
    overlapping, empty = ONE_HOT.clone(), ONE_HOT.clone()
    overlapping[0, 1, 1, 1] = 1
    empty[0, :, 1, 1] = 0
    for target in (overlapping, empty):
        for dtype in (torch.float32, torch.uint8, torch.bool):
            fails(
                make(softmax=True), INPUT, target.to(dtype), "target: expected one-hot", "sigmoid"
            )
        make(sigmoid=True)(INPUT, target)


@each_loss
def test_error_not_finite(name: str, make: Make, rng: np.random.Generator) -> None:
    label = samples(rng, (4, 5))[:2]
    target = packed(name, label)
    for reduction in ("mean", "none"):
        loss = make(to_onehot_y=True, softmax=True, reduction=reduction)
        for value in (float("nan"), float("inf")):
            input = INPUT.clone()
            input[1, 2, 3, 4] = value
            fails(loss, input, target, "input: expected finite", str(value), "(1, 2, 3, 4)")
            if name in MAP_OF:
                bad = target.clone()
                bad[1, 1, 3, 4] = value
                fails(loss, INPUT, bad, "target (its map): expected finite", str(value), "(1, 0")


@each_loss
def test_nan_at_an_ignored_voxel(name: str, make: Make, rng: np.random.Generator) -> None:
    """It does not reach the gradient: an error names the input, or the voxel does not count."""
    label = samples(rng, (4, 5))
    label[0, 1, 2] = 255
    input = torch.as_tensor(logits_for(label, rng))
    input[0, :, 1, 2] = float("nan")
    input.requires_grad_()
    loss = make(to_onehot_y=True, softmax=True, ignore_index=255)
    with suppress(ValueError):
        loss(input, torch.as_tensor(label[:, None])).backward()
        assert input.grad is not None
        assert torch.isfinite(input.grad).all()


@each_loss
def test_error_activations(name: str, make: Make) -> None:
    for arguments in (
        {"softmax": True, "sigmoid": True},
        {"softmax": True, "other_act": torch.tanh},
        {"sigmoid": True, "other_act": torch.tanh},
    ):
        with pytest.raises(ValueError, match=r"^sigmoid, softmax, other_act: .*got sigmoid="):
            make(**arguments)
    with pytest.raises(TypeError, match=r"^other_act: expected a callable.*str"):
        make(other_act="tanh")


@pytest.mark.parametrize("reduction", ["average", "", None, 2])
@each_loss
def test_error_reduction(name: str, make: Make, reduction: Any) -> None:
    with pytest.raises(ValueError, match=r"^reduction: expected one of 'none', 'mean'") as e:
        make(reduction=reduction)
    assert repr(reduction) in str(e.value)


@each_loss
def test_error_weight(name: str, make: Make) -> None:
    if name in ONE_WEIGHT:
        with pytest.raises(ValueError, match=r"^weight: expected one number, since .*got \[1.0, 2"):
            make(weight=[1.0, 2.0, 3.0])
        return
    for weight in ([1.0, -2.0, 3.0], -0.5, [[1.0, 2.0]], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match=r"^weight: expected a number or a sequence") as error:
            make(weight=weight)
        assert str(torch.as_tensor(weight).tolist()) in str(error.value)
    two = make(to_onehot_y=True, softmax=True, weight=[1.0, 2.0])
    fails(two, INPUT, INDEX, "weight: expected one number or 3", "got 2")
    three = make(to_onehot_y=True, softmax=True, include_background=False, weight=[1.0, 2.0, 3.0])
    fails(three, INPUT, INDEX, "weight: expected one number or 2", "got 3")
    fails(make(sigmoid=True, weight=[1.0, 2.0]), INPUT[:, :1], INDEX, "weight: ", "got 2")


@pytest.mark.parametrize("ignore_index", [-1, 3, 255])
@each_loss
def test_error_ignored_channel_of_a_multi_label_target(
    name: str, make: Make, ignore_index: int
) -> None:
    loss = make(sigmoid=True, ignore_index=ignore_index)
    fails(loss, INPUT, ONE_HOT, "ignore_index: expected a channel from 0 to 2", str(ignore_index))


@pytest.mark.parametrize("kind", ["rww", "Boundary", None])
def test_error_kind(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"^kind: expected one of rrw, boundary") as error:
        RegionWiseLoss(kind=kind)
    assert repr(kind) in str(error.value)


def test_error_inside() -> None:
    with pytest.raises(ValueError, match=r"^inside: expected 'symmetric' or 'shifted', got 'both"):
        BoundaryLoss(inside="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [k for k in MAP_KINDS if k not in COMPACT])
def test_error_compact_map_of_a_dense_kind(kind: str) -> None:
    loss = RegionWiseLoss(to_onehot_y=True, softmax=True, kind=kind)
    two = torch.cat([INDEX, INDEX], dim=1)
    fails(loss, INPUT, two, "target: ", f"kind='{kind}'", "map of 3 channels", "got 1")


@each_region_wise
def test_error_compact_map_of_a_multi_label_target(name: str, make: Make) -> None:
    target = torch.cat([ONE_HOT, INDEX], dim=1)
    fails(make(sigmoid=True), INPUT, target, "target: ", "map of 3 channels", "got 1")


@each_region_wise
def test_error_spacing(name: str, make: Make) -> None:
    loss = make(to_onehot_y=True, softmax=True, spacing=(1.0, 2.0, 3.0))
    if MAP_KINDS[MAP_OF[name][0]].uses_distance:
        fails(loss, INPUT, INDEX, "spacing: expected", "(3,)")


@pytest.mark.parametrize("kind", [kind for kind in MAP_KINDS if kind != "active_contour"])
def test_error_one_hot_taken_for_a_packed_target(kind: str) -> None:
    foreground = torch.zeros((1, 1, 4, 5))
    foreground[..., 2:] = 1
    one_hot_label = torch.cat([1 - foreground, foreground], dim=1)
    for loss, channels in (
        (RegionWiseLoss(softmax=True, to_onehot_y=True, kind=kind), 2),
        (RegionWiseLoss(sigmoid=True, kind=kind), 1),
    ):
        with pytest.raises(ValueError, match=r"^target: expected a label and its map, got two"):
            loss(torch.zeros(1, channels, 4, 5), one_hot_label)


def test_error_unknown_map_option() -> None:
    with pytest.raises(ValueError, match=r"^map_options: hausdorff knows alpha, got 'alhpa'"):
        RegionWiseLoss(kind="hausdorff", map_options={"alhpa": 1})
