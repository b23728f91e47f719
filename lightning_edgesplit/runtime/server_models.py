"""Which server-side models there are, and who is served when: what `EdgeSplitStrategy(server_model=…)` says.

`Server`, `WholeModels` and `Rounds` ask an object of one of these classes where the ways of training differ.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_edgesplit.splitting import END, Cut


@dataclass(frozen=True)
class ServerModel:
    """``"per_client"``: each client has a server-side model of its own, and all models are averaged (SplitFed-V1).

    Thapa et al. 2022 (AAAI, arXiv:2004.12088), Algorithm 1; EdgeSplit too. A round is federated averaging of whole
    models. The authors' published program differs in ways that are not copied here: it deep-copies the server-side
    model twice, makes a new Adam optimizer for every batch, so that no moments are ever used on the server, and
    averages without weights.

    Attributes:
        name: What a user calls it.
        by_turns: Whether only one client is at work at a time: each round is divided into turns.
        one: Whether all clients have one server-side model, with one optimizer state.
        together: Whether one step of the server's is a local step of all clients.
    """

    name: str = "per_client"
    by_turns: bool = False
    one: bool = False
    together: bool = False

    def state_rule(self, optimizer_state: str) -> str:
        """What `WholeModels` does with optimizer states, where the user said `optimizer_state`."""
        return optimizer_state

    def turns(self, clients: int, draw: str) -> tuple[int, ...]:
        """The order in which the clients are served, each with all of its local steps of a round.

        Args:
            clients: How many there are.
            draw: What a random order is drawn by.

        Returns:
            All clients' numbers; empty: they are served as they come, or by number within each local step.
        """
        return ()

    def check_cuts(self, policy: str, cuts: Sequence[Cut]) -> None:
        """Refuses a plan that this server-side model cannot be trained with.

        Args:
            policy: Name of the policy that made it.
            cuts: Every client's.

        Raises:
            ValueError: Naming the cuts and the way out.
        """
        if not self.one:
            return
        asked = f'server_model="{self.name}"'
        different = {cut.name: cut for cut in cuts}
        if len(different) > 1 and not self.together:
            raise ValueError(
                f"{asked} has one server-side model for all clients, and the plan of policy {policy!r} has the cuts"
                f' {", ".join(different)}: give `cuts` one name for all, or use policy="uniform".'
            )
        if END in different:
            raise ValueError(
                f'{asked} needs layers behind the cut, and the cut is "{END}": name another, or use "per_client".'
            )
        for name, cut in different.items():
            if self.together and (cut.tied or (cut.border is not None and cut.border.reads)):
                raise ValueError(
                    f"{asked} makes one step of all clients' steps, and at the cut {name!r} tied weights"
                    " or numbers that the step reads off tensors cross, which differ between clients: name another cut,"
                    ' or use server_model="splitfed-v2".'
                )


@dataclass(frozen=True)
class SplitFedV2(ServerModel):
    """``"splitfed-v2"``: one server-side model that takes a step per arrival; client-side models are averaged.

    Thapa et al. 2022 (AAAI, arXiv:2004.12088), version 2, as the authors' published program has it: in each round the
    clients are served one after the other, in random order (here drawn by the seed), each with all of its local steps;
    all begin with the same client-side model, and the mean of those is the next one. Ours, unlike that program's: the
    mean has the weights n_k / Σn; the optimizer of either side keeps its state (the program makes a new Adam for every
    batch on the server, and for every round on a client; ``optimizer_state="reset"`` makes both new for every round).
    """

    name: str = "splitfed-v2"
    one: bool = True

    def turns(self, clients: int, draw: str) -> tuple[int, ...]:
        """A random order."""
        return tuple(random.Random(draw).sample(range(clients), clients))


@dataclass(frozen=True)
class Shared(ServerModel):
    """``"shared"``: parallel split learning (PSL). One step of the server is one local step of all clients.

    The clients' smashed data a_k, [b_k, …], are concatenated; the loss of that batch of n = Σ_k b_k samples has one
    backward pass, and the server-side optimizer takes one step; each client gets the rows of the gradient that are its
    own, as they are. So where ``training_step`` returns a mean over the batch, that is Σ_k (b_k / n) L_k, and batch
    statistics behind the cut are those of all. A client that has no batch left drops out of the step. With
    ``aggregated`` φ > 0 the backward pass is EPSL's: `runtime.epsl`. Client-side models are averaged at the end of a
    round, with the weights n_k / Σn; PSL's and EPSL's papers leave them apart, and here validation, checkpoints and the
    next round have one whole model. With `round_steps=None` that is once per epoch.

    Cuts may differ between clients (ours: the papers have one). The server still makes one pass: the rows are sorted by
    depth, then by the clients' numbers; the step begins at the shallowest cut, and at each deeper one the smashed data
    of the clients with that cut are concatenated behind the rows that are in (`splitting.mixing`). So the server-side
    version of a layer w is trained, with one optimizer state, by those clients whose cut lies before it, on their rows
    alone (batch statistics too): its gradient is that of L = Σ_k (b_k / n) L_k over all n samples, for the server-side
    w. A client whose cut lies behind the layer has, for the round, a version of its own, with an optimizer state of its
    own, and gets the rows of L's gradient at its cut. Where no such client has a batch left, the server-side version
    takes no step. At the end of a round whole models are averaged,

        w ← Σ_k (n_k / Σn) w_k,  w_k: client k's own version if the layer lies before its cut, else the server-side one

    buffers included; all versions begin the next round with that. With ``optimizer_state="keep"`` their states stay
    apart.
    """

    name: str = "shared"
    one: bool = True
    together: bool = True


@dataclass(frozen=True)
class Sequential(ServerModel):
    """``"sequential"``: vanilla split learning. Clients take turns with one model, and nothing is averaged.

    Gupta & Raskar 2018 (arXiv:1810.06060), §3.2: a client trains on its batches, then hands its side of the model on to
    the next one, here by way of the server. In a round, the turns go from the first client to the last, each of
    `round_steps` local steps. The optimizer's state of both sides goes with the weights, so that the result is that of
    plain training on the clients' batches one after the other; ``optimizer_state="reset"`` forgets it after each turn,
    as do the programs published with SplitFed. A turn is a round with one client: the mean over it is its model, and
    the mean of its optimizer's state that state, bit by bit.
    """

    name: str = "sequential"
    by_turns: bool = True

    def state_rule(self, optimizer_state: str) -> str:
        """``"keep"`` lets the state go along with the weights."""
        return "average" if optimizer_state == "keep" else optimizer_state


MODELS: dict[str, type[ServerModel]] = {
    "per_client": ServerModel, "sequential": Sequential, "shared": Shared, "splitfed-v2": SplitFedV2,
}  # fmt: skip
"""By the names that users give."""


def make_server_model(name: str, optimizer_state: str, second_cut: str | None, aggregated: float) -> ServerModel:
    """The server-side model of that name.

    Args:
        name: `EdgeSplitStrategy(server_model=…)`.
        optimizer_state: `EdgeSplitStrategy(optimizer_state=…)`.
        second_cut: `EdgeSplitStrategy(second_cut=…)`.
        aggregated: `EdgeSplitStrategy(aggregated=…)`.

    Raises:
        ValueError: If there is none of that name, or if it does not go with the other options.
    """
    if name not in MODELS:
        raise ValueError(f"server_model={name!r} is unknown: use one of {', '.join(MODELS)}.")
    if name == "sequential" and optimizer_state == "average":
        raise ValueError(
            'optimizer_state="average" does not go with server_model="sequential", where nothing is averaged: use'
            ' "keep" (the state goes on with the weights) or "reset" (it is forgotten after each turn).'
        )
    if not 0 <= aggregated <= 1:
        raise ValueError(f"aggregated={aggregated!r} must be a fraction, from 0 (PSL) to 1.")
    made = MODELS[name]()
    if aggregated and not made.together:
        raise ValueError(
            f"aggregated={aggregated!r} does not go with server_model={name!r}, where no step is of all clients: use"
            ' server_model="shared", or leave it at 0.'
        )
    if made.one and second_cut is not None:
        raise ValueError(
            f"second_cut={second_cut!r} does not go with server_model={name!r}: while a step is back at its client, the"
            ' one server-side model would be changed by others. Use "per_client" or "sequential".'
        )
    return made
