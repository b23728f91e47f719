"""Runs every script of `figures.SCRIPTS`, one after the other, and writes docs/performance.md.

What a script prints as JSON is written to ``benchmarks/results/<script>.json`` as soon as it ends; what was there
before stays where it fails. A script that fails, prints no figures or is still at work when time is up does not keep
others from running: it is named at the end, and the status is 1.

    python -m benchmarks.run_all [--only throughput wire] [--minutes 30]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from threading import Timer
from typing import Any

from benchmarks import report
from benchmarks.common import about
from benchmarks.figures import SCRIPTS, Script

ROOT = Path(__file__).parents[1]


def run(command: Sequence[str], seconds: float) -> tuple[list[str], str | None]:
    """Runs a command, and shows what it prints.

    Args:
        command: The command.
        seconds: Until it and all that it started are ended.

    Returns:
        The lines that it printed, and why it failed; None: it did not.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    )
    assert process.stdout is not None
    late: list[bool] = []

    def end() -> None:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)

    def too_late() -> None:
        late.append(True)
        end()

    timer, lines = Timer(seconds, too_late), []
    timer.start()
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        process.wait()
    finally:  # after Ctrl-C too: nothing that it started is left behind
        timer.cancel()
        end()
        status = process.wait()
        process.stdout.close()
    if late:
        return lines, f"was still at work after {seconds:.0f} s"
    return lines, None if status == 0 else f"ended with status {status}"


def figures_of(lines: Sequence[str]) -> dict[str, Any] | None:
    """The JSON object that is the last line; None: it is none."""
    try:
        found = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else None


def measure(script: Script, folder: Path, seconds: float) -> str | None:
    """Runs a script and keeps its figures; returns why there are none, or why they are not all."""
    arguments = ["-m", f"benchmarks.{script.name}", *script.arguments]
    print(f"\n$ {shlex.join(['python', *arguments])}", flush=True)
    began = time.monotonic()
    lines, failure = run([sys.executable, *arguments], seconds)
    found = figures_of(lines)
    if found is None:
        return failure or "printed no figures"
    took, now = time.monotonic() - began, datetime.now(timezone.utc)
    kept = {**about(), **found, "command": shlex.join(["python", *arguments])}
    kept.update(seconds=round(took, 1), measured=f"{now:%Y-%m-%d}")
    target = folder / f"{script.name}.json"
    partly = target.with_suffix(".json.new")
    partly.write_text(json.dumps(kept, indent=1) + "\n")
    partly.replace(target)
    return failure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [script.name for script in SCRIPTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--minutes", type=float, default=30.0, help="for all of them")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder of the JSON files and pictures")
    parser.add_argument("--page", type=Path, default=report.PAGE, help="file for the page")
    options = parser.parse_args(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    until, failures = time.monotonic() + 60 * options.minutes, {}
    for script in SCRIPTS:
        if script.name not in options.only:
            continue
        left = until - time.monotonic()
        why = measure(script, options.results, left) if left > 0 else "had no time left"
        if why is not None:
            failures[script.name] = why
            print(f"{script.name} {why}.", file=sys.stderr, flush=True)
    report.write(options.results, options.page)
    print(f"\nwrote {options.page}")
    for name, why in failures.items():
        print(f"not measured, or not all: {name} {why}.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
