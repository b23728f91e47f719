"""lightning-edgesplit, as its README says."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.peers.work import Record, Work, optimizer
from lightning_edgesplit import EdgeSplitStrategy


class Classifier(L.LightningModule):
    """The model; says when a round, which is an epoch, has ended."""

    def __init__(self, net: nn.Module, record: Record) -> None:
        super().__init__()
        self.net, self.record = net, record
        self.losses: list[Tensor] = []  # of the batches whose loss is computed here, on the server

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_start(self) -> None:
        self.losses.clear()  # finding the cuts has left some

    def on_train_epoch_end(self) -> None:
        clients = self.trainer.strategy.rounds[-1].clients
        samples, steps = (sum(getattr(client, name) for client in clients) for name in ("samples", "steps"))
        loss = torch.stack(self.losses).mean().item() if self.losses else None
        self.record.end_round(samples, steps, self.net.state_dict(), loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer(self)


def play(
    work: Work,
    record: Record,
    cuts: str | Sequence[str],
    optimizer_state: str = "reset",
    threads: int | None = None,
) -> None:
    """Trains; each client has one thread of torch, the server `threads`, else `work.cores`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(threads or work.cores)
    strategy = EdgeSplitStrategy(
        clients=work.clients,
        cuts=cuts,
        partition=[list(work.shard(client)) for client in range(work.clients)],
        optimizer_state=optimizer_state,
    )
    trainer = L.Trainer(
        strategy=strategy, max_epochs=work.rounds, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(work.model(), record), DataLoader(work.data(), batch_size=work.batch))
