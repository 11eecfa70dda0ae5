"""The chest X-rays' layouts as a datalist: what is listed, its split, and what each error says."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_segloss.datasets import CHEST_XRAY_LABELS, chest_xray, chest_xray_datalist

MONTGOMERY = [f"MCUCXR_{n:04d}_{n % 2}" for n in range(1, 14)]
SHENZHEN = [f"CHNCXR_{n:04d}_{n % 2}" for n in range(1, 25)]
SPLITS = ("train", "validation", "test")


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def make_merged(folder: Path) -> Path:
    """Empty files, which is all that a datalist looks at; in another order than by name."""
    for name in random.Random(0).sample(MONTGOMERY + SHENZHEN, 37):
        touch(folder / "CXR_png" / f"{name}.png")
        suffix = "_mask" if name in SHENZHEN else ""
        touch(folder / "masks" / f"{name}{suffix}.png")
    return folder


def make_nlm(folder: Path) -> Path:
    for name in MONTGOMERY:
        touch(folder / "MontgomerySet" / "CXR_png" / f"{name}.png")
        for side in ("left", "right"):
            touch(folder / "MontgomerySet" / "ManualMask" / f"{side}Mask" / f"{name}.png")
    for name in SHENZHEN:
        touch(folder / "ChinaSet_AllFiles" / "CXR_png" / f"{name}.png")
        touch(folder / "ChinaSet_AllFiles" / "mask" / f"{name}_mask.png")
    return folder


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    return make_merged(tmp_path / "merged")


@pytest.fixture
def nlm(tmp_path: Path) -> Path:
    return make_nlm(tmp_path / "nlm")


def names(items: list[dict[str, Any]]) -> list[str]:
    return [item["name"] for item in items]


def test_label_names() -> None:
    assert CHEST_XRAY_LABELS == ("background", "lung")


def test_merged_items(merged: Path) -> None:
    items = chest_xray_datalist(merged)
    assert items[0] == {
        "image": str(merged / "CXR_png" / "MCUCXR_0001_1.png"),
        "label": str(merged / "masks" / "MCUCXR_0001_1.png"),
        "name": "MCUCXR_0001_1",
        "source": "Montgomery",
    }
    assert items[-1] == {
        "image": str(merged / "CXR_png" / "CHNCXR_0024_0.png"),
        "label": str(merged / "masks" / "CHNCXR_0024_0_mask.png"),
        "name": "CHNCXR_0024_0",
        "source": "Shenzhen",
    }
    assert names(items) == MONTGOMERY + SHENZHEN


def test_nlm_items(nlm: Path) -> None:
    items = chest_xray_datalist(nlm)
    sets = nlm / "MontgomerySet", nlm / "ChinaSet_AllFiles"
    assert items[0] == {
        "image": str(sets[0] / "CXR_png" / "MCUCXR_0001_1.png"),
        "label": [
            str(sets[0] / "ManualMask" / f"{side}Mask" / "MCUCXR_0001_1.png")
            for side in ("left", "right")
        ],
        "name": "MCUCXR_0001_1",
        "source": "Montgomery",
    }
    assert items[-1] == {
        "image": str(sets[1] / "CXR_png" / "CHNCXR_0024_0.png"),
        "label": str(sets[1] / "mask" / "CHNCXR_0024_0_mask.png"),
        "name": "CHNCXR_0024_0",
        "source": "Shenzhen",
    }
    assert names(items) == MONTGOMERY + SHENZHEN


def test_one_set_alone(nlm: Path) -> None:
    for folder, expected in (("MontgomerySet", MONTGOMERY), ("ChinaSet_AllFiles", SHENZHEN)):
        alone = nlm.parent / f"alone_{folder}"
        alone.mkdir()
        (nlm / folder).rename(alone / folder)
        assert names(chest_xray_datalist(alone)) == expected
        assert names(chest_xray_datalist(alone / folder)) == expected


def test_hidden_files_are_passed_over(merged: Path) -> None:
    (merged / "CXR_png" / "._MCUCXR_0001_1.png").touch()
    (merged / "CXR_png" / "Thumbs.db").touch()
    assert len(chest_xray_datalist(merged)) == 37


def test_without_labels(merged: Path) -> None:
    items = chest_xray_datalist(merged, require_label=False)
    assert len(items) == 37
    assert all("label" not in item for item in items)


def test_images_without_a_mask(merged: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in SHENZHEN[:3]:
        (merged / "masks" / f"{name}_mask.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert names(chest_xray_datalist(merged)) == MONTGOMERY + SHENZHEN[3:]
    (record,) = caplog.records
    assert record.getMessage().startswith("3 of 37 images under ")
    assert record.getMessage().endswith("no mask and are left out: " + ", ".join(SHENZHEN[:3]))
    caplog.clear()
    assert len(chest_xray_datalist(merged, require_label=False)) == 37
    assert not caplog.records


def test_max_images_counts_within_the_split(merged: Path) -> None:
    items = chest_xray_datalist(merged, "validation")
    assert chest_xray_datalist(merged, "validation", max_images=2) == items[:2]
    assert chest_xray_datalist(merged, "validation", max_images=99) == items


def test_paths_are_absolute(nlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nlm.parent)
    for item in chest_xray_datalist(nlm.name):
        label = item["label"] if isinstance(item["label"], list) else [item["label"]]
        assert all(Path(path).is_absolute() for path in (item["image"], *label))  # type: ignore[arg-type]


# The split


def split_names(folder: Path, **arguments: Any) -> dict[str, list[str]]:
    return {split: names(chest_xray_datalist(folder, split, **arguments)) for split in SPLITS}


@pytest.mark.parametrize("seed", range(4))
def test_splits_are_disjoint_and_complete(merged: Path, seed: int) -> None:
    parts = split_names(merged, seed=seed)
    together = [name for part in parts.values() for name in part]
    assert len(together) == len(set(together))
    assert set(together) == set(MONTGOMERY + SHENZHEN)


def test_split_is_stratified(merged: Path) -> None:
    shares = {
        split: [sum(name in source for name in part) for source in (MONTGOMERY, SHENZHEN)]
        for split, part in split_names(merged).items()
    }
    assert shares == {"train": [11, 19], "validation": [1, 3], "test": [1, 2]}


def test_split_does_not_depend_on_the_layout(merged: Path, nlm: Path) -> None:
    assert split_names(merged) == split_names(nlm)


def test_split_does_not_depend_on_the_order_of_files(
    merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = split_names(merged)
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *a: sorted(glob(*a), reverse=True))
    assert split_names(merged) == before


def test_split_of_a_source_does_not_depend_on_the_other(nlm: Path) -> None:
    both = split_names(nlm)
    for folder, source in (("MontgomerySet", MONTGOMERY), ("ChinaSet_AllFiles", SHENZHEN)):
        alone = split_names(nlm / folder)
        assert alone == {
            split: [name for name in part if name in source] for split, part in both.items()
        }


def test_images_without_a_mask_move_no_other(merged: Path) -> None:
    """Else an image to train on with masks would be one to test on without."""
    for name in SHENZHEN[5:12]:
        (merged / "masks" / f"{name}_mask.png").unlink()
    with_masks, all_images = split_names(merged), split_names(merged, require_label=False)
    for split in SPLITS:
        assert set(with_masks[split]) <= set(all_images[split])
    assert sum(map(len, all_images.values())) == 37


def test_seed_moves_the_split(merged: Path) -> None:
    assert split_names(merged, seed=1) != split_names(merged)
    assert split_names(merged, seed=1) == split_names(merged, seed=1)


def test_split_is_the_same_in_every_release(nlm: Path) -> None:
    """A change of this list would let test images of an earlier run into training."""
    assert names(chest_xray_datalist(nlm, "test")) == [
        "MCUCXR_0011_1",
        "CHNCXR_0005_1",
        "CHNCXR_0018_0",
    ]


@given(
    st.integers(0, 700),
    st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(lambda parts: sum(parts) > 0),
)
def test_sizes_law(total: int, parts: list[int]) -> None:
    fractions = [part / sum(parts) for part in parts]
    sizes = chest_xray._sizes(total, fractions)
    assert sum(sizes) == total
    for size, fraction in zip(sizes, fractions, strict=True):
        assert size >= 0
        if fraction == 0:
            assert size == 0
        elif total >= sum(fraction > 0 for fraction in fractions):
            assert size >= 1
            assert abs(size - total * fraction) < 2


@pytest.mark.parametrize(
    ("total", "expected"), [(138, [110, 14, 14]), (566, [453, 57, 56]), (50, [40, 5, 5])]
)
def test_sizes_of_the_releases(total: int, expected: list[int]) -> None:
    assert chest_xray._sizes(total, (0.8, 0.1, 0.1)) == expected


# Errors


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset_dir .*nowhere does not exist; expected"):
        chest_xray_datalist(tmp_path / "nowhere")


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "xray.zip").touch()
    with pytest.raises(NotADirectoryError, match=r"xray\.zip is a file; expected"):
        chest_xray_datalist(tmp_path / "xray.zip")


def test_wrong_folder_tells_the_layout(tmp_path: Path) -> None:
    (tmp_path / "patient001").mkdir()
    with pytest.raises(
        FileNotFoundError,
        match=r"no image CXR_png/\*\.png in .* holds patient001; expected .* CXR_png/NAME\.png and",
    ):
        chest_xray_datalist(tmp_path)


def test_no_masks_at_all(merged: Path) -> None:
    (merged / "masks").rename(merged / "annotations")
    with pytest.raises(FileNotFoundError, match=r"none of the 37 image\(s\) .* and 27 more; expec"):
        chest_xray_datalist(merged)


def test_one_lung_without_the_other(nlm: Path) -> None:
    for name in MONTGOMERY[:2]:
        (nlm / "MontgomerySet" / "ManualMask" / "leftMask" / f"{name}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"2 file\(s\) missing.*ManualMask/leftMask/MCUCXR_000[12]_[01].png"
    ):
        chest_xray_datalist(nlm)
    assert len(chest_xray_datalist(nlm, require_label=False)) == 37


def test_unknown_source(merged: Path) -> None:
    touch(merged / "CXR_png" / "scan.png")
    with pytest.raises(ValueError, match=r"scan\.png: the name .* start with MCUCXR_ or CHNCXR_"):
        chest_xray_datalist(merged)


def test_image_twice(nlm: Path) -> None:
    touch(nlm / "ChinaSet_AllFiles" / "CXR_png" / f"{MONTGOMERY[0]}.png")
    with pytest.raises(ValueError, match=f"holds images twice: {MONTGOMERY[0]}"):
        chest_xray_datalist(nlm)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of 'train', 'validation', 'test', 'all', got 'val'"),
        ({"max_images": 0}, "max_images must be None or an integer >= 1, got 0"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"seed": 1.0}, "seed must be an integer >= 0, got 1.0"),
        ({"fractions": (0.8, 0.2)}, r"fractions must be three numbers .* got \(0\.8, 0\.2\)"),
        ({"fractions": (0.8, 0.1, 0.2)}, "fractions must be three numbers >= 0 that sum to 1"),
        ({"fractions": (1.2, -0.1, -0.1)}, "fractions must be three numbers >= 0 that sum to 1"),
        ({"fractions": (float("nan"), 1, 0)}, "fractions must be three numbers >= 0"),
    ],
)
def test_bad_arguments(merged: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chest_xray_datalist(merged, **arguments)


def test_empty_split(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'test' .* is empty: fractions are \(0\.9, 0\.1, 0\)"):
        chest_xray_datalist(merged, "test", fractions=(0.9, 0.1, 0))
    touch(tmp_path / "CXR_png" / f"{MONTGOMERY[0]}.png")
    touch(tmp_path / "masks" / f"{MONTGOMERY[0]}.png")
    with pytest.raises(ValueError, match=rf"1 image\(s\) to split, {MONTGOMERY[0]}"):
        chest_xray_datalist(tmp_path, "validation")


# The sample


@pytest.mark.real_data
def test_real_images(real_data: Path) -> None:
    folder = real_data / "chest_xray"
    if not (folder / "CXR_png").is_dir():
        pytest.skip(f"no chest_xray/CXR_png in {real_data}; set MONAI_SEGLOSS_DATA to its folder")
    items = chest_xray_datalist(folder)
    assert [item["source"] for item in items] == ["Montgomery"] * 50 + ["Shenzhen"] * 50
    assert all(Path(str(item[key])).is_file() for item in items for key in ("image", "label"))
    assert {split: len(part) for split, part in split_names(folder).items()} == {
        "train": 80,
        "validation": 10,
        "test": 10,
    }
