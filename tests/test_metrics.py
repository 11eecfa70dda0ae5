"""The scores, alone and by name in a MONAI evaluator, against plain NumPy and SciPy."""

from __future__ import annotations

import itertools
import math
import os
import socket
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from monai_segloss.handlers import METRIC_NAMES, PixelAccuracy, SurfaceDiceMM, segmentation_metrics
from monai_segloss.metrics import (
    PixelAccuracyMetric,
    StepwiseIoUMetric,
    pixel_accuracy,
    stepwise_iou,
)

SPACING = (1.0, 2.0, 5.0)
Masks = NDArray[np.bool_]


def one_hot(index: NDArray[Any], classes: int) -> Tensor:
    found = torch.nn.functional.one_hot(torch.as_tensor(index, dtype=torch.long), classes)
    return found.movedim(-1, 0).float()


def blob_cases(
    rng: np.random.Generator, shape: tuple[int, ...], classes: int, number: int = 4
) -> list[tuple[Tensor, Tensor]]:
    """Smooth labels, and predictions that differ from them here and there."""
    cases = []
    for _ in range(number):
        noise = ndimage.gaussian_filter(
            rng.normal(size=(classes, *shape)), (0, *[1.5] * len(shape))
        )
        other = noise + 0.35 * noise.std() * rng.normal(size=noise.shape)
        cases.append(tuple(one_hot(n.argmax(0), classes) for n in (other, noise)))
    return cases  # type: ignore[return-value]


def evaluate(cases: Any, metrics: Any, spacing: Any = SPACING) -> Any:
    """The state of a MONAI evaluator whose network gives the cases' predictions."""
    affine = torch.diag(torch.tensor([*spacing[:3], *[1.0] * (4 - len(spacing[:3]))])).double()

    class Given(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return cases[int(image.flatten()[0])][0][None].to(image)

    data = [
        {
            "image": MetaTensor(torch.full((1, 1), float(i))),
            "label": MetaTensor(label[None], affine=affine[None]),
        }
        for i, (_, label) in enumerate(cases)
    ]

    def with_labels_grid(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "label": MetaTensor(item["label"].as_tensor(), affine=affine)}

    (first, *others) = metrics.items()
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data,
        network=Given(),
        postprocessing=with_labels_grid,
        key_val_metric=dict([first]),
        additional_metrics=dict(others),
    )
    evaluator.run()
    return evaluator.state


# --------------------------------------------------------------------------- oracles


def surface(mask: Masks) -> Masks:
    """Voxels of a mask with a neighbour, by faces, outside it or outside the image."""
    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(a: Masks, b: Masks, spacing: Any) -> NDArray[np.float64]:
    """From each surface voxel of a to the nearest one of b."""
    distance = ndimage.distance_transform_edt(~surface(b), sampling=spacing)
    found: NDArray[np.float64] = distance[surface(a)]
    return found


def score(name: str, p: Masks, y: Masks, spacing: Any, tolerance: float) -> float:
    """One class of one case, both not empty."""
    both, either = (p & y).sum(), (p | y).sum()
    there, back = surface_distances(p, y, spacing), surface_distances(y, p, spacing)
    if name == "dice":
        return float(2 * both / (p.sum() + y.sum()))
    if name == "iou":
        return float(both / either)
    if name == "hausdorff_mm":
        return float(max(there.max(), back.max()))
    if name == "hausdorff95_mm":
        return float(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))
    if name == "surface_dice":
        near = (there <= tolerance).sum() + (back <= tolerance).sum()
        return float(near / (len(there) + len(back)))
    steps = math.floor(20 * (Fraction(int(both), int(either)) - Fraction(45, 100)))
    return max(0, steps) / 10


@pytest.mark.parametrize("name", [n for n in METRIC_NAMES if n != "pixel_accuracy"])
@pytest.mark.parametrize(
    ("shape", "classes"), [((12, 11, 9), 3), ((20, 17), 4), ((16, 14), 2)], ids=str
)
def test_each_score_equals_its_formula(
    name: str, shape: tuple[int, ...], classes: int, rng: np.random.Generator
) -> None:
    cases = blob_cases(rng, shape, classes)
    state = evaluate(cases, segmentation_metrics([name], tolerance_mm=1.0))
    wanted = np.array(
        [
            [
                score(name, p, y, SPACING[: len(shape)], 1.0)
                for p, y in zip(g[1:], t[1:], strict=True)
            ]
            for g, t in ((a.numpy() > 0, b.numpy() > 0) for a, b in cases)
        ]
    )
    details = state.metric_details[name]
    assert details.shape == (len(cases), classes - 1)
    np.testing.assert_allclose(details.numpy(), wanted, rtol=1e-5)  # of float32
    assert state.metrics[name] == pytest.approx(wanted.mean(), rel=1e-5)
    assert len(np.unique(wanted)) > 1, "the cases tell the scores apart"


@pytest.mark.parametrize("include_background", [False, True])
def test_all_scores_at_once(include_background: bool, rng: np.random.Generator) -> None:
    cases = blob_cases(rng, (10, 9, 8), 3)
    metrics = segmentation_metrics(METRIC_NAMES, include_background)
    assert tuple(metrics) == METRIC_NAMES
    state = evaluate(cases, metrics)
    assert set(state.metrics) == set(METRIC_NAMES)
    for name in METRIC_NAMES:
        columns = 1 if name == "pixel_accuracy" else 2 + include_background
        assert state.metric_details[name].shape == (len(cases), columns)
        assert math.isfinite(state.metrics[name])


def test_one_binary_channel_equals_the_foreground_of_two(rng: np.random.Generator) -> None:
    cases = blob_cases(rng, (20, 17), 2)
    two = evaluate(cases, segmentation_metrics(METRIC_NAMES))
    one = evaluate([(p[1:], y[1:]) for p, y in cases], segmentation_metrics(METRIC_NAMES))
    for name in METRIC_NAMES:
        torch.testing.assert_close(one.metric_details[name], two.metric_details[name])
        assert one.metrics[name] == two.metrics[name]


def test_absent_classes_are_as_the_table_says() -> None:
    index = np.zeros((8, 8), int)
    index[2:5, 2:5] = 1
    with_two = index.copy()
    with_two[6, 6] = 2
    both, neither = one_hot(with_two, 3), one_hot(index, 3)
    cases = [(both, neither), (neither, both), (neither, neither)]
    details = evaluate(cases, segmentation_metrics(METRIC_NAMES)).metric_details
    second = {
        name: [float(v) for v in values[:, -1]]
        for name, values in details.items()
        if name != "pixel_accuracy"
    }
    for name in ("dice", "iou"):
        assert math.isnan(second[name][0])
        assert second[name][1] == 0
        assert math.isnan(second[name][2])
    assert second["hausdorff_mm"][:2] == [math.inf, math.inf]
    assert math.isnan(second["hausdorff_mm"][2])
    assert all(math.isnan(v) for v in second["hausdorff95_mm"])
    assert second["surface_dice"][:2] == [0, 0]
    assert math.isnan(second["surface_dice"][2])
    assert second["stepwise_iou"] == [0, 0, 1]
    assert details["pixel_accuracy"][:, 0].tolist() == pytest.approx([63 / 64, 63 / 64, 1])


def test_names() -> None:
    metrics = segmentation_metrics(["surface_dice", "dice"], tolerance_mm=[1, 2])
    assert list(metrics) == ["surface_dice", "dice"]
    assert segmentation_metrics([]) == {}
    for names in (["dice", "dice"], ["dise"], "dice"):
        with pytest.raises(ValueError, match=r"^names: expected names out of dice, iou, .*got"):
            segmentation_metrics(names)


# --------------------------------------------------------------------------- surface Dice


def plane(position: int) -> Tensor:
    """A plane across the first axis."""
    index = np.zeros((9, 6, 5), int)
    index[position] = 1
    return one_hot(index, 2)


@pytest.mark.parametrize(
    ("use_subvoxels", "size", "near"),
    [(False, 0.7, 1.0), (False, 0.71, 0.0), (True, 0.7, 1.0), (True, 0.71, 0.5), (True, 1.1, 0.0)],
)
def test_surface_dice_tolerance_is_in_mm_and_inclusive(
    use_subvoxels: bool, size: float, near: float
) -> None:
    """Three voxels apart, or two and three between the faces of two planes one voxel thick."""
    metric = SurfaceDiceMM(
        2.1, use_subvoxels=use_subvoxels, output_transform=from_engine(["pred", "label"])
    )
    state = evaluate([(plane(2), plane(5))], {"nsd": metric}, (size, 1.0, 1.0))
    assert state.metrics["nsd"] == pytest.approx(near)


def test_surface_dice_with_a_tolerance_per_class() -> None:
    index = np.zeros((9, 9, 3), int)
    index[1], index[6] = 1, 2
    cases = [(one_hot(np.roll(index, 1, axis=0), 3), one_hot(index, 3))]
    for tolerance, wanted in (([0.5, 1.0], [0, 1]), ([1.0, 0.5], [1, 0]), (0.5, [0, 0])):
        state = evaluate(cases, segmentation_metrics(["surface_dice"], tolerance_mm=tolerance))
        assert state.metric_details["surface_dice"].tolist() == [wanted]
    with pytest.raises(ValueError, match=r"^tolerance_mm: expected one number or 2, .*got \[1.0\]"):
        evaluate(cases, segmentation_metrics(["surface_dice"], tolerance_mm=[1.0]))


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, [1.0, math.inf], []])
def test_error_tolerance(tolerance: Any) -> None:
    with pytest.raises(ValueError, match=r"^tolerance_mm: expected finite numbers of at least 0"):
        SurfaceDiceMM(tolerance)


# --------------------------------------------------------------------------- pixel accuracy


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_pixel_accuracy_equals_its_formula(dtype: torch.dtype, rng: np.random.Generator) -> None:
    guess, truth = rng.integers(0, 4, (2, 3, 6, 5, 4))
    p, y = (torch.stack([one_hot(v, 4) for v in values]).to(dtype) for values in (guess, truth))
    right = (guess == truth).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(pixel_accuracy(p, y)[:, 0], right, rtol=1e-6)
    per_class = np.stack(
        [((guess == c) == (truth == c)).mean(axis=(1, 2, 3)) for c in range(4)], axis=1
    )
    found = pixel_accuracy(p, y, per_class=True, include_background=True)
    np.testing.assert_allclose(found, per_class, rtol=1e-6)
    np.testing.assert_allclose(pixel_accuracy(p, y, per_class=True), per_class[:, 1:], rtol=1e-6)


def test_pixel_accuracy_per_class_by_handler(rng: np.random.Generator) -> None:
    cases = blob_cases(rng, (10, 9), 3)
    metric = PixelAccuracy(per_class=True, output_transform=from_engine(["pred", "label"]))
    details = evaluate(cases, {"accuracy": metric}).metric_details["accuracy"]
    wanted = torch.cat([pixel_accuracy(p[None], y[None], per_class=True) for p, y in cases])
    torch.testing.assert_close(details, wanted)


# --------------------------------------------------------------------------- stepwise IoU


def overlap(both: int, either: int) -> tuple[Tensor, Tensor]:
    """One binary channel each: an intersection and a union of so many pixels."""
    p, y = torch.zeros(2, 1, 1, 1, 40)
    p[..., :both] = y[..., :either] = 1
    return p, y


def test_stepwise_iou_at_and_beside_every_step() -> None:
    for either in range(1, 41):
        for both in range(either + 1):
            exact = math.floor(20 * (Fraction(both, either) - Fraction(45, 100)))
            wanted = torch.tensor(max(0, exact)) / 10
            assert torch.equal(stepwise_iou(*overlap(both, either)).squeeze(), wanted)


@pytest.mark.parametrize(
    ("both", "either", "wanted"),
    [(19, 39, 0.0), (20, 40, 0.1), (1, 2, 0.1), (3, 5, 0.3), (38, 40, 1.0), (40, 40, 1.1)],
)
def test_stepwise_iou_by_hand(both: int, either: int, wanted: float) -> None:
    """An IoU of 0.5 gives 0.1, 0.6 gives 0.3, 0.95 gives 1, and 1 gives 1.1: nothing clips it."""
    assert float(stepwise_iou(*overlap(both, either))) == pytest.approx(wanted)


def test_stepwise_iou_of_large_counts_does_not_overflow() -> None:
    y = torch.ones(1, 1, 1 << 14, 1 << 13, dtype=torch.uint8)
    assert float(stepwise_iou(y, y)) == pytest.approx(1.1)


def test_stepwise_iou_equals_the_studys_code_off_the_steps(rng: np.random.Generator) -> None:
    """In float64, as NumPy computes; the images lie on no step."""
    cases = blob_cases(rng, (31, 29), 2, number=12)
    for p, y in cases:
        a, b = p[1].numpy().astype(float), y[1].numpy().astype(float)
        iou = (a * b).sum() / (a.sum() + b.sum() - (a * b).sum())
        assert abs(iou * 20 - round(iou * 20)) > 1e-9
        wanted = np.floor(max(0, (iou - 0.45) * 20)) / 10
        assert float(stepwise_iou(p[None], y[None])) == pytest.approx(wanted)


# --------------------------------------------------------------------------- errors, processes


@pytest.mark.parametrize("compute", [pixel_accuracy, stepwise_iou])
def test_error_tensors(compute: Any) -> None:
    good = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"expected one shape .*got \(1, 2, 4, 4\) and \(1, 1, 4"):
        compute(good, good[:, :1])
    with pytest.raises(ValueError, match=r"^label: expected one-hot values 0 and 1, got .* to 0.5"):
        compute(good, good + 0.5)


@pytest.mark.parametrize("metric", [PixelAccuracyMetric(), StepwiseIoUMetric()])
def test_error_no_case(metric: Any) -> None:
    with pytest.raises(ValueError, match="expected at least one case, got none"):
        metric.aggregate()


def _process(rank: int, port: int, cases: Any, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    state = evaluate(cases[rank::2], segmentation_metrics(METRIC_NAMES))
    torch.save(
        {"metrics": dict(state.metrics), "details": dict(state.metric_details)},
        Path(folder) / f"{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def test_two_processes_gather_the_cases(rng: np.random.Generator, tmp_path: Path) -> None:
    cases = blob_cases(rng, (10, 9), 3, number=5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, cases, str(tmp_path)), nprocs=2)
    alone = evaluate(cases, segmentation_metrics(METRIC_NAMES))
    order = [*range(0, 5, 2), *range(1, 5, 2)]
    for rank, name in itertools.product((0, 1), METRIC_NAMES):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["metrics"][name] == pytest.approx(alone.metrics[name], rel=1e-6)
        torch.testing.assert_close(found["details"][name], alone.metric_details[name][order])
