"""Auto3DSeg with a loss of this package, from data to ensemble, on a CPU in about a minute.

    python tutorials/auto3dseg_segresnet.py path/to/algorithm_templates --loss rrw --maps packed

It needs the public templates of Auto3DSeg and the extra ``auto3dseg``; the data are made up.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.apps.auto3dseg import AutoRunner

from monai_segloss.auto3dseg import check, patch_templates

# Small enough for a CPU; a real run leaves all of this to Auto3DSeg.
SMALL: dict[str, Any] = {
    "roi_size": [32, 32, 32],
    "auto_scale_allowed": False,
    "num_workers": 0,
    "learning_rate": 0.005,
    "network": {
        "_target_": "SegResNetDS",
        "init_filters": 8,
        "blocks_down": [1, 1, 1],
        "norm": "INSTANCE",
        "in_channels": "@input_channels",
        "out_channels": "@output_classes",
        "dsdepth": 2,
    },
}


def make_data(folder: Path, count: int = 8) -> dict[str, Any]:
    """Volumes of a ball in a shell, and AutoRunner's ``input``; the last one is for testing."""
    rng = np.random.default_rng(0)
    size = (64, 64, 32)
    folder.mkdir(parents=True, exist_ok=True)
    datalist: dict[str, list[dict[str, Any]]] = {"training": [], "testing": []}
    for number in range(count):
        middle = np.array(size) / 2 + rng.uniform(-4, 4, 3)
        grid = np.moveaxis(np.indices(size), 0, -1)
        radius = np.linalg.norm((grid - middle) / (np.array(size) * 0.35), axis=-1)
        label = (radius < 1).astype(np.uint8) + (radius < 0.6).astype(np.uint8)
        image = (50 + 100 * label + rng.normal(0, 15, size)).astype(np.float32)
        names = {key: f"{key}_{number}.nii.gz" for key in ("image", "label")}
        affine = np.diag([1.0, 1.0, 1.2, 1.0])
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / names["image"])
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / names["label"])
        if number < count - 1:
            datalist["training"].append({**names, "fold": number % 2})
        else:
            datalist["testing"].append({"image": names["image"]})
    path = folder / "datalist.json"
    path.write_text(json.dumps(datalist))
    return {"modality": "MRI", "datalist": str(path), "dataroot": str(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("templates", help="the folder that holds segresnet/")
    parser.add_argument("--output", type=Path, default=Path("auto3dseg_output"))
    parser.add_argument("--loss", default="rrw")
    parser.add_argument("--maps", choices=("online", "packed"), default="online")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    output = options.output.resolve()

    patched = patch_templates(
        options.templates, output / "templates", options.loss, "segresnet", options.maps
    )
    for row in check(patched, cmd_prefix=sys.executable):
        print(f"checked {row.folder.name}: {row.name}, {row.cases} targets")

    runner = AutoRunner(
        work_dir=str(output / "work"),
        input={
            **make_data(output / "data"),
            **SMALL,
            "num_epochs": options.epochs,
            "num_epochs_per_validation": options.epochs,
        },
        algos=["segresnet"],
        templates_path_or_url=str(patched),
        not_use_cache=True,
    )
    runner.set_num_fold(1)
    runner.set_device_info(cmd_prefix=sys.executable)
    runner.set_analyze_params({"do_ccp": False, "device": "cpu"})
    runner.run()

    history = output / "work/segresnet_0/model/accuracy_history.csv"
    print(history.read_text())
    print(f"predictions: {output / 'work/ensemble_output'}")


if __name__ == "__main__":
    main()
