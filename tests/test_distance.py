"""Distances against brute force, SciPy, each other, and the laws any distance obeys."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Array, blobs, label_volumes, spacings
from oracles import distance_to_other_label as oracle_distance
from oracles import signed_distance as oracle_signed
from scipy import ndimage

from monai_segloss import distance
from monai_segloss.distance import as_spacing, distance_to_other_label, signed_distance

BACKENDS = ["edt", "torch"]
SHAPES = [(9, 8), (5, 6, 7)]
SIZES: dict[int, list[Any]] = {2: [None, 0.5, (0.3, 2.5)], 3: [None, 3.0, (2.5, 0.7, 1.1)]}
CASES = [(shape, size) for shape in SHAPES for size in SIZES[len(shape)]]
INT_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


def measure(label: Array, spacing: Any = None, **options: Any) -> Array:
    """The package's distance of one sample ``(*spatial)``."""
    return distance_to_other_label(torch.as_tensor(label)[None], spacing, **options)[0].numpy()


def close(actual: Any, expected: Array, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=1e-6)


# --------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("labels", [1, 2, 3, 5])
@pytest.mark.parametrize(("shape", "size"), CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_brute_force(
    backend: Any,
    shape: tuple[int, ...],
    size: float | Sequence[float] | None,
    labels: int,
    devices: torch.device,
    rng: np.random.Generator,
) -> None:
    batch = np.stack([rng.integers(0, labels, shape), blobs(rng, shape, labels)])
    found = distance_to_other_label(torch.as_tensor(batch).to(devices), size, backend=backend)
    assert found.dtype == torch.float32
    assert found.shape == batch.shape
    assert found.device.type == devices.type
    close(found.cpu(), np.stack([oracle_distance(label, size) for label in batch]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_spacing_per_sample(backend: Any, rng: np.random.Generator) -> None:
    batch = np.stack([blobs(rng, (6, 4, 5), 3)] * 3)
    sizes = np.array([[1.0, 1.0, 1.0], [0.4, 3.0, 1.0], [2.0, 0.5, 7.0]])
    found = distance_to_other_label(torch.as_tensor(batch), sizes, backend=backend)
    close(found, np.stack([oracle_distance(b, s) for b, s in zip(batch, sizes, strict=True)]))


@pytest.mark.parametrize("dtype", INT_DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_integer_dtype(backend: Any, dtype: torch.dtype, rng: np.random.Generator) -> None:
    label = blobs(rng, (7, 9), 2 if dtype == torch.bool else 4)
    found = distance_to_other_label(torch.as_tensor(label)[None].to(dtype), backend=backend)
    assert found.dtype == torch.float32
    close(found[0], oracle_distance(label))


@pytest.mark.parametrize(
    "values",
    [
        (0, 254, 7),
        (0, 255, 7),
        (-1, 0, 1),
        (-128, 127, 3),
        (-(2**31), 2**31 - 1, 0),
        (2**31, 2**31 + 1, 2**31 + 3),
        (0, 2**32, 1),
        (-(2**63), 2**63 - 1, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_are_only_compared(
    backend: Any, values: tuple[int, ...], rng: np.random.Generator
) -> None:
    label = blobs(rng, (7, 9), 3)
    close(measure(np.array(values)[label], backend=backend), oracle_distance(label))


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 6, 5), (6, 1, 5), (6, 5, 1), (1, 1, 7)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_single_voxel_axes(backend: Any, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    label, size = rng.integers(0, 3, shape), (0.5, 2.0, 3.0)[: len(shape)]
    close(measure(label, size, backend=backend), oracle_distance(label, size))


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (4, 5), (3, 4, 5)])
@pytest.mark.parametrize("value", [0, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_label_has_no_border(backend: Any, value: int, shape: tuple[int, ...]) -> None:
    assert np.isposinf(measure(np.full(shape, value), backend=backend)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_without_border_beside_one_with(backend: Any) -> None:
    batch = torch.zeros((2, 4, 5), dtype=torch.int64)
    batch[1, :, :2] = 1
    found = distance_to_other_label(batch, backend=backend)
    assert torch.isposinf(found[0]).all()
    assert found[1, 0].tolist() == [2, 1, 1, 2, 3]


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (1, 4, 0, 5)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_measure(backend: Any, shape: tuple[int, ...]) -> None:
    found = distance_to_other_label(torch.zeros(shape, dtype=torch.uint8), backend=backend)
    assert found.shape == shape
    assert found.dtype == torch.float32


def test_a_known_row() -> None:
    # Centre to centre: one spacing at the border, and the edge of the image is no border.
    row = torch.tensor([[[4, 4, 4, 9, 9]]])
    assert distance_to_other_label(row, 2.0).tolist() == [[[6, 4, 2, 2, 4]]]


@pytest.mark.parametrize(
    ("shape", "size"),
    [((97, 150), (0.6, 1.7)), ((40, 42, 44), None), ((40, 42, 44), (2.0, 0.8, 1.25))],
)
def test_backends_agree_on_larger_volumes(
    shape: tuple[int, ...], size: Sequence[float] | None, rng: np.random.Generator
) -> None:
    label = torch.as_tensor(np.stack([blobs(rng, shape, 4), blobs(rng, shape, 2)]))
    by_edt = distance_to_other_label(label, size, backend="edt")
    close(distance_to_other_label(label, size, backend="torch"), by_edt.numpy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_voxels(backend: Any) -> None:
    # One voxel of another label: the search may not stop early.
    batch = np.zeros((2, 70, 50), dtype=np.uint8)
    batch[0, 0, 0] = batch[1, 35, 25] = 1
    sizes = np.array([[1.0, 1.0], [0.2, 6.0]])
    found = distance_to_other_label(torch.as_tensor(batch), sizes, backend=backend)
    for sample, size, actual in zip(batch, sizes, found, strict=True):
        expected = np.hypot(*((np.indices(sample.shape).T - np.argwhere(sample)[0]) * size).T)
        expected[sample == 1] = size.min()
        close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scipy_agrees_class_by_class(backend: Any, rng: np.random.Generator) -> None:
    label, size = blobs(rng, (24, 20, 22), 4), (2.5, 0.9, 1.3)
    found = measure(label, size, backend=backend)
    for c in range(4):
        inside = ndimage.distance_transform_edt(label == c, sampling=size)
        close(found[label == c], inside[label == c])


# --------------------------------------------------------------------------- signed distance


@pytest.mark.parametrize(("shape", "size"), CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_signed_distance_equals_brute_force(
    backend: Any,
    shape: tuple[int, ...],
    size: float | Sequence[float] | None,
    devices: torch.device,
    rng: np.random.Generator,
) -> None:
    # Class 3 is absent; in the last sample class 2 is full, so all the others are absent.
    batch = np.stack([blobs(rng, shape, 3), rng.integers(0, 2, shape), np.full(shape, 2)])
    found = signed_distance(torch.as_tensor(batch).to(devices), 4, size, backend=backend)
    assert found.dtype == torch.float32
    assert found.device.type == devices.type
    close(found.cpu(), np.stack([oracle_signed(label, 4, size) for label in batch]))
    assert not found[:, 3].any()
    assert not found[2].any()


def test_signed_distance_per_sample_spacing_and_sign(rng: np.random.Generator) -> None:
    label = torch.as_tensor(np.stack([blobs(rng, (6, 7), 3)] * 2))
    found = signed_distance(label, 3, np.array([[1.0, 1.0], [0.5, 4.0]]))
    close(found[1], oracle_signed(label[1].numpy(), 3, (0.5, 4.0)))
    for c in range(3):
        assert ((found[:, c] < 0) == (label == c)).all()
    assert (found[0].abs() >= 1).all(), "no voxel lies on the border itself"


# --------------------------------------------------------------------------- laws


def both(label: Array, spacing: Any = None) -> list[Array]:
    return [measure(label, spacing, backend=backend) for backend in BACKENDS]


@given(label=label_volumes(max_classes=5), size=spacings())
def test_law_equals_brute_force(label: Array, size: list[float]) -> None:
    expected = oracle_distance(label, size[: label.ndim])
    for found in both(label, size[: label.ndim]):
        close(found, expected)


@given(label=label_volumes(), size=spacings(), factor=st.floats(0.1, 10))
def test_law_distance_scales_with_spacing(label: Array, size: list[float], factor: float) -> None:
    once, scaled = size[: label.ndim], [factor * s for s in size[: label.ndim]]
    for found, expected in zip(both(label, scaled), both(label, once), strict=True):
        close(found, factor * expected)


@given(label=label_volumes(), size=spacings(), data=st.data())
def test_law_flips_and_axis_permutations_commute(
    label: Array, size: list[float], data: st.DataObject
) -> None:
    order = data.draw(st.sampled_from(list(permutations(range(label.ndim)))))
    flipped = data.draw(st.sets(st.integers(0, label.ndim - 1)))
    once = size[: label.ndim]
    moved = np.flip(label.transpose(order), tuple(flipped)).copy()
    for found, still in zip(both(moved, [once[a] for a in order]), both(label, once), strict=True):
        close(found, np.flip(still.transpose(order), tuple(flipped)))


@given(
    label=label_volumes(),
    names=st.lists(st.integers(-(2**31), 2**31), min_size=4, max_size=4, unique=True),
)
def test_law_names_of_labels_do_not_matter(label: Array, names: list[int]) -> None:
    for found, expected in zip(both(np.array(names)[label]), both(label), strict=True):
        np.testing.assert_array_equal(found, expected)


@given(label=label_volumes(), size=spacings())
def test_law_no_distance_below_one_voxel(label: Array, size: list[float]) -> None:
    for found in both(label, size[: label.ndim]):
        assert (found >= min(size[: label.ndim]) * (1 - 1e-6)).all()


@given(label=label_volumes(), size=spacings())
def test_law_neighbours_differ_by_one_step_at_most(label: Array, size: list[float]) -> None:
    # |d(x) - d(y)| <= |x - y| within a region, and across a border both are one step at most.
    for found in both(label, size[: label.ndim]):
        for axis in range(label.ndim):
            a, b = np.moveaxis(found, axis, 0)[1:], np.moveaxis(found, axis, 0)[:-1]
            finite = np.isfinite(a)
            assert (np.abs(a[finite] - b[finite]) <= size[axis] * (1 + 1e-5)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_do_not_see_one_another(backend: Any, rng: np.random.Generator) -> None:
    batch = torch.as_tensor(rng.integers(-2, 3, (4, 5, 6, 3)))
    sizes = rng.uniform(0.5, 3, (4, 3))
    together = distance_to_other_label(batch, sizes, backend=backend)
    alone = [distance_to_other_label(batch[i : i + 1], sizes[i], backend=backend) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)


# --------------------------------------------------------------------------- the machinery


@pytest.mark.parametrize("voxels", [1, 100, 130])
def test_torch_backend_in_parts(
    voxels: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    batch, sizes = torch.as_tensor(rng.integers(0, 3, (5, 6, 7))), rng.uniform(0.5, 3, (5, 2))
    whole = distance_to_other_label(batch, sizes, backend="torch")
    monkeypatch.setattr(distance, "_TORCH_VOXELS", voxels)
    calls: list[int] = []
    inner = distance._torch_distance

    def counted(label: torch.Tensor, size: Array) -> torch.Tensor:
        calls.append(len(label))
        return inner(label, size)

    monkeypatch.setattr(distance, "_torch_distance", counted)
    torch.testing.assert_close(distance_to_other_label(batch, sizes, backend="torch"), whole)
    assert calls == {1: [1] * 5, 100: [2, 2, 1], 130: [3, 2]}[voxels]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int, rng: np.random.Generator) -> None:
    label = blobs(rng, (48, 40, 40), 3)
    np.testing.assert_array_equal(measure(label, threads=threads), measure(label))


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_memory_layout_and_no_side_effect(backend: Any, rng: np.random.Generator) -> None:
    label = torch.as_tensor(rng.integers(0, 3, (2, 6, 8, 4)))
    before = label.clone()
    strided = label.permute(0, 3, 1, 2)[:, ::2]
    found = distance_to_other_label(strided, (1.0, 2.0, 3.0), backend=backend)
    expected = distance_to_other_label(strided.contiguous(), (1.0, 2.0, 3.0), backend=backend)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.equal(label, before)


def test_auto_is_edt_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    label = torch.tensor([[[0, 1, 1]]])
    expected = distance_to_other_label(label)
    monkeypatch.setattr(distance, "_torch_distance", None)
    torch.testing.assert_close(distance_to_other_label(label), expected)
    monkeypatch.setattr(distance, "_edt_distance", None)
    with pytest.raises(TypeError):
        distance_to_other_label(label)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_stays_on_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "_edt_distance", None)
    label = torch.tensor([[[0, 1, 1]]], device="cuda")
    assert distance_to_other_label(label).device == label.device


@pytest.mark.parametrize(
    ("spacing", "rows"),
    [
        (None, [[1, 1, 1], [1, 1, 1]]),
        (2, [[2, 2, 2], [2, 2, 2]]),
        (np.float32(0.5), [[0.5] * 3] * 2),
        (torch.tensor(2.0), [[2, 2, 2], [2, 2, 2]]),
        ((1, 2, 3), [[1, 2, 3], [1, 2, 3]]),
        (torch.tensor([1.0, 2.0, 3.0]), [[1, 2, 3], [1, 2, 3]]),
        (np.array([[1, 2, 3], [4, 5, 6]]), [[1, 2, 3], [4, 5, 6]]),
    ],
    ids=str,
)
def test_forms_of_a_spacing(spacing: Any, rows: list[list[float]]) -> None:
    found = as_spacing(spacing, batch=2, ndim=3)
    assert found.dtype == np.float64
    assert found.tolist() == rows


# --------------------------------------------------------------------------- errors

LABEL = torch.zeros((2, 4, 5, 6), dtype=torch.int64)


@pytest.mark.parametrize(
    ("spacing", "came"),
    [
        ((1.0, 2.0), r"\(2,\)"),
        (np.ones((3, 3)), r"\(3, 3\)"),
        (np.ones((2, 2)), r"\(2, 2\)"),
        (0.0, "0.0"),
        ((1.0, -2.0, 1.0), "-2.0"),
        ((1.0, np.inf, 1.0), "inf"),
        (float("nan"), "nan"),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_error_spacing(spacing: Any, came: str, backend: Any) -> None:
    with pytest.raises(ValueError, match=f"^spacing: expected .*got .*{came}"):
        distance_to_other_label(LABEL, spacing, backend=backend)
    with pytest.raises(ValueError, match=f"^spacing: expected .*got .*{came}"):
        signed_distance(LABEL, 2, spacing, backend=backend)


@pytest.mark.parametrize("shape", [(4, 5), (1, 2, 3, 4, 5), (7,)])
def test_error_axes(shape: tuple[int, ...]) -> None:
    label = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^label: expected \(B, \*spatial\).* got shape") as error:
        distance_to_other_label(label)
    assert str(shape) in str(error.value)
    with pytest.raises(ValueError, match=r"^label: expected \(B, \*spatial\)"):
        signed_distance(label, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64], ids=str)
def test_error_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"^label: expected an integer or bool.*got {dtype}"):
        distance_to_other_label(LABEL.to(dtype))
    with pytest.raises(ValueError, match=f"^label: expected an integer or bool.*got {dtype}"):
        signed_distance(LABEL.to(dtype), 2)


@pytest.mark.parametrize("backend", ["scipy", "", None])
def test_error_backend(backend: Any) -> None:
    with pytest.raises(ValueError, match=f"^backend: expected 'auto'.*got {backend!r}"):
        distance_to_other_label(LABEL, backend=backend)
