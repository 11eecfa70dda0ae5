"""What the bundles have in common, written once: their configurations call these functions.

They put MONAI's transforms and handlers together; what differs by dataset (its reader, grid,
intensities, classes) stands in the bundle's own configuration.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ignite.distributed as idist
import numpy as np
import torch
import torch.distributed
from ignite.engine import Engine
from monai.data import MetaTensor, partition_dataset
from monai.engines import Evaluator
from monai.handlers import CheckpointLoader, LrScheduleHandler, StatsHandler
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    ConcatItemsd,
    Invertd,
    Lambdad,
    LoadImaged,
    MapLabelValued,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSpatialCropSamplesd,
    SaveImaged,
    ScaleIntensityRanged,
    SelectItemsd,
    SqueezeDimd,
    Transform,
)
from monai.utils import ensure_tuple
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import _LRScheduler

from monai_segloss.handlers import Checkpointing, TrainingLog
from monai_segloss.losses import WeightedSumLoss
from monai_segloss.report import BelowLayout, EvaluationReport, SaveOverlayd
from monai_segloss.schedule import LossWeightSchedule
from monai_segloss.transforms import LoadMapd, RegionWiseMapd, SameGridd, WholeNiftid

__all__ = [
    "TrainingHandlers",
    "augmentation",
    "evaluation_handlers",
    "inference_handlers",
    "join_processes",
    "label_map",
    "load_nifti",
    "load_xray",
    "local_device",
    "map_kind_of",
    "on_label_grid",
    "own_seed",
    "own_share",
    "packed",
    "saved_labels",
    "saved_mask",
    "slice_samples",
]

logger = logging.getLogger(__name__)

PAIR = ("image", "label")

# --------------------------------------------------------------------------- data


def load_nifti(keys: str | Sequence[str]) -> list[Transform]:
    """Read whole NIfTI volumes through ITK, channel first, and stop if their grids differ."""
    return [
        WholeNiftid(keys),
        LoadImaged(keys, reader="ITKReader", ensure_channel_first=True, image_only=True),
        SameGridd(keys),
    ]


def load_xray(keys: str | Sequence[str], label: str = "label") -> list[Transform]:
    """Read X-rays and lung masks through ITK, as one channel each.

    An image in colours is averaged. A mask may be two files, of one lung each; lung is what is
    brighter than half of 255 in any of them. A channel of opacity is passed over.

    Raises:
        ValueError: while loading, on a mask of another size than its image, or one that is
            neither empty nor anywhere that bright.
    """
    names = ensure_tuple(keys)
    load = LoadImaged(names, reader="ITKReader", ensure_channel_first=True, image_only=True)
    images = [name for name in names if name != label]
    masks = [Lambdad(label, _union_of_masks)] if label in names else []
    grey = [Lambdad(images, _grey)] if images else []
    return [load, SameGridd(names), *grey, *masks]


def _grey(image: Tensor) -> Tensor:
    return _opaque(image).mean(0, keepdim=True)


def _union_of_masks(mask: Tensor) -> Tensor:
    brightest = _opaque(mask).amax(0, keepdim=True)
    if 0 < float(brightest.max()) <= 127:
        name = getattr(mask, "meta", {}).get("filename_or_obj", "mask")
        raise ValueError(
            f"{name}: expected a mask that is 255 where lung is, got nothing brighter than "
            f"{float(brightest.max()):g}"
        )
    union = (brightest > 127).to(torch.uint8)
    if mask.shape[0] == 2 and isinstance(union, MetaTensor):
        # Of two files MONAI names the first; the map of one lung is not the map of both.
        union.meta.pop("filename_or_obj", None)
    return union


def _opaque(picture: Tensor) -> Tensor:
    """Without the fourth channel, which tells how opaque each pixel is."""
    return picture[:3] if picture.shape[0] == 4 else picture


def map_kind_of(
    loss: nn.Module, map_options: Mapping[str, Any] | None = None, map_dir: str | None = None
) -> str | None:
    """The kind of map that a loss reads beside its label; None if there is none to bring.

    The losses of a sum that read maps of several kinds compute them themselves, of each slice and
    in voxels, with their own options.

    Raises:
        ValueError: on a sum of several kinds, if ``map_options`` or ``map_dir`` say how to make or
            where to find the one.
    """
    kinds = getattr(loss, "map_kinds", ())
    if len(kinds) > 1:
        if map_options or map_dir:
            raise ValueError(
                f"map_options, map_dir: expected none for a sum that reads maps of the kinds "
                f"{', '.join(kinds)}, got {dict(map_options or {})} and {map_dir}; give its losses "
                "their map_options by loss_options"
            )
        logger.warning(
            "the losses read maps of the kinds %s; each computes its own, by slices, in voxels",
            ", ".join(kinds),
        )
    kind: str | None = getattr(loss, "map_kind", None)
    return kind


def label_map(
    kind: str,
    num_classes: int,
    map_options: Mapping[str, Any],
    map_dir: str | None,
    label_dir: str,
    pattern: str,
    spacing: Literal["affine"] | None = "affine",
    label_values: Mapping[int, int] | None = None,
    threshold: float | None = None,
) -> Transform:
    """The label's map beside it, as ``label_map``: computed here, or read where it was computed.

    Args:
        kind, num_classes, spacing, map_options: as of ``RegionWiseMapd``.
        map_dir: the folder that ``python -m monai_segloss maps`` made of ``label_dir``; None to
            compute the map.
        label_dir: the data set's folder.
        pattern: its label files, for the advice of an error.
        label_values, threshold: how the bundle makes classes of a label file's values.
    """
    if map_dir is None:
        return RegionWiseMapd(
            "label", kind, num_classes, spacing=spacing, map_options=map_options, postfix="map"
        )
    return LoadMapd(
        "label",
        map_dir,
        label_dir,
        kind,
        num_classes,
        spacing=spacing,
        map_options=map_options,
        label_values=label_values,
        threshold=threshold,
        pattern=pattern,
        postfix="map",
    )


def slice_samples(
    keys: Sequence[str], patch_size: Sequence[int], num_samples: int
) -> list[Transform]:
    """Random slices of volumes, each cut to the patch, as 2D images.

    Args:
        keys: keys of volumes ``(C, H, W, D)``, at least as large as the patch.
        patch_size: along the two first axes, in voxels.
        num_samples: slices from each volume.
    """
    return [
        RandSpatialCropSamplesd(
            keys, roi_size=[*patch_size, 1], num_samples=num_samples, random_size=False
        ),
        SqueezeDimd(keys, dim=-1),
    ]


def packed(target_keys: Sequence[str], keys: Sequence[str] = PAIR) -> list[Transform]:
    """Label and map in one tensor, ``keys[1]``, so that they move together from here on."""
    return [ConcatItemsd(target_keys, name=keys[1]), SelectItemsd(keys)]


def augmentation(keys: Sequence[str] = PAIR) -> list[Transform]:
    """Flips, rotation, scaling and translation of both; noise, blur and contrast of the image.

    Args:
        keys: of a 2D image and its target, which moves by nearest neighbour.
    """
    image = keys[0]
    return [
        RandFlipd(keys, prob=0.5, spatial_axis=0),
        RandFlipd(keys, prob=0.5, spatial_axis=1),
        RandAffined(
            keys,
            prob=0.5,
            rotate_range=0.78,
            scale_range=0.25,
            translate_range=16,
            mode=["bilinear", "nearest"],
            padding_mode="zeros",
        ),
        RandGaussianNoised(image, prob=0.15, std=0.1),
        RandGaussianSmoothd(image, prob=0.15, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0)),
        RandScaleIntensityd(image, prob=0.3, factors=0.25),
        RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5)),
    ]


def on_label_grid(preprocessing: Compose, num_classes: int) -> Compose:
    """For evaluation: class scores back on the image's own grid, both one-hot.

    Args:
        preprocessing: what the image went through; the label was left on its own grid.
        num_classes: C of ``pred`` (C, ...) and of the class index ``label`` (1, ...).
    """
    return Compose(
        [
            *_on_own_grid(preprocessing),
            AsDiscreted(("pred", "label"), argmax=[True, False], to_onehot=num_classes),
        ]
    )


def saved_labels(
    preprocessing: Compose,
    output_dir: str,
    class_names: Sequence[str],
    data_root: str = "",
    label_values: Mapping[int, int] | None = None,
    window: Sequence[float] | None = None,
) -> Compose:
    """For inference: label maps as NIfTI in each image's own geometry, and pictures of them.

    Args:
        preprocessing: what the image went through.
        output_dir: where to write.
        class_names: names of all classes, background first.
        data_root: folders below it are kept; without one, and of files that are not below it, all
            go to ``output_dir`` itself.
        label_values: value in the file -> class, as the label was read; None if they are the same.
            A class of several values is written as the first of them.
        window: the values drawn black and white; None for the image's range.
    """
    # Of several values of one class the first: of 1 and 3 in one, 1.
    to_file = {int(c): int(v) for v, c in reversed(list((label_values or {}).items()))}
    return Compose(
        [
            *_on_own_grid(preprocessing),
            AsDiscreted("pred", argmax=True),
            SaveOverlayd("pred", output_dir, class_names, data_root_dir=data_root, window=window),
            *([MapLabelValued("pred", list(to_file), list(to_file.values()))] if to_file else []),
            SaveImaged(
                "pred",
                folder_layout=BelowLayout(
                    output_dir, "pred", ".nii.gz", makedirs=True, data_root_dir=data_root
                ),
                output_ext=".nii.gz",
                output_dtype=np.uint8,
                writer="ITKWriter",
                resample=False,
            ),
        ]
    )


def saved_mask(preprocessing: Compose, output_dir: str, class_names: Sequence[str]) -> Compose:
    """For inference: one binary channel as PNG, 0 and 255, at each image's own size, and a picture.

    Args:
        preprocessing: what the image went through.
        output_dir: where to write.
        class_names: of background and the class.
    """
    return Compose(
        [
            Activationsd("pred", sigmoid=True),
            _inverted(preprocessing),
            AsDiscreted("pred", threshold=0.5),
            SaveOverlayd("pred", output_dir, class_names),
            ScaleIntensityRanged("pred", 0, 1, 0, 255),
            SaveImaged(
                "pred",
                output_dir=output_dir,
                output_postfix="pred",
                output_ext=".png",
                output_dtype=np.uint8,
                writer="PILWriter",
                resample=False,
                separate_folder=False,
            ),
        ]
    )


def _on_own_grid(preprocessing: Compose) -> list[Transform]:
    return [Activationsd("pred", softmax=True), _inverted(preprocessing)]


def _inverted(preprocessing: Compose) -> Transform:
    # Scores, not labels, are resampled.
    return Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)


# --------------------------------------------------------------------------- handlers


class TrainingHandlers:
    """What happens around the steps of a training but for validation, as one handler.

    In the order in which they rely on one another: take up a checkpoint, move the learning rate,
    move the weights of the loss, log. A ``ValidationHandler`` comes after it.

    Args:
        network, optimizer, lr_scheduler: what a checkpoint holds.
        evaluator: the validation engine, whose metrics go into the log.
        loss: the loss; if it is a sum, the weights of its terms are logged.
        loss_schedule: name of the schedule that moves these weights, None to leave them.
        ckpt_dir: folder of the checkpoint, the weights and ``training.csv``.
        resume: take up a checkpoint that is there.
        settings: what must be the same for a run to be the same.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: _LRScheduler,
        evaluator: Evaluator,
        loss: nn.Module,
        loss_schedule: str | None,
        ckpt_dir: str,
        resume: bool,
        settings: Mapping[str, Any],
    ) -> None:
        weighted = loss if isinstance(loss, WeightedSumLoss) else None
        kept = {"model": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.handlers: list[Any] = [
            Checkpointing(ckpt_dir, kept, resume=resume, settings=settings),
            LrScheduleHandler(lr_scheduler, print_lr=False),
        ]
        if weighted is not None and loss_schedule is not None:
            self.handlers.append(LossWeightSchedule(weighted, loss_schedule))
        log = os.path.join(ckpt_dir, "training.csv")
        self.handlers.append(TrainingLog(log, optimizer, evaluator, weighted))

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        for handler in self.handlers:
            handler.attach(engine)


def evaluation_handlers(
    network: nn.Module,
    ckpt_path: str,
    device: torch.device | str,
    output_dir: str,
    class_names: Sequence[str],
    training_log: str,
    figure_case: int | Literal["none"] | None,
) -> list[Any]:
    """Load the weights; leave a table, files and a figure, but for the case None or "none"."""
    if figure_case == "none":  # MONAI's command line drops an override that is None.
        figure_case = None
    # MONAI's surface metrics call its own get_mask_edges in the old way, three lines a case.
    warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
    return [
        _loader(network, ckpt_path, device),
        EvaluationReport(output_dir, class_names, training_log, figure_case),
    ]


def inference_handlers(network: nn.Module, ckpt_path: str, device: torch.device | str) -> list[Any]:
    """Load the weights; tell every image."""
    stats = StatsHandler(iteration_log=True, epoch_log=False, output_transform=_nothing)
    return [_loader(network, ckpt_path, device), stats]


def _loader(network: nn.Module, path: str, device: torch.device | str) -> CheckpointLoader:
    place: Any = torch.device(device)  # MONAI's hint knows dictionaries only
    return CheckpointLoader(path, {"model": network}, map_location=place)


def _nothing(output: Any) -> None:
    return None


# --------------------------------------------------------------------------- several processes


def join_processes() -> None:
    """Join the processes that torchrun started: NCCL where there are GPUs, else Gloo."""
    if not torch.distributed.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(local_device())
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    if idist.get_rank() > 0:
        # One voice is enough.
        logging.getLogger().setLevel(logging.WARNING)


def local_device() -> torch.device:
    """This process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def own_seed(seed: int) -> int:
    """A seed for each process: with one for all, each would draw the same crops."""
    return seed + 100_003 * idist.get_rank()


def own_share(data: Sequence[Any], even: bool) -> list[Any]:
    """This process's items, every n-th of them.

    Args:
        data: the same for all processes.
        even: repeat items so that all processes have as many, as training needs.

    Raises:
        ValueError: if there are fewer items than processes.
    """
    count = idist.get_world_size()
    if len(data) < count:
        raise ValueError(f"data: expected an item for each of {count} processes, got {len(data)}")
    shares = partition_dataset(list(data), num_partitions=count, even_divisible=even)
    return list(shares[idist.get_rank()])
