"""What a policy is, and what policies share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import END, Costs
from lightning_edgesplit.scheduling.errors import InfeasibleError
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.bisection import solve, solve_at
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile
from lightning_edgesplit.scheduling.simulate import simulate


@runtime_checkable
class Policy(Protocol):
    """Decides cuts and shares of a round."""

    @property
    def name(self) -> str:
        """How reports call it."""
        ...

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """Plans a round.

        Args:
            costs: What each cut costs, and each client's batch and local steps.
            clients: One profile per client.
            server: The server's profile.
            corrections: What measured times taught so far.

        Raises:
            InfeasibleError: If no cut fits into a client's memory.
        """
        ...


@runtime_checkable
class ByRound(Policy, Protocol):
    """A policy that decides otherwise in every round, and the same whenever it is asked for the same round."""

    def in_round(self, epoch: int, number: int) -> Policy:
        """The policy as it decides round `number` of an epoch; a new object, so that nothing has to be remembered."""
        ...


def for_round(policy: Policy, epoch: int, number: int) -> Policy:
    """The policy as it decides that round: itself, unless it is one that decides otherwise in every round."""
    return policy.in_round(epoch, number) if isinstance(policy, ByRound) else policy


def plan_of(
    policy: str, model: LatencyModel, cuts: Sequence[int], shares: Sequence[float], iterations: Sequence[float] = ()
) -> Plan:
    """The plan with these cuts (by number) and shares, with its predicted times."""
    predicted = tuple(model.round_times(cuts, shares).tolist())
    names, (uplink, downlink) = model.names, model.rates(shares)
    return Plan(
        policy=policy,
        cuts=tuple(names[cut] for cut in cuts),
        shares=tuple(float(share) for share in shares),
        uplink=tuple(uplink),
        downlink=tuple(downlink),
        predicted=predicted,
        iterations=tuple(iterations) or (max(predicted),),
    )


def simulated(plan: Plan, model: LatencyModel) -> Plan:
    """The plan with the times of its simulated round, for policies that the latency model's formula does not describe.

    The formula gives every client 1/N of the server and lets all run side by side. It does not know turns, a
    server-side model that all share, own parts of the server's speed, or micro-batches.
    """
    ends = simulate(model, plan).ends
    return replace(plan, predicted=ends, iterations=plan.iterations or (max(ends),))


def lacking(model: LatencyModel, client: int, cut: int) -> float:
    """Bytes of memory that the client lacks for the cut; 0 if it fits."""
    limit = model.clients[client].memory
    return 0.0 if limit is None else max(0.0, model.memory(client, cut) - limit)


def cuts_for_all(policy: str, model: LatencyModel, split: bool = False) -> list[int]:
    """Numbers of the cuts that fit into the memory of every client.

    Args:
        policy: Who asks, for messages.
        model: The latency model.
        split: Whether the server has to have a part, so that `END` is none.

    Raises:
        InfeasibleError: If there is none; it names the client that lacks memory, and how much.
        ValueError: If the module has no cut at which the server has a part, and `split`.
    """
    cuts = [cut for cut, name in enumerate(model.names) if not (split and name == END)]
    if not cuts:
        raise ValueError(f"policy={policy!r} needs a cut, and the module has none: use policy='fedavg'.")
    everyone = range(len(model.clients))
    fitting = set.intersection(*(set(model.fits(client)) for client in everyone))
    if not fitting.intersection(cuts):
        least, client, cut = min(max((lacking(model, k, cut), k, cut) for k in everyone) for cut in cuts)
        raise InfeasibleError(
            f"no single cut fits into the `memory` of every client, as policy={policy!r} wants: at"
            f" {model.names[cut]!r}, the nearest, client {model.clients[client].name!r} lacks {least:.0f} bytes. Use a"
            " policy that gives each client its own cut, such as 'edgesplit'."
        )
    return [cut for cut in cuts if cut in fitting]


def check(policy: str, **values: tuple[object, float, float]) -> None:
    """Refuses a parameter of a policy that is no number, or out of range.

    Args:
        policy: Whose.
        values: Each parameter's value, the least and the most that it may be; whole numbers where both are `int`.

    Raises:
        ValueError: Naming the policy, the parameter and its range.
    """
    for option, (value, least, most) in values.items():
        whole = isinstance(least, int) and isinstance(most, int)
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not least <= value <= most:  # type: ignore[operator]  # `number` has looked
            raise ValueError(
                f"{option}={value!r} of policy={policy!r} must be {'a whole number' if whole else 'a number'} from"
                f" {least:g} to {most:g}."
            )


def equal_shares(clients: int) -> list[float]:
    """1/N each."""
    return [1 / clients] * clients


def bisect(
    model: LatencyModel, cuts: Sequence[int] | None = None, tolerance: float = 1e-9
) -> tuple[list[int], list[float]]:
    """Least time T that all clients reach with shares that sum to 1 at most; see `bisection`.

    Args:
        model: The latency model.
        cuts: Fixed cuts, one per client; None: each client's best among those that fit its memory.
        tolerance: How far T may be above the optimum, relative to it.

    Returns:
        Cuts and shares; what is left of the links is given out in proportion, so that the shares sum to 1.
    """
    terms = model.terms
    chosen, shares, _ = solve(terms, tolerance) if cuts is None else solve_at(terms, np.asarray(cuts), tolerance)
    return chosen.tolist(), shares.tolist()
