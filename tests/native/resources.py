"""resources.txt: what compilers make of the kernels for GPUs, a section for each of them.

A section begins with a compiler and its version; sections are a blank line apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

TABLE = Path(__file__).resolve().parent / "resources.txt"


def settled(compiler: str, version: str, kernels: Iterable[object], *, write: bool) -> bool:
    """Writes a compiler's section, or tells whether the table says the same.

    What another version of the compiler made is not compared; that and differences are printed.
    """
    sections = dict(_sections())
    heading = f"{compiler} {version}"
    text = "\n".join([heading, *map(str, kernels)])
    kept = sections.get(compiler, "no section")
    known = kept.partition("\n")[0]
    if write:
        sections[compiler] = text
        TABLE.write_text("\n\n".join(sections[name] for name in sorted(sections)) + "\n")
    elif known != heading:
        print(f"{TABLE.name} has {known}, here is {heading}")
    elif kept != text:
        print(f"{TABLE.name} differs; see what changed with --write and git diff")
        return False
    return True


def _sections() -> Iterable[tuple[str, str]]:
    for section in TABLE.read_text().strip("\n").split("\n\n"):
        yield section.partition(" ")[0], section
