"""The model that ships with Factsmith: its invented world, its training and its weights."""

from importlib import resources
from pathlib import Path

__all__ = ["ASSETS"]

ASSETS = Path(str(resources.files(__name__) / "assets"))
"""The folder of the checkpoint."""
