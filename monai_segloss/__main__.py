"""The command line: ``python -m monai_segloss`` or ``monai-segloss``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from monai_segloss import __version__
from monai_segloss.auto3dseg import LAYOUTS, check, patch_bundles, patch_templates
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

    _add_auto3dseg(
        commands.add_parser("auto3dseg", help="give MONAI's Auto3DSeg one of the losses")
    )
    return parser


def _add_auto3dseg(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="patch-templates|patch-bundles|check")
    templates = commands.add_parser("patch-templates", help="copy templates and patch the copy")
    templates.add_argument("src", help="folder that holds the templates, as segresnet/")
    templates.add_argument("dst", help="folder to make, for AutoRunner's templates_path_or_url")
    templates.set_defaults(run=_patch_templates)
    bundles = commands.add_parser("patch-bundles", help="patch what AutoRunner has generated")
    bundles.add_argument("work_dir", help="AutoRunner's working directory")
    bundles.set_defaults(run=_patch_bundles)
    for patch in (templates, bundles):
        patch.add_argument("--loss", required=True, help="see the command losses")
        patch.add_argument("--maps", choices=("online", "packed"), default="online")
        patch.add_argument(
            "--spacing",
            nargs="+",
            default=["template"],
            metavar="MM",
            help="numbers in mm, voxels, or template (the resolution it resamples to)",
        )
        patch.add_argument("--schedule", help="of a weighted_sum: equal or gradual")
        patch.add_argument("--steps-per-epoch", type=int, help="optimiser steps, for --schedule")
        patch.add_argument(
            "--option",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="of the loss, in YAML: gamma=1.5, losses=[dice,boundary]; may be repeated",
        )
    tries = commands.add_parser("check", help="try the losses of patched templates or bundles")
    tries.add_argument("path", help="patched templates, or AutoRunner's working directory")
    tries.add_argument("--cmd-prefix", help="as AutoRunner.set_device_info takes it")
    tries.set_defaults(run=_check)
    for command in (templates, bundles, tries):
        command.add_argument(
            "--algos",
            nargs="+",
            metavar="NAME",
            help=f"of {', '.join(LAYOUTS)}; OWN=NAME for a template of your own; default all",
        )


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


def _patch_templates(options: argparse.Namespace) -> None:
    target = patch_templates(
        options.src,
        options.dst,
        options.loss,
        _algos(options.algos),
        options.maps,
        **_loss_options(options),
    )
    print(target)
    print(f"next: python -m monai_segloss auto3dseg check {target} --cmd-prefix {sys.executable}")


def _patch_bundles(options: argparse.Namespace) -> None:
    bundles = patch_bundles(
        options.work_dir,
        options.loss,
        _algos(options.algos),
        options.maps,
        **_loss_options(options),
    )
    print("\n".join(map(str, bundles)))


def _check(options: argparse.Namespace) -> None:
    for row in check(options.path, _algos(options.algos), options.cmd_prefix):
        maps = "packed" if row.packed else "online"
        print(f"ok  {row.folder}  {row.key}  {row.name}  {maps}  {row.cases} targets")


def _algos(words: Sequence[str] | None) -> dict[str, str] | None:
    """``own=like`` and ``name`` -> what each is laid out like."""
    if words is None:
        return None
    return {name: like or name for name, _, like in (word.partition("=") for word in words)}


def _loss_options(options: argparse.Namespace) -> dict[str, Any]:
    made: dict[str, Any] = {"spacing": _spacing(options.spacing)}
    if options.schedule is not None or options.steps_per_epoch is not None:
        made |= {"schedule": options.schedule, "steps_per_epoch": options.steps_per_epoch}
    for word in options.option:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--option: expected NAME=VALUE, got {word!r}")
        try:
            made[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--option {name}: expected YAML, got {value!r}: {error}") from error
    return made


def _spacing(words: Sequence[str]) -> Any:
    if list(words) in (["template"], ["voxels"]):
        return "template" if words[0] == "template" else None
    try:
        return [float(word) for word in words]
    except ValueError:
        raise ValueError(
            f"--spacing: expected numbers, voxels or template, got {' '.join(words)}"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
