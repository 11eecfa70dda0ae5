"""The Multimodal Brain Tumor Segmentation Challenge of 2018 (BraTS18) in its official layout.

The layout, as the challenge's download unpacks::

    MICCAI_BraTS_2018_Data_Training/HGG/Brats18_2013_2_1/Brats18_2013_2_1_flair.nii.gz
                                                         Brats18_2013_2_1_t1.nii.gz
                                                         Brats18_2013_2_1_t1ce.nii.gz
                                                         Brats18_2013_2_1_t2.nii.gz
                                                         Brats18_2013_2_1_seg.nii.gz   ground truth
                                                         ...
                                    LGG/Brats18_2013_0_1/...

HGG and LGG hold the patients with a high-grade and with a low-grade glioma. The validation and
testing releases are folders of patients without grades and without ground truth.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    some,
)

__all__ = ["BRATS18_LABELS", "BRATS18_LABEL_VALUES", "BRATS18_MODALITIES", "brats18_datalist"]

BRATS18_LABELS = ("background", "NCR_NET", "ED", "ET")
"""Label names, indexed by class: necrotic and non-enhancing core, oedema, enhancing tumour."""

BRATS18_LABEL_VALUES = {0: 0, 1: 1, 2: 2, 4: 3}
"""The class of each value in the files, which have no 3."""

BRATS18_MODALITIES = ("flair", "t1", "t1ce", "t2")
"""The four volumes of a patient, in the order in which they become channels."""

_RELEASE = "MICCAI_BraTS_2018_Data_Training"
_GRADES = ("HGG", "LGG")
_PREFIX = "brats"


def brats18_datalist(
    dataset_dir: str | os.PathLike[str],
    split: str = "all",
    max_patients: int | None = None,
    require_label: bool = True,
    grades: Sequence[str] = ("HGG",),
    modalities: Sequence[str] = BRATS18_MODALITIES,
    image_name: str = "{patient}_{modality}",
    label_name: str = "{patient}_seg",
) -> list[dict[str, str | list[str]]]:
    """The patients of BraTS 2018 as a MONAI datalist.

    Args:
        dataset_dir: the release's folder, with HGG and LGG in it, or the folder that holds it; or a
            folder of patients without grades, of which all are taken whatever `grades` says.
            Patients' folders are those whose names start with "brats", in any case.
        split: "train" for the first, third, fifth ... patient by name within each grade,
            "validation" for the others, "all" for both. Valverde and Tohka (region-wise loss) split
            the high-grade patients half and half at the level of subjects without naming the
            halves; this is one such split, and independent of `grades` and of the machine.
        max_patients: keep the first so many patients of the split; None keeps all.
        require_label: if False, ground truth is neither looked for nor listed, for inference.
        grades: "HGG", "LGG" or both; the paper takes the high-grade patients.
        modalities: the volumes to list, in this order.
        image_name: a volume's file name without .nii.gz or .nii, from {patient} and {modality}.
        label_name: likewise for the ground truth, from {patient}.

    Returns:
        One item per patient, by grade as `grades` orders them, then by name: `{"image": [a path
        for each modality], "label": path, "patient": "Brats18_2013_2_1", "grade": "HGG"}`. There is
        no key "label" with `require_label=False`. `grade` is "" for patients without grades.

    Raises:
        FileNotFoundError: if the folder, a grade's folder or every patient is absent, or if files
            of the chosen patients are missing; then the message lists them together, ten at most.
        NotADirectoryError: if `dataset_dir` is a file.
        ValueError: if an argument is not one of the above, if the split is empty, or if
            `dataset_dir` is the folder of a grade that was not asked for.
    """
    check_choice("split", split, SPLITS)
    check_count("max_patients", max_patients)
    _check_names("grades", grades)
    _check_names("modalities", modalities)
    for grade in grades:
        check_choice("grades", grade, _GRADES)
    volumes = [_file_name("image_name", image_name, "PATIENT", m) for m in modalities]
    if len(set(volumes)) < len(volumes):
        raise ValueError(
            f"image_name must hold {{modality}} to tell {len(volumes)} modalities apart, got "
            f"{image_name!r}."
        )
    ground_truth = _file_name("label_name", label_name, "PATIENT")
    names = volumes + ([ground_truth] if require_label else [])
    layout = f"PATIENT/{{{', '.join(names)}}}.nii.gz; .nii does as well"

    folder, patients = _find_patients(absolute(dataset_dir), grades, layout)
    chosen = [
        (grade, path)
        for grade, paths in patients
        for place, path in enumerate(paths)
        if in_split(place, split)
    ]
    if not chosen:
        raise ValueError(
            f"split {split!r} of {folder} is empty: it takes every second patient by name of each "
            f"grade, from the {'first' if split == 'train' else 'second'}, and the folder holds "
            f"{some([path.name for _, paths in patients for path in paths])}."
        )

    items: list[dict[str, str | list[str]]] = []
    missing: list[str] = []
    for grade, path in chosen[:max_patients]:
        stems = [_file_name("image_name", image_name, path.name, m) for m in modalities]
        item: dict[str, str | list[str]] = {
            "image": [find_volume(path, stem, missing) for stem in stems]
        }
        if require_label:
            stem = _file_name("label_name", label_name, path.name)
            item["label"] = find_volume(path, stem, missing)
        items.append({**item, "patient": path.name, "grade": grade})
    check_missing(missing, folder, layout)
    return items


def _check_names(name: str, values: Sequence[str]) -> None:
    """ValueError if the argument is no list of different names; a bare text is none either."""
    if isinstance(values, str) or not values or len(set(values)) < len(values):
        raise ValueError(
            f"{name} must be a sequence of at least one name, none of them twice, got {values!r}."
        )


def _file_name(name: str, pattern: str, patient: str, modality: str | None = None) -> str:
    fields = {"patient": patient} | ({} if modality is None else {"modality": modality})
    try:
        return pattern.format(**fields)
    except (LookupError, ValueError):
        raise ValueError(
            f"{name} may hold {' and '.join(f'{{{field}}}' for field in fields)} in braces and "
            f"nothing else, got {pattern!r}."
        ) from None


def _list_patients(folder: Path) -> list[Path]:
    """The patients' folders by name; partly written ones are hidden."""
    return sorted(
        path for path in folder.iterdir() if path.name.lower().startswith(_PREFIX) and path.is_dir()
    )


def _find_patients(
    dataset_dir: Path, grades: Sequence[str], layout: str
) -> tuple[Path, list[tuple[str, list[Path]]]]:
    """The folder that was read, and (grade, patients' folders by name) for each grade."""
    graded = f"{_RELEASE}/{{{','.join(grades)}}}/{layout}"
    check_folder(dataset_dir, graded)
    nested = dataset_dir / _RELEASE
    folder = nested if nested.is_dir() else dataset_dir
    if any((folder / grade).is_dir() for grade in _GRADES):
        patients = [
            (grade, _list_patients(folder / grade) if (folder / grade).is_dir() else [])
            for grade in grades
        ]
    else:
        # Low-grade patients handed out as high-grade ones would go unnoticed.
        if folder.name in _GRADES and folder.name not in grades:
            raise ValueError(
                f"grades {tuple(grades)!r} were asked for, but dataset_dir {dataset_dir} is the "
                f"{folder.name} folder."
            )
        grade = folder.name if folder.name in _GRADES else ""
        patients = [(grade, _list_patients(folder))]
    for grade, paths in patients:
        if not paths:
            where = folder / grade if (folder / grade).is_dir() else folder
            raise FileNotFoundError(
                f"no patient's folder brats* {f'of grade {grade} ' if grade else ''}in {where}, "
                f"which holds {content_of(where)}; expected {graded} under dataset_dir "
                f"{dataset_dir}."
            )
    return folder, patients
