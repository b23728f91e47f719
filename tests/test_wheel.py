from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = """
import pathlib, sys, lightning_edgesplit
home = pathlib.Path(lightning_edgesplit.__file__).parent
assert home.parent == pathlib.Path(sys.argv[1]), home
import lightning as L, torch
from torch.utils.data import DataLoader
from lightning_edgesplit.data import FashionMNISTMini
from lightning_edgesplit.scheduling import load_clients

assert len(load_clients(home / "configs" / "clients" / "eight.yaml")[0]) == 8

class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 8), torch.nn.Linear(8, 10))
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

trainer = L.Trainer(strategy="edgesplit", max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False,
                    enable_progress_bar=False)
trainer.fit(Linear(), DataLoader(FashionMNISTMini(train=True), batch_size=32))
print("trained", trainer.global_step)
"""


@pytest.mark.timeout(180)
def test_the_package_runs_from_its_wheel_outside_the_clone(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("py.typed", "data/fashion_mnist_mini.npz", "configs/resnet18.yaml", "recipes/demo.py"):
        assert f"lightning_edgesplit/{wanted}" in names
    assert any(name.endswith("licenses/lightning_edgesplit/data/LICENSE-fashion-mnist") for name in names)
    assert not any(name.startswith("tests/") for name in names)

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(site)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "trained 8" in done.stdout, done.stderr
    plan = subprocess.run(
        [sys.executable, str(site / "bin" / "edgesplit"), "--help"], env=environment, capture_output=True, text=True
    )
    assert "plan" in plan.stdout
