"""Label -> map, beside SciPy class by class.

The rectified map (rrw) and the signed map (boundary) of this package on the CPU, beside one and two
SciPy transforms per class; the distance in plain torch on the chosen device beside edt on the CPU;
the largest difference between the results (of values above 1, as a share of the largest), and the
bytes of a compact and of a dense map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _labels import LabelArray, blobs, nested_heart
from _references import FloatArray, scipy_boundary, scipy_rrw
from _timing import (
    Comparison,
    Contestant,
    begin,
    compare,
    make_parser,
    print_comparison,
    print_table,
    write_report,
)
from torch import Tensor

from monai_segloss.datasets import phantom_heart
from monai_segloss.distance import distance_to_other_label
from monai_segloss.maps import boundary_map, region_wise_map, rrw_map

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

# SciPy takes many times as long, so that one of its runs meets an average load, and one of ours a
# single gust of it.
_OURS_PER_ROUND = 3


# --------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class Label:
    """A label volume with its voxel size and its number of classes."""

    name: str
    values: LabelArray
    spacing: Spacing
    classes: int

    def __str__(self) -> str:
        shape = "x".join(str(n) for n in self.values.shape)
        return f"{self.name}, {shape}, {self.classes} classes"

    @property
    def batch(self) -> Tensor:
        return torch.from_numpy(self.values).unsqueeze(0)


def blob_label(shape: Shape, classes: int, spacing: Spacing) -> Label:
    """Smooth regions of equal size."""
    return Label("blobs", blobs(shape, classes), spacing, classes)


def heart_label(shape: Shape, spacing: Spacing) -> Label:
    """Nested ellipsoids in a large background."""
    return Label("nested heart", nested_heart(shape), spacing, 4)


def phantom(size: int, slices: int) -> Label:
    """A frame of the package's phantom, in ACDC's own few thick slices."""
    frame = phantom_heart(np.random.default_rng(0), size, slices)[0]
    return Label("ACDC-like phantom", np.ascontiguousarray(frame.label), frame.spacing, 4)


# --------------------------------------------------------------------------- comparisons


class _Last:
    """A function of no argument that keeps what it gave last."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.result: Any = None

    def __call__(self) -> None:
        self.result = None  # so that two results are never held at a time
        self.result = self.function()


def rrw_beside_scipy(label: Label, repeats: int, target: str = "") -> Comparison:
    """The compact map, the dense map, and SciPy's dense map."""
    batch = label.batch
    compact = _Last(lambda: rrw_map(batch, label.classes, label.spacing))
    dense = _Last(
        lambda: region_wise_map(batch.unsqueeze(1), "rrw", label.classes, label.spacing, dense=True)
    )
    reference = _Last(lambda: scipy_rrw(label.values, label.classes, label.spacing))
    timed = compare(
        f"rrw: {label}",
        [
            Contestant("ours, compact", compact, _OURS_PER_ROUND),
            Contestant("ours, dense and label checked", dense, _OURS_PER_ROUND),
            Contestant("SciPy class by class", reference, warm_up=False, target=target),
        ],
        repeats,
        torch.device("cpu"),
    )
    true_class = np.take_along_axis(reference.result, label.values[None].astype(np.int64), axis=0)
    return _with_differences(
        timed,
        {
            "ours, compact": _difference(compact.result[0], true_class),
            "ours, dense and label checked": _difference(dense.result[0], reference.result),
        },
    )


def boundary_beside_scipy(label: Label, repeats: int) -> Comparison:
    """The signed map and SciPy's."""
    batch = label.batch
    ours = _Last(lambda: boundary_map(batch, label.classes, label.spacing))
    reference = _Last(lambda: scipy_boundary(label.values, label.classes, label.spacing))
    timed = compare(
        f"boundary: {label}",
        [
            Contestant("ours", ours, _OURS_PER_ROUND),
            Contestant("SciPy, two transforms per class", reference, warm_up=False),
        ],
        repeats,
        torch.device("cpu"),
    )
    return _with_differences(timed, {"ours": _difference(ours.result[0], reference.result)})


def torch_beside_edt(label: Label, repeats: int, device: torch.device) -> Comparison:
    """The distance by plain torch on ``device``, and by edt on the CPU."""
    here = label.batch
    there = here.to(device)
    by_edt = _Last(lambda: distance_to_other_label(here, label.spacing, backend="edt"))
    by_torch = _Last(lambda: distance_to_other_label(there, label.spacing, backend="torch"))
    name = f"torch on {device.type}"
    timed = compare(
        f"distance to another label: {label}",
        [Contestant("edt on the CPU", by_edt), Contestant(name, by_torch)],
        repeats,
        device,
    )
    return _with_differences(
        timed, {name: _difference(by_torch.result.cpu(), by_edt.result.numpy())}
    )


def _difference(ours: Tensor, reference: FloatArray) -> float:
    """Largest difference, as a share of the reference's largest value where that exceeds 1."""
    largest = max(1.0, float(np.abs(reference).max()))
    return float(np.abs(ours.numpy() - reference).max()) / largest


def _with_differences(timed: Comparison, differences: Mapping[str, float]) -> Comparison:
    facts = {name: {"differs_by": value} for name, value in differences.items()}
    return dataclasses.replace(timed, facts=facts)


# --------------------------------------------------------------------------- memory


def memory_row(classes: int, quick: bool) -> dict[str, Any]:
    """Bytes of the compact and of the dense map of a label."""
    label = blob_label((16, 16, 16) if quick else (64, 64, 64), classes, (1.0, 1.0, 1.0))
    batch = label.batch.unsqueeze(1)
    compact, dense = (
        region_wise_map(batch, "rrw", classes, label.spacing, dense=form).nbytes
        for form in (False, True)
    )
    return {"label": str(label), "compact_bytes": compact, "dense_bytes": dense}


def print_memory(rows: Sequence[dict[str, Any]]) -> None:
    """The table of :func:`memory_row`."""
    print("\nmemory of the rrw map, float32")
    print_table(
        [
            {
                "": row["label"],
                "compact MiB": f"{row['compact_bytes'] / 2**20:.2f}",
                "dense MiB": f"{row['dense_bytes'] / 2**20:.2f}",
                "dense / compact": f"{row['dense_bytes'] / row['compact_bytes']:.0f}x",
            }
            for row in rows
        ]
    )


# --------------------------------------------------------------------------- the command


def _comparisons(quick: bool, repeats: int, device: torch.device) -> Iterator[Comparison]:
    if quick:
        wide, many = (
            blob_label((24, 24, 16), 4, (1.0, 1.0, 1.5)),
            blob_label((16, 16, 16), 8, (1.0, 1.0, 1.0)),
        )
        heart, thick, cube = heart_label((24, 24, 16), (1.0, 1.0, 1.5)), phantom(48, 6), many
    else:
        wide = blob_label((240, 240, 155), 4, (1.0, 1.0, 1.5))
        many = blob_label((160, 160, 160), 32, (1.0, 1.0, 1.0))
        heart = heart_label((240, 240, 155), (1.0, 1.0, 1.5))
        thick = phantom(256, 10)
        cube = wide if device.type == "cuda" else blob_label((96, 96, 96), 4, (1.0, 1.0, 1.5))
    yield rrw_beside_scipy(wide, repeats, "" if quick else "at least 15x")
    yield rrw_beside_scipy(heart, repeats, "" if quick else "at least 15x")
    yield rrw_beside_scipy(many, repeats, "" if quick else "at least 50x")
    yield rrw_beside_scipy(thick, repeats)
    yield boundary_beside_scipy(wide, repeats)
    yield boundary_beside_scipy(thick, repeats)
    yield torch_beside_edt(cube, repeats, device)
    yield torch_beside_edt(thick, repeats, device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from a command line."""
    args = make_parser(__doc__, repeats=2).parse_args(arguments)
    begin("maps: how many times as long as the first row does it take?", args)
    done: list[Comparison] = []
    for comparison in _comparisons(args.quick, args.repeats, args.device):
        print_comparison(comparison)
        done.append(comparison)
    memory = [memory_row(4, args.quick), memory_row(32, args.quick)]
    print_memory(memory)
    write_report(args, done, memory=memory)


if __name__ == "__main__":
    main()
