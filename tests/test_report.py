"""What an evaluation leaves: the numbers, the table, the files, the picture."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from monai_segloss.handlers import METRIC_NAMES, segmentation_metrics
from monai_segloss.report import (
    EvaluationReport,
    SaveOverlayd,
    draw_case,
    draw_overlay,
    format_table,
    summarise,
)

NAMES = ("background", "RV", "Myo", "LV")
SHAPE = (20, 16, 5)
SPACING = (1.5, 1.5, 8.0)

SCORES = {
    "dice": np.array([[0.5, 0.9, 1.0], [0.7, 0.8, 1.0], [np.nan, 0.4, 1.0]]),
    "hausdorff_mm": np.array([[10.0, np.nan, 1.0], [np.inf, np.nan, 3.0], [20.0, np.nan, 8.0]]),
}


def strict_json(text: str) -> Any:
    """JSON without the tokens NaN and Infinity, which are none."""

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    return json.loads(text, parse_constant=refuse)


# --------------------------------------------------------------------------- the numbers


def test_summary_leaves_out_what_is_undefined_and_counts_it() -> None:
    summary = summarise(SCORES, NAMES[1:])
    assert list(summary) == ["dice", "hausdorff_mm"]
    rv = summary["dice"]["RV"]
    assert rv == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.1),
        "median": pytest.approx(0.6),
        "cases": 2,
        "undefined": 1,
    }
    assert summary["dice"]["LV"]["std"] == 0
    assert summary["dice"]["mean"] == pytest.approx((0.6 + 0.7 + 1.0) / 3)

    distances = summary["hausdorff_mm"]
    assert distances["RV"]["mean"] == pytest.approx(15.0)
    assert distances["RV"]["undefined"] == 1
    none = {"mean": None, "std": None, "median": None, "cases": 0, "undefined": 3}
    assert distances["Myo"] == none
    assert distances["LV"]["median"] == 3.0
    assert distances["mean"] == pytest.approx((15.0 + 4.0) / 2)
    assert strict_json(json.dumps(summary)) == summary


def test_summary_of_nothing_known() -> None:
    summary = summarise({"dice": np.full((2, 1), np.nan)}, ["RV"])
    assert summary["dice"]["mean"] is None
    assert "undefined" in format_table(summary, ["RV"])


def test_summary_of_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        summarise(SCORES, ["RV", "Myo"])


def test_table() -> None:
    lines = format_table(summarise(SCORES, NAMES[1:]), NAMES[1:]).splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["class", *NAMES[1:], "mean"]
    assert lines[0].split(maxsplit=1)[1] == "Dice           HD (mm)"
    assert "0.600 ± 0.100" in lines[1]
    assert "15.000 ± 5.000" in lines[1]
    assert lines[2].endswith("undefined")
    assert lines[4].split()[1:] == ["0.767", "9.500"]
    assert len({len(line) for line in lines[:5]}) == 1, "columns stand below one another"
    assert lines[5].startswith("left out where undefined (class absent): ")
    for part in ("Dice of RV in 1", "HD (mm) of RV in 1", "HD (mm) of Myo in 3"):
        assert part in lines[5]
    assert "LV" not in lines[5]


def test_table_without_gaps_has_no_footnote() -> None:
    table = format_table(summarise({"dice": np.ones((2, 3))}, NAMES[1:]), NAMES[1:])
    assert len(table.splitlines()) == 5
    assert "undefined" not in table


def test_a_metric_with_one_number_for_all_classes() -> None:
    scores = {**SCORES, "pixel_accuracy": np.array([[0.5], [0.75], [1.0]])}
    summary = summarise(scores, NAMES[1:])
    assert list(summary["pixel_accuracy"]) == ["all", "mean"]
    assert summary["pixel_accuracy"]["mean"] == summary["pixel_accuracy"]["all"]["mean"] == 0.75
    lines = format_table(summary, NAMES[1:]).splitlines()
    assert lines[0].endswith("pixel accuracy")
    assert lines[1].endswith("15.000 ± 5.000" + " " * 18)
    assert lines[4].split() == ["mean", "0.767", "9.500", "0.750"]


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_every_metric_has_a_title(name: str) -> None:
    table = format_table(summarise({name: np.ones((2, 1))}, ["lung"]), ["lung"])
    assert name not in table.split()
    assert "1.000 ± 0.000" in table.splitlines()[1]


# --------------------------------------------------------------------------- the handler


def discs() -> NDArray[np.uint8]:
    """A label with all classes, most of the foreground in slice 3."""
    x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    distance = np.hypot(x - 10, y - 8)
    label = np.zeros(SHAPE, np.uint8)
    for z, radius in ((1, 3), (2, 5), (3, 7)):
        label[distance < radius, z] = 1
        label[distance < 0.7 * radius, z] = 2
        label[distance < 0.4 * radius, z] = 3
    return label


def one_hot(label: NDArray[np.uint8]) -> Tensor:
    index = torch.as_tensor(label, dtype=torch.long)
    return torch.nn.functional.one_hot(index, len(NAMES)).movedim(-1, 0).float()


def evaluate(
    folder: Path, report: EvaluationReport, scores: dict[str, NDArray[Any]] | None = None
) -> None:
    """Run an engine whose cases and scores are made up."""
    scores = SCORES if scores is None else scores
    label = discs()
    batches = []
    for number in range(len(next(iter(scores.values())))):
        path = folder / f"patient{number:03d}_frame01.nii.gz"
        image = itk.image_from_array(np.ascontiguousarray((100.0 + 50 * label).astype("f4").T))
        image.SetSpacing(SPACING)
        itk.imwrite(image, str(path))
        meta = {"filename_or_obj": str(path)}
        channels = one_hot(label)
        item = {"image": MetaTensor(torch.zeros(1, *SHAPE), meta=meta), "label": channels}
        batches.append([{**item, "pred": channels.roll(1, dims=1)}])
    engine = Engine(lambda engine, batch: batch)
    report.attach(engine)
    details = {name: torch.as_tensor(values) for name, values in scores.items()}
    engine.add_event_handler(
        Events.STARTED, lambda engine: setattr(engine.state, "metric_details", details)
    )
    engine.run(batches)


def test_report_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "eval"
    evaluate(tmp_path, EvaluationReport(out, NAMES))
    assert sorted(p.name for p in out.iterdir()) == ["metrics.csv", "metrics.json", "overview.png"]

    report = strict_json((out / "metrics.json").read_text())
    assert report["summary"] == summarise(SCORES, NAMES[1:])
    cases = [f"patient{i:03d}_frame01" for i in range(3)]
    assert [case["case"] for case in report["cases"]] == cases
    assert report["cases"][2]["dice"] == {"RV": None, "Myo": 0.4, "LV": 1.0}
    assert report["cases"][1]["hausdorff_mm"] == {"RV": None, "Myo": None, "LV": 3.0}

    with (out / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["case"] for row in table] == cases
    for metric, values in SCORES.items():
        found = [[float(row[f"{metric}_{name}"]) for name in NAMES[1:]] for row in table]
        np.testing.assert_array_equal(np.array(found), values)

    printed = capsys.readouterr().out
    assert format_table(report["summary"], NAMES[1:]) in printed
    assert str(out) in printed
    assert "3 cases" in printed


def test_report_can_be_run_twice(tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path / "eval", NAMES, figure_case=None)
    evaluate(tmp_path, report)
    evaluate(tmp_path, report, {"dice": np.ones((2, 3))})
    content = strict_json((tmp_path / "eval" / "metrics.json").read_text())
    assert len(content["cases"]) == 2
    assert set(content["summary"]) == {"dice"}


def test_report_draws_the_case_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, title, **kwargs: titles.append(title))
    evaluate(tmp_path, EvaluationReport(tmp_path / "one", NAMES, figure_case=1))
    assert [title.split("/")[-1] for title in titles] == ["patient001_frame01.nii.gz"]
    assert titles[0].count("/") == 1
    for case in (None, 7):
        evaluate(tmp_path, EvaluationReport(tmp_path / str(case), NAMES, figure_case=case))
        assert not (tmp_path / str(case) / "overview.png").exists()
        assert (tmp_path / str(case) / "metrics.json").exists()


def test_report_draws_the_learning_curve(tmp_path: Path) -> None:
    log = tmp_path / "training.csv"
    pictures = []
    for text in (None, "epoch,loss,dice\n1,0.9,\n2,0.5,0.3\n"):
        if text is not None:
            log.write_text(text)
        evaluate(tmp_path, EvaluationReport(tmp_path / "eval", NAMES, training_log=log))
        pictures.append(imread(tmp_path / "eval" / "overview.png"))
    assert pictures[0].shape == pictures[1].shape
    middle = pictures[0].shape[0] * 6 // 10
    differs = (pictures[0] != pictures[1]).any(axis=(1, 2))
    assert differs[middle:].any()


def test_report_of_one_binary_channel_and_pictures(tmp_path: Path) -> None:
    """Masks on the network's smaller grid, whose files are all named alike."""
    mask = torch.zeros(1, 12, 10)
    mask[:, 3:9, 2:7] = 1
    batches = []
    for i in range(2):
        path = tmp_path / f"case{i}" / "image.png"
        path.parent.mkdir()
        itk.imwrite(itk.image_from_array(np.full((20, 24), 90 * i + 20, np.uint8)), str(path))
        image = MetaTensor(torch.rand(1, 12, 10), meta={"filename_or_obj": str(path)})
        batches.append([{"image": image, "label": mask, "pred": mask.roll(1, dims=1)}])
    engine = Engine(lambda engine, batch: batch)
    EvaluationReport(tmp_path / "eval", ["background", "lung"]).attach(engine)
    details = {"iou": torch.tensor([[0.5], [0.75]]), "pixel_accuracy": torch.tensor([[0.9], [1.0]])}
    engine.add_event_handler(
        Events.STARTED, lambda engine: setattr(engine.state, "metric_details", details)
    )
    engine.run(batches)
    content = strict_json((tmp_path / "eval" / "metrics.json").read_text())
    assert [case["case"] for case in content["cases"]] == ["case0/image", "case1/image"]
    assert content["summary"]["iou"]["lung"]["mean"] == 0.625
    assert content["summary"]["pixel_accuracy"]["lung"]["mean"] == pytest.approx(0.95)
    assert imread(tmp_path / "eval" / "overview.png").std() > 0


def _process(rank: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    mask = torch.ones(1, 4, 4)
    batches = []
    for name in (["a", "b", "c"], ["d", "e"])[rank]:
        image = MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": f"{folder}/{name}.png"})
        pred = mask.clone()
        pred[0, 0, : ord(name) - ord("a")] = 0
        batches.append([{"image": image, "label": mask, "pred": pred}])
    engine = Engine(lambda engine, batch: batch)
    metrics = segmentation_metrics(["pixel_accuracy"])
    metrics["pixel_accuracy"].attach(engine, "pixel_accuracy")
    report = EvaluationReport(folder / "eval", ["background", "x"], figure_case=None)
    report.attach(engine)
    engine.add_event_handler(
        Events.STARTED, lambda engine: setattr(engine.state, "metric_details", {})
    )
    engine.run(batches)
    (folder / f"done{rank}").write_text(" ".join(report.cases))
    torch.distributed.destroy_process_group()


def test_report_of_two_processes_is_written_once_about_all_cases(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, tmp_path), nprocs=2)
    content = strict_json((tmp_path / "eval" / "metrics.json").read_text())
    found = {case["case"]: case["pixel_accuracy"]["x"] for case in content["cases"]}
    assert found == {name: 1 - i / 16 for i, name in enumerate("abcde")}
    assert (tmp_path / "done1").read_text() == "a b c d e"


# --------------------------------------------------------------------------- the figure


# Columns to the left, rows to the back, slices to the head: as a picture is drawn.
AXIAL = torch.diag(torch.tensor([-SPACING[0], -SPACING[1], SPACING[2], 1.0], dtype=torch.float64))


def draw(label: NDArray[np.uint8], log: Any = ()) -> Figure:
    affine = AXIAL
    image = MetaTensor(torch.as_tensor(label[None] * 40.0), affine=affine)
    index = torch.as_tensor(label[None])
    return draw_case(image, index, index.roll(1, dims=1), NAMES, "a case", log)


def pixels(figure: Figure) -> NDArray[np.float64]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    buffer.seek(0)
    picture: NDArray[np.float64] = imread(buffer)[..., :3]
    return picture


def test_figure_shows_the_slice_with_most_foreground() -> None:
    label = discs()
    figure = draw(label)
    image, truth, map_, guess = figure.axes[:4]
    titles = [axis.get_title() for axis in (image, truth, map_, guess)]
    assert titles[0] == "image, slice 3"
    assert titles[1] == "label"
    assert titles[2].startswith("RRW map")
    assert titles[3] == "prediction"
    shown = [np.asarray(axis.get_images()[-1].get_array()) for axis in (truth, map_, guess)]
    np.testing.assert_array_equal(shown[0], label[..., 3].T)
    np.testing.assert_array_equal(shown[2], np.roll(label, 1, axis=0)[..., 3].T)
    assert shown[1].shape == shown[0].shape
    assert shown[1].min() >= -1
    assert shown[1].max() < 0
    assert [text.get_text() for text in guess.get_legend().get_texts()] == list(NAMES[1:])
    assert pixels(figure).std() > 0.05
    assert "no training log" in [text.get_text() for text in figure.axes[-1].texts]


def test_figure_shows_the_learning_curve() -> None:
    log = [{"epoch": 1, "loss": 0.9}, {"epoch": 2, "loss": 0.5, "dice": 0.3}]
    figure = draw(discs(), log)
    lines = {line.get_label(): line.get_xydata().tolist() for a in figure.axes for line in a.lines}
    assert lines["training loss"] == [[1, 0.9], [2, 0.5]]
    assert lines["validation Dice"] == [[2, 0.3]]


@pytest.mark.parametrize("value", [0, 3])
def test_figure_of_one_class_alone(value: int) -> None:
    assert pixels(draw(np.full(SHAPE, value, np.uint8))).shape[2] == 3


def test_figure_survives_a_loss_that_is_not_finite() -> None:
    log = [{"epoch": 1, "loss": math.nan}, {"epoch": 2, "loss": math.inf, "dice": math.nan}]
    assert pixels(draw(discs(), log)).std() > 0


def test_figure_of_a_picture_shows_the_channel_asked_for() -> None:
    x, y = np.meshgrid(np.arange(30), np.arange(20), indexing="ij")
    image = MetaTensor(torch.as_tensor(np.stack([x, y, x * y]).astype("f4")))
    label = torch.as_tensor((np.hypot(x - 15, y - 10) < 6)[None].astype(int))
    figure = draw_case(image, label, label.roll(2, dims=2), ["background", "disc"], channel=1)
    assert figure.axes[0].get_title() == "image"
    np.testing.assert_array_equal(np.asarray(figure.axes[0].get_images()[0].get_array()), y.T)
    np.testing.assert_array_equal(
        np.asarray(figure.axes[1].get_images()[1].get_array()), label[0].T
    )
    assert pixels(figure).std() > 0.05
    with pytest.raises(
        ValueError, match=r"^image: expected .* with a channel 3, got shape \(3, 30"
    ):
        draw_case(image, label, label, ["background", "disc"], channel=3)
    with pytest.raises(ValueError, match=r"^prediction: expected the image's grid \(1, 30, 20\)"):
        draw_case(image, label, label[:, 1:], ["background", "disc"])


def test_figure_shows_the_curve_of_the_metric_there_is() -> None:
    figure = draw(discs(), [{"epoch": 1, "loss": 0.9, "iou": 0.4, "stepwise_iou": 0.1}])
    lines = {line.get_label(): line.get_xydata().tolist() for a in figure.axes for line in a.lines}
    assert lines["validation IoU"] == [[1, 0.4]]


# --------------------------------------------------------------------------- the overlay


def test_a_volume_is_drawn_upright_whatever_its_order_in_the_file() -> None:
    label = torch.as_tensor(discs()[None])
    # Slices first and from the head down, then rows from the front, columns from the left.
    turned = label.permute(0, 3, 2, 1).flip(1).flip(3)
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[2, 0], affine[1, 1], affine[0, 2] = -SPACING[2], -SPACING[1], SPACING[0]
    affine[3, 3] = 1
    figures = [
        draw_overlay(MetaTensor(volume * 40.0, affine=where), volume, NAMES)
        for volume, where in ((label, AXIAL), (turned, affine))
    ]
    wanted, found = (
        [np.asarray(image.get_array()) for image in figure.axes[0].get_images()]
        for figure in figures
    )
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert figures[1].axes[0].get_aspect() == figures[0].axes[0].get_aspect()


def test_overlay_shows_the_slice_with_most_foreground() -> None:
    label = torch.as_tensor(discs()[None])
    affine = AXIAL
    figure = draw_overlay(MetaTensor(label * 40.0, affine=affine), label, NAMES, "a case")
    assert figure.axes[0].get_title() == "a case, slice 3"
    grey, classes = (np.asarray(image.get_array()) for image in figure.axes[0].get_images())
    np.testing.assert_array_equal(classes, discs()[..., 3].T)
    np.testing.assert_array_equal(grey, 40 * classes)
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(NAMES[1:])
    windowed = draw_overlay(torch.as_tensor(discs()[None]), label, NAMES, window=(-80, 300))
    assert windowed.axes[0].get_images()[0].get_clim() == (-80, 300)
    nothing = draw_overlay(torch.zeros(1, *SHAPE), torch.zeros(1, *SHAPE), NAMES, "none")
    assert nothing.axes[0].get_title() == "none, slice 2"


@pytest.mark.parametrize("form", ["index", "one-hot"])
def test_save_overlay_is_named_as_the_image_and_reads_its_file(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = discs()
    path = tmp_path / "in" / "case_00001" / "imaging.nii.gz"
    path.parent.mkdir(parents=True)
    values = np.ascontiguousarray((100.0 + 50 * label).astype("f4").T)
    itk.imwrite(itk.image_from_array(values), str(path))
    drawn = []
    monkeypatch.setattr(
        "monai_segloss.report.draw_overlay",
        lambda image, *rest: drawn.append(image) or draw_overlay(image, *rest),
    )
    save = SaveOverlayd("pred", tmp_path / "out", NAMES, data_root_dir=tmp_path / "in")
    image = MetaTensor(torch.zeros(1, 10, 8, 5), meta={"filename_or_obj": str(path)})
    pred = torch.as_tensor(label[None]).float() if form == "index" else one_hot(label)
    data = {"image": image, "pred": pred}
    out = save(data)
    assert out["pred"] is pred
    found = [p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*")]
    assert found == [Path("case_00001/imaging_overlay.png")]
    picture = imread(tmp_path / "out" / found[0])
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 4
    assert float(drawn[0].max()) == 250
    # On another grid than the file's, the network's own image is drawn.
    save({"image": image, "pred": torch.ones(1, 10, 8, 5)})
    assert drawn[1].shape == image.shape
    with pytest.raises(ValueError, match=r"^label: expected the image's grid \(1, 10, 8, 5\), got"):
        save({"image": image, "pred": torch.ones(1, 9, 8, 5)})


def test_save_overlay_of_a_binary_channel(tmp_path: Path) -> None:
    path = tmp_path / "lung.png"
    itk.imwrite(itk.image_from_array(np.full((20, 24), 50, np.uint8)), str(path))
    image = MetaTensor(torch.zeros(1, 24, 20), meta={"filename_or_obj": str(path)})
    mask = torch.zeros(1, 24, 20)
    mask[:, 5:15, 5:15] = 1
    SaveOverlayd("pred", tmp_path / "out", ["background", "lung"])({"image": image, "pred": mask})
    picture = imread(tmp_path / "out" / "lung_overlay.png")
    orange = np.abs(picture[..., :3] - np.array([0.9, 0.62, 0.0]) * 0.6).sum(-1) < 0.2
    assert orange.any()
