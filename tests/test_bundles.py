"""What every bundle owes its user, on generated data in the official layout."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import torch
from bundle_helpers import TINY_OF, chain, command, item, raw_config, run, workflow
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from monai.data import MetaTensor, load_net_with_metadata
from monai.transforms import Compose, MapLabelValued, Resized
from monai.utils import set_determinism
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from monai_segloss.bundle import bundle_names, bundle_path, copy_bundle
from monai_segloss.bundle_parts import load_xray, on_label_grid, saved_labels, saved_mask
from monai_segloss.datasets import PHANTOMS, make_chest_xray_phantom
from monai_segloss.handlers import METRIC_NAMES, read_log
from monai_segloss.losses import TAXONOMY, WeightedSumLoss, make_training_loss
from monai_segloss.precompute import precompute_maps

pytestmark = pytest.mark.usefixtures("tidy")

BUNDLES = ("acdc17", "brats18", "chest_xray", "kits19")
NEW = BUNDLES[1:]
SIZES: dict[str, dict[str, int]] = {
    "acdc17": {"num_patients": 4, "size": 64, "num_slices": 6},
    "brats18": {"num_patients": 4, "size": 64, "num_slices": 32},
    "kits19": {"num_patients": 4, "size": 64, "num_slices": 16},
    "chest_xray": {"num_images": 10, "size": 128},
}
LABELS = {  # pattern of the label files, and how their values become classes
    "acdc17": ("**/*_gt.nii.gz", {}),
    "brats18": ("**/*_seg.nii.gz", {"label_values": {0: 0, 1: 1, 2: 2, 4: 3}}),
    "kits19": ("**/segmentation.nii.gz", {}),
    "chest_xray": ("masks/*.png", {"threshold": 127, "spacing": None}),
}
SHARED = ("evaluate.json", "multi_gpu_train.json", "logging.conf")
ONE_STEP = {"max_epochs": 1, "val_interval": 9}
TINY_STEPS: dict[str, dict[str, Any]] = {
    name: {"epoch_length": 1, "train_patients": 1, **ONE_STEP} for name in BUNDLES
}
TINY_STEPS["chest_xray"] = {"train_images": 2, **ONE_STEP}


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few small cases in every layout; not to be written to."""
    return {
        name: make(tmp_path_factory.mktemp(name), progress=False, **SIZES[name])
        for name, make in PHANTOMS.items()
    }


@pytest.fixture(scope="session", params=NEW)
def done(
    request: pytest.FixtureRequest,
    datasets: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """A bundle that was trained, evaluated and used: its name, and where it wrote."""
    name: str = request.param
    root = tmp_path_factory.mktemp(f"{name}_run")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(sys, "path", list(sys.path))
    data = datasets[name]
    run("train", data, root, bundle=name, val_interval=1)
    run("train+evaluate", data, root, bundle=name)
    run("inference", data, root, kind="inference", bundle=name)
    monkey.undo()
    set_determinism(seed=None)
    return name, root


def read_image(path: Path) -> NDArray[Any]:
    """Values indexed (x, y[, z])."""
    return np.asarray(itk.array_from_image(itk.imread(str(path)))).T


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------- what it is made of


def test_every_bundle_is_listed_and_can_be_copied(tmp_path: Path) -> None:
    assert tuple(bundle_names()) == BUNDLES
    for name in BUNDLES:
        copy = copy_bundle(name, tmp_path)
        names = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
        assert names == {
            "LICENSE",
            "docs/README.md",
            "docs/data_license.txt",
            *(f"configs/{c}.json" for c in ("train", "inference", "metadata")),
            *(f"configs/{c}" for c in SHARED),
        }
        # The copy stands alone: what is shared came along as files.
        assert not any(p.is_symlink() for p in copy.rglob("*"))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_what_is_shared_is_one_file(bundle: str) -> None:
    for name in SHARED:
        mine = bundle_path(bundle) / "configs" / name
        assert mine.samefile(bundle_path("acdc17") / "configs" / name)


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.filterwarnings("ignore:No hash value provided")
def test_metadata_passes_the_schema(bundle: str) -> None:
    schema = os.environ.get("MONAI_SEGLOSS_META_SCHEMA")
    if not schema:
        pytest.skip("MONAI_SEGLOSS_META_SCHEMA names no local copy of meta_schema_20240725.json")
    meta = bundle_path(bundle) / "configs" / "metadata.json"
    verify_metadata(meta_file=str(meta), filepath=schema)


@pytest.mark.parametrize("bundle", NEW)
def test_metadata_has_the_keys_of_acdc17(bundle: str) -> None:
    assert set(raw_config("metadata", bundle)) - {"eval_metrics"} == set(raw_config("metadata")) - {
        "eval_metrics"
    }


@pytest.mark.parametrize("name", ["train", "inference"])
@pytest.mark.parametrize("bundle", NEW)
def test_network_takes_and_gives_what_the_metadata_say(bundle: str, name: str) -> None:
    folder = bundle_path(bundle) / "configs"
    files = {
        "config_file": str(folder / f"{name}.json"),
        "meta_file": str(folder / "metadata.json"),
    }
    verify_net_in_out("network_def", **files, n=3, device="cpu", width=4)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("train", "train"),
        ("train+evaluate", "evaluation"),
        ("inference", "inference"),
    ],
)
@pytest.mark.parametrize("bundle", BUNDLES)
def test_required_properties(
    bundle: str, names: str, kind: str, datasets: dict[str, Path], tmp_path: Path
) -> None:
    made = workflow(names, datasets[bundle], tmp_path, kind, bundle)
    assert made.check_properties() == []


@pytest.mark.parametrize("bundle", NEW)
def test_train_and_inference_agree_on_network_and_image(
    bundle: str, datasets: dict[str, Path], tmp_path: Path
) -> None:
    train, inference = raw_config("train", bundle), raw_config("inference", bundle)
    for key in sorted(
        train.keys() & inference.keys() - {"imports", "output_dir", "run", "num_workers"}
    ):
        assert train[key] == inference[key], key
    data = datasets[bundle]
    split = {"split": "validation"}
    trained = item(workflow("train", data, tmp_path, bundle=bundle), "validate#dataset")[0]
    used = workflow("inference", data, tmp_path, "inference", bundle, **split)
    seen = item(used, "dataset")[0]
    torch.testing.assert_close(seen["image"].as_tensor(), trained["image"].as_tensor())


# --------------------------------------------------------------------------- from end to end


def test_training_leaves_weights_and_a_log(done: tuple[str, Path]) -> None:
    _, root = done
    names = {p.name for p in (root / "models").iterdir()}
    assert names == {"model.pt", "checkpoint.pt", "training.csv"}
    log = read_log(root / "models" / "training.csv")
    assert [row["epoch"] for row in log] == [1, 2]
    assert all(math.isfinite(row["loss"]) and 0 <= row["dice"] <= 1 for row in log)


def test_evaluation_scores_every_case(done: tuple[str, Path]) -> None:
    bundle, root = done
    config = raw_config("train", bundle)
    foreground = raw_config("metadata", bundle)["network_data_format"]["outputs"]["pred"]
    classes = [n for n in foreground["channel_def"].values() if n != "background"]
    metrics = ["dice", *config["metrics"]]
    assert set(metrics) <= set(METRIC_NAMES)
    table = read_table(root / "eval" / "metrics.csv")
    # One X-ray of each source is in the test split, two patients in the other half.
    assert len(table) == 2
    report = json.loads((root / "eval" / "metrics.json").read_text())
    assert set(report["summary"]) == set(metrics)
    for row in table:
        dices = [float(row[f"dice_{name}"]) for name in classes]
        assert all(0 <= d <= 1 or math.isnan(d) for d in dices)
    assert (root / "eval" / "overview.png").stat().st_size > 10_000


def test_inference_writes_labels_in_the_images_own_geometry(
    done: tuple[str, Path], datasets: dict[str, Path]
) -> None:
    bundle, root = done
    written = sorted(p for p in (root / "predictions").rglob("*_pred*") if "overlay" not in p.name)
    cases = item(workflow("inference", datasets[bundle], root, "inference", bundle), "datalist")
    assert len(written) == len(cases) > 0
    pictures = sorted((root / "predictions").rglob("*overlay*.png"))
    assert len(pictures) == len(cases)
    by_name = {p.name.partition("_pred")[0]: p for p in written}
    values = {"brats18": {0, 1, 2, 4}, "kits19": {0, 1, 2}, "chest_xray": {0, 255}}[bundle]
    for case in cases:
        source = Path(case["image"] if isinstance(case["image"], str) else case["image"][0])
        stem = source.name.partition(".")[0]
        if bundle == "kits19":
            # All its files are called the same; their folders tell them apart.
            (mine,) = (root / "predictions").rglob(f"{source.parent.name}/imaging_pred.nii.gz")
        else:
            mine = by_name[stem]
        assert mine.exists()
        image, label = itk.imread(str(source)), itk.imread(str(mine))
        assert itk.size(image) == itk.size(label)
        np.testing.assert_allclose(image.GetSpacing(), label.GetSpacing(), rtol=1e-6)
        if bundle != "chest_xray":
            np.testing.assert_allclose(image.GetOrigin(), label.GetOrigin(), atol=1e-4)
            np.testing.assert_allclose(
                itk.array_from_matrix(image.GetDirection()),
                itk.array_from_matrix(label.GetDirection()),
                atol=1e-6,
            )
        assert set(np.unique(read_image(mine)).tolist()) <= values


class Bright(torch.nn.Module):
    """A network with nothing to learn: the last class where the first channel is bright."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, image: Tensor) -> Tensor:
        bright = 50 * (image[:, :1] - 1)
        if self.channels == 1:
            return bright
        rest = torch.full_like(bright, -99).expand(-1, self.channels - 2, *bright.shape[2:])
        return torch.cat([-bright, rest, bright], dim=1)


@pytest.mark.parametrize("bundle", NEW)
def test_inference_puts_each_voxel_where_it_was(
    bundle: str, datasets: dict[str, Path], tmp_path: Path
) -> None:
    channels = {"brats18": 4, "kits19": 3, "chest_xray": 1}[bundle]
    made = workflow("inference", datasets[bundle], tmp_path, "inference", bundle)
    case = item(made, "dataset")[0]
    pred = Bright(channels)(case["image"][None])[0]
    pred = MetaTensor(pred.as_tensor(), meta=case["image"].meta)
    item(made, "postprocessing")({"image": case["image"], "pred": pred})
    mine = next(p for p in (tmp_path / "predictions").rglob("*_pred*") if "overlay" not in p.name)
    source = Path(case["image"].meta["filename_or_obj"])
    image, label = read_image(source).astype(float), read_image(mine)
    found = label == label.max()
    assert 0.001 < found.mean() < 0.5
    # Bright where it says so; a flip or a transposition would mix both.
    assert image[found].min() > np.quantile(image[~found], 0.5)
    assert np.corrcoef(image.ravel(), found.ravel())[0, 1] > 0.3


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("bundle", NEW)
def test_export_to_torchscript(bundle: str, tmp_path: Path) -> None:
    folder = bundle_path(bundle) / "configs"
    made = workflow("inference", tmp_path, tmp_path, "inference", bundle)
    torch.save(item(made, "network_def").state_dict(), tmp_path / "model.pt")
    width = {"width": TINY_OF[bundle]["width"]}
    width |= {"levels": 5} if bundle != "chest_xray" else {}
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(folder / "metadata.json"),
        config_file=str(folder / "inference.json"),
        use_trace=True,
        **width,
    )
    exported, _, _ = load_net_with_metadata(str(tmp_path / "model.ts"))
    channels = raw_config("metadata", bundle)["network_data_format"]["inputs"]["image"]
    image = torch.randn(1, channels["num_channels"], 64, 64)
    network = item(made, "network_def").eval()
    with torch.no_grad():
        torch.testing.assert_close(exported.eval()(image), network(image), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------- losses


def fitting(bundle: str) -> list[str]:
    form = "binary" if bundle == "chest_xray" else "softmax"
    return [name for name, row in TAXONOMY.items() if form in row.forms]


@pytest.mark.parametrize(("bundle", "loss_name"), [(b, name) for b in NEW for name in fitting(b)])
def test_every_loss_trains(
    bundle: str, loss_name: str, datasets: dict[str, Path], tmp_path: Path
) -> None:
    made = run(
        "train",
        datasets[bundle],
        tmp_path,
        bundle=bundle,
        loss_name=loss_name,
        **TINY_STEPS[bundle],
    )
    row, loss = TAXONOMY[loss_name], item(made, "loss_function")
    if row.partner is not None:
        assert isinstance(loss, WeightedSumLoss)
        assert list(loss.losses) == [row.partner, loss_name]
    log = read_log(tmp_path / "models" / "training.csv")
    assert len(log) == 1
    assert math.isfinite(log[0]["loss"])


def test_what_no_bundle_can_train_is_known() -> None:
    assert set(TAXONOMY) - set(fitting("acdc17")) == {"lovasz_hinge"}
    assert set(TAXONOMY) - set(fitting("chest_xray")) == {"non_adjacency"}


# --------------------------------------------------------------------------- maps from files


@pytest.mark.parametrize("kind", ["rrw", "boundary"])
@pytest.mark.parametrize("bundle", BUNDLES)
def test_maps_from_files_are_the_maps_computed(
    bundle: str, kind: str, datasets: dict[str, Path], tmp_path: Path
) -> None:
    """On the label's own grid they are equal; resampled, they follow the label."""
    data, (pattern, options) = datasets[bundle], LABELS[bundle]
    classes = raw_config("train", bundle)["num_classes"]
    out = tmp_path / "maps"
    done = precompute_maps(data, out, kind, classes, pattern=pattern, workers=1, **options)
    assert not done.failed
    few = {"loss_name": kind, **TINY_STEPS[bundle]}
    if bundle == "kits19":
        few["slice_size"] = few["patch_size"] = [64, 64]
    computed, read = (
        item(
            workflow("train", data, tmp_path, bundle=bundle, map_dir=where, **few),
            "train#dataset",
        )
        for where in (None, str(tmp_path / "maps"))
    )
    for a, b in zip(computed._cache, read._cache, strict=True):
        if bundle == "chest_xray":
            # Nothing is random there, so what is cached is the label with its map.
            for cached in (a, b):
                cached["label"], cached["label_map"] = cached["label"][:1], cached["label"][1:]
        x, y = (torch.as_tensor(cached["label_map"]) for cached in (a, b))
        if bundle == "chest_xray" and kind == "boundary":
            # A file's distances are in its own pixels, not in those of the resized image.
            x, y = x / x.abs().max(), y / y.abs().max()
        torch.testing.assert_close(torch.as_tensor(a["label"]), torch.as_tensor(b["label"]))
        assert x.shape == y.shape
        assert float((x - y).abs().mean()) < 0.1 * float(x.abs().max())


def test_error_map_dir_without_maps(datasets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        run("train", datasets["kits19"], tmp_path, bundle="kits19", map_dir=str(tmp_path / "none"))
    assert "python -m monai_segloss maps" in chain(caught.value)


# --------------------------------------------------------------------------- what may go wrong


@pytest.mark.parametrize("bundle", NEW)
@pytest.mark.parametrize("names", ["train", "inference"])
def test_error_no_data(bundle: str, names: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        run(names, tmp_path / "nowhere", tmp_path, kind=names, bundle=bundle)
    assert "nowhere does not exist" in chain(caught.value)


def test_error_label_value_of_no_class(datasets: dict[str, Path], tmp_path: Path) -> None:
    values = {"label_values": {0: 0, 1: 1, 2: 2}}
    with pytest.raises(RuntimeError) as caught:
        run("train", datasets["brats18"], tmp_path, bundle="brats18", **values)
    assert "expected the values 0, 1, 2, got 4 too" in chain(caught.value)


@pytest.mark.parametrize("batch_sizes", [(2, 4), (4, 2)])
def test_a_run_goes_on_with_another_number_of_steps_an_epoch(
    batch_sizes: tuple[int, int], datasets: dict[str, Path], tmp_path: Path
) -> None:
    """Ignite compares iterations with the new epoch length: it would stop before its time."""
    data = datasets["chest_xray"]
    few = {"bundle": "chest_xray", "val_interval": 9}
    run("train", data, tmp_path, max_epochs=2, batch_size=batch_sizes[0], **few)
    run("train", data, tmp_path, max_epochs=3, batch_size=batch_sizes[1], **few)
    log = read_log(tmp_path / "models" / "training.csv")
    assert [row["epoch"] for row in log] == [1, 2, 3]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_share_smaller_than_the_batch_is_trained_with(
    bundle: str, datasets: dict[str, Path], tmp_path: Path
) -> None:
    """As in the overlay for several processes: it is the process's own share that counts."""
    share = {"train#dataset#data": "$@train#data[:1]", "batch_size": 2, "train_patients": None}
    if bundle in ("brats18", "kits19"):  # two cases train
        share |= {"train#data": "$2 * " + raw_config("train", bundle)["train"]["data"][1:]}
    made = workflow("train", datasets[bundle], tmp_path, bundle=bundle, **share)
    assert len(item(made, "train#data")) > 2
    assert len(item(made, "train#dataloader")) == 1


def test_a_loss_alone_from_the_command_line(datasets: dict[str, Path], tmp_path: Path) -> None:
    """MONAI drops an override that is None, so the word says it."""
    overrides = {**TINY_OF["acdc17"], **TINY_STEPS["acdc17"], "loss_name": "boundary"}
    overrides |= {"dataset_dir": str(datasets["acdc17"]), "bundle_root": str(tmp_path)}
    del overrides["device"]
    words = [f"--{name}={value}" for name, value in overrides.items()]
    config = bundle_path("acdc17") / "configs" / "train.json"
    start = ("-m", "monai.bundle", "run", f"--config_file={config}", "--partner=none")
    command(*start, *words, cwd=tmp_path)
    (row,) = read_log(tmp_path / "models" / "training.csv")
    assert not any(name.startswith("weight_") for name in row)


def test_two_lungs_in_two_files_have_no_map_in_a_file(tmp_path: Path) -> None:
    """MONAI names the left lung's file alone; its map would pass for that of both."""
    data = make_chest_xray_phantom(tmp_path / "nlm", 6, 96, layout="nlm", progress=False)
    left = {"pattern": "**/leftMask/*.png", "threshold": 127, "spacing": None, "workers": 1}
    precompute_maps(data, tmp_path / "maps", "boundary", **left)
    few = {"loss_name": "boundary", "map_dir": str(tmp_path / "maps"), **ONE_STEP}
    with pytest.raises(RuntimeError) as caught:
        run("train", data, tmp_path, bundle="chest_xray", **few)
    assert "expected a label that LoadImaged loaded from one file" in chain(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "16 bits"])
def test_masks_and_images_of_any_kind_of_png(mode: str, tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:15, 10:50] = 255
    picture = Image.fromarray(mask).convert(mode) if mode != "16 bits" else None
    if picture is None:
        picture = Image.fromarray(mask.astype(np.uint16) * 257)
    picture.save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    loaded = Compose(load_xray(("image", "label")))({"image": path, "label": path})
    assert np.array_equal(np.asarray(loaded["label"][0]).T, mask > 0)
    assert float(loaded["image"].min()) == 0


def test_error_mask_of_another_size(tmp_path: Path) -> None:
    for name, size in (("image", (8, 12)), ("label", (12, 8))):
        Image.fromarray(np.full(size, 255, np.uint8)).save(tmp_path / f"{name}.png")
    paths = {name: str(tmp_path / f"{name}.png") for name in ("image", "label")}
    with pytest.raises(RuntimeError) as caught:
        Compose(load_xray(("image", "label")))(paths)
    assert "expected the same grid" in chain(caught.value)


def test_error_mask_that_would_be_empty(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(RuntimeError) as caught:
        Compose(load_xray(("image", "label")))(
            dict.fromkeys(("image", "label"), tmp_path / "a.png")
        )
    assert "expected a mask that is 255 where lung is" in chain(caught.value)


@pytest.mark.parametrize(("bundle", "size"), [("chest_xray", (64, 80)), ("kits19", (64, 80, 5))])
def test_scores_are_enlarged_smoothly(bundle: str, size: tuple[int, ...], tmp_path: Path) -> None:
    """An image made smaller is not made of blocks again."""
    steps = raw_config("inference", bundle)["image_transforms"]
    (resize,) = (step for step in steps if step["_target_"] == "Resized")
    how = {"mode": resize["mode"], "anti_aliasing": resize["anti_aliasing"]}
    centre = [n / 2 for n in size[:2]]
    x, y = np.meshgrid(*(np.arange(n) for n in size[:2]), indexing="ij")
    disc = np.hypot(x - centre[0], y - centre[1]) < 0.3 * size[0]
    truth = np.broadcast_to(disc.reshape(*size[:2], *[1] * (len(size) - 2)), size).copy()
    image = MetaTensor(torch.as_tensor(truth[None] * 1.0).float(), torch.eye(4))
    grid = [size[0] // 4, size[1] // 4, *[-1] * (len(size) - 2)]
    down = Compose([Resized("image", grid, **how)])
    seen = down({"image": image})["image"]
    flat = MetaTensor(torch.cat([0.5 - seen, seen - 0.5]), meta=seen.meta)
    if bundle == "kits19":
        back = on_label_grid(down, 2)({"image": seen, "pred": flat, "label": image})["pred"][1]
    else:
        out = tmp_path / "out"
        seen.meta["filename_or_obj"] = str(tmp_path / "a.png")
        Image.fromarray((truth * 255).T.astype(np.uint8)).save(tmp_path / "a.png")
        saved_mask(down, str(out), ["background", "lung"])({"image": seen, "pred": flat[1:]})
        back = torch.as_tensor(read_image(out / "a_pred.png") > 127)
    wrong = float((torch.as_tensor(back).bool() != torch.as_tensor(truth)).float().sum())
    assert wrong < 0.035 * truth.sum()


def test_weights_of_an_interrupted_last_epoch_are_written(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    """A run that was killed between its two files has nothing left to train, and no weights."""
    data = datasets["chest_xray"]
    run("train", data, tmp_path, bundle="chest_xray", **ONE_STEP)
    weights = (tmp_path / "models" / "model.pt").read_bytes()
    (tmp_path / "models" / "model.pt").unlink()
    run("train", data, tmp_path, bundle="chest_xray", **ONE_STEP)
    assert (tmp_path / "models" / "model.pt").read_bytes() == weights


def test_error_resumed_on_another_split(datasets: dict[str, Path], tmp_path: Path) -> None:
    """What was tested would be trained with."""
    data = datasets["chest_xray"]
    run("train", data, tmp_path, bundle="chest_xray", **ONE_STEP)
    with pytest.raises(RuntimeError) as caught:
        run("train", data, tmp_path, bundle="chest_xray", split_seed=1, **ONE_STEP)
    assert "split_seed was 0, is 1" in chain(caught.value)


def test_a_class_of_several_values_is_written_as_the_first(tmp_path: Path) -> None:
    values = {0: 0, 1: 1, 2: 2, 3: 1, 4: 3}
    saved = saved_labels(Compose([]), str(tmp_path), ["", "a", "b", "c"], label_values=values)
    (mapper,) = (t.mapper for t in saved.transforms if isinstance(t, MapLabelValued))
    assert dict(zip(mapper.orig_labels, mapper.target_labels, strict=True)) == {
        0: 0,
        1: 1,
        2: 2,
        3: 4,
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, {"weight": [1.0, 1.0, 2.0, 1.0]})
        for name in ("cross_entropy", "dice", "dice_ce", "focal", "rrw", "dice_focal")
    ]
    + [("dice", {"softmax": True, "include_background": False})],
)
def test_options_of_a_loss_as_a_user_writes_them(name: str, options: dict[str, Any]) -> None:
    loss = make_training_loss(name, options, softmax=True, to_onehot_y=True)
    label = torch.randint(0, 4, (2, 1, 16, 16)).float()
    assert torch.isfinite(loss(torch.randn(2, 4, 16, 16), label))


def test_inference_of_a_file_from_elsewhere_stays_in_its_folder(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    """Its way from the data set's folder leads up, and out of the folder of predictions."""
    root = tmp_path / "a" / "b"
    made = workflow("inference", tmp_path / "data", root, "inference", "kits19")
    (root / "models").mkdir(parents=True)
    torch.save(item(made, "network_def").state_dict(), root / "models" / "model.pt")
    file = next(datasets["kits19"].rglob("imaging.nii.gz"))
    options = {"kind": "inference", "bundle": "kits19", "datalist": [{"image": str(file)}]}
    run("inference", tmp_path / "data", root, **options)
    names = {p.name for p in (root / "predictions").iterdir()}
    assert names == {"imaging_pred.nii.gz", "imaging_overlay.png"}


def test_losses_with_maps_of_several_kinds_make_their_own(
    datasets: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = {"loss_name": "border_cross_entropy", "partner": "rrw"}
    made = workflow("train", datasets["acdc17"], tmp_path, **two)
    assert item(made, "map_kind") is None
    assert "maps of the kinds border, rrw; each computes its own" in caplog.text
    for options in ({"map_options": {"sigma": 1.0}}, {"map_dir": "maps"}):
        with pytest.raises(RuntimeError) as caught:
            item(workflow("train", datasets["acdc17"], tmp_path, **two, **options), "map_kind")
        assert "expected none for a sum that reads maps" in chain(caught.value)


@pytest.mark.parametrize("size", [32, 40, 48, 96])
def test_maps_from_files_lie_on_their_label_at_any_size(
    size: int, datasets: dict[str, Path], tmp_path: Path
) -> None:
    """Between two voxels of the file both must take the same one: the map's sign tells."""
    data = datasets["kits19"]
    precompute_maps(data, tmp_path / "maps", "boundary", 3, pattern=LABELS["kits19"][0], workers=1)
    options = {"loss_name": "boundary", "map_dir": str(tmp_path / "maps")}
    options |= {"slice_size": [size, size], "patch_size": [size, size], **TINY_STEPS["kits19"]}
    made = workflow("train", data, tmp_path, bundle="kits19", **options)
    cached = item(made, "train#dataset")._cache[0]
    label = torch.as_tensor(cached["label"])[0]
    for c, channel in enumerate(torch.as_tensor(cached["label_map"])):
        assert torch.equal(channel <= 0, label == c)
