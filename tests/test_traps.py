"""The traps found by running public code, each with the test that would catch it here.

The numbers are those of the list of traps in ``docs/fidelity.md``.
"""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from oracles import blobs, one_hot
from torch import Tensor

from monai_segloss.losses import (
    ActiveBoundaryLoss,
    ActiveContourLoss,
    AsymmetricSimilarityLoss,
    BoundaryLoss,
    ComboLoss,
    CrossEntropyLoss,
    DiceFocalLoss,
    ExpLogLoss,
    FocalTverskyLoss,
    HausdorffLoss,
    JaccardLoss,
    LovaszSoftmaxLoss,
    MapCrossEntropyLoss,
    PenaltyGeneralizedDiceLoss,
    TopKLoss,
)
from monai_segloss.maps import is_rectified, region_wise_map

INDEX = {"softmax": True, "to_onehot_y": True}


@pytest.fixture
def label(rng: np.random.Generator) -> Tensor:
    """Two 2D samples of three classes, ``(2, 1, 9, 8)``."""
    return torch.as_tensor(np.stack([blobs(rng, (9, 8), 3) for _ in range(2)])[:, None])


@pytest.fixture
def logits(rng: np.random.Generator) -> Tensor:
    return torch.as_tensor(rng.normal(size=(2, 3, 9, 8)))


def channels(label: Tensor, classes: int = 3) -> Tensor:
    return torch.cat([(label == c).double() for c in range(classes)], dim=1)


# --------------------------------------------------------------------------- 1


def test_trap_01_absent_class_has_no_stale_map(label: Tensor) -> None:
    before = region_wise_map(label, "rrw", 3, dense=True)
    absent = torch.where(label == 2, 0, label)
    assert (region_wise_map(absent, "rrw", 3, dense=True)[:, 2] == 1).all()
    assert torch.equal(region_wise_map(label, "rrw", 3, dense=True), before)


def test_trap_01_full_class_knows_no_phantom_point() -> None:
    full = torch.ones((1, 1, 5, 7), dtype=torch.int64)
    region_wise = region_wise_map(full, "rrw", 3)
    assert (region_wise == -1).all()
    for kind in ("boundary", "hausdorff"):
        assert not region_wise_map(full, kind, 3).any()


def test_trap_01_spacing_counts(label: Tensor) -> None:
    unit, stretched = (region_wise_map(label, "boundary", 3, s) for s in ((1, 1), (1, 4)))
    assert not torch.allclose(unit, stretched)


# --------------------------------------------------------------------------- 2


def test_trap_02_distance_penalty_is_applied(logits: Tensor, label: Tensor) -> None:
    plain = CrossEntropyLoss(**INDEX)(logits, label)
    penalised = MapCrossEntropyLoss(kind="distance_penalty", **INDEX)(logits, label)
    assert penalised > 1.05 * plain


def test_trap_02_generalized_dice_of_a_perfect_prediction_is_0(label: Tensor) -> None:
    absent = torch.where(label == 2, 0, label)
    for target in (label, absent):
        loss = PenaltyGeneralizedDiceLoss(to_onehot_y=True)(channels(target), target)
        assert loss == 0


def test_trap_02_absent_class_weighs_no_1e20(logits: Tensor, label: Tensor) -> None:
    absent = torch.where(label == 2, 0, label)
    found = PenaltyGeneralizedDiceLoss(k=0.0, **INDEX)(logits, absent)
    p, g = torch.softmax(logits, 1), channels(absent)
    size = g.sum((2, 3))
    weight = torch.where(size > 0, 1 / size**2, 0)
    weight = torch.where(size > 0, weight, weight.amax(1, keepdim=True))
    score = 2 * (weight * (p * g).sum((2, 3))).sum(1) / (weight * (p + g).sum((2, 3))).sum(1)
    torch.testing.assert_close(found, (1 - score).mean(), rtol=1e-3, atol=0)


def test_trap_02_logarithm_and_power_per_class(logits: Tensor, label: Tensor) -> None:
    p, g = torch.softmax(logits, 1), channels(label)
    dice = (2 * (p * g).sum((2, 3)) + 1) / (p.sum((2, 3)) + g.sum((2, 3)) + 1)
    exp_log = ExpLogLoss(w_cross=0.0, w_dice=1.0, **INDEX)(logits, label)
    torch.testing.assert_close(exp_log, ((-dice.log()) ** 0.3).mean())
    assert not torch.isclose(exp_log, (-dice.mean().log()) ** 0.3)
    hit = (p * g).sum((2, 3))
    index = hit / (hit + 0.3 * ((1 - g) * p).sum((2, 3)) + 0.7 * (g * (1 - p)).sum((2, 3)))
    focal = FocalTverskyLoss(smooth_nr=0, smooth_dr=0, **INDEX)(logits, label)
    torch.testing.assert_close(focal, ((1 - index) ** 0.75).mean())
    assert not torch.isclose(focal, (1 - index.mean()) ** 0.75, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trap_02_gradient_at_a_perfect_prediction_is_finite(
    label: Tensor, dtype: torch.dtype
) -> None:
    for make in (FocalTverskyLoss, ExpLogLoss):
        right = channels(label).to(dtype).requires_grad_()
        loss = make(to_onehot_y=True)(right, label)
        loss.backward()
        assert abs(float(loss.detach())) < 1e-6
        assert right.grad is not None
        assert torch.isfinite(right.grad).all()


def test_trap_02_boundary_and_hausdorff_in_2d_on_both_sides(label: Tensor) -> None:
    mask = (label[:1, 0] == 1).numpy()[0]
    both = np.where(mask, oracles.distance_to(~mask), oracles.distance_to(mask))
    wrong = 1.0 - torch.as_tensor(mask)[None, None].double()
    target = 1 - wrong
    found = HausdorffLoss(one_sided=True, alpha=1.0, include_background=True, reduction="none")(
        wrong, target
    )
    np.testing.assert_allclose(found[0, 0], both, rtol=1e-6)


# --------------------------------------------------------------------------- 3 and 4


def test_trap_03_one_voxel_inside_is_in_the_unit_of_the_spacing(label: Tensor) -> None:
    inside = region_wise_map(label, "boundary", 3, 0.5, inside="shifted")[channels(label) > 0]
    assert (inside <= 0).all()
    assert (inside == 0).any()


def test_trap_03_integer_masks_do_not_truncate(label: Tensor) -> None:
    maps = [
        region_wise_map(channels(label).to(dtype), "boundary", 3, 0.3)
        for dtype in (torch.float64, torch.uint8, torch.int64)
    ]
    assert all(torch.equal(maps[0], other) for other in maps[1:])
    assert (maps[0] != maps[0].round()).any()


def test_trap_04_integer_one_hot_does_not_truncate(logits: Tensor, label: Tensor) -> None:
    for loss in (BoundaryLoss(softmax=True, spacing=0.3), HausdorffLoss(softmax=True, spacing=0.3)):
        found = [loss(logits, channels(label).to(d)) for d in (torch.float64, torch.int32)]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_trap_04_full_mask_has_no_distance() -> None:
    full, p = torch.ones((1, 1, 6, 5)), torch.full((1, 1, 6, 5), 0.9)
    assert HausdorffLoss(include_background=True)(p, full) == 0


# --------------------------------------------------------------------------- 5 and 6


def test_trap_05_absent_class_is_not_zeroed(logits: Tensor, label: Tensor) -> None:
    absent = torch.where(label == 2, 0, label)
    for make in (JaccardLoss, FocalTverskyLoss, AsymmetricSimilarityLoss):
        found = make(reduction="none", **INDEX)(logits, absent)
        assert (found[:, 2] > 0.9).all()


def test_trap_05_focal_part_is_a_softmax(logits: Tensor, label: Tensor) -> None:
    loss = DiceFocalLoss(lambda_dice=0.0, **INDEX)
    p = torch.softmax(logits, 1).gather(1, label)
    expected = ((1 - p) ** 2 * -p.log()).mean() / 3
    torch.testing.assert_close(loss(logits, label), expected)


def test_trap_05_lovasz_sorts_errors_not_labels(label: Tensor, rng: np.random.Generator) -> None:
    """Any other order of the same errors gives a smaller sum: the extension is their largest."""
    p = torch.softmax(torch.as_tensor(rng.normal(size=(2, 3, 9, 8))), 1)
    found = LovaszSoftmaxLoss(to_onehot_y=True)(p, label)
    errors = (channels(label) - p).abs().transpose(0, 1).flatten(1)
    positive = channels(label).transpose(0, 1).flatten(1)
    for order in (positive.argsort(descending=True), torch.arange(144).expand(3, -1)):
        g, e = positive.gather(1, order), errors.gather(1, order)
        jaccard = 1 - (g.sum(1, keepdim=True) - g.cumsum(1)) / (
            g.sum(1, keepdim=True) + (1 - g).cumsum(1)
        )
        growth = torch.diff(jaccard, prepend=torch.zeros(3, 1, dtype=g.dtype))
        assert (e * growth).sum(1).mean() < found


def test_trap_05_tversky_weights_are_apart(logits: Tensor, label: Tensor) -> None:
    one = FocalTverskyLoss(alpha=0.2, beta=0.8, **INDEX)(logits, label)
    other = FocalTverskyLoss(alpha=0.5, beta=0.5, **INDEX)(logits, label)
    assert not torch.isclose(one, other)


def test_trap_06_combo_is_written_out(label: Tensor, rng: np.random.Generator) -> None:
    p = rng.uniform(0.05, 0.95, size=(2, 1, 9, 8))
    g = (label == 1).double().numpy()
    alpha, beta = 0.3, 0.8
    cross = -(beta * g * np.log(p) + (1 - beta) * (1 - g) * np.log(1 - p)).mean()
    dice = (2 * (p * g).sum((2, 3)) + 1) / (p.sum((2, 3)) + g.sum((2, 3)) + 1)
    expected = alpha * cross - (1 - alpha) * dice.mean()
    found = ComboLoss(alpha=alpha, beta=beta)(torch.as_tensor(p), torch.as_tensor(g))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_trap_06_beta_is_no_class_weight(logits: Tensor, label: Tensor) -> None:
    loss = ComboLoss(beta=0.9, **INDEX)
    torch.testing.assert_close(loss(logits.roll(1, 1), (label + 1) % 3), loss(logits, label))


# --------------------------------------------------------------------------- 7


@pytest.mark.parametrize("shape", [(5, 7), (3, 1), (4, 3, 5)], ids=str)
def test_trap_07_active_contour_takes_any_size_and_the_voxels_own_gradient(
    shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    u = rng.uniform(size=(1, 1, *shape))
    total = np.zeros(shape)
    for voxel in np.ndindex(*shape):
        squares = 0.0
        for axis in range(len(shape)):
            ahead = tuple(i + (a == axis) for a, i in enumerate(voxel))
            if ahead[axis] < shape[axis]:
                squares += (u[0, 0][ahead] - u[0, 0][voxel]) ** 2
        total[voxel] = math.sqrt(squares + 1e-8)
    found = ActiveContourLoss(lambda_region=0.0)(torch.as_tensor(u), torch.zeros(1, 1, *shape))
    assert float(found) == pytest.approx(total.mean(), rel=1e-9)


def test_trap_07_active_boundary_keeps_fractions_of_a_distance(
    logits: Tensor, label: Tensor
) -> None:
    """Truncated to whole numbers, the distances of 0.3 a voxel would all be 0, and the loss too."""
    found = ActiveBoundaryLoss(boundary_ratio=0.5, spacing=0.3, **INDEX)(logits, label)
    assert found > 0


def test_trap_07_active_boundary_budget_is_an_image_s_own(logits: Tensor, label: Tensor) -> None:
    loss = ActiveBoundaryLoss(boundary_ratio=0.05, reduction="none", **INDEX)
    together = loss(logits, label)
    for b in range(2):
        torch.testing.assert_close(loss(logits[b : b + 1], label[b : b + 1])[0], together[b])


def test_trap_07_active_boundary_smoothing_sums_to_1(logits: Tensor, label: Tensor) -> None:
    """The cross-entropy is linear in the target: smoothing s mixes the targets s = 0 and uniform.

    The two differ by (1 - s); a target of any other sum would not lie on their line.
    """
    at = [
        ActiveBoundaryLoss(boundary_ratio=0.5, label_smoothing=s, **INDEX)(logits, label)
        for s in (0.0, 0.2, 0.4, 0.8)
    ]
    torch.testing.assert_close(at[1] - at[0], (at[3] - at[0]) / 4)
    torch.testing.assert_close(at[2] - at[0], (at[3] - at[0]) / 2)


@pytest.mark.parametrize("scale", [0.0, 200.0])
def test_trap_07_active_boundary_without_a_border_is_0_with_a_gradient(scale: float) -> None:
    """Flat, and saturated without a border: a loss of 0 that can be differentiated, never None."""
    flat = torch.zeros((1, 1, 6, 5), dtype=torch.int64)
    split = flat.clone()
    split[..., 2:] = 1
    input = torch.zeros(1, 2, 6, 5)
    input[:, 0] = scale
    for target in (flat, split):
        logits = input.clone().requires_grad_()
        loss = ActiveBoundaryLoss(**INDEX)(logits, target)
        loss.backward()
        assert loss == 0
        assert logits.grad is not None
        assert not logits.grad.any()


# --------------------------------------------------------------------------- 8 to 11


@pytest.mark.parametrize("ignore_index", [None, 255])
def test_trap_08_topk_keeps_a_voxel(ignore_index: int | None) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    label = torch.tensor([[[[0, 1], [2, 1]]]])
    loss = TopKLoss(k=1.0, ignore_index=ignore_index, **INDEX)(logits, label)
    worst = torch.nn.functional.cross_entropy(logits, label[:, 0], reduction="none").max()
    torch.testing.assert_close(loss, worst)


def test_trap_09_ratios_are_per_class(logits: Tensor, label: Tensor) -> None:
    p = torch.softmax(logits, 1)
    mean = p.gather(1, label).mean()
    both = [
        FocalTverskyLoss(alpha=a, beta=1 - a, gamma=1.0, **INDEX)(logits, label) for a in (0.2, 0.8)
    ]
    assert not torch.isclose(both[0], both[1], rtol=1e-3)
    assert not torch.isclose(both[0], 1 - mean, rtol=1e-3)


@pytest.mark.parametrize("wrong", [40.0, 90.0, 400.0])
def test_trap_10_cross_entropy_is_not_clipped(wrong: float) -> None:
    logits = torch.tensor([wrong, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    label = torch.ones((1, 1, 1, 1), dtype=torch.int64)
    loss = CrossEntropyLoss(**INDEX)(logits, label)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(wrong)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.flatten(), torch.tensor([1.0, -1.0]))


def test_trap_11_two_classes_do_not_show_the_sign_defect(label: Tensor) -> None:
    two = (label > 0).long()
    assert is_rectified(region_wise_map(two, "boundary", 2), two)
    assert not is_rectified(region_wise_map(label, "boundary", 3), label)
    assert is_rectified(region_wise_map(label, "rrw", 3, dense=True), label)


def test_one_hot_helpers_agree(label: Tensor) -> None:
    expected = np.stack([one_hot(one, 3) for one in label[:, 0].numpy()])
    np.testing.assert_array_equal(channels(label), expected)
