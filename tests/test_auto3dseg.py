"""The Auto3DSeg plug-in without AutoRunner: the entry, packing, patching, checks, commands."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks import one_hot
from torch import Tensor

from monai_segloss.__main__ import main
from monai_segloss.auto3dseg import (
    LAYOUTS,
    Auto3DSegLoss,
    PackTargetd,
    check,
    input_overrides,
    loss_config,
    packing_transforms,
    patch_bundles,
    patch_templates,
    patching,
)
from monai_segloss.losses import TAXONOMY, make_loss
from monai_segloss.maps import region_wise_map

CLASSES = 3
# A command that starts as fast as a process can, for what is not about the command.
NO_OP = f"{sys.executable} -I -S -c pass"


def balls(classes: int = CLASSES, size: tuple[int, ...] = (16, 16, 8)) -> Tensor:
    """A label index ``(2, 1, *size)`` of nested balls, of two sizes."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    return torch.stack(
        [((1.1 - scale * radius) * classes).clamp(0, classes - 1) for scale in (1, 1.4)]
    )[:, None].floor()


def logits_for(label: Tensor, classes: int = CLASSES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (len(label), classes, *label.shape[2:])
    return torch.randn(shape, generator=generator).requires_grad_()


# ------------------------------------------------------------------------------------- the entry


def softmax_names() -> list[str]:
    return [name for name, row in TAXONOMY.items() if "softmax" in row.forms]


@pytest.mark.parametrize("name", softmax_names())
def test_every_softmax_loss_of_the_taxonomy_equals_itself(name: str) -> None:
    label = balls()
    logits = logits_for(label)
    direct = make_loss(name, softmax=True, to_onehot_y=True)
    expected = direct(logits, label)
    loss = Auto3DSegLoss(name)
    for target in (label, label.to(torch.uint8), one_hot(label, CLASSES)):
        value = loss(logits, target)
        assert value.ndim == 0
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", [n for n, row in TAXONOMY.items() if "multi-label" in row.forms])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_every_multi_label_loss_equals_itself(name: str, dtype: torch.dtype) -> None:
    label = torch.cat([balls() > 0, balls() > 1], dim=1)
    logits = logits_for(label, 2)
    expected = make_loss(name, sigmoid=True)(logits, label.float())
    value = Auto3DSegLoss(name, softmax=False, sigmoid=True)(logits, label.to(dtype))
    torch.testing.assert_close(value, expected)


# The Hausdorff losses leave the background out unless told.
@pytest.mark.filterwarnings("ignore:single channel prediction, `include_background=False`")
@pytest.mark.parametrize("name", [n for n, row in TAXONOMY.items() if "binary" in row.forms])
def test_every_binary_loss_takes_a_packed_target(name: str) -> None:
    label = (balls() > 0).float()
    logits = logits_for(label, 1)
    loss = Auto3DSegLoss(name, softmax=False, sigmoid=True)
    if loss.map_kind is None:
        assert TAXONOMY[name].map_kind is None or name == "weighted_sum"
    pack = PackTargetd("label", loss.map_kind or "rrw", 1, spacing=None, multi_label=True)
    packed = torch.stack([pack({"label": one})["label"] for one in label])
    assert packed.shape[1] in (2, 3)
    torch.testing.assert_close(loss(logits, packed), loss(logits, label))


@pytest.mark.parametrize("name", softmax_names())
def test_packed_target_gives_the_map_or_leaves_it_unread(name: str) -> None:
    label = balls()
    logits = logits_for(label)
    loss = Auto3DSegLoss(name)
    pack = PackTargetd("label", loss.map_kind or "rrw", CLASSES, spacing=None)
    packed = torch.stack([pack({"label": one})["label"] for one in label])
    torch.testing.assert_close(loss(logits, packed), loss(logits, label))


@pytest.mark.parametrize("name", ["dice", "tversky", "generalized_dice", "focal", "weighted_sum"])
@pytest.mark.parametrize("packed", [False, True])
def test_monais_losses_count_small_integers_right(name: str, packed: bool) -> None:
    # More than 255 voxels a class: sums in uint8 would wrap.
    label = torch.ones(1, 1, 16, 16, 16)
    logits = logits_for(label, 2)
    loss = Auto3DSegLoss(name)
    target = torch.cat([one_hot(label, 2), torch.zeros(1, 1, 16, 16, 16)], 1) if packed else label
    if name == "weighted_sum" and packed:
        target = one_hot(label, 2)
    torch.testing.assert_close(loss(logits, label.to(torch.uint8)), loss(logits, target))


@pytest.mark.parametrize("name", softmax_names())
def test_dints_may_add_to_the_loss_in_place(name: str) -> None:
    label = balls(size=(8, 8, 8))
    gradients = []
    for in_place in (False, True):
        logits = logits_for(label)
        value = Auto3DSegLoss(name)(logits, label)
        if in_place:
            value += 1.0
        value.backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


def test_packed_map_is_read_not_computed_again() -> None:
    label = balls()
    logits = logits_for(label)
    loss = Auto3DSegLoss("rrw")
    twice = torch.cat([one_hot(label, CLASSES), 2 * region_wise_map(label, "rrw", CLASSES)], dim=1)
    assert not torch.isclose(loss(logits, twice), loss(logits, label), rtol=1e-3)


def test_packed_map_of_label_and_map_is_refused() -> None:
    label = balls()
    packed = torch.cat([label, region_wise_map(label, "rrw", CLASSES)], dim=1)
    with pytest.raises(ValueError, match=r"target: expected shape .*never \[index \| map\]"):
        Auto3DSegLoss("rrw")(logits_for(label), packed)


def test_two_classes_take_a_label_and_its_map_for_no_one_hot() -> None:
    label = balls(2)
    packed = torch.cat([label, region_wise_map(label, "rrw", 2)], dim=1)
    with pytest.raises(ValueError, match="target"):
        Auto3DSegLoss("rrw")(logits_for(label, 2), packed)


def test_sigmoid_takes_an_index_as_one_against_the_rest() -> None:
    label = balls()
    logits = logits_for(label)
    loss = Auto3DSegLoss("dice_bce", softmax=False, sigmoid=True)
    torch.testing.assert_close(loss(logits, label), loss(logits, one_hot(label, CLASSES)))


@pytest.mark.parametrize("absent", [0, 2])
@pytest.mark.parametrize("name", ["rrw", "boundary", "focal_tversky", "lovasz_softmax", "dice_ce"])
def test_absent_classes_have_finite_gradients(name: str, absent: int) -> None:
    label = torch.full((2, 1, 8, 8, 8), float(absent))
    logits = logits_for(label)
    Auto3DSegLoss(name)(logits, label.to(torch.uint8)).backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_metatensor_and_half_precision() -> None:
    label = balls()
    logits = logits_for(label)
    loss = Auto3DSegLoss("rrw")
    expected = loss(logits, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, MetaTensor(label))
    assert type(value) is Tensor
    torch.testing.assert_close(value, expected)
    assert loss(logits.half(), label).dtype == torch.float32
    assert loss(logits.double(), label).dtype == torch.float64


@pytest.mark.parametrize("name", ["dice_ce", "rrw", "weighted_sum"])
def test_buffers_follow_the_input(name: str, devices: torch.device) -> None:
    loss = Auto3DSegLoss(name, weight=[1.0, 2.0, 3.0])
    assert list(loss.buffers())
    label = balls().to(devices)
    value = loss(logits_for(balls()).to(devices), label)
    assert value.device.type == devices.type
    assert {buffer.device.type for buffer in loss.buffers()} == {devices.type}


def test_buffers_are_looked_at_in_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Auto3DSegLoss("dice_ce", weight=[1.0, 2.0, 3.0])
    moved: list[torch.device] = []
    monkeypatch.setattr(Auto3DSegLoss, "to", lambda self, device: moved.append(device))
    loss._follow(torch.device("cpu"))
    assert moved == []
    loss._follow(torch.device("meta"))
    assert moved == [torch.device("meta")]


def test_deep_supervision_shrinks_the_target() -> None:
    label = balls(size=(16, 16, 16))
    logits = [logits_for(label), logits_for(label[..., ::2, ::2, ::2])]
    loss = Auto3DSegLoss("non_euclidean")
    half = torch.nn.functional.interpolate(label, size=(8, 8, 8), mode="nearest-exact")
    expected = loss(logits[0], label) + 0.5 * loss(logits[1], half)
    for target in (label, label.to(torch.uint8), one_hot(label, CLASSES)):
        torch.testing.assert_close(DeepSupervisionLoss(loss)(logits, target), expected)


def test_spacing_reaches_what_measures_and_nothing_else() -> None:
    loss = Auto3DSegLoss(
        "weighted_sum", losses=["dice", "boundary", "hausdorff"], spacing=[1.0, 1.0, 3.0]
    )
    assert loss.terms["boundary"].spacing == [1.0, 1.0, 3.0]
    assert loss.terms["hausdorff"].spacing == [1.0, 1.0, 3.0]
    assert not hasattr(loss.terms["dice"], "spacing")


def test_own_spacing_of_a_term_stays() -> None:
    loss = Auto3DSegLoss("weighted_sum", boundary_spacing=2.0, spacing=[1.0, 1.0, 3.0])
    assert loss.terms["boundary"].spacing == 2.0


def test_slices_are_measured_one_by_one_and_dice_is_not() -> None:
    label = balls()
    logits = logits_for(label)
    options: dict[str, Any] = {"losses": ["dice", "boundary"], "weights": [1.0, 0.5]}
    loss = Auto3DSegLoss("weighted_sum", slicewise=True, spacing=[2.0, 3.0], **options)
    flat = [torch.cat(list(t.unbind(-1))) for t in (logits, label)]
    boundary = make_loss("boundary", softmax=True, to_onehot_y=True, spacing=[2.0, 3.0])(*flat)
    dice = make_loss("dice", softmax=True, to_onehot_y=True)(logits, label)
    torch.testing.assert_close(loss(logits, label), dice + 0.5 * boundary)


def test_slicewise_packing_gives_the_same_loss() -> None:
    label = balls()
    logits = logits_for(label)
    loss = Auto3DSegLoss("rrw", slicewise=True)
    pack = PackTargetd("label", "rrw", CLASSES, spacing=None, slicewise=True)
    packed = torch.stack([pack({"label": one})["label"] for one in label])
    torch.testing.assert_close(loss(logits, packed), loss(logits, label))
    volume = PackTargetd("label", "rrw", CLASSES, spacing=None)({"label": label[0]})["label"]
    assert not torch.equal(volume, packed[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "rwr"}, "did you mean 'rrw'"),
        ({"name": "focal_tversky", "gama": 1.0}, "did you mean 'gamma'"),
        ({"name": "rrw", "sigmoid": True}, "softmax, sigmoid: expected exactly one"),
        ({"name": "rrw", "softmax": False}, "softmax, sigmoid: expected exactly one"),
        ({"name": "rrw", "reduction": "none"}, "reduction: expected 'mean' or 'sum', got 'none'"),
        ({"name": "rrw", "to_onehot_y": True}, "to_onehot_y: expected not to be given"),
        ({"name": "lovasz_hinge"}, "softmax, other_act: expected neither"),
        ({"name": "rrw", "schedule": "gradual", "steps_per_epoch": 1}, "no weighted_sum"),
        ({"name": "weighted_sum", "schedule": "gradual"}, "steps_per_epoch: expected a whole"),
        (
            {
                "name": "weighted_sum",
                "schedule": "equal",
                "steps_per_epoch": 3,
                "weights": [1, 2],
            },
            "weights: expected none, since the schedule sets them",
        ),
        ({"name": "weighted_sum", "steps_per_epoch": 3}, "schedule: expected a name"),
        ({"name": "weighted_sum", "schedule": "no", "steps_per_epoch": 3}, "equal, gradual"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Auto3DSegLoss(**arguments)


def test_wrong_forms_are_refused_at_call_time() -> None:
    label = balls()
    with pytest.raises(ValueError, match="dice_ce: expected a prediction of the form softmax"):
        Auto3DSegLoss("dice_ce", softmax=False, sigmoid=True)(logits_for(label), label)
    with pytest.raises(ValueError, match="at least 2 channels with softmax"):
        Auto3DSegLoss("rrw")(logits_for(label, 1), label)
    with pytest.raises(ValueError, match="target: expected shape"):
        Auto3DSegLoss("rrw")(logits_for(label), label[..., :-1])


# ------------------------------------------------------------------------------------- schedules


def scheduled(**options: Any) -> Auto3DSegLoss:
    return Auto3DSegLoss("weighted_sum", schedule="gradual", steps_per_epoch=2, **options)


def weights_of(loss: Auto3DSegLoss) -> list[float]:
    weights: Tensor = loss.loss.weights
    return [round(w, 6) for w in weights.tolist()]


@pytest.mark.parametrize("outputs", [1, 3])
def test_schedule_counts_backward_passes(outputs: int) -> None:
    loss = scheduled()
    criterion = DeepSupervisionLoss(loss)
    label = balls(size=(8, 8, 8))
    weights = []
    for _ in range(5):
        logits = [logits_for(label) for _ in range(outputs)]
        criterion(logits, label).backward()
        weights.append(weights_of(loss))
        with torch.no_grad():
            criterion(logits, label)
    assert weights == [[1.0, 0.0], [1.0, 0.0], [0.99, 0.01], [0.99, 0.01], [0.98, 0.02]]


def test_a_loss_that_was_added_to_in_place_counts_too() -> None:
    loss = scheduled()
    label = balls(size=(8, 8, 8))
    for _ in range(3):
        value = loss(logits_for(label), label)
        value += 1.0
        value.backward()
    assert loss.step == 2


def test_validation_counts_no_step() -> None:
    loss = scheduled()
    label = balls(size=(8, 8, 8))
    for _ in range(5):
        with torch.no_grad():
            loss(logits_for(label), label)
    assert loss.step == 0


def test_schedule_goes_on_from_a_step_or_a_state() -> None:
    label = balls(size=(8, 8, 8))
    assert weights_of(scheduled(first_step=20)) == [0.9, 0.1]
    loss = scheduled()
    for _ in range(3):
        loss(logits_for(label), label).backward()
    other = scheduled()
    other.load_state_dict(loss.state_dict())
    assert other.step == 3
    assert weights_of(other) == [0.99, 0.01]
    assert pickle.loads(pickle.dumps(loss)).step == 2


# --------------------------------------------------------------------------------------- packing


def test_packing_keeps_label_channels_affine_and_history() -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0], dtype=torch.float64))
    label = MetaTensor(balls()[0].to(torch.uint8), affine=affine)
    packed = PackTargetd("label", "boundary", CLASSES)({"label": label})["label"]
    assert isinstance(packed, MetaTensor)
    assert packed.dtype == torch.float32
    assert torch.equal(packed.affine, affine)
    assert torch.equal(packed[:CLASSES].as_tensor(), one_hot(balls(), CLASSES)[0])
    expected = region_wise_map(balls()[:1], "boundary", CLASSES, [2.0, 2.0, 5.0])[0]
    torch.testing.assert_close(packed[CLASSES:].as_tensor(), expected)


def test_packing_takes_numbers_or_voxels() -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0], dtype=torch.float64))
    label = MetaTensor(balls()[0], affine=affine)
    for spacing in (None, [1.0, 2.0, 3.0]):
        packed = PackTargetd("label", "boundary", CLASSES, spacing=spacing)({"label": label})
        expected = region_wise_map(balls()[:1], "boundary", CLASSES, spacing)[0]
        torch.testing.assert_close(packed["label"][CLASSES:].as_tensor(), expected)


def test_packing_leaves_missing_keys_if_told() -> None:
    assert PackTargetd("label", allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError):
        PackTargetd("label")({"image": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kind": "no"}, "kind"), ({"spacing": "mm"}, "spacing: expected 'affine'")],
)
def test_packing_refuses_unknown_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackTargetd("label", **arguments)


@pytest.mark.parametrize("given", [{"sigmoid": True}, {"class_index": [[1], [2]]}])
def test_what_rewrites_channels_cannot_be_packed(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="maps: expected 'online' with sigmoid or class_index"):
        packing_transforms(
            **{"num_classes": 3, "sigmoid": False, "class_index": None, **given}, kind="rrw"
        )


# ----------------------------------------------------------------------------------- the layouts

# Written for these tests, in the places and with the references that the public ones have.
SEGRESNET = """\
bundle_root: null            # where it is
ckpt_path: $@bundle_root + '/model'
output_classes: null
class_index: null

sigmoid: false
resample: false
resample_resolution: [1, 1, 1]


loss:
  _target_: DiceCELoss       # goes with the rest of the entry
  include_background: true
  softmax: $not @sigmoid
  sigmoid: $@sigmoid
  to_onehot_y: $not @sigmoid

# stays
optimizer:
  _target_: torch.optim.AdamW
  lr: 2.0e-4
"""
SWINUNETR = """\
bundle_root: null
output_classes: null
resample_resolution: null
softmax: true
loss:
  _target_: DiceCELoss
  softmax: $@softmax
  sigmoid: $not @softmax
  to_onehot_y: $@softmax
optimizer: {_target_: torch.optim.AdamW, lr: 0.0004}   # one line
"""
SWINUNETR_TRANSFORMS = """\
image_key: image
label_key: label
transforms_train:
  _target_: Compose
  transforms:
  - _target_: LoadImaged
    keys: ["@image_key", "@label_key"]
  - PLACEHOLDER_INTENSITY_NORMALIZATION
  # the last random one
  - _target_: RandFlipd
    keys: ['@image_key', '@label_key']
    prob: 0.2
"""
DINTS = """\
---
bundle_root: null
training:
  output_classes: null
  resample_resolution: null
  softmax: true

  loss:
    _target_: DiceFocalLoss
    softmax: "@training#softmax"
    to_onehot_y: "@training#softmax"

  optimizer:
    _target_: torch.optim.SGD
    lr: 0.2
# fine-tuning
finetune:
  activate_finetune: false
"""
DINTS_SEARCH = """\
---
searching:
  output_classes: null
  resample_resolution: null
  softmax: true
  # architecture searching
  loss:
    _target_: DiceFocalLoss
    softmax: "@searching#softmax"
    to_onehot_y: "@searching#softmax"
"""
FILES: Mapping[str, Mapping[str, str]] = {
    "segresnet": {"hyper_parameters.yaml": SEGRESNET},
    "segresnet2d": {"hyper_parameters.yaml": SEGRESNET + "stop_on_lowacc: false\n"},
    "swinunetr": {
        "hyper_parameters.yaml": SWINUNETR,
        "transforms_train.yaml": SWINUNETR_TRANSFORMS,
    },
    "dints": {
        "hyper_parameters.yaml": DINTS,
        "hyper_parameters_search.yaml": DINTS_SEARCH,
        "transforms_train.yaml": SWINUNETR_TRANSFORMS + "\n",
    },
}


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """The four layouts, with nothing behind them but their files of settings."""
    root = tmp_path / "src"
    for name, files in FILES.items():
        write_template(root / name, files)
    return root


def write_template(folder: Path, files: Mapping[str, str]) -> None:
    (folder / "configs").mkdir(parents=True)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "algo.py").write_text("")
    for file, text in files.items():
        (folder / "configs" / file).write_text(text)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def make_bundles(templates: Path, root: Path) -> Path:
    """The templates as AutoRunner leaves them: another name, settings dumped anew."""
    for name in FILES:
        folder = root / f"{name}_0"
        shutil.copytree(templates / name, folder)
        (folder / "algo_object.json").write_text("{}")
        for file in (folder / "configs").iterdir():
            content = yaml.safe_load(file.read_text())
            file.write_text(yaml.safe_dump(content, default_flow_style=None))
    return root


def test_only_the_entry_changes(templates: Path, tmp_path: Path) -> None:
    patch_templates(templates, tmp_path / "dst", "focal_tversky", gamma=1.5)
    text = (tmp_path / "dst/segresnet/configs/hyper_parameters.yaml").read_text()
    entry = """\
loss:
  _target_: monai_segloss.auto3dseg.Auto3DSegLoss
  name: focal_tversky
  softmax: $not @sigmoid
  sigmoid: $@sigmoid
  spacing: '@resample_resolution'
  gamma: 1.5
"""
    start, end = SEGRESNET.index("loss:"), SEGRESNET.index("\n# stays")
    assert text == SEGRESNET[:start] + entry + SEGRESNET[end:]


def test_line_ends_of_windows_stay(templates: Path, tmp_path: Path) -> None:
    path = templates / "segresnet/configs/hyper_parameters.yaml"
    path.write_bytes(SEGRESNET.replace("\n", "\r\n").encode())
    patch_templates(templates, tmp_path / "dst", "rrw", "segresnet")
    new = (tmp_path / "dst/segresnet/configs/hyper_parameters.yaml").read_bytes().decode()
    start, end = SEGRESNET.index("loss:"), SEGRESNET.index("\n# stays")
    assert new.startswith(SEGRESNET[:start].replace("\n", "\r\n"))
    assert new.endswith(SEGRESNET[end:].replace("\n", "\r\n"))


@pytest.mark.parametrize("maps", ["online", "packed"])
def test_all_layouts_are_patched_and_pass_the_check(
    templates: Path, tmp_path: Path, maps: Any
) -> None:
    before = files_of(templates)
    patch_templates(templates, tmp_path / "dst", "rrw", maps=maps)
    rows = check(tmp_path / "dst", cmd_prefix=NO_OP)
    assert [(row.folder.name, row.key, row.packed) for row in rows] == [
        ("dints", "training#loss", maps == "packed"),
        ("dints", "searching#loss", maps == "packed"),
        ("segresnet", "loss", maps == "packed"),
        ("segresnet2d", "loss", maps == "packed"),
        ("swinunetr", "loss", maps == "packed"),
    ]
    assert all(row.cases == 6 for row in rows)
    assert files_of(templates) == before


@pytest.mark.parametrize("maps", ["online", "packed"])
def test_patching_twice_is_patching_once(templates: Path, tmp_path: Path, maps: Any) -> None:
    first = files_of(patch_templates(templates, tmp_path / "dst", "rrw", maps=maps))
    again = files_of(patch_templates(templates, tmp_path / "dst", "rrw", maps=maps))
    of_patched = files_of(patch_templates(tmp_path / "dst", tmp_path / "other", "rrw", maps=maps))
    assert first == again == of_patched


def test_packed_then_online_leaves_nothing_behind(templates: Path, tmp_path: Path) -> None:
    online = files_of(patch_templates(templates, tmp_path / "online", "rrw"))
    packed = patch_templates(templates, tmp_path / "packed", "rrw", maps="packed")
    assert files_of(packed).keys() - online.keys() == {
        "segresnet/configs/monai_segloss.yaml",
        "segresnet2d/configs/monai_segloss.yaml",
    }
    assert files_of(patch_templates(packed, tmp_path / "back", "rrw")) == online


@pytest.mark.parametrize("maps", ["online", "packed"])
def test_bundles_are_patched_in_place(templates: Path, tmp_path: Path, maps: Any) -> None:
    work = make_bundles(templates, tmp_path / "work")
    before = files_of(work)
    patched = patch_bundles(work, "boundary", maps=maps, inside="shifted")
    assert [path.name for path in patched] == [
        "dints_0",
        "segresnet2d_0",
        "segresnet_0",
        "swinunetr_0",
    ]
    once = files_of(work)
    assert once != before
    patch_bundles(work, "boundary", maps=maps, inside="shifted")
    assert files_of(work) == once
    rows = check(work, cmd_prefix=NO_OP)
    assert {row.packed for row in rows} == {maps == "packed"}
    assert {row.name for row in rows} == {"boundary"}


def test_trained_bundle_is_patched_with_a_warning(templates: Path, tmp_path: Path) -> None:
    work = make_bundles(templates, tmp_path / "work")
    (work / "segresnet_0/model").mkdir()
    (work / "segresnet_0/model/progress.yaml").write_text("")
    with pytest.warns(UserWarning, match="segresnet_0: trained already"):
        patch_bundles(work, "rrw", "segresnet")


def test_an_error_in_one_file_changes_none(templates: Path, tmp_path: Path) -> None:
    work = make_bundles(templates, tmp_path / "work")
    (work / "swinunetr_0/configs/hyper_parameters.yaml").write_text("softmax: true\n")
    before = files_of(work)
    with pytest.raises(ValueError, match=r"swinunetr_0.*: loss: expected this entry, found none"):
        patch_bundles(work, "rrw")
    assert files_of(work) == before


@pytest.mark.parametrize("after", range(5))
def test_a_failing_disk_leaves_all_as_it_was(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    work = make_bundles(templates, tmp_path / "work")
    patch_templates(templates, tmp_path / "dst", "rrw", maps="packed")
    before = files_of(tmp_path)
    written: list[Path] = []
    write = Path.write_text

    def failing(path: Path, text: str, **arguments: Any) -> int:
        written.append(path)
        if len(written) > after:
            raise OSError("no space left")
        return write(path, text, **arguments)

    monkeypatch.setattr(Path, "write_text", failing)
    with pytest.raises(OSError, match="no space left"):
        patch_bundles(work, "rrw", maps="packed")
    with pytest.raises(OSError, match="no space left"):
        patch_templates(templates, tmp_path / "dst", "focal_tversky")
    assert files_of(tmp_path) == before


def test_a_failing_swap_leaves_the_old_copy(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_templates(templates, tmp_path / "dst", "rrw")
    before = files_of(tmp_path)
    replace = patching.os.replace

    def failing(old: Path, new: Path) -> None:
        if Path(old).name == "new":
            raise OSError("no")
        replace(old, new)

    monkeypatch.setattr(patching.os, "replace", failing)
    with pytest.raises(OSError, match="no"):
        patch_templates(templates, tmp_path / "dst", "focal_tversky")
    assert files_of(tmp_path) == before


def test_the_copy_holds_what_was_asked_for(templates: Path, tmp_path: Path) -> None:
    patch_templates(templates, tmp_path / "dst", "rrw", ["segresnet"])
    assert [p.name for p in (tmp_path / "dst").iterdir() if p.is_dir()] == ["segresnet"]


def test_a_template_of_ones_own_is_laid_out_like_another(templates: Path, tmp_path: Path) -> None:
    write_template(templates / "mine", FILES["swinunetr"])
    patch_templates(templates, tmp_path / "dst", "rrw", {"mine": "swinunetr"}, "packed")
    (row,) = check(tmp_path / "dst", cmd_prefix=NO_OP)
    assert (row.folder.name, row.packed) == ("mine", True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, d: patch_templates(s, d, "rwr"), ValueError, "did you mean 'rrw'"),
        (lambda s, d: patch_templates(s, d, "rrw", "unet"), ValueError, "algo: expected one of"),
        (lambda s, d: patch_templates(s, d, "rrw", maps="no"), ValueError, "maps: expected"),
        (lambda s, d: patch_templates(s, s, "rrw"), ValueError, "dst: expected a folder outside"),
        (lambda s, d: patch_templates(s, s / "x", "rrw"), ValueError, "dst: expected a folder out"),
        (lambda s, d: patch_templates(d, s, "rrw"), FileNotFoundError, "found no template"),
        (lambda s, d: patch_templates(s.parent, d, "rrw"), FileNotFoundError, "expected a folder"),
        (lambda s, d: patch_bundles(s, "rrw"), FileNotFoundError, "found no template or bundle"),
        (lambda s, d: check(d), FileNotFoundError, "found no template or bundle"),
        (
            lambda s, d: patch_templates(s, d, "dice", maps="packed"),
            ValueError,
            "maps: expected 'online', since dice reads no map",
        ),
        (
            lambda s, d: patch_templates(
                s, d, "weighted_sum", maps="packed", losses=["rrw", "boundary"]
            ),
            ValueError,
            "maps of several kinds",
        ),
        (
            lambda s, d: patch_templates(
                s,
                d,
                "weighted_sum",
                maps="packed",
                losses=["boundary", "hausdorff"],
                boundary_inside="shifted",
            ),
            ValueError,
            "maps made with different options",
        ),
        (
            lambda s, d: patch_templates(s, d, "rrw", maps="packed", ignore_index=2),
            ValueError,
            "maps: expected 'online' with ignore_index",
        ),
        (
            lambda s, d: patch_templates(s, d, "weighted_sum", schedule="gradual"),
            ValueError,
            "steps_per_epoch: expected a whole number",
        ),
    ],
)
def test_what_cannot_be_patched_is_refused_before_anything_is_made(
    templates: Path,
    tmp_path: Path,
    call: Callable[[Path, Path], Any],
    error: type[Exception],
    message: str,
) -> None:
    before = files_of(tmp_path)
    with pytest.raises(error, match=message):
        call(templates, tmp_path / "dst")
    assert files_of(tmp_path) == before


def test_a_folder_of_somebody_else_is_left_alone(templates: Path, tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst/thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="was not made by patch_templates"):
        patch_templates(templates, tmp_path / "dst", "rrw")
    assert (tmp_path / "dst/thesis.txt").read_text() == "all of it"


def test_custom_transforms_of_ones_own_are_not_overridden(templates: Path, tmp_path: Path) -> None:
    path = templates / "segresnet/configs/hyper_parameters.yaml"
    path.write_text(SEGRESNET + "custom_data_transforms: [{key: a, path: b, transform: c}]\n")
    with pytest.raises(ValueError, match="expected no custom_data_transforms beside packed maps"):
        patch_templates(templates, tmp_path / "dst", "rrw", maps="packed")
    patch_templates(templates, tmp_path / "dst", "rrw")


def test_yaml_that_cannot_be_edited_is_named(templates: Path, tmp_path: Path) -> None:
    path = templates / "dints/configs/hyper_parameters.yaml"
    path.write_text("training: {softmax: true, loss: {_target_: DiceLoss}}\n")
    with pytest.raises(ValueError, match=r"dints.*training#loss: expected a block"):
        patch_templates(templates, tmp_path / "dst", "rrw")


@pytest.mark.parametrize("end", ["", "\n", "\n\n# a last comment\n"])
def test_the_end_of_a_file_may_be_the_end_of_the_list(
    templates: Path, tmp_path: Path, end: str
) -> None:
    path = templates / "swinunetr/configs/transforms_train.yaml"
    path.write_text(SWINUNETR_TRANSFORMS.rstrip("\n") + end)
    patch_templates(templates, tmp_path / "dst", "rrw", "swinunetr", "packed")
    new = (tmp_path / "dst/swinunetr/configs/transforms_train.yaml").read_text()
    assert new.startswith(SWINUNETR_TRANSFORMS.rstrip("\n") + "\n  - _target_: monai_segloss.")
    assert new.endswith(end.lstrip("\n") or "\n")


def test_packing_follows_the_options_of_the_loss(templates: Path, tmp_path: Path) -> None:
    patch_templates(
        templates, tmp_path / "dst", "boundary", maps="packed", inside="shifted", spacing=[1, 1, 3]
    )
    content = yaml.safe_load((tmp_path / "dst/swinunetr/configs/transforms_train.yaml").read_text())
    item = content["transforms_train"]["transforms"][-1]
    assert item["kind"] == "boundary"
    assert item["map_options"] == {"inside": "shifted"}
    assert item["spacing"] == [1.0, 1.0, 3.0]
    custom = (tmp_path / "dst/segresnet2d/configs/monai_segloss.yaml").read_text()
    assert "slicewise=True" in custom


# ------------------------------------------------------------------------- entries and overrides


def two_parses(config: dict[str, Any], key: str = "loss") -> Any:
    """As the segresnet templates build their loss."""
    first = ConfigParser(config).get_parsed_content(key, instantiate=False).config
    return ConfigParser(first).get_parsed_content(instantiate=True)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_entry_survives_two_parses_and_takes_the_templates_settings(sigmoid: bool) -> None:
    entry = loss_config("weighted_sum", "segresnet2d", losses=["dice_bce", "boundary"])
    config = {"loss": entry, "sigmoid": sigmoid, "resample_resolution": [1.0, 2.0, 5.0]}
    loss = two_parses(yaml.safe_load(yaml.safe_dump(config)))
    assert isinstance(loss, Auto3DSegLoss)
    assert (loss.sigmoid, loss.softmax) == (sigmoid, not sigmoid)
    assert loss.terms["boundary"].spacing == [1.0, 2.0]
    assert loss.slicewise


def test_a_nested_component_would_fail_the_two_parses() -> None:
    nested = {"_target_": "DeepSupervisionLoss", "loss": {"_target_": "DiceLoss"}}
    with pytest.raises(Exception, match=r"."):
        two_parses({"loss": nested})({}, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"map_options": {"_target_": "X"}}, "unknown|knows|nested"),
        ({"weight": torch.ones(3)}, "options: expected numbers, strings, lists"),
        ({"spacing": "mm"}, "spacing: expected 'template'"),
        ({"spacing": [1, 1]}, "spacing: expected one number, 3 numbers"),
        ({"section": "training"}, "section: expected one of None for segresnet"),
    ],
)
def test_entries_that_yaml_or_the_parse_cannot_hold(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        loss_config("rrw", "segresnet", **arguments)


def test_entry_of_each_section() -> None:
    assert loss_config("rrw", "dints")["spacing"] == "@training#resample_resolution"
    searching = loss_config("rrw", "dints", section="searching")
    assert searching["spacing"] == "@searching#resample_resolution"
    assert loss_config("rrw", "segresnet2d", spacing=[1, 2, 3])["spacing"] == [1.0, 2.0]
    assert loss_config("rrw", "segresnet", spacing=None)["spacing"] is None


def test_entry_for_a_loss_that_only_takes_sigmoid() -> None:
    assert loss_config("lovasz_hinge", "segresnet")["name"] == "lovasz_hinge"


def test_input_reaches_the_segresnets_only() -> None:
    assert input_overrides("rrw", "segresnet") == {"loss": loss_config("rrw", "segresnet")}
    for name, layout in LAYOUTS.items():
        if not layout.reads_input:
            with pytest.raises(ValueError, match=f"{name} would ignore"):
                input_overrides("rrw", ["segresnet", name])
    with pytest.raises(ValueError, match="need different entries"):
        input_overrides("rrw", ["segresnet", "segresnet2d"])
    with pytest.raises(ValueError, match="algos: expected at least one"):
        input_overrides("rrw", [])


# ---------------------------------------------------------------------------------------- checks


def test_check_refuses_a_loss_that_is_not_ours(templates: Path) -> None:
    with pytest.raises(ValueError, match=r"dints: training#loss: expected .*'DiceFocalLoss'"):
        check(templates)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: rrw", "name: rwr", "did you mean 'rrw'"),
        ("$not @sigmoid", "$not @sigmod", "sigmod"),
        ("'@resample_resolution'", "[1.0, -1.0, 1.0]", "spacing: expected finite positive"),
        ("sigmoid: false", "sigmoid: true", "with sigmoid or class_index"),
    ],
)
def test_check_finds_what_training_would_trip_over(
    templates: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    patch_templates(templates, tmp_path / "dst", "rrw", "segresnet", "packed")
    path = tmp_path / "dst/segresnet/configs/hyper_parameters.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        check(tmp_path / "dst", cmd_prefix=NO_OP)


def test_check_finds_a_loss_that_is_not_finite(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_templates(templates, tmp_path / "dst", "rrw", "segresnet")
    forward = Auto3DSegLoss.forward
    monkeypatch.setattr(
        Auto3DSegLoss, "forward", lambda self, x, y: forward(self, x, y) * float("nan")
    )
    with pytest.raises(ValueError, match="expected one finite number with a finite gradient"):
        check(tmp_path / "dst", cmd_prefix=NO_OP)


def test_check_starts_python_as_training_does(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_templates(templates, tmp_path / "dst", "rrw", "segresnet")
    with pytest.raises(RuntimeError, match=r"cmd_prefix: .*no-python.*cmd_prefix=sys.executable"):
        check(tmp_path / "dst", cmd_prefix="no-python")
    monkeypatch.setenv("CMD_PREFIX", "no-such-python -u")
    with pytest.raises(RuntimeError, match="no-such-python -u"):
        check(tmp_path / "dst")
    # -I: without PYTHONPATH, without the folder the process is started in.
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    with pytest.raises(RuntimeError, match="monai"):
        check(tmp_path / "dst", cmd_prefix=f"{sys.executable} -I -S")


# -------------------------------------------------------------------------------------- commands


def test_commands(templates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = tmp_path / "dst"
    patch = ["auto3dseg", "patch-templates", str(templates), str(dst), "--loss", "weighted_sum"]
    own = ["--option", "losses=[dice, boundary]", "--spacing", "voxels", "--maps", "packed"]
    moving = ["--schedule", "gradual", "--steps-per-epoch", "10", "--algos", "segresnet", "dints"]
    assert main([*patch, *own, *moving]) == 0
    entry = yaml.safe_load((dst / "segresnet/configs/hyper_parameters.yaml").read_text())["loss"]
    assert entry["losses"] == ["dice", "boundary"]
    assert entry["spacing"] is None
    assert (entry["schedule"], entry["steps_per_epoch"]) == ("gradual", 10)
    assert "auto3dseg check" in capsys.readouterr().out
    assert main(["auto3dseg", "check", str(dst), "--cmd-prefix", sys.executable]) == 0
    assert "segresnet  loss  weighted_sum  packed  6 targets" in capsys.readouterr().out
    work = make_bundles(templates, tmp_path / "work")
    assert main(["auto3dseg", "patch-bundles", str(work), "--loss", "rrw"]) == 0
    assert capsys.readouterr().out.count("_0\n") == 4


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--loss", "rwr"], 1, "did you mean 'rrw'"),
        (["--loss", "rrw", "--algos", "mine=unet"], 1, "algo: expected one of"),
        (["--loss", "rrw", "--spacing", "1,1"], 1, "spacing: expected one number, 3 numbers"),
        (["--loss", "rrw", "--spacing", "big"], 2, "expected template, voxels or numbers in mm"),
        (["--loss", "rrw", "--option", "gamma"], 2, "expected KEY=VALUE, got 'gamma'"),
        (["--loss", "rrw", "--option", "weight=[1"], 2, "expected YAML, got '[1'"),
    ],
)
def test_commands_say_what_is_wrong(
    templates: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    patch = ["auto3dseg", "patch-templates", str(templates), str(tmp_path / "dst")]
    try:
        ended = main([*patch, *arguments])
    except SystemExit as error:
        ended = error.code
    assert ended == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()


def test_monais_own_loss_stays_what_it_was() -> None:
    label = balls()
    logits = logits_for(label)
    entry = Auto3DSegLoss("dice_ce", squared_pred=True, smooth_nr=0.0, smooth_dr=1e-5)
    theirs = DiceCELoss(
        softmax=True, to_onehot_y=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-5
    )
    torch.testing.assert_close(entry(logits, label), theirs(logits, label))
