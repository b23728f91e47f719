"""Whole models of clients that share processes: summed up one by one, and what absent clients leave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from lightning_edgesplit.runtime import states
from lightning_edgesplit.runtime.aggregation import MeanOfModels
from lightning_edgesplit.runtime.carrying import CarryingServer
from lightning_edgesplit.runtime.inbox import Letter
from lightning_edgesplit.runtime.whole import WholeModels


class CarriedModels(WholeModels):
    """What `WholeModels` does, with no more than a few models in memory.

    In mid-round the mean is that of the clients that are done and of those that are played; others have no say yet.

    Under ``optimizer_state="reset"`` nothing is left of the optimizer's state when a client is done, so that a
    checkpoint holds none: it is what the next round begins with.
    """

    _server: CarryingServer

    def aggregate(self) -> list[Letter]:
        """See `WholeModels.aggregate`. The letters are without the models."""
        server = self._server
        server.settle()
        server.finish_round()
        self._hold(server.finished)
        if self.averages_states:
            self._mean_state = server.finished_states.result()
        return [server.letters[client] for client in sorted(server.letters)]

    def snapshot(self) -> None:
        """See `WholeModels.snapshot`."""
        letters = self._snapshots(weights=True, state=False)
        mean, _ = self._server.so_far()
        for letter in letters:
            own, _ = self._server.side_of(letter)
            mean.add(self._whole_model(letter.link, own), letter.frame.about["samples"])
        self._hold(mean)

    def gather_optimizer_state(self) -> None:
        """See `WholeModels.gather_optimizer_state`."""
        server, mean = self._server, states.MeanOfStates()
        if self._rule != "reset":
            letters = {letter.link: letter for letter in self._snapshots(weights=False, state=True)}
            if self._rule == "average":
                _, mean = server.so_far()
            else:
                letters.update(server.letters)
            for client, letter in sorted(letters.items()):
                about = letter.frame.about
                own = states.unpack(about["state"], letter.frame.tensors)
                mean.add({**server.state_behind(client), **own}, about["samples"])
        result = mean.result()
        server.optimizer.state = defaultdict(dict, {self._sides.parameters[n]: own for n, own in result.items()})

    def positions(self) -> list[dict[str, Any]]:
        """See `WholeModels.positions`. Of those that are not played it is here."""
        server = self._server
        letters = {letter.link: letter.frame for letter in self._snapshots(weights=False, state=True, position=True)}
        positions = []
        for client, seat in enumerate(self._seats):
            own: states.State = {}
            where = server.held(client)
            if client in letters:
                rest = iter(letters[client].tensors)
                own = states.unpack(letters[client].about["state"], rest)
                where = {"position": letters[client].about["position"], "tensors": list(rest)}
            state = states.copy({**server.state_behind(client), **own})
            positions.append({"name": seat.name, "epoch": seat.epoch, "state": state, **where})
        return positions

    def restore(self, positions: Sequence[dict[str, Any]] | None, epoch: int | None) -> None:
        """See `WholeModels.restore`. States are copied when their client is played."""
        server = self._server
        whole = states.read(server.optimizer.state, self._sides.parameters, self._sides.parameters)
        if self.averages_states:
            self._mean_state = whole
        for client, seat in enumerate(self._seats):
            if self._rule == "keep":
                own = whole if positions is None else positions[client]["state"]
                seat.state = defaultdict(dict, {self._sides.parameters[name]: dict(s) for name, s in own.items()})
                server.borrowed.add(client)
            if positions is not None:
                seat.epoch = self._epoch_of(positions[client], epoch)
                if positions[client]["position"] is not None:
                    server.hold(client, positions[client]["position"], positions[client]["tensors"])

    def _active(self) -> list[int]:
        return self._server.playing

    def _hold(self, mean: MeanOfModels) -> None:
        """Lets the module hold the mean; it stays as it is if nobody has trained."""
        if mean.samples:
            with torch.no_grad():
                for name, own in mean.means.items():
                    self._sides.set(name, own.result())
