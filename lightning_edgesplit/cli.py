"""The command line: ``edgesplit plan`` and ``edgesplit client``."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lightning_edgesplit.launcher import CLIENT, SERVER
from lightning_edgesplit.monitoring import print_plan
from lightning_edgesplit.scheduling import (
    POLICIES,
    Costs,
    InfeasibleError,
    LatencyModel,
    ServerProfile,
    load_clients,
    make_policy,
    simulate,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a wrong argument ends with status 2 and one line that says what to do."""
    parser = argparse.ArgumentParser(prog="edgesplit", description="Parallel split learning for PyTorch Lightning.")
    commands = parser.add_subparsers(dest="command", required=True)

    plan = commands.add_parser("plan", help="plan a round from costs and client profiles, beside the other policies")
    plan.add_argument("clients", help="YAML file with `clients:` and `server:`")
    plan.add_argument("costs", help="JSON file that `EdgeSplitStrategy.save_costs` or `Costs.save` wrote")
    plan.add_argument("--policy", default="edgesplit", help=f"one of {', '.join(POLICIES)} (default: %(default)s)")
    plan.add_argument("--batch", type=int, help="samples per local step; default: what the costs say")
    plan.add_argument("--steps", type=int, help="local steps per round; default: what the costs say")
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    client = commands.add_parser("client", help="run a script as one client of a server on this machine")
    client.add_argument("number", type=int, help="which client, from 0")
    client.add_argument("--server", required=True, help="host:port where the server listens (its EDGESPLIT_SERVER)")
    client.add_argument("script", help="the script that the server runs too")
    client.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")

    options = parser.parse_args(arguments)
    try:
        return _plan(options) if options.command == "plan" else _client(options)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"edgesplit {options.command}: {error}\n")


def _plan(options: argparse.Namespace) -> int:
    profiles, server = load_clients(options.clients)
    server = server or ServerProfile()
    costs = Costs.load(options.costs)
    count = len(profiles)
    costs = replace(
        costs,
        batch=_for_each(options.batch, costs.batch, count, "batch"),
        steps=_for_each(options.steps, costs.steps, count, "steps"),
    )
    model = LatencyModel(costs, profiles, server)
    plan = make_policy(options.policy).plan(costs, profiles, server)
    plan = replace(plan, predicted=simulate(model, plan).ends)
    others = {}
    for name in POLICIES:
        if name != plan.policy:
            try:
                others[name] = simulate(model, make_policy(name).plan(costs, profiles, server)).round_time
            except InfeasibleError:
                continue  # not for these clients
    if options.json:
        names = [profile.name for profile in profiles]
        print(json.dumps({**asdict(plan), "clients": names, "round_time": plan.round_time, "others": others}))
    else:
        print_plan(plan, [profile.name for profile in profiles], others)
    return 0


def _for_each(given: int | None, own: tuple[int, ...], count: int, option: str) -> tuple[int, ...]:
    """One number per client: the one given for all, else those of the costs."""
    if given is not None:
        if given < 1:
            raise ValueError(f"--{option}={given} must be at least 1.")
        return (given,) * count
    if len(own) != count:
        raise ValueError(f"the costs are of {len(own)} clients, there are {count}: give --{option}, for all of them.")
    return own


def _client(options: argparse.Namespace) -> int:
    if not Path(options.script).is_file():
        raise ValueError(f"script={options.script!r}: there is no such file.")
    os.environ[CLIENT], os.environ[SERVER] = str(options.number), options.server
    sys.argv = [options.script, *options.arguments]
    sys.path.insert(0, str(Path(options.script).resolve().parent))  # as `python script.py` does
    runpy.run_path(options.script, run_name="__main__")
    raise ValueError(f"{options.script} ended without calling `fit` with an EdgeSplitStrategy: nothing was trained.")


if __name__ == "__main__":
    sys.exit(main())
