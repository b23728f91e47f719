"""Policies: each decides cuts and shares of a round, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_edgesplit.scheduling.policies.asfl import ASFL
from lightning_edgesplit.scheduling.policies.asfl_code import ASFLCode, ASFLThresholds
from lightning_edgesplit.scheduling.policies.base import ByRound, Policy, for_round
from lightning_edgesplit.scheduling.policies.channel import Channel
from lightning_edgesplit.scheduling.policies.edgesplit import EdgeSplit
from lightning_edgesplit.scheduling.policies.epsl import EPSL
from lightning_edgesplit.scheduling.policies.esfl import ESFL
from lightning_edgesplit.scheduling.policies.exact import Exact
from lightning_edgesplit.scheduling.policies.fedavg import FedAvg
from lightning_edgesplit.scheduling.policies.fixed import Fixed
from lightning_edgesplit.scheduling.policies.joint import Joint
from lightning_edgesplit.scheduling.policies.making import make
from lightning_edgesplit.scheduling.policies.overlapped import Overlapped, with_fixed
from lightning_edgesplit.scheduling.policies.random_cuts import RandomCuts
from lightning_edgesplit.scheduling.policies.sequential import SequentialSplit
from lightning_edgesplit.scheduling.policies.uniform import Uniform

POLICIES: dict[str, Any] = {
    "fedavg": FedAvg,
    "sequential": SequentialSplit,
    "uniform": Uniform,
    "random": RandomCuts,
    "asfl-code": ASFLCode,
    "asfl-thresholds": ASFLThresholds,
    "asfl": ASFL,
    "esfl": ESFL,
    "epsl": EPSL,
    "edgesplit": EdgeSplit,
    "exact": Exact,
    "joint": Joint,
}
"""Policies by name; `Fixed` is chosen by giving cuts, `Overlapped` by a name with ``+pipar`` behind it."""

PolicyLike = str | Mapping[str, Any] | type[Any] | Policy
"""What `make_policy` takes."""

__all__ = [
    "ASFL",
    "EPSL",
    "ESFL",
    "POLICIES",
    "ASFLCode",
    "ASFLThresholds",
    "ByRound",
    "Channel",
    "EdgeSplit",
    "Exact",
    "FedAvg",
    "Fixed",
    "Joint",
    "Overlapped",
    "Policy",
    "PolicyLike",
    "RandomCuts",
    "SequentialSplit",
    "Uniform",
    "for_round",
    "make_policy",
    "with_fixed",
]


def make_policy(policy: PolicyLike) -> Policy:
    """The policy that somebody asks for.

    Args:
        policy: A name of `POLICIES`; one with ``+pipar`` behind it, for micro-batches in flight; a dotted path to a
            class, function or object (``my_package.MyPolicy``); a mapping with such a name as ``policy`` and parameters
            beside it (``{"policy": "epsl", "phi": 0.5}``); a class; or an object with a `name` and a method `plan`.

    Raises:
        ValueError: If there is no policy of that name or path, or a parameter is unknown, missing or refused.
        TypeError: If it is nothing of the kind.
    """
    return make(policy, POLICIES)
