"""EPSL: one cut, one shared server-side model, gradients aggregated at the last layer, and a radio link shared out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel, rate
from lightning_edgesplit.scheduling.links import BITS, bytes_per_second
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import check, cuts_for_all, equal_shares, plan_of, simulated
from lightning_edgesplit.scheduling.policies.channel import Channel, least_power, poured, shannon
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile
from lightning_edgesplit.scheduling.work import Work

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Links:
    """What each client has of the links.

    Attributes:
        shares: Fraction of the shared links, one per client.
        radio: Rate of the radio uplink, bit/s, one per client; empty: there is no radio link.
    """

    shares: tuple[float, ...]
    radio: tuple[float, ...] = ()


def round_seconds(model: LatencyModel, works: Sequence[Work], links: Links, phi: float) -> float:
    """Seconds of a round in which every phase of a local step ends for all before the next begins.

    For each local step, over the C clients that still take it:

        max_k (b·Fc/C_k + b·S/u_k)                                     forward, uplink
        + Σ_k b·Fs_forward/F + κ·Σ_k b·Fs_backward/F                   server, κ = 1 − φ·(1 − 1/C)
        + φ·max_k b·G/d                                                broadcast over the whole link
        + max_k ((1 − φ)·b·G/d_k + b·Bc/C_k)                           unicast, backward

    and, around them, the longest download and upload of a client-side model. `simulate` lets clients go on as soon as
    they can, so its round is at most as long, and as long where one local step and no model is all there is.

    Args:
        model: The latency model.
        works: What each client has to do at the cut.
        links: What each has of the links.
        phi: φ, the fraction of a batch whose last-layer gradients are aggregated.
    """
    up, down, whole = (np.array(rates) for rates in zip(*_rates(model, links), strict=True))
    steps = np.array(model.costs.steps)
    taking = steps > 0
    read = {name: np.array([getattr(work, name) for work in works]) for name in Work.__dataclass_fields__}
    sending = read["forward"] + read["bytes_up"] / up + read["step_latency"]
    backward = read["server"] - read["server_forward"]
    common = phi * read["bytes_down"] / whole
    own = (1 - phi) * (read["bytes_down"] - read["step_down"]) + read["step_down"]
    receiving = own / down + read["step_latency"] + read["backward"]
    download, upload = read["download"] / down + read["latency"], read["upload"] / up + read["latency"]
    seconds = download[taking].max() + upload[taking].max()
    before = 0
    for level in sorted({int(count) for count in steps[taking]}):
        active = steps >= level
        kept = 1 - phi * (1 - 1 / active.sum())
        server = read["server_forward"][active].sum() + kept * backward[active].sum()
        step = sending[active].max() + server + common[active].max() + receiving[active].max()
        seconds += (level - before) * step
        before = level
    return float(seconds)


def _rates(model: LatencyModel, links: Links) -> list[tuple[float, float, float]]:
    """Bytes/s of each client: up, down, and down with the whole link for itself."""
    rates = []
    for k, (client, share) in enumerate(zip(model.clients, links.shares, strict=True)):
        up = bytes_per_second(rate(share, model.server.uplink, client.uplink))
        up = min(up, bytes_per_second(links.radio[k])) if links.radio else up
        down = bytes_per_second(rate(share, model.server.downlink, client.downlink))
        rates.append((up, down, bytes_per_second(rate(1.0, model.server.downlink, client.downlink))))
    return rates


def given_to_stragglers(model: LatencyModel, works: Sequence[Work], channel: Channel, phi: float) -> list[int]:
    """Which client has each subchannel, [subchannels]: the next one goes to whoever would be done last.

    Every client has one first, the weakest channel choosing first; each takes the free one with its greatest gain, and
    pours all the power that it may have over those that it has: its cap, or the same part of it as all others where
    there is a cap on all.
    """
    names = [client.name for client in model.clients]
    snr, power = [channel.snr(name) for name in names], [channel.most_power(name) for name in names]
    if channel.total_power is not None:
        power = [min(1.0, channel.total_power / sum(power)) * own for own in power]
    owner, free = [-1] * channel.subchannels, set(range(channel.subchannels))
    own: list[list[int]] = [[] for _ in names]
    seconds = [math.inf] * len(names)
    while free:
        k = max(range(len(names)), key=lambda k: (seconds[k], -sum(snr[k]), -k))
        taken = max(free, key=lambda i: (snr[k][i], -i))
        free.remove(taken)
        owner[taken] = k
        own[k].append(taken)
        mine = [snr[k][i] for i in own[k]]
        radio = shannon(poured(power[k], mine), mine, channel.bandwidth)
        seconds[k] = _alone(model, works[k], k, len(own[k]) / channel.subchannels, radio, phi)
    return owner


def _alone(model: LatencyModel, work: Work, client: int, share: float, radio: float, phi: float) -> float:
    """Seconds of a client's round that depend on its links and on itself."""
    profile = model.clients[client]
    up = min(bytes_per_second(rate(share, model.server.uplink, profile.uplink)), bytes_per_second(radio))
    down = bytes_per_second(rate(share, model.server.downlink, profile.downlink))
    unicast = (1 - phi) * (work.bytes_down - work.step_down) + work.step_down
    step = work.forward + work.bytes_up / up + unicast / down + work.backward
    return model.costs.steps[client] * step + work.download / down + work.upload / up


def controlled(model: LatencyModel, works: Sequence[Work], channel: Channel, owner: Sequence[int]) -> Links:
    """The power step: rates with which the last smashed data arrive soonest, under all power caps. Convex.

        min T  such that  F_k + U_k/R_k(p_k) ≤ T,  Σ_i p_ki ≤ P_k,  Σ_k Σ_i p_ki ≤ P

    F_k: forward pass and latency; U_k: bits of a local step. Without P every client pours its P_k. With it, by
    bisection on T: a client needs the least power for U_k/(T − F_k), and T is feasible iff these fit the caps.
    """
    names = [client.name for client in model.clients]
    own = [[channel.snr(name)[i] for i, k in enumerate(owner) if k == at] for at, name in enumerate(names)]
    shares = tuple(len(mine) / channel.subchannels for mine in own)
    full = [
        shannon(poured(channel.most_power(name), mine), mine, channel.bandwidth)
        for name, mine in zip(names, own, strict=True)
    ]
    powers = [channel.most_power(name) for name in names]
    if channel.total_power is None or sum(powers) <= channel.total_power:
        return Links(shares, tuple(full))
    fixed = [work.forward + work.step_latency for work in works]
    bits = [BITS * max(1.0, work.bytes_up) for work in works]  # a rate for the model, where a step sends nothing
    reach = [  # what other links let through is no reason to spend more power
        min(most, limit if (limit := rate(share, model.server.uplink, client.uplink)) is not None else math.inf)
        for most, share, client in zip(full, shares, model.clients, strict=True)
    ]

    def needs(target: float) -> list[float]:
        rates = [b / (target - f) if target > f else math.inf for b, f in zip(bits, fixed, strict=True)]
        return [least_power(r, mine, channel.bandwidth) for r, mine in zip(rates, own, strict=True)]

    low = max(f + b / r for f, b, r in zip(fixed, bits, reach, strict=True))
    part = channel.total_power / sum(powers)  # every client with the same part of its cap: feasible
    least = [
        min(r, shannon(poured(part * p, mine), mine, channel.bandwidth))
        for r, p, mine in zip(reach, powers, own, strict=True)
    ]
    high = max(f + b / r for f, b, r in zip(fixed, bits, least, strict=True))
    if sum(needs(low)) <= channel.total_power:
        high = low
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if sum(needs(middle)) <= channel.total_power else (middle, high)
    # what is left of the power is given out in proportion, as far as the clients' own caps go
    spent = needs(high)
    more = channel.total_power / sum(spent)
    radio = [
        shannon(poured(min(cap, more * p), mine), mine, channel.bandwidth)
        for cap, p, mine in zip(powers, spent, own, strict=True)
    ]
    return Links(shares, tuple(radio))


@dataclass(frozen=True)
class EPSL:
    """One cut for all and one shared server-side model, gradients aggregated at the last layer. A reconstruction.

    From the paper (arXiv:2303.15991; its abstract and opening): clients compute in parallel; the gradients of a
    fraction φ of the batch are aggregated over the clients at the last layer, so that less is computed backwards and
    sent; subchannels, power and cut are optimised together, by block coordinate descent. Recalled, not checked: the
    latency of a round (`round_seconds`), that there is one cut and one server-side model, a cap on each client's power
    and one on all. From a digest of a sibling by the same group: subchannels go greedily to the straggler, power
    control is convex, and the cut is searched exhaustively.

    Ours: how each of the three steps is written here (`given_to_stragglers`, `controlled`, and `round_seconds` at every
    cut that fits all clients and leaves the server a part); that a round has several local steps, and client-side
    models are exchanged at its ends as under all our policies; m = φ·b instead of ⌈φ·b⌉; that subchannels are the
    client's fraction of the shared links, in both directions, and the downlink is otherwise as the profiles say. A
    descent begins at each of these cuts, ends when a turn gains nothing, and the best one counts. Without a `channel`
    the links are as they are, at equal shares, and the cut is the only choice.

    `Plan.iterations` is by `round_seconds`; `Plan.predicted` is of the simulated round, which is never longer.

    Attributes:
        phi: φ, from 0 (PSL) to 1.
        channel: The radio uplink, or a mapping with its keys; None: there is none.
        turns: Most turns of the descent.
    """

    phi: float = 0.5
    channel: Channel | None = None
    turns: int = 20
    name: str = "epsl"
    server_model: ClassVar[str] = "shared"

    def __post_init__(self) -> None:
        check(self.name, phi=(self.phi, 0.0, 1.0), turns=(self.turns, 1, 2**31))
        if isinstance(self.channel, Mapping):
            object.__setattr__(self, "channel", Channel.of(self.channel))
        if self.channel is not None and not isinstance(self.channel, Channel):
            raise TypeError(f"channel={self.channel!r} of policy={self.name!r} must be a Channel, or its keys.")

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`.

        Raises:
            InfeasibleError: If no cut before `END` fits all clients.
            ValueError: If the channel has fewer subchannels than there are clients, or does not know one of them.
        """
        model = LatencyModel(costs, clients, server, corrections)
        works = {
            cut: [model.work(k, cut) for k in range(len(clients))] for cut in cuts_for_all(self.name, model, split=True)
        }
        links = Links(tuple(equal_shares(len(clients))))
        cut, iterations = self._best_cut(model, works, links)
        if self.channel is not None:
            descents = [self._descend(model, works, start, self.channel) for start in works]
            cut, links, iterations = min(descents, key=lambda descent: descent[2][-1])
        plan = plan_of(self.name, model, [cut] * len(clients), links.shares, iterations)
        if links.radio:
            uplink = tuple(
                radio if own is None else min(own, radio) for own, radio in zip(plan.uplink, links.radio, strict=True)
            )
            plan = replace(plan, uplink=uplink, channel_rates=links.radio)
        return simulated(replace(plan, server_model="shared", aggregated=float(self.phi)), model)

    def _best_cut(
        self, model: LatencyModel, works: Mapping[int, Sequence[Work]], links: Links
    ) -> tuple[int, list[float]]:
        """The cut step: the best of all, and its seconds."""
        seconds = {cut: round_seconds(model, own, links, self.phi) for cut, own in works.items()}
        best = min(seconds, key=lambda cut: seconds[cut])
        return best, [seconds[best]]

    def _descend(
        self, model: LatencyModel, works: Mapping[int, Sequence[Work]], cut: int, channel: Channel
    ) -> tuple[int, Links, list[float]]:
        """Subchannels, power and cut in turn until nothing is gained."""
        if channel.subchannels < len(model.clients):
            raise ValueError(
                f"channel of policy={self.name!r} has {channel.subchannels} subchannels for {len(model.clients)}"
                " clients: give each client at least one, or let fewer take part (`participation`)."
            )
        best: tuple[int, Links] | None = None
        iterations: list[float] = []
        for _ in range(self.turns):
            owner = given_to_stragglers(model, works[cut], channel, self.phi)
            links = controlled(model, works[cut], channel, owner)
            cut, (seconds,) = self._best_cut(model, works, links)
            if iterations and seconds >= iterations[-1]:
                break
            best = cut, links
            iterations.append(seconds)
        assert best is not None
        return *best, iterations
