"""What an evaluation leaves behind: a table, files other tools read, and a picture."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from monai.config import KeysCollection
from monai.data import FolderLayout, MetaTensor
from monai.transforms import LoadImage, MapTransform, Orientation
from monai.utils import string_list_all_gather
from torch import Tensor

from monai_segloss.files import replacing
from monai_segloss.handlers import read_log
from monai_segloss.maps import region_wise_map

__all__ = [
    "BelowLayout",
    "EvaluationReport",
    "SaveOverlayD",
    "SaveOverlayDict",
    "SaveOverlayd",
    "draw_case",
    "draw_overlay",
    "format_table",
    "summarise",
]

logger = logging.getLogger(__name__)

_METRIC_TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "hausdorff_mm": "HD (mm)",
    "hausdorff95_mm": "HD95 (mm)",
    "surface_dice": "surface Dice",
    "pixel_accuracy": "pixel accuracy",
    "stepwise_iou": "stepwise IoU",
}
# The row of a metric that has one number for all classes together.
_ALL = "all"
# Colour-blind safe (Okabe & Ito).
_CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2")


def summarise(scores: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, Any]:
    """Per metric and class: mean, standard deviation, median, and over how many cases.

    Args:
        scores: metric name -> array ``(cases, classes)``, or ``(cases, 1)`` of a metric with one
            number for all classes together. NaN and infinity mean undefined: the class is absent
            from label, prediction or both.
        class_names: names of the columns.

    Returns:
        ``{metric: {class: {"mean", "std", "median", "cases", "undefined"}, "mean": number}}``;
        undefined scores are left out and counted; a metric's own mean is that of its classes. The
        one class of a metric for all together is ``"all"``.

    Raises:
        ValueError: if the columns are neither one nor as many as the classes.
    """
    summary: dict[str, Any] = {}
    for metric, values in scores.items():
        rows: dict[str, Any] = {}
        columns = np.asarray(values, dtype=float).T
        for name, column in zip(_column_names(values, class_names), columns, strict=True):
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
            row = summary[metric].get(name)
            if row is None:
                cells.append("")
            elif row["mean"] is None:
                cells.append("undefined")
            else:
                cells.append(f"{row['mean']:.3f} ± {row['std']:.3f}")
        lines.append(f"{name:<12}" + "".join(f"{cell:>18}" for cell in cells))
    means = [summary[metric]["mean"] for metric in summary]
    cells = ["undefined" if mean is None else f"{mean:.3f}" for mean in means]
    lines.append(f"{'mean':<12}" + "".join(f"{cell:>18}" for cell in cells))
    missing = {
        f"{_METRIC_TITLES.get(metric, metric)} of {name} in {summary[metric][name]['undefined']}"
        for metric in summary
        for name in class_names
        if summary[metric].get(name, {}).get("undefined")
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
    two one-hot or one binary channel, on one grid, of volumes or pictures. Of several processes the
    first one writes, about the cases of all.

    Args:
        output_dir: where to write; made if missing.
        class_names: names of all classes, background first.
        training_log: CSV of :class:`monai_segloss.handlers.TrainingLog` to draw, if it exists.
        figure_case: which case to draw, counted from 0 (of the first process); None draws none.
        figure_channel: which channel of an image of several to draw.
        figure_window: the values drawn black and white, e.g. ``(-80, 300)`` for a CT; by default
            the lowest and the 99.5th percentile of the slice.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        class_names: Sequence[str],
        training_log: str | os.PathLike[str] | None = None,
        figure_case: int | None = 0,
        figure_channel: int = 0,
        figure_window: Sequence[float] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.training_log = None if training_log is None else Path(training_log)
        self.figure_case = figure_case
        self.figure_channel = figure_channel
        self.figure_window = figure_window
        self.cases: list[str] = []
        self._paths: list[str] = []
        self._drawn: tuple[Tensor, Tensor, Tensor] | None = None

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self.cases, self._paths, self._drawn = [], [], None

    def _iteration_completed(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            if len(self._paths) == self.figure_case:
                label, prediction = (_class_index(item[key]).cpu() for key in ("label", "pred"))
                self._drawn = (item["image"].cpu(), label, prediction)
            self._paths.append(str(item["image"].meta["filename_or_obj"]))
            logger.info("evaluated %d: %s", len(self._paths), self._paths[-1])

    def _completed(self, engine: Engine) -> None:
        self.cases = _case_names(string_list_all_gather(self._paths))
        if idist.get_rank() > 0:
            return
        foreground = self.class_names[1:]
        state: Any = engine.state  # MONAI adds metric_details to ignite's state
        scores = {
            name: details.detach().cpu().double().numpy()
            for name, details in state.metric_details.items()
        }
        columns = {name: _column_names(values, foreground) for name, values in scores.items()}
        summary = summarise(scores, foreground)
        rows = [
            {
                "case": case,
                **{
                    metric: dict(zip(columns[metric], map(_number, values[i]), strict=True))
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
            writer.writerow(["case", *(f"{m}_{c}" for m in scores for c in columns[m])])
            for i, case in enumerate(self.cases):
                writer.writerow([case, *(v for values in scores.values() for v in values[i])])
        print(f"\n{len(self.cases)} cases\n{format_table(summary, foreground)}")
        written = "metrics.json, metrics.csv"
        if self._drawn is not None:
            self._draw(*self._drawn)
            written += ", overview.png"
        print(f"written to {self.output_dir}: {written}\n")

    def _draw(self, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        log = self.training_log
        rows = read_log(log) if log is not None and log.exists() else []
        figure = draw_case(
            _picture_of(image, label),
            label,
            prediction,
            self.class_names,
            self.cases_title(_file_of(image)),
            rows,
            self.figure_channel,
            self.figure_window,
        )
        with replacing(self.output_dir / "overview.png") as partial:
            figure.savefig(partial, dpi=130)

    def cases_title(self, path: str) -> str:
        """Title of the figure: the case's folder and file, as some layouts name all alike."""
        return _last_two(path)


def draw_case(
    image: Tensor,
    label: Tensor,
    prediction: Tensor,
    class_names: Sequence[str],
    title: str = "",
    log: Sequence[Mapping[str, Any]] = (),
    channel: int = 0,
    window: Sequence[float] | None = None,
) -> Figure:
    """Image, label, RRW map, prediction, and learning curve in one figure.

    Args:
        image: ``(channels, H, W[, D])`` MetaTensor; its affine gives the voxel size.
        label: class index ``(1, H, W[, D])``.
        prediction: class index ``(1, H, W[, D])``.
        class_names: names of all classes, background first.
        title: what it shows.
        log: rows of a training log, see :func:`monai_segloss.handlers.read_log`.
        channel: which channel of the image to draw.
        window: the values drawn black and white, e.g. ``(-80, 300)`` for a CT; by default the
            lowest and the 99.5th percentile of the slice.

    Returns:
        The figure, of a volume's axial slice that holds the most foreground.

    Raises:
        ValueError: if the image has no such channel, or other shapes do not fit it.
    """
    _check_drawn(image, channel, label=label, prediction=prediction)
    label, prediction, image = (_radiological(v, image) for v in (label, prediction, image))
    spacing = _spacing_of(image)
    index = label.long().reshape(1, *label.shape)
    map_ = region_wise_map(index, "rrw", len(class_names), spacing)[0, 0]
    position = _best_slice(label[0])
    picture, truth, guess, values = (
        _rows_first(volume, position) for volume in (image[channel], label[0], prediction[0], map_)
    )
    figure = Figure(figsize=(14, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(1.35, 1))
    axes = [figure.add_subplot(grid[0, i]) for i in range(4)]
    aspect = spacing[1] / spacing[0]
    _draw_grey(axes[0], picture, aspect, window)
    axes[0].set_title("image" if position is None else f"image, slice {position}")
    for axis, labels, name in ((axes[1], truth, "label"), (axes[3], guess, "prediction")):
        _draw_grey(axis, picture, aspect, window)
        _draw_classes(axis, labels, len(class_names), aspect)
        axis.set_title(name)
    shown = axes[2].imshow(values, aspect=aspect, cmap="viridis", vmin=-1, vmax=0)
    axes[2].set_title("RRW map (+1 off the true class)")
    figure.colorbar(shown, ax=axes[2], shrink=0.7)
    for axis in axes:
        axis.set_axis_off()
    _draw_legend(axes[3], class_names)
    _draw_curve(figure.add_subplot(grid[1, :]), log)
    figure.suptitle(title)
    return figure


def draw_overlay(
    image: Tensor,
    label: Tensor,
    class_names: Sequence[str],
    title: str = "",
    channel: int = 0,
    window: Sequence[float] | None = None,
) -> Figure:
    """An image with a label drawn over it.

    Args:
        image: ``(channels, H, W[, D])`` MetaTensor; its affine gives the voxel size.
        label: class index ``(1, H, W[, D])``.
        class_names: names of all classes, background first.
        title: what it shows.
        channel: which channel of the image to draw.
        window: the values drawn black and white, e.g. ``(-80, 300)`` for a CT; by default the
            lowest and the 99.5th percentile of the slice.

    Returns:
        The figure, of a volume's axial slice that holds the most foreground.

    Raises:
        ValueError: if the image has no such channel, or the label's shape does not fit it.
    """
    _check_drawn(image, channel, label=label)
    label, image = _radiological(label, image), _radiological(image, image)
    position = _best_slice(label[0])
    picture, labels = (_rows_first(volume, position) for volume in (image[channel], label[0]))
    spacing = _spacing_of(image)
    height, width = picture.shape[0] * spacing[1], picture.shape[1] * spacing[0]
    longest = max(height, width)
    figure = Figure(
        figsize=(max(3.0, 6 * width / longest), 6 * height / longest + 0.9), layout="constrained"
    )
    axis = figure.add_subplot()
    _draw_grey(axis, picture, spacing[1] / spacing[0], window)
    _draw_classes(axis, labels, len(class_names), spacing[1] / spacing[0])
    axis.set_title(title if position is None else f"{title}, slice {position}", fontsize="small")
    axis.set_axis_off()
    _draw_legend(axis, class_names)
    return figure


class BelowLayout(FolderLayout):
    """MONAI's layout, but nothing is ever written above ``output_dir``.

    MONAI's repeats the way from ``data_root_dir`` to a file, dots and all: of a file that does not
    lie below it the output would land anywhere.
    """

    def filename(self, subject: Any = "subject", idx: Any = None, **kwargs: Any) -> Any:
        """The path of a file's output."""
        root = self.data_root_dir
        file = Path(os.path.abspath(subject))
        if root and not file.is_relative_to(os.path.abspath(Path(root).expanduser())):
            self.data_root_dir = ""
        elif root:
            self.data_root_dir = os.path.abspath(Path(root).expanduser())
        try:
            return super().filename(str(file), idx, **kwargs)
        finally:
            self.data_root_dir = root


class SaveOverlayd(MapTransform):
    """Write a picture of each case: its image with the predicted label drawn over it, as PNG.

    It stands after the prediction was brought back to the image's own grid and made discrete,
    beside ``SaveImaged``, and names files as that does. The image is read from its own file again,
    since the network's is normalised and resampled; if the file lies on another grid than the
    prediction, the network's image is drawn. The data passes unchanged.

    Args:
        keys: keys of predictions: class index, one-hot or one binary channel,
            ``(channels, H, W[, D])``.
        output_dir: where to write; made if missing.
        class_names: names of all classes, background first.
        image_key: the key of the image.
        output_postfix: ends the file's name, before ``.png``.
        data_root_dir: folders below it are repeated in ``output_dir``, for layouts whose files
            are named alike; as of ``SaveImaged``.
        channel: which channel of an image of several to draw.
        window: the values drawn black and white, e.g. ``(-80, 300)`` for a CT; by default the
            lowest and the 99.5th percentile of the slice.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike[str],
        class_names: Sequence[str],
        image_key: str = "image",
        output_postfix: str = "overlay",
        data_root_dir: str | os.PathLike[str] = "",
        channel: int = 0,
        window: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.class_names = list(class_names)
        self.image_key = image_key
        self.channel = channel
        self.window = window
        self.layout = BelowLayout(
            output_dir, output_postfix, ".png", makedirs=True, data_root_dir=data_root_dir
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            label = _class_index(out[key], len(self.class_names)).cpu()
            image = out[self.image_key].cpu()
            file = _file_of(image)
            figure = draw_overlay(
                _picture_of(image, label),
                label,
                self.class_names,
                _last_two(file),
                self.channel,
                self.window,
            )
            with replacing(self.layout.filename(file)) as partial:
                figure.savefig(partial, dpi=130)
        return out


def _class_index(channels: Tensor, num_classes: int | None = None) -> Tensor:
    """Class index ``(1, *spatial)`` of a one-hot tensor, a binary channel or an index."""
    if channels.shape[0] > 1:
        return torch.as_tensor(channels.argmax(0, keepdim=True))
    if num_classes is None or num_classes == 2:
        return torch.as_tensor(channels > 0.5).long()
    return torch.as_tensor(channels).long()


def _picture_of(image: Tensor, label: Tensor) -> Tensor:
    """The image of the file that a tensor came from, if the label lies on its grid."""
    picture: Tensor = LoadImage(reader="ITKReader", ensure_channel_first=True)(_file_of(image))
    return picture if picture.shape[1:] == label.shape[1:] else image


def _file_of(image: Any) -> str:
    return str(image.meta["filename_or_obj"])


def _last_two(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def _case_names(paths: Sequence[str]) -> list[str]:
    """File names without their suffixes; where they are alike, with the folders that differ."""
    whole = [path.removesuffix(".gz").removesuffix(".nii").removesuffix(".png") for path in paths]
    names = [Path(path).name for path in whole]
    if len(set(names)) == len(set(paths)):
        return names
    common = os.path.commonpath(whole)
    return [Path(os.path.relpath(path, common)).as_posix() for path in whole]


def _column_names(values: Any, class_names: Sequence[str]) -> list[str]:
    """Names of a metric's columns."""
    if np.shape(values)[1] == 1 and len(class_names) != 1:
        return [_ALL]
    return list(class_names)


def _check_drawn(image: Tensor, channel: int, **labels: Tensor) -> None:
    if image.ndim not in (3, 4) or not 0 <= channel < image.shape[0]:
        raise ValueError(
            f"image: expected (channels, H, W[, D]) with a channel {channel}, "
            f"got shape {tuple(image.shape)}"
        )
    for name, label in labels.items():
        if tuple(label.shape) != (1, *image.shape[1:]):
            raise ValueError(
                f"{name}: expected the image's grid {(1, *image.shape[1:])}, "
                f"got shape {tuple(label.shape)}"
            )


def _radiological(volume: Tensor, image: Tensor) -> Tensor:
    """A volume with its axes to the left, the back and the head, by the image's affine: whatever
    the order in the file, slices are axial and upright."""
    if image.ndim != 4 or not isinstance(image, MetaTensor):
        return volume
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    turned: Tensor = Orientation("LPS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(
        MetaTensor(plain, affine=image.affine)
    )
    return turned


def _spacing_of(image: Tensor) -> list[float]:
    axes = image.ndim - 1
    if not isinstance(image, MetaTensor):
        return [1.0] * axes
    return [float(v) for v in image.pixdim[:axes]]


def _best_slice(label: Tensor) -> int | None:
    """The slice of a volume with the most foreground, the middle one if there is none."""
    if label.ndim == 2:
        return None
    counts = (label > 0).sum(dim=(0, 1))
    return int(counts.argmax()) if bool(counts.any()) else label.shape[-1] // 2


def _rows_first(volume: Tensor, position: int | None) -> np.ndarray:
    """A slice, or a picture. Arrays are (x, y); pictures want rows first."""
    plane = torch.as_tensor(volume) if position is None else torch.as_tensor(volume)[..., position]
    return np.asarray(plane).T


def _draw_grey(
    axis: Axes, picture: np.ndarray, aspect: float, window: Sequence[float] | None
) -> None:
    low, high = (picture.min(), np.quantile(picture, 0.995)) if window is None else window
    axis.imshow(picture, aspect=aspect, cmap="gray", vmin=low, vmax=high)


def _draw_classes(axis: Axes, labels: np.ndarray, num_classes: int, aspect: float) -> None:
    axis.imshow(
        labels,
        aspect=aspect,
        cmap=ListedColormap(["#00000000", *_colours(num_classes - 1)]),
        vmin=0,
        vmax=num_classes - 1,
        alpha=np.where(labels > 0, 0.6, 0.0),
        interpolation="nearest",
    )


def _draw_legend(axis: Axes, class_names: Sequence[str]) -> None:
    for colour, name in zip(_colours(len(class_names) - 1), class_names[1:], strict=True):
        axis.plot([], [], "s", color=colour, label=name)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncol=4, frameon=False)


def _colours(number: int) -> list[str]:
    return [_CLASS_COLOURS[i % len(_CLASS_COLOURS)] for i in range(number)]


def _draw_curve(axis: Axes, log: Sequence[Mapping[str, Any]]) -> None:
    if not log:
        axis.text(0.5, 0.5, "no training log", ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    epochs = [row["epoch"] for row in log]
    losses = [row["loss"] for row in log]
    # One epoch alone is a point, which a line does not show.
    marker = "o" if len(epochs) == 1 else ""
    axis.plot(epochs, losses, color="#0072B2", marker=marker, label="training loss")
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_ylabel("training loss")
    axis.grid(alpha=0.3)
    # The first in the order of the titles: of several the one a reader looks for.
    metric = next((name for name in _METRIC_TITLES if any(name in row for row in log)), None)
    if metric is not None:
        validated = [row for row in log if metric in row]
        title = f"validation {_METRIC_TITLES[metric]}"
        right = axis.twinx()
        right.plot(
            [row["epoch"] for row in validated],
            [row[metric] for row in validated],
            "o-",
            color="#D55E00",
            label=title,
        )
        if not metric.startswith("hausdorff"):
            right.set_ylim(0, 1.1 if metric == "stepwise_iou" else 1)
        right.set_ylabel(title)
        right.legend(loc="lower right")
    axis.legend(loc="upper right")


def _number(value: Any) -> float | None:
    """A float for JSON, which knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


SaveOverlayD = SaveOverlayDict = SaveOverlayd
