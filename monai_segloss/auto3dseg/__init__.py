"""Losses of the taxonomy in MONAI's Auto3DSeg, without a line of its templates edited by hand.

The public templates build their loss from a flat entry of a YAML file and call it with
(prediction, target), nothing more. :class:`Auto3DSegLoss` is what such an entry names,
:func:`patch_templates` writes it into a copy of the templates, :func:`check` tries it out.
"""

from monai_segloss.auto3dseg.checking import Checked, check
from monai_segloss.auto3dseg.command import add_commands
from monai_segloss.auto3dseg.layouts import LAYOUTS, Layout, Place, input_overrides, loss_config
from monai_segloss.auto3dseg.loss import Auto3DSegLoss
from monai_segloss.auto3dseg.patching import Algos, Maps, patch_bundles, patch_templates
from monai_segloss.auto3dseg.transform import (
    PackTargetD,
    PackTargetd,
    PackTargetDict,
    packing_transforms,
)

__all__ = [
    "LAYOUTS",
    "Algos",
    "Auto3DSegLoss",
    "Checked",
    "Layout",
    "Maps",
    "PackTargetD",
    "PackTargetDict",
    "PackTargetd",
    "Place",
    "add_commands",
    "check",
    "input_overrides",
    "loss_config",
    "packing_transforms",
    "patch_bundles",
    "patch_templates",
]
