"""Policies: each decides cuts and shares of a round, behind one interface."""

from __future__ import annotations

from typing import Any

from lightning_edgesplit.scheduling.policies.base import Policy
from lightning_edgesplit.scheduling.policies.edgesplit import EdgeSplit
from lightning_edgesplit.scheduling.policies.exact import Exact
from lightning_edgesplit.scheduling.policies.fedavg import FedAvg
from lightning_edgesplit.scheduling.policies.fixed import Fixed
from lightning_edgesplit.scheduling.policies.joint import Joint
from lightning_edgesplit.scheduling.policies.uniform import Uniform

POLICIES: dict[str, Any] = {
    "fedavg": FedAvg,
    "uniform": Uniform,
    "edgesplit": EdgeSplit,
    "exact": Exact,
    "joint": Joint,
}
"""Policies by name; `Fixed` is chosen by giving cuts."""

__all__ = ["POLICIES", "EdgeSplit", "Exact", "FedAvg", "Fixed", "Joint", "Policy", "Uniform", "make_policy"]


def make_policy(policy: str | Policy) -> Policy:
    """The policy of that name, or the object itself.

    Raises:
        ValueError: If there is no policy of that name.
        TypeError: If it is neither a name nor a policy.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(
                f"policy={policy!r} is unknown: use one of {', '.join(POLICIES)}, give `cuts=`, or an object of your"
                " own with a `name` and a method `plan`."
            )
        made: Policy = POLICIES[policy]()
        return made
    if not isinstance(policy, Policy):
        raise TypeError(f"policy={policy!r} must be one of {', '.join(POLICIES)}, or an object with `name` and `plan`.")
    return policy
