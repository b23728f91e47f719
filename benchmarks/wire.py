"""The wire: bytes of a run's frames over those of the tensors in them, and the rate of a link over that of bare gloo.

The rate: one process sends to another, over loopback, as fast as the other takes it in. Our frames carry a tensor of
the size at hand, labels and what a local step says of itself in JSON; bare gloo (torch.distributed's transport on the
CPU) sends a tensor of that size from the same memory into the same memory again and again, as no program that needs the
data could. Both are run in turn, with freed memory kept as in a run (`lightning_edgesplit.memory`).

The bytes: a short run of ResNet-18 (3×3 stem, batch 32, four cuts), weights, smashed data and gradients, all frames of
all links in both directions, signs of life included.

    python -m benchmarks.wire [--pairs 5] [--seconds 0.3]
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from rich.table import Table
from torch.distributed import FileStore, PrefixStore, ProcessGroupGloo
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import PAIRS, cell, interleaved, publish, quiet, quiet_trainer, ratios, spread
from benchmarks.models import MODELS, Classifier
from lightning_edgesplit import EdgeSplitStrategy, memory
from lightning_edgesplit.runtime import link
from lightning_edgesplit.runtime.link import Link
from lightning_edgesplit.runtime.wire import Frame, Header, Kind

SIZES = [1 << power for power in (10, 12, 14, 16, 18, 20, 22, 24, 26)]
COUNTED = 1 << 18
"""Bytes from which on the rate is a figure."""
CUTS = ["maxpool", "layer1", "layer2", "layer3"]
TIMEOUT = 60.0


def readable(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


class End:
    """One end of a link and of a bare group beside it."""

    def __init__(self, path: str, connection: socket.socket, on_server: bool) -> None:
        store = FileStore(path, 2)
        self.link = Link(connection, TIMEOUT, "the other end")
        options = ProcessGroupGloo._Options()
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=TIMEOUT)
        self.bare = ProcessGroupGloo(PrefixStore("bare", store), 0 if on_server else 1, 2, options)
        self.other = 1 if on_server else 0

    def answer(self) -> None:
        """Takes in what comes until it is told to end, and says when a series is over."""
        while (order := self.link.receive()).about["frames"]:
            count, size, ours = (order.about[key] for key in ("frames", "size", "ours"))
            if ours:
                for _ in range(count):
                    self.link.receive()
            else:
                memory = torch.empty(size, dtype=torch.uint8)
                for _ in range(count):
                    self.bare.recv([memory], self.other, 0).wait()
            self.link.send(Frame(Kind.GRADIENT))

    def seconds(self, count: int, size: int, ours: bool) -> float:
        """Until the other end has all of a series."""
        data = torch.rand(size // 4)
        frame = Frame(
            Kind.SMASHED, [data, torch.arange(4)], {"index": 7, "steps": True, "samples": 32, "shapes": [[32]]}
        )
        memory = data.view(torch.uint8)
        self.link.send(Frame(Kind.ROUND, about={"frames": count, "size": size, "ours": ours}))
        began = time.perf_counter()
        for _ in range(count):
            if ours:
                self.link.send(frame)
            else:
                self.bare.send([memory], self.other, 0).wait()
        self.link.receive()
        return time.perf_counter() - began


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


def rates(pairs: int, seconds: float) -> dict[int, dict[str, list[float]]]:
    """Bytes of payload per second by size, of our frames and of bare gloo."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "store")
        here, there = tcp_pair()
        child = os.fork()
        if child == 0:
            here.close()
            torch.set_num_threads(1)
            End(path, there, on_server=False).answer()
            os._exit(0)
        there.close()
        try:
            end, found = End(path, here, on_server=True), {}
            for size in SIZES:
                count = max(4, int(seconds / max(1e-6, end.seconds(8, size, False) / 8)))

                def run(ours: bool, count: int = count, size: int = size) -> Callable[[], float]:
                    return lambda: count * size / end.seconds(count, size, ours)

                sides = {"frames": run(True), "bare gloo": run(False)}
                found[size] = interleaved(pairs, sides, note=lambda text: None)
            end.link.send(Frame(Kind.ROUND, about={"frames": 0}))
            os.waitpid(child, 0)
            child = 0
            return found
        finally:
            if child:
                os.kill(child, signal.SIGKILL)


def bytes_of_a_run(steps: int) -> tuple[int, int]:
    """Bytes on the wire, and bytes of the tensors on it."""
    wired, payload, encode, decode = 0, 0, link.encode, link.decode

    def encoding(frame: Frame) -> list[bytes | memoryview]:
        nonlocal wired, payload
        pieces = encode(frame)
        wired += sum(map(len, pieces))
        payload += sum(x.nbytes for x in frame.tensors)
        return pieces

    def decoding(header: Header, front: memoryview) -> tuple[Frame, list[memoryview]]:
        nonlocal wired, payload
        frame, large = decode(header, front)
        wired += frame.size
        payload += sum(x.nbytes for x in frame.tensors)
        return frame, large

    link.encode, link.decode = encoding, decoding
    try:
        L.seed_everything(0, verbose=False)
        data = TensorDataset(torch.randn(4 * steps * 32, 3, 32, 32), torch.randint(0, 10, (4 * steps * 32,)))
        strategy = EdgeSplitStrategy(clients=len(CUTS), cuts=CUTS, round_steps=steps, timeout=300)
        trainer = quiet_trainer(strategy=strategy, max_epochs=1)
        trainer.fit(Classifier(MODELS["resnet18_3x3"].make()), DataLoader(data, batch_size=32, shuffle=True))
    finally:
        link.encode, link.decode = encode, decode
    return wired, payload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a series, about")
    parser.add_argument("--steps", type=int, default=2, help="local steps of the run whose bytes are counted")
    options = parser.parse_args()
    quiet(1)
    memory.keep_freed()  # as runs do
    found = rates(options.pairs, options.seconds)
    wired, payload = bytes_of_a_run(options.steps)
    over = {size: ratios(own["frames"], own["bare gloo"]) for size, own in found.items()}
    table = Table(title=f"payload over loopback, {options.pairs} pairs: median (least to most)")
    for column in ("payload", "our frames, GB/s", "bare gloo, GB/s", "ratio"):
        table.add_column(column, justify="right")
    for size, own in found.items():
        columns = [[rate / 1e9 for rate in own[side]] for side in ("frames", "bare gloo")]
        table.add_row(readable(size), *(cell(column) for column in columns), cell(over[size]))
    medians = {size: statistics.median(own) for size, own in over.items()}
    worst = min((size for size in SIZES if size >= COUNTED), key=lambda size: medians[size])
    publish(
        {
            "wire_over_payload": wired / payload, "over_raw_gloo_min": medians[worst],
            "spread": {"over_raw_gloo_min": spread(over[worst])},
            "over_raw_gloo": {readable(size): median for size, median in medians.items()},
        },
        table, f"bytes of a run: {wired} on the wire, {payload} in tensors\n",
    )  # fmt: skip


if __name__ == "__main__":
    main()
