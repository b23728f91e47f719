"""Numbers in, plan out: profiles of the machines, costs of the cuts, policies, and the round simulated."""

from lightning_edgesplit.scheduling.config import load_clients
from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs, CutCost
from lightning_edgesplit.scheduling.errors import InfeasibleError
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies import (
    ASFL,
    EPSL,
    ESFL,
    POLICIES,
    ASFLCode,
    ASFLThresholds,
    ByRound,
    Channel,
    EdgeSplit,
    Exact,
    FedAvg,
    Fixed,
    Joint,
    Overlapped,
    Policy,
    PolicyLike,
    RandomCuts,
    SequentialSplit,
    Uniform,
    for_round,
    make_policy,
    with_fixed,
)
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile
from lightning_edgesplit.scheduling.simulate import simulate

__all__ = [
    "ASFL",
    "EPSL",
    "ESFL",
    "POLICIES",
    "ASFLCode",
    "ASFLThresholds",
    "ByRound",
    "Channel",
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
    "Overlapped",
    "Plan",
    "Policy",
    "PolicyLike",
    "RandomCuts",
    "SequentialSplit",
    "ServerProfile",
    "Uniform",
    "for_round",
    "load_clients",
    "make_policy",
    "simulate",
    "with_fixed",
]
