"""``edgesplit compare``: every system in every scenario, trained, as the table and figures of a paper."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser("compare", help="train every system in every scenario; tables and figures of a paper")
    parser.add_argument("config", help="YAML file: model, data, scenarios, systems, seeds; see docs/compare.md")
    parser.add_argument("--output", default="results", help="folder of the results (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="runs at a time (default: one per core)")
    parser.add_argument("--only-plan", action="store_true", help="plan every first round, and train nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Plans, trains what is not there yet, and writes results; 1 if a run failed, 130 after Ctrl-C."""
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"--processes={options.processes} must be at least 1.")
    sys.path.insert(0, str(Path.cwd()))  # as `python script.py` in this folder would have it

    from rich.console import Console

    from lightning_edgesplit.comparing.config import load_comparison
    from lightning_edgesplit.comparing.console import plan_entry, plans_table, progress_shown
    from lightning_edgesplit.comparing.orders import orders_of
    from lightning_edgesplit.comparing.planned import plan_all
    from lightning_edgesplit.comparing.report import write_all
    from lightning_edgesplit.comparing.results import load_results
    from lightning_edgesplit.comparing.runner import run_all
    from lightning_edgesplit.comparing.table import terminal

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # which devices there are is no news here
    console, output = Console(stderr=options.json), Path(options.output)
    comparison = load_comparison(options.config)
    orders = orders_of(comparison)
    planned = plan_all(comparison, comparison.seeds[0])
    if options.only_plan and options.json:
        print(json.dumps({"plans": [plan_entry(one) for one in planned]}))
        return 0
    console.print(plans_table(planned))
    if options.only_plan:
        return 0
    processes = options.processes or len(os.sched_getaffinity(0))
    interrupted = False
    failures = []
    try:
        with progress_shown(console) as show:
            failures = run_all(orders, output, processes, comparison.tensorboard, show)
    except KeyboardInterrupt:
        interrupted = True
    except OSError as error:
        print(f"edgesplit compare: {error}", file=sys.stderr)
        return 1
    results = load_results(orders, output, comparison.target)
    try:
        if results:
            write_all(comparison, results, output)
    except OSError as error:
        print(f"edgesplit compare: {output} cannot be written: {error}. Finished runs are kept.", file=sys.stderr)
        return 1
    if options.json:
        failed = [
            {"scenario": f.order.scenario, "system": f.order.system, "seed": f.order.seed, "error": f.error}
            for f in failures
        ]
        print(json.dumps({"results": [result.row for result in results], "failed": failed}, allow_nan=False))
    elif results:
        for table in terminal(comparison, results):
            console.print(table)
        console.print(f"tables, figures and numbers are in {output}", highlight=False)
    for failure in failures:
        order = failure.order
        print(
            f"failed: {order.scenario}, {order.system}, seed {order.seed}: {failure.error} (log: {failure.log})",
            file=sys.stderr,
        )
    if interrupted:
        print(
            f"interrupted: {len(results)} of {len(orders)} runs are kept; run the same command again.", file=sys.stderr
        )
        return 130
    return 1 if failures else 0
