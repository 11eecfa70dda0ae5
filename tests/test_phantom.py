"""The hearts: the same seed gives the same arrays, the anatomy holds, no half patient is read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImage
from scipy import ndimage

from monai_segloss.datasets import (
    PhantomFrame,
    acdc17_datalist,
    make_acdc17_phantom,
    phantom,
    phantom_heart,
)

IN_PLANE = ndimage.generate_binary_structure(2, 1)[..., None]
SMALL = {"size": 48, "num_slices": 6}


def draw(seed: int, size: int = 48, num_slices: int | None = None) -> tuple[PhantomFrame, ...]:
    return phantom_heart(np.random.default_rng(seed), size, num_slices)


def make(folder: Path, patients: int = 2, seed: int = 0, **sizes: int) -> Path:
    return make_acdc17_phantom(folder, patients, seed, progress=False, **{**SMALL, **sizes})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("phantom"), patients=3)


# The arrays


def test_full_size_case() -> None:
    ed, es = draw(1, size=128)
    assert (ed.phase, es.phase) == ("ED", "ES")
    assert ed.image.shape == es.image.shape == ed.label.shape
    assert all(112 <= side <= 144 for side in ed.image.shape[:2])
    assert 8 <= ed.image.shape[2] <= 12
    # As for ACDC's release, each label takes a small share, and blood is brighter than muscle.
    for frame in (ed, es):
        shares = np.bincount(frame.label.ravel(), minlength=4) / frame.label.size
        assert (shares[1:] > 0.003).all()
        assert shares[0] > 0.85
        right, muscle, left = (frame.image[frame.label == k].mean() for k in (1, 2, 3))
        assert muscle < 0.7 * min(right, left)


def test_same_state_same_arrays() -> None:
    for first, second, other in zip(draw(7), draw(7), draw(8), strict=True):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.label, second.label)
        assert first.spacing == second.spacing
        assert first.spacing != other.spacing


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("size", "num_slices"), [(48, None), (64, 6), (48, 15)])
def test_anatomy(seed: int, size: int, num_slices: int | None) -> None:
    ed, es = draw(seed, size, num_slices)
    assert ed.spacing == es.spacing
    for frame in (ed, es):
        image, label = frame.image, frame.label
        assert image.dtype == np.int16
        assert label.dtype == np.uint8
        assert image.shape == label.shape
        assert image.min() >= 0
        assert set(np.unique(label)) == {0, 1, 2, 3}
        x, y, z = frame.spacing
        assert x == y
        assert 1.2 <= x <= 1.8
        assert 5 <= z <= 10
        assert image.shape[2] == num_slices or 8 <= image.shape[2] <= 12

        cavity = label == 3
        around = label[ndimage.binary_dilation(cavity, IN_PLANE) & ~cavity]
        assert set(around) == {2}  # Muscle, and neither background nor the right ventricle.
        assert ndimage.label(label > 0)[1] == 1

        slices = np.flatnonzero(label.any((0, 1)))
        assert slices[0] > 0
        assert slices[-1] < image.shape[2] - 1
        assert (np.diff(slices) == 1).all()
        assert not any(side.any() for side in (label[0], label[-1], label[:, 0], label[:, -1]))
        for k in slices:
            assert ndimage.label(label[..., k] == 1)[1] <= 1

    # It contracts: a smaller cavity in a thicker wall.
    middle = np.flatnonzero((es.label == 3).any((0, 1)))
    k = middle[len(middle) // 2]
    areas = [[(frame.label[..., k] == c).sum() for c in (2, 3)] for frame in (ed, es)]
    assert areas[1][1] < areas[0][1]
    assert areas[1][0] / areas[1][1] > areas[0][0] / areas[0][1]


def test_heart_tapers_from_base_to_apex() -> None:
    label = draw(3, size=128)[0].label
    areas = (label > 0).sum((0, 1))
    slices = np.flatnonzero(areas)
    assert areas[slices[0]] > 2 * areas[slices[-1]]


def test_cases_differ() -> None:
    frames = [draw(seed)[0] for seed in range(8)]
    assert len({frame.spacing for frame in frames}) == 8
    assert len({frame.image.shape for frame in frames}) > 5
    assert len({frame.image.shape[2] for frame in frames}) > 1
    means = [frame.image[frame.label == 3].mean() for frame in frames]
    assert max(means) > 1.5 * min(means)


def test_a_threshold_does_not_solve_it() -> None:
    """Outside the heart there is more as bright as the cavity than the cavity itself."""
    frame = draw(5, size=128)[0]
    low, high = np.percentile(frame.image[frame.label == 3], [5, 95])
    bright = (frame.image >= low) & (frame.image <= high)
    assert (bright & (frame.label == 0)).sum() > (bright & (frame.label == 3)).sum()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"size": 47}, "size must be at least 48 voxels, got 47"),
        ({"num_slices": 5}, "num_slices must be None or at least 6, got 5"),
    ],
)
def test_sizes_too_small(sizes: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        phantom_heart(np.random.default_rng(0), **sizes)
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **sizes)
    assert not list(tmp_path.iterdir())


# The files


def test_layout(written: Path) -> None:
    items = acdc17_datalist(written)
    assert [item["patient"] for item in items[::2]] == ["patient001", "patient002", "patient003"]
    assert [item["phase"] for item in items] == ["ED", "ES"] * 3
    assert all(item["frame"] == 1 for item in items[::2])
    assert all(7 <= int(item["frame"]) <= 15 for item in items[1::2])
    assert len(acdc17_datalist(written, split="train")) == 2
    info = (written / "training" / "patient001" / "Info.cfg").read_text()
    keys = [line.partition(":")[0] for line in info.splitlines()]
    assert keys == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]


@pytest.mark.parametrize("reader", ["ITKReader", "NibabelReader"])
def test_files_hold_the_arrays_and_the_spacing(written: Path, reader: str) -> None:
    if reader == "NibabelReader":
        pytest.importorskip("nibabel")
    load = LoadImage(reader=reader, image_only=True)
    items = acdc17_datalist(written, max_patients=1)
    frames = phantom_heart(np.random.default_rng([0, 1]), **SMALL)
    for item, frame in zip(items, frames, strict=True):
        for key, array in (("image", frame.image), ("label", frame.label)):
            volume = load(str(item[key]))
            np.testing.assert_array_equal(volume.numpy(), array)
            np.testing.assert_allclose(volume.pixdim, frame.spacing, rtol=1e-6)
            # As ACDC's: the identity in ITK's coordinates, which is this in MONAI's.
            affine = np.diag([-frame.spacing[0], -frame.spacing[1], frame.spacing[2], 1])
            np.testing.assert_allclose(volume.affine, affine, atol=1e-6)


def test_files_keep_their_types(written: Path) -> None:
    import itk

    item = acdc17_datalist(written)[0]
    types = [itk.array_from_image(itk.imread(item[key])).dtype for key in ("image", "label")]
    assert types == [np.int16, np.uint8]


def test_smaller_phantom_is_the_beginning_of_a_larger(written: Path, tmp_path: Path) -> None:
    load = LoadImage(image_only=True)
    few = acdc17_datalist(make(tmp_path, patients=1))
    many = acdc17_datalist(written)
    for a, b in zip(few, many[:2], strict=True):
        assert a["frame"] == b["frame"]
        for key in ("image", "label"):
            np.testing.assert_array_equal(load(str(a[key])).numpy(), load(str(b[key])).numpy())


def test_rerun_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(phantom, "phantom_heart", None)  # Nothing is drawn again.
        make(tmp_path)
    assert contents(tmp_path) == before
    make(tmp_path, patients=3)
    assert before.items() < contents(tmp_path).items()


def test_resume_after_a_kill(written: Path, tmp_path: Path) -> None:
    root = tmp_path / "phantom"
    shutil.copytree(written, root)
    whole = contents(root)
    training = root / "training"
    killed = training / ".patient002.partial-ab12"
    (training / "patient002").rename(killed)
    next(killed.glob("*_gt.nii.gz")).unlink()
    assert len(acdc17_datalist(root)) == 4  # The part is not read as a patient.

    make(root, patients=3)
    made = {name: data for name, data in contents(root).items() if ".partial-" not in name}
    assert made == whole


def test_failure_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = phantom.write_volume
    calls: list[str] = []

    def fail_in_second_patient(path: Path, *args: object) -> None:
        calls.append(path.name)
        if len(calls) == 6:
            raise OSError("No space left on device")
        write(path, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(phantom, "write_volume", fail_in_second_patient)
        with pytest.raises(OSError, match="No space left"):
            make(tmp_path)
    assert [path.name for path in (tmp_path / "training").iterdir()] == ["patient001"]


def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes the patient between our look and our move."""
    replace = os.replace

    def beaten(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", beaten)
    make(tmp_path, patients=1)
    assert [path.name for path in (tmp_path / "training").iterdir()] == ["patient001"]
    assert len(acdc17_datalist(tmp_path)) == 2


def test_failed_move_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise PermissionError("refused")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError, match="refused"):
        make(tmp_path, patients=1)
    assert not list((tmp_path / "training").iterdir())


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 50}, {"num_slices": 7}])
def test_other_parameters_are_refused(
    change: dict[str, int], written: Path, tmp_path: Path
) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(
        FileExistsError, match=r"patient001 exists and is not of this phantom: .*sa"
    ):
        make(tmp_path, patients=4, **change)
    assert contents(tmp_path) == before


def test_a_real_patient_is_never_touched(tmp_path: Path) -> None:
    real = tmp_path / "training" / "patient002"
    real.mkdir(parents=True)
    (real / "Info.cfg").write_text("ED: 1\n")
    with pytest.raises(FileExistsError, match=r"patient002 exists .*phantom\.json .* is absent"):
        make(tmp_path)
    assert [path.name for path in real.parent.iterdir()] == ["patient002"]


def test_lost_file_is_told(tmp_path: Path) -> None:
    make(tmp_path, patients=1)
    next(tmp_path.rglob("*_gt.nii.gz")).unlink()
    with pytest.raises(FileExistsError, match="patient001 lost files: it holds 3 of 4 volumes"):
        make(tmp_path, patients=1)


def test_record(written: Path) -> None:
    record = json.loads((written / "training" / "patient002" / "phantom.json").read_text())
    assert record == {"format": phantom._FORMAT, "seed": 0, "size": 48, "num_slices": 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_patients": 0}, "num_patients must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_bad_numbers(arguments: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_acdc17_phantom(tmp_path, progress=False, **arguments)


def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "quiet", patients=1)
    assert capsys.readouterr().err == ""
    make_acdc17_phantom(tmp_path / "loud", 1, **SMALL)  # type: ignore[arg-type]
    assert "phantom: 100%" in capsys.readouterr().err
