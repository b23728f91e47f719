"""Files that are there whole or not at all, and where the files of a comparison are."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from lightning_edgesplit.comparing.config import folder_name

FULL = "full"
"""Kind of the error that ends all runs: there is no room on the disk."""


def write(path: Path, data: str | bytes) -> None:
    """Writes a file that nobody ever sees in part: a temporary one, synced to the disk, is renamed.

    Raises:
        OSError: If it cannot be written (a full disk, say); what was there before is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp lets nobody else read
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the rename may be lost with the power
    finally:
        os.close(folder)


def run_file(output: Path, scenario: str, system: str, seed: int) -> Path:
    """Where the record of a run is."""
    return output / "runs" / folder_name(scenario) / folder_name(system) / f"{seed}.json"


def log_file(output: Path, scenario: str, system: str, seed: int) -> Path:
    """Where what a run prints goes."""
    return output / "logs" / folder_name(scenario) / folder_name(system) / f"{seed}.log"
