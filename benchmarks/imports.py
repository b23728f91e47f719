"""What `import lightning_edgesplit` adds to `import lightning`, and how soon `edgesplit plan --help` answers.

Each value is of fresh interpreters, which are run in turn. What an import adds is timed within one interpreter, between
the end of `import lightning` and its own, so that the seconds of that are no noise in it; the first run of each kind,
which may have to compile and to read from the disk, is not counted.

    python -m benchmarks.imports [--pairs 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial

from rich.table import Table

from benchmarks.common import cell, interleaved, publish, spread

ADDED = """
import json, time
began = time.perf_counter()
import lightning
between = time.perf_counter()
{statement}
print(json.dumps([between - began, time.perf_counter() - between]))
"""

PLAN = """
import json, sys
from lightning_edgesplit.cli import main
try:
    main(["plan", "--help"])
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps("torch" in sys.modules))
"""


def last_line(code: str):
    """What an interpreter prints last, as JSON."""
    ran = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def seconds(*arguments: str) -> float:
    """Wall time of an interpreter with these arguments."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    sides = {
        "package": partial(last_line, ADDED.format(statement="import lightning_edgesplit")),
        "strategy": partial(last_line, ADDED.format(statement="from lightning_edgesplit import EdgeSplitStrategy")),
        "plan --help": partial(seconds, "-m", "lightning_edgesplit.cli", "plan", "--help"),
        "python": partial(seconds, "-c", "pass"),
    }
    for side in sides.values():
        side()
    times = interleaved(options.pairs, sides)
    lightning = [own[0] for own in (*times["package"], *times["strategy"])]
    added = {name: [own[1] for own in times[name]] for name in ("package", "strategy")}
    torch = last_line(PLAN)
    table = Table("what", "seconds: median (spread)", title="imports, fresh interpreters")
    for what, own in (
        ("import lightning", lightning),
        ("import lightning_edgesplit, after that", added["package"]),
        ("from lightning_edgesplit import EdgeSplitStrategy, after that", added["strategy"]),
        ("edgesplit plan --help, all of it", times["plan --help"]),
        ("an interpreter that does nothing", times["python"]),
    ):
        table.add_row(what, cell(own))
    table.add_row("edgesplit plan --help imports torch", "yes" if torch else "no")
    figures = {
        "import_adds_s": statistics.median(added["package"]),
        "strategy_adds_s": statistics.median(added["strategy"]),
        "plan_help_s": statistics.median(times["plan --help"]),
        "plan_help_imports_torch": torch,
        "lightning_s": statistics.median(lightning),
        "python_s": statistics.median(times["python"]),
        "spread": {
            "import_adds_s": spread(added["package"]),
            "strategy_adds_s": spread(added["strategy"]),
            "plan_help_s": spread(times["plan --help"]),
        },
    }
    publish(figures, table, width=110)


if __name__ == "__main__":
    main()
