"""The main job on generated data: hearts, maps, training, 3D evaluation, a table and a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from monai_segloss.bundle import bundle_path
from monai_segloss.datasets import make_acdc17_phantom
from monai_segloss.losses import get_loss_row

__all__ = ["run_demo"]

# Small enough for two cores: a coarser grid, a narrow network, a few hundred steps.
_OVERRIDES: dict[str, Any] = {
    "spacing": [2.0, 2.0],
    "patch_size": [96, 96],
    "width": 16,
    "levels": 5,
    "batch_size": 2,
    "slices_per_volume": 4,
    "learning_rate": 0.001,
    "num_workers": 0,
    "val_interval": 5,
    "val_patients": 1,
}


def run_demo(
    output: str | os.PathLike[str] = "demo_output",
    patients: int = 16,
    epochs: int = 30,
    epoch_length: int = 50,
    loss_name: str = "rrw",
    seed: int = 0,
) -> dict[str, Any]:
    """Generate hearts, train the ACDC17 bundle on half of them, evaluate on the other half.

    Interrupted, it goes on where it stopped. The bundle is run as a user runs it, by
    ``python -m monai.bundle run`` with overrides.

    Args:
        output: folder for data, weights and results; made if missing.
        patients: generated patients; the even ones train, the odd ones are evaluated.
        epochs: epochs of training.
        epoch_length: steps an epoch.
        loss_name: a loss of the taxonomy.
        seed: of data and training.

    Returns:
        The evaluation's summary, as in ``metrics.json``.

    Raises:
        ValueError: on an unknown loss, fewer than two patients or no epoch.
        RuntimeError: if training or evaluation ends with an error.
    """
    get_loss_row(loss_name)
    for name, value, least in (("patients", patients, 2), ("epochs", epochs, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    began = time.perf_counter()
    root = Path(output).resolve()
    bundle = bundle_path("acdc17")
    print(f"[1/3] {patients} generated hearts in ACDC's layout: {root / 'data'}", flush=True)
    make_acdc17_phantom(root / "data", num_patients=patients, seed=seed)
    overrides = {
        **_OVERRIDES,
        "dataset_dir": str(root / "data"),
        "ckpt_dir": str(root / "models"),
        "output_dir": str(root / "eval"),
        "bundle_root": str(bundle),
        "loss_name": loss_name,
        "max_epochs": epochs,
        "epoch_length": epoch_length,
        "seed": seed,
    }
    print(f"[2/3] train the bundle with loss {loss_name}: {epochs} epochs", flush=True)
    train = bundle_command(bundle, ["train.json"], overrides)
    _run(train)
    print("[3/3] evaluate on the patients it has not seen, in 3D", flush=True)
    overrides["val_patients"] = None
    _run(bundle_command(bundle, ["train.json", "evaluate.json"], overrides))
    summary: dict[str, Any] = json.loads((root / "eval" / "metrics.json").read_text())["summary"]
    print(f"mean foreground Dice {summary['dice']['mean']:.3f}, {_minutes(began)}")
    print(f"look at   {root / 'eval' / 'overview.png'}")
    print(f"and at    {root / 'eval' / 'metrics.json'}")
    print("next      the same with another loss, to compare:")
    print(
        f"            {Path(sys.executable).name} -m monai_segloss demo "
        f"--loss-name dice_ce --output {Path(output).name}_dice_ce"
    )
    print(f"          or real data, see {bundle / 'docs' / 'README.md'}")
    return summary


def bundle_command(bundle: Path, configs: list[str], overrides: dict[str, Any]) -> list[str]:
    """The command line that runs a bundle's configs, the later over the earlier."""
    folder = bundle / "configs"
    files = [str(folder / name) for name in configs]
    return [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        f"--config_file={files}",
        f"--meta_file={folder / 'metadata.json'}",
        f"--logging_file={folder / 'logging.conf'}",
        *(f"--{name}={value}" for name, value in overrides.items()),
    ]


def _run(command: list[str]) -> None:
    # Threads that spin while they wait slow each other down wherever a core is not theirs alone.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    status = subprocess.run(command, check=False, env=environment).returncode
    if status:
        raise RuntimeError(f"ended with status {status}: {' '.join(command)}")


def _minutes(began: float) -> str:
    return f"{(time.perf_counter() - began) / 60:.1f} minutes in all"
