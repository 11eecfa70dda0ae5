"""The Automated Cardiac Diagnosis Challenge of 2017 (ACDC) in its official layout.

The layout, as the challenge's download unpacks::

    dataset_dir/training/patient001/Info.cfg
                                    patient001_frame01.nii.gz      image
                                    patient001_frame01_gt.nii.gz   ground truth
                                    ...

`Info.cfg` names the end-diastolic (ED) and the end-systolic (ES) frame; these two are annotated.
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

__all__ = ["ACDC17_LABELS", "acdc17_datalist"]

ACDC17_LABELS = ("background", "RV", "Myo", "LV")
"""Label names, indexed by the label's value: RV and LV are cavities, Myo is the left myocardium."""

_SECTIONS = ("training", "testing")
_PHASES = ("ED", "ES")
_PATIENT = re.compile(r"patient(\d+)")
_LAYOUT = "patientNNN/{Info.cfg, patientNNN_frameFF.nii.gz, patientNNN_frameFF_gt.nii.gz}"


def acdc17_datalist(
    dataset_dir: str | os.PathLike[str],
    section: str = "training",
    split: str = "all",
    max_patients: int | None = None,
    require_label: bool = True,
) -> list[dict[str, str | int]]:
    """The ED and ES frames of ACDC 2017 as a MONAI datalist.

    Args:
        dataset_dir: the folder that holds the folder `section`, or that folder of patients itself.
        section: the release's folder, "training" or "testing".
        split: "train" for the even patient numbers, "validation" for the odd ones (the protocol of
            Valverde and Tohka's region-wise loss), "all" for both.
        max_patients: keep the first so many patients of the split; None keeps all.
        require_label: if False, ground truth is neither looked for nor listed, for inference.

    Returns:
        One item per frame, sorted by patient, then frame: `{"image": path, "label": path,
        "patient": "patient001", "frame": 1, "phase": "ED"}`. There is no key "label" with
        `require_label=False`. `phase` is "ED" or "ES".

    Raises:
        FileNotFoundError: if the folder is absent or holds no patient, or if files of the chosen
            patients are missing; then the message lists them together, ten at most.
        NotADirectoryError: if `dataset_dir` is a file.
        ValueError: if `split` or `max_patients` is not one of the above, if the split is empty, if
            `dataset_dir` is another section than the one asked for, or if an `Info.cfg` does not
            name both frames by positive whole numbers.
    """
    check_choice("split", split, SPLITS)
    check_count("max_patients", max_patients)

    folder, patients = _find_patients(absolute(dataset_dir), section)
    chosen = [path for number, path in patients if in_split(number, split)]
    if not chosen:
        raise ValueError(
            f"split {split!r} of {folder} is empty: it takes the "
            f"{'even' if split == 'train' else 'odd'} patient numbers, and the folder holds "
            f"{some([path.name for _, path in patients])}."
        )

    items: list[dict[str, str | int]] = []
    missing: list[str] = []
    for patient in chosen[:max_patients]:
        items += _patient_items(patient, require_label, missing)
    check_missing(missing, folder, f"{_LAYOUT}; .nii does as well")
    return items


def _find_patients(dataset_dir: Path, section: str) -> tuple[Path, list[tuple[int, Path]]]:
    check_folder(dataset_dir, f"{section}/{_LAYOUT}")
    nested = dataset_dir / section
    folder = nested if nested.is_dir() else dataset_dir
    patients = numbered_folders(folder, _PATIENT)
    if not patients:
        raise FileNotFoundError(
            f"no patientNNN folder in {folder}, which holds {content_of(folder)}; expected "
            f"{section}/{_LAYOUT} under dataset_dir {dataset_dir}."
        )
    # Training patients handed out as "testing" would be a silent leak.
    if folder is dataset_dir and folder.name in _SECTIONS and folder.name != section:
        raise ValueError(
            f"section {section!r} was asked for, but dataset_dir {dataset_dir} is the "
            f"{folder.name} section."
        )
    return folder, patients


def _patient_items(
    patient: Path, require_label: bool, missing: list[str]
) -> list[dict[str, str | int]]:
    """The patient's two items; what is not there is added to `missing`, so that all can be told."""
    info = patient / "Info.cfg"
    if not info.is_file():
        missing.append(f"{patient.name}/{info.name}")
        return []
    items: list[dict[str, str | int]] = []
    for frame, phase in sorted((frame, phase) for phase, frame in _read_phases(info).items()):
        stem = f"{patient.name}_frame{frame:02d}"
        item: dict[str, str | int] = {"image": find_volume(patient, stem, missing)}
        if require_label:
            item["label"] = find_volume(patient, f"{stem}_gt", missing)
        items.append({**item, "patient": patient.name, "frame": frame, "phase": phase})
    return items


def _read_phases(info: Path) -> dict[str, int]:
    """{"ED": frame, "ES": frame} of an `Info.cfg`, whose lines read `key: value`."""
    phases: dict[str, int] = {}
    lines = info.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        key, _, value = (part.strip() for part in line.partition(":"))
        if key not in _PHASES:
            continue
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            raise ValueError(
                f"{info}, line {number}: {key} must name a frame by a whole number >= 1, "
                f"got {line!r}."
            )
        phases[key] = int(value)
    if absent := [phase for phase in _PHASES if phase not in phases]:
        raise ValueError(
            f"{info}: expected a line 'ED: <frame>' and a line 'ES: <frame>', found none for "
            f"{' and '.join(absent)} in its {len(lines)} line(s)."
        )
    return phases
