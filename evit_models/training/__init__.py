"""Training that finishes: configuration, loop, checkpoints, evaluation.

Read in this order: config.py (what a run is), loop.py (what happens), then what it calls:
sampler.py, schedule.py, optimizer.py, objective.py, ema.py, networks.py; run.py, checkpointing.py
and logging.py (the disk); evaluation.py and metrics.py; distributed.py.
"""

from evit_models.training.config import PRESETS, TrainConfig, load_config
from evit_models.training.distributed import Ranks, ranks
from evit_models.training.errors import ConfigError, TrainingError
from evit_models.training.evaluation import Evaluation, evaluate
from evit_models.training.loop import Trainer

__all__ = [
    "PRESETS",
    "ConfigError",
    "Evaluation",
    "Ranks",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "evaluate",
    "load_config",
    "ranks",
]
