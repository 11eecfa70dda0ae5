"""Training: ``train.py run --config_file='a.yaml,b.yaml'``, as AutoRunner starts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import torch
import yaml
from monai.auto3dseg.utils import datafold_read
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.losses import DeepSupervisionLoss
from monai.metrics import DiceHelper
from monai.transforms import (
    CastToTyped,
    Compose,
    EnsureTyped,
    LoadImaged,
    RandFlipd,
    RandSpatialCropd,
)
from monai.utils import set_determinism


def read_config(config_file: str | Sequence[str], override: dict[str, Any]) -> dict[str, Any]:
    """The first of two parses: references resolved, nothing built."""
    files = config_file.split(",") if isinstance(config_file, str) else list(config_file)
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update(override)
    config: dict[str, Any] = parser.config
    for key, value in config.items():
        if isinstance(value, dict) and "_target_" in value:
            config[key] = parser.get_parsed_content(key, instantiate=False).config
        elif "_target_" not in str(value):
            config[key] = parser.get_parsed_content(key)
    return config


def build(part: dict[str, Any]) -> Any:
    """The second parse."""
    return ConfigParser(part).get_parsed_content(instantiate=True)


def loader_of(config: dict[str, Any], files: Sequence[dict[str, Any]]) -> DataLoader:
    """Crops, flipped, with what the configuration has behind the augmentation."""
    keys = ["image", "label"]
    steps: list[Any] = [
        LoadImaged(keys, ensure_channel_first=True),
        CastToTyped("label", torch.uint8),
        RandSpatialCropd(keys, config["roi_size"], random_size=False),
        RandFlipd(keys, prob=0.5, spatial_axis=0),
        EnsureTyped(keys, dtype=torch.float32),
    ]
    for custom in config.get("custom_data_transforms", []):
        if custom["key"] == "after_augment_transforms":
            steps.append(build(custom["transform"]))
    return DataLoader(Dataset(files, Compose(steps)), batch_size=1, shuffle=True, num_workers=0)


def run(config_file: str | Sequence[str], **override: Any) -> None:
    """Train, and leave the weights, the score and what was seen on the way."""
    set_determinism(0)
    config = read_config(config_file, override)
    files, _ = datafold_read(
        config["data_list_file_path"], config["data_file_base_dir"], fold=config["fold"]
    )
    network = build(config["network"])
    inner = build(config["loss"])
    criterion = DeepSupervisionLoss(inner)
    accuracy = DiceHelper(sigmoid=config["sigmoid"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=config["learning_rate"])
    seen: list[dict[str, Any]] = []
    for _ in range(config["num_epochs"]):
        for batch in loader_of(config, files):
            image, target = batch["image"].as_tensor(), batch["label"].as_tensor()
            optimizer.zero_grad()
            logits = network(image)
            value = criterion(logits, target)
            value.backward()
            optimizer.step()
            dice, _ = accuracy(logits[0].detach(), target)
            weights = getattr(getattr(inner, "loss", None), "weights", None)
            seen.append(
                {
                    "loss": value.item(),
                    "dice": float(dice.mean()),
                    "dice_of_label": float(label_dice(logits[0], target)),
                    "channels": target.shape[1],
                    "weights": None if weights is None else weights.tolist(),
                }
            )
    folder = Path(config["ckpt_path"])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "model.pt")
    (folder / "seen.json").write_text(json.dumps(seen))
    score = {"best_avg_dice_score": seen[-1]["dice"], "best_avg_dice_score_epoch": 0}
    (folder / "progress.yaml").write_text(yaml.safe_dump([score]))


def label_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean foreground Dice from the label's channels alone, by counting."""
    classes = logits.shape[1]
    label = target[:, :1] if target.shape[1] == 1 else target[:, :classes].argmax(1, keepdim=True)
    guess = logits.argmax(1, keepdim=True)
    scores = []
    for c in range(1, classes):
        both, either = ((guess == c) & (label == c)).sum(), (guess == c).sum() + (label == c).sum()
        if (label == c).any():
            scores.append(2 * both / either)
    return torch.stack(scores).mean() if scores else torch.zeros(())


if __name__ == "__main__":
    fire.Fire()
