"""A small network reaches the exact mask with every loss that is marked safe alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_segloss.losses import TAXONOMY, make_loss

SAFE = [name for name, row in TAXONOMY.items() if row.safe_alone]
STEPS = 500
OPTIONS: dict[str, dict[str, Any]] = {
    # At its full weight the length of the contour rounds off the corners of a tiny mask.
    "active_contour": {"lambda_length": 0.1},
    "weighted_sum": {"weights": [1.0, 0.01]},
}


def nested_boxes() -> tuple[Tensor, Tensor]:
    """Two noisy images ``(2, 2, 20, 20)`` and their labels of three classes."""
    label = torch.zeros((2, 1, 20, 20), dtype=torch.int64)
    label[0, :, 4:15, 3:14] = 1
    label[0, :, 7:12, 6:11] = 2
    label[1, :, 2:12, 6:18] = 1
    label[1, :, 5:9, 9:15] = 2
    image = torch.cat([(label == 1).float(), (label == 2).float()], dim=1)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return image - 0.5 + 0.1 * noise, label


@pytest.mark.parametrize("name", SAFE)
def test_reaches_the_exact_mask(name: str) -> None:
    image, label = nested_boxes()
    softmax = "softmax" in TAXONOMY[name].forms
    activation = {"softmax": True} if softmax else {"sigmoid": True}
    loss = make_loss(name, to_onehot_y=True, **activation, **OPTIONS.get(name, {}))
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 3, 1),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    wrong = label.numel()
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = network(image)
        loss(logits, label).backward()
        optimizer.step()
        wrong = int((logits.argmax(1, keepdim=True) != label).sum())
        if wrong == 0:
            return
    pytest.fail(f"{wrong} of {label.numel()} voxels are wrong after {STEPS} steps")
