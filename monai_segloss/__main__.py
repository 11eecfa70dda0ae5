"""The command line: ``python -m monai_segloss`` or ``monai-segloss``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from monai_segloss import __version__
from monai_segloss.auto3dseg import add_commands
from monai_segloss.bundle import bundle_names, copy_bundle
from monai_segloss.datasets import make_acdc17_phantom
from monai_segloss.demo import run_demo
from monai_segloss.losses import TAXONOMY


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
    parser = argparse.ArgumentParser("monai-segloss", description=__doc__)
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

    phantom = commands.add_parser("phantom", help="generate hearts in ACDC's folder layout")
    phantom.add_argument("output", help="folder to write training/patientNNN to")
    phantom.add_argument("--patients", type=int, default=12)
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(run=_phantom)

    add_commands(commands.add_parser("auto3dseg", help="a loss for MONAI's Auto3DSeg"))

    losses = commands.add_parser("losses", help="list the losses by name")
    losses.set_defaults(run=_losses)

    bundle = commands.add_parser("bundle", help="list the bundles, or copy one").add_subparsers(
        required=True, metavar="list|copy"
    )
    bundle.add_parser("list").set_defaults(run=_bundle_list)
    copy = bundle.add_parser("copy")
    copy.add_argument("name")
    copy.add_argument("directory")
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
    print(make_acdc17_phantom(options.output, num_patients=options.patients, seed=options.seed))


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
