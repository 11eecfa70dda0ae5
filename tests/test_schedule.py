"""Weights of a sum over the epochs: the formulas, the handler, and taking up a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.losses import DiceLoss
from torch import Tensor, nn

from monai_segloss.handlers import Checkpointing
from monai_segloss.losses import (
    BoundaryLoss,
    CrossEntropyLoss,
    HausdorffLoss,
    RegionWiseLoss,
    WeightedSumLoss,
    make_loss,
)
from monai_segloss.maps import region_wise_map
from monai_segloss.schedule import SCHEDULES, LossWeightSchedule, equal, get_schedule, gradual

INDEX = {"softmax": True, "to_onehot_y": True}


def sum_of_two() -> WeightedSumLoss:
    return WeightedSumLoss({"dice": DiceLoss(**INDEX), "boundary": BoundaryLoss(**INDEX)})


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def label() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 3, (2, 1, 7, 6), generator=generator).float()


# --------------------------------------------------------------------------- schedules


def test_equal() -> None:
    assert [equal(epoch) for epoch in (0, 7, 1000)] == [(1.0, 1.0)] * 3


@pytest.mark.parametrize(
    ("epoch", "alpha"), [(0, 1.0), (1, 0.99), (50, 0.5), (98, 0.02), (99, 0.01), (500, 0.01)]
)
def test_gradual(epoch: int, alpha: float) -> None:
    assert gradual(epoch) == pytest.approx((alpha, 1 - alpha))
    assert gradual(epoch)[0] == pytest.approx(max(1 - 0.01 * epoch, 0.01))


def test_errors_of_schedules() -> None:
    with pytest.raises(ValueError, match=r"^epoch: expected a number >= 0, got -1"):
        gradual(-1)
    with pytest.raises(ValueError, match=r"^schedule: expected one of equal, gradual, got 'slow'"):
        get_schedule("slow")
    assert get_schedule("gradual") is SCHEDULES["gradual"] is gradual


# --------------------------------------------------------------------------- the sum


def test_sum_and_its_terms(logits: Tensor, label: Tensor) -> None:
    loss = sum_of_two()
    loss.set_weights([0.25, 3.0])
    found = loss(logits, label)
    dice = DiceLoss(**INDEX)(logits, label)
    boundary = BoundaryLoss(**INDEX)(logits, label)
    torch.testing.assert_close(found, 0.25 * dice + 3 * boundary)
    assert found.shape == ()
    assert list(loss.last_terms) == ["dice", "boundary"]
    torch.testing.assert_close(loss.last_terms["boundary"], boundary)
    assert not loss.last_terms["dice"].requires_grad


def test_packed_target_reaches_the_loss_that_reads_it(logits: Tensor, label: Tensor) -> None:
    loss = sum_of_two()
    assert loss.map_kind == "boundary"
    target = torch.cat([label, 2 * region_wise_map(label, "boundary", 3)], dim=1)
    dice = DiceLoss(**INDEX)(logits, label)
    twice = 2 * BoundaryLoss(**INDEX)(logits, label)
    torch.testing.assert_close(loss(logits, target), dice + twice)


def test_two_kinds_of_map_need_a_bare_label(logits: Tensor, label: Tensor) -> None:
    loss = WeightedSumLoss({"rrw": RegionWiseLoss(**INDEX), "boundary": BoundaryLoss(**INDEX)})
    assert loss.map_kind is None
    loss(logits, label)
    packed = torch.cat([label, region_wise_map(label, "boundary", 3)], dim=1)
    with pytest.raises(ValueError, match=r"^target: expected the label alone.*boundary, rrw"):
        loss(logits, packed)


def test_losses_of_one_kind_share_the_map(logits: Tensor, label: Tensor) -> None:
    one_hot = torch.cat([(label == c).float() for c in range(3)], dim=1)
    target = torch.cat([one_hot, region_wise_map(label, "boundary", 3)], dim=1)
    loss = WeightedSumLoss(
        {"boundary": BoundaryLoss(softmax=True), "hausdorff": HausdorffLoss(softmax=True)}
    )
    torch.testing.assert_close(loss(logits, target), loss(logits, one_hot))


def test_errors_of_the_sum() -> None:
    with pytest.raises(ValueError, match=r"^losses: expected at least one loss"):
        WeightedSumLoss({})
    for weights in ([1.0], [1.0, float("nan")], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match=r"^weights: expected 2 finite numbers .*a, b"):
            WeightedSumLoss({"a": nn.L1Loss(), "b": nn.L1Loss()}, weights)


def test_make_loss_from_flat_options(logits: Tensor, label: Tensor) -> None:
    loss = make_loss(
        "weighted_sum",
        losses=["dice", "dice_ce", "boundary"],
        weights=[1.0, 0.5, 0.01],
        boundary_inside="shifted",
        dice_ce_lambda_ce=2.0,
        **INDEX,
    )
    expected = (
        DiceLoss(**INDEX)(logits, label)
        + 0.5 * make_loss("dice_ce", lambda_ce=2.0, **INDEX)(logits, label)
        + 0.01 * BoundaryLoss(inside="shifted", **INDEX)(logits, label)
    )
    torch.testing.assert_close(loss(logits, label), expected)


def test_errors_of_flat_options() -> None:
    with pytest.raises(ValueError, match=r"^losses: expected a sequence of different names"):
        make_loss("weighted_sum", losses="dice")
    with pytest.raises(ValueError, match=r"^losses: expected names of single losses"):
        make_loss("weighted_sum", losses=["weighted_sum"])
    with pytest.raises(ValueError, match=r"^boundary: unknown option 'insid'; did you mean 'ins"):
        make_loss("weighted_sum", boundary_insid="shifted")
    with pytest.raises(ValueError, match=r"^loss name: expected one of .*'dicce'; did you mean"):
        make_loss("weighted_sum", losses=["dicce"])


def test_terms_of_a_compound_loss(logits: Tensor, label: Tensor) -> None:
    loss = make_loss("dice_topk", k=100.0, lambda_topk=0.5, **INDEX)
    found = loss(logits, label)
    terms = loss.last_terms
    assert isinstance(terms, dict)
    torch.testing.assert_close(terms["topk"], CrossEntropyLoss(**INDEX)(logits, label))
    torch.testing.assert_close(found, terms["dice"] + 0.5 * terms["topk"])


# --------------------------------------------------------------------------- the handler


def train(loss: WeightedSumLoss, folder: Path, epochs: int) -> list[list[float]]:
    """The weights at the last step of every epoch that runs."""
    seen: list[list[float]] = []
    model = nn.Linear(1, 1)
    engine = Engine(lambda engine, batch: 0.0)
    Checkpointing(folder, {"model": model, "loss": loss}).attach(engine)
    LossWeightSchedule(loss, "gradual").attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(loss.weights.tolist()))
    engine.run([0, 1], max_epochs=epochs)
    return seen


def test_handler_sets_the_weights_epoch_by_epoch(tmp_path: Path) -> None:
    seen = train(sum_of_two(), tmp_path, 3)
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([gradual(e) for e in range(3)]))


def test_weights_are_restored_from_a_checkpoint(tmp_path: Path) -> None:
    train(sum_of_two(), tmp_path, 2)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.testing.assert_close(saved["loss"]["weights"], torch.tensor(gradual(1)))
    resumed = sum_of_two()
    seen = train(resumed, tmp_path, 4)
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([gradual(2), gradual(3)]))


def test_handler_keeps_its_epoch() -> None:
    loss, other = sum_of_two(), sum_of_two()
    handler, fresh = LossWeightSchedule(loss), LossWeightSchedule(other)
    engine = Engine(lambda engine, batch: 0.0)
    handler.attach(engine)
    engine.run([0], max_epochs=5)
    fresh.load_state_dict(handler.state_dict())
    assert handler.state_dict() == {"epoch": 4}
    assert torch.equal(other.weights, loss.weights)


def test_error_of_a_schedule_for_another_sum() -> None:
    three = WeightedSumLoss({name: nn.L1Loss() for name in "abc"})
    engine = Engine(lambda engine, batch: 0.0)
    engine.logger.disabled = True
    LossWeightSchedule(three, "equal").attach(engine)
    with pytest.raises(ValueError, match=r"^weights: expected 3 finite numbers"):
        engine.run([0], max_epochs=1)
