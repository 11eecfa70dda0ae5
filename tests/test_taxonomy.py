"""The table of losses: every row builds and runs, and a wrong name is answered with the nearest."""

from __future__ import annotations

from typing import Any

import monai.losses
import pytest
import torch
from torch import Tensor

from monai_segloss.losses import TAXONOMY, StackedDeepSupervisionLoss, get_loss_row, make_loss
from monai_segloss.maps import MAP_KINDS, region_wise_map

CLASSES = 3
WITH_MAP = [name for name, row in TAXONOMY.items() if row.map_kind]
SAFE_ALONE = [name for name, row in TAXONOMY.items() if row.safe_alone]


def conventions(name: str) -> dict[str, Any]:
    """The arguments for a label index and logits, as classes that exclude one another if may be."""
    activation = "softmax" if "softmax" in TAXONOMY[name].forms else "sigmoid"
    own: dict[str, Any] = {"forbidden": [(0, 2)]} if name == "non_adjacency" else {}
    return {activation: True, "to_onehot_y": True, **own}


@pytest.fixture
def logits() -> Tensor:
    """A tiny batch, 2D."""
    values = torch.randn(2, CLASSES, 8, 7, generator=torch.Generator().manual_seed(0))
    return values.requires_grad_()


@pytest.fixture
def label() -> Tensor:
    """Class index of the batch; every class occurs."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, CLASSES, (2, 1, 8, 7), generator=generator).float()


INDIFFERENT = ("active_boundary", "non_adjacency")
"""What these look at, borders and neighbours, a prediction may have right or wrong anywhere."""


def packed(label: Tensor, name: str) -> Tensor:
    """The target as the data pipeline makes it for a loss."""
    kind = TAXONOMY[name].map_kind
    return label if kind is None else torch.cat([label, region_wise_map(label, kind, CLASSES)], 1)


def test_the_losses_that_configs_name_are_there() -> None:
    assert {"rrw", "boundary", "dice", "dice_ce", "focal"} <= set(TAXONOMY)


@pytest.mark.parametrize("name", TAXONOMY)
def test_row(name: str) -> None:
    row = TAXONOMY[name]
    assert row.name == name
    assert row.family in ("distribution", "region", "boundary", "compound")
    assert row.map_kind is None or row.map_kind in MAP_KINDS
    assert row.source
    assert get_loss_row(name) is row
    assert isinstance(make_loss(name), row.build)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TAXONOMY)
def test_row_runs_on_a_batch(name: str, logits: Tensor, label: Tensor) -> None:
    loss = make_loss(name, **conventions(name))(logits, packed(label, name))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", TAXONOMY)
def test_a_better_prediction_costs_less(name: str, label: Tensor) -> None:
    loss = make_loss(name, **conventions(name))
    target = packed(label, name)
    right = torch.cat([(label == c).float() for c in range(CLASSES)], 1)
    # The boundary map sums over the classes too, and there too the true class has the least.
    costs = [float(loss(scale * right, target)) for scale in (8.0, 1.0, 0.0, -8.0)]
    if TAXONOMY[name].safe_alone and name != "active_contour":  # whose length likes a flat image
        assert costs == sorted(costs)
    assert costs[0] < costs[-1] or name in INDIFFERENT


@pytest.mark.parametrize("name", TAXONOMY)
def test_row_runs_under_deep_supervision(name: str, logits: Tensor, label: Tensor) -> None:
    target = packed(label, name)
    outputs = torch.stack([logits, 0.5 * logits, logits + 1], dim=1)
    loss = StackedDeepSupervisionLoss(make_loss(name, **conventions(name)))
    listed = monai.losses.DeepSupervisionLoss(make_loss(name, **conventions(name)))
    stacked = loss(outputs, target)
    assert stacked.shape == ()
    torch.testing.assert_close(stacked, listed(list(outputs.unbind(1)), target))
    alone = make_loss(name, **conventions(name))(logits, target)
    assert float(stacked.detach()) != pytest.approx(float(alone.detach()))
    # In evaluation the network gives one output.
    torch.testing.assert_close(loss(logits, target), alone)


@pytest.mark.parametrize("name", WITH_MAP)
def test_a_map_in_the_target_is_read(name: str, logits: Tensor, label: Tensor) -> None:
    loss = make_loss(name, **conventions(name))
    target = packed(label, name)
    torch.testing.assert_close(loss(logits, label), loss(logits, target))
    other = torch.cat([target[:, :1], 3 * target[:, 1:] - 1], 1)
    assert float(loss(logits, other).detach()) != pytest.approx(float(loss(logits, label).detach()))


def test_options_reach_the_loss(logits: Tensor, label: Tensor) -> None:
    once, thrice = (
        make_loss("rrw", **conventions("rrw"), weight=w)(logits, label) for w in (1.0, 3.0)
    )
    torch.testing.assert_close(thrice, 3 * once)
    per_voxel = make_loss("dice_ce", **conventions("dice_ce"), lambda_dice=0.0)(logits, label)
    wanted = torch.nn.functional.cross_entropy(logits, label[:, 0].long())
    torch.testing.assert_close(per_voxel, wanted)


@pytest.mark.parametrize("build", [get_loss_row, make_loss])
@pytest.mark.parametrize(
    ("name", "nearest"), [("RRW", "rrw"), ("dice_cee", "dice_ce"), ("boundry", "boundary")]
)
def test_error_unknown_name_tells_the_nearest(build: object, name: str, nearest: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=r"^loss name: expected one of") as error:
        build(name)
    assert str(error.value).endswith(f"got '{name}'; did you mean '{nearest}'?")
    assert all(known in str(error.value) for known in TAXONOMY)


def test_error_unknown_name_without_a_neighbour() -> None:
    with pytest.raises(ValueError, match=r"got 'zzzzzz'$"):
        get_loss_row("zzzzzz")


def test_error_unknown_option_tells_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^rrw: unknown option 'wieght'; did you mean 'weight'\?"):
        make_loss("rrw", wieght=2.0)
    with pytest.raises(ValueError, match=r"^dice: unknown option 'smooth'.*known: .*smooth_nr"):
        make_loss("dice", smooth=1.0)
