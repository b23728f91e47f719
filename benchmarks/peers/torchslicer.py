"""TorchSlicer beside ours: one model in two parts, each in a process, on one stream of batches.

TorchSlicer has no clients with data of their own and no averaging: a coordinator sends each batch to the first of its
workers, which are the parts of one pipeline. The nearest equal work is a single client of ours, with the cut where
TorchSlicer cuts ResNet-18 in two, behind layer2; losses of the first round of untimed runs with one thread must agree
to 1e-3. It runs over its TCP transport, without micro-batches. `steady` and `first_round` as in `flower.py`:
TorchSlicer's seconds over ours.

    pip install 'torchslicer[grpc]' torchvision   # or '.[peers]'
    python -m benchmarks.peers.torchslicer [--pairs 5] [--samples 1024]
"""

from __future__ import annotations

from typing import Any

from benchmarks.peers import measure
from benchmarks.peers.measure import System
from benchmarks.peers.work import Work

CUT = "layer2"
CLOSE = 1e-3


def compare(work: Work, pairs: int) -> dict[str, Any]:
    """Figures, and rows for a table.

    Raises:
        MissingError: If TorchSlicer or what its workers need is not installed.
        RuntimeError: If the two have not trained the same.
    """
    for module in ("torchslicer", "grpc"):
        measure.require(module, "pip install 'torchslicer[grpc]'")
    systems = {
        "TorchSlicer": System("torchslicer", {}, clients=1),
        "ours, one client": System("ours", {"cuts": CUT, "optimizer_state": "keep"}, clients=1),
    }
    losses = [measure.with_one_thread(system, work).loss for system in systems.values()]
    assert None not in losses  # both say it
    runs = measure.interleaved(systems, work, pairs)
    theirs, ours = runs.values()
    print(f"mean loss of the first round: TorchSlicer's {losses[0]:.6f}, ours {losses[1]:.6f}")
    if not abs(losses[0] - losses[1]) <= CLOSE:
        raise RuntimeError(
            f"TorchSlicer's loss of the first round is {losses[0]}, ours {losses[1]}: not the same training"
        )
    return {
        **measure.figures(theirs, ours),
        "cut": CUT,
        "losses": losses,
        "threads": {"TorchSlicer": f"{work.cores} per part", "ours": f"client 1, server {work.cores}"},
        **measure.about(work, runs, "torchslicer", "grpcio"),
    }  # fmt: skip


if __name__ == "__main__":
    measure.main("torchslicer", __doc__, compare)
