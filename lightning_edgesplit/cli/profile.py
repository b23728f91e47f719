"""``edgesplit profile``: how fast the machine at hand is, cut by cut."""

from __future__ import annotations

import argparse
import csv
import json
from typing import Any

from lightning_edgesplit.cli import asked
from lightning_edgesplit.scheduling.costs import END, CutCost

_COLUMNS = ("cut", "client_forward_seconds", "client_backward_seconds", "server_seconds")


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "profile", help="time a module on this machine, cut by cut: run it on the device that a profile is to describe"
    )
    asked.add_options(parser)
    parser.add_argument("--output", help="CSV file for a profile's `times:`, seconds per sample")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the server's part (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps; the fastest counts (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Times every cut, prints the times and writes them for `load_layer_times`."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from lightning_edgesplit.runtime.planning import cost_of
    from lightning_edgesplit.splitting import time_cuts
    from lightning_edgesplit.splitting.batch import batch_size

    for option in ("threads", "repeats"):
        if getattr(options, option) < 1:
            raise ValueError(f"--{option}={getattr(options, option)} must be at least 1.")
    given = asked.load(options)
    found, size = asked.find(options, given), batch_size(given.batch)
    optimizer = given.optimizer or torch.optim.SGD(given.module.parameters(), lr=0.0)
    timed = time_cuts(given.module, given.batch, found, optimizer, options.threads, options.repeats)
    costs = {cut.name: cost_of(cut) for cut in timed}
    rows = {name: _seconds(cost) for name, cost in costs.items()}
    whole = costs[END]
    flops = (whole.client_forward + whole.client_backward) / sum(rows[END][:2])
    if options.output:
        with open(options.output, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows((name, *seconds) for name, seconds in rows.items())
    if options.json:
        entries = [dict(zip(_COLUMNS, (name, *seconds), strict=True)) for name, seconds in rows.items()]
        print(json.dumps({"batch": size, "threads": options.threads, "flops": flops, "cuts": entries}))
        return 0
    console = Console()
    table = Table(title=f"{type(given.module).__name__} on this machine, milliseconds per sample, batch {size}")
    table.add_column("cut")
    for header in ("client, forward", "client, backward", f"server, {options.threads} thread(s)"):
        table.add_column(header, justify="right")
    for name, seconds in rows.items():
        table.add_row(name, *(f"{1e3 * value:.3f}" for value in seconds))
    console.print(table)
    console.print(f"one thread sustains {flops / 1e9:.2f} GFLOP/s over the whole step: `flops: {flops:.3g}`")
    if options.output:
        console.print(f"written to {options.output}: a profile takes it as `times: {options.output}`")
    return 0


def _seconds(cost: CutCost) -> tuple[float, float, float]:
    """Seconds per sample of a cut that was timed: client forward and backward, server."""
    forward, backward, server = cost.client_forward_seconds, cost.client_backward_seconds, cost.server_seconds
    assert forward is not None
    assert backward is not None
    assert server is not None
    return forward, backward, server
