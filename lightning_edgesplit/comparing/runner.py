"""Runs in processes of their own, several at a time; what is finished is kept, whatever happens to the others."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lightning_edgesplit.comparing.files import FULL, log_file, run_file
from lightning_edgesplit.comparing.orders import Order

PATIENCE = 5.0
"""Seconds that a run has to end after it was asked to, before it is killed."""

_TICK = 0.2  # seconds between looks at the processes: output wakes us earlier, a silent end does not


class DiskFullError(OSError):
    """A run could not write its record: there is no room on the disk."""


@dataclass(frozen=True)
class Failure:
    """A run that ended without a record.

    Attributes:
        order: The run.
        error: What it said, or how it ended.
        log: What it printed.
    """

    order: Order
    error: str
    log: Path


@dataclass
class Progress:
    """How far all runs are.

    Attributes:
        runs: How many there are.
        kept: Those of them that were finished before.
        done: Those that this command finished, failed ones included.
        running: Fraction of each run that is under way.
        started: When the first was started, monotonic.
    """

    runs: int
    kept: int
    done: int = 0
    running: dict[Path, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def fraction(self) -> float:
        """Of the runs that this command has to do, what is done."""
        todo = self.runs - self.kept
        return 1.0 if not todo else (self.done + sum(self.running.values())) / todo

    @property
    def seconds_left(self) -> float | None:
        """By what the done part took; None before there is any."""
        if self.fraction <= 0:
            return None
        return (time.monotonic() - self.started) * (1 / self.fraction - 1)


@dataclass
class _Child:
    order: Order
    path: Path
    log: Path
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    began: float
    error: str = ""
    kind: str = ""
    rest: bytes = b""


def finished(output: Path, order: Order) -> bool:
    """Whether there is a record of exactly this run."""
    try:
        record = json.loads(run_file(output, order.scenario, order.system, order.seed).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(record, dict) and record.get("fingerprint") == order.fingerprint


def run_all(
    orders: Sequence[Order],
    output: Path,
    processes: int,
    tensorboard: bool = True,
    show: Callable[[Progress], None] = lambda progress: None,
) -> list[Failure]:
    """Does all runs that have no record yet.

    Args:
        orders: The runs.
        output: Folder of the results.
        processes: How many run at a time.
        tensorboard: Whether they log there, below ``tb``.
        show: Is told how far it is, several times a second.

    Returns:
        The runs that failed; the others have a record each.

    Raises:
        DiskFullError: If a record could not be written for want of room; all runs are ended, finished ones kept.
        KeyboardInterrupt: As it came, after all runs are ended.
    """
    waiting = [order for order in orders if not finished(output, order)]
    progress = Progress(len(orders), len(orders) - len(waiting))
    failures: list[Failure] = []
    children: dict[int, _Child] = {}
    with selectors.DefaultSelector() as selector:
        try:
            show(progress)
            while waiting or children:
                while waiting and len(children) < processes:
                    child = _start(waiting.pop(0), output, tensorboard)
                    children[child.process.pid] = child
                    selector.register(child.output, selectors.EVENT_READ, child)
                for key, _ in selector.select(_TICK):
                    if not _read(key.data, progress):
                        selector.unregister(key.fileobj)
                for child in [c for c in children.values() if c.process.poll() is not None]:
                    _read_all(child, progress)
                    with contextlib.suppress(KeyError):  # it had closed its output before
                        selector.unregister(child.output)
                    del children[child.process.pid]
                    failure = _ended(child, output, progress)
                    if failure is not None:
                        failures.append(failure)
                show(progress)
        finally:
            _end(list(children.values()))
    return failures


def _start(order: Order, output: Path, tensorboard: bool) -> _Child:
    """A fresh interpreter, in a process group of its own: Ctrl-C reaches us alone, and we end it in order."""
    path = run_file(output, order.scenario, order.system, order.seed).absolute()
    log = log_file(output, order.scenario, order.system, order.seed).absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = str(order.threads)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
    }
    environment.pop("EDGESPLIT_CLIENT", None)
    environment.pop("EDGESPLIT_SERVER", None)  # a run's clients are forked, whatever our own environment is
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_edgesplit.comparing.run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    board = output / "tb" / path.parent.parent.name / path.parent.name / path.stem if tensorboard else ""
    with contextlib.suppress(BrokenPipeError):  # it died at once: its log says why
        process.stdin.write(f"{order.to_json()}\n{path}\n{Path(board).absolute() if board else ''}\n".encode())
        process.stdin.flush()
    os.set_blocking(process.stdout.fileno(), False)
    return _Child(order, path, log, process, process.stdout, time.monotonic())


def _read(child: _Child, progress: Progress) -> bool:
    """Takes what a run said; False at the end of its output."""
    data = child.output.read(65536)
    if data is None:
        return True
    *lines, child.rest = (child.rest + data).split(b"\n")
    for line in lines:
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            child.error, child.kind = said["error"], said["kind"]
        elif said.get("epochs", 0) > 0:
            progress.running[child.path] = min(1.0, said["epoch"] / said["epochs"])
    return bool(data)


def _read_all(child: _Child, progress: Progress) -> None:
    """What is left in the pipe of a run that has ended; its clients may still hold the other end."""
    while True:
        data_before = child.rest, child.error
        if not _read(child, progress) or (child.rest, child.error) == data_before:
            return


def _ended(child: _Child, output: Path, progress: Progress) -> Failure | None:
    progress.done += 1
    progress.running.pop(child.path, None)
    child.output.close()
    assert child.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.process.stdin.close()
    if child.kind == FULL:
        raise DiskFullError(
            f"no room is left on the disk of {output}: {child.error}. Finished runs are kept: make room, and run the"
            " same command again."
        )
    code = child.process.returncode
    if code == 0 and finished(output, child.order):
        _note(output, child.order, time.monotonic() - child.began)
        return None
    how = f"its process ended by signal {-code}" if code < 0 else f"its process ended with status {code}"
    return Failure(child.order, child.error or how, child.log)


def _note(output: Path, order: Order, seconds: float) -> None:
    """Wall-clock times have a file of their own: they differ from run to run, the results do not."""
    entry = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S"), "scenario": order.scenario, "system": order.system,
        "seed": order.seed, "wall_seconds": round(seconds, 1),
    }  # fmt: skip
    with (output / "runs.log").open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")


def _end(children: Sequence[_Child]) -> None:
    """Ends runs and their clients: asks first, waits `PATIENCE` seconds in all, kills then."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, until - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        child.output.close()
        assert child.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.process.stdin.close()
