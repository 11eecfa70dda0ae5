"""Loss classes that follow MONAI's conventions, in the taxonomy's families."""

from monai_segloss.losses.base import Pair, SegmentationLoss, SingleLoss, Values
from monai_segloss.losses.boundary import (
    ActiveBoundaryLoss,
    ActiveContourLoss,
    BoundaryLoss,
    HausdorffLoss,
    NonAdjacencyLoss,
    RegionWiseLoss,
    non_adjacent_classes,
)
from monai_segloss.losses.compound import (
    ComboLoss,
    CompoundLoss,
    DiceBCELoss,
    DiceFocalLoss,
    DiceTopKLoss,
    ExpLogLoss,
    WeightedSumLoss,
)
from monai_segloss.losses.deep_supervision import StackedDeepSupervisionLoss
from monai_segloss.losses.distribution import (
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    MapCrossEntropyLoss,
    TopKLoss,
)
from monai_segloss.losses.region import (
    AsymmetricSimilarityLoss,
    FocalTverskyLoss,
    JaccardLoss,
    LovaszHingeLoss,
    LovaszSoftmaxLoss,
    PenaltyGeneralizedDiceLoss,
    SensitivitySpecificityLoss,
)
from monai_segloss.losses.taxonomy import (
    TAXONOMY,
    LossRow,
    get_loss_row,
    get_partner,
    make_loss,
    make_training_loss,
)

__all__ = [
    "TAXONOMY",
    "ActiveBoundaryLoss",
    "ActiveContourLoss",
    "AsymmetricSimilarityLoss",
    "BalancedCrossEntropyLoss",
    "BoundaryLoss",
    "ComboLoss",
    "CompoundLoss",
    "CrossEntropyLoss",
    "DiceBCELoss",
    "DiceFocalLoss",
    "DiceTopKLoss",
    "ExpLogLoss",
    "FocalTverskyLoss",
    "HausdorffLoss",
    "JaccardLoss",
    "LossRow",
    "LovaszHingeLoss",
    "LovaszSoftmaxLoss",
    "MapCrossEntropyLoss",
    "NonAdjacencyLoss",
    "Pair",
    "PenaltyGeneralizedDiceLoss",
    "RegionWiseLoss",
    "SegmentationLoss",
    "SensitivitySpecificityLoss",
    "SingleLoss",
    "StackedDeepSupervisionLoss",
    "TopKLoss",
    "Values",
    "WeightedSumLoss",
    "get_loss_row",
    "get_partner",
    "make_loss",
    "make_training_loss",
    "non_adjacent_classes",
]
