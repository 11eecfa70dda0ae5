"""The command ``auto3dseg`` of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from monai_segloss.auto3dseg.checking import check
from monai_segloss.auto3dseg.layouts import LAYOUTS
from monai_segloss.auto3dseg.patching import patch_bundles, patch_templates
from monai_segloss.losses import get_loss_row

__all__ = ["add_commands"]


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Give a parser the commands ``patch-templates``, ``patch-bundles`` and ``check``."""
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
            type=_spacing,
            default="template",
            metavar="template|voxels|X,Y,Z",
            help="voxel size: the resolution the template resamples to (default), none, or mm",
        )
        patch.add_argument("--schedule", help="of a weighted_sum: equal or gradual")
        patch.add_argument("--steps-per-epoch", type=int, help="optimiser steps, for --schedule")
        patch.add_argument(
            "--option",
            action="append",
            default=[],
            type=_option,
            metavar="KEY=VALUE",
            help="of the loss, e.g. gamma=1.5 or losses=[dice,boundary]; as often as needed",
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
    _tell_partner(options.loss)
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
    _tell_partner(options.loss)


def _tell_partner(name: str) -> None:
    row = get_loss_row(name)
    if row.partner is not None:
        print(
            f"note: {name} is not safe alone; with its usual partner it is --loss weighted_sum "
            f"--option losses=[{row.partner},{name}]"
        )


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
    made: dict[str, Any] = {"spacing": options.spacing, **dict(options.option)}
    if options.schedule is not None or options.steps_per_epoch is not None:
        made |= {"schedule": options.schedule, "steps_per_epoch": options.steps_per_epoch}
    return made


def _option(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"expected YAML, got {value!r}: {error}") from None


def _spacing(text: str) -> Any:
    if text in ("template", "voxels"):
        return "template" if text == "template" else None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected template, voxels or numbers in mm like 1,1,5, got {text!r}"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]
