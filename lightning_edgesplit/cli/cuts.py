"""``edgesplit cuts``: the cuts of a module."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lightning_edgesplit.cli import asked


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("cuts", help="find and prove the cuts of a module, and say why the others are none")
    asked.add_options(parser)
    parser.add_argument("--figure", help="file for a picture of cost over depth (png, pdf, svg)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Finds the cuts and prints them."""
    from rich.console import Console

    from lightning_edgesplit.monitoring import cuts_rows, cuts_table, refused_table, save_cuts
    from lightning_edgesplit.splitting.batch import batch_size

    given = asked.load(options)
    found, size = asked.find(options, given), batch_size(given.batch)
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
