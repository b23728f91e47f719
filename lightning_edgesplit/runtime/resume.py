"""What a checkpoint holds beside Lightning's own, and how a run goes on from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning_edgesplit.runtime.planning import Planner
from lightning_edgesplit.runtime.rounds import Rounds
from lightning_edgesplit.runtime.whole import WholeModels
from lightning_edgesplit.scheduling import Corrections


class Resume:
    """Notes where a run is, and lets another one begin there.

    Attributes:
        noted: The last note; what a checkpoint that is saved after ``fit`` holds. None: there is none.
    """

    def __init__(self) -> None:
        self.noted: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None
        self._due = False

    def note(self, epoch: int, rounds: Rounds, whole: WholeModels, planner: Planner) -> dict[str, Any]:
        """Where rounds, clients and planner are: plain values and tensors."""
        position = rounds.position(epoch, whole.steps_left)
        corrections, clients = asdict(planner.corrections), whole.positions()
        for client, batches, left in zip(clients, rounds.batches, position["left"], strict=False):
            # in mid-round a client may be at work on a batch that has not been served, and comes again
            own = client["position"]
            client["position"] = {**own, "taken": min(own["taken"], batches - left)}
        self.noted = {**position, "clients": clients, "corrections": corrections}
        return self.noted

    def load(self, noted: dict[str, Any] | None) -> None:
        """Takes what a checkpoint holds; None: it is one of a plain run."""
        self._loaded = noted

    def ask(self) -> None:
        """Asks for the next `go_on` to do something: the optimizer's state has been loaded."""
        self._due = True

    def go_on(self, epoch: int, names: Sequence[str], rounds: Rounds, whole: WholeModels, planner: Planner) -> None:
        """Before the first round: gives clients, rounds and planner what the checkpoint holds of them, if one is due.

        Args:
            epoch: The Trainer's epoch.
            names: Names of the clients.
            rounds: The run's rounds.
            whole: Reaches the clients.
            planner: Has corrections to take.
        """
        if not self._due:
            return
        self._due, noted, self._loaded = False, self._loaded, None
        if noted is None or [client["name"] for client in noted["clients"]] != list(names):
            whole.restore(None, None)  # from a plain run, or one with other clients: all begin with the mean
            return
        planner.corrections = Corrections(**noted["corrections"])
        under_way = rounds.resume(noted, epoch)
        whole.restore(noted["clients"], noted["epoch"] if under_way else None)
