"""The transforms in MONAI's surroundings: metadata, dictionaries, caches, loaders, files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import itk
import numpy as np
import oracles
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, set_track_meta
from monai.transforms import (
    Compose,
    ConcatItemsd,
    EnsureChannelFirstd,
    LoadImaged,
    RandFlipd,
    RandRotate90d,
    RandSpatialCropd,
)
from oracles import Array, blobs

from monai_segloss import transforms
from monai_segloss.maps import MAP_KINDS, region_wise_map
from monai_segloss.transforms import RegionWiseMap, RegionWiseMapd, SameGridd

SPACING = (0.5, 2.0, 1.25)


def affine_of(spacing: Any, shift: float = 0.0) -> torch.Tensor:
    """An oblique affine (30 degrees about the last axis) with this voxel size."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.5236), -np.sin(0.5236)], [np.sin(0.5236), np.cos(0.5236)]]
    affine = turn @ np.diag([*spacing, 1.0])
    affine[:3, 3] = shift
    return torch.as_tensor(affine)


def meta_label(label: Array, spacing: Any = SPACING, **meta: Any) -> MetaTensor:
    """A channel-first float32 MetaTensor, as LoadImage gives it."""
    tensor = torch.as_tensor(label, dtype=torch.float32)
    return MetaTensor(tensor, affine=affine_of(spacing), meta=meta or None)


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def label(rng: np.random.Generator) -> Array:
    """A class index of three classes, ``(1, 6, 5, 7)``."""
    return blobs(rng, (6, 5, 7), 3)[None]


# --------------------------------------------------------------------------- the array version


def test_spacing_from_the_affine_given_or_none(label: Array) -> None:
    def mapped(spacing: Any, values: Any) -> Any:
        return RegionWiseMap("boundary", 3, spacing)(values)

    in_mm = oracles.boundary(label[0], 3, SPACING)
    in_voxels = oracles.boundary(label[0], 3)
    tensor = meta_label(label)
    close(RegionWiseMap("boundary", 3)(tensor), in_mm)
    close(mapped("affine", tensor), in_mm)
    close(mapped(None, tensor), in_voxels)
    close(mapped((3.0, 1.0, 2.0), tensor), oracles.boundary(label[0], 3, (3.0, 1.0, 2.0)))
    close(mapped(0.5, tensor), oracles.boundary(label[0], 3, 0.5))
    for plain in (label, torch.as_tensor(label)):
        close(mapped("affine", plain), in_voxels)
        close(mapped(SPACING, plain), in_mm)


def test_trap_04_affine_history_and_label_are_kept(label: Array) -> None:
    tensor = meta_label(label, filename_or_obj="case.nii.gz", nested={"a": [1]})
    tensor.applied_operations = [{"class": "Earlier"}]
    before = tensor.clone()
    found = RegionWiseMap("rrw", 3)(tensor)
    assert isinstance(found, MetaTensor)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.affine, tensor.affine)
    assert found.meta["filename_or_obj"] == "case.nii.gz"
    assert found.applied_operations == [{"class": "Earlier"}]
    assert torch.equal(tensor.as_tensor(), before.as_tensor())
    assert tensor.applied_operations == [{"class": "Earlier"}]
    # What later transforms write into the map's history, they do not write into the label's.
    found.applied_operations.append({"class": "Later"})
    found.meta["later"] = True
    found.affine = torch.eye(4)
    assert tensor.applied_operations == [{"class": "Earlier"}]
    assert "later" not in tensor.meta
    torch.testing.assert_close(tensor.affine, affine_of(SPACING))


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_dense_and_pack(kind: str, label: Array) -> None:
    tensor = meta_label(label)
    dense = oracles.region_wise_map(kind, label[0], 3, SPACING)
    close(RegionWiseMap(kind, 3, dense=True)(tensor), dense)
    compact = RegionWiseMap(kind, 3)(tensor)
    for as_dense, expected in ((False, compact.as_tensor()), (True, torch.as_tensor(dense))):
        packed = RegionWiseMap(kind, 3, dense=as_dense, pack=True)(tensor)
        assert isinstance(packed, MetaTensor)
        assert packed.dtype == torch.float32
        torch.testing.assert_close(packed.affine, tensor.affine)
        close(packed[:1].as_tensor(), label)
        close(packed[1:].as_tensor(), expected)
    channels = oracles.one_hot(label[0], 3)
    packed = RegionWiseMap(kind, 3, SPACING, dense=True, pack=True)(channels.astype(np.uint8))
    close(packed, np.concatenate([channels, dense]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_numpy_and_torch_of_any_dtype(dtype: Any, label: Array) -> None:
    expected = oracles.rrw(label[0], 3, SPACING)
    to_map = RegionWiseMap("rrw", 3, SPACING, dense=True)
    for values in (label.astype(dtype), torch.as_tensor(label.astype(dtype))):
        found = to_map(values)
        assert isinstance(found, torch.Tensor)
        assert found.dtype == torch.float32
        close(found, expected)


@pytest.mark.parametrize("sides", [3, 4])
def test_two_dimensions(sides: int, rng: np.random.Generator) -> None:
    """A slice takes the affine's first two voxel sizes, whether the affine is 3 x 3 or 4 x 4."""
    label = blobs(rng, (9, 8), 3)[None]
    affine = torch.diag(torch.tensor([0.5, 2.0, *([9.0] if sides == 4 else []), 1.0])).double()
    found = RegionWiseMap("boundary", 3)(MetaTensor(torch.as_tensor(label), affine=affine))
    close(found, oracles.boundary(label[0], 3, (0.5, 2.0)))


def test_multi_label_ignore_index_and_map_options(label: Array, rng: np.random.Generator) -> None:
    channels = np.stack([blobs(rng, (6, 5, 7), 2) for _ in range(2)])
    packed = RegionWiseMap("boundary", 2, multi_label=True, pack=True)(meta_label(channels))
    assert packed.shape == (4, 6, 5, 7)
    close(packed[:2].as_tensor(), channels)
    close(packed[2:].as_tensor(), oracles.multi_label_map("boundary", channels, SPACING))

    label[0, 2:4, 1:3, 2:5] = 255
    expected = oracles.region_wise_map(
        "hausdorff", label[0], 3, SPACING, ignored=label[0] == 255, alpha=1.0
    )
    to_map = RegionWiseMap("hausdorff", 3, ignore_index=255, map_options={"alpha": 1.0})
    close(to_map(meta_label(label)), expected)


def test_without_metadata_tracking(label: Array) -> None:
    """The result is a plain tensor, in mm all the same if the label brings its affine."""
    tensor = meta_label(label)
    set_track_meta(False)
    try:
        given = RegionWiseMap("boundary", 3, SPACING)(torch.as_tensor(label))
        from_affine = RegionWiseMap("boundary", 3)(tensor)
    finally:
        set_track_meta(True)
    for found in (given, from_affine):
        assert type(found) is torch.Tensor
        close(found, oracles.boundary(label[0], 3, SPACING))


def test_device_is_kept(label: Array, devices: torch.device) -> None:
    found = RegionWiseMap("rrw", 3, pack=True)(meta_label(label).to(devices))
    assert found.device.type == devices.type


# --------------------------------------------------------------------------- the dictionary version


def test_new_key_and_nothing_else(label: Array) -> None:
    data = {"image": label * 1.0, "label": meta_label(label), "other": meta_label(label % 2)}
    before = dict(data)
    found = RegionWiseMapd(["label", "other"], "rrw", 3)(data)
    assert set(found) == {"image", "label", "other", "label_map", "other_map"}
    assert set(data) == set(before), "the caller's dictionary is not written to"
    for key in before:
        assert found[key] is before[key]
    for key in ("label", "other"):
        expected = RegionWiseMap("rrw", 3)(data[key])
        torch.testing.assert_close(found[f"{key}_map"].as_tensor(), expected.as_tensor())
    assert "label_weight" in RegionWiseMapd("label", "border", 3, postfix="weight")(data)


def test_every_argument_reaches_the_map(rng: np.random.Generator) -> None:
    arguments: dict[str, Any] = {
        "kind": "hausdorff",
        "num_classes": 3,
        "spacing": (1.0, 2.0),
        "dense": True,
        "pack": True,
        "multi_label": False,
        "ignore_index": 2,
        "map_options": {"alpha": 1.0},
    }
    label = torch.as_tensor(blobs(rng, (8, 8), 3)[None])
    expected = RegionWiseMap(**arguments)(label)
    found = RegionWiseMapd("label", **arguments)({"label": label})["label_map"]
    torch.testing.assert_close(found, expected)
    converter = RegionWiseMapd("label", **arguments).converter
    assert {name: getattr(converter, name) for name in arguments} == arguments


def test_missing_keys(label: Array) -> None:
    with pytest.raises(KeyError, match="other"):
        RegionWiseMapd(["label", "other"], "rrw", 3)({"label": label})
    found = RegionWiseMapd(["label", "other"], "rrw", 3, allow_missing_keys=True)({"label": label})
    assert set(found) == {"label", "label_map"}


def test_names_and_pickling() -> None:
    for name in ("RegionWiseMap", "SameGrid"):
        dictionary = getattr(transforms, f"{name}d")
        for suffix in ("d", "D", "Dict"):
            assert getattr(transforms, name + suffix) is dictionary
            assert name + suffix in transforms.__all__
    again = pickle.loads(pickle.dumps(RegionWiseMapd("label", "rrw", 3, pack=True)))
    assert again.converter.pack


def test_concat_items_packs_the_same(label: Array) -> None:
    data = RegionWiseMapd("label", "rrw", 3)({"label": meta_label(label)})
    joined = ConcatItemsd(["label", "label_map"], name="target")(data)["target"]
    packed = RegionWiseMapd("label", "rrw", 3, pack=True)(data)["label_map"]
    torch.testing.assert_close(joined.as_tensor(), packed.as_tensor())


# --------------------------------------------------------------------------- augmentation, loading


def random_moves(keys: list[str]) -> list[Any]:
    return [
        *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        *(RandRotate90d(keys, prob=0.7, max_k=3, spatial_axes=a) for a in [(0, 1), (0, 2)]),
    ]


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_flips_and_rotations_of_a_cached_map_commute(kind: str, label: Array) -> None:
    keys = ["label", "label_map"]
    pipeline = Compose([RegionWiseMapd("label", kind, 3, pack=True), *random_moves(keys)])
    pipeline.set_random_state(seed=7)
    data = CacheDataset([{"label": meta_label(label)}], pipeline, num_workers=None, progress=False)
    shapes = set()
    for _ in range(8):
        item = data[0]
        shapes.add(tuple(item["label"].shape))
        # The moved label, with its moved affine, gives the moved map.
        again = RegionWiseMap(kind, 3, pack=True)(item["label"])
        torch.testing.assert_close(item["label_map"].as_tensor(), again.as_tensor())
        torch.testing.assert_close(item["label_map"].affine, item["label"].affine)
        assert len(item["label_map"].applied_operations) == len(item["label"].applied_operations)
    assert len(shapes) > 1, "some rotations swapped axes"


def test_a_cache_computes_the_map_once(label: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return region_wise_map(*args, **kwargs)

    monkeypatch.setattr(transforms, "region_wise_map", counted)
    pipeline = Compose([RegionWiseMapd("label", "rrw", 3), *random_moves(["label", "label_map"])])
    items = [{"label": meta_label(label)}, {"label": meta_label(label % 2)}]
    data = CacheDataset(items, pipeline, num_workers=None, progress=False)
    for i in (0, 1, 0, 1):
        data[i]
    assert len(calls) == 2


def test_a_crop_after_the_map_keeps_its_values(label: Array) -> None:
    pipeline = Compose(
        [
            RegionWiseMapd("label", "rrw", 3, pack=True),
            RandSpatialCropd(["label", "label_map"], roi_size=(3, 3, 4), random_size=False),
        ]
    )
    pipeline.set_random_state(seed=1)
    whole = RegionWiseMap("rrw", 3)(meta_label(label)).as_tensor()
    differs = 0
    for _ in range(5):
        item = pipeline({"label": meta_label(label)})
        i, j, k = (int(v) for v in first_voxel(item["label"]))
        close(item["label_map"][1:].as_tensor(), whole[:, i : i + 3, j : j + 3, k : k + 4])
        close(item["label_map"][:1].as_tensor(), item["label"].as_tensor())
        on_the_crop = RegionWiseMap("rrw", 3)(item["label"]).as_tensor()
        differs += not torch.allclose(on_the_crop, item["label_map"][1:].as_tensor())
    assert differs, "computed on the crop, the map sees less"


def first_voxel(cropped: MetaTensor) -> Array:
    """Index in the whole volume of a crop's first voxel, from the affine."""
    origin = np.linalg.inv(affine_of(SPACING).numpy()) @ cropped.affine.numpy()
    index: Array = origin[:3, 3].round()
    return index


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_data_loader_with_workers(label: Array) -> None:
    items = [{"label": meta_label(np.roll(label, i, axis=1))} for i in range(4)]
    pipeline = Compose([RegionWiseMapd("label", "rrw", 3, pack=True)])
    data = CacheDataset(items, pipeline, cache_rate=0.5, num_workers=None, progress=False)
    batches = list(DataLoader(data, batch_size=2, num_workers=2))
    assert [tuple(b["label_map"].shape) for b in batches] == [(2, 2, 6, 5, 7)] * 2
    for i, found in enumerate(torch.cat([b["label_map"].as_tensor() for b in batches])):
        rolled = np.roll(label[0], i, axis=0)
        close(found[0], rolled)
        dense = oracles.rrw(rolled, 3, SPACING)
        close(found[1], np.take_along_axis(dense, rolled[None], axis=0)[0])


def write_nifti(path: Path, values: Array, spacing: Any, origin: Any = (0, 0, 0)) -> None:
    """Values indexed (x, y, z), spacing in mm along the same axes."""
    image = itk.image_from_array(np.ascontiguousarray(values.T))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in origin])
    itk.imwrite(image, str(path))


def test_a_nifti_file_gives_a_map_in_mm(label: Array, tmp_path: Path) -> None:
    write_nifti(tmp_path / "label.nii.gz", label[0].astype(np.uint8), SPACING)
    pipeline = Compose(
        [
            LoadImaged("label", reader="ITKReader"),
            EnsureChannelFirstd("label"),
            RegionWiseMapd("label", "boundary", 3),
        ]
    )
    item = pipeline({"label": str(tmp_path / "label.nii.gz")})
    close(item["label"].as_tensor(), label)
    close(item["label_map"].as_tensor(), oracles.boundary(label[0], 3, SPACING))
    torch.testing.assert_close(item["label_map"].affine, item["label"].affine)
    assert str(item["label_map"].meta["filename_or_obj"]).endswith("label.nii.gz")


# --------------------------------------------------------------------------- SameGridd


def load_two(tmp_path: Path, second: Array, **grid: Any) -> dict[str, Any]:
    write_nifti(tmp_path / "image.nii.gz", np.zeros((4, 5, 6), np.float32), SPACING)
    write_nifti(tmp_path / "label.nii.gz", second, grid.pop("spacing", SPACING), **grid)
    load = Compose(
        [
            LoadImaged(["image", "label"], reader="ITKReader"),
            EnsureChannelFirstd(["image", "label"]),
        ]
    )
    return load({key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "label")})


def test_the_same_grid_passes(tmp_path: Path) -> None:
    data = load_two(tmp_path, np.zeros((4, 5, 6), np.uint8), origin=(0, 0, 0.005))
    found = SameGridd(["image", "label"])(data)
    assert set(found) == {"image", "label"}
    assert all(found[key] is data[key] for key in data)
    with pytest.raises(ValueError, match="affines"):
        SameGridd(["image", "label"], atol=1e-3)(data)


def test_same_grid_names_the_files_and_shapes(tmp_path: Path) -> None:
    data = load_two(tmp_path, np.zeros((4, 5, 7), np.uint8))
    with pytest.raises(ValueError, match="expected the same grid") as error:
        SameGridd(["image", "label"])(data)
    for part in ("image.nii.gz", "label.nii.gz", "(4, 5, 6)", "(4, 5, 7)", "image", "label"):
        assert part in str(error.value)


@pytest.mark.parametrize("grid", [{"spacing": (0.5, 2.1, 1.25)}, {"origin": (0, 3, 0)}], ids=str)
def test_same_grid_names_the_files_and_affines(grid: dict[str, Any], tmp_path: Path) -> None:
    data = load_two(tmp_path, np.zeros((4, 5, 6), np.uint8), **grid)
    with pytest.raises(ValueError, match=r"corners (0\.\d+|3) mm apart") as error:
        SameGridd(["image", "label"])(data)
    for part in ("image.nii.gz", "label.nii.gz", str(data["image"].affine)):
        assert part in str(error.value)


def test_same_grid_of_several_plain_and_missing_images(label: Array) -> None:
    data = {"a": meta_label(label), "b": meta_label(label), "c": meta_label(label, (1, 1, 1))}
    with pytest.raises(ValueError, match=r"c \(no file\) and a \(no file\)"):
        SameGridd(["a", "b", "c"])(data)
    # A plain tensor has a shape only; channels may differ in number.
    plain = {"a": meta_label(label), "b": torch.zeros((4, *label.shape[1:]))}
    SameGridd(["a", "b"])(plain)
    nan = {"a": meta_label(label), "b": meta_label(label, (float("nan"), 1, 1))}
    with pytest.raises(ValueError, match="affines"):
        SameGridd(["a", "b"])(nan)
    with pytest.raises(KeyError, match="b"):
        SameGridd(["a", "b"])({"a": data["a"]})
    assert set(SameGridd(["a", "b"], allow_missing_keys=True)({"a": data["a"]})) == {"a"}


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize("build", [RegionWiseMap, lambda *a: RegionWiseMapd("label", *a)])
def test_error_arguments(build: Any) -> None:
    with pytest.raises(ValueError, match=r"^kind: expected one of .*got 'rww'"):
        build("rww", 3)
    with pytest.raises(ValueError, match=r"^spacing: expected 'affine', numbers or None, got 'mm'"):
        build("rrw", 3, "mm")


def test_error_postfix() -> None:
    with pytest.raises(ValueError, match=r"^postfix: expected a non-empty string, got ''"):
        RegionWiseMapd("label", "rrw", 3, postfix="")


def test_error_labels(label: Array) -> None:
    with pytest.raises(ValueError, match=r"^label: .*channel-first.*got shape \(5, 7\)"):
        RegionWiseMap("rrw", 3)(label[0, 0])
    with pytest.raises(ValueError, match=r"^label: expected values from 0 to 1.*from 0 to 2"):
        RegionWiseMap("rrw", 2)(label)
    with pytest.raises(ValueError, match=r"^spacing: .*got shape \(2,\)"):
        RegionWiseMap("rrw", 3, (1.0, 2.0))(label)
