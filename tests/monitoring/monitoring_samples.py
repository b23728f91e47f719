"""A round to look at: unequal clients, local steps that overlap, and a server that serves in the order of arrival."""

from __future__ import annotations

import heapq

from lightning_edgesplit.runtime.report import ClientReport, RoundReport
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.simulate import Span

# name, cut, share, then seconds: forward, uplink, server, downlink, backward, and the model in each direction
CLIENTS = (
    ("raspberry-pi-4", "layer1", 0.37, 0.55, 0.42, 0.16, 0.31, 0.62, 0.05),
    ("jetson-nano", "layer2", 0.29, 0.24, 0.33, 0.11, 0.26, 0.41, 0.21),
    ("jetson-orin-nx", "layer3", 0.20, 0.16, 0.21, 0.07, 0.17, 0.29, 0.52),
    ("workstation-gpu", "layer3", 0.14, 0.06, 0.29, 0.07, 0.23, 0.10, 0.74),
)
UPLINK = 20e6  # bit/s, shared


def sample_report(copies: int = 1, steps: int = 6, clients: int | None = None) -> RoundReport:
    """A round of `copies` times the four clients (or the first `clients` of them), `steps` local steps each."""
    table = (CLIENTS * copies)[:clients]
    spans: list[Span] = []
    arrivals = []
    for k, (_, _, _, forward, uplink, _, _, _, model) in enumerate(table):
        spans += [Span(k, False, "download", 0.0, model), Span(k, False, "forward", model, model + forward)]
        spans += [Span(k, False, "uplink", model + forward, model + forward + uplink)]
        heapq.heappush(arrivals, (model + forward + uplink, k, 1))
    free, ends = 0.0, {}
    while arrivals:
        arrival, k, step = heapq.heappop(arrivals)
        _, _, _, forward, uplink, server, downlink, backward, model = table[k]
        start = max(arrival, free)
        if start > arrival:
            spans.append(Span(k, False, "wait", arrival, start))
        free = start + server
        spans += [Span(k, on_server, "server", start, free) for on_server in (False, True)]
        phases = [("downlink", downlink), ("backward", backward)]
        phases += [("upload", model)] if step == steps else [("forward", forward), ("uplink", uplink)]
        now = free
        for phase, duration in phases:
            spans.append(Span(k, False, phase, now, now + duration))
            now += duration
        if step == steps:
            ends[k] = now
        else:
            heapq.heappush(arrivals, (now, k, step + 1))
    last = max(ends.values())
    spans.append(Span(0, True, "aggregation", last, last + 0.2))
    return RoundReport(
        index=3,
        epoch=1,
        policy="edgesplit",
        clients=tuple(_client(k, row, spans, ends[k], steps) for k, row in enumerate(table)),
        seconds=last + 0.2,
        predicted=0.94 * last,
        server_seconds=sum(span.end - span.start for span in spans if span.on_server and span.phase == "server"),
        aggregation_seconds=0.2,
        spans=tuple(spans),
    )


def _client(k: int, row: tuple, spans: list[Span], end: float, steps: int) -> ClientReport:
    name, cut, share, *_ = row
    seconds: dict[str, float] = {}
    for span in spans:
        if span.client == k and not span.on_server:
            seconds[span.phase] = seconds.get(span.phase, 0.0) + span.end - span.start
    return ClientReport(
        client=k,
        name=name if k < len(CLIENTS) else f"{name}-{k}",
        cut=cut,
        share=share,
        uplink=share * UPLINK,
        downlink=share * UPLINK,
        steps=steps,
        samples=32 * steps,
        seconds=seconds,
        idle=seconds.get("wait", 0.0) + seconds["server"],
        bytes_up=int(share * UPLINK / 8 * (seconds["uplink"] + seconds["upload"])),
        bytes_down=int(share * UPLINK / 8 * (seconds["downlink"] + seconds["download"])),
        round_time=end,
        predicted=0.94 * end,
        overrun=0.12 if k == 1 else 0.0,
    )


def sample_plan() -> Plan:
    return Plan(
        policy="edgesplit",
        cuts=tuple(row[1] for row in CLIENTS),
        shares=tuple(row[2] for row in CLIENTS),
        uplink=tuple(row[2] * UPLINK for row in CLIENTS),
        downlink=(None, 5.8e6, 4e6, 2.8e6),
        predicted=(12.25, 10.1, 7.02, 8.4),
    )
