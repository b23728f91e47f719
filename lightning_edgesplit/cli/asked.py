"""What ``edgesplit cuts`` and ``edgesplit profile`` have in common: a module, a batch, an optimizer."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which module and which data."""
    parser.add_argument("--module", help="LightningModule: my_package.MyModule")
    parser.add_argument("--data", help="LightningDataModule, or a function that returns a training DataLoader")
    parser.add_argument("--config", help="YAML with `model:` and `data:`, each with class_path and init_args")
    parser.add_argument("--second-cut", help="module behind which the client goes on, so that labels stay with it")
    parser.add_argument("--private", nargs="*", help="names of the batch leaves that must stay on the client")
    parser.add_argument("--cut", action="append", help="prove this module call only; may be given several times")
    parser.add_argument("--no-cache", action="store_true", help="prove anew, whatever an earlier run found")


@dataclass(frozen=True)
class Asked:
    """What the options describe.

    Attributes:
        module: The LightningModule, in training mode.
        batch: A batch of its training data.
        optimizer: Its optimizer; None: it has none of its own.
    """

    module: Any
    batch: Any
    optimizer: Any


def load(options: argparse.Namespace) -> Asked:
    """Makes the module, and takes a batch of the data.

    Raises:
        ValueError: If a path is wrong, or one is missing.
    """
    from torch.optim import Optimizer

    from lightning_edgesplit.comparing.making import training_loader

    config = OmegaConf.to_container(OmegaConf.load(options.config), resolve=True) if options.config else {}
    assert isinstance(config, dict)
    sys.path.insert(0, str(Path.cwd()))  # as `python script.py` in this folder would have it
    module = _made(options.module, config.get("model"), "module")
    batch = next(iter(training_loader(_made(options.data, config.get("data"), "data"))))
    if hasattr(module, "configure_model"):
        module.configure_model()
    optimizer = module.configure_optimizers() if hasattr(module, "configure_optimizers") else None
    return Asked(module.train(), batch, optimizer if isinstance(optimizer, Optimizer) else None)


def find(options: argparse.Namespace, asked: Asked) -> Any:
    """The proven cuts of it (`find_cuts`)."""
    from lightning_edgesplit.splitting import default_folder, find_cuts

    return find_cuts(
        asked.module, asked.batch, asked.optimizer, only=options.cut, private=options.private,
        second_cut=options.second_cut, cache=None if options.no_cache else default_folder(),
    )  # fmt: skip


def _made(path: str | None, config: Any, option: str) -> Any:
    """The object that a dotted path, or an entry of the configuration, describes."""
    from lightning_edgesplit.comparing.making import made

    entry = config if isinstance(config, dict) else {}
    path = path or entry.get("class_path")
    if not path or "." not in path:
        raise ValueError(f"--{option}={path!r}: give a dotted path (my_package.Name), or its class_path in --config.")
    return made(path, entry.get("init_args", {}), f"--{option}")
