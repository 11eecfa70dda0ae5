"""Official dataset layouts as MONAI datalists, and generated data in the same layouts."""

from __future__ import annotations

from monai_segloss.datasets.acdc17 import ACDC17_LABELS, acdc17_datalist
from monai_segloss.datasets.phantom import PhantomFrame, make_acdc17_phantom, phantom_heart

__all__ = [
    "ACDC17_LABELS",
    "PhantomFrame",
    "acdc17_datalist",
    "make_acdc17_phantom",
    "phantom_heart",
]
