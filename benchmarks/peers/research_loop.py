"""A split-learning loop as research code has it (`systems/research.py`) beside ours: the same cut, batches and cores.

Both train a server-side model per client and average whole models after each round; the weights after the first round,
ours of an untimed run with one thread on the server as the loop has, must not differ by more than 1e-4. `steady`: the
loop's seconds per round over ours, without the first; `first_round`: the same from the start of the process to the end
of the first round.

    pip install '.[recipes]'   # torchvision; no peer
    python -m benchmarks.peers.research_loop [--pairs 5] [--samples 1024]
"""

from __future__ import annotations

from typing import Any

from benchmarks.peers import measure
from benchmarks.peers.measure import System
from benchmarks.peers.work import Work

CUT = "layer2"


def compare(work: Work, pairs: int) -> dict[str, Any]:
    """Figures, and rows for a table.

    Raises:
        RuntimeError: If the two have not trained the same.
    """
    systems = {"research loop": System("research", {"cut": CUT}), "ours": System("ours", {"cuts": CUT})}
    alone = measure.with_one_thread(systems["ours"], work)
    runs = measure.interleaved(systems, work, pairs)
    theirs, ours = runs.values()
    apart = measure.check_same_weights("the loop's", theirs[0].weights, alone.weights, work)
    return {
        **measure.figures(theirs, ours),
        "cut": CUT,
        "largest_difference": apart,
        "threads": {"research loop": "1 per client on either side", "ours": f"1 per client, server {work.cores}"},
        **measure.about(work, runs),
    }  # fmt: skip


if __name__ == "__main__":
    measure.main("research_loop", __doc__, compare)
