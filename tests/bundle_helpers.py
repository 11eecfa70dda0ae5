"""What the tests of bundles share: a tiny network, and the ways to run a config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from torch import Tensor, nn

import monai_segloss
from monai_segloss.bundle import bundle_path

CONFIGS = bundle_path("acdc17") / "configs"
METADATA = CONFIGS / "metadata.json"

# A GPU, where there is one, would only change rounding.
CPU = "$torch.device('cpu')"
NETWORK: dict[str, Any] = {"width": 4, "levels": 5}
GRID: dict[str, Any] = {"spacing": [2.0, 2.0], "patch_size": [64, 64]}
TINY: dict[str, Any] = {
    **NETWORK,
    **GRID,
    "batch_size": 2,
    "slices_per_volume": 2,
    "epoch_length": 2,
    "max_epochs": 2,
    "learning_rate": 0.01,
    "num_workers": 0,
    "device": CPU,
}


_BATCHES = {"batch_size": 2, "max_epochs": 2, "learning_rate": 0.01, "num_workers": 0}
_SLICES = {**NETWORK, **_BATCHES, "slices_per_volume": 2, "epoch_length": 2, "device": CPU}
TINY_OF: dict[str, dict[str, Any]] = {
    "acdc17": TINY,
    "brats18": {**_SLICES, "patch_size": [64, 64]},
    "kits19": {**_SLICES, "patch_size": [64, 64], "slice_size": [64, 64]},
    "chest_xray": {**_BATCHES, "width": 4, "image_size": [64, 64], "device": CPU},
}
"""The tiny settings of every bundle."""


def raw_config(name: str, bundle: str = "acdc17") -> dict[str, Any]:
    """A config as it is written, nothing resolved."""
    path = bundle_path(bundle) / "configs" / f"{name}.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def workflow(
    names: str,
    data: Path,
    root: Path,
    kind: str = "train",
    bundle: str = "acdc17",
    **overrides: Any,
) -> ConfigWorkflow:
    """Configs, joined by ``+``, with the tiny settings; `root` takes what a run writes."""
    folder = bundle_path(bundle) / "configs"
    made = ConfigWorkflow(
        [str(folder / f"{name}.json") for name in names.split("+")],
        workflow_type=kind,
        logging_file=False,
        **{**TINY_OF[bundle], "dataset_dir": str(data), "bundle_root": str(root), **overrides},
    )
    made.initialize()
    return made


def item(made: ConfigWorkflow, name: str) -> Any:
    """An entry of a workflow's config, resolved."""
    return made.parser.get_parsed_content(name)


def run(names: str, data: Path, root: Path, **overrides: Any) -> ConfigWorkflow:
    """Run configs to their end in this process."""
    made = workflow(names, data, root, **overrides)
    made.run()
    made.finalize()
    return made


class Watched:
    """A training run in this process that writes down what its optimiser did.

    Attributes:
        rates: (epoch, learning rate) of each iteration.
        steps: what Adam had counted when the first iteration began.
        moments: Adam's first moments at that time.
    """

    def __init__(self, data: Path, root: Path, **overrides: Any) -> None:
        self.rates: list[tuple[int, float]] = []
        self.steps: set[int] = set()
        self.moments: list[Tensor] = []
        self.workflow = workflow("train", data, root, **overrides)
        self.trainer = item(self.workflow, "train#trainer")
        self.optimizer = item(self.workflow, "optimizer")
        self.trainer.add_event_handler(Events.ITERATION_STARTED, self._each)
        self.workflow.run()

    @property
    def epochs(self) -> list[int]:
        """The epochs that were trained, in order."""
        return list(dict.fromkeys(epoch for epoch, _ in self.rates))

    def _each(self) -> None:
        if not self.rates:
            states = self.optimizer.state.values()
            self.steps = {int(state["step"]) for state in states}
            self.moments = [state["exp_avg"].clone() for state in states]
        self.rates.append((self.trainer.state.epoch, self.optimizer.param_groups[0]["lr"]))


def command(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments, as a user does in a shell; its output is one text."""
    here = str(Path(monai_segloss.__file__).resolve().parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def chain(error: BaseException) -> str:
    """What the errors say that led to one another, the one raised last first."""
    texts = []
    current: BaseException | None = error
    while current is not None:
        texts.append(f"{type(current).__name__}: {current}")
        current = current.__cause__ or current.__context__
    return "\n".join(texts)


class Bright(nn.Module):
    """A network with nothing to learn: class 3 where the image is brighter than usual, else 0."""

    def forward(self, image: Tensor) -> Tensor:
        bright = 10 * (image - 1)
        rest = torch.full_like(image, -20)
        return torch.cat([-bright, rest, rest, bright], dim=1)
