"""Policies as a user would write them, found by a dotted path."""

from __future__ import annotations

from lightning_edgesplit.scheduling import Fixed


class Deep:
    """A class that knows neither rounds nor `ByRound`."""

    name = "deep"

    def __init__(self, depth: int = -1) -> None:
        self.depth = depth

    def plan(self, costs, clients, server, corrections=None):
        return Fixed((costs.cuts[self.depth].name,) * len(clients)).plan(costs, clients, server, corrections)


class Needy(Deep):
    def __init__(self, depth: int, *, width: int) -> None:
        super().__init__(depth + width)


def shallow(**anything):
    """A function that makes one."""
    return Deep(anything.get("depth", 0))


made = Deep(1)
number = 3
