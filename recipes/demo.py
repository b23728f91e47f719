"""ResNet-18 on 2,000 Fashion-MNIST images: four unequal clients on one machine, emulated on the wall clock.

python recipes/demo.py          # split; writes TensorBoard events and a picture of a round below ./demo
python recipes/demo.py --plain  # the same model and data in ordinary Lightning
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.data import FashionMNISTMini
from lightning_edgesplit.monitoring import print_round, round_line, save_timeline

CLIENTS = Path(__file__).parents[1] / "configs" / "clients" / "demo.yaml"
EPOCHS = 7


class Classifier(L.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18(num_classes=10)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        hits = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("accuracy", hits, prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


def main() -> None:
    plain = "--plain" in sys.argv
    L.seed_everything(0)
    train = DataLoader(FashionMNISTMini(train=True), batch_size=32, shuffle=True)
    test = DataLoader(FashionMNISTMini(train=False), batch_size=100)
    strategy = "auto" if plain else EdgeSplitStrategy(clients=CLIENTS, round_steps=4, clock="wall")  # the one change
    logger = TensorBoardLogger("demo", name="plain" if plain else "split")
    trainer = L.Trainer(
        strategy=strategy, max_epochs=EPOCHS, accelerator="cpu", logger=logger, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[TQDMProgressBar(refresh_rate=16)], log_every_n_steps=16,
        num_sanity_val_steps=0,
    )  # fmt: skip
    module, start = Classifier(), time.perf_counter()
    trainer.fit(module, train, test)
    seconds = time.perf_counter() - start
    if not plain:
        for report in strategy.rounds:
            print(round_line(report))
        print_round(strategy.rounds[-1])
        save_timeline(strategy.rounds[-1], f"{logger.log_dir}/round.png")
        print(f"the last round as a picture: {logger.log_dir}/round.png")
    print(f"TensorBoard: tensorboard --logdir {logger.save_dir}")
    how = "plain Lightning" if plain else "four clients"
    print(f"{how}: accuracy {trainer.callback_metrics['accuracy']:.1%} on 500 test images after {seconds:.0f} s")


if __name__ == "__main__":
    main()
