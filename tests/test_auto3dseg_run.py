"""MONAI's real AutoRunner on a template of our own, from data to ensemble."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from auto3dseg_helpers import TESTS, auto_run, clone_template, make_volumes

from monai_segloss.auto3dseg import patch_templates

TEMPLATES = TESTS / "auto3dseg_template"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three losses beside one another: the template's own, packed maps, a schedule."""
    root = tmp_path_factory.mktemp("auto3dseg")
    templates = root / "templates"
    patches: dict[str, dict[str, Any]] = {
        "toydefault": {},
        "toypacked": {"loss": "rrw", "maps": "packed"},
        "toysum": {"loss": "weighted_sum", "schedule": "gradual", "steps_per_epoch": 2},
    }
    for name, patch in patches.items():
        clone_template(TEMPLATES / "toyseg", root / name, name)
        if patch:
            patch_templates(
                root / name, root / "patched" / name, algos={name: "segresnet"}, **patch
            )
            shutil.move(root / "patched" / name / name, templates / name)
        else:
            shutil.copytree(root / name / name, templates / name)
    data = make_volumes(root / "data", count=5, size=(24, 24, 16), spacing=(1.0, 1.0, 2.0))
    auto_run(root / "work", templates, list(patches), data, {"num_epochs": 2})
    return root / "work"


def seen(work: Path, name: str) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = json.loads((work / f"{name}_0/model/seen.json").read_text())
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toydefault", "toypacked", "toysum"])
def test_training_computes_finite_losses(work: Path, name: str) -> None:
    steps = seen(work, name)
    assert len(steps) == 4
    assert all(np.isfinite(step["loss"]) for step in steps)


@pytest.mark.slow
def test_the_default_is_another_loss(work: Path) -> None:
    first = {name: seen(work, name)[0]["loss"] for name in ("toydefault", "toypacked", "toysum")}
    assert len({round(value, 6) for value in first.values()}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels"), [("toydefault", 1), ("toypacked", 4), ("toysum", 1)])
def test_targets_are_packed_where_asked_for(work: Path, name: str, channels: int) -> None:
    assert {step["channels"] for step in seen(work, name)} == {channels}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toydefault", "toypacked", "toysum"])
def test_training_accuracy_is_that_of_the_label(work: Path, name: str) -> None:
    for step in seen(work, name):
        assert step["dice"] == pytest.approx(step["dice_of_label"], abs=1e-6)


@pytest.mark.slow
def test_schedule_counts_optimiser_steps_not_outputs(work: Path) -> None:
    weights = [step["weights"] for step in seen(work, "toysum")]
    # Two steps an epoch, two outputs a step.
    assert weights[:2] == [[1.0, 0.0]] * 2
    assert weights[2:] == [pytest.approx([0.99, 0.01])] * 2


@pytest.mark.slow
def test_ensemble_predicts_the_test_volume(work: Path) -> None:
    (path,) = (work / "ensemble_output").glob("*.nii.gz")
    prediction = np.asarray(nibabel.load(path).dataobj)
    assert prediction.shape == (24, 24, 16)
    assert set(np.unique(prediction)) <= {0, 1, 2}
