"""TorchSlicer: one model in two parts, each in a worker process; a coordinator, which has the data, sends batches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torchslicer
from torchslicer.config import LoggingConfig, RunConfig, StartupConfig, TransportConfig

from benchmarks.peers.work import LEARNING_RATE, MOMENTUM, Record, Work

WORKER = "import torchslicer; torchslicer.run_worker(coordinator_addr=None)"


class Counted:
    """A loader that counts what it has given out."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.samples = self.steps = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for images, labels in self.loader:
            self.samples, self.steps = self.samples + len(labels), self.steps + 1
            yield images, labels


class Rounds(torchslicer.TrainingCallback):
    """Says when an epoch has ended: its round."""

    def __init__(self, record: Record, loader: Counted) -> None:
        self.record, self.loader = record, loader

    def on_epoch_end(self, epoch: int, metrics: dict[str, Any]) -> None:
        self.record.end_round(self.loader.samples, self.loader.steps, loss=metrics["loss"])
        self.loader.samples = self.loader.steps = 0


def _free_ports() -> tuple[int, int, int]:
    """A port for the coordinator and two for the workers, each of which takes the next one for tensors too."""
    with ExitStack() as held:
        for first in range(20_000, 60_000, 100):
            try:
                for port in range(first, first + 5):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                held.close()
                continue
            return first, first + 1, first + 3
    raise RuntimeError("no five free ports in a row on the loopback")


@contextmanager
def worker(port: int, threads: int) -> Iterator[None]:
    """A worker process."""
    env = {
        "PORT": str(port), "WORKER_ADDRESS": f"127.0.0.1:{port}", "DEVICE": "cpu", "TENSOR_TRANSPORT": "tcp",
        "LOG_LEVEL": "WARNING", "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", WORKER], env={**os.environ, **env})
    try:
        yield
        process.wait(timeout=30)  # the coordinator has told it to stop
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def play(work: Work, record: Record, threads: int | None = None) -> None:
    """Trains over its TCP transport, its faster one, without micro-batches: as many steps as ours.

    The parts compute in turn, so that each may have all cores, unless `threads` says otherwise.
    """
    threads = threads or work.cores
    coordinator, *ports = _free_ports()
    loader = Counted(work.loader(0, work.data()))
    config = RunConfig(
        logging=LoggingConfig(enabled=False, level="WARNING"),
        transport=TransportConfig(tensor="tcp"),
        startup=StartupConfig(worker_init_max_attempts=600, worker_init_delay_s=0.1),
    )
    config.fault_tolerance.max_retries = 0
    with worker(ports[0], threads), worker(ports[1], threads):
        executor = torchslicer.DistributedExecutor(
            discovery=torchslicer.StaticDiscovery([f"127.0.0.1:{port}" for port in ports]),
            coordinator_addr=f"127.0.0.1:{coordinator}",
            run_config=config,
        )
        torchslicer.slice(work.model(), n=2, executor=executor).train(
            loader,
            {"name": "SGD", "params": {"lr": LEARNING_RATE, "momentum": MOMENTUM}},
            {"name": "CrossEntropyLoss", "params": {}},
            epochs=work.rounds,
            callbacks=[Rounds(record, loader)],
        )
