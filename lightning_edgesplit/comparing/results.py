"""From records to rows: one per run, one per round. The same records always give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_edgesplit.comparing.config import Comparison, Target
from lightning_edgesplit.comparing.files import run_file, write
from lightning_edgesplit.comparing.orders import Order

Row = dict[str, Any]
COMPUTING = ("forward", "backward", "head")
"""Phases in which a client computes."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        record: What the run wrote.
        row: The numbers that are compared.
    """

    record: dict[str, Any]
    row: Row


def load_results(orders: Sequence[Order], output: Path, target: Target) -> list[Result]:
    """Results of the runs that are finished, in the order of the configuration (scenario, system, seed).

    Args:
        orders: All runs.
        output: Folder of the results.
        target: When a run counts as good enough.
    """
    scenarios, systems = _ranks(order.scenario for order in orders), _ranks(order.system for order in orders)
    results = []
    for order in sorted(orders, key=lambda o: (scenarios[o.scenario], systems[o.system], o.seed)):
        path = run_file(output, order.scenario, order.system, order.seed)
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("fingerprint") == order.fingerprint:
                results.append(Result(record, row_of(record, target)))
    return results


def _ranks(names: Iterable[str]) -> dict[str, int]:
    return {name: rank for rank, name in enumerate(dict.fromkeys(names))}


def time_column(target: Target, goal: float) -> str:
    """Name of the column with the emulated seconds until a target."""
    return f"seconds_to_{target.metric}_{goal:g}"


def row_of(record: dict[str, Any], target: Target) -> Row:
    """The numbers of a run; what is not known or was not reached is None, never 0.

    Energies are those of the clients: `compute_energy_joules` while they compute, `energy_joules` with the idle rest of
    every round as well, in which those count that take no part in it.
    """
    rounds, curve, metric = record["rounds"], record["curve"], target.metric
    seconds = rounds[-1]["elapsed"]
    lasted = sum(one["seconds"] for one in rounds)
    taking = sum(one["seconds"] * len(one["clients"]) for one in rounds)
    idle = sum(client["idle"] for one in rounds for client in one["clients"])
    values = [point["metrics"].get(metric) for point in curve]
    numbers = [value for value in values if value is not None]
    row: Row = {
        "scenario": record["scenario"],
        "system": record["system"],
        "seed": record["seed"],
        "rounds": len(rounds),
        "emulated_seconds": seconds,
        "seconds_per_round": lasted / len(rounds),
    }
    for goal in target.values:
        first = next((p for p, value in zip(curve, values, strict=True) if target.reached(value, goal)), None)
        row[time_column(target, goal)] = None if first is None else first["elapsed"]
        row[f"rounds_to_{metric}_{goal:g}"] = None if first is None else first["rounds"]
    best = max if target.mode == "max" else min
    row[f"final_{metric}"] = values[-1]
    row[f"best_{metric}"] = best(numbers) if numbers else None
    row["bytes_up"] = sum(one["bytes_up"] for one in rounds)
    row["bytes_down"] = sum(one["bytes_down"] for one in rounds)
    row["idle_fraction"] = idle / taking
    row["server_busy_fraction"] = sum(one["server_seconds"] for one in rounds) / lasted
    row["compute_energy_joules"], row["energy_joules"] = energies(record)
    row["samples"] = sum(client["samples"] for one in rounds for client in one["clients"])
    return row


def energies(record: dict[str, Any]) -> tuple[float | None, float | None]:
    """Joules of all clients while they compute, and with idle times; None unless every client's power is known."""
    clients, rounds = record["clients"], record["rounds"]
    busy = [0.0] * len(clients)
    for one in rounds:
        for client in one["clients"]:
            busy[client["client"]] += sum(client["seconds"].get(phase, 0.0) for phase in COMPUTING)
    if any(client["power_busy"] is None for client in clients):
        return None, None
    computing = sum(client["power_busy"] * own for client, own in zip(clients, busy, strict=True))
    if any(client["power_idle"] is None for client in clients):
        return computing, None
    lasted = sum(one["seconds"] for one in rounds)
    idle = sum(client["power_idle"] * max(0.0, lasted - own) for client, own in zip(clients, busy, strict=True))
    return computing, computing + idle


def round_rows(result: Result) -> list[Row]:
    """One row per round of a run."""
    rows = []
    for one in result.record["rounds"]:
        clients = one["clients"]
        straggler = max(clients, key=lambda client: client["round_time"])
        rows.append(
            {
                "scenario": result.row["scenario"],
                "system": result.row["system"],
                "seed": result.row["seed"],
                "round": one["index"],
                "epoch": one["epoch"],
                "ends_at_seconds": one["elapsed"],
                "seconds": one["seconds"],
                "server_seconds": one["server_seconds"],
                "aggregation_seconds": one["aggregation_seconds"],
                "bytes_up": one["bytes_up"],
                "bytes_down": one["bytes_down"],
                "idle_fraction": sum(c["idle"] for c in clients) / (one["seconds"] * len(clients)),
                "straggler": straggler["name"],
                "cuts": " ".join(f"{client['name']}={client['cut']}" for client in clients),
            }
        )
    return rows


def write_results(results: Sequence[Result], output: Path) -> None:
    """Writes ``results.csv``, ``results.jsonl`` and ``rounds.csv``."""
    rows = [result.row for result in results]
    write(output / "results.csv", csv_text(rows))
    write(output / "results.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    write(output / "rounds.csv", csv_text([row for result in results for row in round_rows(result)]))


def csv_text(rows: Sequence[Row]) -> str:
    """Rows of the same keys as CSV: floats to the last digit, None as nothing, names quoted where they need it."""
    if not rows:
        return ""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    return "".join(",".join(_quoted(cell) for cell in line) + "\n" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def pairs(results: Sequence[Result], comparison: Comparison) -> list[tuple[str, str, list[Result]]]:
    """Scenario, system and its results, one per seed, in the order of the configuration."""
    return [
        (
            scenario.name,
            system.label,
            [r for r in results if r.row["scenario"] == scenario.name and r.row["system"] == system.label],
        )
        for scenario in comparison.scenarios
        for system in comparison.systems
    ]
