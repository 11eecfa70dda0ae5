"""ACDC's official layout as a datalist: what is listed, and what each error says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_segloss.datasets import ACDC17_LABELS, acdc17_datalist

INFO = "ED: 1\nES: {es}\nGroup: DCM\nHeight: 170.0\nNbFrame: 30\nWeight: 70.0\n"


def make_patient(folder: Path, number: int, es: int = 12, suffix: str = ".nii.gz") -> Path:
    """A patient of empty files, which is all that a datalist looks at."""
    patient = folder / f"patient{number:03d}"
    patient.mkdir(parents=True)
    (patient / "Info.cfg").write_text(INFO.format(es=es))
    for frame in (1, es):
        for kind in ("", "_gt"):
            (patient / f"{patient.name}_frame{frame:02d}{kind}{suffix}").touch()
    return patient


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    """Patients 1 to 5, under training/."""
    for number in (3, 1, 5, 2, 4):
        make_patient(tmp_path / "acdc" / "training", number)
    return tmp_path / "acdc"


def names(items: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(item["patient"] for item in items))


def test_label_names() -> None:
    assert ACDC17_LABELS == ("background", "RV", "Myo", "LV")


def test_items(acdc: Path) -> None:
    items = acdc17_datalist(acdc)
    stem = acdc / "training" / "patient001" / "patient001_frame"
    assert items[:2] == [
        {
            "image": f"{stem}{frame:02d}.nii.gz",
            "label": f"{stem}{frame:02d}_gt.nii.gz",
            "patient": "patient001",
            "frame": frame,
            "phase": phase,
        }
        for frame, phase in ((1, "ED"), (12, "ES"))
    ]
    assert names(items) == [f"patient{n:03d}" for n in range(1, 6)]
    assert len(items) == 10


def test_folder_of_patients_itself(acdc: Path) -> None:
    assert acdc17_datalist(acdc / "training") == acdc17_datalist(acdc)
    assert acdc17_datalist(str(acdc)) == acdc17_datalist(acdc)


def test_home_is_expanded(acdc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(acdc.parent))
    monkeypatch.setenv("USERPROFILE", str(acdc.parent))
    assert acdc17_datalist("~/acdc") == acdc17_datalist(acdc)


@pytest.mark.parametrize(
    ("split", "numbers"),
    [("train", (2, 4)), ("validation", (1, 3, 5)), ("all", (1, 2, 3, 4, 5))],
)
def test_split_by_parity(acdc: Path, split: str, numbers: tuple[int, ...]) -> None:
    assert names(acdc17_datalist(acdc, split=split)) == [f"patient{n:03d}" for n in numbers]


def test_max_patients_counts_within_the_split(acdc: Path) -> None:
    items = acdc17_datalist(acdc, split="validation", max_patients=2)
    assert names(items) == ["patient001", "patient003"]
    assert len(acdc17_datalist(acdc, max_patients=99)) == 10


def test_order_is_numeric_and_by_frame(tmp_path: Path) -> None:
    make_patient(tmp_path, 1000)
    late = make_patient(tmp_path, 90)
    # As patient090 of the release: the end-diastolic frame is not the first.
    (late / "Info.cfg").write_text("ED: 12\nES: 1\n")
    items = acdc17_datalist(tmp_path)
    assert names(items) == ["patient090", "patient1000"]
    assert [(item["frame"], item["phase"]) for item in items[:2]] == [(1, "ES"), (12, "ED")]


def test_uncompressed_files(tmp_path: Path) -> None:
    patient = make_patient(tmp_path, 1, suffix=".nii")
    assert acdc17_datalist(tmp_path)[0]["image"] == str(patient / "patient001_frame01.nii")


def test_info_as_other_systems_write_it(tmp_path: Path) -> None:
    info = make_patient(tmp_path, 1) / "Info.cfg"
    info.write_bytes(b"\xef\xbb\xbfED : 1\r\nES:12 \r\n\r\nnote\r\nGroup: \xe9\r\n")
    assert [item["frame"] for item in acdc17_datalist(tmp_path)] == [1, 12]


def test_other_entries_are_passed_over(acdc: Path) -> None:
    training = acdc / "training"
    (training / ".patient007.partial-ab12").mkdir()
    (training / "patient008.zip").touch()
    (training / "patient009").touch()
    (training / "MANDATORY_CITATION.md").touch()
    assert len(acdc17_datalist(acdc)) == 10


def test_without_labels(acdc: Path) -> None:
    for path in (acdc / "training").glob("*/*_gt.nii.gz"):
        path.unlink()
    items = acdc17_datalist(acdc, require_label=False)
    assert len(items) == 10
    assert all("label" not in item for item in items)


def test_labels_are_left_out_of_every_item_alike(acdc: Path) -> None:
    assert all("label" not in item for item in acdc17_datalist(acdc, require_label=False))


# Errors


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset_dir .*nowhere does not exist; expected"):
        acdc17_datalist(tmp_path / "nowhere")


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "acdc.zip").touch()
    with pytest.raises(NotADirectoryError, match=r"acdc\.zip is a file; expected"):
        acdc17_datalist(tmp_path / "acdc.zip")


def test_empty_folder_tells_the_layout(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds nothing; expected training/patientNNN/\{"):
        acdc17_datalist(tmp_path)


def test_empty_section_tells_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "training" / "case_1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"training, which holds case_1; expected"):
        acdc17_datalist(tmp_path)


def test_absent_section(acdc: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds training; expected testing/patientNNN"):
        acdc17_datalist(acdc, section="testing")


def test_another_section_is_not_passed_off(acdc: Path) -> None:
    with pytest.raises(ValueError, match="section 'testing' was asked for, but dataset_dir"):
        acdc17_datalist(acdc / "training", section="testing")


def test_unknown_split(acdc: Path) -> None:
    with pytest.raises(ValueError, match="one of 'train', 'validation', 'all', got 'val'"):
        acdc17_datalist(acdc, split="val")


@pytest.mark.parametrize(
    ("number", "split", "parity"), [(1, "train", "even"), (2, "validation", "odd")]
)
def test_empty_split(tmp_path: Path, number: int, split: str, parity: str) -> None:
    make_patient(tmp_path, number)
    with pytest.raises(ValueError, match=f"'{split}'.*empty.*{parity}.*holds patient00{number}"):
        acdc17_datalist(tmp_path, split=split)


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_bad_max_patients(acdc: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="max_patients must be None or an integer >= 1, got"):
        acdc17_datalist(acdc, max_patients=value)


def test_absent_info(acdc: Path) -> None:
    (acdc / "training" / "patient003" / "Info.cfg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 file\(s\) missing.*patient003/Info\.cfg"):
        acdc17_datalist(acdc)


@pytest.mark.parametrize("phase", ["ED", "ES"])
def test_info_without_a_phase(acdc: Path, phase: str) -> None:
    info = acdc / "training" / "patient002" / "Info.cfg"
    info.write_text(INFO.format(es=12).replace(f"{phase}:", "XX:"))
    with pytest.raises(ValueError, match=rf"patient002.Info\.cfg: .*found none for {phase} in"):
        acdc17_datalist(acdc)


def test_info_that_is_empty(acdc: Path) -> None:
    (acdc / "training" / "patient002" / "Info.cfg").write_text("")
    with pytest.raises(ValueError, match="found none for ED and ES in its 0 line"):
        acdc17_datalist(acdc)


@pytest.mark.parametrize("value", ["twelve", "1.5", "", "0", "-3", "²"])
def test_info_value_that_is_no_frame(acdc: Path, value: str) -> None:
    info = acdc / "training" / "patient002" / "Info.cfg"
    info.write_text(INFO.format(es=value), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"Info\.cfg, line 2: ES must .* got 'ES: {value}'"):
        acdc17_datalist(acdc)


@pytest.mark.parametrize("kind", ["", "_gt"])
def test_missing_volume(acdc: Path, kind: str) -> None:
    name = f"patient004_frame12{kind}.nii.gz"
    (acdc / "training" / "patient004" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 file\(s\) missing.*patient004/{name}"):
        acdc17_datalist(acdc)


def test_folder_named_as_a_volume_is_missing(acdc: Path) -> None:
    volume = acdc / "training" / "patient004" / "patient004_frame12.nii.gz"
    volume.unlink()
    volume.with_name("patient004_frame12.nii").mkdir()
    with pytest.raises(FileNotFoundError, match=r"patient004_frame12\.nii\.gz"):
        acdc17_datalist(acdc)


def test_missing_files_are_told_together(acdc: Path) -> None:
    training = acdc / "training"
    for path in training.glob("patient00[123]/*.nii.gz"):
        path.unlink()
    (training / "patient005" / "Info.cfg").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        acdc17_datalist(acdc)
    message = str(caught.value)
    assert message.startswith("13 file(s) missing under ")
    assert message.endswith(" and 3 more.")
    assert message.count("/patient00") == 10
    # Patients that are not asked for may be incomplete.
    with pytest.raises(FileNotFoundError, match=r"^4 file\(s\)"):
        acdc17_datalist(acdc, split="train")


# The release


@pytest.fixture(scope="module")
def real_acdc(real_data: Path) -> Path:
    if not (real_data / "acdc17" / "training").is_dir():
        pytest.skip(
            f"no acdc17/training in {real_data}; set MONAI_SEGLOSS_DATA to the folder of it"
        )
    return real_data / "acdc17"


@pytest.mark.real_data
def test_release(real_acdc: Path) -> None:
    items = acdc17_datalist(real_acdc)
    assert len(items) == 200
    assert names(items) == [f"patient{n:03d}" for n in range(1, 101)]
    assert all(Path(item[key]).is_file() for item in items for key in ("image", "label"))  # type: ignore[arg-type]


@pytest.mark.real_data
def test_release_split(real_acdc: Path) -> None:
    train = names(acdc17_datalist(real_acdc, split="train"))
    validation = names(acdc17_datalist(real_acdc, split="validation"))
    assert train == [f"patient{n:03d}" for n in range(2, 101, 2)]
    assert validation == [f"patient{n:03d}" for n in range(1, 100, 2)]


def test_paths_are_absolute(acdc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ITK changes the working folder while it loads; other threads' relative paths would break."""
    monkeypatch.chdir(acdc.parent)
    for item in acdc17_datalist(acdc.name):
        assert Path(str(item["image"])).is_absolute()
        assert Path(str(item["label"])).is_absolute()
