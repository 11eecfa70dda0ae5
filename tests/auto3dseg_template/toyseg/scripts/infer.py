"""Inference, as AutoRunner's ensemble calls it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import LoadImage
from monai.utils import convert_to_dst_type

sys.path.insert(0, str(Path(__file__).resolve().parent))

from train import build, read_config


class InferClass:
    """The class that the ensemble looks for."""

    def __init__(self, config_file: Sequence[str], **override: Any) -> None:
        self.config = read_config(config_file, override)
        self.network = build(self.config["network"]).eval()
        weights = Path(self.config["ckpt_path"]) / "model.pt"
        self.network.load_state_dict(torch.load(weights, weights_only=True))

    @torch.no_grad()
    def infer(self, image_file: dict[str, str]) -> torch.Tensor:
        """Probabilities ``(C, *spatial)``."""
        image = LoadImage(ensure_channel_first=True)(image_file["image"])
        probabilities = self.network(image.as_tensor()[None]).softmax(1)[0]
        made: torch.Tensor = convert_to_dst_type(probabilities, image)[0]
        return made
