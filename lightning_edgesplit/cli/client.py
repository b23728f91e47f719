"""``edgesplit client``: a script as one client."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("client", help="run a script as one client of a server on this machine")
    parser.add_argument("number", type=int, help="which client, from 0")
    parser.add_argument("--server", required=True, help="host:port where the server listens (its EDGESPLIT_SERVER)")
    parser.add_argument("script", help="the script that the server runs too")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the script, which ends where it calls ``fit``."""
    from lightning_edgesplit.launcher import CLIENT, SERVER

    if not Path(options.script).is_file():
        raise ValueError(f"script={options.script!r}: there is no such file.")
    os.environ[CLIENT], os.environ[SERVER] = str(options.number), options.server
    sys.argv = [options.script, *options.arguments]
    sys.path.insert(0, str(Path(options.script).resolve().parent))  # as `python script.py` does
    runpy.run_path(options.script, run_name="__main__")
    raise ValueError(f"{options.script} ended without calling `fit` with an EdgeSplitStrategy: nothing was trained.")
