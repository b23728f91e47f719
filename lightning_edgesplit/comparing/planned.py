"""The first round of every system in every scenario, before any training: what cannot be is known at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from lightning_edgesplit.comparing.config import Comparison, Made, Scenario, System
from lightning_edgesplit.comparing.making import made, training_loader
from lightning_edgesplit.comparing.orders import orders_of, strategy_of
from lightning_edgesplit.options import check_plan, dealt
from lightning_edgesplit.runtime.partition import ClientLoaders, samples_of_epoch
from lightning_edgesplit.runtime.planning import Planner
from lightning_edgesplit.scheduling import Fixed, InfeasibleError, Plan, Policy, make_policy
from lightning_edgesplit.scheduling.simulate import SimulatedRound
from lightning_edgesplit.scheduling.trace import Trace
from lightning_edgesplit.splitting import Cuts, default_folder, find_cuts
from lightning_edgesplit.splitting.batch import batch_size
from lightning_edgesplit.strategy import EdgeSplitStrategy


@dataclass(frozen=True)
class Planned:
    """A system's first round in a scenario.

    Attributes:
        scenario: The scenario.
        system: The system.
        plan: What it decided.
        expected: The round, simulated.
    """

    scenario: Scenario
    system: System
    plan: Plan
    expected: SimulatedRound


def plan_all(comparison: Comparison, seed: int) -> list[Planned]:
    """Plans the first round of every pair, scenario by scenario.

    Args:
        comparison: The comparison.
        seed: Divides the data, and draws the order in which "splitfed-v2" serves.

    Raises:
        ValueError: With scenario and system, if a policy cannot plan: for memory, the message says which client lacks
            how much.
    """
    strategies = {}
    for order in orders_of(comparison):
        try:
            strategies[order.scenario, order.system] = strategy_of(order)  # refuses what does not go together
        except (ValueError, TypeError) as error:
            raise ValueError(f"scenario {order.scenario!r}, system {order.system!r}: {error}") from error
    cuts: dict[str, Cuts] = {}
    planned = []
    for scenario in comparison.scenarios:
        loaders = _loaders(scenario, seed)
        for system in comparison.systems:
            options = {**comparison.strategy, **system.options}
            key = repr((scenario.model, scenario.data, options.get("private"), options.get("second_cut")))
            if key not in cuts:
                cuts[key] = _cuts(scenario.model, loaders.sample(), comparison.trainer, options)
            try:
                planned.append(
                    _plan(scenario, system, strategies[scenario.name, system.label], cuts[key], loaders, seed)
                )
            except InfeasibleError as error:
                raise ValueError(
                    f"scenario {scenario.name!r}, system {system.label!r}: {error} Nothing was trained."
                ) from error
            except (ValueError, TypeError) as error:
                raise ValueError(f"scenario {scenario.name!r}, system {system.label!r}: {error}") from error
    return planned


def _loaders(scenario: Scenario, seed: int) -> ClientLoaders:
    try:
        data = made(scenario.data.class_path, scenario.data.init_args, "data")
        if not (isinstance(data, pl.LightningDataModule) and is_overridden("val_dataloader", data)):
            raise ValueError(
                f"data={scenario.data.class_path!r} gives nothing to validate on: give a LightningDataModule with a"
                " val_dataloader, since accuracy over time is measured there."
            )
        loader = training_loader(data)
        return ClientLoaders(lambda: loader, scenario.partition, len(scenario.profiles), seed)
    except (ValueError, TypeError) as error:
        raise ValueError(f"scenario {scenario.name!r}: {error}") from error


def _cuts(model: Made, batch: Any, trainer: dict[str, Any], options: dict[str, Any]) -> Cuts:
    module = made(model.class_path, model.init_args, "model")
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module.trainer = pl.Trainer(**{**trainer, **silent, "enable_model_summary": False, "accelerator": "cpu"})
    module.configure_model()
    private, second_cut = options.get("private"), options.get("second_cut")
    private = [private] if isinstance(private, str) else private
    optimizer = _optimizer(module.configure_optimizers())
    return find_cuts(
        module.train(), batch, optimizer, private=private, second_cut=second_cut, cache=default_folder()
    )  # fmt: skip


def _optimizer(configured: Any) -> Optimizer | None:
    """The first optimizer of what `configure_optimizers` returns; only its state's size counts here."""
    if isinstance(configured, dict):
        configured = configured.get("optimizer")
    while isinstance(configured, Sequence) and configured:
        configured = configured[0]
    return configured if isinstance(configured, Optimizer) else None


def _plan(
    scenario: Scenario, system: System, strategy: EdgeSplitStrategy, cuts: Cuts, loaders: ClientLoaders, seed: int
) -> Planned:
    names = [profile.name for profile in scenario.profiles]
    extents = [loaders.extent(k) for k in range(len(names))]
    steps = [min(own["batches"], scenario.round_steps or own["batches"]) for own in extents]
    batch = [batch_size(loaders.sample())] * len(names)
    policy, samples = _policy(system, cuts, len(names)), []
    divides = dealt(policy, strategy.server_model.name)
    if divides:
        loaders.check_dealt()
        samples = [samples_of_epoch(own) for own in extents]
    planner = Planner(
        cuts, policy, scenario.profiles, scenario.server, batch, learning=False,
        trace=None if scenario.trace is None else Trace.load(scenario.trace, names),
        server_model=strategy.server_model.name, aggregated=strategy.aggregated, split=strategy.server_model.one,
        seed=seed, round_steps=scenario.round_steps, weight_compression=strategy.weight_compression,
    )  # fmt: skip
    plan, expected = planner.plan(steps, 0.0, number=1, samples=samples)
    # whether its rates change with every step, the run itself will know
    check_plan(plan, "virtual", strategy.server_model.name, strategy.second_cut, paced=False, dealt=divides)
    strategy.server_model.check_cuts(plan.policy, [cuts.find(name) for name in plan.cuts])
    return Planned(scenario, system, replace(plan, predicted=expected.ends), expected)


def _policy(system: System, cuts: Cuts, clients: int) -> Policy:
    if system.policy is not None:
        return make_policy(system.policy)
    given = system.options["cuts"]
    names = [given] * clients if isinstance(given, str) else list(given)
    if len(names) != clients:
        raise ValueError(f"cuts={given!r} names {len(names)} cuts for {clients} clients: give one, or one for each.")
    return Fixed(tuple(cuts.find(name).name for name in names))
