"""Parallel split learning on unequal edge devices, for any LightningModule."""

from lightning_edgesplit.errors import ClientFailedError, ClientLostError, EdgeSplitError, ImpossibleCutError
from lightning_edgesplit.scheduling import ClientProfile, InfeasibleError, ServerProfile
from lightning_edgesplit.strategy import EdgeSplitStrategy

__all__ = [
    "ClientFailedError",
    "ClientLostError",
    "ClientProfile",
    "EdgeSplitError",
    "EdgeSplitStrategy",
    "ImpossibleCutError",
    "InfeasibleError",
    "ServerProfile",
]
