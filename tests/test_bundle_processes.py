"""Training on several processes: the overlay for torchrun, on two processes with Gloo."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_helpers import TINY_OF, command
from torch import Tensor

from monai_segloss.bundle import bundle_path
from monai_segloss.bundle_parts import own_share
from monai_segloss.datasets import PHANTOMS, make_acdc17_phantom
from monai_segloss.handlers import read_log

# What differs from process to process by chance is taken out: the middle slice of every volume.
STEADY = {
    "train#random_transforms": "$[monai.transforms.CenterSpatialCropd("
    "@train#all_keys, roi_size=[*@patch_size, 1]), "
    "monai.transforms.SqueezeDimd(@train#all_keys, dim=-1)] "
    "+ bundle_parts.packed(@train#target_keys) + @train#to_tensor",
    "train#dataloader#shuffle": False,
    # Adam makes of a rounding error of a gradient near 0 a whole step.
    "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.5},
    "epoch_length": 3,
    "max_epochs": 2,
    "val_interval": 1,
}


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small patients in ACDC's layout: three train, three validate, two frames each."""
    root = tmp_path_factory.mktemp("acdc17")
    return make_acdc17_phantom(root, num_patients=6, size=64, num_slices=6, progress=False)


def train(
    data: Path, root: Path, processes: int, *more: str, bundle: str = "acdc17", **overrides: Any
) -> subprocess.CompletedProcess[str]:
    """Train as a user does, by torchrun if there are several processes."""
    folder = bundle_path(bundle) / "configs"
    configs = [str(folder / "train.json")]
    start = ["-m", "monai.bundle"]
    if processes > 1:
        configs.append(str(folder / "multi_gpu_train.json"))
        run = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        start = [*run, *start]
    settings = {k: v for k, v in TINY_OF[bundle].items() if k != "device"}
    settings |= {"dataset_dir": str(data), "bundle_root": str(root), **overrides}
    root.mkdir(exist_ok=True)
    return command(
        *start,
        "run",
        f"--config_file={configs}",
        f"--logging_file={folder / 'logging.conf'}",
        *(f"--{name}={value}" for name, value in settings.items()),
        *more,
        cwd=root,
    )


def weights(root: Path) -> Tensor:
    """All of a trained network's weights in one vector."""
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    return torch.cat([value.double().flatten() for value in state.values()])


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(
    patients: Path, tmp_path: Path
) -> None:
    train(patients, tmp_path / "one", 1, batch_size=4, **STEADY)
    done = train(patients, tmp_path / "two", 2, batch_size=2, **STEADY)
    train(patients, tmp_path / "half", 1, batch_size=2, **STEADY)
    one, two, half = (weights(tmp_path / name) for name in ("one", "two", "half"))
    # Rounding grows from step to step; how far other data lead is the measure for it.
    assert float((two - one).norm()) < 0.01 * float((half - one).norm())
    logs = [read_log(tmp_path / name / "models" / "training.csv") for name in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        # Six frames are validated, three by each process; the mean is that of all.
        assert a["dice"] == pytest.approx(b["dice"], rel=1e-3)
    # One of them speaks and writes.
    assert done.stdout.count("epoch 1/2") == 1
    assert {p.name for p in (tmp_path / "two" / "models").iterdir()} == {
        "checkpoint.pt",
        "model.pt",
        "training.csv",
    }


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(patients: Path, tmp_path: Path) -> None:
    few = {"epoch_length": 2, "val_interval": 3}
    train(patients, tmp_path, 2, max_epochs=2, **few)
    done = train(patients, tmp_path, 1, max_epochs=3, **few)
    assert "resumed after epoch 2" in done.stdout
    log = read_log(tmp_path / "models" / "training.csv")
    assert [row["epoch"] for row in log] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["brats18", "chest_xray", "kits19"])
def test_the_overlay_fits_every_bundle(bundle: str, tmp_path: Path) -> None:
    count = 10 if bundle == "chest_xray" else 4
    data = PHANTOMS[bundle](tmp_path / "data", count, size=64, progress=False)
    few = {"max_epochs": 1, "val_interval": 1}
    train(data, tmp_path / "run", 2, bundle=bundle, **few)
    (row,) = read_log(tmp_path / "run" / "models" / "training.csv")
    assert row["epoch"] == 1
    assert 0 <= row["dice"] <= 1


SHARE = """
import json, sys
import torch.distributed as dist
from monai_segloss.bundle_parts import join_processes, local_device, own_seed, own_share
join_processes()
mine = {"rank": dist.get_rank(), "seed": own_seed(7), "device": str(local_device())}
mine |= {str(even): own_share(list(range(7)), even=even) for even in (True, False)}
print(json.dumps(mine), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_each_process_has_its_own_share_and_seed(tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(SHARE)
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script))
    lines = command(*run, cwd=tmp_path).stdout.splitlines()
    first, second = sorted(
        (json.loads(line) for line in lines if line.startswith("{")), key=lambda m: m["rank"]
    )
    assert sorted(first["False"] + second["False"]) == list(range(7))
    assert len(first["True"]) == len(second["True"]) == 4
    assert set(first["True"] + second["True"]) == set(range(7))
    assert first["seed"] == 7 != second["seed"]
    assert first["device"] == "cpu"


def test_a_process_alone_has_all() -> None:
    assert own_share([3, 1, 2], even=True) == [3, 1, 2]
    with pytest.raises(ValueError, match="data: expected an item for each of 1 processes, got 0"):
        own_share([], even=True)


@pytest.mark.slow
def test_error_fewer_cases_than_processes(patients: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="an item for each of 2 processes, got 1"):
        train(patients, tmp_path, 2, "--validate#data=$[{'image': 'a', 'label': 'b'}]")
