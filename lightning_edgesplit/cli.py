"""The command line: ``edgesplit cuts``, ``edgesplit plan`` and ``edgesplit client``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch.optim import Optimizer
from yaml import YAMLError

from lightning_edgesplit.launcher import CLIENT, SERVER
from lightning_edgesplit.monitoring import cuts_rows, cuts_table, print_plan, refused_table, save_cuts
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
from lightning_edgesplit.splitting import default_folder, find_cuts
from lightning_edgesplit.splitting.batch import batch_size


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a wrong argument ends with status 2 and one line that says what to do."""
    parser = argparse.ArgumentParser(prog="edgesplit", description="Parallel split learning for PyTorch Lightning.")
    commands = parser.add_subparsers(dest="command", required=True)

    plan = commands.add_parser("plan", help="plan a round from costs and client profiles, beside the other policies")
    plan.add_argument("clients", help="YAML file with `clients:` and `server:`")
    plan.add_argument("costs", help="JSON file that `EdgeSplitStrategy.save_costs` or `Costs.save` wrote")
    plan.add_argument(
        "--policy",
        default="edgesplit",
        help=f"one of {', '.join(POLICIES)}, with +pipar behind it for micro-batches in flight; my_package.MyPolicy;"
        " or a mapping with parameters, '{policy: epsl, phi: 0.5}' (default: %(default)s)",
    )
    plan.add_argument("--round", type=int, default=0, help="which round, for policies that draw (default: %(default)s)")
    plan.add_argument("--batch", type=int, help="samples per local step; default: what the costs say")
    plan.add_argument("--steps", type=int, help="local steps per round; default: what the costs say")
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    cuts = commands.add_parser("cuts", help="find and prove the cuts of a module, and say why the others are none")
    cuts.add_argument("--module", help="LightningModule: my_package.MyModule")
    cuts.add_argument("--data", help="LightningDataModule, or a function that returns a training DataLoader")
    cuts.add_argument("--config", help="YAML with `model:` and `data:`, each with class_path and init_args")
    cuts.add_argument("--second-cut", help="module behind which the client goes on, so that labels stay with it")
    cuts.add_argument("--private", nargs="*", help="names of the batch leaves that must stay on the client")
    cuts.add_argument("--cut", action="append", help="prove this module call only; may be given several times")
    cuts.add_argument("--figure", help="file for a picture of cost over depth (png, pdf, svg)")
    cuts.add_argument("--no-cache", action="store_true", help="prove anew, whatever an earlier run found")
    cuts.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    client = commands.add_parser("client", help="run a script as one client of a server on this machine")
    client.add_argument("number", type=int, help="which client, from 0")
    client.add_argument("--server", required=True, help="host:port where the server listens (its EDGESPLIT_SERVER)")
    client.add_argument("script", help="the script that the server runs too")
    client.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")

    options = parser.parse_args(arguments)
    try:
        return {"cuts": _cuts, "plan": _plan, "client": _client}[options.command](options)
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        parser.exit(2, f"edgesplit {options.command}: {error}\n")


def _cuts(options: argparse.Namespace) -> int:
    config = OmegaConf.to_container(OmegaConf.load(options.config), resolve=True) if options.config else {}
    assert isinstance(config, dict)
    sys.path.insert(0, str(Path.cwd()))  # as `python script.py` in this folder would have it
    module = _made(options.module, config.get("model"), "module")
    data = _made(options.data, config.get("data"), "data")
    for prepare in ("prepare_data", "setup"):
        if hasattr(data, prepare):
            getattr(data, prepare)(*(["fit"] if prepare == "setup" else []))
    loader = data.train_dataloader() if hasattr(data, "train_dataloader") else data
    batch = next(iter(loader))
    if hasattr(module, "configure_model"):
        module.configure_model()
    optimizer = module.configure_optimizers() if hasattr(module, "configure_optimizers") else None
    optimizer = optimizer if isinstance(optimizer, Optimizer) else None
    folder = None if options.no_cache else default_folder()
    found = find_cuts(
        module.train(), batch, optimizer, only=options.cut, private=options.private, second_cut=options.second_cut,
        cache=folder,
    )  # fmt: skip
    size = batch_size(batch)
    if options.figure:
        save_cuts(found, size, options.figure)
    if options.json:
        print(
            json.dumps(
                {"batch": size, "cuts": cuts_rows(found, size), "refused": found.refused, "cached": found.cached}
            )
        )
    else:
        console = Console()
        console.print(cuts_table(found, size))
        if found.refused:
            console.print(refused_table(found))
        console.print(f"{'from the cache,' if found.cached else 'found and proven in'} {found.seconds:.1f} s")
    return 0


def _made(path: str | None, config: Any, option: str) -> Any:
    """The object that a dotted path, or an entry of the configuration, describes."""
    entry = config if isinstance(config, dict) else {}
    path = path or entry.get("class_path")
    if not path or "." not in path:
        raise ValueError(f"--{option}={path!r}: give a dotted path (my_package.Name), or its class_path in --config.")
    package, _, name = path.rpartition(".")
    made = getattr(importlib.import_module(package), name, None)
    if made is None:
        raise ValueError(f"--{option}={path!r}: {package} has no {name}.")
    return made(**entry.get("init_args", {}))


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
    sys.path.insert(0, str(Path.cwd()))  # as `python script.py` in this folder would have it
    wanted = _policy(options.policy)

    def planned(policy: Any) -> Plan:
        return for_round(make_policy(policy), 0, options.round).plan(costs, profiles, server)

    plan = planned(wanted)
    plan = replace(plan, predicted=simulate(model, plan).ends)
    others = {}
    for name in POLICIES:
        if name != plan.policy:
            try:
                others[name] = simulate(model, planned(name)).round_time
            except InfeasibleError:
                continue  # not for these clients
    if options.json:
        names = [profile.name for profile in profiles]
        print(json.dumps({**asdict(plan), "clients": names, "round_time": plan.round_time, "others": others}))
    else:
        print_plan(plan, [profile.name for profile in profiles], others)
    return 0


def _policy(text: str) -> Any:
    """A name as it is, ``{policy: …, …}`` as the mapping that it writes."""
    if not text.startswith("{"):
        return text
    try:
        return OmegaConf.to_container(OmegaConf.create(text))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"--policy={text!r} is no mapping: write it as '{{policy: epsl, phi: 0.5}}'.") from error


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
