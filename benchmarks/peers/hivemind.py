"""lightning-hivemind: says why it cannot be measured here.

Its HivemindStrategy is no split learning: every peer trains the whole model, and peers found through a distributed hash
table average gradients whenever they have together seen `target_batch_size` samples. Version 0.1.0, of March 2023, asks
for hivemind 1.1.0 to 1.1.5, which are source distributions that need `pkg_resources` to build: setuptools no longer
has it. Beside a newer hivemind its import gets as far as the installed Lightning has the names that it takes. What the
import says is the reason in the JSON.

hivemind alone is not compared either: its peers are asynchronous, so that none does a fixed number of steps in a round,
and wait in each for others to turn up (`matchmaking_time`, 3 to 5 s on one machine by its manual): a ratio would tell
that setting, not the two engines.

    pip install hivemind && pip install --no-deps lightning-hivemind
    python -m benchmarks.peers.hivemind
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.peers import measure
from benchmarks.peers.work import Work

IMPORT = "from lightning_hivemind.strategy import HivemindStrategy"


def compare(work: Work, pairs: int) -> dict[str, Any]:
    """Never returns figures.

    Raises:
        MissingError: With the reason.
    """
    install = (
        "pip install hivemind && pip install --no-deps lightning-hivemind (its own pin of hivemind does not build)"
    )
    for module in ("hivemind", "lightning_hivemind"):
        measure.require(module, install)
    tried = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT], cwd=measure.ROOT, capture_output=True, text=True
    )
    found = measure.versions("hivemind", "lightning-hivemind")
    if tried.returncode:
        raise measure.MissingError(
            f"lightning-hivemind cannot be imported with {found}: {tried.stderr.splitlines()[-1]}"
        )
    raise measure.MissingError(
        f"lightning-hivemind can be imported with {found}, but trains whole models on asynchronous peers, which is no"
        " work of ours: see the docstring of benchmarks/peers/hivemind.py"
    )


if __name__ == "__main__":
    measure.main("hivemind", __doc__, compare)
