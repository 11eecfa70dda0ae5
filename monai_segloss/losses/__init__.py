"""Loss classes that follow MONAI's conventions, in the taxonomy's families."""

from monai_segloss.losses.base import SegmentationLoss
from monai_segloss.losses.boundary import BoundaryLoss, RegionWiseLoss
from monai_segloss.losses.deep_supervision import StackedDeepSupervisionLoss
from monai_segloss.losses.taxonomy import TAXONOMY, LossRow, get_loss_row, make_loss

__all__ = [
    "TAXONOMY",
    "BoundaryLoss",
    "LossRow",
    "RegionWiseLoss",
    "SegmentationLoss",
    "StackedDeepSupervisionLoss",
    "get_loss_row",
    "make_loss",
]
