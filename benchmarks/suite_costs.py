"""What each cut of the suite's models costs, found and proven on the modules of the recipes.

    python -m benchmarks.suite_costs   # writes configs/suite/costs/*.json

FLOP and bytes only, no seconds: the same on every machine. The batch and local steps in a file stand for one client; a
scenario says its own.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from lightning_edgesplit.runtime.planning import costs_of
from lightning_edgesplit.scheduling import Costs
from lightning_edgesplit.splitting import find_cuts
from recipes import resnet, vgg

FOLDER = Path(__file__).parents[1] / "configs" / "suite" / "costs"
OPTIMIZER = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
MODELS = {"resnet18": lambda: resnet.network("resnet18", 10), "vgg11_bn": lambda: vgg.network("vgg11", 10)}


def main() -> None:
    warnings.filterwarnings("ignore")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, network in MODELS.items():
        torch.manual_seed(0)
        module = resnet.Classifier(network(), OPTIMIZER).train()
        optimizer = torch.optim.SGD(module.parameters(), **OPTIMIZER)
        batch = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
        costs = costs_of(find_cuts(module, batch, optimizer), batch=(32,), steps=(10,))
        path = FOLDER / f"{name}.json"
        Costs(tuple(map(_without_seconds, costs.cuts)), costs.batch, costs.steps).save(path)
        print(f"{path}: {len(costs.cuts)} cuts, {costs.cuts[0].name} to {costs.cuts[-1].name}")


def _without_seconds(cut):
    return replace(cut, client_forward_seconds=None, client_backward_seconds=None, server_seconds=None)


if __name__ == "__main__":
    main()
