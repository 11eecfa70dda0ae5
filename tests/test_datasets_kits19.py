"""KiTS19's official layout as a datalist: what is listed, and what each error says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_segloss.datasets import KITS19_LABELS, kits19_datalist


def make_case(folder: Path, number: int, labelled: bool = True, suffix: str = ".nii.gz") -> Path:
    """A case of empty files, which is all that a datalist looks at."""
    case = folder / f"case_{number:05d}"
    case.mkdir(parents=True)
    (case / f"imaging{suffix}").touch()
    if labelled:
        (case / f"segmentation{suffix}").touch()
    return case


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    """Cases 0 to 3 and 209 with ground truth, 210 and 211 without, in a copy of the repository."""
    for number in (3, 1, 209, 2, 0):
        make_case(tmp_path / "kits19" / "data", number)
    for number in (211, 210):
        make_case(tmp_path / "kits19" / "data", number, labelled=False)
    (tmp_path / "kits19" / "starter_code").mkdir()
    (tmp_path / "kits19" / "data" / "kits.json").touch()
    return tmp_path / "kits19"


def numbers(items: list[dict[str, Any]]) -> list[int]:
    return [int(item["patient"].removeprefix("case_")) for item in items]


def test_label_names() -> None:
    assert KITS19_LABELS == ("background", "kidney", "tumor")


def test_items(kits: Path) -> None:
    items = kits19_datalist(kits)
    case = kits / "data" / "case_00000"
    assert items[0] == {
        "image": str(case / "imaging.nii.gz"),
        "label": str(case / "segmentation.nii.gz"),
        "patient": "case_00000",
    }
    assert numbers(items) == [0, 1, 2, 3, 209]


def test_folder_of_cases_itself(kits: Path) -> None:
    assert kits19_datalist(kits / "data") == kits19_datalist(kits)
    assert kits19_datalist(str(kits)) == kits19_datalist(kits)


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", [0, 2]), ("validation", [1, 3, 209]), ("all", [0, 1, 2, 3, 209])],
)
def test_split_by_parity(kits: Path, split: str, expected: list[int]) -> None:
    assert numbers(kits19_datalist(kits, split=split)) == expected


def test_without_labels_all_cases_are_listed(kits: Path) -> None:
    items = kits19_datalist(kits, require_label=False)
    assert numbers(items) == [0, 1, 2, 3, 209, 210, 211]
    assert all("label" not in item for item in items)
    assert numbers(kits19_datalist(kits, split="train", require_label=False)) == [0, 2, 210]


def test_a_late_case_with_a_label_is_taken(kits: Path) -> None:
    (kits / "data" / "case_00211" / "segmentation.nii.gz").touch()
    assert numbers(kits19_datalist(kits))[-2:] == [209, 211]


def test_max_patients_counts_within_the_split(kits: Path) -> None:
    assert numbers(kits19_datalist(kits, split="validation", max_patients=2)) == [1, 3]
    assert len(kits19_datalist(kits, max_patients=99)) == 5


def test_uncompressed_files(tmp_path: Path) -> None:
    case = make_case(tmp_path, 4, suffix=".nii")
    assert kits19_datalist(tmp_path)[0]["label"] == str(case / "segmentation.nii")


def test_other_entries_are_passed_over(kits: Path) -> None:
    (kits / "data" / ".case_00007.partial-ab12").mkdir()
    (kits / "data" / "case_00008.zip").touch()
    (kits / "data" / "case_00009").touch()
    assert len(kits19_datalist(kits)) == 5


def test_paths_are_absolute(kits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kits.parent)
    for item in kits19_datalist(kits.name):
        assert Path(item["image"]).is_absolute()
        assert Path(item["label"]).is_absolute()


# Errors


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset_dir .*nowhere does not exist; expected"):
        kits19_datalist(tmp_path / "nowhere")


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "kits.zip").touch()
    with pytest.raises(NotADirectoryError, match=r"kits\.zip is a file; expected"):
        kits19_datalist(tmp_path / "kits.zip")


def test_wrong_folder_tells_the_layout(tmp_path: Path) -> None:
    (tmp_path / "patient001").mkdir()
    with pytest.raises(
        FileNotFoundError,
        match=r"no case_NNNNN folder in .* holds patient001; expected data/case_NNNNN/\{imaging,",
    ):
        kits19_datalist(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split must be one of 'train', 'validation', 'all', got 'test'"),
        ({"max_patients": -1}, "max_patients must be None or an integer >= 1, got -1"),
        ({"max_patients": 1.5}, "max_patients must be None or an integer >= 1, got 1.5"),
    ],
)
def test_bad_arguments(kits: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kits19_datalist(kits, **arguments)


def test_empty_split(tmp_path: Path) -> None:
    make_case(tmp_path, 1)
    with pytest.raises(
        ValueError, match=r"'train'.*empty.*the even case numbers.*holds case_00001"
    ):
        kits19_datalist(tmp_path, split="train")


def test_no_case_with_a_label(tmp_path: Path) -> None:
    make_case(tmp_path, 210, labelled=False)
    with pytest.raises(ValueError, match=r"takes the case numbers, from 210 on only with a segm"):
        kits19_datalist(tmp_path)


def test_training_case_without_a_label(kits: Path) -> None:
    (kits / "data" / "case_00209" / "segmentation.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 file.*case_00209/segmentation\.nii\.gz"):
        kits19_datalist(kits)


def test_missing_images_are_told_together(kits: Path) -> None:
    """As a checkout of the challenge's repository is before its images are fetched."""
    for number in range(4, 12):
        make_case(kits / "data", number)
    for path in kits.glob("data/*/imaging.nii.gz"):
        path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        kits19_datalist(kits)
    message = str(caught.value)
    assert message.startswith("13 file(s) missing under ")
    assert "get_imaging fetches images): case_00000/imaging.nii.gz, " in message
    assert message.endswith(" and 3 more.")
