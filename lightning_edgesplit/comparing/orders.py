"""What one run is told, as plain JSON, its fingerprint, and the strategy that this makes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning_edgesplit.comparing.config import Comparison, Made, Scenario, System
from lightning_edgesplit.comparing.making import source_of
from lightning_edgesplit.scheduling import load_clients, make_policy
from lightning_edgesplit.strategy import EdgeSplitStrategy

FORMAT = 1
"""Of a run's record; records of another format are made anew."""


@dataclass(frozen=True)
class Order:
    """One run.

    Attributes:
        scenario: Name of the scenario.
        system: Label of the system.
        seed: Of weights, data and draws.
        policy: Name or mapping for `make_policy`; None: the options have `cuts`.
        options: Further arguments of `EdgeSplitStrategy`.
        world: Clients and server, for `load_clients`.
        model: The module.
        data: The data.
        partition: See `EdgeSplitStrategy`; so are
        round_steps: these,
        participation: and this.
        trace: Path of a CSV file.
        trainer: Arguments of the Trainer.
        threads: Torch threads.
        metric: The metric that the run must log.
        fingerprint: Of all the above, and of the files that they name.
    """

    scenario: str
    system: str
    seed: int
    policy: Any
    options: dict[str, Any]
    world: dict[str, Any]
    model: Made
    data: Made
    partition: Any
    round_steps: int | None
    participation: float
    trace: str | None
    trainer: dict[str, Any]
    threads: int
    metric: str
    fingerprint: str = ""

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Order:
        """What `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "model": Made(**values["model"]), "data": Made(**values["data"])})


def orders_of(comparison: Comparison) -> list[Order]:
    """All runs; a seed of every system comes before the next seed, so that a part of them can be compared already."""
    return [
        _order(comparison, scenario, system, seed)
        for scenario in comparison.scenarios
        for seed in comparison.seeds
        for system in comparison.systems
    ]


def strategy_of(order: Order) -> EdgeSplitStrategy:
    """The strategy that the run is trained with.

    Raises:
        ValueError: If it refuses an argument.
        TypeError: The same.
    """
    profiles, server = load_clients(order.world)
    chosen: Any = {} if order.policy is None else {"policy": make_policy(order.policy)}
    return EdgeSplitStrategy(
        clients=profiles, server=server, partition=order.partition, round_steps=order.round_steps,
        participation=order.participation, clock="virtual", trace=order.trace, **chosen, **order.options,
    )  # fmt: skip


def _order(comparison: Comparison, scenario: Scenario, system: System, seed: int) -> Order:
    values: dict[str, Any] = {
        "scenario": scenario.name,
        "system": system.label,
        "seed": seed,
        "policy": system.policy,
        "options": {**comparison.strategy, **system.options},
        "world": scenario.world,
        "model": scenario.model,
        "data": scenario.data,
        "partition": scenario.partition,
        "round_steps": scenario.round_steps,
        "participation": scenario.participation,
        "trace": scenario.trace,
        "trainer": comparison.trainer,
        "threads": comparison.threads,
        "metric": comparison.target.metric,
    }
    order = Order(**values)
    return Order(**values, fingerprint=_fingerprint(order))


def _fingerprint(order: Order) -> str:
    """Changes with whatever the numbers may depend on: the configuration, the files in it, code and versions."""
    content = json.loads(order.to_json())
    paths = [order.trace] if order.trace else []
    world = order.world
    for profile in [*(world.get("clients") or []), *((world.get("population") or {}).get("mixture") or [])]:
        if profile.get("times"):
            paths.append(profile["times"])
    content["files"] = [sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    content["sources"] = [source_of(order.model.class_path, "model"), source_of(order.data.class_path, "data")]
    content["versions"] = [FORMAT, *(_version(name) for name in ("torch", "lightning", "lightning-edgesplit"))]
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""  # a clone that was never installed
