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

__all__ = ["ACDC17_LABELS", "acdc17_datalist"]

ACDC17_LABELS = ("background", "RV", "Myo", "LV")
"""Label names, indexed by the label's value: RV and LV are cavities, Myo is the left myocardium."""

_SECTIONS = ("training", "testing")
_SPLITS = ("train", "validation", "all")
_PHASES = ("ED", "ES")
_SUFFIXES = (".nii.gz", ".nii")
_PATIENT = re.compile(r"patient(\d+)")
_LAYOUT = "patientNNN/{Info.cfg, patientNNN_frameFF.nii.gz, patientNNN_frameFF_gt.nii.gz}"
_MOST_LISTED = 10


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
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(map(repr, _SPLITS))}, got {split!r}.")
    if max_patients is not None and (
        isinstance(max_patients, bool) or not isinstance(max_patients, int) or max_patients < 1
    ):
        raise ValueError(f"max_patients must be None or an integer >= 1, got {max_patients!r}.")

    folder, patients = _find_patients(_absolute(dataset_dir), section)
    chosen = [path for number, path in patients if _in_split(number, split)]
    if not chosen:
        raise ValueError(
            f"split {split!r} of {folder} is empty: it takes the "
            f"{'even' if split == 'train' else 'odd'} patient numbers, and the folder holds "
            f"{_some([path.name for _, path in patients])}."
        )

    items: list[dict[str, str | int]] = []
    missing: list[str] = []
    for patient in chosen[:max_patients]:
        items += _patient_items(patient, require_label, missing)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} file(s) missing under {folder} (expected {_LAYOUT}; .nii does as "
            f"well): {_some(missing)}."
        )
    return items


def _absolute(folder: str | os.PathLike[str]) -> Path:
    """ITK changes the working folder as it loads a module, under other threads' relative paths."""
    return Path(folder).expanduser().absolute()


def _in_split(number: int, split: str) -> bool:
    return split == "all" or (number % 2 == 0) == (split == "train")


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _list_patients(folder: Path) -> list[tuple[int, Path]]:
    """(number, folder) of each patientNNN folder, by number; partly written ones are hidden."""
    matches = ((_PATIENT.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())


def _find_patients(dataset_dir: Path, section: str) -> tuple[Path, list[tuple[int, Path]]]:
    if not dataset_dir.exists():
        raise FileNotFoundError(
            f"dataset_dir {dataset_dir} does not exist; expected a folder with {section}/{_LAYOUT}."
        )
    if not dataset_dir.is_dir():
        raise NotADirectoryError(
            f"dataset_dir {dataset_dir} is a file; expected a folder with {section}/{_LAYOUT}."
        )
    nested = dataset_dir / section
    folder = nested if nested.is_dir() else dataset_dir
    patients = _list_patients(folder)
    if not patients:
        found = _some(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"no patientNNN folder in {folder}, which holds {found}; expected "
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
        item: dict[str, str | int] = {"image": _find_volume(patient, stem, missing)}
        if require_label:
            item["label"] = _find_volume(patient, f"{stem}_gt", missing)
        items.append({**item, "patient": patient.name, "frame": frame, "phase": phase})
    return items


def _find_volume(patient: Path, stem: str, missing: list[str]) -> str:
    """Path of the volume; the empty string, and an entry in `missing`, where there is none."""
    for suffix in _SUFFIXES:
        # is_file: one repackaged release holds folders named *.nii.
        if (path := patient / f"{stem}{suffix}").is_file():
            return str(path)
    missing.append(f"{patient.name}/{stem}{_SUFFIXES[0]}")
    return ""


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
