"""What a checkpoint holds beside Lightning's own, and how a run goes on from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning_edgesplit.runtime.planning import Planner
from lightning_edgesplit.runtime.rounds import Rounds
from lightning_edgesplit.runtime.timetable import Timetable
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

    def note(
        self, epoch: int, rounds: Rounds, whole: WholeModels, planner: Planner, timetable: Timetable
    ) -> dict[str, Any]:
        """Where rounds, clients and planner are: plain values and tensors."""
        position = rounds.position(epoch, whole.steps_left)
        corrections, clients = asdict(planner.corrections), whole.positions()
        for client, batches, left in zip(clients, rounds.batches, position["left"], strict=False):
            # in mid-round a client may be at work on a batch that has not been served, and comes again
            own = client["position"]
            if own is not None:
                client["position"] = {**own, "taken": min(own["taken"], batches - left)}
        own = {"clients": clients, "corrections": corrections, "elapsed": timetable.now}
        self.noted = {**position, **own}
        return self.noted

    def load(self, noted: dict[str, Any] | None) -> None:
        """Takes what a checkpoint holds; None: it is one of a plain run."""
        self._loaded = noted

    @property
    def elapsed(self) -> float:
        """Seconds of all rounds before the checkpoint that was loaded; 0 if none was."""
        return 0.0 if self._loaded is None else float(self._loaded["elapsed"])

    def ask(self) -> None:
        """Asks for the next `go_on` to do something: the optimizer's state has been loaded."""
        self._due = True

    def go_on(self, epoch: int, rounds: Rounds, whole: WholeModels, planner: Planner, timetable: Timetable) -> None:
        """Before the first round: gives clients, rounds and planner what the checkpoint holds of them, if one is due.

        Args:
            epoch: The Trainer's epoch.
            rounds: The run's rounds.
            whole: Reaches the clients.
            planner: Has corrections to take.
            timetable: What it has planned of an epoch that is under way was for the whole of it.
        """
        if not self._due:
            return
        self._due, noted, self._loaded = False, self._loaded, None
        names = [profile.name for profile in planner.clients]
        if noted is None or [client["name"] for client in noted["clients"]] != names:
            whole.restore(None, None)  # from a plain run, or one with other clients: all begin with the mean
            return
        planner.corrections = Corrections(**noted["corrections"])
        under_way = rounds.resume(noted, epoch)
        if under_way:
            timetable.forget()
        whole.restore(noted["clients"], noted["epoch"] if under_way else None)
