"""Splits one model of the zoo and trains it beside plain Lightning."""

from __future__ import annotations

import copy
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.zoo.entry import Entry
from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.splitting import END, find_cuts

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """What was found of one model.

    Attributes:
        name: The model's.
        cuts: How many cuts were found and proven, ``end`` not counted.
        trained: At which of them it was trained.
        proven: Whether there is a cut, and training at every one of `trained` gave plain Lightning's weights.
        seconds: To find and prove all cuts.
        difference: Largest difference of the weights after training; None if it was not trained.
        why: What stood in the way.
    """

    name: str
    cuts: int
    trained: tuple[str, ...]
    proven: bool
    seconds: float
    difference: float | None
    why: str


class Batches(Dataset):
    """Ready-made batches."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return copy.deepcopy(self.batches[index])


def check(entry: Entry, steps: int = 3) -> Row:
    """Finds and proves all cuts, and trains at the first, the middle and the last."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    try:
        module = entry.module().train()
        batches = [entry.batch() for _ in range(steps)]
        begin = time.perf_counter()
        cuts = find_cuts(module, batches[0], private=entry.private, second_cut=entry.second_cut)
    except Exception as error:
        return Row(entry.name, 0, (), False, time.perf_counter() - begin, None, f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - begin
    names = [cut.name for cut in cuts if cut.name != END]
    if not names:
        why = Counter(cuts.refused.values()).most_common(1)[0][0] if cuts.refused else "no module call"
        return Row(entry.name, 0, (), False, seconds, None, why)
    chosen = tuple(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))
    expected = _trained(module, batches, "auto")
    if not all(torch.isfinite(x).all() for x in expected.values() if x.is_floating_point()):
        why = "plain Lightning's own weights are not finite"
        return Row(entry.name, len(names), chosen, False, seconds, None, why)
    worst = 0.0
    for name in chosen:
        strategy = EdgeSplitStrategy(
            clients=1, cuts=name, private=entry.private, second_cut=entry.second_cut, timeout=120
        )
        try:
            actual = _trained(module, batches, strategy)
        except Exception as error:
            return Row(entry.name, len(names), chosen, False, seconds, None, f"{name}: {type(error).__name__}: {error}")
        worst = max(worst, max(_relative(actual[key], expected[key]) for key in expected))
    why = "" if worst <= TOLERANCE else "the weights differ"
    return Row(entry.name, len(names), chosen, worst <= TOLERANCE, seconds, worst, why)


def _trained(module: L.LightningModule, batches: list[Any], strategy: Any) -> dict[str, torch.Tensor]:
    copied = copy.deepcopy(module)
    trainer = L.Trainer(
        strategy=strategy, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(1)
    trainer.fit(copied, DataLoader(Batches(batches), batch_size=None))
    return copied.state_dict()


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    if torch.equal(actual, expected):
        return 0.0
    difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-12)
    return float(difference) if torch.isfinite(difference) else float("inf")
