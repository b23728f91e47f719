"""The figures of docs/performance.md: which script measures each, where it stands in its JSON, and what the goal is.

A figure is added or a goal is changed here alone; `run_all` and `report` go by these two lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Script:
    """A module of `benchmarks` that measures, and what it is started with.

    Attributes:
        name: Of the module; its results are in ``results/<name>.json``.
        arguments: Of its command line.
    """

    name: str
    arguments: tuple[str, ...] = ()


SCRIPTS = (
    Script("throughput"), Script("overhead"), Script("scaling"), Script("where"), Script("wire"), Script("shared"),
    Script("aggregate"), Script("imports"), Script("memory", ("--only", "VGG-16-BN")), Script("finding"),
    Script("scheduler", ("--clients", "10", "1000", "100000")), Script("peers"), Script("tried"),
)  # fmt: skip
"""In the order in which they are run; where time is short the last ones are missing."""


@dataclass(frozen=True)
class Figure:
    """One number (or yes or no) of the page.

    Attributes:
        script: Name of the script.
        key: Where it stands in the JSON; dots go into objects.
        says: What it is, for the page.
        form: How the number is written (`format`).
        unit: Written behind the number, its blank included.
        goal: What it should be at most, or at least, or exactly where it is yes or no; None: it has no goal.
        at_least: Whether more is better.
        why: Why the goal may be missed and what was tried; the page has it where it is missed.

    Raises:
        ValueError: If there is no such script.
    """

    script: str
    key: str
    says: str
    form: str = ".2f"
    unit: str = ""
    goal: float | bool | None = None
    at_least: bool = False
    why: str = ""

    def __post_init__(self) -> None:
        if self.script not in {script.name for script in SCRIPTS}:
            raise ValueError(f"figure {self.key!r} is of script {self.script!r}, which SCRIPTS does not have: add it.")

    def value(self, results: Mapping[str, Any]) -> float | bool | None:
        """The figure in the results of all scripts, by script; None: it was not measured."""
        found: Any = results.get(self.script)
        for key in self.key.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, (bool, int, float)) else None

    def spread(self, results: Mapping[str, Any]) -> tuple[float, float] | None:
        """Least and largest value of the runs, where the script says them.

        ``"spread"`` in the JSON is a pair for each figure by its key, or one pair for the script's ``"ratio"``.
        """
        found = (results.get(self.script) or {}).get("spread")
        if isinstance(found, Mapping):
            found = found.get(self.key)
        elif self.key != "ratio":
            found = None
        return tuple(found) if isinstance(found, (list, tuple)) and len(found) == 2 else None

    def met(self, results: Mapping[str, Any]) -> bool | None:
        """Whether the goal is met; None: there is none, or nothing was measured."""
        value = self.value(results)
        if value is None or self.goal is None:
            return None
        if isinstance(self.goal, bool):
            return value is self.goal
        return value >= self.goal if self.at_least else value <= self.goal

    def write(self, value: float | bool) -> str:
        """A value as the page has it."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:{self.form}}{self.unit}"

    def write_goal(self) -> str:
        """The goal as the page has it."""
        if self.goal is None:
            return "–"
        if isinstance(self.goal, bool):
            return self.write(self.goal)
        return f"{'≥' if self.at_least else '≤'} {self.goal:g}{self.unit}"


_OVER_PLAIN = "samples/s of 4 clients over plain Lightning, same two cores"

FIGURES = (
    Figure("throughput", "ratio_median", f"{_OVER_PLAIN}: median of four models"),
    Figure(
        "throughput", "resnet18_7x7", f"{_OVER_PLAIN}: ResNet-18, 7×7 stem", goal=1.0, at_least=True,
        why="an epoch is one round of four clients here. Where it begins, the server has nothing to do until the first"
        " smashed data are there, and where it ends, one core is left to the last client's backward pass and upload;"
        " in between two cores are shared by five processes (below: what each side does). Forked clients give way to"
        " the server, which was 1.05 times as fast; two threads for the server instead of one were 0.83 times as fast,"
        " pinned cores no faster.",
    ),
    Figure("throughput", "resnet18_3x3", f"{_OVER_PLAIN}: ResNet-18, 3×3 stem", goal=1.0, at_least=True),
    Figure("throughput", "vgg11_bn", f"{_OVER_PLAIN}: VGG-11-BN", goal=1.0, at_least=True),
    Figure("throughput", "vit_tiny", f"{_OVER_PLAIN}: ViT-tiny", goal=1.0, at_least=True),
    Figure(
        "where", "server_outside_ms",
        "server's main thread outside compute and waiting, per arrival: ResNet-18, 7×7 stem", ".2f", " ms", goal=3.0,
    ),
    Figure(
        "where", "server_outside_share_max", "the same thread: share of its step, worst of the three others", ".1%",
        goal=0.03,
    ),
    Figure("where", "plain_loop_ms", "plain Lightning's own loop around a step of ResNet-18, 7×7 stem", ".2f", " ms"),
    Figure("wire", "wire_over_payload", "bytes on the wire over payload", ".4f", goal=1.001),
    Figure(
        "wire", "over_raw_gloo_min", "rate of a link over that of bare gloo, worst size from 256 KiB",
        goal=0.8, at_least=True,
    ),
    Figure("scaling", "ratio", "wall time of a mini-batch with 64 clients in 2 processes over that with 2", goal=1.1),
    Figure(
        "shared", "ratio", "one pass of a shared server-side model over serving 8 clients of mixed cuts one by one",
        goal=1.5, at_least=True,
    ),
    Figure(
        "aggregate", "ratio", "aggregation of 100 ResNet-18s over summing them with `_foreach_add_`", goal=1.5,
        why="the sum is in double precision, so that the mean is the exact one to a rounding;"
        " that is 20 bytes of memory traffic per weight instead of 12, and a conversion. In blocks that stay"
        " in the cache it took as long; four models added at once took 0.6 of it, with six models in memory. A running"
        " mean in single precision would meet the goal, and be off by some roundings (below).",
    ),
    Figure("aggregate", "single_ratio", "tried: the same as a running mean in single precision"),
    Figure(
        "aggregate", "single_roundings", "tried: how far that is from the exact mean at worst, in roundings", ".0f"
    ),
    Figure("aggregate", "peak_models", "whole models in memory at most while aggregating", goal=3.0),
    Figure(
        "overhead", "beyond_seconds",
        "`fit` until the first smashed data of 8 forked clients, beyond plain Lightning's first step; cut proven anew",
        ".2f", " s", goal=1.0,
    ),
    Figure("overhead", "beyond_seconds_warm", "the same until the first smashed data, cut from the cache", ".2f", " s"),
    Figure("overhead", "launch_s", "first fork until all 8 clients have said hello", ".2f", " s"),
    Figure("overhead", "server_before_cut_share", "share of the server's time before the cut", ".2%"),
    Figure("imports", "import_adds_s", "`import lightning_edgesplit` after `import lightning`", ".3f", " s", goal=0.3),
    Figure("imports", "strategy_adds_s", "`from lightning_edgesplit import EdgeSplitStrategy` after it", ".3f", " s"),
    Figure("imports", "plan_help_s", "`edgesplit plan --help`, all of it", ".2f", " s"),
    Figure("imports", "plan_help_imports_torch", "whether that imports torch", goal=False),
    Figure("memory", "vgg16_shallow_over_plain", "client memory over plain Lightning, VGG-16-BN cut early, counted"),
    Figure("memory", "vgg16_shallow_peak_over_plain", "the same cut, growth of the process"),
    Figure("finding", "find_over_step_batch_32", "all cuts of ResNet-18 found and proven, in steps of batch 32", ".1f"),
    Figure("finding", "find_over_step_batch_128", "the same cuts found and proven, in steps of batch 128", ".1f"),
    Figure("finding", "cached_over_step_batch_32", "the same cuts from the cache, in steps of batch 32", ".1f"),
    Figure("scheduler", "seconds_100k", "`exact` for 100,000 clients and 20 cuts", ".3f", " s", goal=0.2),
    Figure(
        "scheduler", "over_numpy_sort", "the same plan over `np.sort` of its costs", goal=1.0,
        why="`np.sort` sorts two million numbers with AVX-512 in 0.012 s, while `exact` reads three such arrays and"
        " divides. It looks at each cut once, on two threads, in blocks that stay in the cache; what is left is the"
        " arithmetic of that one pass, and some ten sums over the clients for the secant method.",
    ),
    Figure("scheduler", "worst_gap", "`exact`: worst gap to brute force, 200 instances", ".0e"),
    Figure("peers", "flower.steady", "Flower's seconds of a round over ours", goal=1.15, at_least=True),
    Figure("peers", "flower.first_round", "Flower's seconds of the first round over ours", goal=1.5, at_least=True),
    Figure("peers", "torchslicer.steady", "torchslicer's seconds of a round over ours", goal=1.0, at_least=True),
    Figure(
        "peers", "torchslicer.first_round", "torchslicer's seconds of the first round over ours",
        goal=1.0, at_least=True,
    ),
    Figure("peers", "hivemind.steady", "hivemind's seconds of a round over ours", goal=1.0, at_least=True),
    Figure("peers", "hivemind.first_round", "hivemind's seconds of the first round over ours", goal=1.0, at_least=True),
    Figure("peers", "research_loop.steady", "a research loop's seconds of a round over ours", goal=1.0, at_least=True),
    Figure(
        "peers", "research_loop.first_round", "a research loop's seconds of the first round over ours",
        goal=1.0, at_least=True,
    ),
    *(
        Figure("tried", f"step.{model}.{way}", f"tried: a step of {says} over the same {how}, one thread")
        for model, says in (("resnet18_7x7", "ResNet-18"), ("vit_tiny", "ViT-tiny"))
        for way, how in (
            ("compiled", "with `torch.compile`"), ("fused", "with `fused` SGD"), ("foreach", "with `foreach` SGD"),
            ("channels_last", "in channels_last"), ("bf16", "under bf16 autocast"),
        )
    ),
    Figure("tried", "cores.server_on_core_0", "tried: a round over the same with the server alone on core 0"),
    Figure("tried", "cores.client_k_on_core_k", "tried: a round over the same with client k on core k mod cores"),
)  # fmt: skip
"""In the order of the page."""
