"""Maps as NIfTI files: where a label's map lies, what it was made of, how it is written and read.

A map file has its label's grid and header, so any viewer lays it over the label. What it was made
of, the *record*, is JSON in the header (a NIfTI extension of the kind "comment", which viewers
pass over): map and record are one file, so neither is ever there without the other.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import nibabel
import numpy as np

from monai_segloss import __version__
from monai_segloss.distance import Spacing, as_spacing
from monai_segloss.files import replacing
from monai_segloss.maps import check_options

__all__ = [
    "LABEL_SUFFIXES",
    "MapRecord",
    "MapRecipe",
    "check_whole_nifti",
    "file_identity",
    "make_recipe",
    "map_path",
    "maps_command",
    "read_record",
    "recipe_differences",
    "write_map",
]

MapRecipe: TypeAlias = "dict[str, Any]"
"""What is the same for all maps of a run: kind, num_classes, spacing, map_options, dense,
label_values, threshold; plain JSON."""

MapRecord: TypeAlias = "dict[str, Any]"
"""What a map file says of itself: ``recipe``, ``label`` (name, bytes, sha256, spatial shape),
``grid`` (the file's own shape and affine) and the package's ``version``; plain JSON."""

LABEL_SUFFIXES = (".nii.gz", ".nii", ".png")

# Raised when a kind's values change, so that older maps are not taken for new ones.
_FORMAT = 1
_MARK = "monai_segloss_map"
# The highest level takes near twice as long, for files 5 % smaller.
_COMPRESSION = 1


def make_recipe(
    kind: str = "rrw",
    num_classes: int | None = None,
    *,
    spacing: Spacing | Literal["affine"] = "affine",
    dense: bool = False,
    map_options: Mapping[str, Any] | None = None,
    label_values: Mapping[Any, Any] | None = None,
    threshold: float | None = None,
) -> MapRecipe:
    """Check what a map is to be made of, and bring it to one form that JSON holds.

    Args:
        kind: a name of :data:`monai_segloss.maps.MAP_KINDS`.
        num_classes: number of classes, background included. With ``threshold`` it is 2 and with
            ``label_values`` one more than the largest class, unless given; else it is needed,
            since no label file is sure to hold every class.
        spacing: ``"affine"``, numbers, or None for voxels.
        dense: one channel per class for a compact kind too.
        map_options: the kind's own options.
        label_values: value in the file -> class, when they differ; 0 stays 0 unless it is named.
        threshold: what lies above it is class 1, the rest class 0.

    Raises:
        ValueError: on what does not fit, naming the argument.
    """
    check_options(kind, map_options or {})
    if threshold is not None and label_values is not None:
        raise ValueError(
            f"threshold: expected None beside label_values {dict(label_values)}, got {threshold}"
        )
    classes = None
    if label_values is not None:
        classes = {0: 0, **{int(value): int(c) for value, c in label_values.items()}}
        if min(classes.values()) < 0:
            raise ValueError(f"label_values: expected classes of at least 0, got {label_values}")
    if num_classes is None and threshold is not None:
        num_classes = 2
    if num_classes is None and classes is not None:
        num_classes = max(classes.values()) + 1
    if num_classes is None:
        raise ValueError(
            "num_classes: expected the number of classes, background included, got None; it is "
            "known without only from threshold or label_values"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    if classes is not None and max(classes.values()) >= num_classes:
        raise ValueError(
            f"label_values: expected classes below num_classes {num_classes}, got {label_values}"
        )
    if isinstance(spacing, str):
        if spacing != "affine":
            raise ValueError(f"spacing: expected 'affine', numbers or None, got {spacing!r}")
        size: Any = spacing
    else:
        size = None if spacing is None else np.asarray(spacing, dtype=float).reshape(-1).tolist()
        as_spacing(size, 1, 1 if size is None else len(size))
    recipe = {
        "kind": kind,
        "num_classes": int(num_classes),
        "spacing": size,
        "map_options": dict(map_options or {}),
        "dense": bool(dense),
        "label_values": None if classes is None else sorted(classes.items()),
        "threshold": None if threshold is None else float(threshold),
    }
    try:
        plain: MapRecipe = json.loads(json.dumps(recipe))
    except TypeError as error:
        raise ValueError(
            f"map_options: expected numbers and texts, got {recipe['map_options']}"
        ) from error
    return plain


def map_path(
    label_path: str | os.PathLike[str],
    label_dir: str | os.PathLike[str],
    map_dir: str | os.PathLike[str],
    kind: str,
) -> Path:
    """The file of a label's map: ``map_dir/<path below label_dir, no suffix>_<kind>.nii.gz``.

    Raises:
        ValueError: if the label does not lie below ``label_dir`` or is no .nii, .nii.gz or .png.
    """
    label, root = Path(os.path.abspath(label_path)), Path(os.path.abspath(label_dir))
    if not label.is_relative_to(root):
        raise ValueError(f"label_path: expected a file below {label_dir}, got {label_path}")
    for suffix in LABEL_SUFFIXES:
        if label.name.endswith(suffix):
            name = label.name.removesuffix(suffix)
            return Path(map_dir) / label.relative_to(root).with_name(f"{name}_{kind}.nii.gz")
    raise ValueError(f"label_path: expected {', '.join(LABEL_SUFFIXES)}, got {label_path}")


def maps_command(
    recipe: MapRecipe,
    label_dir: str | os.PathLike[str],
    map_dir: str | os.PathLike[str],
    pattern: str | None = None,
) -> str:
    """The command line that makes the maps of a recipe."""
    words = ["python", "-m", "monai_segloss", "maps", str(label_dir), str(map_dir)]
    words += ["--kind", recipe["kind"], "--num-classes", str(recipe["num_classes"])]
    for option, value in recipe["map_options"].items():
        words += ["--option", f"{option}={value}"]
    if recipe["spacing"] != "affine":
        size = recipe["spacing"]
        words += ["--spacing", "voxels" if size is None else ",".join(map(str, size))]
    if recipe["label_values"] is not None:
        words += ["--label-values", ",".join(f"{v}:{c}" for v, c in recipe["label_values"])]
    if recipe["threshold"] is not None:
        words += ["--threshold", f"{recipe['threshold']:g}"]
    if recipe["dense"]:
        words += ["--dense"]
    if pattern is not None:
        words += ["--pattern", pattern]
    return shlex.join(words)


def file_identity(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name, size and SHA-256 of a file: unlike its time, they survive a copy."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
        return {"name": Path(path).name, "bytes": file.tell(), "sha256": digest.hexdigest()}


def write_map(
    path: str | os.PathLike[str],
    values: np.ndarray,
    label_path: str | os.PathLike[str],
    affine: np.ndarray,
    recipe: MapRecipe,
) -> None:
    """Write a map on its label's grid, whole or not at all.

    Args:
        path: the ``.nii.gz`` file.
        values: float32 ``(1 or C, *spatial)``; one channel becomes an image of the label's shape,
            several a 4D image with the classes last.
        label_path: the label's file; if it is NIfTI its header is taken over.
        affine: 4 x 4, for a label whose file is not NIfTI.
        recipe: of :func:`make_recipe`.
    """
    voxels = np.moveaxis(values, 0, -1)
    if values.shape[0] == 1:
        voxels = voxels[..., 0]
    elif values.ndim == 3:
        voxels = voxels[:, :, None]
    voxels = np.ascontiguousarray(voxels, dtype=np.float32)
    if str(label_path).endswith((".nii", ".nii.gz")):
        label: Any = nibabel.load(label_path)
        header = label.header.copy()
        header.extensions.clear()
        header.set_data_dtype(np.float32)
        header["cal_min"] = header["cal_max"] = 0
        header.set_intent("none")
        image = type(label)(voxels, None, header)
    else:
        image = nibabel.Nifti1Image(voxels, affine)
        header = image.header
    image.header["descrip"] = f"monai_segloss {recipe['kind']} map"
    record: MapRecord = {
        _MARK: _FORMAT,
        "recipe": recipe,
        "label": {**file_identity(label_path), "shape": list(values.shape[1:])},
        "grid": _grid_of(image),
        "version": __version__,
    }
    content = json.dumps(record).encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", content))
    with (
        replacing(path) as partial,
        partial.open("wb") as raw,
        # Neither name nor time in the file: the same map is the same bytes.
        gzip.GzipFile("", "wb", _COMPRESSION, raw, mtime=0) as file,
    ):
        image.to_stream(file)


def read_record(path: str | os.PathLike[str]) -> MapRecord | None:
    """What a map file was made of; None if the file is no map of this package.

    Raises:
        ValueError: if the file cannot be read, or is a map that was resampled since.
    """
    try:
        image: Any = nibabel.load(path)
    except Exception as error:
        raise ValueError(f"{path}: expected a NIfTI file, got an error: {error}") from error
    for extension in getattr(image.header, "extensions", []):
        try:
            record = json.loads(bytes(extension.get_content()).rstrip(b"\0"))
        except (TypeError, ValueError):
            continue
        if isinstance(record, dict) and _MARK in record:
            if record["grid"] != _grid_of(image):
                raise ValueError(
                    f"{path}: expected the map as it was made, on the grid {record['grid']}, "
                    f"got {_grid_of(image)}"
                )
            return record
    return None


def recipe_differences(
    record: MapRecord, recipe: MapRecipe, label_path: str | os.PathLike[str]
) -> str:
    """In words, how a map differs from what it should be made of; empty if it does not.

    Args:
        record: of :func:`read_record`.
        recipe: of :func:`make_recipe`.
        label_path: the label as it is now.
    """
    found = record["recipe"]
    parts = [f"{k} was {found.get(k)!r}, is {v!r}" for k, v in recipe.items() if found.get(k) != v]
    if record[_MARK] != _FORMAT:
        parts.append(f"made by version {record.get('version')}, whose maps were others")
    was, now = record["label"], file_identity(label_path)
    if (was["bytes"], was["sha256"]) != (now["bytes"], now["sha256"]):
        parts.append(
            f"the label has changed: {was['name']} of {was['bytes']} bytes, "
            f"now {now['name']} of {now['bytes']} bytes"
        )
    return "; ".join(parts)


def check_whole_nifti(path: str | os.PathLike[str]) -> None:
    """Read a NIfTI file to its end; ITK gives zeros for what is missing, without a word.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        image: Any = nibabel.load(path)
        np.asanyarray(image.dataobj)
        if str(path).endswith(".gz"):
            # The checksum comes after the last voxel.
            with gzip.open(path) as file:
                while file.read(1 << 20):
                    pass
    except Exception as error:
        raise ValueError(f"{path}: expected a whole NIfTI file, got an error: {error}") from error


def _grid_of(image: Any) -> dict[str, Any]:
    """Shape and affine as the header holds them."""
    return {
        "shape": [int(n) for n in image.shape],
        "affine": np.asarray(image.header.get_best_affine(), dtype=float).tolist(),
    }
