"""The ignite handlers, on engines that do next to nothing."""

from __future__ import annotations

import io
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import from_engine
from monai.metrics import compute_hausdorff_distance
from torch import Tensor, nn

from monai_segloss.handlers import (
    Checkpointing,
    HausdorffDistanceMM,
    TrainingLog,
    read_log,
    saved_epochs,
)

# MONAI's distances warn where a class is absent; that is what some tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class")


class Toy:
    """A trainer of one linear layer, whose losses are given.

    Attributes:
        losses: the loss each iteration reports, counted over all epochs.
        epochs: the epochs it has trained, in order.
    """

    def __init__(self, losses: Any = None, width: int = 2) -> None:
        torch.manual_seed(0)
        self.losses = losses
        self.epochs: list[int] = []
        self.model = nn.Linear(width, 1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.engine = Engine(self.step)
        self.engine.add_event_handler(
            Events.EPOCH_STARTED, lambda engine: self.epochs.append(engine.state.epoch)
        )

    def step(self, engine: Engine, batch: Any) -> list[dict[str, Tensor]]:
        self.optimizer.zero_grad()
        self.model(torch.ones(1, self.model.in_features)).sum().backward()
        self.optimizer.step()
        value = 1.0 if self.losses is None else self.losses[engine.state.iteration - 1]
        return [{"loss": torch.tensor(value)}]

    def checkpointing(self, folder: Path, **options: Any) -> Checkpointing:
        handler = Checkpointing(
            folder, {"model": self.model, "optimizer": self.optimizer}, **options
        )
        handler.attach(self.engine)
        return handler

    def log(self, path: Path, evaluator: Engine | None = None) -> TrainingLog:
        handler = TrainingLog(path, self.optimizer, evaluator)
        handler.attach(self.engine)
        return handler

    def run(self, max_epochs: int = 2, epoch_length: int = 3) -> None:
        self.engine.run(range(epoch_length), max_epochs=max_epochs, epoch_length=epoch_length)


def weights_of(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --------------------------------------------------------------------------- Checkpointing


def test_a_run_in_two_parts_equals_one_in_one_part(tmp_path: Path) -> None:
    whole = Toy()
    whole.run(max_epochs=5)

    first = Toy()
    first.checkpointing(tmp_path)
    first.run(max_epochs=2)
    second = Toy()
    with torch.no_grad():
        second.model.weight.zero_()
    second.checkpointing(tmp_path)
    second.run(max_epochs=5)

    assert second.epochs == [3, 4, 5]
    assert second.engine.state.iteration == 15
    assert same(weights_of(second.model), weights_of(whole.model))
    assert not same(weights_of(first.model), weights_of(whole.model))


def test_model_file_holds_the_weights_alone(tmp_path: Path) -> None:
    toy = Toy()
    toy.checkpointing(tmp_path)
    toy.run()
    fresh = nn.Linear(2, 1)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert same(weights_of(fresh), weights_of(toy.model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "model.pt"]


def test_saves_every_interval_and_the_last_epoch(tmp_path: Path) -> None:
    toy = Toy()
    handler = toy.checkpointing(tmp_path, interval=3)
    saved: list[int] = []

    def look() -> None:
        there = handler.path.exists()
        saved.append(torch.load(handler.path, weights_only=True)["epoch"] if there else 0)

    toy.engine.add_event_handler(Events.EPOCH_STARTED, look)
    toy.run(max_epochs=7)
    look()
    assert saved == [0, 0, 0, 3, 3, 3, 6, 7]


def test_an_interrupted_save_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy()
    toy.checkpointing(tmp_path)
    toy.run(max_epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole = torch.save

    def half(state: Any, path: Path) -> None:
        whole(state, path)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        toy.run(max_epochs=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_finished_run_warns_and_trains_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toy = Toy()
    toy.checkpointing(tmp_path)
    toy.run(max_epochs=2)
    again = Toy()
    again.checkpointing(tmp_path)
    again.run(max_epochs=2)
    assert again.epochs == []
    assert "already trained for 2 epochs, nothing left to do" in caplog.text
    assert same(weights_of(again.model), weights_of(toy.model))


def test_resume_tells_where_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for epochs in (2, 3):
        toy = Toy()
        toy.checkpointing(tmp_path)
        with caplog.at_level(logging.INFO, logger="monai_segloss"):
            toy.run(max_epochs=epochs)
    assert f"{tmp_path / 'checkpoint.pt'}: resumed after epoch 2" in caplog.text
    assert "nothing left" not in caplog.text


def test_without_resume_it_starts_afresh_and_overwrites(tmp_path: Path) -> None:
    for _ in range(2):
        toy = Toy()
        toy.checkpointing(tmp_path, resume=False, settings={"loss": "rrw"})
        toy.run(max_epochs=2)
        assert toy.epochs == [1, 2]
    other = Toy(width=5)
    other.checkpointing(tmp_path, resume=False, settings={"loss": "dice"})
    other.run(max_epochs=1)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 1


def test_error_no_model() -> None:
    with pytest.raises(
        ValueError, match=r"^save_dict: expected the key 'model', got \['network'\]"
    ):
        Checkpointing("unused", {"network": nn.Linear(1, 1)})


def test_error_other_settings(tmp_path: Path) -> None:
    toy = Toy()
    toy.checkpointing(tmp_path, settings={"loss": "rrw", "width": 4, "same": [1, 2]})
    toy.run()
    other = Toy()
    other.checkpointing(tmp_path, settings={"loss": "dice", "width": 8, "same": [1, 2]})
    with pytest.raises(ValueError, match="made with other settings") as error:
        other.run(max_epochs=4)
    told = str(error.value)
    assert told.startswith(str(tmp_path / "checkpoint.pt"))
    assert "loss was 'rrw', is 'dice'; width was 4, is 8)" in told
    assert "same" not in told.split("(")[1].split(")")[0]
    assert "resume=False" in told


def test_error_another_network(tmp_path: Path) -> None:
    toy = Toy()
    toy.checkpointing(tmp_path)
    toy.run()
    other = Toy(width=3)
    other.checkpointing(tmp_path)
    with pytest.raises(
        ValueError, match=r"(?s)checkpoint\.pt: does not fit this run \(model: .*shape"
    ):
        other.run(max_epochs=4)


def test_error_something_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    toy = Toy()
    toy.checkpointing(tmp_path)
    toy.run()
    other = Toy()
    more = {"model": other.model, "optimizer": other.optimizer, "schedule": other.optimizer}
    Checkpointing(tmp_path, more).attach(other.engine)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: does not fit this run \(schedule: "):
        other.run(max_epochs=4)


@pytest.mark.parametrize("content", ["truncated", b"", b"not a checkpoint"], ids=str)
def test_error_unreadable(content: str | bytes, tmp_path: Path) -> None:
    toy = Toy()
    path = toy.checkpointing(tmp_path).path
    toy.run()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    other = Toy()
    other.checkpointing(tmp_path)
    with pytest.raises(ValueError, match="not readable as a checkpoint") as error:
        other.run(max_epochs=4)
    assert str(error.value).startswith(str(path))
    assert error.value.__cause__ is not None
    assert other.epochs == []


def scheduled(toy: Toy, folder: Path, max_epochs: int, save_first: bool) -> list[float]:
    """Train on a linear schedule over `max_epochs`; the learning rate of each epoch."""
    schedule = torch.optim.lr_scheduler.LambdaLR(toy.optimizer, lambda e: 1 - e / max_epochs)
    rates: list[float] = []
    toy.engine.add_event_handler(
        Events.EPOCH_STARTED, lambda: rates.append(toy.optimizer.param_groups[0]["lr"])
    )
    parts = {"model": toy.model, "optimizer": toy.optimizer, "lr_scheduler": schedule}
    handler = Checkpointing(folder, parts)
    if save_first:
        handler.attach(toy.engine)
        toy.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: schedule.step())
    else:
        toy.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: schedule.step())
        handler.attach(toy.engine)
    toy.run(max_epochs=max_epochs)
    return rates


@pytest.mark.parametrize("save_first", [False, True])
def test_a_longer_run_follows_its_own_schedule(save_first: bool, tmp_path: Path) -> None:
    """Whichever comes first at the end of an epoch, the save or the schedule's step."""
    assert scheduled(Toy(), tmp_path, 2, save_first) == pytest.approx([0.1, 0.05])
    toy = Toy()
    rates = scheduled(toy, tmp_path, 5, save_first)
    assert toy.epochs == [3, 4, 5]
    assert rates == pytest.approx([0.06, 0.04, 0.02])


# --------------------------------------------------------------------------- TrainingLog


def evaluator_of(scores: list[float]) -> Engine:
    """An engine whose runs score what the list says, one after the other."""
    engine = Engine(lambda engine, batch: None)
    left = list(scores)

    def score(engine: Engine) -> None:
        engine.state.metrics = {"dice": torch.tensor(left.pop(0)), "names": ["a", "b"]}

    engine.add_event_handler(Events.COMPLETED, score)
    return engine


def test_log_has_a_row_per_epoch(tmp_path: Path) -> None:
    toy = Toy(losses=[3.0, 2.0, 1.0, 1.0, 0.5, 0.0])
    toy.log(tmp_path / "new" / "log.csv")
    toy.run(max_epochs=2, epoch_length=3)
    text = (tmp_path / "new" / "log.csv").read_text()
    assert text.splitlines()[0] == "epoch,loss,learning_rate,seconds"
    rows = read_log(tmp_path / "new" / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["loss"] for row in rows] == pytest.approx([2.0, 0.5])
    assert [row["learning_rate"] for row in rows] == [0.1, 0.1]
    assert all(row["seconds"] >= 0 for row in rows)


def test_log_is_written_as_epochs_end(tmp_path: Path) -> None:
    toy = Toy()
    toy.log(tmp_path / "log.csv")
    lengths = []
    toy.engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: lengths.append(len(read_log(tmp_path / "log.csv")))
    )
    toy.run(max_epochs=3)
    assert lengths == [1, 2, 3]


def test_log_takes_the_metrics_of_the_epochs_that_were_validated(tmp_path: Path) -> None:
    toy = Toy()
    evaluator = evaluator_of([0.25, 0.75])
    toy.log(tmp_path / "log.csv", evaluator)
    toy.engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: evaluator.run([0]))
    toy.run(max_epochs=5)
    rows = read_log(tmp_path / "log.csv")
    assert [row.get("dice") for row in rows] == [None, 0.25, None, 0.75, None]
    assert all("names" not in row for row in rows)


def test_log_keeps_the_rows_that_the_checkpoint_covers(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    toy = Toy(losses=[float(i) for i in range(15)])
    toy.checkpointing(tmp_path, interval=2)
    toy.log(path)

    def stop(engine: Engine) -> None:
        if engine.state.epoch == 4:
            raise RuntimeError("power cut")

    toy.engine.add_event_handler(Events.EPOCH_STARTED, stop)
    with pytest.raises(RuntimeError, match="power cut"):
        toy.run(max_epochs=5)
    first = read_log(path)
    assert [row["epoch"] for row in first] == [1, 2, 3]

    again = Toy(losses=[-1.0] * 15)
    again.checkpointing(tmp_path, interval=2)
    again.log(path)
    again.run(max_epochs=5)
    rows = read_log(path)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[:2] == first[:2]
    assert [row["loss"] for row in rows[2:]] == [-1.0, -1.0, -1.0]


def test_log_of_a_fresh_run_begins_anew(tmp_path: Path) -> None:
    for value, epochs in ((1.0, 3), (2.0, 2)):
        toy = Toy(losses=[value] * 9)
        toy.log(tmp_path / "log.csv")
        toy.run(max_epochs=epochs)
    assert [row["loss"] for row in read_log(tmp_path / "log.csv")] == [2.0, 2.0]


def test_no_bar_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    toy = Toy(losses=[0.5] * 6)
    toy.log(tmp_path / "log.csv")
    with caplog.at_level(logging.INFO, logger="monai_segloss"):
        toy.run(max_epochs=2)
    captured = capsys.readouterr()
    assert "training" not in captured.err + captured.out
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in lines if line.startswith("epoch")] == [
        "epoch 1/2: loss 0.5000",
        "epoch 2/2: loss 0.5000",
    ]


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    toy = Toy(losses=[0.5] * 6)
    toy.log(tmp_path / "log.csv")
    toy.run(max_epochs=2)
    assert "6/6" in terminal.getvalue()
    assert "loss=0.5000" in terminal.getvalue()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("epoch_length", [50, 5])
def test_error_when_the_loss_stays_not_finite(
    bad: float, epoch_length: int, tmp_path: Path
) -> None:
    """However short the epochs are."""
    toy = Toy(losses=[1.0, *[bad] * 99])
    toy.log(tmp_path / "log.csv")
    with pytest.raises(ValueError, match=rf"^loss: expected finite values, got {bad} 20 times"):
        toy.run(max_epochs=100 // epoch_length, epoch_length=epoch_length)
    assert toy.engine.state.iteration == 21


def test_a_loss_that_recovers_is_no_error(tmp_path: Path) -> None:
    toy = Toy(losses=([math.nan] * 19 + [1.0]) * 3)
    toy.log(tmp_path / "log.csv")
    toy.run(max_epochs=1, epoch_length=60)
    assert toy.engine.state.iteration == 60


def test_an_error_while_training_is_raised_as_it_is(tmp_path: Path) -> None:
    toy = Toy(losses=[1.0])
    toy.log(tmp_path / "log.csv")
    with pytest.raises(IndexError):
        toy.run()


# --------------------------------------------------------------------------- HausdorffDistanceMM

SPACING = (1.0, 2.0, 5.0)


def one_hot(*voxels: tuple[int, tuple[int, int, int]], classes: int = 3) -> Tensor:
    """One-hot ``(C, 8, 7, 6)``: background, and single voxels of a class."""
    index = torch.zeros(8, 7, 6, dtype=torch.long)
    for value, place in voxels:
        index[place] = value
    return torch.nn.functional.one_hot(index, classes).movedim(-1, 0).float()


def measure(
    cases: list[tuple[Tensor, Tensor]], spacing: Any = SPACING, turn: Any = None, **options: Any
) -> tuple[float, Tensor]:
    """The metric over all cases, and its details ``(cases, classes)``, as an evaluator gets it."""
    affine = torch.eye(4, dtype=torch.float64)
    rotation = torch.eye(3, dtype=torch.float64) if turn is None else torch.as_tensor(turn)
    affine[:3, :3] = rotation @ torch.diag(torch.as_tensor(spacing, dtype=torch.float64))
    batches = [
        [{"pred": MetaTensor(p, affine=affine), "label": MetaTensor(y, affine=affine)}]
        for p, y in cases
    ]
    engine = Engine(lambda engine, batch: batch)
    metric = HausdorffDistanceMM(
        include_background=False, output_transform=from_engine(["pred", "label"]), **options
    )
    metric.attach(engine, "hd")
    # MONAI's engines keep this in their state.
    engine.add_event_handler(
        Events.STARTED, lambda engine: setattr(engine.state, "metric_details", {})
    )
    state: Any = engine.run(batches)
    return float(state.metrics["hd"]), state.metric_details["hd"]


def test_distance_is_in_mm_along_each_axis() -> None:
    start = one_hot((1, (1, 1, 1)), (2, (6, 6, 4)))
    ends = {(4, 1, 1): 3.0, (1, 4, 1): 6.0, (1, 1, 3): 10.0, (4, 3, 2): 50.0**0.5}
    cases = [(one_hot((1, end), (2, (6, 6, 4))), start) for end in ends]
    mean, details = measure(cases)
    assert details.shape == (4, 2)
    assert details[:, 0].tolist() == pytest.approx(list(ends.values()))
    assert details[:, 1].tolist() == [0, 0, 0, 0]
    assert mean == pytest.approx(sum(ends.values()) / 8)


def test_distance_is_that_of_the_farther_side() -> None:
    label = one_hot((1, (1, 1, 1)), (2, (0, 0, 0)))
    guess = one_hot((1, (1, 1, 1)), (1, (1, 1, 4)), (2, (0, 0, 0)))
    for case in ((guess, label), (label, guess)):
        assert measure([case])[1][0, 0] == pytest.approx(15.0)


def test_spacing_of_a_turned_image_is_read_from_its_affine() -> None:
    a = np.deg2rad(40)
    turn = [[np.cos(a), -np.sin(a), 0.0], [np.sin(a), np.cos(a), 0.0], [0.0, 0.0, 1.0]]
    case = (one_hot((1, (4, 3, 2)), (2, (0, 0, 0))), one_hot((1, (1, 1, 1)), (2, (0, 0, 0))))
    assert measure([case], turn=turn)[1][0, 0] == pytest.approx(50.0**0.5)


@pytest.mark.parametrize("percentile", [None, 95])
def test_distance_equals_monais_with_spacing(percentile: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(0, 3, (3, 2, 8, 7, 6), generator=generator)
    both = torch.nn.functional.one_hot(index, 3).movedim(-1, 2).float()
    _, details = measure([(p, y) for p, y in both], percentile=percentile)
    wanted = compute_hausdorff_distance(
        both[:, 0], both[:, 1], percentile=percentile, spacing=SPACING
    )
    torch.testing.assert_close(details.double(), wanted.double(), check_dtype=False)
    in_voxels = compute_hausdorff_distance(both[:, 0], both[:, 1], percentile=percentile)
    assert not torch.allclose(details.double(), in_voxels.double())


def test_cases_may_differ_in_size_and_spacing() -> None:
    small = [t[:, :6, :5] for t in (one_hot((1, (1, 1, 1))), one_hot((1, (4, 1, 1))))]
    affines = [torch.diag(torch.tensor([s, 1.0, 1.0, 1.0])).double() for s in (1.0, 2.0)]
    metric = HausdorffDistanceMM(include_background=False)
    for affine, (p, y) in zip(
        affines, ((one_hot((1, (1, 1, 1))), one_hot((1, (4, 1, 1)))), small), strict=True
    ):
        metric.update([[MetaTensor(p, affine=affine)], [MetaTensor(y, affine=affine)]])
    buffer: Any = metric.metric_fn.get_buffer()
    assert buffer[:, 0].tolist() == pytest.approx([3.0, 6.0])


def test_absent_classes_are_left_out_of_the_mean() -> None:
    both = (one_hot((1, (1, 1, 1)), (2, (1, 1, 1))), one_hot((1, (1, 1, 3))))
    neither = (one_hot((1, (1, 1, 1))), one_hot((1, (1, 1, 2))))
    mean, details = measure([neither])
    assert details[0, 0] == pytest.approx(5.0)
    assert math.isnan(details[0, 1])
    assert mean == pytest.approx(5.0)
    # Absent from the label alone, or from the prediction alone: no number either.
    for case in (both, both[::-1]):
        _, details = measure([case])
        assert not math.isfinite(details[0, 1])


def test_saved_epochs(tmp_path: Path) -> None:
    assert saved_epochs(tmp_path) == 0
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pt")
    assert saved_epochs(tmp_path) == 3
    assert saved_epochs(tmp_path, resume=False) == 0
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    assert saved_epochs(tmp_path) == 0
