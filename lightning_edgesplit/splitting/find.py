"""Finds the valid cuts of a LightningModule on a sample batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_edgesplit.splitting.batch import batch_size, first_samples, numbers_of
from lightning_edgesplit.splitting.cache import entry_of
from lightning_edgesplit.splitting.cuts import Cut, Cuts
from lightning_edgesplit.splitting.judge import Candidate, candidates
from lightning_edgesplit.splitting.proof import Probe, generators_kept
from lightning_edgesplit.splitting.tree import flatten

GAP = 0.1
"""Share of the forward FLOP without a cut of one tensor, beyond which cuts of several tensors are proven unasked."""


def find_cuts(
    module: nn.Module,
    batch: Any,
    optimizer: Optimizer | None = None,
    samples: int = 2,
    only: Collection[str] | Callable[[str], bool] | None = None,
    private: Sequence[str] | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    second_cut: str | None = None,
    cache: str | PathLike[str] | None = None,
) -> Cuts:
    """Finds where a LightningModule can be cut, and proves each cut before it offers it.

    The module's ``training_step`` is run on a copy of the module: once to record which tensors are alive where, then
    once per candidate, split in two. A cut is offered if loss, gradients and buffers of the split step equal those of
    the uncut one. Neither the module nor the random generators are changed.

    A cut may be a set of tensors (a residual path, the branches of a block). Such cuts are proven where they are asked
    for by `only`, and else in stretches of the model that no cut of one tensor divides.

    Args:
        module: The LightningModule, in the mode (train) and precision in which it will be trained.
        batch: A batch as its ``training_step`` takes it: tensor, list, tuple, mapping, dataclass, nested.
        optimizer: Its optimizer; gives `CutProfile.optimizer_bytes`. It is copied, not changed.
        samples: How many samples of the batch the proof uses; all, where the step fails on so few.
        only: Limits the proof to these modules: full names or ends of them (``layer1`` for ``net.layer1``), or a
            function that returns True for a full name.
        private: Names of the batch leaves that must not leave the client (``"image"``, ``"0"``, ``"inputs.pixels"``),
            while all others may; None: the raw inputs stay, and what is no tensor.
        context: Opened around every forward pass (mixed precision).
        second_cut: Name of the module behind which the client goes on, so that labels stay with it (a U-shaped split);
            a full name, or an unambiguous end of one. None: the server runs the rest.
        cache: Folder from which the answer to an equal question is taken, and to which a new one goes
            (`default_folder`); None: all is proven anew. Not used where `only` is a function.

    Returns:
        The cuts, shallow to deep, ending with `END`; `Cuts.refused` says why other modules are none.

    Raises:
        TypeError: If ``training_step`` returns no loss.
        ValueError: If the batch has no tensor with a batch dimension, if `private` names what is not in it, if
            `second_cut` names no module that the step calls, or if the step draws random numbers from numpy or Python's
            ``random``, whose streams do not travel.
    """
    begin = time.perf_counter()
    numbers = None if private is None else numbers_of(private, flatten(batch)[1])
    names = [only] if isinstance(only, str) else only
    entry = None
    if not callable(names):
        asked = {
            "samples": samples,
            "only": None if names is None else sorted(names),
            "private": None if numbers is None else sorted(numbers),
            "second_cut": second_cut,
        }
        entry = entry_of(cache, module, batch, optimizer, context, asked)
    cuts = None if entry is None else entry.load()
    if cuts is None:
        matches = names if callable(names) or names is None else _ends_in(names)
        cuts, proven_on = _find(module, batch, optimizer, samples, matches, numbers, context, second_cut)
        if entry is not None:
            entry.save(cuts, proven_on)
    else:
        cuts.cached = True
    cuts.seconds = time.perf_counter() - begin
    return cuts


def _ends_in(names: Collection[str]) -> Callable[[str], bool]:
    return lambda name: any(name == asked or name.endswith(f".{asked}") for asked in names)


def _find(
    module: nn.Module,
    batch: Any,
    optimizer: Optimizer | None,
    samples: int,
    only: Callable[[str], bool] | None,
    numbers: frozenset[int] | None,
    context: Callable[[], AbstractContextManager[Any]],
    second_cut: str | None,
) -> tuple[Cuts, int]:
    """Finds and proves; returns also how many samples that took."""
    with generators_kept():
        probe = _probe(module, batch, optimizer, samples, numbers, context)
        recorder, changed = probe.record()
        cuts: list[Cut] = []
        refused: dict[str, str] = {}
        found: list[Candidate] = []
        for candidate in candidates(recorder, changed, numbers, second_cut):
            if isinstance(candidate, tuple):
                refused.setdefault(candidate[0], candidate[1])
            else:
                found.append(candidate)
        chosen = _chosen(found, only)
        for candidate in found:
            cut = candidate.cut
            if candidate in chosen:
                try:
                    cuts.append(probe.prove(cut))
                except Exception as error:  # whatever the split step raised is the reason why it is no cut
                    refused[cut.name] = f"the proof failed: {type(error).__name__}: {error}"
            elif not candidate.simple:
                assert cut.border is not None
                refused[cut.name] = (
                    f"{len(cut.border.tensors)} tensors cross there, and simpler cuts are near: name it in `cuts`"
                    " to have it"
                )
        cuts.append(probe.whole_step())
    proven = {name for cut in cuts for name in cut.names}
    return Cuts(cuts, {name: reason for name, reason in refused.items() if name not in proven}), probe.size


def _probe(
    module: nn.Module,
    batch: Any,
    optimizer: Optimizer | None,
    samples: int,
    private: frozenset[int] | None,
    context: Callable[[], AbstractContextManager[Any]],
) -> Probe:
    """A probe on the first samples; on the whole batch where the step cannot do with a part of it (graphs, lengths)."""
    if samples < batch_size(batch):
        try:
            return Probe(module, first_samples(batch, samples), optimizer, private, context)
        except Exception:  # noqa: S110, RUF100  # the whole batch says whether the step itself is at fault
            pass
    return Probe(module, batch, optimizer, private, context)


def _chosen(found: Sequence[Candidate], only: Callable[[str], bool] | None) -> list[Candidate]:
    """The candidates to prove: those asked for, or all simple ones and the smallest sets in the gaps between them."""
    if only is not None:
        return [c for c in found if any(only(name) for name in c.cut.names)]
    chosen = [c for c in found if c.simple]
    for candidate in sorted(found, key=lambda c: c.size):
        if all(abs(candidate.position - other.position) > GAP for other in chosen):
            chosen.append(candidate)
    return chosen
