"""Maps computed ahead of training: files, resumption, errors, and loading them back."""

from __future__ import annotations

import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import oracles
import pytest
import torch
from monai.data import CacheDataset, MetaTensor, set_track_meta
from monai.transforms import (
    Compose,
    LoadImaged,
    Orientationd,
    RandFlipd,
    Resized,
    Spacingd,
    SqueezeDimd,
)
from oracles import Array, blobs

from monai_segloss import map_files, transforms
from monai_segloss.__main__ import main
from monai_segloss.map_files import make_recipe, map_path, read_record
from monai_segloss.maps import MAP_KINDS
from monai_segloss.precompute import find_labels, precompute_maps
from monai_segloss.transforms import LoadMapd, RegionWiseMapd

SHAPE = (12, 10, 7)
SIZES = (0.75, 2.0, 1.25)
# The voxel axes run along y, -x and z, from a place that is not the origin.
AFFINE = np.array(
    [[0, -2.0, 0, 31.5], [0.75, 0, 0, -12.25], [0, 0, 1.25, 4.0], [0, 0, 0, 1.0]], dtype=float
)


def write_label(path: Path, values: Array, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.uint8), affine), path)
    return path


def write_png(path: Path, values: Array) -> Path:
    """Values indexed (x, y)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(values.T.astype(np.uint8))), str(path))
    return path


@pytest.fixture
def labels(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Four labels of three classes in two folders, each beside its image."""
    folder = tmp_path / "labels"
    for name in ("a/one", "a/two", "b/three", "b/four"):
        write_label(folder / f"{name}_gt.nii.gz", blobs(rng, SHAPE, 3))
        write_label(folder / f"{name}.nii.gz", rng.integers(0, 200, SHAPE))
    return folder


PATTERN = "**/*_gt.nii.gz"


def run(labels: Path, **options: Any) -> Any:
    return precompute_maps(
        labels,
        labels.parent / "maps",
        **{"num_classes": 3, "pattern": PATTERN, "workers": 1, **options},
    )


def loaded(path: Path, *more: Any) -> dict[str, Any]:
    """The label of a file, after further transforms."""
    load = LoadImaged("label", reader="ITKReader", ensure_channel_first=True)
    out: dict[str, Any] = Compose([load, *more])({"label": str(path)})
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


# --------------------------------------------------------------------------- the files


def test_every_label_gets_its_map(labels: Path) -> None:
    found = run(labels)
    names = [
        "a/one_gt_rrw.nii.gz",
        "a/two_gt_rrw.nii.gz",
        "b/four_gt_rrw.nii.gz",
        "b/three_gt_rrw.nii.gz",
    ]
    maps = labels.parent / "maps"
    assert found.written == [maps / name for name in names]
    assert not found.skipped
    assert not found.failed
    assert sorted(contents(maps)) == names
    for path in find_labels(labels, PATTERN):
        where = map_path(path, labels, maps, "rrw")
        assert where in found.written
        record = read_record(where)
        assert record is not None
        assert record["recipe"] == make_recipe("rrw", 3)
        assert record["label"]["name"] == path.name


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", MAP_KINDS)
def test_a_map_has_the_labels_grid_and_values_in_mm(kind: str, dense: bool, labels: Path) -> None:
    run(labels, kind=kind, dense=dense)
    path = labels / "a" / "one_gt.nii.gz"
    label = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    wanted = oracles.region_wise_map(kind, label, 3, SIZES)
    where = map_path(path, labels, labels.parent / "maps", kind)
    first, second = itk.imread(str(path)), itk.imread(str(where))
    if dense or not MAP_KINDS[kind].compact:
        assert list(itk.size(second)) == [*SHAPE, 3]
    else:
        wanted = np.take_along_axis(wanted, label[None].astype(int), 0)[0] * MAP_KINDS[kind].sign
        wanted = wanted[..., None]
        assert list(itk.size(second)) == list(SHAPE)
        for a, b in (
            (first.GetOrigin(), second.GetOrigin()),
            (first.GetSpacing(), second.GetSpacing()),
            (
                itk.array_from_matrix(first.GetDirection()).flat,
                itk.array_from_matrix(second.GetDirection()).flat,
            ),
        ):
            assert list(a) == list(b)
    image: Any = nibabel.load(where)
    np.testing.assert_array_equal(image.affine, nibabel.load(path).affine)  # type: ignore[attr-defined]
    assert image.get_data_dtype() == np.float32
    values = np.asarray(image.dataobj).reshape(*SHAPE, -1)
    if wanted.ndim == 4 and wanted.shape[0] == 3:
        wanted = np.moveaxis(wanted, 0, -1)
    np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5)


def test_spacing_may_be_given_or_left_out(labels: Path) -> None:
    path = labels / "a" / "one_gt.nii.gz"
    label = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    for spacing, size in ((None, None), ([1.0, 3.0, 2.0], (1.0, 3.0, 2.0))):
        run(labels, kind="boundary", spacing=spacing, overwrite=True)
        where = map_path(path, labels, labels.parent / "maps", "boundary")
        values = np.asarray(nibabel.load(where).dataobj)  # type: ignore[attr-defined]
        wanted = np.moveaxis(oracles.boundary(label, 3, size), 0, -1)
        np.testing.assert_allclose(values, wanted, rtol=1e-5)


def test_the_number_of_workers_does_not_change_a_byte(labels: Path) -> None:
    run(labels)
    one = contents(labels.parent / "maps")
    found = precompute_maps(
        labels, labels.parent / "again", num_classes=3, pattern=PATTERN, workers=2
    )
    assert len(found.written) == 4
    assert contents(labels.parent / "again") == one


def test_label_values_become_classes(tmp_path: Path, rng: np.random.Generator) -> None:
    classes = blobs(rng, SHAPE, 4)
    path = write_label(tmp_path / "in" / "seg.nii.gz", np.array([0, 1, 2, 4])[classes])
    found = precompute_maps(
        tmp_path / "in", tmp_path / "out", label_values={"1": 1, 2: 2, 4: 3}, workers=1
    )
    values = np.asarray(nibabel.load(found.written[0]).dataobj)  # type: ignore[attr-defined]
    dense = oracles.rrw(classes, 4, SIZES)
    np.testing.assert_allclose(values, np.take_along_axis(dense, classes[None], 0)[0], rtol=1e-5)
    found = precompute_maps(tmp_path / "in", tmp_path / "2", label_values={1: 1, 2: 1}, workers=1)
    assert "expected the label values [0, 1, 2], got [4.0] too" in found.failed[path]


# --------------------------------------------------------------------------- resumption


def test_a_second_run_skips_what_is_there(labels: Path) -> None:
    first = run(labels)
    times = {path: path.stat().st_mtime_ns for path in first.written}
    first.written[1].unlink()
    second = run(labels)
    assert second.written == [first.written[1]]
    assert second.skipped == [first.written[i] for i in (0, 2, 3)]
    for path in second.skipped:
        assert path.stat().st_mtime_ns == times[path]


@pytest.mark.parametrize("keep", [0, 100, 0.5, -4])
def test_a_damaged_map_is_made_anew(keep: float, labels: Path) -> None:
    path = run(labels).written[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    found = run(labels)
    assert found.written == [path]
    assert path.read_bytes() == whole


def test_a_failed_write_leaves_nothing(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Any, file: Any) -> None:
        file.write(b"half a map")
        raise OSError("No space left on device")

    monkeypatch.setattr(nibabel.Nifti1Image, "to_stream", half)
    found = run(labels)
    assert list(found.failed.values()) == ["No space left on device"] * 4
    assert not contents(labels.parent / "maps")


def test_a_killed_run_goes_on(tmp_path: Path, rng: np.random.Generator) -> None:
    number = 40
    values = blobs(rng, (40, 40, 40), 3)
    for i in range(number):
        write_label(tmp_path / "in" / f"{i:02d}.nii.gz", np.roll(values, i, axis=0))
    maps = tmp_path / "out"
    command = ["maps", str(tmp_path / "in"), str(maps), "--num-classes", "3", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "monai_segloss", *command])
    try:
        while len(list(maps.glob("*.nii.gz"))) < 3:
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = sorted(path for path in maps.glob("*_rrw.nii.gz") if not path.name.startswith("."))
    assert 3 <= len(done) < number
    for path in done:
        map_files.check_whole_nifti(path)
    found = precompute_maps(tmp_path / "in", maps, num_classes=3, workers=1)
    assert found.skipped == done
    assert len(found.written) == number - len(done)


# --------------------------------------------------------------------------- refused


def test_another_recipe_is_refused_unless_overwritten(labels: Path) -> None:
    run(labels, kind="boundary")
    before = contents(labels.parent / "maps")
    found = run(labels, kind="boundary", spacing=None, map_options={"inside": "shifted"})
    assert len(found.failed) == 4
    for message in found.failed.values():
        assert "spacing was 'affine', is None; map_options was {}, is {'inside'" in message
    assert contents(labels.parent / "maps") == before
    assert len(run(labels, kind="boundary", spacing=None, overwrite=True).written) == 4
    assert contents(labels.parent / "maps") != before


def test_a_changed_label_is_detected(labels: Path, rng: np.random.Generator) -> None:
    run(labels)
    path = labels / "a" / "one_gt.nii.gz"
    time_before = path.stat().st_mtime
    write_label(path, blobs(rng, SHAPE, 3))
    os.utime(path, (time_before, time_before))
    found = run(labels)
    assert list(found.failed) == [path]
    assert "the label has changed" in found.failed[path]
    assert len(found.skipped) == 3
    # A copy of the same file is the same label.
    again = run(labels, overwrite=True)
    path.write_bytes(path.read_bytes())
    assert len(again.written) == 1
    assert len(run(labels).skipped) == 4


def test_another_file_in_the_way_is_refused(labels: Path) -> None:
    where = labels.parent / "maps" / "a" / "one_gt_rrw.nii.gz"
    write_label(where, np.zeros(SHAPE))
    before = where.read_bytes()
    found = run(labels)
    assert "it is no map of monai_segloss" in found.failed[labels / "a" / "one_gt.nii.gz"]
    assert where.read_bytes() == before
    assert len(found.written) == 3


def test_one_bad_label_does_not_lose_the_others(
    labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    high, cut = labels / "a" / "one_gt.nii.gz", labels / "b" / "four_gt.nii.gz"
    write_label(high, np.full(SHAPE, 7))
    cut.write_bytes(cut.read_bytes()[:-20])
    maps = labels.parent / "maps"
    words = ["maps", str(labels), str(maps), "--num-classes", "3", "--pattern", PATTERN]
    assert main([*words, "--workers", "1"]) == 1
    printed = capsys.readouterr()
    assert f"{maps}: 2 maps written, 0 already there" in printed.out
    assert "error: 2 labels without a map:" in printed.err
    assert f"{high}: expected labels from 0 to 2, got up to 7" in printed.err
    assert f"{cut}: {cut}: expected a whole NIfTI file, got an error" in printed.err
    assert len(contents(maps)) == 2


def test_a_killed_worker_is_told(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import monai_segloss.precompute

    monkeypatch.setattr(monai_segloss.precompute, "_start_worker", os._exit)
    with pytest.raises(RuntimeError, match=r"^a worker process was killed.*fewer workers"):
        run(labels, workers=2)


def test_maps_beside_the_labels_are_no_labels(labels: Path) -> None:
    for image in labels.glob("*/*[!t].nii.gz"):
        image.unlink()
    first = precompute_maps(labels, labels, num_classes=3, workers=1)
    assert len(first.written) == 4
    second = precompute_maps(labels, labels, num_classes=3, workers=1)
    assert (len(second.skipped), len(second.written), second.failed) == (4, 0, {})


def test_error_arguments(labels: Path) -> None:
    for options, message in (
        ({"kind": "rww"}, r"^kind: expected one of .*got 'rww'"),
        ({"num_classes": None}, r"^num_classes: expected the number of classes.*got None"),
        ({"num_classes": 1}, r"^num_classes: expected at least 2, got 1"),
        ({"spacing": "mm"}, r"^spacing: expected 'affine', numbers or None, got 'mm'"),
        ({"spacing": [1, 0, 1]}, r"^spacing: expected finite positive numbers"),
        ({"map_options": {"sigma": 1}}, r"^map_options: rrw knows no option, got 'sigma'"),
        (
            {"kind": "border", "map_options": {"instances": torch.zeros(1)}},
            r"^map_options: expected numbers and texts",
        ),
        ({"label_values": {1: 3}}, r"^label_values: expected classes below num_classes 3"),
        ({"label_values": {1: -1}}, r"^label_values: expected classes of at least 0"),
        ({"label_values": {1: 1}, "threshold": 3}, r"^threshold: expected None beside"),
        ({"workers": 0}, r"^workers: expected at least 1, got 0"),
        ({"pattern": "*.nii"}, r"^label_dir: expected .* like \*.nii below .*got none"),
    ):
        with pytest.raises(ValueError, match=message):
            run(labels, **options)
    with pytest.raises(ValueError, match=r"^label_dir: expected a folder of labels, got"):
        run(labels / "none")
    write_label(labels / "a" / "one_gt.nii", np.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"^label_dir: expected one label for each map, got"):
        run(labels, pattern="**/*_gt.nii*")


def test_error_map_path(tmp_path: Path) -> None:
    assert map_path("in/a/b.c.nii", "in", "out", "rrw") == Path("out/a/b.c_rrw.nii.gz")
    assert map_path("in/m.png", "in", "out", "border") == Path("out/m_border.nii.gz")
    with pytest.raises(ValueError, match=r"^label_path: expected a file below in, got elsewhere"):
        map_path("elsewhere/b.nii", "in", "out", "rrw")
    with pytest.raises(ValueError, match=r"^label_path: expected .nii.gz, .nii, .png, got"):
        map_path("in/b.mha", "in", "out", "rrw")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--option", "sigma"], "expected KEY=VALUE, got 'sigma'"),
        (["--spacing", "1,2,x"], "expected affine, voxels or numbers in mm like 1,1,5"),
        (["--label-values", "1,2"], "expected VALUE:CLASS pairs like 1:1,2:2,4:3, got '1,2'"),
    ],
)
def test_error_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["maps", "in", "out", *words])
    assert message in capsys.readouterr().err


# --------------------------------------------------------------------------- LoadMapd


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", MAP_KINDS)
def test_loading_equals_computing(kind: str, dense: bool, labels: Path) -> None:
    run(labels, kind=kind, dense=dense)
    path = labels / "b" / "three_gt.nii.gz"
    options: dict[str, Any] = {"kind": kind, "num_classes": 3, "dense": dense}
    found = loaded(path, LoadMapd("label", labels.parent / "maps", labels, **options))
    wanted = loaded(path, RegionWiseMapd("label", **options))
    assert set(found) == {"label", "label_map"}
    for key in wanted:
        assert torch.equal(found[key].as_tensor(), wanted[key].as_tensor())
        assert found[key].dtype == wanted[key].dtype
        assert torch.equal(found[key].affine, wanted[key].affine)
        assert found[key].meta["filename_or_obj"] == str(path)
        assert found[key].applied_operations == wanted[key].applied_operations


def test_every_option_is_asked_for(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_label(tmp_path / "in" / "l.nii", np.array([0, 2, 5])[blobs(rng, SHAPE, 3)])
    options: dict[str, Any] = {
        "kind": "border",
        "num_classes": 4,
        "spacing": (1.0, 2.0, 3.0),
        "dense": True,
        "map_options": {"sigma": 2.5, "class_weight": (1.0, 2.0, 3.0, 4.0)},
        "label_values": {2: 1, 5: 2},
    }
    maps = tmp_path / "out"
    precompute_maps(tmp_path / "in", maps, workers=1, **options)
    found = loaded(path, LoadMapd("label", maps, tmp_path / "in", **options, postfix="weight"))
    assert found["label_weight"].shape == (4, *SHAPE)
    label = loaded(path)
    for option, other in (
        ("num_classes", 5),
        ("spacing", "affine"),
        ("dense", False),
        ("map_options", {"sigma": 2.5}),
        ("label_values", {2: 2, 5: 1}),
    ):
        changed = LoadMapd("label", maps, tmp_path / "in", **{**options, option: other})
        with pytest.raises(ValueError, match=rf"not the map of .*{option} was .*, is .*make it"):
            changed(label)


def test_the_command_of_the_error_makes_the_map(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a folder"
    path = write_label(folder / "l.nii.gz", blobs(rng, SHAPE, 3))
    write_label(folder / "image.nii.gz", rng.integers(0, 200, SHAPE))
    load = LoadMapd(
        "label",
        tmp_path / "maps",
        folder,
        "boundary",
        3,
        spacing=None,
        map_options={"inside": "shifted"},
        label_values={1: 1, 2: 2},
        pattern="**/l*",
    )
    label = loaded(path)
    with pytest.raises(FileNotFoundError, match=r"l_boundary.nii.gz: no map of") as error:
        load(label)
    command = shlex.split(str(error.value).split("make it with: ")[1])
    assert command[:3] == ["python", "-m", "monai_segloss"]
    assert main([*command[3:], "--workers", "1"]) == 0
    assert load(label)["label_map"].shape == (3, *SHAPE)
    assert "1 maps written" in capsys.readouterr().out


@pytest.mark.parametrize(
    "move",
    [
        Spacingd("label", (1.0, 1.0, -1), mode="nearest"),
        Spacingd("label", (3.1, 1.7, 2.9), mode="nearest"),
        Orientationd("label", "RAS", labels=None),
    ],
    ids=["in-plane", "coarser", "oriented"],
)
def test_on_a_moved_label_the_map_has_moved_alike(move: Any, labels: Path) -> None:
    run(labels)
    path = labels / "a" / "two_gt.nii.gz"
    load = LoadMapd("label", labels.parent / "maps", labels, "rrw", 3)
    found = loaded(path, move, load)
    # The map by another key, which Spacingd leaves in peace.
    before = loaded(path, load)
    wanted = move({"label": before["label_map"]})["label"]
    assert found["label_map"].shape == found["label"].shape == wanted.shape
    assert torch.equal(found["label_map"].as_tensor(), wanted.as_tensor())
    assert torch.equal(found["label_map"].affine, found["label"].affine)
    assert found["label_map"].applied_operations == found["label"].applied_operations


def test_before_the_random_transforms_of_a_cache(labels: Path) -> None:
    run(labels)
    pipeline = Compose(
        [
            LoadImaged("label", reader="ITKReader", ensure_channel_first=True),
            LoadMapd("label", labels.parent / "maps", labels, "rrw", 3),
            *(RandFlipd(["label", "label_map"], 0.5, spatial_axis=axis) for axis in range(3)),
        ]
    )
    items = [{"label": str(path)} for path in find_labels(labels, PATTERN)]
    data = CacheDataset(items, pipeline, num_workers=None, progress=False)
    for item in data:
        again = RegionWiseMapd("label", "rrw", 3)({"label": item["label"]})["label_map"]
        torch.testing.assert_close(item["label_map"].as_tensor(), again.as_tensor())


@pytest.mark.parametrize("reader", ["ITKReader", "PILReader"])
def test_a_mask_of_pixels(reader: str, tmp_path: Path, rng: np.random.Generator) -> None:
    mask = np.where(blobs(rng, (20, 14), 2) > 0, 255, 0)
    path = write_png(tmp_path / "in" / "lung.png", mask)
    maps = tmp_path / "out"
    refused = precompute_maps(tmp_path / "in", maps, num_classes=2, workers=1).failed[path]
    assert "expected labels from 0 to 1, got up to 255" in refused
    assert "a threshold a grey mask" in refused
    precompute_maps(tmp_path / "in", maps, threshold=127, workers=1)
    wanted = oracles.rrw((mask > 127).astype(int), 2, (1, 1))
    wanted = np.take_along_axis(wanted, (mask[None] > 127).astype(int), 0)
    read = LoadImaged("label", reader=reader, ensure_channel_first=True)
    load = LoadMapd("label", maps, tmp_path / "in", threshold=127)
    item = Compose([read, load])({"label": str(path)})
    np.testing.assert_allclose(item["label_map"].as_tensor(), wanted, rtol=1e-5)
    # Before the resizing, with the label, or after it.
    resize = Resized(
        ["label", "label_map"], (60, 42), mode="nearest-exact", allow_missing_keys=True
    )
    before = resize(item)["label_map"]
    after = Compose([read, resize, load])({"label": str(path)})["label_map"]
    assert torch.equal(after.as_tensor(), before.as_tensor())


def test_dense_maps_of_pixels(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_png(tmp_path / "in" / "m.png", blobs(rng, (20, 14), 3))
    precompute_maps(tmp_path / "in", tmp_path / "out", "boundary", 3, workers=1)
    assert nibabel.load(tmp_path / "out" / "m_boundary.nii.gz").shape == (20, 14, 1, 3)  # type: ignore[attr-defined]
    found = loaded(path, LoadMapd("label", tmp_path / "out", tmp_path / "in", "boundary", 3))
    wanted = loaded(path, RegionWiseMapd("label", "boundary", 3))
    assert torch.equal(found["label_map"].as_tensor(), wanted["label_map"].as_tensor())


def test_error_loading(labels: Path, rng: np.random.Generator) -> None:
    run(labels)
    path = labels / "a" / "one_gt.nii.gz"
    load = LoadMapd("label", labels.parent / "maps", labels, "rrw", 3)
    label = loaded(path)
    with pytest.raises(ValueError, match=r"^label: expected 3 spatial axes.*got shape \(1, 12, 10"):
        load(SqueezeDimd("label", -1)({"label": label["label"][..., :1]}))
    for plain in (torch.zeros(1, *SHAPE), MetaTensor(torch.zeros(1, *SHAPE))):
        with pytest.raises(ValueError, match=r"^label: expected a label that LoadImaged loaded"):
            load({"label": plain})
    set_track_meta(False)
    try:
        with pytest.raises(ValueError, match=r"^label: .*with its metadata tracked"):
            load(label)
    finally:
        set_track_meta(True)
    where = map_path(path, labels, labels.parent / "maps", "rrw")
    whole = where.read_bytes()
    where.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="expected a whole NIfTI file"):
        load(label)
    image: Any = nibabel.load(where)
    where.write_bytes(whole)
    moved = nibabel.Nifti1Image(np.zeros((6, 5, 7), np.float32), AFFINE, image.header)
    nibabel.save(moved, where)
    with pytest.raises(ValueError, match=r"expected the map as it was made, on the grid"):
        load(label)
    write_label(where, np.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"expected a map of monai_segloss, got another NIfTI"):
        load(label)
    where.write_bytes(whole)
    write_label(path, blobs(rng, SHAPE, 3))
    with pytest.raises(ValueError, match=r"not the map of .*the label has changed.*--overwrite$"):
        load(label)
    with pytest.raises(ValueError, match=r"^postfix: expected a non-empty string, got ''"):
        LoadMapd("label", "maps", "labels", "rrw", 3, postfix="")
    assert transforms.LoadMapD is transforms.LoadMapDict is LoadMapd


def test_a_pickled_transform_loads_the_same(labels: Path) -> None:
    run(labels)
    path = labels / "a" / "one_gt.nii.gz"
    load = LoadMapd("label", labels.parent / "maps", labels, "rrw", 3)
    again = pickle.loads(pickle.dumps(load))
    first, second = (loaded(path, t)["label_map"].as_tensor() for t in (load, again))
    assert torch.equal(first, second)
