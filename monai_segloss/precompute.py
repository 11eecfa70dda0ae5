"""The maps of a whole data set, computed ahead of training by several processes."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import LoadImage, MapLabelValue
from torch import Tensor
from tqdm import tqdm

from monai_segloss.distance import Spacing
from monai_segloss.map_files import (
    LABEL_SUFFIXES,
    MapRecipe,
    check_whole_nifti,
    make_recipe,
    map_path,
    read_record,
    recipe_differences,
    write_map,
)
from monai_segloss.transforms import RegionWiseMap, values_of_no_class

__all__ = ["MapRun", "find_labels", "map_path", "precompute_maps"]

logger = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["written", "skipped", "failed"]

# More read and write the same disk, and each holds a volume or three.
_MOST_WORKERS = 8


@dataclass
class MapRun:
    """What a run did, label by label.

    Attributes:
        written: maps it made.
        skipped: maps that were there already, whole and of the same recipe and label.
        failed: label -> what was wrong with it.
    """

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def precompute_maps(
    label_dir: str | os.PathLike[str],
    map_dir: str | os.PathLike[str],
    kind: str = "rrw",
    num_classes: int | None = None,
    *,
    spacing: Spacing | Literal["affine"] = "affine",
    dense: bool = False,
    map_options: Mapping[str, Any] | None = None,
    label_values: Mapping[Any, Any] | None = None,
    threshold: float | None = None,
    pattern: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> MapRun:
    """Compute and write the map of every label file below a folder.

    The maps are those of :class:`monai_segloss.transforms.RegionWiseMap` on the label's own grid,
    float32, beside each other in ``map_dir`` as the labels are in ``label_dir``
    (:func:`monai_segloss.map_files.map_path`). A run that was interrupted goes on where it stopped:
    a map that is there, whole, and of the same recipe and label is skipped; one made of something
    else is refused, or made anew with ``overwrite``; a damaged one is made anew.

    Args:
        label_dir: folder of the labels: NIfTI, or PNG.
        map_dir: folder of the maps; made if missing.
        kind: a name of :data:`monai_segloss.maps.MAP_KINDS`.
        num_classes: number of classes, background included; needed without ``threshold`` and
            ``label_values``, see :func:`monai_segloss.map_files.make_recipe`.
        spacing: ``"affine"`` measures in mm, by the file's own voxel size; numbers are mm too; None
            measures in voxels.
        dense: one channel per class for a compact kind too.
        map_options: the kind's own options.
        label_values: value in the file -> class; a value not named, but 0, is an error.
        threshold: what lies above it is class 1.
        pattern: which files are labels, e.g. ``"**/*_gt.nii.gz"``; all by default.
        workers: processes, of one thread each; by default as many as cores, at most 8. With 1 all
            happens in this process. A script that asks for more needs the usual
            ``if __name__ == "__main__":``.
        overwrite: make anew what was made of something else.
        progress: draw a bar, if there is a terminal.

    Returns:
        What was written, skipped and failed. A label that fails does not stop the others.

    Raises:
        ValueError: on an argument that does not fit, no label at all, or two labels of one map.
        RuntimeError: if a worker was killed; what it and others had written stays.
    """
    recipe = make_recipe(
        kind,
        num_classes,
        spacing=spacing,
        dense=dense,
        map_options=map_options,
        label_values=label_values,
        threshold=threshold,
    )
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    tasks = _tasks(find_labels(label_dir, pattern, map_dir), label_dir, map_dir, kind)
    workers = min(workers or min(_cores(), _MOST_WORKERS), len(tasks))
    run = MapRun()
    outcomes = _outcomes(tasks, recipe, overwrite, workers)
    bar = tqdm(outcomes, "maps", len(tasks), unit="label", disable=None if progress else True)
    for label, outcome, message in bar:
        if outcome == "failed":
            run.failed[label] = message
            logger.info("%s: %s", label, message)
        else:
            (run.written if outcome == "written" else run.skipped).append(tasks[label])
    run.written.sort()
    run.skipped.sort()
    run.failed = dict(sorted(run.failed.items()))
    return run


def find_labels(
    label_dir: str | os.PathLike[str],
    pattern: str | None = None,
    map_dir: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """The label files below a folder, sorted.

    Args:
        label_dir: where to look.
        pattern: a glob below it, ``**`` for any folders; by default all .nii, .nii.gz and .png.
        map_dir: files in it that are maps of this package are no labels.

    Raises:
        ValueError: if the folder is missing, holds none, or the pattern leads out of it.
    """
    root = Path(label_dir)
    if not root.is_dir():
        raise ValueError(f"label_dir: expected a folder of labels, got {label_dir}")
    found = [
        path
        for path in sorted(root.glob(pattern or "**/*"))
        if path.name.endswith(LABEL_SUFFIXES) and not path.name.startswith(".") and path.is_file()
    ]
    if map_dir is not None and Path(os.path.abspath(map_dir)).is_relative_to(os.path.abspath(root)):
        found = [path for path in found if not _is_map(path, map_dir)]
    if not found:
        raise ValueError(
            f"label_dir: expected {', '.join(LABEL_SUFFIXES)} files like {pattern or '**/*'} below "
            f"{label_dir}, got none"
        )
    return found


def _is_map(path: Path, map_dir: str | os.PathLike[str]) -> bool:
    below = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(map_dir))
    if not below or path.suffix == ".png":
        return False
    try:
        return read_record(path) is not None
    except ValueError:
        return False


def _tasks(
    labels: list[Path],
    label_dir: str | os.PathLike[str],
    map_dir: str | os.PathLike[str],
    kind: str,
) -> dict[Path, Path]:
    """Label -> map."""
    tasks = {label: map_path(label, label_dir, map_dir, kind) for label in labels}
    first: dict[Path, Path] = {}
    for label, path in tasks.items():
        if path in first:
            raise ValueError(
                f"label_dir: expected one label for each map, got {first[path]} and {label} for "
                f"{path}; choose one by a pattern"
            )
        first[path] = label
    return tasks


def _outcomes(
    tasks: Mapping[Path, Path], recipe: MapRecipe, overwrite: bool, workers: int
) -> Iterator[tuple[Path, Outcome, str]]:
    """Label, outcome and message, as they come."""
    if workers == 1:
        for label, path in tasks.items():
            yield (label, *_make(label, path, recipe, overwrite))
        return
    # Spawned, not forked: torch's and ITK's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker)
    try:
        jobs = {
            pool.submit(_make, label, path, recipe, overwrite): label
            for label, path in tasks.items()
        }
        for job in as_completed(jobs):
            yield (jobs[job], *job.result())
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, perhaps for memory, or could not start; the maps that "
            "are written stay: run again, with fewer workers"
        ) from error
    finally:
        # After an error or an interruption the labels not yet begun are not begun any more.
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    # Ctrl-C is the main process's affair: the workers end with the map at hand.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _make(label: Path, path: Path, recipe: MapRecipe, overwrite: bool) -> tuple[Outcome, str]:
    """One map; what goes wrong with it is told, not raised, so that the others go on."""
    try:
        if path.exists() and _is_there(label, path, recipe, overwrite):
            return "skipped", ""
        values, affine = _map_of(label, recipe)
        write_map(path, values.numpy(), label, affine.numpy(), recipe)
    except Exception as error:
        return "failed", str(error) or type(error).__name__
    return "written", ""


def _is_there(label: Path, path: Path, recipe: MapRecipe, overwrite: bool) -> bool:
    """Whether a map file may stay; False if it is to be made anew."""
    try:
        check_whole_nifti(path)
    except ValueError:
        return False
    record = read_record(path)
    if record is None:
        differences = "it is no map of monai_segloss"
    else:
        differences = recipe_differences(record, recipe, label)
    if differences and not overwrite:
        raise ValueError(
            f"{path}: expected the same recipe and label ({differences}); write to another folder, "
            "or overwrite"
        )
    return not differences


def _map_of(path: Path, recipe: MapRecipe) -> tuple[Tensor, Tensor]:
    """A label's map ``(1 or C, *spatial)`` and its affine 4 x 4."""
    if path.suffix != ".png":
        check_whole_nifti(path)
    label: MetaTensor = LoadImage(reader="ITKReader", ensure_channel_first=True)(path)
    if label.shape[0] != 1:
        raise ValueError(f"expected a class index in one channel, got shape {tuple(label.shape)}")
    to_map = RegionWiseMap(
        recipe["kind"],
        recipe["num_classes"],
        # With a plain tensor the transform would not know the affine's.
        label.pixdim[: label.ndim - 1] if recipe["spacing"] == "affine" else recipe["spacing"],
        dense=recipe["dense"],
        map_options=recipe["map_options"],
    )
    found = to_map(_as_classes(label.as_tensor(), recipe))
    return found, torch.as_tensor(to_affine_nd(3, label.affine))


def _as_classes(label: Tensor, recipe: MapRecipe) -> Tensor:
    """The label with its file's values turned into classes."""
    if recipe["threshold"] is not None:
        return label > recipe["threshold"]
    if recipe["label_values"] is None:
        largest = recipe["num_classes"] - 1
        if float(label.max()) > largest:
            raise ValueError(
                f"expected labels from 0 to {largest}, got up to {float(label.max()):g}; label "
                "values turn others into classes, a threshold a grey mask"
            )
        return label
    values = dict(recipe["label_values"])
    unknown = values_of_no_class(label, values)
    if unknown:
        raise ValueError(f"expected the label values {list(values)}, got {unknown[:8]} too")
    return MapLabelValue(list(values), list(values.values()), np.int16)(label)
