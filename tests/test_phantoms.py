"""Generated brains, abdomens and chests: their anatomy, and that no half of a case is ever read.

The hearts have a file of their own, test_phantom.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from monai.transforms import LoadImage
from scipy import ndimage

from monai_segloss.__main__ import main
from monai_segloss.datasets import (
    _phantom_files,
    brats18_datalist,
    chest_xray_datalist,
    kits19_datalist,
    make_brats18_phantom,
    make_chest_xray_phantom,
    make_kits19_phantom,
    phantom_abdomen,
    phantom_brain,
    phantom_brats18,
    phantom_chest,
    phantom_kits19,
)

CUBE = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Phantom:
    """How a phantom is called and where its cases lie."""

    make: Callable[..., Path]
    read: Callable[..., list[dict[str, Any]]]
    number: str  # The argument that says how many cases.
    sizes: dict[str, int]
    case: Callable[[int], str]  # The path below the root of the n-th case, from 1.
    files: int  # Files of a case, the record left out.
    writer: tuple[ModuleType, Callable[..., None]]  # Where a file's writer is looked up, and it.

    def __call__(self, folder: Path, cases: int = 2, **arguments: Any) -> Path:
        return self.make(folder, progress=False, **{self.number: cases, **self.sizes, **arguments})


BRATS18 = Phantom(
    make_brats18_phantom,
    brats18_datalist,
    "num_patients",
    {"size": 48, "num_slices": 32},
    lambda n: f"MICCAI_BraTS_2018_Data_Training/HGG/Brats18_PHANTOM_{n:03d}_1",
    5,
    (phantom_brats18, _phantom_files.write_volume),
)
KITS19 = Phantom(
    make_kits19_phantom,
    kits19_datalist,
    "num_patients",
    {"size": 48, "num_slices": 12},
    lambda n: f"data/case_{n - 1:05d}",
    2,
    (phantom_kits19, _phantom_files.write_volume),
)
CHEST_XRAY = Phantom(
    make_chest_xray_phantom,
    chest_xray_datalist,
    "num_images",
    {"size": 64},
    lambda n: f"CXR_png/{('CHNCXR', 'MCUCXR')[n % 2]}_{(n + 1) // 2:04d}_0.png",
    2,
    (_phantom_files, _phantom_files.write_picture),
)
FOLDERS = [pytest.param(BRATS18, id="brats18"), pytest.param(KITS19, id="kits19")]
ALL = [*FOLDERS, pytest.param(CHEST_XRAY, id="chest_xray")]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Phantom], Path]:
    """A phantom of three cases, made once; tests that change it take a copy."""
    made: dict[int, Path] = {}

    def folder_of(phantom: Phantom) -> Path:
        if id(phantom) not in made:
            made[id(phantom)] = phantom(tmp_path_factory.mktemp("phantom"), 3)
        return made[id(phantom)]

    return folder_of


# Brains


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(48, 32), (80, 48)])
def test_brain(seed: int, sizes: tuple[int, int]) -> None:
    brain = phantom_brain(np.random.default_rng(seed), *sizes)
    label = brain.label
    assert brain.images.dtype == np.int16
    assert label.dtype == np.uint8
    assert brain.images.shape == (4, sizes[0], *sizes)
    assert label.shape == brain.images.shape[1:]
    assert set(np.unique(label)) == {0, 1, 2, 4}

    # The skull is stripped alike in all modalities, and the margin of the volume is empty.
    inside = brain.images[0] > 0
    assert brain.images.min() == 0
    for image in brain.images:
        np.testing.assert_array_equal(image > 0, inside)
    assert 0.08 < inside.mean() < 0.4
    assert not any(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    assert not inside[..., [0, -1]].any()
    assert not (label[~inside] > 0).any()

    # Necrosis within the rim, the rim within oedema.
    necrosis, core = label == 1, np.isin(label, (1, 4))
    for part, around in ((necrosis, 4), (core, 2)):
        assert ndimage.label(part, CUBE)[1] == 1
        assert set(label[ndimage.binary_dilation(part, CUBE) & ~part]) == {around}
    assert ndimage.label(label > 0, CUBE)[1] == 1


def test_brain_contrast_is_that_of_each_modality() -> None:
    brains = [phantom_brain(np.random.default_rng(seed)) for seed in range(3)]
    for brain in brains:
        flair, t1, t1ce, t2 = (
            {k: image[(brain.label == k) & (image > 0)].mean() for k in (0, 1, 2, 4)}
            for image in brain.images
        )
        assert t1ce[4] > 1.2 * max(t1ce[k] for k in (0, 1, 2))
        assert flair[2] > 1.2 * flair[0]
        assert flair[2] > 1.1 * flair[1]
        assert t2[2] > t2[0]
        assert t1[1] < 0.8 * t1[0]


def test_a_threshold_does_not_find_the_rim() -> None:
    """Elsewhere there is more than half as much that is as bright on T1ce."""
    elsewhere = []
    for seed in range(3):
        brain = phantom_brain(np.random.default_rng(seed))
        t1ce, rim = brain.images[2], brain.label == 4
        bright = t1ce >= np.percentile(t1ce[rim], 20)
        elsewhere.append((bright & ~rim).sum() / (bright & rim).sum())
    assert np.median(elsewhere) > 0.5


def test_brains_differ() -> None:
    labels = [phantom_brain(np.random.default_rng(seed), 48, 32).label > 0 for seed in range(6)]
    sizes = [label.sum() for label in labels]
    assert max(sizes) > 1.5 * min(sizes)
    assert len({tuple(np.round(ndimage.center_of_mass(label), 1)) for label in labels}) == 6


# Abdomens


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sizes", [(48, 12), (96, 24)])
def test_abdomen(seed: int, sizes: tuple[int, int]) -> None:
    case = phantom_abdomen(np.random.default_rng(seed), *sizes)
    image, label = case.image, case.label
    assert image.dtype == np.int16
    assert label.dtype == np.uint8
    assert image.shape == label.shape == (sizes[1], sizes[0], sizes[0])
    assert set(np.unique(label)) == {0, 1, 2}
    assert image.min() >= -1024
    assert image.max() <= 3071
    z, y, x = case.spacing
    assert y == x
    assert z > 1.5 * x

    # Two kidneys, left and right, one with a tumour; each whole within the volume.
    middle = sizes[0] // 2
    assert ndimage.label(label > 0, CUBE)[1] == 2
    assert (label[..., :middle] == 1).any()
    assert (label[..., middle:] == 1).any()
    tumour = label == 2
    assert ndimage.label(tumour, CUBE)[1] == 1
    assert tumour[..., :middle].any() != tumour[..., middle:].any()
    assert (label[ndimage.binary_dilation(tumour, CUBE)] == 1).any()
    assert not any(side.any() for side in (label[0], label[-1], label[:, 0], label[:, -1]))

    # Enhanced kidney is brighter than tumour, and all of it lies in the body.
    assert image[label == 1].mean() > image[tumour].mean() + 20
    assert image[label > 0].mean() > 30
    assert image[:, 0].mean() < -900


def test_abdomen_has_much_that_is_as_bright_as_kidney() -> None:
    case = phantom_abdomen(np.random.default_rng(5))
    low, high = np.percentile(case.image[case.label == 1], [5, 95])
    bright = (case.image >= low) & (case.image <= high)
    assert (bright & (case.label == 0)).sum() > (bright & (case.label == 1)).sum()


def test_abdomens_differ_in_spacing_and_side() -> None:
    cases = [phantom_abdomen(np.random.default_rng(seed), 48, 12) for seed in range(8)]
    assert len({case.spacing for case in cases}) == 8
    assert len({bool((case.label[..., :24] == 2).any()) for case in cases}) == 2


# Chests


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [48, 256])
def test_chest(seed: int, size: int) -> None:
    chest = phantom_chest(np.random.default_rng(seed), size)
    assert chest.image.dtype == chest.left.dtype == chest.right.dtype == np.uint8
    assert chest.image.shape == chest.left.shape == chest.right.shape
    assert all(0.9 * size - 1 <= side <= 1.1 * size + 1 for side in chest.image.shape)
    for lung in (chest.left, chest.right):
        assert set(np.unique(lung)) == {0, 255}
        assert ndimage.label(lung)[1] == 1
        assert 0.05 < (lung > 0).mean() < 0.25
        assert not any(side.any() for side in (lung[0], lung[-1], lung[:, 0], lung[:, -1]))
    assert not (chest.left & chest.right).any()
    # Seen from the front, and the heart takes more of the left lung.
    columns = [np.flatnonzero(lung.any(0)).mean() for lung in (chest.right, chest.left)]
    assert columns[0] < columns[1]
    assert (chest.left > 0).sum() < (chest.right > 0).sum()
    # Lungs are darker than what lies between them.
    lungs = (chest.left | chest.right) > 0
    rows, middle = np.flatnonzero(lungs.any(1)), round(sum(columns) / 2)
    between = chest.image[rows[0] : rows[-1], middle - size // 20 : middle + size // 20]
    assert chest.image[lungs].mean() < 0.85 * between.mean()


def test_chest_has_more_that_is_dark_than_lungs() -> None:
    shares = []
    for seed in range(6):
        chest = phantom_chest(np.random.default_rng(seed))
        lungs = (chest.left | chest.right) > 0
        dark = chest.image <= np.percentile(chest.image[lungs], 90)
        shares.append((dark & ~lungs).sum() / dark.sum())
    assert np.median(shares) > 0.2


def test_chests_differ() -> None:
    chests = [phantom_chest(np.random.default_rng(seed), 64) for seed in range(8)]
    assert len({chest.image.shape for chest in chests}) > 5
    areas = [(chest.right > 0).mean() for chest in chests]
    assert max(areas) > 1.2 * min(areas)


# Arrays of all


@pytest.mark.parametrize(
    ("draw", "arrays"),
    [
        (phantom_brain, ("images", "label")),
        (phantom_abdomen, ("image", "label")),
        (phantom_chest, ("image", "left", "right")),
    ],
)
def test_same_state_same_arrays(draw: Callable[..., Any], arrays: tuple[str, ...]) -> None:
    first, second, other = (draw(np.random.default_rng(seed), 48) for seed in (7, 7, 8))
    for name in arrays:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize(
    ("draw", "phantom", "sizes", "message"),
    [
        (phantom_brain, BRATS18, {"size": 47}, "size must be at least 48 voxels, got 47"),
        (phantom_brain, BRATS18, {"num_slices": 31}, "num_slices must be at least 32, got 31"),
        (phantom_abdomen, KITS19, {"size": 47}, "size must be at least 48 voxels, got 47"),
        (phantom_abdomen, KITS19, {"num_slices": 11}, "num_slices must be at least 12, got 11"),
        (phantom_chest, CHEST_XRAY, {"size": 47}, "size must be at least 48 pixels, got 47"),
    ],
)
def test_sizes_too_small(
    draw: Callable[..., Any],
    phantom: Phantom,
    sizes: dict[str, int],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(np.random.default_rng(0), **sizes)
    with pytest.raises(ValueError, match=message):
        phantom(tmp_path, **sizes)
    assert not list(tmp_path.iterdir())


# The layouts


def test_brats18_layout(written: Callable[[Phantom], Path]) -> None:
    root = written(BRATS18)
    items = brats18_datalist(root)
    assert [item["patient"] for item in items] == [f"Brats18_PHANTOM_{n:03d}_1" for n in (1, 2, 3)]
    assert len(brats18_datalist(root, split="train")) == 2
    brain = phantom_brain(np.random.default_rng([0, 1]), 48, 32)
    load = LoadImage(image_only=True)
    label = load(items[0]["label"])
    np.testing.assert_array_equal(label.numpy(), brain.label)
    for path, image in zip(items[0]["image"], brain.images, strict=True):
        volume = load(path)
        np.testing.assert_array_equal(volume.numpy(), image)
        np.testing.assert_array_equal(volume.affine, label.affine)
    # The affine of the release, whose volumes have 240 rows.
    expected = np.diag([-1.0, -1, 1, 1])
    expected[1, 3] = 47
    np.testing.assert_array_equal(label.affine, expected)


@pytest.mark.parametrize("reader", ["ITKReader", "NibabelReader"])
def test_kits19_layout(written: Callable[[Phantom], Path], reader: str) -> None:
    items = kits19_datalist(written(KITS19))
    assert [item["patient"] for item in items] == ["case_00000", "case_00001", "case_00002"]
    case = phantom_abdomen(np.random.default_rng([0, 0]), 48, 12)
    load = LoadImage(reader=reader, image_only=True)
    for key, array in (("image", case.image), ("label", case.label)):
        volume = load(items[0][key])
        np.testing.assert_array_equal(volume.numpy(), array)
        np.testing.assert_allclose(volume.pixdim, case.spacing, rtol=1e-6)
        # Slices come first, downwards; then to the back; then to the left.
        rotation = np.zeros((3, 3))
        rotation[[2, 1, 0], [0, 1, 2]] = [-length for length in case.spacing]
        np.testing.assert_allclose(volume.affine[:3, :3], rotation, atol=1e-5)


@pytest.mark.parametrize("phantom", FOLDERS)
def test_volumes_keep_their_types(phantom: Phantom, written: Callable[[Phantom], Path]) -> None:
    import nibabel

    for path in (written(phantom) / phantom.case(1)).glob("*.nii.gz"):
        expected = np.uint8 if "seg" in path.name else np.int16
        assert nibabel.load(path).get_data_dtype() == expected


def test_merged_chest_xray_layout(written: Callable[[Phantom], Path]) -> None:
    from PIL import Image

    root = written(CHEST_XRAY)
    items = chest_xray_datalist(root)
    assert [item["name"] for item in items] == ["MCUCXR_0001_0", "MCUCXR_0002_0", "CHNCXR_0001_0"]
    chest = phantom_chest(np.random.default_rng([0, 2]), 64)
    image, mask = (Image.open(items[2][key]) for key in ("image", "label"))
    assert image.mode == mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), chest.image)
    np.testing.assert_array_equal(np.asarray(mask), chest.left | chest.right)


def test_nlm_chest_xray_layout(written: Callable[[Phantom], Path], tmp_path: Path) -> None:
    from PIL import Image

    items = chest_xray_datalist(CHEST_XRAY(tmp_path, 3, layout="nlm"))
    merged = chest_xray_datalist(written(CHEST_XRAY))
    assert [item["name"] for item in items] == [item["name"] for item in merged]
    assert [isinstance(item["label"], list) for item in items] == [True, True, False]
    for item, other in zip(items, merged, strict=True):
        paths = item["label"] if isinstance(item["label"], list) else [item["label"]]
        union = np.maximum.reduce([np.asarray(Image.open(path)) for path in paths])
        np.testing.assert_array_equal(union, np.asarray(Image.open(other["label"])))
    chest = phantom_chest(np.random.default_rng([0, 1]), 64)
    np.testing.assert_array_equal(np.asarray(Image.open(items[0]["label"][0])), chest.left)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_split_of_a_small_phantom_has_images(split: str, tmp_path: Path) -> None:
    CHEST_XRAY(tmp_path, 6)
    items = chest_xray_datalist(tmp_path, split)
    assert {item["source"] for item in items} == {"Montgomery", "Shenzhen"}


# The files of all


@pytest.mark.parametrize("phantom", ALL)
def test_smaller_phantom_is_the_beginning_of_a_larger(
    phantom: Phantom, written: Callable[[Phantom], Path], tmp_path: Path
) -> None:
    few, many = contents(phantom(tmp_path, 1)), contents(written(phantom))
    assert few.items() < many.items()


@pytest.mark.parametrize("phantom", ALL)
def test_rerun_keeps_what_is_there(
    phantom: Phantom, written: Callable[[Phantom], Path], tmp_path: Path
) -> None:
    phantom(tmp_path, 2)
    before = {path: (tmp_path / path).stat().st_mtime_ns for path in contents(tmp_path)}
    phantom(tmp_path, 3)
    after = contents(tmp_path)
    assert after == contents(written(phantom))
    kept = {path: (tmp_path / path).stat().st_mtime_ns for path in before}
    kept.pop("phantom.json", None)
    assert kept.items() <= before.items()


@pytest.mark.parametrize("phantom", FOLDERS)
def test_resume_after_a_kill(
    phantom: Phantom, written: Callable[[Phantom], Path], tmp_path: Path
) -> None:
    root = tmp_path / "phantom"
    shutil.copytree(written(phantom), root)
    whole = contents(root)
    case = root / phantom.case(2)
    killed = case.with_name(f".{case.name}.partial-ab12")
    case.rename(killed)
    next(killed.glob("*seg*.nii.gz")).unlink()
    assert len(phantom.read(root)) == 2  # The part is not read as a patient.

    phantom(root, 3)
    made = {name: data for name, data in contents(root).items() if ".partial-" not in name}
    assert made == whole


def test_resume_after_a_kill_between_mask_and_image(
    written: Callable[[Phantom], Path], tmp_path: Path
) -> None:
    root = tmp_path / "phantom"
    shutil.copytree(written(CHEST_XRAY), root)
    whole = contents(root)
    image = root / CHEST_XRAY.case(2)
    image.rename(image.with_name(f".{image.stem}.partial-7.png"))
    assert len(chest_xray_datalist(root)) == 2
    CHEST_XRAY(root, 3)
    made = {name: data for name, data in contents(root).items() if ".partial-" not in name}
    assert made == whole


def test_resume_after_a_kill_before_the_first_image(tmp_path: Path) -> None:
    (tmp_path / ".phantom.partial-7.json").touch()
    assert len(chest_xray_datalist(CHEST_XRAY(tmp_path))) == 2


@pytest.mark.parametrize("phantom", ALL)
def test_failure_leaves_no_part(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, write = phantom.writer
    calls: list[str] = []

    def fail_at_the_end_of_the_second_case(path: Path, *args: Any) -> None:
        calls.append(path.name)
        if len(calls) == 2 * phantom.files:
            raise OSError("No space left on device")
        write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module, write.__name__, fail_at_the_end_of_the_second_case)
        with pytest.raises(OSError, match="No space left"):
            phantom(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if ".partial-" in path.name]
    assert len(phantom.read(tmp_path)) == 1


@pytest.mark.parametrize("phantom", FOLDERS)
def test_two_processes_at_once(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finishes the patient between our look and our move."""
    replace = os.replace

    def beaten(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", beaten)
    phantom(tmp_path, 1)
    assert [path.name for path in (tmp_path / phantom.case(1)).parent.iterdir()] == [
        Path(phantom.case(1)).name
    ]


@pytest.mark.parametrize(
    ("phantom", "change"),
    [
        (BRATS18, {"seed": 1}),
        (BRATS18, {"size": 50}),
        (KITS19, {"num_slices": 13}),
        (CHEST_XRAY, {"seed": 1}),
        (CHEST_XRAY, {"layout": "nlm"}),
    ],
)
def test_other_parameters_are_refused(
    phantom: Phantom, change: dict[str, Any], written: Callable[[Phantom], Path], tmp_path: Path
) -> None:
    shutil.copytree(written(phantom), tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"is not of this phantom: .* it says"):
        phantom(tmp_path, 4, **change)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("phantom", ALL)
def test_real_data_is_never_touched(phantom: Phantom, tmp_path: Path) -> None:
    real = tmp_path / phantom.case(2)
    real.parent.mkdir(parents=True)
    real.touch()
    with pytest.raises(FileExistsError, match=r"phantom\.json should say .* it is absent"):
        phantom(tmp_path)
    assert list(contents(tmp_path)) == [phantom.case(2)]


@pytest.mark.parametrize("phantom", FOLDERS)
def test_lost_volume_is_told(phantom: Phantom, tmp_path: Path) -> None:
    phantom(tmp_path, 1)
    next(tmp_path.rglob("*seg*.nii.gz")).unlink()
    message = f"lost files: it holds {phantom.files - 1} of {phantom.files} volumes"
    with pytest.raises(FileExistsError, match=message):
        phantom(tmp_path, 1)


def test_lost_mask_is_told(tmp_path: Path) -> None:
    CHEST_XRAY(tmp_path, 1)
    next(tmp_path.glob("masks/*.png")).unlink()
    with pytest.raises(FileExistsError, match=r"holds MCUCXR_0001_0\.png without .*masks.MCUCXR"):
        CHEST_XRAY(tmp_path, 2)


@pytest.mark.parametrize("phantom", ALL)
def test_record(phantom: Phantom, written: Callable[[Phantom], Path]) -> None:
    folder = written(phantom) / ("" if phantom is CHEST_XRAY else phantom.case(2))
    record = json.loads((folder / "phantom.json").read_text())
    expected = {"format": 1, "seed": 0, **phantom.sizes}
    assert record == expected | ({"layout": "merged"} if phantom is CHEST_XRAY else {})


@pytest.mark.parametrize("phantom", ALL)
def test_bad_numbers(phantom: Phantom, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{phantom.number} must be at least 1, got 0"):
        phantom(tmp_path, 0)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        phantom(tmp_path, seed=-1)
    assert not list(tmp_path.iterdir())


def test_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout must be one of 'merged', 'nlm', got 'kaggle'"):
        CHEST_XRAY(tmp_path, layout="kaggle")


@pytest.mark.parametrize("phantom", ALL)
def test_progress_bar(phantom: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantom(tmp_path / "quiet", 1)
    assert capsys.readouterr().err == ""
    phantom.make(tmp_path / "loud", **{phantom.number: 1}, **phantom.sizes)
    assert "phantom: 100%" in capsys.readouterr().err


# The command line


@pytest.mark.parametrize(
    ("dataset", "phantom"), [("brats18", BRATS18), ("kits19", KITS19), ("chest_xray", CHEST_XRAY)]
)
def test_phantom_command(
    dataset: str, phantom: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["phantom", str(tmp_path), "--dataset", dataset, "--patients", "1"]
    assert main([*arguments, "--seed", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)
    assert (tmp_path / phantom.case(1)).exists()
    assert len(phantom.read(tmp_path)) == 1
    assert main([*arguments, "--seed", "4"]) == 1
    assert "is not of this phantom" in capsys.readouterr().err


def test_phantom_command_names_the_datasets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["phantom", "out", "--dataset", "mnist"])
    message = capsys.readouterr().err
    assert all(name in message for name in ("acdc17", "brats18", "kits19", "chest_xray"))
