"""Whole models and states on the server: the aggregate, snapshots in mid-round, and what a checkpoint needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_edgesplit.runtime import states
from lightning_edgesplit.runtime.aggregation import weighted_mean
from lightning_edgesplit.runtime.inbox import Letter
from lightning_edgesplit.runtime.server import Server
from lightning_edgesplit.runtime.wire import Frame, Kind


class WholeModels:
    """Puts together what server and clients hold of each client's model, and averages it.

    Args:
        server: Has one half of each model; its module and optimizer receive the mean.
        optimizer_state: What becomes of the optimizer's state at the end of a round: ``"keep"`` leaves it with its
            client and moves it with its parameter, ``"average"`` averages it with the weights, ``"reset"`` forgets it.
    """

    def __init__(self, server: Server, optimizer_state: str = "keep") -> None:
        self._server, self._sides, self._seats = server, server.sides, server.seats
        self._rule = optimizer_state
        self._mean_state: states.State = {}

    @property
    def fresh_state(self) -> states.State | None:
        """The optimizer state with which every client begins the next round; None: each goes on with its own."""
        return None if self._rule == "keep" else self._mean_state

    @property
    def averages_states(self) -> bool:
        """Whether clients upload their optimizer state with their weights."""
        return self._rule == "average"

    @property
    def steps_left(self) -> list[int] | None:
        """Local steps that every client has yet to take in this round; None: it has ended."""
        return [seat.steps_ahead for seat in self._seats] if self._server.in_mid_round else None

    def aggregate(self) -> list[Letter]:
        """Ends a round: the module holds the weighted mean of whole models.

        Returns:
            The last letters of the clients that took part, in the order of their numbers.
        """
        self._server.settle()
        uploads = self._letters(Kind.UPLOAD)
        if len(self._seats) == 1:
            torch.set_rng_state(uploads[0].frame.tensors[-2])
        sides = [self._server.side_of(letter) for letter in uploads]
        self._take_mean(uploads, [own for own, _ in sides])
        if self.averages_states:
            self._mean_state = self._mean_of_states(uploads, [more for _, more in sides])
        return uploads

    def snapshot(self) -> None:
        """Lets the module hold the mean of the models as they are in mid-round; the clients are not disturbed."""
        letters = self._snapshots(weights=True, state=False)
        self._take_mean(letters, [self._server.side_of(letter)[0] for letter in letters])

    def gather_optimizer_state(self) -> None:
        """Lets the Trainer's optimizer hold the weighted mean of the clients' states, as a checkpoint wants it."""
        letters = self._snapshots(weights=False, state=True)
        mean = self._mean_of_states(letters, [letter.frame.tensors for letter in letters])
        self._server.optimizer.state = defaultdict(dict, {self._sides.parameters[n]: own for n, own in mean.items()})

    def positions(self) -> list[dict[str, Any]]:
        """What every client needs to go on later as if nothing had happened: optimizer state, data, random streams.

        Exact between two rounds; in mid-round it is where the clients are.
        """
        self._server.settle()
        order = {"weights": False, "state": True, "position": True}
        for client in range(len(self._seats)):
            self._server.take_handover(client)
            self._server.send(client, Frame(Kind.SNAPSHOT, about=order))
        letters = [self._server.inbox.next(Kind.SNAPSHOT) for _ in self._seats]
        positions = []
        for letter in sorted(letters, key=lambda letter: letter.link):
            seat, about, rest = self._seats[letter.link], letter.frame.about, iter(letter.frame.tensors)
            own = states.unpack(about["state"], rest)
            behind = states.read(seat.state, self._sides.parameters, self._sides.parameters)
            copied = states.copy({**behind, **own})
            where = {"position": about["position"], "tensors": list(rest)}
            positions.append({"name": seat.name, "epoch": seat.epoch, "state": copied, "own": list(own), **where})
        if len(positions) == 1 and not self._server.in_mid_round:
            positions[0]["tensors"][0] = torch.get_rng_state()
        return positions

    def restore(self, positions: Sequence[dict[str, Any]] | None, epoch: int | None) -> None:
        """Goes on where `positions` were noted.

        Args:
            positions: What `positions` returned; None: every client takes the optimizer's state, with data from their
                beginning.
            epoch: The epoch that is under way; None: the next round begins one.
        """
        whole = states.read(self._server.optimizer.state, self._sides.parameters, self._sides.parameters)
        if self.averages_states:
            self._mean_state = whole
        for client, seat in enumerate(self._seats):
            own = states.copy(whole if positions is None else positions[client]["state"])
            seat.restore(own, self._sides.parameters, None if positions is None else positions[client].get("own"))
            if positions is not None:
                seat.epoch = self._epoch_of(positions[client], epoch)
                if len(self._seats) == 1:
                    torch.set_rng_state(positions[0]["tensors"][0])
                about = positions[client]["position"]
                if about is None:
                    continue  # it has never taken part, where several clients share a process
                self._server.send(client, Frame(Kind.RESTORE, positions[client]["tensors"], about))

    @staticmethod
    def _epoch_of(position: dict[str, Any], under_way: int | None) -> int | None:
        """The epoch that a client is in; none if the run's is over."""
        return None if under_way is None else position.get("epoch", under_way)

    def _snapshots(self, weights: bool, state: bool, position: bool = False) -> list[Letter]:
        self._server.settle()
        for client in self._active():
            about = {"weights": weights, "state": state, "position": position}
            self._server.send(client, Frame(Kind.SNAPSHOT, about=about))
        return self._letters(Kind.SNAPSHOT)

    def _active(self) -> list[int]:
        return [client for client, seat in enumerate(self._seats) if seat.active]

    def _letters(self, kind: Kind) -> list[Letter]:
        """One letter of that kind from every client that takes part, in the order of their numbers."""
        active = self._active()
        for client in active:
            self._server.take_handover(client)  # of those that have no local step yet
        letters = [self._server.inbox.next(kind) for _ in active]
        return sorted(letters, key=lambda letter: letter.link)

    def _take_mean(self, letters: Sequence[Letter], sides: Sequence[dict[str, Tensor]]) -> None:
        samples = [letter.frame.about["samples"] for letter in letters]
        if not any(samples):
            return
        models = [self._whole_model(letter.link, own) for letter, own in zip(letters, sides, strict=True)]
        with torch.no_grad():
            for name in self._sides.names:
                of_all = [model[name] for model in models]
                same = all(tensor is of_all[0] for tensor in of_all)  # the one server-side model is not rounded
                self._sides.set(name, of_all[0].clone() if same else weighted_mean(of_all, samples))

    def _whole_model(self, client: int, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """A client's model, with its own side of it as it is now."""
        seat = self._seats[client]
        return {**seat.model, **seat.buffers_before, **own}

    def _mean_of_states(self, letters: Sequence[Letter], sent: Sequence[Sequence[Tensor]]) -> states.State:
        """The mean of whole optimizer states, of which the clients have sent these tensors."""
        whole: list[states.State] = []
        for letter, tensors in zip(letters, sent, strict=True):
            seat, about = self._seats[letter.link], letter.frame.about
            own = states.read(seat.state, self._sides.parameters, self._sides.parameters)
            whole.append({**own, **states.unpack(about["state"], tensors)})
        mean = states.weighted_mean_of_states(whole, [letter.frame.about["samples"] for letter in letters])
        if self._server.kind.one:  # what no client has is not rounded
            front = {name for letter in letters for name in self._seats[letter.link].cut.client}
            behind = [name for name in self._sides.parameters if name not in front]
            mean.update(states.copy(states.read(self._seats[0].state, self._sides.parameters, behind)))
        return mean
