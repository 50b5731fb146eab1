"""speechft: refine speech foundation models, on fused losses, augmentations and pooling."""

from __future__ import annotations

from speechft.backends import checked, use_backend
from speechft.lengths import Lengths

__version__ = "0.1.0"

__all__ = ["Lengths", "__version__", "checked", "use_backend"]
