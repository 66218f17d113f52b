"""Files that are there completely or not at all, even when the machine stops."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Writes a file under another name, flushes it to the disk, and only then renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
