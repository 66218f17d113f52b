"""What a check answers."""

from __future__ import annotations

from dataclasses import dataclass

#: From worst to best; "unchecked" says in its evidence what was not there to look at.
VERDICTS = ("broken", "warning", "ok", "unchecked")


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Args:
        name: of the failure that was looked for.
        verdict: one of `VERDICTS`.
        evidence: what was seen. advice: what to do, "" where there is nothing to do.
    """

    name: str
    verdict: str
    evidence: str
    advice: str = ""


def some(names: list[str], count: int = 3) -> str:
    """The first of some names, and how many more there are."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")
