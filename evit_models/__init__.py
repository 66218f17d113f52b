"""Video models on `evit_kernels`: made by name, with weights of images or clips.

from evit_models import create_model, list_models

model = create_model("efficientvit3d_b1", pretrained="efficientvit_b1_r224.pt").eval()
logits = model(clip)  # (B, 3, T, H, W) -> (B, num_classes)
"""

from evit_models.checkpoints import (
    CheckpointError,
    LoadReport,
    load_model,
    load_pretrained,
    save_checkpoint,
)
from evit_models.efficientvit3d import EfficientViT3D
from evit_models.registry import create_model, list_models, set_backend

__all__ = [
    "CheckpointError",
    "EfficientViT3D",
    "LoadReport",
    "create_model",
    "list_models",
    "load_model",
    "load_pretrained",
    "save_checkpoint",
    "set_backend",
]
