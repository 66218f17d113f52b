"""What ends a training run early, as types."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration, or data that does not fit it; the message names the key or the line."""


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why, and what is safe on the disk."""
