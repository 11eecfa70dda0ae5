"""The ACDC17 bundle: its papers, and its three workflows end to end on generated hearts."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np
import pytest
import torch
from bundle_helpers import (
    CONFIGS,
    METADATA,
    NETWORK,
    TINY,
    Watched,
    chain,
    command,
    item,
    raw_config,
    run,
    workflow,
)
from matplotlib.image import imread
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from monai.data import load_net_with_metadata
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from monai_segloss import transforms
from monai_segloss.datasets import ACDC17_LABELS, acdc17_datalist, make_acdc17_phantom
from monai_segloss.handlers import read_log
from monai_segloss.losses import TAXONOMY, BoundaryLoss, WeightedSumLoss
from monai_segloss.maps import MAP_KINDS
from monai_segloss.schedule import get_schedule

pytestmark = pytest.mark.usefixtures("tidy")

FOREGROUND = ACDC17_LABELS[1:]
METRICS = ("dice", "iou", "hausdorff_mm", "hausdorff95_mm", "surface_dice")

# A network that has hardly trained leaves classes out, of which MONAI's distances warn.
pytestmark = pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class")


class Run(NamedTuple):
    """A finished training."""

    root: Path
    output: str

    @property
    def models(self) -> Path:
        return self.root / "models"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small patients in ACDC's layout; not to be written to."""
    root = tmp_path_factory.mktemp("acdc17")
    return make_acdc17_phantom(root, num_patients=4, size=64, num_slices=6, progress=False)


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    """A copy of the patients, to spoil."""
    return Path(shutil.copytree(data, tmp_path / "data"))


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs with the rectified map, started as a user does; not to be written to."""
    root = tmp_path_factory.mktemp("trained")
    overrides = {k: v for k, v in TINY.items() if k != "device"}
    overrides |= {"dataset_dir": str(data), "bundle_root": str(root), "val_interval": 2}
    done = command(
        *("-m", "monai.bundle", "run"),
        *(f"--config_file={CONFIGS / 'train.json'}", f"--meta_file={METADATA}"),
        f"--logging_file={CONFIGS / 'logging.conf'}",
        *(f"--{name}={value}" for name, value in overrides.items()),
        cwd=root,
    )
    return Run(root, done.stdout)


@pytest.fixture
def own_run(trained: Run, tmp_path: Path) -> Path:
    """A copy of the trained run, to go on with."""
    shutil.copytree(trained.models, tmp_path / "run" / "models")
    return tmp_path / "run"


def patient_file(root: Path, number: int, frame: int, ground_truth: bool = False) -> Path:
    """File of a patient's first (0, ED) or second (1, ES) frame."""
    items = acdc17_datalist(root, max_patients=None)
    mine = [i for i in items if i["patient"] == f"patient{number:03d}"]
    return Path(str(mine[frame]["label" if ground_truth else "image"]))


def read_nifti(path: Path) -> NDArray[Any]:
    """Values indexed (x, y, z)."""
    return np.asarray(itk.array_from_image(itk.imread(str(path)))).T


def write_nifti(
    path: Path, values: NDArray[Any], like: Path, direction: Any = None, origin: Any = None
) -> None:
    """Values indexed (x, y, z), on the grid of another file or one turned and moved from it."""
    old = itk.imread(str(like))
    image = itk.image_from_array(np.ascontiguousarray(values.T))
    image.SetSpacing(old.GetSpacing())
    image.SetOrigin(old.GetOrigin() if origin is None else [float(v) for v in origin])
    image.SetDirection(
        old.GetDirection() if direction is None else itk.matrix_from_array(np.asarray(direction))
    )
    itk.imwrite(image, str(path), compression=True)


def schedule(epoch: int, max_epochs: int) -> float:
    """Learning rate of an epoch, counted from 1: the paper's polynomial decay."""
    return float(TINY["learning_rate"] * (1 - (epoch - 1) / max_epochs) ** 0.9)


# --------------------------------------------------------------------------- metadata


def test_metadata_has_what_the_schema_requires() -> None:
    metadata = raw_config("metadata")
    texts = ("schema", "version", "monai_version", "pytorch_version", "numpy_version")
    texts += ("task", "description", "authors", "copyright")
    optional = ("data_source", "data_type", "image_classes", "label_classes", "pred_classes")
    for key in (*texts, *optional, "intended_use"):
        assert isinstance(metadata[key], str), key
        assert metadata[key], key
    for key in ("required_packages_version", "changelog", "eval_metrics"):
        assert isinstance(metadata[key], dict), key
    assert all(isinstance(v, str) for v in metadata["required_packages_version"].values())
    assert all(isinstance(v, str) for v in metadata["references"])
    assert metadata["schema"].endswith("/meta_schema_20240725.json")
    assert metadata["version"] in metadata["changelog"]

    ways = metadata["network_data_format"]
    for way, name, channels in (("inputs", "image", 1), ("outputs", "pred", len(ACDC17_LABELS))):
        tensor = ways[way][name]
        for key in ("type", "format", "dtype"):
            assert isinstance(tensor[key], str), (way, key)
        assert type(tensor["num_channels"]) is int
        assert tensor["num_channels"] == channels
        assert isinstance(tensor["spatial_shape"], list)
        assert all(isinstance(v, (str, int)) for v in tensor["spatial_shape"])
        assert isinstance(tensor["value_range"], list)
        assert all(isinstance(v, (int, float)) for v in tensor["value_range"])
        assert isinstance(tensor["is_patch_data"], bool)
        assert list(tensor["channel_def"]) == [str(i) for i in range(channels)]


@pytest.mark.filterwarnings("ignore:No hash value provided")
def test_metadata_passes_the_schema(tmp_path: Path) -> None:
    schema = os.environ.get("MONAI_SEGLOSS_META_SCHEMA")
    if not schema:
        pytest.skip("MONAI_SEGLOSS_META_SCHEMA names no local copy of meta_schema_20240725.json")
    assert Path(schema).is_file(), f"MONAI_SEGLOSS_META_SCHEMA: no file {schema}"
    verify_metadata(meta_file=str(METADATA), filepath=schema)
    wrong = tmp_path / "metadata.json"
    wrong.write_text(json.dumps({**raw_config("metadata"), "task": 1}))
    with pytest.raises(ValueError, match="not of type 'string'"):
        verify_metadata(meta_file=str(wrong), filepath=schema)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ["train", "inference"])
def test_network_takes_and_gives_what_the_metadata_say(name: str, n: int) -> None:
    files = {"config_file": str(CONFIGS / f"{name}.json"), "meta_file": str(METADATA)}
    verify_net_in_out("network_def", **files, n=n, device="cpu")
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out("network_def", **files, n=3, device="cpu", num_classes=5, width=4)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("train", "train"),
        ("train+evaluate", "train"),
        ("train+evaluate", "evaluation"),
        ("inference", "inference"),
    ],
)
def test_required_properties(names: str, kind: str, data: Path, tmp_path: Path) -> None:
    assert workflow(names, data, tmp_path, kind).check_properties() == []


# --------------------------------------------------------------------------- the configs agree


def test_train_and_inference_agree_on_the_network_and_the_grid(data: Path, tmp_path: Path) -> None:
    train, inference = raw_config("train"), raw_config("inference")
    for key in ("num_classes", "spacing", "patch_size", "width", "levels", "network_def"):
        assert inference[key] == train[key], key
    assert inference["inferer"] == train["validate"]["inferer"]

    # What the validation makes of an image is what inference makes of it.
    validation = workflow("train", data, tmp_path)
    volume = item(validation, "validate#dataset")[0]["image"]
    same = item(workflow("inference", data, tmp_path, "inference"), "dataset")[0]["image"]
    assert volume.dtype == same.dtype == torch.float32
    torch.testing.assert_close(volume.as_tensor(), same.as_tensor(), rtol=0, atol=0)
    torch.testing.assert_close(volume.affine, same.affine, rtol=0, atol=0)
    assert volume.pixdim[:2].tolist() == pytest.approx([2.0, 2.0])
    assert float(volume.mean()) == pytest.approx(0, abs=1e-3)
    assert float(volume.std()) == pytest.approx(1, abs=1e-2)
    # So does training, up to padding and the cuts into slices.
    trained_on = workflow("train", data, tmp_path, **{"train#data": "@validate#data"})
    cached = item(trained_on, "train#dataset")._cache[0]["image"]
    assert sorted(cached[cached != 0].tolist()) == sorted(volume[volume != 0].tolist())


def test_even_patients_train_and_odd_ones_validate(data: Path, tmp_path: Path) -> None:
    made = workflow("train+evaluate", data, tmp_path)
    wanted = {"train#data": ["patient002", "patient004"], "validate#data": ["patient001"]}
    wanted["validate#data"].append("patient003")
    for name, patients in wanted.items():
        items = item(made, name)
        assert [(i["patient"], i["phase"]) for i in items] == [
            (patient, phase) for patient in patients for phase in ("ED", "ES")
        ]
    few = workflow("train", data, tmp_path, train_patients=1, val_patients=1)
    assert {i["patient"] for i in item(few, "train#data")} == {"patient002"}
    assert {i["patient"] for i in item(few, "validate#data")} == {"patient001"}
    unseen = item(workflow("inference", data, tmp_path, "inference"), "dataset").data
    assert [list(i) for i in unseen] == [["image"]] * 4
    names = [Path(i["image"]).parent.name for i in unseen]
    assert names == ["patient001"] * 2 + ["patient003"] * 2


# --------------------------------------------------------------------------- train, evaluate, infer


def test_training_leaves_weights_and_a_log(trained: Run) -> None:
    names = sorted(path.name for path in trained.models.iterdir())
    assert names == ["checkpoint.pt", "model.pt", "training.csv"]
    rows = read_log(trained.models / "training.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert "dice" not in rows[0]
    assert 0 <= rows[1]["dice"] <= 1
    # The log reaches the terminal, where no bar is drawn.
    assert re.search(r"epoch 1/2: loss -?\d", trained.output)
    assert "step/s" not in trained.output
    weights = torch.load(trained.models / "model.pt", weights_only=True)
    checkpoint = torch.load(trained.models / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 2
    assert weights.keys() == checkpoint["model"].keys()
    assert all(torch.equal(weights[k], checkpoint["model"][k]) for k in weights)


def test_the_log_holds_the_learning_rate_of_its_epoch(trained: Run) -> None:
    rows = read_log(trained.models / "training.csv")
    assert [row["learning_rate"] for row in rows] == pytest.approx([schedule(1, 2), schedule(2, 2)])


def test_training_reduces_the_loss(data: Path, tmp_path: Path) -> None:
    run("train", data, tmp_path, epoch_length=12, max_epochs=2, val_interval=5)
    first, last = read_log(tmp_path / "models" / "training.csv")
    assert last["loss"] < first["loss"]


@pytest.fixture(scope="session")
def evaluated(data: Path, trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What evaluation and inference with the same weights leave; not to be written to."""
    root = tmp_path_factory.mktemp("evaluated")
    run("train+evaluate", data, root, kind="evaluation", ckpt_dir=str(trained.models))
    weights = str(trained.models / "model.pt")
    run("inference", data, root, kind="inference", ckpt_path=weights)
    return root


def read_table(evaluated: Path) -> list[dict[str, str]]:
    with (evaluated / "eval" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluation_leaves_tables_and_a_figure(evaluated: Path, data: Path) -> None:
    folder = evaluated / "eval"
    assert {p.name for p in folder.iterdir()} == {"metrics.csv", "metrics.json", "overview.png"}
    table = read_table(evaluated)
    assert list(table[0]) == ["case", *(f"{m}_{c}" for m in METRICS for c in FOREGROUND)]
    cases = [row["case"] for row in table]
    files = [Path(str(i["image"])).name for i in acdc17_datalist(data, split="validation")]
    assert [f"{case}.nii.gz" for case in cases] == files

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    report = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    assert [row["case"] for row in report["cases"]] == cases
    assert set(report["summary"]) == set(METRICS)
    for metric in METRICS:
        for name in FOREGROUND:
            values = np.array([float(row[f"{metric}_{name}"]) for row in table])
            known = values[np.isfinite(values)]
            found = report["summary"][metric][name]
            assert found["cases"] == known.size
            assert found["undefined"] == 4 - known.size
            assert found["mean"] == (pytest.approx(known.mean()) if known.size else None)
    picture = imread(folder / "overview.png")
    assert picture.ndim == 3
    assert min(picture.shape[:2]) > 500
    assert picture[..., :3].std() > 0.05


def test_evaluation_agrees_with_the_files_inference_writes(evaluated: Path, data: Path) -> None:
    compared = 0
    for row, entry in zip(
        read_table(evaluated), acdc17_datalist(data, split="validation"), strict=True
    ):
        label = read_nifti(Path(str(entry["label"])))
        guess = read_nifti(evaluated / "predictions" / f"{row['case']}_pred.nii.gz")
        spacing = [float(v) for v in itk.imread(str(entry["label"])).GetSpacing()]
        for value, name in enumerate(FOREGROUND, start=1):
            a, b = guess == value, label == value
            assert b.any()
            dice = 2 * (a & b).sum() / (a.sum() + b.sum())
            assert float(row[f"dice_{name}"]) == pytest.approx(dice, abs=1e-6)
            if a.any():
                wanted = hausdorff_mm(a, b, spacing)
                assert float(row[f"hausdorff_mm_{name}"]) == pytest.approx(wanted, rel=1e-5)
                compared += 1
            else:
                assert not math.isfinite(float(row[f"hausdorff_mm_{name}"]))
    assert compared


def hausdorff_mm(a: NDArray[Any], b: NDArray[Any], spacing: list[float]) -> float:
    """Largest distance from a surface voxel of one to the other's surface."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    away = [ndimage.distance_transform_edt(~s, sampling=spacing) for s in surfaces]
    return float(max(away[1][surfaces[0]].max(), away[0][surfaces[1]].max()))


def test_inference_writes_labels_on_the_images_own_grid(
    trained: Run, own_data: Path, tmp_path: Path
) -> None:
    # Oblique and off the origin; frames and axes of different length.
    turn = rotation_matrix()
    for frame in (0, 1):
        path = patient_file(own_data, 1, frame)
        write_nifti(path, read_nifti(path), path, direction=turn, origin=(-31.5, 12.25, 80.0))
    weights = str(trained.models / "model.pt")
    run("inference", own_data, tmp_path, kind="inference", ckpt_path=weights, max_patients=1)
    for frame in (0, 1):
        path = patient_file(own_data, 1, frame)
        name = path.name.removesuffix(".nii.gz")
        image, guess = (
            itk.imread(str(p)) for p in (path, tmp_path / "predictions" / f"{name}_pred.nii.gz")
        )
        assert tuple(itk.size(guess)) == tuple(itk.size(image))
        for get in ("GetSpacing", "GetOrigin"):
            np.testing.assert_allclose(getattr(guess, get)(), getattr(image, get)(), atol=1e-4)
        directions = [np.asarray(itk.array_from_matrix(i.GetDirection())) for i in (guess, image)]
        np.testing.assert_allclose(directions[1], turn, atol=1e-5)
        np.testing.assert_allclose(directions[0], directions[1], atol=1e-5)
        values = np.asarray(itk.array_from_image(guess))
        assert values.dtype == np.uint8
        assert values.max() <= 3


def rotation_matrix() -> NDArray[np.float64]:
    """A rotation by 30 degrees about z and 20 about x."""
    a, b = np.deg2rad(30), np.deg2rad(20)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    both: NDArray[np.float64] = about_z @ about_x
    return both


def test_inference_puts_each_voxel_where_it_was(own_data: Path, tmp_path: Path) -> None:
    path = patient_file(own_data, 1, 0)
    image = read_nifti(path)
    write_nifti(path, image, path, direction=rotation_matrix(), origin=(-31.5, 12.25, 80.0))
    bright = {"network": {"_target_": "bundle_helpers.Bright"}, "handlers": []}
    run("inference", own_data, tmp_path, kind="inference", max_patients=1, **bright)
    name = path.name.removesuffix(".nii.gz")
    found = read_nifti(tmp_path / "predictions" / f"{name}_pred.nii.gz") == 3
    wanted = image > image.mean() + image.std()
    assert 0.02 < wanted.mean() < 0.5
    assert (found & wanted).sum() / (found | wanted).sum() > 0.8


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_export_to_torchscript(tmp_path: Path) -> None:
    # The depth is the default one, for the size of the traced input comes from the metadata.
    made = workflow("inference", tmp_path, tmp_path, "inference", levels=6)
    eager, weights, target = item(made, "network_def"), tmp_path / "m.pt", tmp_path / "model.ts"
    torch.save(eager.state_dict(), weights)
    ckpt_export(
        "network_def",
        filepath=str(target),
        ckpt_file=str(weights),
        meta_file=str(METADATA),
        config_file=str(CONFIGS / "inference.json"),
        use_trace=True,  # MONAI 1.6.1 cannot script DynUNet's heads
        width=NETWORK["width"],
    )
    exported, metadata, extra = load_net_with_metadata(
        str(target), more_extra_files=["inference.json"]
    )
    assert metadata["network_data_format"] == raw_config("metadata")["network_data_format"]
    assert json.loads(extra["inference.json"]) == raw_config("inference")
    images = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = eager.eval()(images)
        assert wanted.std() > 0
        torch.testing.assert_close(exported.eval()(images), wanted)


# --------------------------------------------------------------------------- losses and their maps


FITTING = [name for name, row in TAXONOMY.items() if "softmax" in row.forms]


@pytest.mark.parametrize("loss_name", FITTING)
def test_loss_is_an_override(loss_name: str, data: Path, tmp_path: Path) -> None:
    row = TAXONOMY[loss_name]
    # Its default is Dice and boundary.
    kind = "boundary" if loss_name == "weighted_sum" else row.map_kind
    maps = 0 if kind is None else 1 if MAP_KINDS[kind].compact else 4
    few = {"train_patients": 1, "val_patients": 1, "max_epochs": 1, "loss_name": loss_name}
    made = run("train", data, tmp_path, **few)
    dataset = item(made, "train#dataset")
    cached = dataset._cache[0]
    assert ("label_map" in cached) == (maps > 0)
    if maps:
        assert cached["label_map"].dtype == torch.float32
        assert cached["label_map"].shape == (maps, *cached["label"].shape[1:])
    samples = dataset[0]
    assert len(samples) == TINY["slices_per_volume"]
    for sample in samples:
        assert sample.keys() == {"image", "label"}
        assert sample["image"].shape == (1, 64, 64)
        assert sample["label"].shape == (1 + maps, 64, 64)
    loss, log = item(made, "loss").loss, read_log(tmp_path / "models" / "training.csv")[0]
    assert math.isfinite(log["loss"])
    if row.partner is not None:
        assert isinstance(loss, WeightedSumLoss)
        assert list(loss.losses) == [row.partner, loss_name]
        first = get_schedule(row.schedule)(0)
        assert [log[f"weight_{row.partner}"], log[f"weight_{loss_name}"]] == list(first)
        loss = loss.losses[loss_name]
    assert isinstance(loss, row.build)


def test_partner_and_schedule_are_overrides(data: Path, tmp_path: Path) -> None:
    few = {"train_patients": 1, "val_patients": 1, "max_epochs": 2}
    run("train", data, tmp_path / "gradual", loss_name="boundary", **few)
    log = read_log(tmp_path / "gradual" / "models" / "training.csv")
    assert [row["weight_boundary"] for row in log] == pytest.approx([0, 0.01])
    options = {"loss_name": "boundary", "partner": "focal", "loss_schedule": "equal"}
    run("train", data, tmp_path / "equal", **options, **few)
    log = read_log(tmp_path / "equal" / "models" / "training.csv")
    assert [(row["weight_focal"], row["weight_boundary"]) for row in log] == [(1, 1), (1, 1)]
    alone = workflow("train", data, tmp_path, loss_name="boundary", partner=None)
    assert isinstance(item(alone, "loss").loss, BoundaryLoss)
    with pytest.raises(RuntimeError) as caught:
        run("train", data, tmp_path, loss_name="dice", loss_schedule="gradual")
    assert "'dice' has no partner" in chain(caught.value)


def test_options_reach_the_loss_and_the_map(data: Path, tmp_path: Path) -> None:
    overrides = {"loss_name": "region_wise_hausdorff", "loss_options": {"weight": 2.0}}
    overrides["partner"] = None
    made = workflow("train", data, tmp_path, map_options={"alpha": 1.0}, **overrides)
    assert float(item(made, "loss").loss.class_weight) == 2.0
    steep = workflow("train", data, tmp_path, map_options={"alpha": 2.0}, **overrides)
    once, squared = (
        item(m, "train#dataset")._cache[0]["label_map"].as_tensor() for m in (made, steep)
    )
    torch.testing.assert_close(once**2, squared)
    assert once.max() > 1


def test_the_cached_map_is_one_channel_for_any_number_of_classes(
    data: Path, tmp_path: Path
) -> None:
    made = workflow("train", data, tmp_path, num_classes=9, train_patients=1)
    cached = item(made, "train#dataset")._cache
    for volume in cached:
        assert volume["label_map"].shape == volume["label"].shape
        assert volume["label_map"].dtype == torch.float32
        assert volume["label"].dtype == torch.uint8
        assert volume["label_map"].nbytes == 4 * volume["label"].numel()


def test_the_map_is_computed_once_in_3d_and_in_mm(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return original(*args, **kwargs)

    original = transforms.region_wise_map
    monkeypatch.setattr(transforms, "region_wise_map", counted)
    # A patch smaller than the image, so that no padding stands between label and map.
    made = workflow("train", data, tmp_path, patch_size=[32, 32])
    dataset = item(made, "train#dataset")
    for i in (0, 1, 2, 3, 0):
        dataset[i]
    assert len(calls) == 4, "two patients, two frames each"
    for volume, entry in zip(dataset._cache, item(made, "train#data"), strict=True):
        depth = float(itk.imread(str(entry["image"])).GetSpacing()[2])
        label = np.asarray(volume["label"])[0]
        wanted = np.zeros(label.shape)
        assert set(np.unique(label)) == {0, 1, 2, 3}
        for value in range(4):
            inside = label == value
            distance = ndimage.distance_transform_edt(inside, sampling=(2.0, 2.0, depth))
            wanted[inside] = -distance[inside] / distance.max()
        np.testing.assert_allclose(np.asarray(volume["label_map"])[0], wanted, atol=1e-4)


def pairs(label: Tensor, value: Tensor) -> set[tuple[float, float]]:
    """The (label, map) values that occur at one voxel."""
    both = torch.stack([label.float().flatten(), value.flatten()])
    return {(a, b) for a, b in torch.unique(both, dim=1).T.tolist()}


def test_augmentation_keeps_label_and_map_together(data: Path, tmp_path: Path) -> None:
    made = workflow("train", data, tmp_path, slices_per_volume=16)
    dataset = item(made, "train#dataset")
    seen = 0
    for i, volume in enumerate(dataset._cache):
        cached = pairs(volume["label"].as_tensor(), volume["label_map"].as_tensor())
        assert len(cached) > 50
        for sample in dataset[i]:
            label, value = sample["label"]
            assert set(label.unique().tolist()) <= {0, 1, 2, 3}
            assert -1 <= float(value.min()) <= float(value.max()) <= 0
            assert (value[label > 0] < 0).all()
            # What comes from outside the image is background, without weight.
            assert pairs(label, value) <= cached | {(0.0, 0.0)}
            seen += int((label > 0).any())
    assert seen > 10


def test_augmentation_keeps_a_dense_map_on_its_label(data: Path, tmp_path: Path) -> None:
    made = workflow("train", data, tmp_path, loss_name="boundary", slices_per_volume=16)
    dataset = item(made, "train#dataset")
    seen = 0
    for i in range(len(dataset)):
        for sample in dataset[i]:
            label, values = sample["label"][:1].long(), sample["label"][1:]
            inside = torch.zeros_like(values).scatter(0, label, 1).bool()
            known = values.abs().sum(0, keepdim=True) > 0
            assert (values[inside & known] < 0).all()
            assert (values[~inside & known] > 0).all()
            seen += int((label > 0).any())
    assert seen > 10


def test_augmentation_moves_the_image_with_the_label(own_data: Path, tmp_path: Path) -> None:
    for frame in (0, 1):
        label = patient_file(own_data, 2, frame, ground_truth=True)
        drawn = (read_nifti(label) > 0).astype(np.int16) * 100
        write_nifti(patient_file(own_data, 2, frame), drawn, like=label)
    made = workflow("train", own_data, tmp_path, train_patients=1, slices_per_volume=24)
    dataset = item(made, "train#dataset")
    seen = 0
    for i in range(len(dataset)):
        for sample in dataset[i]:
            heart = np.asarray(sample["label"][0]) > 0
            if heart.mean() > 0.02:
                image = np.asarray(sample["image"][0])
                assert np.corrcoef(image.ravel(), heart.ravel())[0, 1] > 0.85
                seen += 1
    assert seen > 10


# --------------------------------------------------------------------------- resuming


def test_a_longer_run_goes_on_where_the_first_ended(data: Path, own_run: Path) -> None:
    before = torch.load(own_run / "models" / "checkpoint.pt", weights_only=True)["optimizer"]
    watched = Watched(data, own_run, max_epochs=4)
    assert watched.epochs == [3, 4]
    assert watched.steps == {2 * TINY["epoch_length"]}
    saved = [state["exp_avg"] for state in before["state"].values()]
    assert len(saved) == len(watched.moments)
    assert all(torch.equal(a, b) for a, b in zip(saved, watched.moments, strict=True))
    rows = read_log(own_run / "models" / "training.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert dict(watched.rates) == pytest.approx({e: schedule(e, 4) for e in (3, 4)})


KILLED_IN_EPOCH_2 = """
import os, signal, sys
from pathlib import Path
from bundle_helpers import item, workflow
from ignite.engine import Events

made = workflow("train", Path(sys.argv[1]), Path(sys.argv[2]), max_epochs=4, val_interval=9)
item(made, "train#trainer").add_event_handler(
    Events.ITERATION_STARTED(once=4), lambda: os.kill(os.getpid(), signal.SIGKILL)
)
made.run()
"""


def test_a_killed_run_goes_on_after_its_last_whole_epoch(data: Path, tmp_path: Path) -> None:
    here = Path(__file__).resolve().parent
    arguments = ("-c", KILLED_IN_EPOCH_2, str(data), str(tmp_path))
    done = command(*arguments, cwd=here, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout
    left = torch.load(tmp_path / "models" / "checkpoint.pt", weights_only=True)
    assert left["epoch"] == 1
    assert [row["epoch"] for row in read_log(tmp_path / "models" / "training.csv")] == [1]

    watched = Watched(data, tmp_path, max_epochs=4, val_interval=9)
    assert watched.epochs == [2, 3, 4]
    assert watched.steps == {TINY["epoch_length"]}
    rows = read_log(tmp_path / "models" / "training.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert dict(watched.rates) == pytest.approx({e: schedule(e, 4) for e in (2, 3, 4)})


def test_a_run_with_another_loss_is_refused(data: Path, own_run: Path) -> None:
    before = (own_run / "models" / "checkpoint.pt").read_bytes()
    with pytest.raises(RuntimeError) as error:
        run("train", data, own_run, loss_name="dice_ce", max_epochs=4)
    told = chain(error.value)
    assert re.search(r"ValueError: .*checkpoint\.pt: made with other settings", told)
    assert "loss_name was 'rrw', is 'dice_ce'" in told
    assert "resume=False" in told
    assert (own_run / "models" / "checkpoint.pt").read_bytes() == before


def test_a_truncated_checkpoint_is_refused(data: Path, own_run: Path) -> None:
    path = own_run / "models" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RuntimeError) as error:
        run("train", data, own_run, max_epochs=4)
    assert f"ValueError: {path}: not readable as a checkpoint" in chain(error.value)


def test_resume_can_be_switched_off(data: Path, own_run: Path) -> None:
    watched = Watched(data, own_run, max_epochs=1, resume=False, loss_name="dice_ce")
    assert watched.epochs == [1]
    assert watched.steps == set()
    assert [row["epoch"] for row in read_log(own_run / "models" / "training.csv")] == [1]
    saved = torch.load(own_run / "models" / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 1
    assert saved["settings"]["loss_name"] == "dice_ce"


def test_a_finished_run_says_so(
    data: Path, own_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [own_run / "models" / name for name in ("checkpoint.pt", "model.pt", "training.csv")]
    before = [path.read_bytes() for path in files]
    with caplog.at_level(logging.WARNING, logger="monai_segloss"):
        assert Watched(data, own_run, max_epochs=2).epochs == []
    assert "already trained for 2 epochs, nothing left to do" in caplog.text
    assert [path.read_bytes() for path in files] == before


# --------------------------------------------------------------------------- bad input


def told(names: str, data: Path, root: Path, **overrides: Any) -> str:
    """What a run that must fail tells."""
    kind = "inference" if names == "inference" else "train"
    if kind == "inference":
        overrides = {"network": {"_target_": "bundle_helpers.Bright"}, "handlers": [], **overrides}
    with pytest.raises((RuntimeError, ValueError, OSError)) as error:
        run(names, data, root, kind=kind, **overrides)
    return chain(error.value)


@pytest.mark.parametrize("ground_truth", [False, True])
@pytest.mark.parametrize("number", [2, 3], ids=["train", "validation"])
def test_error_missing_file(
    number: int, ground_truth: bool, own_data: Path, tmp_path: Path
) -> None:
    path = patient_file(own_data, number, 1, ground_truth)
    path.unlink()
    text = told("train", own_data, tmp_path)
    assert "FileNotFoundError: 1 file(s) missing" in text
    assert f"{path.parent.name}/{path.name}" in text


def test_ground_truth_is_not_needed_for_inference(own_data: Path, tmp_path: Path) -> None:
    for path in own_data.rglob("*_gt.nii.gz"):
        path.unlink()
    bright = {"network": {"_target_": "bundle_helpers.Bright"}, "handlers": []}
    run("inference", own_data, tmp_path, kind="inference", **bright)
    assert len(list((tmp_path / "predictions").glob("*_pred.nii.gz"))) == 4


@pytest.mark.parametrize("names", ["train", "inference"])
def test_error_no_patients(names: str, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    assert f"dataset_dir {folder} does not exist" in told(names, folder, tmp_path)
    folder.mkdir()
    assert f"no patientNNN folder in {folder}" in told(names, folder, tmp_path)


@pytest.mark.parametrize("number", [2, 1], ids=["train", "validation"])
@pytest.mark.parametrize("what", ["shape", "origin"])
def test_error_different_grids(what: str, number: int, own_data: Path, tmp_path: Path) -> None:
    path = patient_file(own_data, number, 0, ground_truth=True)
    label = read_nifti(path)
    if what == "shape":
        write_nifti(path, label[:, :, :-1], like=path)
    else:
        write_nifti(path, label, like=path, origin=(0, 0, 5))
    text = told("train", own_data, tmp_path, train_patients=1, val_patients=1, val_interval=1)
    assert "expected the same grid" in text
    assert str(path) in text
    assert str(patient_file(own_data, number, 0)) in text


def spoil(path: Path, how: str) -> Path:
    """Make a compressed NIfTI unreadable, or put a part of an uncompressed one in its place."""
    whole = path.read_bytes()
    middle = len(whole) // 2
    if how == "truncated .nii":
        path.unlink()
        path = path.with_suffix("")
        whole = gzip.decompress(whole)
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "truncated":
        path.write_bytes(whole[:middle])
    elif how == "flipped":
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    else:
        path.write_bytes({"text": b"not an image\n", "empty": b""}[how])
    return path


@pytest.mark.parametrize("how", ["truncated", "truncated .nii", "flipped", "text", "empty"])
@pytest.mark.parametrize("what", ["image", "label", "inference"])
def test_error_unreadable_file(what: str, how: str, own_data: Path, tmp_path: Path) -> None:
    inference = what == "inference"
    path = patient_file(own_data, 1 if inference else 2, 1, ground_truth=what == "label")
    path = spoil(path, how)
    if inference:
        text = told("inference", own_data, tmp_path, max_patients=1)
    else:
        text = told("train", own_data, tmp_path, train_patients=1)
    assert str(path) in text


@pytest.mark.parametrize(
    ("loss_name", "text"),
    [("rrw", "input: expected finite values, got nan"), ("dice_ce", "loss: expected finite")],
)
def test_error_nan_logits(loss_name: str, text: str, data: Path, tmp_path: Path) -> None:
    made = workflow("train", data, tmp_path, loss_name=loss_name, train_patients=1, epoch_length=30)
    for parameter in item(made, "network").parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(RuntimeError) as error:
        made.run()
    assert text in chain(error.value)
    assert not (tmp_path / "models" / "checkpoint.pt").exists()


def test_error_label_out_of_range(own_data: Path, tmp_path: Path) -> None:
    path = patient_file(own_data, 2, 0, ground_truth=True)
    label = read_nifti(path).copy()
    label[0, 0, 0] = 7
    write_nifti(path, label, like=path)
    text = told("train", own_data, tmp_path, train_patients=1)
    assert re.search(r"expected values from 0 to 3.*7", text)


def test_error_unknown_loss(data: Path, tmp_path: Path) -> None:
    text = told("train", data, tmp_path, loss_name="dice_cee")
    assert "got 'dice_cee'; did you mean 'dice_ce'?" in text
