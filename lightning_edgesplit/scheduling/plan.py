"""What a policy decides."""

from __future__ import annotations

from dataclasses import dataclass

DISCIPLINES = ("static", "fair", "longest_first")
"""Who may use a link when: shares that lie idle with their owners, equal parts for those that send now, or first who
has the longest way to go. See `lightning_edgesplit.scheduling.links`."""

ORDERS = ("arrival", "longest_first", "in_order")
"""Whom the server serves next: who came first, who has the longest way to go, or clients 0..N−1 within a local step."""

SERVER_MODELS = ("per_client", "shared", "sequential", "splitfed-v2")
"""One server-side model per client, one that steps with all clients together, one that goes with the whole model from
client to client, or one that serves all steps of a client, then all of another's."""

COMPRESSIONS = ("none", "int8")
"""How smashed data and gradients go over the links: as they are, or as 8-bit integers."""


@dataclass(frozen=True)
class Plan:
    """Cuts, links and order of one round.

    Attributes:
        policy: Name of the policy that made it.
        cuts: Name of the cut of each client.
        shares: Fraction of the shared links that each client gets at most, both directions; where `disciplines` are
            static they sum to 1 at most.
        uplink: Rate of each client towards the server, bit/s, at most; None: not limited.
        downlink: Rate of each client from the server, bit/s, at most; None: not limited.
        predicted: Seconds of each client's round by the latency model.
        iterations: The objective (seconds of the slowest client's round) after each iteration of an iterative policy;
            one value where the policy decides in one go.
        disciplines: One of `DISCIPLINES` for the uplink and one for the downlink.
        order: Whom the server serves next, one of `ORDERS`.
        server_shares: Fraction of the server's speed that each client has for itself (ESFL); empty: arrivals are served
            one at a time at full speed.
        micro_batches: In how many parts each client's batch is under way at once; empty: one.
        compression: One of `COMPRESSIONS`.
        server_model: One of `SERVER_MODELS`.
        turns: With "splitfed-v2", numbers of the clients in the order in which they are served, each with all of its
            local steps; empty: by number.
        aggregated: EPSL's φ: the fraction of a batch whose last-layer gradients are averaged over the clients.
        channel_rates: What each client's radio uplink carries at most, bit/s, beside its own link and its share of the
            shared one (EPSL); empty: no such limit.
        left_out: Numbers of the clients that take no part, by this policy's choice.
        batches: Samples in a local step of each client; empty: as many as their loaders give.

    Raises:
        ValueError: If a value is none of those listed, or there is not one entry per client.
    """

    policy: str
    cuts: tuple[str, ...]
    shares: tuple[float, ...]
    uplink: tuple[float | None, ...]
    downlink: tuple[float | None, ...]
    predicted: tuple[float, ...]
    iterations: tuple[float, ...] = ()
    disciplines: tuple[str, str] = ("static", "static")
    order: str = "arrival"
    server_shares: tuple[float, ...] = ()
    micro_batches: tuple[int, ...] = ()
    compression: str = "none"
    server_model: str = "per_client"
    turns: tuple[int, ...] = ()
    aggregated: float = 0.0
    channel_rates: tuple[float, ...] = ()
    left_out: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        known = (
            ("disciplines", self.disciplines[0], DISCIPLINES),
            ("disciplines", self.disciplines[1], DISCIPLINES),
            ("order", self.order, ORDERS),
            ("compression", self.compression, COMPRESSIONS),
            ("server_model", self.server_model, SERVER_MODELS),
        )
        for option, value, choices in known:
            if value not in choices:
                raise ValueError(f"{option}={value!r} of a plan is unknown: use one of {', '.join(choices)}.")
        count = len(self.cuts)
        optional = ("server_shares", "micro_batches", "channel_rates", "batches")
        for option in ("shares", "uplink", "downlink", "predicted", *optional):
            entries = getattr(self, option)
            if len(entries) != count and not (option in optional and not entries):
                raise ValueError(f"{option} of a plan has {len(entries)} entries for {count} clients: one for each.")
        if any(parts < 1 for parts in self.micro_batches):
            raise ValueError(f"micro_batches={self.micro_batches} of a plan must be at least 1 each.")
        if any(batch < 1 for batch in self.batches):
            raise ValueError(f"batches={self.batches} of a plan must be at least 1 sample each.")
        if not 0 <= self.aggregated <= 1:
            raise ValueError(f"aggregated={self.aggregated} of a plan must be a fraction, from 0 to 1.")

    @property
    def round_time(self) -> float:
        """Seconds of the slowest client's round by the latency model."""
        return max(self.predicted)
