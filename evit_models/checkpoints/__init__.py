"""Checkpoints: reading them safely, recognising whose they are, loading and saving them.

Read in this order: loading.py (what happens), keys.py (names of other projects), identify.py (whose
file is this), reading.py (bytes to tensors), saving.py, report.py.
"""

from evit_models.checkpoints.loading import build_pretrained, load_model, load_pretrained
from evit_models.checkpoints.reading import CheckpointError
from evit_models.checkpoints.report import LoadReport
from evit_models.checkpoints.saving import save_checkpoint

__all__ = [
    "CheckpointError",
    "LoadReport",
    "build_pretrained",
    "load_model",
    "load_pretrained",
    "save_checkpoint",
]
