"""Aggregation of many ResNet-18s over the time of summing them with `torch._foreach_add_`, and its memory.

Both sides take the same models one after the other, as they come: ours by the engine's `MeanOfModels`, whose sum is in
double precision; the other adds each, weighted, to a model in single precision. Memory is the growth of the process's
peak while it aggregates, in models; the models themselves share the memory of two.

A third side is what ours could be: a running mean in single precision (`torch._foreach_lerp_`), and how far its worst
number is from the exact mean, in roundings (float32's epsilon) of the tensor's largest number; ours: half a one.

    python -m benchmarks.aggregate [--models 100] [--pairs 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.common import PAIRS, cell, interleaved, publish, quiet, ratios, spread
from benchmarks.memory import memory as resident
from benchmarks.models import MODELS
from lightning_edgesplit import memory
from lightning_edgesplit.runtime.aggregation import MeanOfModels

SAMPLES = [500 + 10 * k for k in range(1000)]


def two_models() -> list[dict[str, Tensor]]:
    return [dict(MODELS["resnet18_3x3"].make().state_dict()) for _ in range(2)]


def ours(models: list[dict[str, Tensor]], count: int) -> None:
    mean = MeanOfModels(models[0])
    for k in range(count):
        mean.add(models[k % 2], SAMPLES[k])
    for own in mean.means.values():
        own.result()


def bare(models: list[dict[str, Tensor]], count: int) -> None:
    names = [name for name, tensor in models[0].items() if tensor.is_floating_point()]
    total = [torch.zeros_like(models[0][name]) for name in names]
    for k in range(count):
        torch._foreach_add_(total, [models[k % 2][name] for name in names], alpha=SAMPLES[k])
    torch._foreach_div_(total, float(sum(SAMPLES[:count])))


def single(models: list[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    names = [name for name, tensor in models[0].items() if tensor.is_floating_point()]
    mean, weight = [models[0][name].clone() for name in names], SAMPLES[0]
    for k in range(1, count):
        weight += SAMPLES[k]
        torch._foreach_lerp_(mean, [models[k % 2][name] for name in names], SAMPLES[k] / weight)
    return dict(zip(names, mean, strict=True))


def roundings(models: list[dict[str, Tensor]], count: int) -> float:
    """Largest distance of `single` from the exact mean, over the tensor's largest number and float32's epsilon."""
    worst, total = 0.0, float(sum(SAMPLES[:count]))
    shares = [sum(SAMPLES[k:count:2]) / total for k in range(2)]
    for name, found in single(models, count).items():
        exact = sum(share * model[name].double() for share, model in zip(shares, models, strict=True))
        worst = max(worst, float((found - exact).abs().max() / exact.abs().max().clamp_min(1e-30)))
    return worst / torch.finfo(torch.float32).eps


def models_at_peak(count: int) -> float:
    """Growth of a fresh process's peak while it aggregates, in models."""
    code = f"from benchmarks.aggregate import measure_peak; measure_peak({count})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure_peak(count: int) -> None:
    quiet(1)
    models = two_models()
    before = resident("VmHWM")
    ours(models, count)
    print((resident("VmHWM") - before) / sum(x.nbytes for x in models[0].values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    quiet(1)
    memory.keep_freed()  # as runs do
    models = two_models()

    def timed(side: Callable[[list[dict[str, Tensor]], int], object]) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            side(models, options.models)
            return time.perf_counter() - began

        return run

    found = interleaved(options.pairs, {"ours": timed(ours), "_foreach_add_": timed(bare), "single": timed(single)})
    over, models_more = ratios(found["ours"], found["_foreach_add_"]), models_at_peak(options.models)
    single_over, error = ratios(found["single"], found["_foreach_add_"]), roundings(models, options.models)
    table = Table(title=f"{options.models} ResNet-18s, one thread, {options.pairs} pairs: median (least to most)")
    for column in ("ours, s", "_foreach_add_, s", "ratio", "peak memory, models", "single: ratio", "off, roundings"):
        table.add_column(column, justify="right")
    table.add_row(
        cell(found["ours"]), cell(found["_foreach_add_"]), cell(over), f"{models_more:.2f}", cell(single_over),
        f"{error:.0f}",
    )  # fmt: skip
    figures = {
        "ratio": statistics.median(over), "peak_models": models_more, "single_ratio": statistics.median(single_over),
        "single_roundings": error, "spread": {"ratio": spread(over), "single_ratio": spread(single_over)},
    }  # fmt: skip
    publish(figures, table, width=120)


if __name__ == "__main__":
    main()
