"""The command line: a module per command, each with `add` for its options and `run`.

What a command needs is imported when it runs: ``edgesplit plan`` does without torch, and answers in an instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lightning_edgesplit.cli import client, compare, cuts, plan, profile


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a wrong argument ends with status 2 and one line that says what to do."""
    parser = argparse.ArgumentParser(prog="edgesplit", description="Parallel split learning for PyTorch Lightning.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (cuts, profile, plan, compare, client):
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        parser.exit(2, f"edgesplit {options.command}: {error}\n")
