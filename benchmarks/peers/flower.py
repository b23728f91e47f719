"""Flower's simulation beside ours: four clients, ResNet-18, the same shards, batches, steps and cores.

Flower runs FedAvg with one core and one thread of torch for each client, as its PyTorch quickstart is written. Ours
does the same (`cuts="end"`), and the weights after the first round must not differ by more than 1e-4; and split
training at four different layers. Each run is a process of its own, in turn. `steady`: Flower's seconds per round over
ours, without the first; `first_round`: the same from the start of the process to the end of the first round.

    pip install 'flwr[simulation]'   # or '.[peers]'
    python -m benchmarks.peers.flower [--pairs 5] [--samples 1024]
"""

from __future__ import annotations

from typing import Any

from benchmarks.peers import measure
from benchmarks.peers.measure import System
from benchmarks.peers.work import Work

CUTS = ["layer1", "layer2", "layer3", "layer4"]


def compare(work: Work, pairs: int) -> dict[str, Any]:
    """Figures, and rows for a table.

    Raises:
        MissingError: If Flower is not installed.
        RuntimeError: If the two have not trained the same.
    """
    for module in ("flwr", "ray"):
        measure.require(module, "pip install 'flwr[simulation]'")
    cuts = [CUTS[client % len(CUTS)] for client in range(work.clients)]
    systems = {
        "Flower, FedAvg": System("flower", {}),
        "ours, FedAvg": System("ours", {"cuts": "end"}),
        "ours, split": System("ours", {"cuts": cuts}),
    }
    runs = measure.interleaved(systems, work, pairs)
    theirs, whole, split = runs.values()
    apart = measure.check_same_weights("Flower's", theirs[0].weights, whole[0].weights, work)
    # the split one's server has more threads, which round differently: its difference is told, not judged
    return {
        **measure.figures(theirs, whole),
        **measure.figures(theirs, split, "_split"),
        "largest_difference": apart,
        "largest_difference_split": measure.difference(theirs[0].weights, split[0].weights),
        "threads": {"Flower": "1 per client", "ours": f"1 per client, server {work.cores}"},
        **measure.about(work, runs, "flwr", "ray"),
    }  # fmt: skip


if __name__ == "__main__":
    measure.main("flower", __doc__, compare)
