"""Putting a loss into Auto3DSeg's templates and bundles."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import yaml

from monai_segloss.auto3dseg.layouts import (
    HYPER,
    LAYOUTS,
    Layout,
    Place,
    get_layout,
    loss_config,
    packing_arguments,
)
from monai_segloss.auto3dseg.transform import TRANSFORM_TARGET
from monai_segloss.auto3dseg.yaml_text import replace_entry, replace_items
from monai_segloss.files import replacing

__all__ = ["Algos", "Maps", "patch_bundles", "patch_templates"]

Maps = Literal["online", "packed"]
Algos = Sequence[str] | Mapping[str, str] | str | None
"""Names of algorithms, or name -> the public template it is laid out like; None for all."""

_TRAIN = "transforms_train.yaml"
# Its name sorts behind hyper_parameters.yaml: segresnet saves its settings to the first file.
_CUSTOM = "monai_segloss.yaml"
MARK = "monai_segloss.json"


def patch_templates(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    loss: str,
    algos: Algos = None,
    maps: Maps = "online",
    **options: Any,
) -> Path:
    """Copy Auto3DSeg's templates and give the copy a loss.

    The copy is for AutoRunner's ``templates_path_or_url``; it holds the algorithms that were
    patched, and no other. A folder that an earlier call
    made is replaced, any other is left alone; after an error everything is as it was.

    Args:
        src: folder that holds the templates, one folder an algorithm.
        dst: folder to make.
        loss: a name of :data:`monai_segloss.losses.TAXONOMY`.
        algos: names of algorithms, each a name of :data:`LAYOUTS`, or a mapping of the names of
            your own templates to those they are laid out like; all known ones in ``src`` by
            default.
        maps: ``"online"``: the loss computes them, in the resolution that the template resamples
            to; ``"packed"``: a transform behind the augmentation computes them, in the workers that
            load the data, in each crop's own voxel size.
        **options: those of :func:`loss_config`.

    Returns:
        ``dst``.

    Raises:
        ValueError: on an unknown algorithm, loss or option, a file of another layout, or packed
            maps for a loss that reads none.
        FileNotFoundError: if ``src`` holds no such template.
        FileExistsError: if ``dst`` is there and no earlier call made it.
    """
    source, target = Path(src), Path(dst)
    named = named_layouts(algos, known_layouts(source))
    layouts = chosen_layouts(named, templates_in(source), source, every=algos is not None)
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise ValueError(f"dst: expected a folder outside src={source}, got {target}")
    if target.exists() and not (target / MARK).is_file():
        raise FileExistsError(
            f"{target}: exists and was not made by patch_templates; choose another folder or "
            "remove it"
        )
    edits: dict[Path, str | None] = {}
    for name, layout in layouts.items():
        for path, text in _edits(source / name, layout, loss, maps, options).items():
            edits[path.relative_to(source)] = text
    told = {name: layout.name for name, layout in layouts.items()}
    mark = {"loss": loss, "maps": maps, "options": options, "algos": told}
    edits[Path(MARK)] = json.dumps(mark, indent=2, default=str) + "\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        copy = Path(folder) / "new"
        copy.mkdir()
        for name in layouts:
            shutil.copytree(
                source / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        _apply({copy / path: text for path, text in edits.items()})
        _swap(copy, target, Path(folder) / "old")
    return target


def patch_bundles(
    work_dir: str | os.PathLike[str],
    loss: str,
    algos: Algos = None,
    maps: Maps = "online",
    **options: Any,
) -> list[Path]:
    """Give the bundles that AutoRunner has generated in its working directory a loss.

    For a run with ``algo_gen`` done and training still to come. AutoRunner does not train a bundle
    again that has been trained, unless told ``train=True``: patching such a bundle warns.

    Args:
        work_dir: AutoRunner's working directory, or its like.
        loss, algos, maps, **options: as in :func:`patch_templates`; by default all bundles.

    Returns:
        The folders of the bundles.

    Raises:
        ValueError, FileNotFoundError: as :func:`patch_templates`; nothing is changed then.
    """
    root = Path(work_dir)
    named = named_layouts(algos, known_layouts(root))
    bundles = bundles_in(root, named)
    there = sorted({name for _, name in bundles})
    layouts = chosen_layouts(named, there, root, every=algos is not None)
    edits: dict[Path, str | None] = {}
    patched = [(path, layouts[name]) for path, name in bundles if name in layouts]
    for path, layout in patched:
        edits |= _edits(path, layout, loss, maps, options)
    _apply(edits)
    trained = [path.name for path, _ in patched if any(path.glob("model*/progress.yaml"))]
    if trained:
        warnings.warn(
            f"{', '.join(trained)}: trained already; AutoRunner skips them unless train=True",
            stacklevel=2,
        )
    return [path for path, _ in patched]


def _edits(
    folder: Path, layout: Layout, loss: str, maps: Maps, options: Mapping[str, Any]
) -> dict[Path, str | None]:
    """The new text of every file to change in a template or bundle; None for one to remove."""
    if maps not in ("online", "packed"):
        raise ValueError(f"maps: expected 'online' or 'packed', got {maps!r}")
    packing = packing_arguments(loss, layout, options) if maps == "packed" else None
    configs = folder / "configs"
    edits: dict[Path, str | None] = {}
    for place in layout.places:
        section = place.keys[0] if len(place.keys) > 1 else None
        entry = loss_config(loss, layout.name, section=section, **options)
        edits[configs / place.file] = _with_entry(configs / place.file, place.keys, entry)
    if layout.packs == "custom":
        edits[configs / _CUSTOM] = None if packing is None else _custom_transforms(configs, packing)
    else:
        item = None if packing is None else _packing_item(layout.places[0], packing)
        edits[configs / _TRAIN] = _with_item(configs / _TRAIN, item)
    return edits


def _with_entry(path: Path, keys: tuple[str, ...], entry: dict[str, Any]) -> str:
    return _edited(path, keys, lambda text: replace_entry(text, keys, entry), lambda old: entry)


def _with_item(path: Path, item: dict[str, Any] | None) -> str:
    keys = ("transforms_train", "transforms")
    new = [] if item is None else [item]
    return _edited(
        path,
        keys,
        lambda text: replace_items(text, keys, TRANSFORM_TARGET, item),
        lambda old: [i for i in old if not is_ours(i)] + new,
    )


def _custom_transforms(configs: Path, packing: Mapping[str, Any]) -> str:
    """A configuration file of its own.

    In hyper_parameters.yaml the template would look for a Python file to copy, and would leave
    references to its settings unresolved.
    """
    if yaml.safe_load(_read(configs / HYPER)).get("custom_data_transforms"):
        raise ValueError(
            f"{configs / HYPER}: expected no custom_data_transforms beside packed maps, which "
            "bring their own; use maps='online'"
        )
    # In an expression MONAI takes the word "import" for a statement.
    references = {k: f"@{k}" for k in ("sigmoid", "class_index")}
    references["num_classes"] = "@output_classes"
    arguments = [f"{k}={v}" for k, v in references.items()]
    arguments += [f"{k}={v!r}" for k, v in packing.items()]
    expression = (
        "$monai.utils.instantiate('monai_segloss.auto3dseg.packing_transforms', 'default', "
        f"{', '.join(arguments)})"
    )
    return "# packs the map behind the label's channels, see monai_segloss\n" + yaml.safe_dump(
        {"custom_data_transforms": expression}, width=100
    )


def _packing_item(place: Place, packing: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {k: v for k, v in packing.items() if k != "slicewise"}
    return {
        "_target_": TRANSFORM_TARGET,
        "keys": "@label_key",
        "num_classes": f"@{place.classes}",
        "multi_label": place.sigmoid,
        **arguments,
    }


def _edited(
    path: Path, keys: Sequence[str], edit: Callable[[str], str], change: Callable[[Any], Any]
) -> str:
    """The edited text of a file, once it is sure that nothing else has changed.

    Args:
        edit: what happens to the text.
        change: what that must do to the value at ``keys``.
    """
    text = _read(path)
    try:
        new = edit(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    expected = yaml.safe_load(text)
    *above, last = keys
    part = expected
    for key in above:
        part = part[key]
    part[last] = change(part[last])
    if yaml.safe_load(new) != expected:
        raise ValueError(f"{path}: expected {'#'.join(keys)} in a layout that can be edited")
    return new


def is_ours(item: Any) -> bool:
    return isinstance(item, dict) and item.get("_target_") == TRANSFORM_TARGET


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a configuration file of Auto3DSeg, found none")
    # As bytes, since read_text would change the line ends of Windows.
    return path.read_bytes().decode("utf-8")


def _apply(edits: Mapping[Path, str | None]) -> None:
    """Write or remove all files, or after an error none."""
    before = {path: path.read_bytes() if path.is_file() else None for path in edits}
    with ExitStack() as undo:
        for path, text in edits.items():
            undo.callback(_restore, path, before[path])
            if text is None:
                path.unlink(missing_ok=True)
            else:
                with replacing(path) as partial:
                    partial.write_text(text, encoding="utf-8", newline="")
        undo.pop_all()


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        with replacing(path) as partial:
            partial.write_bytes(content)


def _swap(new: Path, target: Path, aside: Path) -> None:
    """Put a folder in another's place; the old one goes aside."""
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(new, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise


def named_layouts(algos: Algos, known: Mapping[str, Layout]) -> dict[str, Layout]:
    """Name of an algorithm -> its layout; all known ones for None."""
    if algos is None:
        return dict(known)
    if isinstance(algos, Mapping):
        return {name: get_layout(like) for name, like in algos.items()}
    names = [algos] if isinstance(algos, str) else algos
    return {name: known[name] if name in known else get_layout(name) for name in names}


def known_layouts(root: Path) -> dict[str, Layout]:
    """The public ones, and those that :func:`patch_templates` was told of."""
    known = dict(LAYOUTS)
    for mark in (root / MARK, root / "algorithm_templates" / MARK):
        if mark.is_file():
            algos = json.loads(mark.read_text(encoding="utf-8"))["algos"]
            known |= {name: get_layout(like) for name, like in algos.items()}
    return known


def chosen_layouts(
    named: Mapping[str, Layout], there: Sequence[str], root: Path, *, every: bool
) -> dict[str, Layout]:
    """The algorithms asked for that are there: every one, or any."""
    found = {name: layout for name, layout in named.items() if name in there}
    missing = [name for name in named if name not in there]
    if not found or (every and missing):
        inside = root / "algorithm_templates"
        hint = f"; did you mean {inside}?" if inside.is_dir() else ""
        raise FileNotFoundError(
            f"{root}: expected a folder of {', '.join(missing)}, found "
            f"{', '.join(there) or 'no template or bundle of Auto3DSeg'}{hint}"
        )
    return found


def templates_in(root: Path) -> list[str]:
    return sorted(path.parent.parent.name for path in root.glob("*/scripts/algo.py"))


def bundles_in(root: Path, layouts: Mapping[str, Layout]) -> list[tuple[Path, str]]:
    """Generated bundles, named <algorithm>_<fold>, and their algorithms."""
    found = []
    for path in sorted({path.parent for path in root.glob("*/algo_object.*")}):
        names = [name for name in layouts if path.name.startswith(f"{name}_")]
        if names:
            found.append((path, max(names, key=len)))
    return found
