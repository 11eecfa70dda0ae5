"""Maps against their papers' equations, voxel by voxel, and the laws their docstrings state."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import COMPACT, WEIGHTS, Array, blobs, label_volumes, one_hot, spacings
from torch import Tensor

from monai_segloss import maps
from monai_segloss.maps import (
    MAP_KINDS,
    count_conflicting_voxels,
    get_map_kind,
    is_rectified,
    negative_gradient_components,
    region_wise_map,
    to_dense,
    to_label_index,
)

KINDS = list(MAP_KINDS)
SHAPES = [(8, 7), (5, 4, 6)]
SIZES: dict[int, list[Any]] = {2: [None, 0.5, (0.4, 1.5)], 3: [None, 2.0, (2.5, 0.7, 1.1)]}
GRIDS = [(shape, size) for shape in SHAPES for size in SIZES[len(shape)]]
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in KINDS),
    ("boundary", {"inside": "symmetric"}),
    ("boundary", {"inside": "shifted"}),
    ("hausdorff", {"alpha": 1.0}),
    ("hausdorff", {"alpha": 0.5}),
    ("border", {"w0": 3.0, "sigma": 1.5}),
    ("border", {"class_weight": (0.5, 1.0, 2.0, 4.0)}),
]
LABEL_DTYPES = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.float16,
    torch.float32,
    torch.float64,
]


def close(actual: Any, expected: Any, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=1e-6)


def as_index(*samples: Array) -> Tensor:
    """Samples ``(*spatial)`` -> ``(B, 1, *spatial)``."""
    return torch.as_tensor(np.stack(samples))[:, None]


def as_one_hot(classes: int, *samples: Array) -> Tensor:
    """Samples ``(*spatial)`` -> float32 ``(B, C, *spatial)``."""
    return torch.as_tensor(np.stack([one_hot(s, classes) for s in samples])).float()


def both_fully(rng: np.random.Generator, shape: tuple[int, ...]) -> list[Array]:
    """All of four classes in blobs and in noise, an absent class, and a class that is full."""
    return [
        blobs(rng, shape, 4),
        rng.integers(0, 4, shape),
        blobs(rng, shape, 3),
        np.full(shape, 2),
        np.zeros(shape, dtype=np.int64),
    ]


# --------------------------------------------------------------------------- oracles


@pytest.mark.parametrize(("shape", "size"), GRIDS)
@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_equals_its_equation(
    kind: str,
    options: dict[str, Any],
    shape: tuple[int, ...],
    size: Any,
    devices: torch.device,
    rng: np.random.Generator,
) -> None:
    samples = both_fully(rng, shape)
    label = as_index(*samples).to(devices)
    found = region_wise_map(label, kind, 4, size, dense=True, **options)
    assert found.dtype == torch.float32
    assert found.device.type == devices.type
    close(
        found.cpu(),
        np.stack([oracles.region_wise_map(kind, s, 4, size, **options) for s in samples]),
    )


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_natural_form(kind: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    """What the kind's own function gives, and what the table says about it."""
    samples, size = both_fully(rng, (5, 4, 6)), (2.5, 0.7, 1.1)
    label = as_index(*samples)
    row = MAP_KINDS[kind]
    found = row.compute(label[:, 0], 4, size, **options)
    torch.testing.assert_close(region_wise_map(label, kind, 4, size, **options), found)
    assert row.name == kind
    assert row.compute is getattr(maps, f"{kind}_map")
    assert row.compact is (kind in COMPACT)
    dense = np.stack([oracles.region_wise_map(kind, s, 4, size, **options) for s in samples])
    if not row.compact:
        close(found, dense)
        return
    assert found.shape == label.shape
    true_class = np.take_along_axis(dense, label.numpy(), axis=1)
    close(found, -true_class if kind in WEIGHTS else true_class)
    assert (row.sign < 0) is (kind in WEIGHTS)
    off = dense[one_hot_mask(label, 4) == 0]
    assert (off == row.off_class).all()


def one_hot_mask(label: Tensor, classes: int) -> Array:
    return np.stack([one_hot(s, classes) for s in label[:, 0].numpy()])


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_spacing_per_sample(kind: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    samples, sizes = [blobs(rng, (6, 7), 4)] * 2, np.array([[1.0, 1.0], [0.5, 3.0]])
    found = region_wise_map(as_index(*samples), kind, 4, sizes, dense=True, **options)
    expected = [
        oracles.region_wise_map(kind, s, 4, z, **options)
        for s, z in zip(samples, sizes, strict=True)
    ]
    close(found, np.stack(expected))
    assert torch.equal(found[0], found[1]) is not MAP_KINDS[kind].uses_distance


def test_border_with_given_instances(rng: np.random.Generator) -> None:
    # Two cells of one class that touch, and one apart: components alone would see two objects.
    label = np.zeros((9, 12), dtype=np.int64)
    label[2:5, 1:7] = 1
    label[6:8, 8:11] = 1
    instances = oracles.face_components(label)
    instances[2:5, 4:7] = 9
    batch = torch.as_tensor(np.stack([label, label]))
    ids = torch.as_tensor(np.stack([instances, np.zeros_like(instances)]))
    for size in (None, (0.5, 2.0)):
        given_ids = maps.border_map(batch, 2, size, instances=ids, sigma=2.0)
        expected = oracles.border_weight(label, 2, size, instances=instances, sigma=2.0)
        close(given_ids[0, 0], expected)
        assert (given_ids[1] == 1).all(), "no object, no term"
        found = maps.border_map(batch, 2, size, sigma=2.0)
        close(found[0, 0], oracles.border_weight(label, 2, size, sigma=2.0))
        assert not torch.allclose(found[0], given_ids[0])
    through = region_wise_map(batch[:, None], "border", 2, instances=ids, sigma=2.0)
    torch.testing.assert_close(through, maps.border_map(batch, 2, instances=ids, sigma=2.0))


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool], ids=str
)
def test_border_instances_of_any_integer_dtype(dtype: torch.dtype) -> None:
    label = torch.tensor([[[1, 0, 0, 1, 0, 1]]])
    ids = torch.tensor([[[5, 0, 0, 2, 0, 2]]])
    if dtype == torch.bool:
        ids = ids.clamp(max=1)
    expected = maps.border_map(label, 2, instances=ids)
    torch.testing.assert_close(maps.border_map(label, 2, instances=ids.to(dtype)), expected)


def test_border_by_hand() -> None:
    # Between two objects at distances 1 and 2: exp(-(1 + 2)^2 / (2 * 25)).
    row = maps.border_map(torch.tensor([[[1, 0, 0, 1]]]), 2)[0, 0, 0]
    term = 10 * np.exp(-9 / 50)
    close(row, [1, 1 + term, 1 + term, 1])


# --------------------------------------------------------------------------- forms of a label


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_label_forms_and_dtypes_agree(
    kind: str, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    samples = [blobs(rng, (7, 6), 2), np.zeros((7, 6), dtype=np.int64)]
    index, channels = as_index(*samples), as_one_hot(2, *samples)
    expected = region_wise_map(index, kind, 2, (0.5, 0.8))
    for label in (index, channels):
        found = region_wise_map(label.to(dtype), kind, 2, (0.5, 0.8))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_and_compact_agree(kind: str, rng: np.random.Generator) -> None:
    index = as_index(*both_fully(rng, (5, 6)))
    natural = region_wise_map(index, kind, 4)
    dense = region_wise_map(index, kind, 4, dense=True)
    assert dense.shape == (5, 4, 5, 6)
    assert natural.shape == ((5, 1, 5, 6) if kind in COMPACT else dense.shape)
    if kind in COMPACT:
        torch.testing.assert_close(to_dense(natural, index, MAP_KINDS[kind], 4), dense)
    else:
        torch.testing.assert_close(natural, dense)


@pytest.mark.parametrize(("shape", "size"), GRIDS)
@pytest.mark.parametrize(("kind", "options"), [o for o in OPTIONS if "class_weight" not in o[1]])
def test_multi_label(
    kind: str,
    options: dict[str, Any],
    shape: tuple[int, ...],
    size: Any,
    rng: np.random.Generator,
) -> None:
    # Channels overlap; one is empty and one is full.
    one = np.stack([blobs(rng, shape, 2), rng.integers(0, 2, shape), np.ones(shape)])
    two = np.stack([np.zeros(shape), blobs(rng, shape, 2), rng.integers(0, 2, shape)])
    found = region_wise_map(
        torch.as_tensor(np.stack([one, two])), kind, 3, size, multi_label=True, **options
    )
    assert found.dtype == torch.float32
    close(found, np.stack([oracles.multi_label_map(kind, c, size, **options) for c in (one, two)]))


@pytest.mark.parametrize("channels", [1, 3])
def test_multi_label_spacing_per_sample(channels: int, rng: np.random.Generator) -> None:
    label = np.stack([np.stack([blobs(rng, (6, 7), 2)] * channels)] * 2)
    sizes = np.array([[1.0, 1.0], [0.5, 3.0]])
    found = region_wise_map(
        torch.as_tensor(label).bool(), "boundary", channels, sizes, multi_label=True
    )
    expected = [
        oracles.multi_label_map("boundary", c, s) for c, s in zip(label, sizes, strict=True)
    ]
    close(found, np.stack(expected))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ignore_index(kind: str, dense: bool, rng: np.random.Generator) -> None:
    label = blobs(rng, (9, 8), 3)
    label[2:4, 3:7] = 255
    ignored = label == 255
    expected = oracles.region_wise_map(kind, label, 3, (0.5, 2.0), ignored=ignored)
    index = torch.as_tensor(label).to(torch.uint8)[None, None]
    found = region_wise_map(index, kind, 3, (0.5, 2.0), dense=dense, ignore_index=255)
    if found.shape[1] == 1:
        classes = np.where(ignored, 0, label)[None]
        expected = np.take_along_axis(expected, classes, axis=0)
        expected = -expected if kind in WEIGHTS else expected
    close(found[0], expected)
    assert not found[0, :, torch.as_tensor(ignored)].any()
    everything = region_wise_map(index.clamp(max=2), kind, 3, ignore_index=255)
    torch.testing.assert_close(everything, region_wise_map(index.clamp(max=2), kind, 3))


@pytest.mark.parametrize("ignore_index", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_ignore_index_is_the_same_in_both_forms(
    kind: str, ignore_index: int, rng: np.random.Generator
) -> None:
    label = blobs(rng, (9, 8), 3)
    expected = oracles.region_wise_map(kind, label, 3, ignored=label == ignore_index)
    for form in (as_index(label), as_one_hot(3, label)):
        found = region_wise_map(form, kind, 3, dense=True, ignore_index=ignore_index)
        close(found[0], expected)


def test_to_label_index(rng: np.random.Generator) -> None:
    label = blobs(rng, (5, 6), 3)
    for form in (as_index(label), as_one_hot(3, label).half(), as_one_hot(3, label).bool()):
        index, valid = to_label_index(form, 3)
        assert index.dtype == torch.int64
        assert valid is None
        assert index.tolist() == as_index(label).tolist()
        index, valid = to_label_index(form, 3, ignore_index=1)
        assert valid is not None
        assert valid.tolist() == as_index(label != 1).tolist()
        assert index.tolist() == as_index(np.where(label == 1, 0, label)).tolist()


# --------------------------------------------------------------------------- laws


def dense_map(label: Array, kind: str, size: Any = None, **options: Any) -> Array:
    """The package's dense map of one sample with four classes."""
    return region_wise_map(as_index(label), kind, 4, size, dense=True, **options)[0].numpy()


kinds = st.sampled_from(KINDS)


@given(label=label_volumes(), size=spacings(), kind=kinds)
def test_law_equals_its_equation(label: Array, size: list[float], kind: str) -> None:
    size = size[: label.ndim]
    close(dense_map(label, kind, size), oracles.region_wise_map(kind, label, 4, size), rtol=2e-5)


@given(label=label_volumes(), kind=kinds, order=st.sampled_from(list(permutations(range(1, 4)))))
def test_law_permuting_classes_permutes_channels(
    label: Array, kind: str, order: tuple[int, ...]
) -> None:
    # The background stays where it is: border treats it apart.
    names = np.array([0, *order])
    close(dense_map(names[label], kind)[names], dense_map(label, kind))


@given(label=label_volumes(), kind=kinds.filter(lambda k: k != "border"))
def test_law_background_is_a_class_like_any_other(label: Array, kind: str) -> None:
    close(dense_map(3 - label, kind)[::-1], dense_map(label, kind))


@given(label=label_volumes(), size=spacings(), kind=kinds, data=st.data())
def test_law_flips_and_axis_permutations_commute(
    label: Array, size: list[float], kind: str, data: st.DataObject
) -> None:
    order = data.draw(st.sampled_from(list(permutations(range(label.ndim)))))
    flipped = data.draw(st.sets(st.integers(0, label.ndim - 1)))

    def move(values: Array, channels: int) -> Array:
        axes = (*range(channels), *(a + channels for a in order))
        return np.flip(values.transpose(axes), tuple(a + channels for a in flipped)).copy()

    moved = dense_map(move(label, 0), kind, [size[a] for a in order])
    close(moved, move(dense_map(label, kind, size[: label.ndim]), 1))


@given(label=label_volumes(), size=spacings(), factor=st.floats(0.1, 10), data=st.data())
def test_law_scale(label: Array, size: list[float], factor: float, data: st.DataObject) -> None:
    """spacing -> k spacing multiplies the map by k to the power of its unit."""
    alpha = data.draw(st.sampled_from([0.5, 1.0, 2.0]))
    once, scaled = size[: label.ndim], [factor * s for s in size[: label.ndim]]
    for kind, power, options in (
        ("rrw", 0, {}),
        ("active_contour", 0, {}),
        ("non_euclidean", 0, {}),
        ("boundary", 1, {"inside": "symmetric"}),
        ("boundary", 1, {"inside": "shifted"}),
        ("distance_penalty", 1, {}),
        ("hausdorff", alpha, {"alpha": alpha}),
    ):
        expected = factor**power * dense_map(label, kind, once, **options)
        np.testing.assert_allclose(
            dense_map(label, kind, scaled, **options), expected, rtol=1e-4, atol=1e-4
        )
    close(
        dense_map(label, "border", scaled, sigma=5 * factor),
        dense_map(label, "border", once),
        rtol=1e-4,
    )


@given(label=label_volumes(), size=spacings())
def test_law_ranges_and_signs(label: Array, size: list[float]) -> None:
    """What the docstrings say of range, sign and zeros, and of absent and full classes."""
    size = size[: label.ndim]
    inside = one_hot(label, 4) == 1
    absent = ~inside.reshape(4, -1).any(1)
    full = inside.reshape(4, -1).all(1)
    borderless = absent | full

    z = dense_map(label, "rrw", size)
    assert (z[inside] >= -1).all()
    assert (z[inside] < 0).all()
    assert (z[~inside] == 1).all()
    assert (z[full] == -1).all()
    assert all(z[c].min() == -1 for c in np.flatnonzero(~absent))

    z = dense_map(label, "boundary", size)
    assert (z[borderless] == 0).all()
    assert ((z < 0) == inside)[~borderless].all()
    assert (np.abs(z[~borderless]) >= min(size) * (1 - 1e-6)).all()
    z = dense_map(label, "boundary", size, inside="shifted")
    assert (z[inside] <= 1e-6 * max(size)).all()
    assert (z[~inside] >= 0).all()
    assert (z[borderless] == 0).all()

    z = dense_map(label, "hausdorff", size)
    assert (z[inside] == 0).all()
    assert (z >= 0).all()
    assert (z[borderless] == 0).all()
    assert (z[~borderless][~inside[~borderless]] > 0).all()

    assert set(np.unique(dense_map(label, "active_contour")[inside])) <= {0}
    assert set(np.unique(dense_map(label, "active_contour")[~inside])) <= {1}
    assert set(np.unique(dense_map(label, "non_euclidean")[inside])) <= {-1}
    assert set(np.unique(dense_map(label, "non_euclidean")[~inside])) <= {1}

    phi = region_wise_map(as_index(label), "distance_penalty", 4, size)[0, 0].numpy()
    assert (phi >= 0).all()
    for c in np.unique(label):
        assert phi[label == c].min() == 0, "deepest inside a class"

    weight = region_wise_map(as_index(label), "border", 4, size)[0, 0].numpy()
    assert (weight[label > 0] == 1).all()
    assert (weight >= 1).all()
    assert (weight <= 1 + 10).all()


# --------------------------------------------------------------------------- rectification


def three_blobs(
    rng: np.random.Generator, shape: tuple[int, ...] = (12, 10)
) -> tuple[Array, Tensor]:
    label = blobs(rng, shape, 3)
    return label, as_index(label)


@pytest.mark.parametrize("kind", KINDS)
def test_trap_11_rectified_kinds_on_three_classes(kind: str, rng: np.random.Generator) -> None:
    label, index = three_blobs(rng)
    z = region_wise_map(index, kind, 3, dense=True)
    assert is_rectified(z, index) is (kind in COMPACT)
    assert is_rectified(z, as_one_hot(3, label)) is (kind in COMPACT)


@pytest.mark.parametrize("kind", KINDS)
def test_trap_11_any_two_class_map_is_rectified(kind: str, rng: np.random.Generator) -> None:
    index = as_index(blobs(rng, (9, 9), 2))
    assert is_rectified(region_wise_map(index, kind, 2, dense=True), index)


def test_one_wrong_value_is_not_rectified(rng: np.random.Generator) -> None:
    label, index = three_blobs(rng)
    z = region_wise_map(index, "rrw", 3, dense=True)
    z[0, label[3, 4], 3, 4] -= 0.3
    assert is_rectified(z, index), "the true class may hold any value"
    z[0, (label[3, 4] + 1) % 3, 3, 4] -= 1e-3
    assert not is_rectified(z, index)
    assert is_rectified(z, index, atol=1e-2)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("kind", KINDS)
def test_negative_gradient_components_equal_autograd(
    kind: str, scale: float, rng: np.random.Generator
) -> None:
    _, index = three_blobs(rng, (6, 5, 4))
    z = region_wise_map(index, kind, 3, dense=True)
    logits = torch.as_tensor(scale * rng.normal(size=z.shape)).requires_grad_()
    (torch.softmax(logits, dim=1) * z.double()).mean().backward()
    assert logits.grad is not None
    # Components that rounding alone moves off zero do not count.
    tiny = 1e-12 * float(z.abs().max()) / z.numel()
    by_autograd = (logits.grad / torch.softmax(logits.detach(), dim=1) < -tiny).sum(1, keepdim=True)
    found = negative_gradient_components(logits.detach(), z)
    assert found.dtype == torch.int64
    assert torch.equal(found, by_autograd)
    expected = (by_autograd > 1).sum().reshape(1)
    assert torch.equal(count_conflicting_voxels(logits.detach(), z), expected)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_conflicting_voxels(kind: str, scale: float, rng: np.random.Generator) -> None:
    label, index = three_blobs(rng)
    batch = torch.cat([index, index])
    z = region_wise_map(batch, kind, 3, dense=True)
    logits = torch.as_tensor(scale * rng.normal(size=z.shape)).float()
    logits[1] = scale * as_one_hot(3, label)[0]
    found = count_conflicting_voxels(logits, z)
    assert found.shape == (2,)
    assert found.dtype == torch.int64
    if kind in COMPACT:
        assert found.tolist() == [0, 0]
    elif kind == "boundary":
        assert found[0] > 0


def test_conflict_by_hand() -> None:
    # One voxel, class 2 true: pushing up 1 and 2 at once is what the paper's figure 2 shows.
    z = torch.tensor([5.0, -1.0, -3.0]).reshape(1, 3, 1, 1)
    logits = torch.zeros((1, 3, 1, 1))
    assert negative_gradient_components(logits, z).item() == 2
    assert count_conflicting_voxels(logits, z).tolist() == [1]
    assert count_conflicting_voxels(logits, torch.tensor([1, 1, -3.0]).reshape(z.shape)) == 0


# --------------------------------------------------------------------------- known traps


def test_trap_01_an_absent_class_has_no_stale_map(rng: np.random.Generator) -> None:
    with_two, without = blobs(rng, (8, 8), 3), blobs(rng, (8, 8), 2)
    together = as_index(with_two, without)
    assert (region_wise_map(together, "rrw", 3, dense=True)[1, 2] == 1).all()
    assert (region_wise_map(together, "boundary", 3)[1, 2] == 0).all()
    assert (region_wise_map(together, "hausdorff", 3)[1, 2] == 0).all()
    for kind in KINDS:
        alone = region_wise_map(as_index(without), kind, 3, dense=True)
        torch.testing.assert_close(region_wise_map(together, kind, 3, dense=True)[1:], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_trap_01_a_full_class_has_no_phantom_border(kind: str) -> None:
    label = torch.full((1, 1, 6, 7), 1)
    z = region_wise_map(label, kind, 3, (0.5, 2.0), dense=True)
    value = {"rrw": -1, "non_euclidean": -1, "border": -1}.get(kind, 0)
    assert (z[:, 1] == value).all(), "the same everywhere, so no flip can change it"


def test_trap_01_spacing_counts(rng: np.random.Generator) -> None:
    _, index = three_blobs(rng)
    for kind in set(KINDS) - {"active_contour", "non_euclidean"}:
        unit = region_wise_map(index, kind, 3)
        assert not torch.allclose(region_wise_map(index, kind, 3, (0.3, 2.0)), unit), kind


def test_trap_02_distances_on_both_sides_in_two_dimensions(rng: np.random.Generator) -> None:
    label, index = three_blobs(rng)
    boundary = region_wise_map(index, "boundary", 3)[0]
    penalty = region_wise_map(index, "distance_penalty", 3)[0, 0]
    for c in range(3):
        assert (boundary[c][torch.as_tensor(label == c)] < 0).all()
        assert (boundary[c][torch.as_tensor(label != c)] > 0).all()
        assert penalty[torch.as_tensor(label == c)].std() > 0, "weighed in the background too"


@pytest.mark.parametrize("inside", ["symmetric", "shifted"])
def test_trap_03_nothing_positive_inside_below_one_mm(inside: str) -> None:
    label = torch.zeros((1, 1, 9, 9), dtype=torch.int64)
    label[..., 2:7, 2:7] = 1
    z = region_wise_map(label, "boundary", 2, 0.5, inside=inside)[0, 1]
    shift = 0.5 if inside == "shifted" else 0.0
    assert z[4, 2:7].tolist() == [shift - d for d in (0.5, 1.0, 1.5, 1.0, 0.5)]
    assert z[4, :2].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("kind", ["boundary", "rrw", "hausdorff", "distance_penalty", "border"])
def test_trap_03_04_integer_masks_truncate_nothing(kind: str, rng: np.random.Generator) -> None:
    label, _ = three_blobs(rng)
    channels = as_one_hot(3, label)
    z = region_wise_map(channels.to(torch.uint8), kind, 3, 0.3)
    torch.testing.assert_close(z, region_wise_map(channels, kind, 3, 0.3), rtol=0, atol=0)
    assert z.dtype == torch.float32
    assert not torch.equal(z, z.round())


# --------------------------------------------------------------------------- errors

INDEX = torch.zeros((2, 1, 4, 5), dtype=torch.int64)


@pytest.mark.parametrize("kind", ["rww", "", None, 3, ["rrw"]])
def test_error_kind(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"^kind: expected one of rrw, boundary.*, got ") as error:
        get_map_kind(kind)
    assert repr(kind) in str(error.value)
    with pytest.raises(ValueError, match=r"^kind: "):
        region_wise_map(INDEX, kind, 2)


@pytest.mark.parametrize(
    "shape", [(2, 4, 5), (2, 2, 4, 5), (2, 4, 4, 5), (1, 1, 2, 3, 4, 5), (4, 5)], ids=str
)
def test_error_label_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^label: expected shape \(B, 1 or 3, H, W") as error:
        region_wise_map(torch.zeros(shape), "rrw", 3)
    assert str(shape) in str(error.value)


def test_error_multi_label_shape() -> None:
    with pytest.raises(ValueError, match=r"^label: .*multi_label=True.*got \(2, 1, 4, 5\)"):
        region_wise_map(INDEX, "rrw", 3, multi_label=True)
    with pytest.raises(ValueError, match=r"^label: .*multi_label=True.*got \(4, 5\)"):
        region_wise_map(INDEX[0, 0], "rrw", 3, multi_label=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"label: expected values from 0 to 2 .*got values from 0 to 3"),
        (-1, r"label: expected values from 0 to 2 .*got values from -1 to 0"),
        (0.5, r"label: expected whole numbers, got values such as 0.5"),
        (float("nan"), r"label: expected whole numbers, got values such as nan"),
        (float("inf"), r"label: expected"),
    ],
)
def test_error_index_values(value: float, message: str) -> None:
    label = INDEX.double()
    label[1, 0, 2, 2] = value
    with pytest.raises(ValueError, match=message):
        region_wise_map(label, "rrw", 3)
    if value == -1:
        region_wise_map(label, "rrw", 3, ignore_index=-1)


@pytest.mark.parametrize("value", [2, -1, 0.25, float("nan")])
@pytest.mark.parametrize("multi_label", [False, True])
def test_error_channel_values(multi_label: bool, value: float) -> None:
    label = as_one_hot(3, *INDEX[:, 0].numpy())
    label[1, 1, 2, 2] = value
    with pytest.raises(ValueError, match=f"^label: expected channels of 0 and 1.*{value}"):
        region_wise_map(label, "rrw", 3, multi_label=multi_label)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool], ids=str)
def test_error_not_one_hot(dtype: torch.dtype) -> None:
    overlapping = as_one_hot(3, *INDEX[:, 0].numpy())
    overlapping[0, 1, 1, 1] = 1
    empty = as_one_hot(3, *INDEX[:, 0].numpy())
    empty[0, :, 1, 1] = 0
    for label in (overlapping, empty):
        with pytest.raises(ValueError, match=r"^label: expected one-hot.*multi_label=True"):
            region_wise_map(label.to(dtype), "rrw", 3)
        region_wise_map(label.to(dtype), "rrw", 3, multi_label=True)


@pytest.mark.parametrize("classes", [1, 0, -2])
def test_error_num_classes(classes: int) -> None:
    with pytest.raises(ValueError, match=f"^num_classes: expected at least 2.*got {classes}"):
        region_wise_map(INDEX, "rrw", classes)


def test_error_spacing() -> None:
    for kind in ("rrw", "boundary", "hausdorff", "distance_penalty", "border"):
        with pytest.raises(ValueError, match=r"^spacing: .*got shape \(3,\)"):
            region_wise_map(INDEX, kind, 2, (1, 1, 1))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "boundary",
            {"inside": "shift"},
            "^inside: expected 'symmetric' or 'shifted', got 'shift'",
        ),
        ("border", {"sigma": 0}, "^sigma: expected a positive number, got 0"),
        ("border", {"sigma": -1.5}, "^sigma: expected a positive number, got -1.5"),
        ("border", {"class_weight": (1, 2, 3)}, r"^class_weight: expected 2 numbers, got \(3,\)"),
        (
            "border",
            {"instances": torch.zeros((2, 4, 4), dtype=torch.int64)},
            r"^instances: expected the label's shape \(2, 4, 5\), got \(2, 4, 4\)",
        ),
    ],
)
def test_error_options(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        region_wise_map(INDEX, kind, 2, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_error_instances_dtype(dtype: torch.dtype) -> None:
    ids = torch.zeros((2, 4, 5), dtype=dtype)
    with pytest.raises(ValueError, match=f"^instances: expected an integer dtype, got {dtype}"):
        maps.border_map(INDEX[:, 0], 2, instances=ids)


def test_error_ignore_index_in_multi_label() -> None:
    label = as_one_hot(3, *INDEX[:, 0].numpy())
    with pytest.raises(ValueError, match=r"^ignore_index: .*multi_label=True.*, got 2"):
        region_wise_map(label, "rrw", 3, multi_label=True, ignore_index=2)


def test_error_negative_gradient_shapes() -> None:
    with pytest.raises(ValueError, match=r"^region_wise: .*\(1, 3, 4, 5\).*got \(1, 1, 4, 5\)"):
        negative_gradient_components(torch.zeros(1, 3, 4, 5), torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match=r"^region_wise: "):
        count_conflicting_voxels(torch.zeros(1, 3, 4, 5), torch.zeros(1, 1, 4, 5))


def test_error_unknown_option() -> None:
    with pytest.raises(ValueError, match=r"^map_options: hausdorff knows alpha, got .beta."):
        region_wise_map(INDEX, "hausdorff", 2, beta=1.0)


def test_conflicts_of_squared_probabilities_agree_with_autograd(rng: np.random.Generator) -> None:
    label = as_index(rng.integers(0, 4, (5, 6)))
    z = region_wise_map(label, "hausdorff", 4, dense=True).double()
    logits = torch.as_tensor(rng.normal(size=z.shape)).requires_grad_()
    (torch.softmax(logits, 1).square() * z).mean().backward()
    assert logits.grad is not None
    expected = (logits.grad < 0).sum(dim=1, keepdim=True)
    found = negative_gradient_components(logits.detach(), z, squared=True)
    assert found.tolist() == expected.tolist()


def test_an_inverted_map_is_not_rectified(rng: np.random.Generator) -> None:
    """Equal channels are not enough: the true class's value must not lie above them."""
    label = as_index(rng.integers(0, 3, (5, 6)))
    z = region_wise_map(label, "rrw", 3, dense=True)
    assert is_rectified(z, label)
    assert not is_rectified(-z, label)


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_empty_batch(kind: str) -> None:
    assert region_wise_map(INDEX[:0], kind, 2).shape[0] == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
def test_ignored_value_beyond_the_classes_of_a_narrow_dtype(dtype: torch.dtype) -> None:
    classes = int(torch.iinfo(dtype).max) + 1
    label = torch.zeros((1, 1, 4, 5), dtype=dtype)
    label[..., 2:] = classes - 1
    found = region_wise_map(label, "rrw", classes, ignore_index=classes - 1)
    assert not found[..., 2:].any()


@pytest.mark.parametrize("name", ["rrw", "boundary", "hausdorff", "distance_penalty", "border"])
def test_error_range_in_each_function(name: str) -> None:
    with pytest.raises(ValueError, match=r"^label: expected values from 0 to 1"):
        MAP_KINDS[name].compute(INDEX[:, 0] + 5, 2)
