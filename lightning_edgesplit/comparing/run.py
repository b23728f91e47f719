"""One run, in a process of its own: reads its order from standard input, trains, and writes its record.

Standard output is for the parent alone: a line of JSON for every epoch, and one with the error if there is one.
What module and Trainer print goes to standard error, which the parent keeps as a log. The parent holds the other end of
standard input: when that closes, the parent is gone, and so are we.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_edgesplit.comparing.files import FULL, write
from lightning_edgesplit.comparing.making import made
from lightning_edgesplit.comparing.orders import FORMAT, Order, strategy_of
from lightning_edgesplit.runtime.report import ClientReport, RoundReport
from lightning_edgesplit.strategy import EdgeSplitStrategy


def main() -> int:
    """Runs the order; 0 if its record is written."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anybody prints goes to the log
    order_line, path, board = sys.stdin.readline(), sys.stdin.readline().strip(), sys.stdin.readline().strip()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(**what: Any) -> None:
        print(json.dumps(what), file=told, flush=True)

    try:
        order = Order.from_json(order_line)
        write(Path(path), record_text(train(order, Path(board) if board else None, tell)))
    except Exception as error:
        traceback.print_exc()
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        tell(error=f"{type(error).__name__}: {error}", kind=FULL if full else "failed")
        return 1
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the pipe is closed
    os.killpg(0, signal.SIGKILL)  # the parent put us into a group of our own; our clients end with us


def train(order: Order, board: Path | None, tell: Callable[..., None]) -> dict[str, Any]:
    """Trains, and returns the record: rounds, and the metric after every validation.

    Args:
        order: What to train.
        board: Folder for TensorBoard; None: nothing is logged there.
        tell: Takes ``epoch`` and ``epochs`` after every epoch.

    Raises:
        ValueError: If the metric was never logged.
    """
    torch.set_num_threads(order.threads)
    pl.seed_everything(order.seed, workers=True, verbose=False)
    strategy = strategy_of(order)
    logger: Any = False
    if board is not None:
        shutil.rmtree(board, ignore_errors=True)  # of a run with another configuration
        logger = TensorBoardLogger(str(board), name="", version="", default_hp_metric=False)
    recorder = Recorder(order, strategy, tell)
    ours = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        **{"num_sanity_val_steps": 0, **ours, **order.trainer},
        strategy=strategy, accelerator="cpu", devices=1, logger=logger, callbacks=[recorder],
    )  # fmt: skip
    data = made(order.data.class_path, order.data.init_args, "data")
    module = made(order.model.class_path, order.model.init_args, "model")
    trainer.fit(module, datamodule=data)
    if not recorder.curve:
        raise ValueError(
            f"{order.metric!r} was never logged, since nothing was validated: give the data a val_dataloader."
        )
    whole = whole_rounds(strategy.rounds)
    return {
        "format": FORMAT,
        "fingerprint": order.fingerprint,
        "scenario": order.scenario,
        "system": order.system,
        "seed": order.seed,
        "clients": [
            {"name": p.name, "power_busy": p.power_busy, "power_idle": p.power_idle} for p in strategy.profiles
        ],
        "cuts": [] if strategy.cuts is None else [cut.name for cut in strategy.cuts],
        "rounds": [round_of(turns, index) for index, turns in enumerate(whole)],
        "spans": spans_of(whole[-1]),
        "curve": recorder.curve,
    }


class Recorder(pl.Callback):
    """Notes the metric after every validation, on the emulated clock.

    Args:
        order: The run; its metric must be logged.
        strategy: Knows the clock.
        tell: See `train`.
    """

    def __init__(self, order: Order, strategy: EdgeSplitStrategy, tell: Callable[..., None]) -> None:
        self._order, self._metric, self._strategy, self._tell = order, order.metric, strategy, tell
        self.curve: list[dict[str, Any]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A point of the curve."""
        if self._metric not in trainer.callback_metrics:
            raise ValueError(
                f"target_accuracy.metric={self._metric!r} is not logged by the module's validation_step: use one of"
                f" {', '.join(sorted(trainer.callback_metrics)) or '(it logs nothing)'}."
            )
        # this one alone: means over arrivals, as of a training loss, depend on who came first in their last digit
        values = {self._metric: _number(trainer.callback_metrics[self._metric])}
        rounds = self._strategy.rounds
        self.curve.append(
            {
                "epoch": trainer.current_epoch,
                "rounds": len(whole_rounds(rounds)),
                "elapsed": rounds[-1].elapsed if rounds else 0.0,
                "metrics": values,
            }
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """How far it is."""
        self._tell(epoch=trainer.current_epoch + 1, epochs=trainer.max_epochs or 0)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The run as a row of TensorBoard's table of hyper-parameters."""
        logger, order, rounds = trainer.logger, self._order, self._strategy.rounds
        if not isinstance(logger, TensorBoardLogger) or not self.curve or not rounds:
            return
        parameters = {
            "scenario": order.scenario, "system": order.system, "seed": order.seed,
            "clients": len(self._strategy.profiles), "partition": str(order.partition),
            "round_steps": str(order.round_steps),
        }  # fmt: skip
        reports = [client for report in rounds for client in report.clients]
        finals = {
            "final/emulated_seconds": rounds[-1].elapsed,
            "final/bytes": float(sum(client.bytes_up + client.bytes_down for client in reports)),
        }
        value = self.curve[-1]["metrics"][self._metric]
        if value is not None:
            finals[f"final/{self._metric.replace('/', '_')}"] = value
        logger.log_hyperparams(parameters, finals)


def _number(value: Any) -> float | None:
    """A metric as JSON knows it; None for NaN and infinity, which no target is reached by."""
    number = float(value)
    return number if math.isfinite(number) else None


def whole_rounds(reports: Sequence[RoundReport]) -> list[list[RoundReport]]:
    """The reports of each round: one, or one per turn where clients take turns."""
    rounds: list[list[RoundReport]] = [[]]
    for report in reports:
        rounds[-1].append(report)
        if report.ends_turns:
            rounds.append([])
    return [turns for turns in rounds if turns]


def round_of(turns: Sequence[RoundReport], index: int) -> dict[str, Any]:
    """A round as plain numbers; wall-clock times are left out, so that the same run gives the same bytes.

    Args:
        turns: The round's report; or those of its turns, one after the other, in which the other clients are idle.
        index: Its number.
    """
    seconds, before, clients = sum(turn.seconds for turn in turns), 0.0, []
    for turn in turns:
        clients += [_client(client, before, seconds - turn.seconds) for client in turn.clients]
        before += turn.seconds
    return {
        "index": index,
        "epoch": turns[0].epoch,
        "seconds": seconds,
        "elapsed": turns[-1].elapsed,
        "server_seconds": sum(turn.server_seconds for turn in turns),
        "aggregation_seconds": sum(turn.aggregation_seconds for turn in turns),
        "bytes_up": sum(client["bytes_up"] for client in clients),
        "bytes_down": sum(client["bytes_down"] for client in clients),
        "clients": clients,
    }


def _client(client: ClientReport, before: float, others: float) -> dict[str, Any]:
    """A client's part; `before` seconds of the round lie before its turn, and `others` seconds belong to others."""
    return {
        "client": client.client,
        "name": client.name,
        "cut": client.cut,
        "share": client.share,
        "steps": client.steps,
        "samples": client.samples,
        "seconds": client.seconds,
        "once": client.once,
        "idle": client.idle + others,
        "bytes_up": client.bytes_up,
        "bytes_down": client.bytes_down,
        "round_time": before + client.round_time,
    }


def spans_of(turns: Sequence[RoundReport]) -> list[Sequence[Any]]:
    """The timeline of a round: client, on the server, phase, start and end in seconds."""
    spans: list[Sequence[Any]] = []
    before = 0.0
    for turn in turns:
        spans += [(s.client, s.on_server, s.phase, before + s.start, before + s.end) for s in turn.spans]
        before += turn.seconds
    return spans


def record_text(record: dict[str, Any]) -> str:
    """The record as it stands in its file."""
    return json.dumps(record, sort_keys=True, allow_nan=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
