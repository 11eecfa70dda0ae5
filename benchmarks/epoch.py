"""One epoch of the ACDC17 bundle with the rectified map, beside one with Dice + CE.

Loader, augmentation, network and optimiser included; validation and checkpoints left out, so that
nothing but the loss and its map differs. Both trainers start from the same seed, draw the same
slices and take turns epoch by epoch. By default on generated hearts, with the demo's small network
(a wide one hides what a loss costs). Also the loader alone, and the memory of a cached map.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _timing import (
    Comparison,
    Contestant,
    begin,
    compare,
    make_parser,
    positive,
    print_comparison,
    print_table,
    write_report,
)
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import Tensor

from monai_segloss.bundle import bundle_path
from monai_segloss.datasets import make_acdc17_phantom
from monai_segloss.transforms import RegionWiseMapd

_LOSSES = ("dice_ce", "rrw")
_MANY_CLASSES = (4, 32, 104)


# --------------------------------------------------------------------------- the bundle


def configure(loss_name: str, args: argparse.Namespace, dataset_dir: Path) -> ConfigParser:
    """The bundle's training configuration with one loss, not yet instantiated."""
    folder = bundle_path("acdc17")
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "train.json")
    parser.read_meta(folder / "configs" / "metadata.json")
    overrides: dict[str, Any] = {
        "bundle_root": str(folder),
        "dataset_dir": str(dataset_dir),
        "device": f"$torch.device({args.device.type!r})",
        "num_workers": args.num_workers,
        "loss_name": loss_name,
        "max_epochs": 1,
        "epoch_length": args.steps,
        "batch_size": args.batch_size,
        "slices_per_volume": args.slices,
        "train_patients": args.patients,
        "spacing": args.spacing,
        "patch_size": args.patch,
        "width": args.width,
        "levels": args.levels,
        "train#dataset#progress": False,
        "train#handlers": [],
    }
    for name, value in overrides.items():
        parser[name] = value
    return parser


class Epochs:
    """A trainer, one epoch a call.

    Args:
        parser: configuration; instantiated here, after its own ``initialize``.
    """

    def __init__(self, parser: ConfigParser) -> None:
        parser.get_parsed_content("initialize")
        self.trainer: Any = parser.get_parsed_content("train#trainer")
        self.loader: Any = parser.get_parsed_content("train#dataloader")
        self.count = 0

    def __call__(self) -> None:
        """Train for one more epoch."""
        self._next_seed()
        self.trainer.state.max_epochs = self.trainer.state.epoch + 1
        self.trainer.run()

    def load(self) -> None:
        """Draw an epoch's batches and do nothing with them."""
        self._next_seed()
        rounds = itertools.chain.from_iterable(itertools.repeat(self.loader))
        for _ in itertools.islice(rounds, self.trainer.state.epoch_length):
            pass

    def _next_seed(self) -> None:
        self.count += 1
        torch.manual_seed(self.count)


# --------------------------------------------------------------------------- measuring


def compare_epochs(parsers: dict[str, ConfigParser], args: argparse.Namespace) -> list[Comparison]:
    """Epochs, then the loader alone."""
    epochs = {name: Epochs(parser) for name, parser in parsers.items()}
    aim = {} if args.quick else {"rrw": "at most 1.10x"}
    size = "x".join(str(n) for n in args.patch)
    batch = f"{args.steps} steps of {args.batch_size * args.slices} slices {size}"
    return [
        compare(
            f"an epoch: {batch}, width {args.width}",
            [Contestant(name, epochs[name], target=aim.get(name, "")) for name in _LOSSES],
            args.repeats,
            args.device,
        ),
        compare(
            f"its loader alone: {batch}",
            [Contestant(name, epochs[name].load) for name in _LOSSES],
            args.repeats,
            args.device,
        ),
    ]


def memory_rows(parser: ConfigParser) -> list[dict[str, Any]]:
    """Bytes that the cache holds of one volume, and of its map were there more classes."""
    deterministic = parser.get_parsed_content("load") + parser.get_parsed_content(
        "train#deterministic_transforms"
    )
    item = Compose(deterministic)(parser.get_parsed_content("train#data")[0])
    rows = [{"what": key, **_size(item[key])} for key in ("image", "label", "label_map")]
    for classes in _MANY_CLASSES:
        remapped = RegionWiseMapd("label", "rrw", num_classes=classes)(item)["label_map"]
        sizes = _size(remapped)
        rows.append(
            {
                "what": f"map, {classes} classes",
                **sizes,
                "one_channel_per_class_bytes": classes * sizes["bytes"],
            }
        )
    return rows


def _size(tensor: Tensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "bytes": tensor.nbytes,
    }


def print_memory(rows: Sequence[dict[str, Any]]) -> None:
    """The table of :func:`memory_rows`."""
    print("\ncached per volume")
    print_table(
        [
            {
                "": row["what"],
                "shape": "x".join(str(n) for n in row["shape"]),
                "dtype": row["dtype"],
                "MiB": _mebibytes(row["bytes"]),
                "one channel per class MiB": _mebibytes(row.get("one_channel_per_class_bytes")),
            }
            for row in rows
        ]
    )


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f}"


# --------------------------------------------------------------------------- the command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; --quick puts tiny numbers in the place of all others."""
    parser = make_parser(__doc__, repeats=5)
    add = parser.add_argument
    add("--dataset_dir", type=Path, metavar="DIR", help="ACDC 2017 (default: generated hearts)")
    add("--patients", type=positive, default=4, help="training patients (default: %(default)s)")
    add("--steps", type=positive, default=20, help="steps an epoch (default: %(default)s)")
    add("--batch_size", type=positive, default=4, help="volumes a step (default: %(default)s)")
    add("--slices", type=positive, default=4, help="slices a volume (default: %(default)s)")
    add("--patch", type=positive, nargs=2, default=[96, 96], help="slice size (default: 96 96)")
    add("--spacing", type=float, nargs=2, default=[2.0, 2.0], help="mm (default: 2.0 2.0)")
    add("--width", type=positive, default=12, help="network width (default: %(default)s)")
    add("--levels", type=positive, default=5, help="network levels (default: %(default)s)")
    add("--num_workers", type=int, default=0, help="loader processes (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.quick:
        tiny = {"patients": 1, "steps": 2, "batch_size": 2, "slices": 1, "patch": [32, 32]}
        vars(args).update(tiny, width=4, levels=4, repeats=1)
    return args


@contextmanager
def hearts(args: argparse.Namespace) -> Iterator[Path]:
    """The data's folder; generated hearts are gone afterwards."""
    if args.dataset_dir is not None:
        yield args.dataset_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        # The even patients train.
        yield make_acdc17_phantom(
            Path(folder) / "data",
            num_patients=2 * args.patients,
            size=48 if args.quick else 128,
            num_slices=6 if args.quick else None,
            progress=False,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from a command line."""
    args = parse(arguments)
    begin("epoch: how many times as long as with dice_ce does it take?", args)
    with hearts(args) as dataset_dir:
        parsers = {name: configure(name, args, dataset_dir) for name in _LOSSES}
        done = compare_epochs(parsers, args)
        for comparison in done:
            print_comparison(comparison)
        memory = memory_rows(parsers["rrw"])
    print_memory(memory)
    write_report(args, done, memory=memory)


if __name__ == "__main__":
    main()
