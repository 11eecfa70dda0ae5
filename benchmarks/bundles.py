"""Every loss on every bundle: its first and last loss, and a step beside one with Dice + CE.

On generated data in each bundle's official layout, with a small network. For each loss the
bundle's own configuration makes data, map, network, loss and optimiser; the batches are drawn
beforehand, so a step is forward, loss, backward and update. The steps of the loss and of Dice + CE
take turns. Losses whose form a bundle has not (see its page) have no row.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _timing import Comparison, Contestant, begin, compare, make_parser, print_table, write_report
from monai.bundle import ConfigParser

from monai_segloss.bundle import bundle_names, bundle_path
from monai_segloss.datasets import PHANTOMS
from monai_segloss.losses import TAXONOMY
from monai_segloss.schedule import get_schedule

REFERENCE = "dice_ce"
SLICES = {"slices_per_volume": 4, "patch_size": [64, 64], "levels": 5, "train_patients": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "acdc17": {**SLICES, "spacing": [2.0, 2.0]},
    "brats18": SLICES,
    "chest_xray": {"image_size": [64, 64], "train_images": 8},
    "kits19": {**SLICES, "slice_size": [64, 64]},
}
# The weights of a sum as they are in the middle of its schedule.
MIDDLE = 50


class Steps:
    """Training steps of one bundle with one loss, one a call.

    Args:
        bundle: its name.
        loss_name: of the taxonomy.
        data: the data set's folder.
        device: where it runs.
        width: of the network.
    """

    def __init__(
        self, bundle: str, loss_name: str, data: Path, device: torch.device, width: int
    ) -> None:
        parser = ConfigParser()
        parser.read_config(bundle_path(bundle) / "configs" / "train.json")
        overrides: dict[str, Any] = {
            "dataset_dir": str(data),
            "device": f"$torch.device({device.type!r})",
            "num_workers": 0,
            "batch_size": 2,
            "width": width,
            "learning_rate": 0.001,
            "loss_name": loss_name,
            "train#dataset#progress": False,
            **OPTIONS[bundle],
        }
        for name, value in overrides.items():
            parser[name] = value
        torch.manual_seed(0)
        parser.get_parsed_content("imports")
        self.network: Any = parser.get_parsed_content("network")
        self.optimizer: Any = parser.get_parsed_content("optimizer")
        self.loss: Any = parser.get_parsed_content("loss")
        row, total = TAXONOMY[loss_name], parser.get_parsed_content("loss_function")
        if row.partner is not None:
            total.set_weights(get_schedule(row.schedule)(MIDDLE))
        loader: Any = parser.get_parsed_content("train#dataloader")
        batches = [
            (batch["image"].to(device), batch["label"].to(device))
            for batch in itertools.islice(itertools.cycle(loader), 4)
        ]
        self.batches: Iterator[Any] = itertools.cycle(batches)
        self.losses: list[float] = []

    def __call__(self) -> None:
        """One step."""
        image, target = next(self.batches)
        self.optimizer.zero_grad()
        loss = self.loss(self.network(image), target)
        loss.backward()
        self.optimizer.step()
        self.losses.append(float(loss.detach()))


def fitting(bundle: str) -> list[str]:
    """The losses that a bundle's labels have a form for, Dice + CE apart."""
    form = "binary" if bundle == "chest_xray" else "softmax"
    return [name for name, row in TAXONOMY.items() if form in row.forms and name != REFERENCE]


def contest(
    bundle: str, loss_name: str, data: Path, device: torch.device, width: int, rounds: int
) -> Comparison:
    """Steps with a loss beside steps with Dice + CE."""
    steps = {n: Steps(bundle, n, data, device, width) for n in (REFERENCE, loss_name)}
    done = compare(
        f"{bundle}: {loss_name}", [Contestant(n, s) for n, s in steps.items()], rounds, device
    )
    facts = {
        name: {"first_loss": step.losses[0], "last_loss": step.losses[-1]}
        for name, step in steps.items()
    }
    return Comparison(done.case, done.timings, facts)


def shown(comparison: Comparison) -> dict[str, str]:
    """A line of the table."""
    reference, timing = comparison.timings
    facts = comparison.facts[timing.name]
    bundle, _, loss = comparison.case.partition(": ")
    return {
        "bundle": bundle,
        "loss": loss,
        "first loss": f"{facts['first_loss']:.4g}",
        "last loss": f"{facts['last_loss']:.4g}",
        "seconds a step": f"{timing.median:.3f}",
        f"times {REFERENCE}": str(timing.over(reference)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from a command line."""
    parser = make_parser(__doc__, repeats=15)
    parser.add_argument("--only", metavar="TEXT", help="the bundles and losses that hold this")
    args = parser.parse_args(arguments)
    begin("bundles: every loss on every bundle, a step beside one with Dice + CE", args)
    rounds = 2 if args.quick else args.repeats
    done: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        for bundle in bundle_names():
            losses = fitting(bundle)[:: 8 if args.quick else 1]
            wanted = [n for n in losses if args.only is None or args.only in f"{bundle}: {n}"]
            if not wanted:
                continue
            count = 10 if bundle == "chest_xray" else 4
            data = PHANTOMS[bundle](Path(folder) / bundle, count, progress=False)
            for name in wanted:
                width = 4 if args.quick else 8
                done.append(contest(bundle, name, data, args.device, width, rounds))
                print_table([shown(done[-1])])
    print()
    print_table([shown(comparison) for comparison in done])
    write_report(args, done)


if __name__ == "__main__":
    main()
