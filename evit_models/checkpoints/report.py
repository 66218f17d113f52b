"""What became of every tensor when a checkpoint was loaded."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoadReport:
    """What was taken from a checkpoint, by the model's names for tensors.

    Attributes:
        path: the file.
        source: whose names it holds: "original", "timm" or "evit_models".
        variant: the model whose weights it holds.
        loaded: copied as they are, up to axes of size 1.
        inflated: made from weights that know no time.
        skipped: in the file but not taken, each with the reason; by the file's names where the
            model has none.
        missing: in the model but not taken from the file: these keep the values they had.
    """

    path: str
    source: str
    variant: str
    loaded: tuple[str, ...] = ()
    inflated: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model came from the file."""
        return not self.missing

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.variant}, keys of {self.source}: "
            f"{len(self.loaded)} tensors loaded, {len(self.inflated)} inflated, "
            f"{len(self.skipped)} skipped, {len(self.missing)} missing"
        ]
        lines += [f"  skipped {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"  missing {name}: keeps the values it had" for name in self.missing]
        return "\n".join(lines)
