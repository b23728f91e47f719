"""ResNet-18 on 2,000 Fashion-MNIST images: four clients, four cuts, one Trainer. `--plain` trains without splitting."""

from __future__ import annotations

import sys
import time

import lightning as L
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.data import FashionMNISTMini

CUTS = ["maxpool", "layer1", "layer2", "layer3"]


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
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def main() -> None:
    L.seed_everything(0)
    torch.set_num_threads(1)  # four clients and the server share the cores
    module = Classifier()
    train = DataLoader(FashionMNISTMini(train=True), batch_size=32, shuffle=True)
    test = DataLoader(FashionMNISTMini(train=False), batch_size=100)
    strategy = "auto" if "--plain" in sys.argv else EdgeSplitStrategy(clients=4, cuts=CUTS)  # the one change
    trainer = L.Trainer(strategy=strategy, max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False)
    start = time.perf_counter()
    trainer.fit(module, train, test)
    seconds = time.perf_counter() - start
    how = "plain Lightning" if strategy == "auto" else "4 clients, cuts " + ", ".join(CUTS)
    print(f"{how}: accuracy {trainer.callback_metrics['accuracy']:.1%} on 500 test images after {seconds:.0f} s")


if __name__ == "__main__":
    main()
