"""What an evaluation leaves behind: a table, files other tools read, and a picture."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from monai.transforms import LoadImage
from torch import Tensor

from monai_segloss.files import replacing
from monai_segloss.handlers import read_log
from monai_segloss.maps import region_wise_map

__all__ = ["EvaluationReport", "draw_case", "format_table", "summarise"]

logger = logging.getLogger(__name__)

_METRIC_TITLES = {"dice": "Dice", "hausdorff_mm": "HD (mm)", "hausdorff95_mm": "HD95 (mm)"}
# Colour-blind safe (Okabe & Ito).
_CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2")


def summarise(scores: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, Any]:
    """Per metric and class: mean, standard deviation, median, and over how many cases.

    Args:
        scores: metric name -> array ``(cases, classes)``. NaN and infinity mean undefined: the
            class is absent from label, prediction or both.
        class_names: names of the columns.

    Returns:
        ``{metric: {class: {"mean", "std", "median", "cases", "undefined"}, "mean": number}}``;
        undefined scores are left out and counted; a metric's own mean is that of its classes.
    """
    summary: dict[str, Any] = {}
    for metric, values in scores.items():
        rows: dict[str, Any] = {}
        for name, column in zip(class_names, np.asarray(values, dtype=float).T, strict=True):
            known = column[np.isfinite(column)]
            rows[name] = {
                "mean": _number(known.mean()) if known.size else None,
                "std": _number(known.std()) if known.size else None,
                "median": _number(np.median(known)) if known.size else None,
                "cases": int(known.size),
                "undefined": int(column.size - known.size),
            }
        means = [row["mean"] for row in rows.values() if row["mean"] is not None]
        summary[metric] = {**rows, "mean": _number(np.mean(means)) if means else None}
    return summary


def format_table(summary: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """The summary as a plain-text table, mean ± standard deviation, one row per class."""
    titles = [_METRIC_TITLES.get(metric, metric) for metric in summary]
    lines = [f"{'class':<12}" + "".join(f"{title:>18}" for title in titles)]
    for name in class_names:
        cells = []
        for metric in summary:
            row = summary[metric][name]
            cells.append(
                "undefined" if row["mean"] is None else f"{row['mean']:.3f} ± {row['std']:.3f}"
            )
        lines.append(f"{name:<12}" + "".join(f"{cell:>18}" for cell in cells))
    means = [summary[metric]["mean"] for metric in summary]
    cells = ["undefined" if mean is None else f"{mean:.3f}" for mean in means]
    lines.append(f"{'mean':<12}" + "".join(f"{cell:>18}" for cell in cells))
    missing = {
        f"{_METRIC_TITLES.get(metric, metric)} of {name} in {summary[metric][name]['undefined']}"
        for metric in summary
        for name in class_names
        if summary[metric][name]["undefined"]
    }
    if missing:
        lines.append(f"left out where undefined (class absent): {', '.join(sorted(missing))} cases")
    return "\n".join(lines)


class EvaluationReport:
    """Ignite handler that turns an evaluation into a table, files and a figure.

    Writes ``metrics.json`` (summary and every case), ``metrics.csv`` (every case), and
    ``overview.png`` (image, label, RRW map, prediction, learning curve) to ``output_dir``, and
    prints the table. Expects an evaluator that processes one case at a time, whose metrics keep
    their details (MONAI's do) and whose output holds ``image``, ``label`` and ``pred``, the last
    two one-hot in the image's own grid.

    Args:
        output_dir: where to write; made if missing.
        class_names: names of all classes, background first.
        training_log: CSV of :class:`monai_segloss.handlers.TrainingLog` to draw, if it exists.
        figure_case: which case to draw, counted from 0; None draws none.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        class_names: Sequence[str],
        training_log: str | os.PathLike[str] | None = None,
        figure_case: int | None = 0,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.training_log = None if training_log is None else Path(training_log)
        self.figure_case = figure_case
        self.cases: list[str] = []
        self._drawn: tuple[str, Tensor, Tensor] | None = None

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self.cases, self._drawn = [], None

    def _iteration_completed(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            path = str(item["image"].meta["filename_or_obj"])
            if len(self.cases) == self.figure_case:
                label, prediction = (item[key].argmax(0, keepdim=True) for key in ("label", "pred"))
                self._drawn = (path, label.cpu(), prediction.cpu())
            self.cases.append(Path(path).name.removesuffix(".gz").removesuffix(".nii"))
            logger.info("evaluated %d: %s", len(self.cases), self.cases[-1])

    def _completed(self, engine: Engine) -> None:
        foreground = self.class_names[1:]
        state: Any = engine.state  # MONAI adds metric_details to ignite's state
        scores = {
            name: details.detach().cpu().double().numpy()
            for name, details in state.metric_details.items()
        }
        summary = summarise(scores, foreground)
        rows = [
            {
                "case": case,
                **{
                    metric: dict(zip(foreground, map(_number, values[i]), strict=True))
                    for metric, values in scores.items()
                },
            }
            for i, case in enumerate(self.cases)
        ]
        with replacing(self.output_dir / "metrics.json") as partial:
            partial.write_text(json.dumps({"summary": summary, "cases": rows}, indent=2) + "\n")
        with (
            replacing(self.output_dir / "metrics.csv") as partial,
            partial.open("w", newline="") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["case", *(f"{m}_{c}" for m in scores for c in foreground)])
            for i, case in enumerate(self.cases):
                writer.writerow([case, *(v for values in scores.values() for v in values[i])])
        print(f"\n{len(self.cases)} cases\n{format_table(summary, foreground)}")
        written = "metrics.json, metrics.csv"
        if self._drawn is not None:
            self._draw(*self._drawn)
            written += ", overview.png"
        print(f"written to {self.output_dir}: {written}\n")

    def _draw(self, path: str, label: Tensor, prediction: Tensor) -> None:
        image = LoadImage(reader="ITKReader", ensure_channel_first=True)(path)
        log = self.training_log
        rows = read_log(log) if log is not None and log.exists() else []
        figure = draw_case(image, label, prediction, self.class_names, self.cases_title(path), rows)
        with replacing(self.output_dir / "overview.png") as partial:
            figure.savefig(partial, dpi=130)

    def cases_title(self, path: str) -> str:
        """Title of the figure: the case's file name."""
        return Path(path).name


def draw_case(
    image: Tensor,
    label: Tensor,
    prediction: Tensor,
    class_names: Sequence[str],
    title: str = "",
    log: Sequence[Mapping[str, Any]] = (),
) -> Figure:
    """Image, label, RRW map, prediction, and learning curve in one figure.

    Args:
        image: ``(1, H, W, D)`` MetaTensor; its affine gives the voxel size.
        label: class index ``(1, H, W, D)``.
        prediction: class index ``(1, H, W, D)``.
        class_names: names of all classes, background first.
        title: what it shows.
        log: rows of a training log, see :func:`monai_segloss.handlers.read_log`.

    Returns:
        The figure, of the slice that holds the most foreground.
    """
    spacing = [float(v) for v in image.pixdim[:3]]  # type: ignore[attr-defined]
    index = label.long().reshape(1, *label.shape)
    map_ = region_wise_map(index, "rrw", len(class_names), spacing)[0, 0]
    position = int((label[0] > 0).sum(dim=(0, 1)).argmax())
    # Arrays are (x, y); pictures want rows first.
    picture, truth, guess, values = (
        np.asarray(torch.as_tensor(volume)[..., position]).T
        for volume in (image[0], label[0], prediction[0], map_)
    )
    figure = Figure(figsize=(14, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(1.35, 1))
    axes = [figure.add_subplot(grid[0, i]) for i in range(4)]
    grey: dict[str, Any] = {"cmap": "gray", "vmin": picture.min()}
    grey["vmax"] = np.quantile(picture, 0.995)
    aspect = spacing[1] / spacing[0]
    axes[0].imshow(picture, aspect=aspect, **grey)
    axes[0].set_title(f"image, slice {position}")
    foreground = [_CLASS_COLOURS[i % len(_CLASS_COLOURS)] for i in range(len(class_names) - 1)]
    colours = ListedColormap(["#00000000", *foreground])
    for axis, labels, name in ((axes[1], truth, "label"), (axes[3], guess, "prediction")):
        axis.imshow(picture, aspect=aspect, **grey)
        axis.imshow(
            labels,
            aspect=aspect,
            cmap=colours,
            vmin=0,
            vmax=len(class_names) - 1,
            alpha=np.where(labels > 0, 0.6, 0.0),
            interpolation="nearest",
        )
        axis.set_title(name)
    shown = axes[2].imshow(values, aspect=aspect, cmap="viridis", vmin=-1, vmax=0)
    axes[2].set_title("RRW map at the true class (+1 off it)")
    figure.colorbar(shown, ax=axes[2], shrink=0.7)
    for axis in axes:
        axis.set_axis_off()
    for colour, name in zip(foreground, class_names[1:], strict=True):
        axes[3].plot([], [], "s", color=colour, label=name)
    axes[3].legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncol=4, frameon=False)
    _draw_curve(figure.add_subplot(grid[1, :]), log)
    figure.suptitle(title)
    return figure


def _draw_curve(axis: Axes, log: Sequence[Mapping[str, Any]]) -> None:
    if not log:
        axis.text(0.5, 0.5, "no training log", ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    epochs = [row["epoch"] for row in log]
    axis.plot(epochs, [row["loss"] for row in log], color="#0072B2", label="training loss")
    axis.set_xlabel("epoch")
    axis.set_ylabel("training loss")
    axis.grid(alpha=0.3)
    validated = [row for row in log if "dice" in row]
    if validated:
        right = axis.twinx()
        right.plot(
            [row["epoch"] for row in validated],
            [row["dice"] for row in validated],
            "o-",
            color="#D55E00",
            label="validation Dice",
        )
        right.set_ylim(0, 1)
        right.set_ylabel("validation Dice")
        right.legend(loc="lower right")
    axis.legend(loc="upper right")


def _number(value: Any) -> float | None:
    """A float for JSON, which knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None
