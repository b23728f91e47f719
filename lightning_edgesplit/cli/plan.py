"""``edgesplit plan``: a round planned from costs and profiles, beside other policies. Does without torch."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_edgesplit.scheduling import (
    POLICIES,
    Costs,
    InfeasibleError,
    LatencyModel,
    Plan,
    ServerProfile,
    for_round,
    load_clients,
    make_policy,
    simulate,
)
from lightning_edgesplit.scheduling.simulate import SimulatedRound


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("plan", help="plan a round from costs and client profiles, beside the other policies")
    parser.add_argument("clients", help="YAML file with `clients:` and `server:`")
    parser.add_argument("costs", help="JSON file that `EdgeSplitStrategy.save_costs` or `Costs.save` wrote")
    parser.add_argument(
        "--policy",
        default="edgesplit",
        help=f"one of {', '.join(POLICIES)}, with +pipar behind it for micro-batches in flight; my_package.MyPolicy;"
        " or a mapping with parameters, '{policy: epsl, phi: 0.5}' (default: %(default)s)",
    )
    parser.add_argument(
        "--round", type=int, default=0, help="which round, for policies that draw (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, help="samples per local step; default: what the costs say")
    parser.add_argument("--steps", type=int, help="local steps per round; default: what the costs say")
    parser.add_argument("--figure", help="file for a picture of the planned round (png, pdf, svg)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Plans the round and prints it."""
    profiles, server = load_clients(options.clients)
    server = server or ServerProfile()
    costs = Costs.load(options.costs)
    count = len(profiles)
    batch = _for_each(options.batch, costs.batch, count, "batch")
    steps = _for_each(options.steps, costs.steps, count, "steps")
    if options.steps is None:
        costs = costs.with_batch(batch)
    else:  # so many, whatever samples there are
        costs = replace(costs, batch=batch, steps=steps, samples=(), most_steps=None)
    model = LatencyModel(costs, profiles, server)
    sys.path.insert(0, str(Path.cwd()))  # as `python script.py` in this folder would have it
    wanted = _policy(options.policy)

    def planned(policy: Any) -> Plan:
        return for_round(make_policy(policy), 0, options.round).plan(costs, profiles, server)

    plan = planned(wanted)
    simulated = simulate(model, plan)
    plan = replace(plan, predicted=simulated.ends)
    others = {}
    for name in POLICIES:
        if name != plan.policy:
            try:
                others[name] = simulate(model, planned(name)).round_time
            except InfeasibleError:
                continue  # not for these clients
    names = [profile.name for profile in profiles]
    if options.figure:
        _draw(plan, simulated, costs, names, options.figure)
    if options.json:
        print(json.dumps({**asdict(plan), "clients": names, "round_time": plan.round_time, "others": others}))
    else:
        from lightning_edgesplit.monitoring import print_plan

        print_plan(plan, names, others)
    return 0


def _policy(text: str) -> Any:
    """A name as it is, ``{policy: …, …}`` as the mapping that it writes."""
    if not text.startswith("{"):
        return text
    try:
        return OmegaConf.to_container(OmegaConf.create(text))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"--policy={text!r} is no mapping: write it as '{{policy: epsl, phi: 0.5}}'.") from error


def _draw(plan: Plan, simulated: SimulatedRound, costs: Costs, names: list[str], path: str) -> None:
    """The planned round as a timeline."""
    from lightning_edgesplit.monitoring import save_timeline
    from lightning_edgesplit.monitoring.planned import planned_report

    save_timeline(planned_report(plan, simulated, costs, names), path)


def _for_each(given: int | None, own: tuple[int, ...], count: int, option: str) -> tuple[int, ...]:
    """One number per client: the one given for all, else those of the costs."""
    if given is not None:
        if given < 1:
            raise ValueError(f"--{option}={given} must be at least 1.")
        return (given,) * count
    if len(own) != count:
        raise ValueError(f"the costs are of {len(own)} clients, there are {count}: give --{option}, for all of them.")
    return own
