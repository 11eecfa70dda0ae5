"""The public templates of Auto3DSeg, wherever somebody has them: what a CPU can do with them.

``MONAI_SEGLOSS_AUTO3DSEG_TEMPLATES=/path/to/algorithm_templates pytest -s`` this file; with ``-s``
it prints seconds a step. They need the extra ``auto3dseg``.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from auto3dseg_helpers import auto_run, clone_template, make_volumes
from monai.bundle import ConfigParser
from monai.data import list_data_collate

from monai_segloss.auto3dseg import LAYOUTS, check, input_overrides, patch_bundles, patch_templates

VARIABLE = "MONAI_SEGLOSS_AUTO3DSEG_TEMPLATES"
TEMPLATES = Path(os.environ.get(VARIABLE, "not-given"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not TEMPLATES.is_dir(), reason=f"{VARIABLE} names no folder of Auto3DSeg's templates"
    ),
]

# The names sort as they train: the template's own loss first and last.
LOSSES: dict[str, dict[str, Any]] = {
    "adefault": {},
    "brrwonline": {"loss": "rrw"},
    "crrwpacked": {"loss": "rrw", "maps": "packed"},
    "ddiceboundary": {"loss": "weighted_sum", "schedule": "gradual", "steps_per_epoch": 3},
    "efocaltversky": {"loss": "focal_tversky"},
    "flovaszsoftmax": {"loss": "lovasz_softmax"},
    "zdefault": {},
}
EPOCHS = 8
ROI = {"segresnet": [32, 32, 32], "segresnet2d": [32, 32, 8]}


def small(algo: str) -> dict[str, Any]:
    """What of AutoRunner's input makes a training that a CPU can do."""
    network = {
        "_target_": "SegResNetDS",
        "init_filters": 8,
        "blocks_down": [1, 1, 1],
        "norm": "INSTANCE",
        "in_channels": "@input_channels",
        "out_channels": "@output_classes",
        "dsdepth": 2,
        **({"spatial_dims": 2} if algo == "segresnet2d" else {}),
    }
    return {
        "roi_size": ROI[algo],
        "network": network,
        "auto_scale_allowed": False,
        "num_workers": 0,
        "determ": True,
        "learning_rate": 0.005,
        "num_epochs": EPOCHS,
        "num_epochs_per_validation": EPOCHS,
    }


@pytest.fixture(scope="module", params=["segresnet", "segresnet2d"])
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One AutoRunner that trains a template with every loss, and ensembles them all."""
    root = tmp_path_factory.mktemp(request.param)
    templates = root / "templates"
    for name, patch in LOSSES.items():
        clone_template(TEMPLATES / request.param, root / name, name)
        if patch:
            patch_templates(root / name, root / f"{name}s", algos={name: request.param}, **patch)
        shutil.move(root / (f"{name}s" if patch else name) / name, templates / name)
    data = {**make_volumes(root / "data"), **small(request.param)}
    auto_run(root / "work", templates, list(LOSSES), data, {})
    return root / "work"


def steps_of(work: Path, name: str) -> list[tuple[float, str, float]]:
    """Mean loss so far, accuracy and seconds of every step, from the template's own log."""
    log = (work / f"{name}_0/model/training.log").read_text()
    steps = re.findall(r"Epoch \d+/\d+ \d+/\d+ loss: (\S+) acc (\[.*?\])\s+time ([\d.]+)s", log)
    return [(float(loss), accuracy, float(seconds)) for loss, accuracy, seconds in steps]


def test_every_loss_trains_through_the_ensemble(work: Path, capsys: Any) -> None:
    lines = []
    for name in LOSSES:
        steps = steps_of(work, name)
        assert len(steps) == EPOCHS * 3
        losses = torch.tensor([loss for loss, _, _ in steps])
        assert bool(torch.isfinite(losses).all())
        seconds = [s for _, _, s in steps[3:]]
        history = (work / f"{name}_0/model/accuracy_history.csv").read_text().split("\n")
        dice = history[1].split("\t")[1]
        lines.append(
            f"{name:16} {min(seconds):.2f} to {max(seconds):.2f} s a step, median "
            f"{statistics.median(seconds):.2f} of {len(seconds)}, "
            f"loss {losses[2]:.4f} -> {losses[-1]:.4f}, validation Dice {dice}"
        )
    assert list((work / "ensemble_output").glob("*.nii.gz"))
    with capsys.disabled():
        print("", work.parent.name, *lines, sep="\n")


def test_first_training_accuracy_is_the_same_packed_or_not(work: Path) -> None:
    first = {name: steps_of(work, name)[0][1] for name in ("brrwonline", "crrwpacked", "adefault")}
    assert first["brrwonline"] == first["crrwpacked"] == first["adefault"]


def test_only_the_packed_one_packs(work: Path) -> None:
    packing = {
        name: "PackTargetd" in (work / f"{name}_0/model/training.log").read_text()
        for name in LOSSES
    }
    assert packing == {name: patch.get("maps") == "packed" for name, patch in LOSSES.items()}


@pytest.mark.parametrize("maps", ["online", "packed"])
@pytest.mark.parametrize("patch", [p for p in LOSSES.values() if p], ids=lambda p: p["loss"])
def test_all_four_templates_are_patched_and_checked(
    patch: dict[str, Any], maps: str, tmp_path: Path
) -> None:
    patch = {**patch, "maps": maps}
    if maps == "packed" and patch["loss"] in ("focal_tversky", "lovasz_softmax"):
        with pytest.raises(ValueError, match="reads no map"):
            patch_templates(TEMPLATES, tmp_path / "t", **patch)
        return
    patch_templates(TEMPLATES, tmp_path / "t", **patch)
    rows = check(tmp_path / "t", cmd_prefix=sys.executable)
    assert [row.folder.name for row in rows] == [
        "dints",
        "dints",
        "segresnet",
        "segresnet2d",
        "swinunetr",
    ]
    assert {row.packed for row in rows} == {maps == "packed"}


def test_input_reaches_a_bundle_and_a_bundle_is_patched_before_it_trains(tmp_path: Path) -> None:
    work = tmp_path / "work"
    data = {**make_volumes(tmp_path / "data"), **small("segresnet")}
    data |= {"num_epochs": 1, "num_epochs_per_validation": 1}
    given = {**data, **input_overrides("focal_tversky", "segresnet")}
    auto_run(work, TEMPLATES, ["segresnet"], given, None)
    (row,) = check(work, cmd_prefix=sys.executable)
    assert (row.folder.name, row.name, row.packed) == ("segresnet_0", "focal_tversky", False)
    patch_bundles(work, "boundary", maps="packed")
    auto_run(work, TEMPLATES, ["segresnet"], data, {})
    log = (work / "segresnet_0/model/training.log").read_text()
    assert "name: boundary" in log
    assert "PackTargetd" in log
    assert list((work / "ensemble_output").glob("*.nii.gz"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of dints and swinunetr, generated; swinunetr is told of a GPU of 16 GiB."""
    root = tmp_path_factory.mktemp("generated")
    data = make_volumes(root / "data", count=4, spacing=(1.0, 1.0, 1.5))
    auto_run(root / "work", TEMPLATES, ["dints", "swinunetr"], data, None)
    return root / "work"


@pytest.mark.parametrize("maps", ["online", "packed"])
@pytest.mark.parametrize("algo", ["dints", "swinunetr"])
def test_generated_bundle_transforms_data_for_its_loss(
    generated: Path, algo: str, maps: str
) -> None:
    patch_bundles(generated, "rrw", algo, maps)
    (folder,) = generated.glob(f"{algo}_0")
    check(generated, algo, cmd_prefix=sys.executable)
    files = sorted(str(file) for file in (folder / "configs").glob("*.yaml"))
    parser = ConfigParser()
    parser.read_config(files)
    transform = parser.get_parsed_content("transforms_train")
    batch = list_data_collate(transform(next(volumes(generated))))
    target = batch["label"].as_tensor()
    assert target.shape[1] == (4 if maps == "packed" else 1)
    # dints zooms and rotates, which makes a float label.
    is_float = maps == "packed" or algo == "dints"
    assert target.dtype == (torch.float32 if is_float else torch.uint8)
    logits = torch.randn(len(target), 3, *target.shape[2:], requires_grad=True)
    for place in LAYOUTS[algo].places:
        loss = parser.get_parsed_content(place.key)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(logits.float(), target)
        value.backward()
        assert value.ndim == 0
        assert value.dtype == torch.float32
        assert bool(torch.isfinite(value))
        # The resolution that the template resamples to, in mm.
        assert loss.loss.spacing == pytest.approx([1.0, 1.0, 1.5])


def volumes(work: Path) -> Iterator[dict[str, str]]:
    """Training volumes with their labels."""
    folder = work.parent / "data"
    for image in sorted(folder.glob("image_*.nii.gz")):
        yield {"image": str(image), "label": str(image).replace("image_", "label_")}
