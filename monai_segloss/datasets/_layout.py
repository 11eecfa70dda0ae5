"""What the readers of folder layouts share: their checks, their search for files, their errors."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "SPLITS",
    "absolute",
    "check_choice",
    "check_count",
    "check_folder",
    "check_missing",
    "content_of",
    "find_volume",
    "in_split",
    "numbered_folders",
    "some",
]

SPLITS = ("train", "validation", "all")
"""Names of the halves of a data set and of the whole."""

_SUFFIXES = (".nii.gz", ".nii")
_MOST_LISTED = 10


def absolute(folder: str | os.PathLike[str]) -> Path:
    """ITK changes the working folder as it loads a module, under other threads' relative paths."""
    return Path(folder).expanduser().absolute()


def some(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def content_of(folder: Path) -> str:
    """Some names of what a folder holds, for a message."""
    return some(sorted(path.name for path in folder.iterdir())) or "nothing"


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """ValueError if the argument `name` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_count(name: str, value: int | None) -> None:
    """ValueError if the argument `name` is neither None nor an integer of 1 or more."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be None or an integer >= 1, got {value!r}.")


def check_folder(dataset_dir: Path, layout: str) -> None:
    """FileNotFoundError if there is no `dataset_dir`, NotADirectoryError if it is a file."""
    if not dataset_dir.exists():
        raise FileNotFoundError(
            f"dataset_dir {dataset_dir} does not exist; expected a folder with {layout}."
        )
    if not dataset_dir.is_dir():
        raise NotADirectoryError(
            f"dataset_dir {dataset_dir} is a file; expected a folder with {layout}."
        )


def in_split(number: int, split: str) -> bool:
    """Whether a case belongs to the split: even numbers train, odd ones validate."""
    return split == "all" or (number % 2 == 0) == (split == "train")


def numbered_folders(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    """(number, path) of the folders whose whole name matches, by the number in the first group.

    Partly written ones are hidden, and match no pattern that does not start with a dot.
    """
    matches = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())


def find_volume(folder: Path, stem: str, missing: list[str]) -> str:
    """Path of the NIfTI `stem` in `folder`; "", and an entry in `missing`, where there is none."""
    for suffix in _SUFFIXES:
        # is_file: one repackaged release holds folders named *.nii.
        if (path := folder / f"{stem}{suffix}").is_file():
            return str(path)
    missing.append(f"{folder.name}/{stem}{_SUFFIXES[0]}")
    return ""


def check_missing(missing: Sequence[str], folder: Path, layout: str) -> None:
    """FileNotFoundError if anything is missing; it tells all of it at once, ten names at most."""
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} file(s) missing under {folder} (expected {layout}): {some(missing)}."
        )
