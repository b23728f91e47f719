"""What a round was like: times by phase, bytes, and the spans that a timeline is drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lightning_edgesplit.scheduling.simulate import Span

PHASES = (
    "download",
    "forward",
    "grant",
    "uplink",
    "wait",
    "server",
    "downlink",
    "head",
    "backward",
    "upload",
    "aggregation",
)
"""Phases of a client's round, in their order: the download of its client-side model, then in each local step forward,
grant (waiting for a link that is scheduled instead of divided), uplink, wait (in the server's queue), server (until the
gradient leaves), downlink and backward, then the upload of its client-side model and the wait for the aggregation.
Where a client runs the last layers too, "head" is these and the loss, forward and backward, between two ways to the
server and back."""


@dataclass(frozen=True)
class ClientReport:
    """One client's part of a round.

    Attributes:
        client: Index of the client.
        name: Its name.
        cut: Name of its cut layer.
        share: Its fraction of the shared links.
        uplink: Its rate towards the server, bit/s; None: not limited.
        downlink: Its rate from the server, bit/s; None: not limited.
        steps: Local steps that it took.
        samples: Samples that it trained on.
        seconds: Seconds by phase (keys from `PHASES`); with micro-batches phases overlap.
        once: The same with each moment counted once, for what comes first of computing, sending and waiting; they add
            up to `round_time` at most. Empty where no phases overlap: then they are `seconds`.
        idle: Seconds in which it neither computed nor sent nor received, as if all had begun their round at once.
        bytes_up: Bytes that it sent, as they were on the wire.
        bytes_down: Bytes that it received.
        round_time: Seconds from the start of its round until the server had its client-side model.
        predicted: The same, predicted when the round was planned.
        overrun: Seconds by which this machine was too slow for the emulated client; 0 without emulation.
        smashed_error: ‖x − x̂‖ / ‖x‖ of the smashed data that went as 8-bit integers; None: none did.
        gradient_error: The same of their gradients.
        weight_error: ‖d − d̂‖ / ‖d‖ of the changes d of its weights that it sent with fewer bits at the end of the round
            (`runtime.weights`); None: it sent none.
        batch: Samples in its local steps (but in the last one of its data), where the plan sets them; None: as many as
            its loader gives.
    """

    client: int
    name: str
    cut: str
    share: float
    uplink: float | None
    downlink: float | None
    steps: int
    samples: int
    seconds: dict[str, float]
    idle: float
    bytes_up: int
    bytes_down: int
    round_time: float
    predicted: float
    overrun: float = 0.0
    once: dict[str, float] = field(default_factory=dict)
    smashed_error: float | None = None
    gradient_error: float | None = None
    weight_error: float | None = None
    batch: int | None = None


_FIRST = ("forward", "backward", "head", "uplink", "downlink", "download", "upload", "server", "wait", "grant")
"""What a moment counts for, where several phases of a client are under way."""


def counted_once(spans: Iterable[Span]) -> dict[str, float]:
    """Seconds by phase of one client's spans, each moment counted for the phase that comes first in `_FIRST`."""
    edges = sorted(
        (time, begins, _FIRST.index(span.phase))
        for span in spans
        if span.phase in _FIRST
        for time, begins in ((span.start, 1), (span.end, -1))
    )
    under_way, seconds = [0] * len(_FIRST), [0.0] * len(_FIRST)
    before = 0.0
    for time, begins, phase in edges:
        first = next((place for place, count in enumerate(under_way) if count), None)
        if first is not None:
            seconds[first] += time - before
        before = time
        under_way[phase] += begins
    return {phase: spent for phase, spent in zip(_FIRST, seconds, strict=True) if spent}


@dataclass(frozen=True)
class RoundReport:
    """One round.

    Attributes:
        index: Number of the round since the start of ``fit``, from 0.
        epoch: The Trainer's epoch that it belongs to.
        policy: Name of the policy that planned it.
        clients: One report per client that took part.
        seconds: Seconds from the start of the round to the end of the aggregation.
        elapsed: Seconds of all rounds until this one's end, those before a checkpoint included.
        wall: Seconds that the round really took; on the virtual clock the others are emulated.
        predicted: The same, predicted when the round was planned.
        server_seconds: Seconds in which the server computed (steps, not aggregation).
        aggregation_seconds: Seconds of the aggregation.
        ends_turns: Where clients take turns, each turn has a report of its own; False if others of the same round are
            still to come.
        spans: The timeline.
    """

    index: int
    epoch: int
    policy: str
    clients: tuple[ClientReport, ...]
    seconds: float
    predicted: float
    server_seconds: float
    aggregation_seconds: float
    elapsed: float = 0.0
    wall: float = 0.0
    ends_turns: bool = True
    spans: tuple[Span, ...] = field(default=(), repr=False)

    @property
    def slowest(self) -> ClientReport:
        """The straggler: the client whose round took longest."""
        return max(self.clients, key=lambda client: client.round_time)
