"""Which server-side models there are, and in which order clients are served: what `EdgeSplitStrategy(server_model=…)` says.

`Server`, `WholeModels` and `Rounds` ask an object of one of these classes where the ways of training differ.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerModel:
    """``"per_client"``: each client has a server-side model of its own, and all models are averaged (SplitFed-V1).

    Thapa et al. 2022 (AAAI, arXiv:2004.12088), Algorithm 1; EdgeSplit too. A round is federated averaging of whole models.
    The authors' published program differs in ways that are not copied here: it deep-copies the server-side model twice
    per batch, makes a new Adam optimizer for every batch, so that no moments are ever used on the server, and averages
    without weights.

    Attributes:
        name: What a user calls it.
        by_turns: Whether only one client is at work at a time: each round is divided into turns.
    """

    name: str = "per_client"
    by_turns: bool = False

    def state_rule(self, optimizer_state: str) -> str:
        """What `WholeModels` does with optimizer states, where the user said `optimizer_state`."""
        return optimizer_state


@dataclass(frozen=True)
class Sequential(ServerModel):
    """``"sequential"``: vanilla split learning. Clients take turns with one model, and nothing is averaged.

    Gupta & Raskar 2018 (arXiv:1810.06060), §3.2: a client trains on its batches, then hands its side of the model on to
    the next one, here by way of the server. In a round, the turns go from the first client to the last, each of
    `round_steps` local steps. The optimizer's state of both sides goes with the weights, so that the result is that of
    plain training on the clients' batches one after the other; ``optimizer_state="reset"`` forgets it after each turn,
    as do the programs published with SplitFed. A turn is a round with one client: the mean over it is its model, and the
    mean of its optimizer's state that state, bit by bit.
    """

    name: str = "sequential"
    by_turns: bool = True

    def state_rule(self, optimizer_state: str) -> str:
        """``"keep"`` lets the state go along with the weights."""
        return "average" if optimizer_state == "keep" else optimizer_state


MODELS: dict[str, type[ServerModel]] = {"per_client": ServerModel, "sequential": Sequential}
"""By the names that users give."""


def make_server_model(name: str, optimizer_state: str) -> ServerModel:
    """The server-side model of that name.

    Args:
        name: `EdgeSplitStrategy(server_model=…)`.
        optimizer_state: `EdgeSplitStrategy(optimizer_state=…)`.

    Raises:
        ValueError: If there is none of that name, or if it does not go with the other options.
    """
    if name not in MODELS:
        raise ValueError(f"server_model={name!r} is unknown: use one of {', '.join(MODELS)}.")
    if name == "sequential" and optimizer_state == "average":
        raise ValueError(
            'optimizer_state="average" does not go with server_model="sequential", where nothing is averaged: use "keep"'
            ' (the state goes on with the weights) or "reset" (it is forgotten after each turn).'
        )
    return MODELS[name]()
