"""All that a comparison leaves behind beside its runs: numbers, tables, figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_edgesplit.comparing.config import Comparison
from lightning_edgesplit.comparing.figures import draw_all
from lightning_edgesplit.comparing.files import write
from lightning_edgesplit.comparing.results import Result, write_results
from lightning_edgesplit.comparing.table import markdown, tex


def write_all(comparison: Comparison, results: Sequence[Result], output: Path) -> None:
    """Writes ``results.csv``, ``results.jsonl``, ``rounds.csv``, ``table.md``, ``table.tex`` and ``figures/``.

    Raises:
        OSError: If one of them cannot be written; a file is there whole or not at all.
    """
    write_results(results, output)
    write(output / "table.md", markdown(comparison, results))
    write(output / "table.tex", tex(comparison, results))
    draw_all(comparison, results, output)
