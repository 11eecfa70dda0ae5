"""Trying a loss in Auto3DSeg before a training does."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.losses import DeepSupervisionLoss
from torch import Tensor

from monai_segloss.auto3dseg.layouts import LOSS_TARGET, Layout, Place
from monai_segloss.auto3dseg.loss import Auto3DSegLoss
from monai_segloss.auto3dseg.patching import (
    Algos,
    bundles_in,
    chosen_layouts,
    is_ours,
    known_layouts,
    named_layouts,
    templates_in,
)
from monai_segloss.auto3dseg.transform import PackTargetd

__all__ = ["Checked", "check"]


@dataclass(frozen=True)
class Checked:
    """A loss that went through :func:`check`.

    Attributes:
        folder: the template or bundle.
        key: where its configuration holds the loss.
        name: of the loss.
        packed: whether its training target is packed.
        cases: calls with a finite value and a finite gradient.
        seconds: they took.
    """

    folder: Path
    key: str
    name: str
    packed: bool
    cases: int
    seconds: float


def check(
    path: str | os.PathLike[str],
    algos: Algos = None,
    cmd_prefix: str | None = None,
) -> list[Checked]:
    """Try the losses of patched templates or bundles before a training does.

    Each is parsed as its template parses it, and called with random logits on the CPU: at two
    resolutions under DeepSupervisionLoss for the segresnet templates, at one for the others; with
    float32 and uint8 targets, with every class and with the background alone, packed and not, the
    map made by the template's own packing transform where it has one. Then the command that will
    start the training imports and builds it. What a template leaves open until data are analysed
    (classes, resolution) gets a stand-in.

    Args:
        path: folder of templates, as :func:`patch_templates` made it, or AutoRunner's working
            directory.
        algos: as in :func:`patch_templates`; by default all that are there.
        cmd_prefix: what starts Python in training, as ``AutoRunner.set_device_info`` takes it; by
            default what AutoRunner takes, the environment's CMD_PREFIX or ``python``.

    Returns:
        What was checked, a row for each loss.

    Raises:
        ValueError: naming folder and entry, if a loss is not ours, does not parse, or fails.
        RuntimeError: if the training command cannot import it.
        FileNotFoundError: if there is no template or bundle.
    """
    root = Path(path)
    named = named_layouts(algos, known_layouts(root))
    # A bundle holds its template's scripts too.
    folders = bundles_in(root, named) or [(root / name, name) for name in templates_in(root)]
    there = [name for _, name in folders]
    layouts = chosen_layouts(named, there, root, every=algos is not None)
    checked: list[Checked] = []
    entries: list[dict[str, Any]] = []
    for folder, name in folders:
        if name in layouts:
            for place in layouts[name].places:
                checked.append(_check_place(folder, layouts[name], place, entries))
    _check_command(cmd_prefix, entries)
    return checked


def _check_place(
    folder: Path, layout: Layout, place: Place, entries: list[dict[str, Any]]
) -> Checked:
    began = time.perf_counter()
    try:
        parser = _parser(folder, layout)
        entry = parser[place.key]
        if not isinstance(entry, dict) or entry.get("_target_") != LOSS_TARGET:
            target = entry.get("_target_") if isinstance(entry, dict) else entry
            raise ValueError(f"expected {LOSS_TARGET}, got {target!r}; patch it first")
        resolved = parser.get_parsed_content(place.key, instantiate=False).config
        # The segresnet templates parse what they have parsed; for the others it is the same.
        loss = ConfigParser(resolved).get_parsed_content(instantiate=True)
        packing = _packing_transform(parser, layout)
        classes = int(parser.get_parsed_content(place.classes))
        cases = 0
        for target in _targets(loss, packing, classes, layout):
            _dry_run(loss, target, classes, layout)
            cases += 1
    except Exception as error:
        raise ValueError(f"{folder}: {place.key}: {_root_cause(error)}") from error
    entries.append(resolved)
    seconds = time.perf_counter() - began
    return Checked(folder, place.key, loss.name, packing is not None, cases, seconds)


def _parser(folder: Path, layout: Layout) -> ConfigParser:
    """A template's configuration as its scripts read it, stand-ins for what is open."""
    files = sorted((folder / "configs").glob("*.yaml"))
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    for place in layout.places:
        section = "".join(f"{key}#" for key in place.keys[:-1])
        for key, value in (("output_classes", 3), ("resample_resolution", [1.0, 1.0, 1.0])):
            if parser[section + key] is None:
                parser[section + key] = value
    return parser


def _packing_transform(parser: ConfigParser, layout: Layout) -> Callable[..., Any] | None:
    if layout.packs == "custom":
        for item in parser.get_parsed_content("custom_data_transforms", default=None) or []:
            if is_ours(item["transform"]):
                return _built(ConfigParser(dict(item["transform"])), "")
        return None
    items = parser["transforms_train#transforms"]
    ours = [i for i, item in enumerate(items) if is_ours(item)]
    return _built(parser, f"transforms_train#transforms#{ours[-1]}") if ours else None


def _built(parser: ConfigParser, key: str) -> Callable[..., Any]:
    transform: Callable[..., Any] = parser.get_parsed_content(key, instantiate=True)
    return transform


_SIZE = 16


def _targets(
    loss: Auto3DSegLoss, packing: Callable[..., Any] | None, classes: int, layout: Layout
) -> Iterator[Tensor]:
    """Targets as the template makes them: with every class and with the background alone."""
    depth = 4 if layout.slicewise else _SIZE
    shape = (_SIZE, _SIZE, depth)
    seed = torch.Generator().manual_seed(0)
    blocks = torch.randint(max(classes, 2), (1, 4, 4, depth // 4), generator=seed)
    full = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for label in (full, torch.zeros(1, *shape, dtype=torch.int64)):
        if loss.sigmoid and classes > 1:
            label = torch.cat([label == k for k in range(classes)])
        for dtype in (torch.float32, torch.uint8):
            yield torch.stack([label.to(dtype)] * 2)
        pack = packing or PackTargetd(
            "label",
            loss.map_kind or "rrw",
            classes,
            multi_label=loss.sigmoid,
            slicewise=layout.slicewise,
        )
        if packing is not None or loss.map_kind is not None or not _reads_maps(loss):
            yield torch.stack([pack({"label": label.float()})["label"]] * 2)


def _reads_maps(loss: Auto3DSegLoss) -> bool:
    return any(getattr(term, "map_kind", None) for term in loss.terms.values())


def _dry_run(loss: Auto3DSegLoss, target: Tensor, classes: int, layout: Layout) -> None:
    spatial = tuple(target.shape[2:])
    depth = spatial[2] if layout.slicewise else spatial[2] // 2
    half = (spatial[0] // 2, spatial[1] // 2, depth)
    seed = torch.Generator().manual_seed(1)
    logits = [
        torch.randn(2, classes, *size, generator=seed).requires_grad_()
        for size in ((spatial, half) if layout.deep_supervision else (spatial,))
    ]
    value = (
        DeepSupervisionLoss(loss)(logits, target)
        if layout.deep_supervision
        else loss(logits[0], target)
    )
    value.backward()
    finite = all(x.grad is not None and bool(torch.isfinite(x.grad).all()) for x in logits)
    if value.ndim or not bool(torch.isfinite(value)) or not finite:
        raise ValueError(
            f"expected one finite number with a finite gradient for a {target.dtype} target "
            f"{tuple(target.shape)}, got {value.detach()}"
        )


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


_IMPORT = """
import json, sys
from monai.bundle import ConfigParser
for entry in json.loads(open(sys.argv[1], encoding="utf-8").read()):
    ConfigParser(entry).get_parsed_content(instantiate=True)
"""


def _check_command(cmd_prefix: str | None, entries: Sequence[Mapping[str, Any]]) -> None:
    """Build the losses in a process started as the training will be."""
    prefix = cmd_prefix or os.environ.get("CMD_PREFIX") or "python"
    with tempfile.TemporaryDirectory() as folder:
        # A file outside this folder: with -c, Python would also search the one it is started in.
        script, config = Path(folder) / "build.py", Path(folder) / "losses.json"
        script.write_text(_IMPORT, encoding="utf-8")
        config.write_text(json.dumps(entries), encoding="utf-8")
        try:
            done = subprocess.run(
                [*prefix.split(), str(script), str(config)], capture_output=True, text=True
            )
            failure = done.stderr.strip().splitlines()[-1:] if done.returncode else None
        except OSError as error:
            failure = [str(error)]
    if failure is not None:
        raise RuntimeError(
            f"cmd_prefix: expected a Python that has monai_segloss, got {shlex.quote(prefix)}, "
            f"which ends with: {' '.join(failure) or 'an error'}; in AutoRunner, name this one: "
            "runner.set_device_info(cmd_prefix=sys.executable)"
        )
