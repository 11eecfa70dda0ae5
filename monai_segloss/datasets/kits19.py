"""The Kidney Tumor Segmentation Challenge of 2019 (KiTS19) in its official layout.

The layout of the challenge's repository, after its script `get_imaging` has run::

    kits19/data/case_00000/imaging.nii.gz
                           segmentation.nii.gz   ground truth, cases 0 to 209 only
                ...
                case_00299/imaging.nii.gz

The volumes' first axis is the one across the slices.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from monai_segloss.datasets._layout import (
    SPLITS,
    absolute,
    check_choice,
    check_count,
    check_folder,
    check_missing,
    content_of,
    find_volume,
    in_split,
    numbered_folders,
    some,
)

__all__ = ["KITS19_LABELS", "kits19_datalist"]

KITS19_LABELS = ("background", "kidney", "tumor")
"""Label names, indexed by the label's value."""

_CASE = re.compile(r"case_(\d+)")
_NUM_ANNOTATED = 210
_LAYOUT = "data/case_NNNNN/{imaging,segmentation}.nii.gz"


def kits19_datalist(
    dataset_dir: str | os.PathLike[str],
    split: str = "all",
    max_patients: int | None = None,
    require_label: bool = True,
) -> list[dict[str, str]]:
    """The cases of KiTS 2019 as a MONAI datalist.

    Args:
        dataset_dir: the repository's folder, with `data` in it, or that folder of cases itself.
        split: "train" for the even case numbers, "validation" for the odd ones, "all" for both.
        max_patients: keep the first so many cases of the split; None keeps all.
        require_label: if True, cases from number 210 on, whose ground truth was not released, are
            left out where they have none; any other case must have it. If False, all cases are
            listed and ground truth is neither looked for nor listed, for inference.

    Returns:
        One item per case, by number: `{"image": path, "label": path, "patient": "case_00000"}`.
        There is no key "label" with `require_label=False`.

    Raises:
        FileNotFoundError: if the folder is absent or holds no case, or if files of the chosen cases
            are missing; then the message lists them together, ten at most.
        NotADirectoryError: if `dataset_dir` is a file.
        ValueError: if `split` or `max_patients` is not one of the above, or if the split is empty.
    """
    check_choice("split", split, SPLITS)
    check_count("max_patients", max_patients)
    folder, cases = _find_cases(absolute(dataset_dir))
    chosen = [
        path
        for number, path in cases
        if in_split(number, split)
        and (not require_label or number < _NUM_ANNOTATED or find_volume(path, "segmentation", []))
    ]
    if not chosen:
        kind = {"train": "even ", "validation": "odd ", "all": ""}[split]
        raise ValueError(
            f"split {split!r} of {folder} is empty: it takes the {kind}case numbers"
            + (f", from {_NUM_ANNOTATED} on only with a segmentation" if require_label else "")
            + f", and the folder holds {some([path.name for _, path in cases])}."
        )

    items: list[dict[str, str]] = []
    missing: list[str] = []
    for path in chosen[:max_patients]:
        item = {"image": find_volume(path, "imaging", missing)}
        if require_label:
            item["label"] = find_volume(path, "segmentation", missing)
        items.append({**item, "patient": path.name})
    # The repository comes with the segmentations alone.
    check_missing(
        missing, folder, f"{_LAYOUT}; .nii does as well; the release's get_imaging fetches images"
    )
    return items


def _find_cases(dataset_dir: Path) -> tuple[Path, list[tuple[int, Path]]]:
    """The folder of cases, and (number, folder) of each by number."""
    check_folder(dataset_dir, _LAYOUT)
    nested = dataset_dir / "data"
    folder = nested if nested.is_dir() else dataset_dir
    cases = numbered_folders(folder, _CASE)
    if not cases:
        raise FileNotFoundError(
            f"no case_NNNNN folder in {folder}, which holds {content_of(folder)}; expected "
            f"{_LAYOUT} under dataset_dir {dataset_dir}."
        )
    return folder, cases
