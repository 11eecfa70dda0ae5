"""How a phantom reaches the disk: each case whole or not at all, none ever overwritten."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from monai_segloss.files import replacing

__all__ = [
    "Recipe",
    "check_at_least",
    "check_seed",
    "write_folders",
    "write_picture",
    "write_pictures",
    "write_volume",
]

Recipe = dict[str, int | str | None]
"""What a phantom was made from: its "format", its "seed", its sizes."""

_RECORD = "phantom.json"


def check_at_least(name: str, value: int, least: int, unit: str = "") -> None:
    """ValueError if the argument `name` is less than `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}{unit}, got {value}.")


def check_seed(seed: int) -> None:
    """ValueError if the argument `seed` is negative."""
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")


def write_folders(
    folders: Mapping[int, Path],
    recipe: Recipe,
    num_volumes: int,
    write: Callable[[Path, str, np.random.Generator], None],
    progress: bool,
) -> None:
    """Make the folders that are not there yet, one case each.

    Args:
        folders: a case's folder by its number, which with the seed decides all chance in it.
        recipe: kept in each folder, to tell this phantom's folders from any other.
        num_volumes: the number of *.nii.gz that a folder holds.
        write: fills a folder; it gets a hidden folder to write to, the name that folder is going to
            have, and a generator.
        progress: show a progress bar.

    Raises:
        FileExistsError: if a folder exists and is not of this recipe, or lost volumes. Nothing is
            written then.
    """
    todo = [
        (index, folder)
        for index, folder in folders.items()
        if not _is_done(folder, recipe, num_volumes)
    ]
    for index, folder in tqdm(todo, desc="phantom", unit="patient", disable=not progress):
        with _whole_folder(folder, recipe, num_volumes) as partial:
            write(partial, folder.name, np.random.default_rng([recipe["seed"], index]))
            (partial / _RECORD).write_text(json.dumps(recipe) + "\n", encoding="utf-8")


def write_pictures(
    out_dir: Path,
    files: Mapping[int, Sequence[str]],
    recipe: Recipe,
    draw: Callable[[int, np.random.Generator], Sequence[NDArray[np.uint8]]],
    progress: bool,
) -> None:
    """Make the pictures that are not there yet, of cases which share the folders of `out_dir`.

    Args:
        out_dir: made if absent; it keeps the recipe, to tell this phantom from any other data.
        files: a case's paths below `out_dir` by its number. The last one is written last: a case is
            there if that one is.
        recipe: what the phantom is made from.
        draw: (number, generator) to the arrays (H, W) of a case's files.
        progress: show a progress bar.

    Raises:
        FileExistsError: if `out_dir` holds anything and is not of this recipe, or if a case lost a
            file. Nothing is written then.
    """
    # A hidden file may be what a killed process left.
    if out_dir.exists() and any(not path.name.startswith(".") for path in out_dir.iterdir()):
        _check_recipe(out_dir, recipe)
    todo = []
    for index, paths in files.items():
        *others, last = (out_dir / path for path in paths)
        if not last.exists():
            todo.append(index)
        elif lost := [path for path in others if not path.exists()]:
            raise FileExistsError(
                f"{out_dir} lost files: it holds {last.name} without {lost[0]}. Delete {last} to "
                "have both made again."
            )
    with replacing(out_dir / _RECORD) as partial:
        partial.write_text(json.dumps(recipe) + "\n", encoding="utf-8")
    for index in tqdm(todo, desc="phantom", unit="image", disable=not progress):
        arrays = draw(index, np.random.default_rng([recipe["seed"], index]))
        for path, array in zip(files[index], arrays, strict=True):
            with replacing(out_dir / path) as partial:
                write_picture(partial, array)


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    record = folder / _RECORD
    found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
    if found != recipe:
        raise FileExistsError(
            f"{folder} exists and is not of this phantom: {_RECORD} should say {recipe}, it "
            + (f"says {found}" if found is not None else "is absent")
            + ". Choose another folder, or delete this one."
        )


def _is_done(folder: Path, recipe: Recipe, num_volumes: int) -> bool:
    if not folder.exists():
        return False
    _check_recipe(folder, recipe)
    volumes = len(list(folder.glob("*.nii.gz")))
    if volumes < num_volumes:
        raise FileExistsError(
            f"{folder} lost files: it holds {volumes} of {num_volumes} volumes. Delete it to have "
            "it made again."
        )
    return True


@contextmanager
def _whole_folder(folder: Path, recipe: Recipe, num_volumes: int) -> Iterator[Path]:
    """A hidden sibling to write to, which becomes `folder` if all goes well, else is removed."""
    partial = folder.with_name(f".{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        yield partial
        try:
            os.replace(partial, folder)
        except OSError:
            # Another process may have finished the same patient meanwhile; that one is as good.
            if not _is_done(folder, recipe, num_volumes):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_volume(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a NIfTI of the array's own type; `affine` (4, 4) leads from voxels to RAS, in mm."""
    import nibabel  # Reading a datalist does not need it.

    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def write_picture(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an 8-bit grey PNG of the array (H, W)."""
    import itk  # Slow to import, and reading a datalist does not need it.

    itk.imwrite(itk.image_from_array(np.ascontiguousarray(array)), str(path), compression=True)
