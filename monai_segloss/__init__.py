"""Region-wise and boundary losses, and the maps they need, in MONAI's own shapes."""

__version__ = "0.1.0"
