"""Ignite handlers for MONAI's engines: resuming, a log to look at, and every score by name."""

from __future__ import annotations

import csv
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.handlers import (
    HausdorffDistance,
    IgniteMetricHandler,
    MeanDice,
    MeanIoUHandler,
    from_engine,
)
from monai.metrics import SurfaceDiceMetric
from monai.utils import MetricReduction, ensure_tuple
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from monai_segloss.files import replacing
from monai_segloss.losses import WeightedSumLoss
from monai_segloss.metrics import PixelAccuracyMetric, StepwiseIoUMetric

__all__ = [
    "METRIC_NAMES",
    "Checkpointing",
    "HausdorffDistanceMM",
    "PixelAccuracy",
    "StepwiseIoU",
    "SurfaceDiceMM",
    "TrainingLog",
    "read_log",
    "saved_epochs",
    "segmentation_metrics",
]

logger = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint.pt"
_BAD_LOSSES_IN_A_ROW = 20


class Checkpointing:
    """Save a run after every epoch, and take it up where it stopped.

    Two files in ``save_dir``: ``checkpoint.pt`` holds the state of everything in ``save_dict``, of
    the trainer (epoch and iteration) and of the settings; ``model.pt`` holds the weights of
    ``save_dict["model"]`` alone, for evaluation. Each is written beside its place and then moved
    into it, so an interruption leaves the one of the epoch before. Of several processes the first
    one writes and each reads; a network in DistributedDataParallel is saved without it, so the
    files fit any number of processes.

    Args:
        save_dir: folder of the two files.
        save_dict: name -> object with ``state_dict``; needs ``"model"``.
        resume: if False, start afresh and overwrite.
        interval: epochs between saves; the last epoch is always saved.
        settings: what must be the same for a run to be the same (loss, network width, ...); a
            checkpoint made with others is refused rather than taken up.

    Raises:
        ValueError: if ``save_dict`` has no model; when the run starts, if the checkpoint cannot be
            read, was made with other settings, or does not fit the network.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        save_dict: Mapping[str, Any],
        resume: bool = True,
        interval: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if "model" not in save_dict:
            raise ValueError(f"save_dict: expected the key 'model', got {sorted(save_dict)}")
        self.path = Path(save_dir) / _CHECKPOINT
        self.model_path = Path(save_dir) / "model.pt"
        self.save_dict = {
            name: item.module if isinstance(item, DistributedDataParallel) else item
            for name, item in save_dict.items()
        }
        self.resume = resume
        self.interval = interval
        self.settings = dict(settings or {})

    def attach(self, engine: Engine) -> None:
        """Load when the trainer starts, save as its epochs end."""
        engine.add_event_handler(Events.STARTED, self._started)

    def _started(self, engine: Engine) -> None:
        self.load(engine)
        # Attached only now, to save after the schedule's step and whatever else ends an epoch.
        if not engine.has_event_handler(self._epoch_completed, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def load(self, engine: Engine) -> None:
        """Restore the run, if there is one to restore."""
        if not self.resume or not self.path.exists():
            return
        advice = "delete it, choose another folder, or start afresh with resume=False"
        try:
            # Loaded on the CPU: load_state_dict moves each tensor to where its owner lives.
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{self.path}: not readable as a checkpoint; {advice}") from error
        self._check_settings(state.get("settings", {}), advice)
        try:
            for name, item in self.save_dict.items():
                item.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.path}: does not fit this run ({name}: {error}); {advice}"
            ) from error
        for item in self.save_dict.values():
            if isinstance(item, LambdaLR):
                _follow_schedule(item)
        # Not engine.load_state_dict: it would bring back the max_epochs of the interrupted run.
        engine.state.epoch = state["epoch"]
        # Ignite ends a run by its iterations too, and an epoch's may be others than they were: the
        # batch, the data or the number of processes has changed.
        length = engine.state.epoch_length
        engine.state.iteration = state["epoch"] * length if length else state["iteration"]
        limit = engine.state.max_epochs
        if limit is not None and state["epoch"] >= limit:
            if idist.get_rank() == 0 and self._weights_are_older():
                self._save_weights(state)
            logger.warning(
                "%s: already trained for %d epochs, nothing left to do; raise max_epochs to go on",
                self.path,
                state["epoch"],
            )
        else:
            logger.info("%s: resumed after epoch %d", self.path, state["epoch"])

    def save(self, engine: Engine) -> None:
        """Write both files."""
        state = {name: item.state_dict() for name, item in self.save_dict.items()}
        with replacing(self.path) as partial:
            torch.save(
                {
                    **state,
                    "epoch": engine.state.epoch,
                    "iteration": engine.state.iteration,
                    "settings": self.settings,
                },
                partial,
            )
        self._save_weights(state)

    def _save_weights(self, state: Mapping[str, Any]) -> None:
        with replacing(self.model_path) as partial:
            torch.save(state["model"], partial)

    def _epoch_completed(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        due = epoch % self.interval == 0 or epoch == engine.state.max_epochs
        if due and idist.get_rank() == 0:
            self.save(engine)

    def _weights_are_older(self) -> bool:
        """An interruption between the two files leaves the weights of the epoch before, or none."""
        weights, checkpoint = self.model_path, self.path
        return not weights.exists() or weights.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns

    def _check_settings(self, saved: Mapping[str, Any], advice: str) -> None:
        changed = [
            f"{name} was {saved.get(name)!r}, is {value!r}"
            for name, value in self.settings.items()
            if saved.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{self.path}: made with other settings ({'; '.join(changed)}); {advice}"
            )


def saved_epochs(save_dir: str | os.PathLike[str], resume: bool = True) -> int:
    """How many epochs the checkpoint in a folder covers; 0 if there is none to take up.

    Added to a run's seed, it keeps a resumed run from drawing its first epochs' crops again.
    """
    path = Path(save_dir) / _CHECKPOINT
    if not resume or not path.exists():
        return 0
    try:
        # Mapped, not read: of a file as large as three networks one number is wanted.
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])
    except Exception:
        return 0  # Checkpointing will say what is wrong with it.


def _follow_schedule(scheduler: LambdaLR) -> None:
    """Set the rates by this run's schedule: it may be longer than the one that was saved."""
    for group, base, factor in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(scheduler.last_epoch)


class TrainingLog:
    """A progress bar while training, and a CSV file with one row per epoch.

    Columns: ``epoch, loss, learning_rate, seconds``, one per weight of ``weighted``
    (``weight_<loss>``) and one per metric of ``evaluator``, empty in epochs without validation.
    After an interruption the rows that the checkpoint still covers are kept. The bar is drawn on a
    terminal only; elsewhere each epoch is one log line. Of several processes the first one writes;
    the loss is the mean over all of them.

    Args:
        path: the CSV file.
        optimizer: to read the learning rate from.
        evaluator: the validation engine, if any.
        weighted: a sum of losses whose weights change, if any.

    Raises:
        ValueError: while training, if the loss was not finite many times in a row.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        optimizer: torch.optim.Optimizer,
        evaluator: Engine | None = None,
        weighted: WeightedSumLoss | None = None,
    ) -> None:
        self.path = Path(path)
        self.optimizer = optimizer
        self.weighted = weighted
        self.evaluator = evaluator
        self.rows: list[dict[str, Any]] = []
        self._losses: list[float] = []
        self._bad = 0
        self._rate = 0.0
        self._bar: tqdm[Any] | None = None
        self._clock = time.perf_counter()

    def attach(self, engine: Engine) -> None:
        """Follow a trainer. Attach it before the handler that validates and after the one that
        resumes."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._validation_completed)

    def _started(self, engine: Engine) -> None:
        if engine.state.epoch and self.path.exists():
            self.rows = [r for r in read_log(self.path) if r["epoch"] <= engine.state.epoch]
        limit, length = engine.state.max_epochs, engine.state.epoch_length
        total = limit * length if limit and length else None
        self._bar = tqdm(
            total=total,
            initial=engine.state.iteration,
            desc="training",
            unit="step",
            disable=idist.get_rank() > 0 or not sys.stderr.isatty(),
        )

    def _epoch_started(self, engine: Engine) -> None:
        self._losses = []
        self._rate = self.optimizer.param_groups[0]["lr"]
        self._clock = time.perf_counter()

    def _iteration_completed(self, engine: Engine) -> None:
        loss = from_engine(["loss"], first=True)(engine.state.output)
        self._losses.append(float(loss))
        self._bad = 0 if math.isfinite(self._losses[-1]) else self._bad + 1
        if self._bad == _BAD_LOSSES_IN_A_ROW:
            raise ValueError(
                f"loss: expected finite values, got {loss} {self._bad} times in a row at iteration "
                f"{engine.state.iteration}; lower the learning rate or check the images"
            )
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(epoch=engine.state.epoch, loss=f"{self._losses[-1]:.4f}")

    def _epoch_completed(self, engine: Engine) -> None:
        row: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "loss": _mean_over_processes(sum(self._losses) / max(1, len(self._losses))),
            "learning_rate": self._rate,
            "seconds": time.perf_counter() - self._clock,
            **self._weights(),
        }
        self.rows.append(row)
        self._write()
        logger.info(
            "epoch %d/%s: loss %.4f, %.1f s",
            row["epoch"],
            engine.state.max_epochs,
            row["loss"],
            row["seconds"],
        )

    def _validation_completed(self, engine: Engine) -> None:
        metrics = {k: float(v) for k, v in engine.state.metrics.items() if _is_number(v)}
        if self.rows:
            self.rows[-1].update(metrics)
            self._write()
        logger.info("validation: %s", ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))

    def _weights(self) -> dict[str, float]:
        if self.weighted is None:
            return {}
        weights = self.weighted.weights.tolist()
        return {
            f"weight_{name}": weight
            for name, weight in zip(self.weighted.losses, weights, strict=True)
        }

    def _write(self) -> None:
        if idist.get_rank() > 0:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()

    def _failed(self, engine: Engine, error: Exception) -> None:
        self._close(engine)
        # Once a handler for exceptions is attached ignite no longer raises them itself.
        raise error


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a :class:`TrainingLog` file, as numbers; empty cells are left out."""
    with open(path, newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


class HausdorffDistanceMM(HausdorffDistance):
    """``monai.handlers.HausdorffDistance`` in millimetres.

    MONAI's handler measures in voxels, since it has no way to the image's spacing; this one reads
    it from the label's affine. Where a class is absent from both prediction and label the distance
    is NaN and left out of the mean; where it is absent from one of them MONAI's metric is infinite,
    and NaN with a percentile; a report says in how many cases.

    The arguments are those of MONAI's handler. Labels must be MetaTensors.
    """

    def update(self, output: Sequence[Tensor]) -> None:
        """
        Args:
            output: predictions and labels, one-hot, each a list of channel-first MetaTensors.
        """
        for prediction, label, spacing in _cases_in_mm(output):
            with _quiet_about_absent_classes():
                self.metric_fn(prediction, label, spacing=spacing)
        self._is_reduced = False


def _mean_over_processes(value: float) -> float:
    # all_reduce gives a number back as it took it.
    return float(idist.all_reduce(value)) / idist.get_world_size()


class SurfaceDiceMM(IgniteMetricHandler):
    """Surface Dice (normalised surface distance) at a tolerance in millimetres.

    MONAI's ``SurfaceDiceMetric`` with each case's own spacing, read from the label's affine: the
    share of both surfaces that lies within the tolerance of the other one. By default a surface is
    its voxels, each of which counts the same; ``use_subvoxels=True`` weighs them by the area of the
    surface through them, as Nikolov et al. 2018 do. A class absent from both prediction and label
    is NaN and left out of the mean; absent from one of them it is 0.

    Args:
        tolerance_mm: one number for all classes, or one per class that is scored.
        include_background: whether channel 0 of several is scored.
        use_subvoxels: weigh surface voxels by area.
        reduction, output_transform, save_details: as of MONAI's handlers.

    Raises:
        ValueError: on a tolerance that is negative or not finite; while evaluating, if their number
            is not that of the classes. Labels must be MetaTensors.
    """

    def __init__(
        self,
        tolerance_mm: float | Sequence[float],
        include_background: bool = False,
        use_subvoxels: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        output_transform: Callable[[Any], Any] = lambda x: x,
        save_details: bool = True,
    ) -> None:
        self.same_for_all = not isinstance(tolerance_mm, Sequence)
        self.tolerance_mm = [float(t) for t in ensure_tuple(tolerance_mm)]
        if not self.tolerance_mm or not all(math.isfinite(t) and t >= 0 for t in self.tolerance_mm):
            raise ValueError(
                f"tolerance_mm: expected finite numbers of at least 0, got {tolerance_mm}"
            )
        self.surface_dice = SurfaceDiceMetric(
            self.tolerance_mm,
            include_background=include_background,
            reduction=reduction,
            use_subvoxels=use_subvoxels,
        )
        super().__init__(self.surface_dice, None, output_transform, save_details)

    def update(self, output: Sequence[Tensor]) -> None:
        """
        Args:
            output: predictions and labels, one-hot, each a list of channel-first MetaTensors.
        """
        for prediction, label, spacing in _cases_in_mm(output):
            skipped = label.shape[1] > 1 and not self.surface_dice.include_background
            classes = label.shape[1] - skipped
            if self.same_for_all:
                self.surface_dice.class_thresholds = self.tolerance_mm * classes
            elif len(self.tolerance_mm) != classes:
                raise ValueError(
                    f"tolerance_mm: expected one number or {classes}, one per class, "
                    f"got {self.tolerance_mm}"
                )
            with _quiet_about_absent_classes():
                self.metric_fn(prediction, label, spacing=spacing)
        self._is_reduced = False


class PixelAccuracy(IgniteMetricHandler):
    """Share of voxels whose predicted label is right, :func:`monai_segloss.metrics.pixel_accuracy`.

    Its details are ``(cases, 1)``, or ``(cases, classes)`` with ``per_class``. Absent classes are
    no special case: their voxels are right or wrong like others.

    Args:
        per_class: binary accuracy of each class instead.
        include_background: with ``per_class``, whether channel 0 of several is scored.
        reduction, output_transform, save_details: as of MONAI's handlers.
    """

    def __init__(
        self,
        per_class: bool = False,
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        output_transform: Callable[[Any], Any] = lambda x: x,
        save_details: bool = True,
    ) -> None:
        metric = PixelAccuracyMetric(per_class, include_background, reduction)
        super().__init__(metric, None, output_transform, save_details)


class StepwiseIoU(IgniteMetricHandler):
    """The chest X-ray study's IoU score, :func:`monai_segloss.metrics.stepwise_iou`.

    floor(20 (IoU - 0.45)) / 10 of each image, not below 0, and then the mean: 1.1 at best. A class
    absent from both prediction and label gives 1, absent from one of them 0.

    Args:
        include_background: whether channel 0 of several is scored.
        reduction, output_transform, save_details: as of MONAI's handlers.
    """

    def __init__(
        self,
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        output_transform: Callable[[Any], Any] = lambda x: x,
        save_details: bool = True,
    ) -> None:
        metric = StepwiseIoUMetric(include_background, reduction)
        super().__init__(metric, None, output_transform, save_details)


METRIC_NAMES = (
    "dice",
    "iou",
    "hausdorff_mm",
    "hausdorff95_mm",
    "surface_dice",
    "pixel_accuracy",
    "stepwise_iou",
)
"""The names that :func:`segmentation_metrics` knows."""


def segmentation_metrics(
    names: Sequence[str],
    include_background: bool = False,
    tolerance_mm: float | Sequence[float] = 1.0,
) -> dict[str, IgniteMetricHandler]:
    """Handlers by name, ready to be the metrics of a MONAI evaluator.

    Each scores every case by itself, as the papers do, and the mean is over classes and then over
    cases; the scores of each case are kept in the engine's ``metric_details``. An evaluator's
    output holds ``pred`` and ``label``: one-hot, or one binary channel, and MetaTensors.

    ==================  ==========================================  ================  ==========
    name                what it is                                  not in the label  in neither
    ==================  ==========================================  ================  ==========
    ``dice``            MONAI's ``MeanDice``                        left out          left out
    ``iou``             MONAI's ``MeanIoUHandler``                  left out          left out
    ``hausdorff_mm``    :class:`HausdorffDistanceMM`                infinite          left out
    ``hausdorff95_mm``  likewise, its 95th percentile               left out          left out
    ``surface_dice``    :class:`SurfaceDiceMM` at ``tolerance_mm``  0                 left out
    ``pixel_accuracy``  :class:`PixelAccuracy` of all classes       counts            counts
    ``stepwise_iou``    :class:`StepwiseIoU`                        0                 1
    ==================  ==========================================  ================  ==========

    The last two columns say what a class gives that is absent from the label only, and from label
    and prediction. Absent from the prediction only, it gives 0, but the Hausdorff distances as if
    absent from the label only, and the pixel accuracy counts it. "Left out" is NaN in the details:
    a mean says nothing of how many cases it leaves out, as
    :class:`monai_segloss.report.EvaluationReport` does, which leaves out infinity too.

    Args:
        names: of :data:`METRIC_NAMES`; their order is kept.
        include_background: whether channel 0 of several is scored.
        tolerance_mm: of ``surface_dice``, for all classes or one per class.

    Raises:
        ValueError: on an unknown name or one that comes twice.
    """
    if isinstance(names, str) or len(set(names)) < len(names) or set(names) - set(METRIC_NAMES):
        raise ValueError(
            f"names: expected names out of {', '.join(METRIC_NAMES)}, each once, got {names!r}"
        )
    common: dict[str, Any] = {
        "include_background": include_background,
        "output_transform": from_engine(["pred", "label"]),
    }
    makers: dict[str, Callable[[], IgniteMetricHandler]] = {
        "dice": lambda: MeanDice(**common),
        "iou": lambda: MeanIoUHandler(**common),
        "hausdorff_mm": lambda: HausdorffDistanceMM(**common),
        "hausdorff95_mm": lambda: HausdorffDistanceMM(percentile=95, **common),
        "surface_dice": lambda: SurfaceDiceMM(tolerance_mm, **common),
        "pixel_accuracy": lambda: PixelAccuracy(**common),
        "stepwise_iou": lambda: StepwiseIoU(**common),
    }
    return {name: makers[name]() for name in names}


def _cases_in_mm(output: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, list[float]]]:
    """Each case as a batch of one, with its voxel size in mm."""
    for prediction, label in zip(*output, strict=True):
        yield prediction[None], label[None], [float(v) for v in label.pixdim[: label.ndim - 1]]


@contextmanager
def _quiet_about_absent_classes() -> Iterator[None]:
    """An absent class is reported with the results, not in the middle of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the (prediction|ground truth) of class")
        yield


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
