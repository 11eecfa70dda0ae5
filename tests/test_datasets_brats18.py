"""BraTS18's official layout as a datalist: what is listed, and what each error says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from monai_segloss.datasets import (
    BRATS18_LABEL_VALUES,
    BRATS18_LABELS,
    BRATS18_MODALITIES,
    brats18_datalist,
)

RELEASE = "MICCAI_BraTS_2018_Data_Training"
HGG = ["Brats18_2013_10_1", "Brats18_2013_2_1", "Brats18_CBICA_AAB_1", "Brats18_TCIA01_131_1"]
LGG = ["Brats18_2013_0_1", "Brats18_2013_15_1", "Brats18_TCIA09_141_1"]
SAMPLE = {
    "modalities": ("Flair", "T1c"),
    "image_name": "{modality}_subtrMeanDivStd",
    "label_name": "OTMultiClass",
}


def make_patient(folder: Path, name: str, suffix: str = ".nii.gz") -> Path:
    """A patient of empty files, which is all that a datalist looks at."""
    patient = folder / name
    patient.mkdir(parents=True)
    for kind in (*BRATS18_MODALITIES, "seg"):
        (patient / f"{name}_{kind}{suffix}").touch()
    return patient


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    """The release's folder, made in another order than by name."""
    for grade, patients in (("LGG", LGG), ("HGG", HGG)):
        for name in reversed(patients):
            make_patient(tmp_path / RELEASE / grade, name)
    (tmp_path / RELEASE / "survival_data.csv").touch()
    return tmp_path / RELEASE


def names(items: list[dict[str, Any]]) -> list[str]:
    return [item["patient"] for item in items]


def test_constants() -> None:
    assert BRATS18_LABELS == ("background", "NCR_NET", "ED", "ET")
    assert BRATS18_MODALITIES == ("flair", "t1", "t1ce", "t2")
    assert BRATS18_LABEL_VALUES == {0: 0, 1: 1, 2: 2, 4: 3}
    assert sorted(BRATS18_LABEL_VALUES.values()) == list(range(len(BRATS18_LABELS)))


def test_items(brats: Path) -> None:
    items = brats18_datalist(brats)
    stem = brats / "HGG" / HGG[0] / HGG[0]
    assert items[0] == {
        "image": [f"{stem}_{modality}.nii.gz" for modality in ("flair", "t1", "t1ce", "t2")],
        "label": f"{stem}_seg.nii.gz",
        "patient": HGG[0],
        "grade": "HGG",
    }
    assert names(items) == HGG


def test_folders_that_will_do(brats: Path) -> None:
    items = brats18_datalist(brats)
    assert brats18_datalist(brats.parent) == items
    assert brats18_datalist(str(brats)) == items
    assert brats18_datalist(brats / "HGG") == items


def test_folder_without_grades(brats: Path) -> None:
    bare = brats.parent / "validation"
    (brats / "LGG").rename(bare)
    items = brats18_datalist(bare)
    assert names(items) == LGG
    assert all(item["grade"] == "" for item in items)


def test_grades(brats: Path) -> None:
    assert names(brats18_datalist(brats, grades=("LGG",))) == LGG
    both = brats18_datalist(brats, grades=["LGG", "HGG"])
    assert names(both) == LGG + HGG
    assert [item["grade"] for item in both] == ["LGG"] * 3 + ["HGG"] * 4


def test_split_takes_turns(brats: Path) -> None:
    assert names(brats18_datalist(brats, split="train")) == HGG[::2]
    assert names(brats18_datalist(brats, split="validation")) == HGG[1::2]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_split_of_a_patient_does_not_depend_on_grades(brats: Path, split: str) -> None:
    both = brats18_datalist(brats, split, grades=("HGG", "LGG"))
    assert both == [
        item for grade in ("HGG", "LGG") for item in brats18_datalist(brats, split, grades=(grade,))
    ]


def test_splits_are_disjoint_and_complete(brats: Path) -> None:
    grades = ("HGG", "LGG")
    train, validation = (
        names(brats18_datalist(brats, split, grades=grades)) for split in ("train", "validation")
    )
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(HGG + LGG)


def test_max_patients_counts_within_the_split(brats: Path) -> None:
    assert names(brats18_datalist(brats, split="validation", max_patients=1)) == HGG[1:2]
    assert names(brats18_datalist(brats, max_patients=99)) == HGG


def test_modalities_in_the_order_asked_for(brats: Path) -> None:
    (image,) = (
        item["image"]
        for item in brats18_datalist(brats, max_patients=1, modalities=("t2", "flair"))
    )
    assert [Path(path).name for path in image] == [
        f"{HGG[0]}_t2.nii.gz",
        f"{HGG[0]}_flair.nii.gz",
    ]


def test_other_file_names(tmp_path: Path) -> None:
    patient = tmp_path / "brats_2013_pat0005_1"
    patient.mkdir()
    for name in ("Flair_subtrMeanDivStd", "T1c_subtrMeanDivStd", "OTMultiClass", "brainmask"):
        (patient / f"{name}.nii.gz").touch()
    (item,) = brats18_datalist(tmp_path, **SAMPLE)  # type: ignore[arg-type]
    assert item["image"] == [
        str(patient / f"{modality}_subtrMeanDivStd.nii.gz") for modality in ("Flair", "T1c")
    ]
    assert item["label"] == str(patient / "OTMultiClass.nii.gz")


def test_uncompressed_files(tmp_path: Path) -> None:
    patient = make_patient(tmp_path, HGG[0], suffix=".nii")
    assert brats18_datalist(tmp_path)[0]["label"] == str(patient / f"{HGG[0]}_seg.nii")


def test_other_entries_are_passed_over(brats: Path) -> None:
    (brats / "HGG" / ".Brats18_X_1.partial-ab12").mkdir()
    (brats / "HGG" / "Brats18_X_1.zip").touch()
    (brats / "HGG" / "notes").mkdir()
    assert names(brats18_datalist(brats)) == HGG


def test_without_labels(brats: Path) -> None:
    for path in brats.glob("*/*/*_seg.nii.gz"):
        path.unlink()
    items = brats18_datalist(brats, require_label=False)
    assert names(items) == HGG
    assert all("label" not in item for item in items)


def test_paths_are_absolute(brats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(brats.parent)
    for item in brats18_datalist(brats.name):
        assert all(Path(path).is_absolute() for path in (*item["image"], item["label"]))


# Errors


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset_dir .*nowhere does not exist; expected"):
        brats18_datalist(tmp_path / "nowhere")


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "brats.zip").touch()
    with pytest.raises(NotADirectoryError, match=r"brats\.zip is a file; expected"):
        brats18_datalist(tmp_path / "brats.zip")


def test_wrong_folder_tells_the_layout(tmp_path: Path) -> None:
    (tmp_path / "case_00000").mkdir()
    with pytest.raises(
        FileNotFoundError,
        match=rf"no patient's folder brats\* in .* holds case_00000; expected {RELEASE}/\{{HGG\}}/"
        r"PATIENT/\{PATIENT_flair, PATIENT_t1, PATIENT_t1ce, PATIENT_t2, PATIENT_seg\}",
    ):
        brats18_datalist(tmp_path)


def test_absent_grade(brats: Path) -> None:
    shutil.rmtree(brats / "LGG")
    with pytest.raises(FileNotFoundError, match=r"brats\* of grade LGG in .* holds HGG, surviv"):
        brats18_datalist(brats, grades=("HGG", "LGG"))


def test_another_grade_is_not_passed_off(brats: Path) -> None:
    with pytest.raises(ValueError, match=r"grades \('HGG',\) were asked for, but .* LGG folder"):
        brats18_datalist(brats / "LGG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of 'train', 'validation', 'all', got 'val'"),
        ({"max_patients": 0}, "max_patients must be None or an integer >= 1, got 0"),
        ({"max_patients": True}, "max_patients must be None or an integer >= 1, got True"),
        ({"grades": ()}, "grades must be a sequence of at least one name"),
        ({"grades": "HGG"}, "grades must be a sequence .* got 'HGG'"),
        ({"grades": ("HGG", "hgg")}, "grades must be one of 'HGG', 'LGG', got 'hgg'"),
        ({"modalities": ("t1", "t1")}, "modalities must .* none of them twice, got"),
        ({"image_name": "{patient}"}, r"image_name must hold \{modality\} to tell 4 mod"),
        ({"image_name": "{patient}_{kind}"}, r"image_name may hold \{patient\} and \{modality\} "),
        ({"image_name": "{}_{modality}"}, "image_name may hold"),
        ({"image_name": "{patient"}, "image_name may hold .* got '{patient'"),
        ({"label_name": "{modality}"}, r"label_name may hold \{patient\} in braces and nothing"),
    ],
)
def test_bad_arguments(brats: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        brats18_datalist(brats, **arguments)


def test_empty_split(tmp_path: Path) -> None:
    make_patient(tmp_path, HGG[0])
    with pytest.raises(ValueError, match=f"'validation'.*empty.*from the second.*holds {HGG[0]}"):
        brats18_datalist(tmp_path, split="validation")


def test_missing_files_are_told_together(brats: Path) -> None:
    for path in brats.glob("HGG/*/*.nii.gz"):
        path.unlink()
    (brats / "HGG" / HGG[0] / f"{HGG[0]}_t1.nii.gz").touch()
    with pytest.raises(FileNotFoundError) as caught:
        brats18_datalist(brats)
    message = str(caught.value)
    assert message.startswith("19 file(s) missing under ")
    assert f"{HGG[0]}/{HGG[0]}_flair.nii.gz, {HGG[0]}/{HGG[0]}_t1ce.nii.gz" in message
    assert message.endswith(" and 9 more.")
    # Patients and modalities that are not asked for may be incomplete.
    assert brats18_datalist(brats, max_patients=1, modalities=("t1",), require_label=False)


# The sample


@pytest.mark.real_data
def test_sample_of_2013(real_data: Path) -> None:
    folder = real_data / "brats2013" / "train"
    if not folder.is_dir():
        pytest.skip(f"no brats2013/train in {real_data}; set MONAI_SEGLOSS_DATA to its folder")
    items = brats18_datalist(folder, **SAMPLE)  # type: ignore[arg-type]
    assert names(items) == ["brats_2013_pat0005_1", "brats_2013_pat0006_1"]
    assert all(Path(path).is_file() for item in items for path in (*item["image"], item["label"]))
