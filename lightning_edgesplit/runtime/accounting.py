"""Makes the report of a round of the times that the server and its clients noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_edgesplit.runtime.inbox import Letter
from lightning_edgesplit.runtime.report import ClientReport, RoundReport, counted_once
from lightning_edgesplit.runtime.seat import Seat, Service
from lightning_edgesplit.runtime.server import Server
from lightning_edgesplit.scheduling.links import Transfer
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.simulate import WAITING, SimulatedRound, Span
from lightning_edgesplit.splitting import END


def report_of(
    server: Server,
    uploads: Sequence[Letter],
    plan: Plan,
    predicted: Sequence[float],
    ended: float,
    index: int,
    epoch: int,
    before: float = 0.0,
) -> RoundReport:
    """The report of the round that the server has just aggregated, as it was measured.

    Args:
        server: The server.
        uploads: What `WholeModels.aggregate` returned: the clients' last letters of the round.
        plan: The plan of the round.
        predicted: Predicted seconds of each client's round.
        ended: When the aggregation was done, monotonic clock, seconds.
        index: Number of the round.
        epoch: The Trainer's epoch.
        before: Seconds of all rounds before.
    """
    began = server.began
    last = max(letter.arrived for letter in uploads)
    longest = max(letter.arrived - server.seats[letter.link].began for letter in uploads)
    spans: list[Span] = []
    clients = []
    for letter in uploads:
        k, seat = letter.link, server.seats[letter.link]
        own = _spans(k, seat, letter, began)
        spans += own
        seconds: dict[str, float] = {}
        for span in own:
            if not span.on_server:
                seconds[span.phase] = seconds.get(span.phase, 0.0) + span.end - span.start
        took, (down, up) = letter.arrived - seat.began, seat.traffic
        once = _once([span for span in own if not span.on_server], took)
        waiting = sum((once or seconds).get(phase, 0.0) for phase in WAITING) + longest - took + ended - last
        clients.append(
            ClientReport(
                client=k,
                name=seat.name,
                cut=seat.cut.name,
                share=plan.shares[k],
                uplink=plan.uplink[k],
                downlink=plan.downlink[k],
                steps=sum(service.last for service in seat.services),
                samples=letter.frame.about["samples"],
                seconds=seconds,
                idle=waiting,
                bytes_up=up,
                bytes_down=down,
                round_time=took,
                predicted=predicted[k],
                overrun=letter.frame.about["overrun"],
                once=once,
                smashed_error=None if letter.frame.about["lost"] is None else letter.frame.about["lost"] ** 0.5,
                gradient_error=(seat.lost / seat.norm) ** 0.5 if seat.norm else None,
                weight_error=float(error) if (error := letter.frame.about.get("weight_error")) else None,
                batch=plan.batches[k] if plan.batches else None,
            )
        )
    # a step of all clients is in each of their seats, with the same times
    visits = {(v.begun, v.done) for seat in server.seats for service in seat.services for v in service.visits}
    spans.append(Span(uploads[0].link, True, "aggregation", last - began, ended - began))
    return RoundReport(
        index=index,
        epoch=epoch,
        policy=plan.policy,
        clients=tuple(clients),
        seconds=ended - began,
        predicted=max(predicted),
        server_seconds=sum(done - begun for begun, done in visits),
        aggregation_seconds=ended - last,
        elapsed=before + ended - began,
        wall=ended - began,
        spans=tuple(spans),
    )


def _once(spans: Sequence[Span], round_time: float) -> dict[str, float]:
    """`ClientReport.once` of a client's own spans."""
    overlap = sum(span.end - span.start for span in spans) > (1 + 1e-6) * round_time
    return counted_once(spans) if overlap else {}


def emulated(report: RoundReport, simulated: SimulatedRound, began: float) -> RoundReport:
    """The same round on the virtual clock: its times are the simulated ones, bytes and samples are what they were.

    Args:
        report: The round as it was measured.
        simulated: The round in virtual time.
        began: When it began on the virtual clock, seconds since the run's first round did.
    """
    own: dict[int, list[Span]] = {client.client: [] for client in report.clients}
    for span in simulated.bars:
        if not span.on_server:
            own[span.client].append(span)
    clients = tuple(
        replace(
            client,
            seconds=dict(simulated.seconds[client.client]),
            once=_once(own[client.client], simulated.ends[client.client]),
            idle=simulated.idle(client.client),
            round_time=simulated.ends[client.client],
            overrun=0.0,
        )
        for client in report.clients
    )
    return replace(
        report,
        clients=clients,
        seconds=simulated.round_time,
        server_seconds=simulated.server_seconds,
        aggregation_seconds=simulated.aggregation,
        elapsed=began + simulated.round_time,
        spans=simulated.timeline(report.clients[0].client),
    )


def _spans(client: int, seat: Seat, letter: Letter, began: float) -> list[Span]:
    """One client's round in its order, on the server's clock.

    What the client's clock is off is bounded by its messages: none arrives before it is sent, in either direction. On
    one host, where the clock is shared, that leaves 0. What counts is when a client began to send: the call may return
    after the arrival.
    """
    times = {name: float(text) for name, text in letter.frame.about["times"].items()}
    steps = letter.frame.tensors[-1].tolist()
    pairs = list(zip(seat.services, steps, strict=True))
    split = seat.cut.name != END
    there: list[float] = []  # how long each message to the server seems to have taken, and each from there
    back: list[float] = []
    for service, (_, forward, _, returned, head, _, gradient, _, _) in pairs:
        there += [visit.arrived - left for visit, left in zip(service.visits, (forward, head), strict=False)]
        if split:
            back += [visit.sent - here for visit, here in zip(service.visits[::-1], (gradient, returned), strict=False)]
    off = min(max(0.0, max(back, default=0.0)), min(there, default=0.0))
    spans: list[Span] = []

    def add(phase: str, start: float, end: float, on_server: bool = False) -> None:
        spans.append(Span(client, on_server, phase, start - began, max(start, end) - began))

    grants, handed_out = iter(seat.grants), iter(seat.handed_out)

    def up(phase: str, left: float, arrived: float) -> None:
        transfer(phase, left, arrived, next(grants, None))

    def down(phase: str, left: float, arrived: float) -> None:
        transfer(phase, left, arrived, next(handed_out, None))

    def transfer(phase: str, left: float, arrived: float, grant: Transfer | None) -> None:
        """On a link, after the wait for it where it is granted."""
        begun = left if grant is None or grant.begun is None else min(max(left, grant.begun), arrived)
        if begun > left:
            add("grant", left, begun)
        add(phase, begun, arrived)

    def visit(service: Service, left: float, here: float) -> None:
        """There and back again: from when the client began to send until it has the answer."""
        up("uplink", left, service.arrived)
        add("wait", service.arrived, service.begun)
        add("server", service.begun, service.sent)
        down("downlink", service.sent, here)
        add("server", service.begun, service.done, on_server=True)

    down("download", seat.began, times["downloaded"] + off)
    for service, (begin, forward, _, returned, head, _, gradient, resumed, backward) in pairs:
        add("forward", begin + off, forward + off)
        if service.first is not None:
            visit(service.first, forward + off, returned + off)
            add("head", returned + off, head + off)
            visit(service, head + off, gradient + off)
        elif split:
            visit(service, forward + off, gradient + off)
        add("backward", resumed + off, backward + off)
    up("upload", times["upload"] + off, letter.arrived)
    return spans
