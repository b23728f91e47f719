"""How long this machine takes for the step before and behind each cut: timed, not guessed from FLOP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_edgesplit.splitting.along import patched
from lightning_edgesplit.splitting.batch import batch_size, loss_of, step_arguments
from lightning_edgesplit.splitting.cuts import END, Cut, Cuts
from lightning_edgesplit.splitting.proof import copy_of, generators_kept
from lightning_edgesplit.splitting.tree import tensors_of

SECOND = "the second cut"
"""Where the times of the second cut, which all cuts have in common, stand among those of the cuts."""


def time_cuts(
    module: nn.Module,
    batch: Any,
    cuts: Cuts,
    optimizer: Optimizer,
    server_threads: int = 1,
    repeats: int = 3,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Cuts:
    """Fills in the seconds of every `CutProfile`.

    Whole, uncut steps are run on a copy of the module, with one torch thread for the client's seconds and with
    `server_threads` for the server's. What is noted is when the cut's output exists and when its gradient does. Of
    several runs the fastest counts, after one to warm up: whatever else the machine does only adds. The first run with
    other threads takes a tenth more (ResNet-18, measured), so that one run each is a first estimate.

    Args:
        module: The LightningModule, in the mode in which it will be trained.
        batch: A batch of the size that will be trained with, as ``training_step`` takes it.
        cuts: What `find_cuts` found.
        optimizer: Its optimizer; copied, not changed.
        server_threads: Threads that the server's part runs with.
        repeats: Timed steps per thread count.
        context: Opened around every forward pass (mixed precision).

    Returns:
        The same cuts with ``client_forward_seconds``, ``client_backward_seconds`` and ``server_seconds``.
    """
    probe, copied = copy_of(module, optimizer)
    assert copied is not None
    probe.train(module.training)
    threads, size = torch.get_num_threads(), batch_size(batch)
    fastest: dict[int, dict[str, tuple[float, ...]]] = {}
    try:
        with generators_kept():
            torch.set_num_threads(server_threads)
            _timed_step(probe, batch, cuts, copied, context)
            for count in dict.fromkeys((server_threads, 1)):
                torch.set_num_threads(count)
                runs = [_timed_step(probe, batch, cuts, copied, context) for _ in range(repeats)]
                fastest[count] = {
                    cut.name: tuple(map(min, zip(*(run[cut.name] for run in runs), strict=True))) for cut in cuts
                }
    finally:
        torch.set_num_threads(threads)

    def timed(cut: Cut) -> Cut:
        assert cut.profile is not None
        forward, backward, _, head = fastest[1][cut.name]
        server = fastest[server_threads][cut.name][2]
        profile = replace(
            cut.profile,
            client_forward_seconds=forward / size,
            client_backward_seconds=backward / size,
            server_seconds=0.0 if cut.name == END else server / size,
            head_seconds=head / size,
        )
        return replace(cut, profile=profile)

    return Cuts([timed(cut) for cut in cuts], cuts.refused, cuts.seconds, cuts.cached)


def _timed_step(
    probe: nn.Module,
    batch: Any,
    cuts: Cuts,
    optimizer: Optimizer,
    context: Callable[[], AbstractContextManager[Any]],
) -> dict[str, tuple[float, float, float, float]]:
    """One uncut step: seconds of client forward, client backward with optimizer step, server and head, by cut."""
    forward_at: dict[str, float] = {}
    backward_at: dict[str, float] = {}
    optimizer.zero_grad()
    begin = time.perf_counter()
    with _noting(probe, cuts, forward_at, backward_at):
        with context():
            loss = loss_of(probe.training_step(*step_arguments(probe, batch, 0)))  # type: ignore[operator]
        turn = time.perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
    end = time.perf_counter()
    optimizer.step()
    step = time.perf_counter() - end
    weights = {name: p.numel() for name, p in probe.named_parameters() if p.requires_grad}
    seconds = {}
    for cut in cuts:
        share = sum(weights.get(name, 0) for name in cut.client) / max(1, sum(weights.values()))
        forward = forward_at.get(cut.name, turn) - begin
        backward = end - backward_at.get(cut.name, turn) + share * step
        head = 0.0
        if cut.back is not None:
            head = max(0.0, backward_at.get(SECOND, turn) - forward_at.get(SECOND, turn))
        seconds[cut.name] = forward, backward, max(0.0, end - begin + step - forward - backward - head), head
    return seconds


@contextmanager
def _noting(
    probe: nn.Module, cuts: Cuts, forward_at: dict[str, float], backward_at: dict[str, float]
) -> Iterator[None]:
    """Notes when each cut's output exists, and when its gradient does."""
    calls: dict[str, int] = {}
    names = {(b.path[-1], b.numbers[-1]): cut.name for cut in cuts if (b := cut.border) is not None}
    names |= {(b.path[-1], b.numbers[-1]): SECOND for cut in cuts if (b := cut.back) is not None}

    def when(name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            backward_at[name] = time.perf_counter()

        return hook

    def noting(module: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            calls[module] = calls.get(module, 0) + 1
            name = names.get((module, calls[module]))
            if name is not None:
                forward_at[name] = time.perf_counter()
                for tensor in tensors_of(output):
                    if tensor.requires_grad:
                        tensor.register_hook(when(name))  # type: ignore[no-untyped-call]
            return output

        return call

    modules = {probe.get_submodule(module): module for module, _ in names}
    with patched({module: noting(name, module.forward) for module, name in modules.items()}):
        yield
