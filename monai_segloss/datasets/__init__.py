"""Official dataset layouts as MONAI datalists, and generated data in the same layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from monai_segloss.datasets.acdc17 import ACDC17_LABELS, acdc17_datalist
from monai_segloss.datasets.brats18 import (
    BRATS18_LABEL_VALUES,
    BRATS18_LABELS,
    BRATS18_MODALITIES,
    brats18_datalist,
)
from monai_segloss.datasets.chest_xray import CHEST_XRAY_LABELS, chest_xray_datalist
from monai_segloss.datasets.kits19 import KITS19_LABELS, kits19_datalist
from monai_segloss.datasets.phantom import PhantomFrame, make_acdc17_phantom, phantom_heart
from monai_segloss.datasets.phantom_brats18 import (
    PhantomBrain,
    make_brats18_phantom,
    phantom_brain,
)
from monai_segloss.datasets.phantom_chest_xray import (
    PhantomChest,
    make_chest_xray_phantom,
    phantom_chest,
)
from monai_segloss.datasets.phantom_kits19 import (
    PhantomAbdomen,
    make_kits19_phantom,
    phantom_abdomen,
)

__all__ = [
    "ACDC17_LABELS",
    "BRATS18_LABELS",
    "BRATS18_LABEL_VALUES",
    "BRATS18_MODALITIES",
    "CHEST_XRAY_LABELS",
    "KITS19_LABELS",
    "PHANTOMS",
    "PhantomAbdomen",
    "PhantomBrain",
    "PhantomChest",
    "PhantomFrame",
    "acdc17_datalist",
    "brats18_datalist",
    "chest_xray_datalist",
    "kits19_datalist",
    "make_acdc17_phantom",
    "make_brats18_phantom",
    "make_chest_xray_phantom",
    "make_kits19_phantom",
    "phantom_abdomen",
    "phantom_brain",
    "phantom_chest",
    "phantom_heart",
]

PHANTOMS: Mapping[str, Callable[..., Path]] = {
    "acdc17": make_acdc17_phantom,
    "brats18": make_brats18_phantom,
    "kits19": make_kits19_phantom,
    "chest_xray": make_chest_xray_phantom,
}
"""What generates data in the layout of each bundle: (folder, number of cases, seed, ...)."""
