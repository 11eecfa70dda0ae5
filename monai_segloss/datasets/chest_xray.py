"""The Montgomery and Shenzhen chest X-rays in the layouts in which they are handed around.

The layout of the National Library of Medicine (NLM), whose Shenzhen masks were drawn later and come
from elsewhere; one of the two sets alone will do::

    dataset_dir/MontgomerySet/CXR_png/MCUCXR_0001_0.png
                              ManualMask/leftMask/MCUCXR_0001_0.png
                              ManualMask/rightMask/MCUCXR_0001_0.png
    dataset_dir/ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png
                                  mask/CHNCXR_0001_0_mask.png

Both sets merged into one folder, with one mask an image::

    dataset_dir/CXR_png/MCUCXR_0001_0.png
                        CHNCXR_0001_0.png
                masks/MCUCXR_0001_0.png
                      CHNCXR_0001_0_mask.png
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_segloss.datasets._layout import (
    absolute,
    check_choice,
    check_count,
    check_folder,
    check_missing,
    content_of,
    some,
)

__all__ = ["CHEST_XRAY_LABELS", "chest_xray_datalist"]

logger = logging.getLogger(__name__)

CHEST_XRAY_LABELS = ("background", "lung")
"""Label names, indexed by class; in the files, lung is what is brighter than 127."""

_SPLITS = ("train", "validation", "test")
_SOURCES = {"MCUCXR_": "Montgomery", "CHNCXR_": "Shenzhen"}
_SETS = ("MontgomerySet", "ChinaSet_AllFiles")
_WHOLE_MASKS = ("masks/{}.png", "masks/{}_mask.png", "mask/{}_mask.png", "mask/{}.png")
_HALF_MASKS = ("ManualMask/leftMask/{}.png", "ManualMask/rightMask/{}.png")
_LAYOUT = (
    "CXR_png/NAME.png and masks/NAME.png or masks/NAME_mask.png, or with "
    "MontgomerySet/{CXR_png,ManualMask/leftMask,ManualMask/rightMask}/NAME.png and/or "
    "ChinaSet_AllFiles/{CXR_png/NAME.png,mask/NAME_mask.png}"
)


@dataclass(frozen=True)
class _Image:
    """One X-ray; `label` is its mask, the masks of its two lungs, or None without one."""

    source: str
    name: str
    path: Path
    label: str | list[str] | None


def chest_xray_datalist(
    dataset_dir: str | os.PathLike[str],
    split: str = "all",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    max_images: int | None = None,
    require_label: bool = True,
) -> list[dict[str, str | list[str]]]:
    """The Montgomery and Shenzhen chest X-rays as a MONAI datalist.

    The split is stratified: the images of each source are permuted by `seed`, in the order of the
    SHA-256 of "SEED NAME", and cut into consecutive parts by `fractions`. Part sizes are rounded by
    largest remainder, and a source of at least as many images as parts gives one or more to each.
    Images without a mask are split among themselves, so that leaving them out moves no other image.
    The split thus depends on the names, on which of them have masks, on `fractions` and on `seed`;
    not on the layout, nor on the order of files, nor on whether the other source is there.

    Args:
        dataset_dir: a folder in one of the two layouts, or MontgomerySet or ChinaSet_AllFiles
            itself. A name tells its source: MCUCXR_* is Montgomery, CHNCXR_* Shenzhen.
        split: "train", "validation", "test", or "all" for every image.
        fractions: the shares of the three splits, which sum to 1; a split of share 0 is empty.
        seed: non-negative.
        max_images: keep the first so many images of the split; None keeps all.
        require_label: if True, images without a mask (some Shenzhen ones have none) are left out,
            and a warning is logged. If False, all images are listed and masks are not.

    Returns:
        One item per image, sorted by source, then name: `{"image": path, "label": path, "name":
        "MCUCXR_0001_0", "source": "Montgomery"}`. `source` is "Montgomery" or "Shenzhen". `label`
        is a list [left, right] where the lungs have a mask each; the label is their union. There is
        no key "label" with `require_label=False`.

    Raises:
        FileNotFoundError: if the folder is absent or holds no image, if no image has a mask, or if
            an image has the mask of one lung alone; then the message lists them, ten at most.
        NotADirectoryError: if `dataset_dir` is a file.
        ValueError: if an argument is not one of the above, if a name tells no source or occurs
            twice, or if the split is empty.
    """
    check_choice("split", split, (*_SPLITS, "all"))
    check_count("max_images", max_images)
    _check_fractions(fractions)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}.")

    folder, images = _find_images(absolute(dataset_dir), require_label)
    chosen = [
        image
        for labelled in ((True,) if require_label else (True, False))
        for source in _SOURCES.values()
        for image in _part(
            [i for i in images if i.source == source and (i.label is not None) == labelled],
            split,
            fractions,
            seed,
        )
    ]
    if not chosen:
        raise ValueError(
            f"split {split!r} of {folder} is empty: fractions are {tuple(fractions)!r}, and the "
            f"folder holds {len(images)} image(s) to split, {some([i.name for i in images])}."
        )

    items: list[dict[str, str | list[str]]] = []
    for image in sorted(chosen, key=lambda image: (image.source, image.name))[:max_images]:
        item: dict[str, str | list[str]] = {"image": str(image.path)}
        if require_label and image.label is not None:
            item["label"] = image.label
        items.append({**item, "name": image.name, "source": image.source})
    return items


def _check_fractions(fractions: Sequence[float]) -> None:
    if not (
        len(fractions) == len(_SPLITS)
        and all(fraction >= 0 for fraction in fractions)
        and math.isclose(sum(fractions), 1, abs_tol=1e-6)
    ):
        raise ValueError(
            "fractions must be three numbers >= 0 that sum to 1, for train, validation and test, "
            f"got {fractions!r}."
        )


def _part(images: list[_Image], split: str, fractions: Sequence[float], seed: int) -> list[_Image]:
    """The images of one stratum that belong to the split."""
    if split == "all":
        return images
    place = _SPLITS.index(split)
    sizes = _sizes(len(images), fractions)
    start = sum(sizes[:place])
    # Unlike NumPy's streams, a hash is the same in every version.
    permuted = sorted(images, key=lambda i: hashlib.sha256(f"{seed} {i.name}".encode()).digest())
    return permuted[start : start + sizes[place]]


def _sizes(total: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, by largest remainder; none 0 that need not be."""
    shares = [total * fraction for fraction in fractions]
    # 0.1 + 0.2 must not come to lie below 3 tenths.
    sizes = [math.floor(share + 1e-9) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: sizes[i] - shares[i])
    for i in order[: total - sum(sizes)]:
        sizes[i] += 1
    if total >= sum(fraction > 0 for fraction in fractions):
        for i, fraction in enumerate(fractions):
            if fraction > 0 and sizes[i] == 0:
                sizes[sizes.index(max(sizes))] -= 1
                sizes[i] += 1
    return sizes


def _find_images(dataset_dir: Path, require_label: bool) -> tuple[Path, list[_Image]]:
    """The folder that was read, and its images sorted by name, with a mask if that is required."""
    check_folder(dataset_dir, _LAYOUT)
    sets = [path for name in _SETS if (path := dataset_dir / name).is_dir()] or [dataset_dir]
    missing: list[str] = []
    images = [image for folder in sets for image in _images_of(folder, missing)]
    if not images:
        raise FileNotFoundError(
            f"no image CXR_png/*.png in {some([str(folder) for folder in sets])}; dataset_dir "
            f"{dataset_dir} holds {content_of(dataset_dir)}; expected a folder with {_LAYOUT}."
        )
    images.sort(key=lambda image: image.name)
    counts = Counter(image.name for image in images)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"dataset_dir {dataset_dir} holds images twice: {some(twice)}.")
    if not require_label:
        return dataset_dir, images

    check_missing(missing, dataset_dir, _LAYOUT)
    labelled = [image for image in images if image.label is not None]
    bare = [image.name for image in images if image.label is None]
    if not labelled:
        raise FileNotFoundError(
            f"none of the {len(images)} image(s) under dataset_dir {dataset_dir} has a mask: "
            f"{some(bare)}; expected a folder with {_LAYOUT}."
        )
    if bare:
        logger.warning(
            "%d of %d images under %s have no mask and are left out: %s",
            len(bare),
            len(images),
            dataset_dir,
            some(bare),
        )
    return dataset_dir, labelled


def _images_of(folder: Path, missing: list[str]) -> list[_Image]:
    """The images of one folder with CXR_png in it; hidden files are passed over."""
    return [
        _Image(_source_of(path), path.stem, path, _find_label(folder, path.stem, missing))
        for path in (folder / "CXR_png").glob("*.png")
        if not path.name.startswith(".")
    ]


def _source_of(path: Path) -> str:
    for prefix, source in _SOURCES.items():
        if path.name.startswith(prefix):
            return source
    raise ValueError(
        f"{path}: the name of an image must start with {' or '.join(_SOURCES)}, which tells its "
        "source."
    )


def _find_label(folder: Path, name: str, missing: list[str]) -> str | list[str] | None:
    """Path of the mask, or [left, right]; one lung without the other is an entry in `missing`."""
    for pattern in _WHOLE_MASKS:
        if (path := folder / pattern.format(name)).is_file():
            return str(path)
    halves = [folder / pattern.format(name) for pattern in _HALF_MASKS]
    absent = [path for path in halves if not path.is_file()]
    if len(absent) == len(halves):
        return None
    missing += [str(path.relative_to(folder)) for path in absent]
    return [str(path) for path in halves]
