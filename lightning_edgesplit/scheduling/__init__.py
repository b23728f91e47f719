"""Numbers in, plan out: profiles of the machines, costs of the cuts, policies, and the round simulated."""

from lightning_edgesplit.scheduling.config import load_clients
from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs, CutCost
from lightning_edgesplit.scheduling.errors import InfeasibleError
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies import (
    POLICIES,
    EdgeSplit,
    Exact,
    FedAvg,
    Fixed,
    Joint,
    Policy,
    Uniform,
    make_policy,
)
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile
from lightning_edgesplit.scheduling.simulate import simulate

__all__ = [
    "POLICIES",
    "ClientProfile",
    "Corrections",
    "Costs",
    "CutCost",
    "EdgeSplit",
    "Exact",
    "FedAvg",
    "Fixed",
    "InfeasibleError",
    "Joint",
    "LatencyModel",
    "Plan",
    "Policy",
    "ServerProfile",
    "Uniform",
    "load_clients",
    "make_policy",
    "simulate",
]
