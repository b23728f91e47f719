"""A round through the user's own loggers: numbers for all of them, the timeline for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lightning_edgesplit.monitoring.timeline import timeline_figure
from lightning_edgesplit.runtime.report import RoundReport


def log_round(
    loggers: Iterable[Logger],
    report: RoundReport,
    step: int,
    depths: Mapping[str, int] | None = None,
    figure: bool = True,
) -> None:
    """Logs a round; called by the strategy after the aggregation.

    Every logger gets the numbers of `round_metrics`. TensorBoard also gets each client's cut as text
    (``client/<name>/cut``) and the timeline as the image ``round/timeline``.

    Args:
        loggers: The Trainer's loggers.
        report: The round.
        step: The Trainer's ``global_step`` at the end of the round.
        depths: Position of each cut, 0 for the shallowest, by its name.
        figure: False leaves the timeline out; drawing and encoding it takes some tenths of a second.
    """
    metrics = round_metrics(report, depths)
    for logger in loggers:
        logger.log_metrics(metrics, step)
        if isinstance(logger, TensorBoardLogger):
            for client in report.clients:
                logger.experiment.add_text(f"client/{client.name}/cut", client.cut, step)
            if figure:
                logger.experiment.add_figure("round/timeline", timeline_figure(report), step, close=True)


def round_metrics(report: RoundReport, depths: Mapping[str, int] | None = None) -> dict[str, float]:
    """The numbers of a round under the names that they are logged by; seconds, bytes and fractions.

    Args:
        report: The round.
        depths: Position of each cut by its name; a client whose cut is not in it gets no ``cut_depth``.
    """
    metrics: dict[str, float] = {
        "round/index": report.index,
        "round/seconds": report.seconds,
        "round/elapsed": report.elapsed,
        "round/wall": report.wall,
        "round/predicted": report.predicted,
        "round/server_seconds": report.server_seconds,
        "round/aggregation_seconds": report.aggregation_seconds,
    }
    for client in report.clients:
        tag = f"client/{client.name}"
        metrics |= {f"{tag}/seconds/{phase}": spent for phase, spent in client.seconds.items()}
        metrics |= {
            f"{tag}/share": client.share,
            f"{tag}/bytes_up": client.bytes_up,
            f"{tag}/bytes_down": client.bytes_down,
            f"{tag}/idle": client.idle,
            f"{tag}/overrun": client.overrun,
            f"{tag}/round_time": client.round_time,
            f"{tag}/predicted": client.predicted,
        }
        errors = {name: getattr(client, name) for name in ("smashed_error", "gradient_error", "weight_error")}
        metrics |= {f"{tag}/{name}": error for name, error in errors.items() if error is not None}
        if client.batch is not None:
            metrics[f"{tag}/batch"] = client.batch
        if depths is not None and client.cut in depths:
            metrics[f"{tag}/cut_depth"] = depths[client.cut]
    return metrics
