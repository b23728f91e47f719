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
        self, arrivals: int, rounds: Rounds, whole: WholeModels, planner: Planner, timetable: Timetable
    ) -> dict[str, Any]:
        """Where rounds, clients and planner are, after so many arrivals of the epoch: plain values and tensors."""
        position = rounds.position(arrivals, whole.steps_left)
        corrections, clients = asdict(planner.corrections), whole.positions()
        for client, taken in zip(clients, position["taken"], strict=False):
            # in mid-round a client may be at work on a batch that has not been served, and comes again
            own, begun = client["position"], client["epoch"] == position["epoch"]
            if own is not None:
                client["position"] = {**own, "taken": min(own["taken"], taken) if begun else None}
        for client, done in zip(clients, position.get("done", ()), strict=False):
            if client["position"] is not None:
                client["position"]["index"] = min(client["position"]["index"], done)
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

    def begin(self, rounds: Rounds, planner: Planner, timetable: Timetable) -> None:
        """Once the optimizer's state has been loaded: rounds and planner are where the checkpoint has them.

        It is before the Trainer asks for the first time how many arrivals an epoch has. The clients are not asked to go
        on until `go_on`, since random streams move until then.
        """
        self._due = True
        names = [profile.name for profile in planner.clients]
        if self._loaded is None or [client["name"] for client in self._loaded["clients"]] != names:
            self._loaded = None  # from a plain run, or one with other clients: all begin with the mean
            return
        planner.corrections = Corrections(**self._loaded["corrections"])
        if not rounds.fits(self._loaded):  # at the end of an epoch: the next one begins anew
            for client in self._loaded["clients"]:
                client["position"] = client["position"] and {**client["position"], "taken": None}
        rounds.resume(self._loaded)
        timetable.forget()  # it was for a run that begins

    def go_on(self, epoch: int, whole: WholeModels) -> None:
        """Before the first round: gives the clients what the checkpoint holds of them, if one is due.

        Args:
            epoch: The Trainer's epoch.
            whole: Reaches the clients.
        """
        if not self._due:
            return
        self._due, noted, self._loaded = False, self._loaded, None
        if noted is None:
            whole.restore(None, None)
            return
        under_way = noted["epoch"] == epoch and any(noted["left"])
        whole.restore(noted["clients"], epoch if under_way else None)
