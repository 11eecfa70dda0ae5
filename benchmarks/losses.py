"""Forward and backward of the losses, beside MONAI's and beside SciPy in the forward pass.

BoundaryLoss from the label and with a packed map beside monai.losses.BoundaryLoss; RegionWiseLoss
(rrw) with a packed map and from the label beside monai.losses.DiceCELoss and beside the arithmetic
of the method's first code: the map by SciPy on the CPU inside forward, softmax times map, mean.
For each: time, how far the value lies from the reference's, and the peak of memory.

Peak memory is what one forward and backward holds beyond its input, at its height: by torch's
count on CUDA; on the CPU by the kernel's high-water mark of the process's resident memory, which
sees SciPy's arrays too (Linux only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import monai.losses
import numpy as np
import torch
from _labels import blobs
from _references import scipy_rrw
from _timing import (
    Comparison,
    Contestant,
    begin,
    compare,
    make_parser,
    peak_memory,
    print_comparison,
    print_table,
    write_report,
)
from torch import Tensor
from torch.nn.functional import one_hot

from monai_segloss.losses import BoundaryLoss, RegionWiseLoss
from monai_segloss.maps import region_wise_map

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Step:
    """One forward and backward.

    Attributes:
        name: what it is.
        loss: loss(logits, target).
        logits: the leaf that gets the gradient.
        target: label, or label and map.
        of_reference: whether its value is the one that the others are compared with.
        comparable: whether its value should equal the reference's.
        target_ratio: the ratio that is aimed at, in words.
    """

    name: str
    loss: Loss
    logits: Tensor
    target: Tensor
    of_reference: bool = False
    comparable: bool = True
    target_ratio: str = ""

    def __call__(self) -> None:
        self.loss(self.logits, self.target).backward()
        self.logits.grad = None

    def value(self) -> float:
        with torch.no_grad():
            return float(self.loss(self.logits, self.target))


@dataclass(frozen=True)
class Size:
    """Shape of the logits."""

    batch: int
    classes: int
    spatial: tuple[int, ...]

    def __str__(self) -> str:
        return "x".join(str(n) for n in (self.batch, self.classes, *self.spatial))

    def logits(self, device: torch.device) -> Tensor:
        """Standard normal, the same in every run."""
        values = torch.randn(
            (self.batch, self.classes, *self.spatial), generator=torch.Generator().manual_seed(0)
        )
        return values.to(device).requires_grad_()

    def index(self, device: torch.device) -> Tensor:
        """Class index ``(B, 1, *spatial)``."""
        samples = [blobs(self.spatial, self.classes, seed) for seed in range(self.batch)]
        return torch.from_numpy(np.stack(samples)).unsqueeze(1).to(device)


# --------------------------------------------------------------------------- cases


class ScipyInForward:
    """softmax times the rectified map that SciPy computes on the CPU, sample by sample; mean."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        labels = target[:, 0].cpu().numpy()
        maps = np.stack([scipy_rrw(label, self.classes, None) for label in labels])
        region_wise = torch.from_numpy(maps).to(logits.device)
        return (torch.softmax(logits, dim=1) * region_wise).mean()


def boundary_steps(size: Size, device: torch.device, target_ratio: str) -> list[Step]:
    """BoundaryLoss beside MONAI's, on a float one-hot label."""
    logits, index = size.logits(device), size.index(device)
    label = one_hot(index[:, 0].long(), size.classes).movedim(-1, 1).float()
    packed = torch.cat(
        [label, region_wise_map(index, "boundary", size.classes, inside="shifted")], dim=1
    )
    ours = BoundaryLoss(softmax=True, inside="shifted")
    theirs = monai.losses.BoundaryLoss(softmax=True)
    return [
        Step("ours, from the label", ours, logits, label),
        Step("ours, map packed", ours, logits, packed),
        Step("monai BoundaryLoss", theirs, logits, label, True, target_ratio=target_ratio),
    ]


def region_wise_steps(size: Size, device: torch.device) -> list[Step]:
    """RegionWiseLoss beside DiceCELoss and SciPy in forward, on a class index."""
    logits, index = size.logits(device), size.index(device)
    packed = torch.cat([index.float(), region_wise_map(index, "rrw", size.classes)], dim=1)
    ours = RegionWiseLoss(softmax=True, to_onehot_y=True)
    dice_ce = monai.losses.DiceCELoss(softmax=True, to_onehot_y=True)
    return [
        Step("rrw, map packed", ours, logits, packed),
        Step("rrw, from the label", ours, logits, index),
        Step("monai DiceCELoss", dice_ce, logits, index.float(), comparable=False),
        Step("rrw, SciPy in forward", ScipyInForward(size.classes), logits, index, True),
    ]


def cases(quick: bool, device: torch.device) -> dict[str, Callable[[], list[Step]]]:
    """What builds the steps of each case, by the case's name."""
    sizes = (
        (Size(2, 4, (12, 12, 12)), Size(2, 4, (24, 24)), Size(1, 32, (12, 12, 12)))
        if quick
        else (Size(2, 4, (96, 96, 96)), Size(16, 4, (256, 256)), Size(1, 32, (96, 96, 96)))
    )
    volume, slices, many = sizes
    found: dict[str, Callable[[], list[Step]]] = {
        f"boundary: {volume}": partial(
            boundary_steps, volume, device, "" if quick else "at least 5x"
        )
    }
    for size in (slices, volume, many):
        found[f"region-wise: {size}"] = partial(region_wise_steps, size, device)
    return found


# --------------------------------------------------------------------------- measuring


def timed(case: str, steps: Sequence[Step], repeats: int, device: torch.device) -> Comparison:
    """Times of a case, and how far the values lie from the reference's."""
    reference = next(step for step in steps if step.of_reference).value()
    facts: dict[str, dict[str, Any]] = {}
    for step in steps:
        if step.comparable and not step.of_reference:
            facts[step.name] = {"differs_by": abs(step.value() - reference)}
    contestants = [Contestant(step.name, step, target=step.target_ratio) for step in steps]
    return compare(case, contestants, repeats, device, facts)


def memory_rows(case: str, steps: Sequence[Step], device: torch.device) -> list[dict[str, Any]]:
    """Peak bytes of every step of a case."""
    return [
        {"case": case, "contestant": step.name, "peak_bytes": peak_memory(step, device)}
        for step in steps
    ]


def print_memory(rows: Sequence[dict[str, Any]]) -> None:
    """The table of :func:`memory_rows`."""
    print("\npeak memory of one forward and backward, beyond its input")
    print_table(
        [
            {"": row["case"], "contestant": row["contestant"], "MiB": _mebibytes(row["peak_bytes"])}
            for row in rows
        ]
    )


def _mebibytes(count: int | None) -> str:
    return "not known here" if count is None else f"{count / 2**20:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from a command line."""
    args = make_parser(__doc__, repeats=5).parse_args(arguments)
    begin("losses: how many times as long as the first row does it take?", args)
    builders = cases(args.quick, args.device)
    done: list[Comparison] = []
    for name, build in builders.items():
        done.append(timed(name, build(), args.repeats, args.device))
        print_comparison(done[-1])
    # Measuring memory slows what is timed after it.
    memory = [
        row for name, build in builders.items() for row in memory_rows(name, build(), args.device)
    ]
    print_memory(memory)
    write_report(args, done, memory=memory)


if __name__ == "__main__":
    main()
