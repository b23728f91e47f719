"""A run of one system in a process of its own; started by `measure.py`.

python -m benchmarks.peers.child SYSTEM FOLDER WORK OPTIONS   # the last two as JSON
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.peers.work import Record, Work


def main() -> None:
    system, folder, work, options = sys.argv[1:]
    record = Record()
    importlib.import_module(f"benchmarks.peers.systems.{system}").play(
        Work(**json.loads(work)), record, **json.loads(options)
    )
    record.save(Path(folder))


if __name__ == "__main__":
    main()
