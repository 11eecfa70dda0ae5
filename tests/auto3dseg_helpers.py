"""What the tests of the Auto3DSeg plug-in share: generated volumes, and AutoRunner in a process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def make_volumes(
    folder: Path,
    count: int = 8,
    size: tuple[int, int, int] = (64, 64, 32),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.2),
    seed: int = 0,
) -> dict[str, Any]:
    """Volumes of a ball in a shell, and what AutoRunner is told about them.

    Returns:
        AutoRunner's ``input``: one volume is for testing, half of the others is fold 0.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"))
    datalist: dict[str, list[dict[str, Any]]] = {"training": [], "testing": []}
    for number in range(count):
        middle = np.array(size) / 2 + rng.uniform(-2, 2, 3)
        reach = np.sqrt((((grid.T - middle) / (np.array(size) * 0.35)) ** 2).sum(-1)).T
        label = (reach < 1).astype(np.uint8) + (reach < 0.6).astype(np.uint8)
        image = (label * 100 + rng.normal(0, 15, size) + 50).astype(np.float32)
        paths = {}
        for key, array in (("image", image), ("label", label)):
            paths[key] = f"{key}_{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / paths[key])
        if number == count - 1:
            datalist["testing"].append({"image": paths["image"]})
        else:
            datalist["training"].append({**paths, "fold": number % 2})
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return {
        "modality": "MRI",
        "datalist": str(folder / "datalist.json"),
        "dataroot": str(folder),
    }


def auto_run(
    work_dir: Path,
    templates: Path,
    algos: Sequence[str],
    data: dict[str, Any],
    train_params: dict[str, Any] | None,
) -> None:
    """The real AutoRunner in a process of its own, through the ensemble of all algorithms.

    Without ``train_params`` it stops when the bundles are generated.
    """
    settings = {
        "work_dir": str(work_dir),
        "input": data,
        "templates_path_or_url": str(templates),
        "algos": list(algos),
        "train_params": train_params,
        "n_best": len(algos),
    }
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / "settings.json"
    path.write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, str(TESTS / "auto3dseg_run.py"), str(path)],
        capture_output=True,
        text=True,
        cwd=work_dir,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]


def clone_template(source: Path, folder: Path, name: str) -> None:
    """A template under another name, which its class must bear too."""
    target = folder / name
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    algo = target / "scripts" / "algo.py"
    old, new = f"{source.name.capitalize()}Algo", f"{name.capitalize()}Algo"
    algo.write_text(algo.read_text().replace(old, new))


def environment() -> dict[str, str]:
    """This checkout's package for a process that starts elsewhere, one thread, no GPU."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
