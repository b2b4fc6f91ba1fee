"""Personalized federated fine-tuning of CLIP, exported to ONNX and served without torch.

Importing this package is cheap: torch, open_clip and ONNX Runtime are loaded by the sub-packages
that need them, when they are needed.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
