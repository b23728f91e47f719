"""The table of `docs/trainer.md`: each row is a test. ``python tests/trainer/rows.py`` writes it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "trainer.md"
ROWS: list[tuple[str, str, str, str, str]] = []

HEAD = """# What a Trainer does, and what of it works

Written by the tests: `python tests/trainer/rows.py`. Every row is a test. "Works" means that one client and a server
end with the weights and metrics of the plain Trainer, or what the last column says; "refused" is a clear error with the
way out in it.

| feature | | how |
| --- | --- | --- |
"""


def feature(name: str, outcome: str = "works", how: str = "") -> Callable[[Callable], Callable]:
    """Marks a test as a row of the table."""

    def mark(test: Callable) -> Callable:
        ROWS.append((name, outcome, how, test.__name__, test.__module__))
        return test

    return mark


def table() -> str:
    """The page, from the rows of all test files beside this one."""
    for path in sorted(HERE.glob("test_*.py")):
        importlib.import_module(path.stem)
    rows = sorted(dict.fromkeys(ROWS), key=lambda row: row[-1])  # whatever was imported first
    return HEAD + "".join(f"| {name} | {outcome} | {how} |\n" for name, outcome, how, *_ in rows)


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    PAGE.write_text(importlib.import_module("rows").table())
