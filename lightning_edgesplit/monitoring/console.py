"""Plans and rounds as tables for the terminal: they fit into 80 columns, and read the same in a log file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_edgesplit.monitoring.units import digits, megabytes, percent, rate, seconds
from lightning_edgesplit.runtime.report import ClientReport, RoundReport
from lightning_edgesplit.scheduling.plan import Plan

ROWS = 40
"""Clients that a table shows at most: of more, the slowest ones."""


def plan_table(plan: Plan, names: Sequence[str], comparisons: Mapping[str, float] | None = None) -> Table:
    """The plan with one row per client (`ROWS` at most) and, below, its round time beside that of other policies.

    Args:
        plan: What the policy decided.
        names: Names of the clients, in the order of the plan.
        comparisons: Seconds of a round by the same latency model, keyed by what to call the other policy.

    Returns:
        A table to print; the slowest client's row is bold and its time has a star.

    Raises:
        ValueError: If there is not one name per client.
    """
    if len(names) != len(plan.cuts):
        raise ValueError(f"names has {len(names)} entries, the plan {len(plan.cuts)} clients: one name per client.")
    table = _table(f"plan of {plan.policy}")
    table.add_column("client", overflow="fold")
    table.add_column("cut", overflow="fold")
    if plan.batches:
        table.add_column("batch", justify="right", no_wrap=True)
    for header in ("share", "uplink", "downlink", "predicted round"):
        table.add_column(header, justify="right", no_wrap=header != "predicted round")
    slowest = max(range(len(names)), key=plan.predicted.__getitem__, default=None)
    shown = sorted(sorted(range(len(names)), key=lambda k: -plan.predicted[k])[:ROWS])
    for k in shown:
        if k in plan.left_out:
            table.add_row(Text(names[k]), Text("takes no part", style="dim"))
            continue
        table.add_row(
            Text(names[k]),
            Text(plan.cuts[k]),
            *([str(plan.batches[k])] if plan.batches else []),
            percent(plan.shares[k]),
            rate(plan.uplink[k]),
            rate(plan.downlink[k]),
            _starred(seconds(plan.predicted[k]), k == slowest),
            style="bold" if k == slowest else "",
        )
    whole = Table.grid()
    whole.add_row(table)
    if len(shown) < len(names):
        whole.add_row(Text(f"and {len(names) - len(shown)} more, which are faster or take no part", style="dim"))
    whole.add_row(Text("* slowest client: the round takes as long as it does", style="dim"))
    if ways := _ways(plan):
        whole.add_row(Text(ways, style="dim"))
    if comparisons:
        whole.add_row()
        whole.add_row(_comparison_table(plan, comparisons))
    return whole


def _ways(plan: Plan) -> str:
    """What the plan says beside cuts and shares, in words; nothing where that is as usual."""
    said = []
    if plan.disciplines != ("static", "static"):
        up, down = (discipline.replace("_", " ") for discipline in plan.disciplines)
        said.append(f"links scheduled: up {up}, down {down}; a share is what a client has at most")
    if plan.order != "arrival":
        said.append(f"the server serves {plan.order.replace('_', ' ')}")
    if max(plan.micro_batches, default=1) > 1:
        said.append(f"micro-batches: {min(plan.micro_batches)} to {max(plan.micro_batches)}")
    if plan.compression != "none":
        said.append(f"smashed data and gradients as {plan.compression}")
    if plan.server_model != "per_client":
        said.append(f"server-side model: {plan.server_model}")
    return "\n".join(said)


def _comparison_table(plan: Plan, comparisons: Mapping[str, float]) -> Table:
    """Predicted round times, fastest first, each with how many times faster the plan is."""
    table = _table("the same clients under other policies")
    table.add_column("policy", overflow="fold")
    table.add_column("predicted round", justify="right", no_wrap=True)
    table.add_column("speed-up by this plan", justify="right", no_wrap=True)
    table.add_row(Text(f"{plan.policy} (this plan)"), seconds(plan.round_time), "", style="bold")
    for policy, other in sorted(comparisons.items(), key=lambda item: item[1]):
        ratio = f"{other / plan.round_time:.2f}x" if plan.round_time > 0 else "-"
        table.add_row(Text(policy), seconds(other), ratio)
    return table


def round_table(report: RoundReport) -> Table:
    """A round with one row (of two lines) per client: where its seconds and its bytes went.

    "compute" is forward and backward, "up" and "down" are all that the client sent and received (smashed data and
    gradients as well as its client-side model), "wait" is the server's queue, "server" the server's work for it.
    The last column is the client's round as measured and, below it, as predicted when it was planned. "late" is the
    overrun of an emulated client; the column is there if any client has one. A third line: the batch by the plan.
    """
    late = any(client.overrun > 0 for client in report.clients)
    table = _table(
        f"round {report.index} of {report.policy}: {seconds(report.seconds)} "
        f"(aggregation {seconds(report.aggregation_seconds)}), predicted {seconds(report.predicted)}"
    )
    table.add_column("client\ncut, share", overflow="fold")
    for header in ("compute\ns", "up, s\nMB", "wait\ns", "server\ns", "down, s\nMB", "idle\ns", "round, s\nplanned"):
        table.add_column(header, justify="right", no_wrap=True)
    if late:
        table.add_column("late\ns", justify="right", no_wrap=True)
    for client in report.clients:
        row = _round_row(client, slowest=client is report.slowest)
        table.add_row(*row, *([digits(client.overrun)] if late else []))
    whole = Table.grid()
    whole.add_row(table)
    whole.add_row(Text("* slowest client", style="dim"))
    return whole


def _round_row(client: ClientReport, slowest: bool) -> list[Text | str]:
    """The cells of one client, each with a second line where it has something to add."""

    def spent(*phases: str) -> str:
        return digits(sum(client.seconds.get(phase, 0.0) for phase in phases))

    planned = f"{client.cut}, {percent(client.share)}" + ("" if client.batch is None else f"\nbatch {client.batch}")
    name = Text.assemble((client.name, "bold" if slowest else ""), (f"\n{planned}", "dim"))
    return [
        name,
        spent("forward", "head", "backward"),
        f"{spent('uplink', 'upload')}\n{digits(client.bytes_up / 1e6)}",
        spent("wait"),
        spent("server"),
        f"{spent('downlink', 'download')}\n{digits(client.bytes_down / 1e6)}",
        digits(client.idle),
        f"{_starred(digits(client.round_time), slowest)}\n{_starred(digits(client.predicted), False)}",
    ]


def round_line(report: RoundReport) -> str:
    """A round in one line: its time against the prediction, what went over the links, and who was slowest."""
    up = sum(client.bytes_up for client in report.clients)
    down = sum(client.bytes_down for client in report.clients)
    line = f"round {report.index} ({report.policy}): {seconds(report.seconds)}"
    if report.predicted > 0:  # false for NaN too: then nothing was predicted
        deviation = 100 * (report.seconds / report.predicted - 1)
        line += f", predicted {seconds(report.predicted)} ({deviation:+.0f} %)"
    line += f", {megabytes(up)} up, {megabytes(down)} down"
    return f"{line}, slowest {report.slowest.name} ({report.slowest.cut})" if report.clients else line


def print_plan(
    plan: Plan,
    names: Sequence[str],
    comparisons: Mapping[str, float] | None = None,
    console: Console | None = None,
) -> None:
    """Prints `plan_table` to the console given, standard output by default."""
    (console or Console()).print(plan_table(plan, names, comparisons))


def print_round(report: RoundReport, console: Console | None = None) -> None:
    """Prints `round_table` to the console given, standard output by default."""
    (console or Console()).print(round_table(report))


def _table(title: str) -> Table:
    """An empty table in the one look of all tables here."""
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="",
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )


def _starred(text: str, star: bool) -> str:
    """The text, followed by a star or by as much room as it takes, so that a column stays aligned."""
    return f"{text} *" if star else f"{text}  "
