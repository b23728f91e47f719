"""Parallel split learning on unequal edge devices, for any LightningModule."""

from lightning_edgesplit.errors import ClientFailedError, ClientLostError, EdgeSplitError, ImpossibleCutError

__all__ = ["ClientFailedError", "ClientLostError", "EdgeSplitError", "ImpossibleCutError"]
