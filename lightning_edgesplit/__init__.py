"""Parallel split learning on unequal edge devices, for any LightningModule."""

from typing import TYPE_CHECKING

from lightning_edgesplit import lazily

if TYPE_CHECKING:
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

__getattr__ = lazily.attributes(
    __name__,
    {
        **dict.fromkeys(("ClientFailedError", "ClientLostError", "EdgeSplitError", "ImpossibleCutError"), "errors"),
        **dict.fromkeys(("ClientProfile", "InfeasibleError", "ServerProfile"), "scheduling"),
        "EdgeSplitStrategy": "strategy",
    },
)


def _register() -> None:
    """Makes the strategy's name known to Lightning, without importing the strategy."""
    from lightning.pytorch.strategies import StrategyRegistry

    def edgesplit() -> "EdgeSplitStrategy":
        from lightning_edgesplit.strategy import EdgeSplitStrategy

        return EdgeSplitStrategy()

    if "edgesplit" not in StrategyRegistry:
        StrategyRegistry.register("edgesplit", edgesplit, description="parallel split learning, 4 clients")


# Trainer(strategy="edgesplit") knows the name whichever of the two packages is imported first
lazily.After("lightning.pytorch", _register).install()
