"""``edgesplit cuts``: the cuts of a module."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("cuts", help="find and prove the cuts of a module, and say why the others are none")
    parser.add_argument("--module", help="LightningModule: my_package.MyModule")
    parser.add_argument("--data", help="LightningDataModule, or a function that returns a training DataLoader")
    parser.add_argument("--config", help="YAML with `model:` and `data:`, each with class_path and init_args")
    parser.add_argument("--second-cut", help="module behind which the client goes on, so that labels stay with it")
    parser.add_argument("--private", nargs="*", help="names of the batch leaves that must stay on the client")
    parser.add_argument("--cut", action="append", help="prove this module call only; may be given several times")
    parser.add_argument("--figure", help="file for a picture of cost over depth (png, pdf, svg)")
    parser.add_argument("--no-cache", action="store_true", help="prove anew, whatever an earlier run found")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Finds the cuts and prints them."""
    from rich.console import Console
    from torch.optim import Optimizer

    from lightning_edgesplit.comparing.making import made, training_loader
    from lightning_edgesplit.monitoring import cuts_rows, cuts_table, refused_table, save_cuts
    from lightning_edgesplit.splitting import default_folder, find_cuts
    from lightning_edgesplit.splitting.batch import batch_size

    config = OmegaConf.to_container(OmegaConf.load(options.config), resolve=True) if options.config else {}
    assert isinstance(config, dict)
    sys.path.insert(0, str(Path.cwd()))  # as `python script.py` in this folder would have it
    module = _made(made, options.module, config.get("model"), "module")
    batch = next(iter(training_loader(_made(made, options.data, config.get("data"), "data"))))
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


def _made(made: Any, path: str | None, config: Any, option: str) -> Any:
    """The object that a dotted path, or an entry of the configuration, describes."""
    entry = config if isinstance(config, dict) else {}
    path = path or entry.get("class_path")
    if not path or "." not in path:
        raise ValueError(f"--{option}={path!r}: give a dotted path (my_package.Name), or its class_path in --config.")
    return made(path, entry.get("init_args", {}), f"--{option}")
