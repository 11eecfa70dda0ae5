"""The MONAI Bundles that ship with the package."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["bundle_names", "bundle_path", "copy_bundle"]

_PACKAGE = Path(__file__).resolve().parent
# In the wheel the bundles lie inside the package, in a checkout beside it.
_PLACES = (_PACKAGE / "bundles", _PACKAGE.parent / "bundles")


def bundle_names() -> list[str]:
    """Names of the bundles, sorted."""
    return sorted(
        {
            path.parent.parent.name
            for place in _PLACES
            for path in place.glob("*/configs/metadata.json")
        }
    )


def bundle_path(name: str) -> Path:
    """Where a bundle lies; to be read, not to be written to.

    Raises:
        ValueError: on an unknown name, listing the known ones.
    """
    for place in _PLACES:
        if (place / name / "configs" / "metadata.json").is_file():
            return place / name
    raise ValueError(f"bundle: expected one of {', '.join(bundle_names())}, got {name!r}")


def copy_bundle(name: str, directory: str | os.PathLike[str]) -> Path:
    """Copy a bundle to ``directory/name``, to change it and to train in it.

    Returns:
        The copy.

    Raises:
        ValueError: on an unknown name.
        FileExistsError: if the copy's place is taken.
    """
    source, target = bundle_path(name), Path(directory) / name
    if target.exists():
        raise FileExistsError(f"{target}: exists already; choose another folder or remove it")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("models", "eval", "predictions"))
    return target
