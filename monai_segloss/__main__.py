"""The command line: python -m monai_segloss, or monai-segloss."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from typing import Any

from monai_segloss import __version__
from monai_segloss.auto3dseg import add_commands
from monai_segloss.bundle import bundle_names, copy_bundle
from monai_segloss.datasets import PHANTOMS
from monai_segloss.demo import run_demo
from monai_segloss.losses import TAXONOMY
from monai_segloss.maps import MAP_KINDS
from monai_segloss.precompute import precompute_maps


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, or 1 after an error that a user can mend, told in one line.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "monai-segloss",
        description="Losses for medical image segmentation that know where an error lies.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train and evaluate on generated hearts")
    demo.add_argument("--output", default="demo_output", help="folder for everything it makes")
    demo.add_argument("--patients", type=int, default=16, help="generated patients")
    demo.add_argument("--epochs", type=int, default=30, help="epochs of training")
    demo.add_argument("--epoch-length", type=int, default=50, help="steps an epoch")
    demo.add_argument("--loss-name", default="rrw", help="see the command losses")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)

    phantom = commands.add_parser("phantom", help="generate data in a data set's folder layout")
    phantom.add_argument("output", help="folder to write to, the data set's dataset_dir")
    phantom.add_argument(
        "--dataset", choices=PHANTOMS, default="acdc17", help="whose layout; acdc17 by default"
    )
    phantom.add_argument(
        "--patients", type=int, default=12, help="or images, of chest_xray; 12 by default"
    )
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(run=_phantom)

    maps = commands.add_parser(
        "maps", help="compute the maps of all labels below a folder, ahead of training"
    )
    maps.add_argument("labels", metavar="IN", help="folder of label files: NIfTI or PNG")
    maps.add_argument("output", metavar="OUT", help="folder for the maps, laid out as IN is")
    maps.add_argument("--kind", default="rrw", choices=MAP_KINDS, help="rrw by default")
    maps.add_argument(
        "--num-classes",
        type=int,
        help="background included; not needed with --threshold or --label-values",
    )
    maps.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="an option of the kind, e.g. sigma=3; as often as needed",
    )
    maps.add_argument(
        "--pattern", help="which files are labels, e.g. '**/*_gt.nii.gz'; all by default"
    )
    maps.add_argument(
        "--workers", type=int, help="processes; by default as many as cores, at most 8"
    )
    maps.add_argument(
        "--spacing",
        type=_spacing,
        default="affine",
        metavar="affine|voxels|X,Y,Z",
        help="voxel size: each file's own (default), none, or the same for all, in mm",
    )
    maps.add_argument(
        "--label-values",
        type=_label_values,
        metavar="VALUE:CLASS,...",
        help="the classes of the file's values, e.g. 1:1,2:2,4:3; 0 is background",
    )
    maps.add_argument("--threshold", type=float, help="a mask's values above it are class 1")
    maps.add_argument(
        "--dense", action="store_true", help="a channel for each class, as a 4D image"
    )
    maps.add_argument("--overwrite", action="store_true", help="make anew what was made otherwise")
    maps.set_defaults(run=_maps)
    add_commands(commands.add_parser("auto3dseg", help="a loss for MONAI's Auto3DSeg"))

    losses = commands.add_parser("losses", help="list the losses by name")
    losses.set_defaults(run=_losses)

    bundle = commands.add_parser("bundle", help="list the bundles, or copy one").add_subparsers(
        required=True, metavar="list|copy"
    )
    bundle.add_parser("list", help="list the bundles").set_defaults(run=_bundle_list)
    copy = bundle.add_parser("copy", help="copy one, to run it there")
    copy.add_argument("name", help="one of those that list names")
    copy.add_argument("directory", help="folder to copy it into, as DIRECTORY/NAME")
    copy.set_defaults(run=_bundle_copy)
    return parser


def _demo(options: argparse.Namespace) -> None:
    run_demo(
        options.output,
        patients=options.patients,
        epochs=options.epochs,
        epoch_length=options.epoch_length,
        loss_name=options.loss_name,
        seed=options.seed,
    )


def _phantom(options: argparse.Namespace) -> None:
    # The second argument is the number of cases: patients of one, images of another.
    print(PHANTOMS[options.dataset](options.output, options.patients, options.seed))


def _maps(options: argparse.Namespace) -> None:
    run = precompute_maps(
        options.labels,
        options.output,
        options.kind,
        options.num_classes,
        spacing=options.spacing,
        dense=options.dense,
        map_options=dict(options.option),
        label_values=options.label_values,
        threshold=options.threshold,
        pattern=options.pattern,
        workers=options.workers,
        overwrite=options.overwrite,
    )
    print(f"{options.output}: {len(run.written)} maps written, {len(run.skipped)} already there")
    if run.failed:
        listing = "".join(f"\n  {label}: {message}" for label, message in run.failed.items())
        raise ValueError(f"{len(run.failed)} labels without a map:{listing}")


def _option(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value  # a word, as in inside=shifted


def _spacing(text: str) -> Any:
    if text in ("affine", "voxels"):
        return "affine" if text == "affine" else None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected affine, voxels or numbers in mm like 1,1,5, got {text!r}"
        ) from None


def _label_values(text: str) -> dict[int, int]:
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return {int(value): int(c) for value, c in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected VALUE:CLASS pairs like 1:1,2:2,4:3, got {text!r}"
        ) from None


def _losses(options: argparse.Namespace) -> None:
    heads = ("name", "family", "class", "map", "forms", "alone", "source")
    rows = [
        (
            row.name,
            row.family,
            f"{row.class_name} ({row.owner})",
            row.map_kind or "-",
            ", ".join(row.forms),
            "yes" if row.safe_alone else "in a sum",
            row.source,
        )
        for row in TAXONOMY.values()
    ]
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    for line in (heads, *rows):
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _bundle_list(options: argparse.Namespace) -> None:
    print("\n".join(bundle_names()))


def _bundle_copy(options: argparse.Namespace) -> None:
    print(copy_bundle(options.name, options.directory))


if __name__ == "__main__":
    sys.exit(main())
