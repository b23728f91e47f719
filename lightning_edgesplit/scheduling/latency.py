"""The latency model: how long a client's round takes at a cut and a share of the links.

One local step of client k at cut l with batch b, in seconds (EdgeSplit, arXiv:2403.15815, as reconstructed from its
abstract and opening; see `policies.edgesplit`):

    T_k(l) = b·Fc(l)/C_k + b·S(l)/u_k + b·Fs(l)/f_k + b·G(l)/d_k + b·Bc(l)/C_k
             forward       uplink       server        downlink     backward

and its round  H·T_k + W(l)/d_k + W(l)/u_k, where W is the client-side model. Fc, Bc, Fs are FLOP per sample; S, G bytes
per sample; W bytes; C_k, f_k FLOP/s. u_k = min(φ_k·B_up, cap_k), and d_k alike: one share φ_k for both directions. What
is ours: the cap by the client's own rate, the latency of a message, and that the server's compute is shared equally,
f_k = F/N. Links are given in bit/s; `links.BITS` is where they become bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import END, Costs, CutCost
from lightning_edgesplit.scheduling.errors import InfeasibleError
from lightning_edgesplit.scheduling.links import BITS, bytes_per_second
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile
from lightning_edgesplit.scheduling.work import Work

_BYTES_PER_WEIGHT = 4
_LONGEST = 1e100  # 1/φ without a share: still finite, so that nothing to send times no rate is 0 and not NaN
Array = NDArray[np.float64]


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one client's round by phase: the first five per local step, the others once per round.

    Attributes:
        forward: Client's forward pass.
        uplink: Smashed data on its way to the server, latency included.
        server: The server's part at its full speed, nobody else being served.
        downlink: Gradient on its way back, latency included.
        backward: Client's backward pass and optimizer step.
        download: Client-side model on its way to the client, latency included.
        upload: The same on its way back.
    """

    forward: float
    uplink: float
    server: float
    downlink: float
    backward: float
    download: float
    upload: float


_INT8_FLOP = 4
"""FLOP per value to find the range, scale and round it, or to take it back."""


@dataclass(frozen=True)
class RoundTerms:
    """The latency model as arrays: what a round takes is a sum of three terms, of which two shrink with the share.

    T(φ) = fixed + up · max(1/φ, own_up) + down · max(1/φ, own_down), for each cut and client. Cuts come first, so that
    a step over one cut of many clients is a step over neighbours in memory.

    Attributes:
        fixed: Seconds that do not depend on the share, [cuts, clients]; infinite where memory does not fit.
        up: Seconds that what goes up would take with the whole common link, [cuts, clients].
        down: The same for what comes down, [cuts, clients].
        own_up: By how much the client's own uplink is slower than the common one, [clients]; 0 where it has no limit.
        own_down: The same for its downlink, [clients].
    """

    fixed: Array
    up: Array
    down: Array
    own_up: Array
    own_down: Array

    @cached_property
    def both(self) -> Array:
        """Sum of `up` and `down`, [cuts, clients]."""
        return self.up + self.down

    def at_share(self, share: float | Array) -> Array:
        """Seconds of each client's round at each cut with that share (or one per client), [cuts, clients]."""
        with np.errstate(divide="ignore"):
            stretch = np.minimum(np.divide(1.0, share), _LONGEST)
        up = self.up * np.maximum(stretch, self.own_up)
        return np.asarray(self.fixed + up + self.down * np.maximum(stretch, self.own_down))


class LatencyModel:
    """Times of all clients at all cuts.

    Args:
        costs: The cuts, and each client's batch and local steps.
        clients: One profile per client.
        server: The server's profile.
        corrections: Factors from measured times; None: none.

    Raises:
        ValueError: If there is not one profile per client, a speed is neither given nor measured, or a client's own
            ``times`` lack a cut.
    """

    def __init__(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> None:
        if len(clients) != len(costs.batch):
            raise ValueError(f"clients has {len(clients)} profiles, costs {len(costs.batch)} clients: one per client.")
        self.costs, self.clients, self.server = costs, list(clients), server
        self.corrections = corrections or Corrections.none(len(clients))

    @property
    def names(self) -> list[str]:
        """Names of the cuts, shallow to deep."""
        return [cut.name for cut in self.costs.cuts]

    def under(self, plan: Plan) -> LatencyModel:
        """The model with the batches that the plan sets, and the steps that come of them; itself if it sets none."""
        return self.with_batch(plan.batches) if plan.batches else self

    def with_batch(self, batch: Sequence[int]) -> LatencyModel:
        """The model of the same clients with other batches."""
        return LatencyModel(self.costs.with_batch(batch), self.clients, self.server, self.corrections)

    def times(self, client: int, cut: int, share: float) -> StepTimes:
        """Seconds by phase of client number `client` at cut number `cut` with that share of the links."""
        profile, cost, batch = self.clients[client], self.costs.cuts[cut], self.costs.batch[client]
        fix, split = self.corrections, cost.name != END
        up = fix.uplink[client] * _seconds_per_byte(share, self.server.uplink, profile.uplink)
        down = fix.downlink[client] * _seconds_per_byte(share, self.server.downlink, profile.downlink)
        forward, backward = self._client_seconds(profile, cost)
        message = cost.trips * profile.latency if split else 0.0
        return StepTimes(
            forward=fix.compute[client] * batch * forward,
            uplink=up * (batch * cost.smashed + cost.step_up) + message,
            server=fix.server[client] * batch * self._server_seconds(cost),
            downlink=down * (batch * cost.gradient + cost.step_down) + message,
            backward=fix.compute[client] * batch * backward,
            download=down * cost.weights + profile.latency,
            upload=up * cost.weights + profile.latency,
        )

    def work(self, client: int, cut: int, compression: str = "none", batch: int | None = None) -> Work:
        """What client number `client` has to do at cut number `cut`; corrections count as more or fewer bytes.

        `batch` is the samples of its local step; None: as many as the costs say.
        """
        profile, cost = self.clients[client], self.costs.cuts[cut]
        batch = self.costs.batch[client] if batch is None else batch
        fix, whole = self.corrections, cost.name == END
        forward, backward = (batch * seconds for seconds in self._client_seconds(profile, cost))
        server, smashed, gradient = batch * self._server_seconds(cost), cost.smashed, cost.gradient
        ratio = 1 / 3 if cost.server_forward is None else cost.server_forward / cost.server if cost.server else 0.0
        server_forward = server * ratio
        if compression == "int8" and not whole:
            smashed = cost.smashed / 4 if cost.smashed_int8 is None else cost.smashed_int8
            gradient = cost.gradient / 4 if cost.gradient_int8 is None else cost.gradient_int8
            flop = _INT8_FLOP * batch * smashed, _INT8_FLOP * batch * gradient
            client_flops, server_flops = self._client_flops(profile, cost), self._server_flops()
            forward, backward = forward + flop[0] / client_flops, backward + flop[1] / client_flops
            server, server_forward = server + sum(flop) / server_flops, server_forward + flop[0] / server_flops
        up, down = fix.uplink[client], fix.downlink[client]
        step_up, step_down = (0.0, 0.0) if whole else (up * cost.step_up, down * cost.step_down)
        return Work(
            forward=fix.compute[client] * forward,
            backward=fix.compute[client] * backward,
            server=fix.server[client] * server,
            server_forward=fix.server[client] * server_forward,
            bytes_up=up * batch * smashed + step_up,
            bytes_down=down * batch * gradient + step_down,
            step_up=step_up,
            step_down=step_down,
            download=down * cost.weights,
            upload=up * cost.weights,
            limit_up=bytes_per_second(rate(1.0, self.server.uplink, profile.uplink)),
            limit_down=bytes_per_second(rate(1.0, self.server.downlink, profile.downlink)),
            latency=profile.latency,
            step_latency=0.0 if whole else cost.trips * profile.latency,
        )

    def aggregation(self, clients: int, size: float | None = None) -> float:
        """Seconds in which the server averages so many models of `size` bytes (None: whole ones).

        2 FLOP per weight and client.

        Raises:
            ValueError: If the server's speed is not known.
        """
        values = (max(cut.in_full for cut in self.costs.cuts) if size is None else size) / _BYTES_PER_WEIGHT
        return 2 * values * clients / self._server_flops() if values and clients else 0.0

    def _client_flops(self, profile: ClientProfile, cost: CutCost) -> float:
        """FLOP/s of a client: the profile's, or what its seconds at that cut come to."""
        if profile.flops is not None:
            return profile.flops
        seconds = sum(self._client_seconds(profile, cost))
        flop = cost.client_forward + cost.client_backward
        return flop / seconds if flop > 0 and seconds > 0 else float("inf")

    def _server_flops(self) -> float:
        """FLOP/s of the server: the profile's, or what this machine's measured seconds come to."""
        if self.server.flops is not None:
            return self.server.flops
        for cost in self.costs.cuts:
            if cost.server_seconds and cost.server:
                return cost.server / cost.server_seconds
            if cost.client_forward_seconds and cost.client_forward:
                return cost.client_forward / cost.client_forward_seconds
        raise ValueError("the server has no `flops`, and this machine's speed was not measured: give its `flops`.")

    def round_time(self, client: int, cut: int, share: float) -> float:
        """Seconds of the client's round, with 1/N of the server's speed."""
        t, steps = self.times(client, cut, share), self.costs.steps[client]
        step = t.forward + t.uplink + len(self.clients) * t.server + t.downlink + t.backward
        return steps * step + t.download + t.upload

    def memory(self, client: int, cut: int, batch: int | None = None) -> float:
        """Bytes that the client needs at that cut, with another batch than that of the costs if one is given."""
        cost = self.costs.cuts[cut]
        return cost.memory_fixed + (self.costs.batch[client] if batch is None else batch) * cost.memory_per_sample

    def fits(self, client: int) -> list[int]:
        """Numbers of the cuts that fit into the client's memory.

        Raises:
            InfeasibleError: If there is none.
        """
        limit, cuts = self.clients[client].memory, range(len(self.costs.cuts))
        fitting = [cut for cut in cuts if limit is None or self.memory(client, cut) <= limit]
        if not fitting:
            least = min(cuts, key=lambda cut: self.memory(client, cut))
            lacking = self.memory(client, least) - (limit or 0.0)
            raise InfeasibleError(
                f"memory={limit:g} bytes of client {self.clients[client].name!r} fits no cut: the least is"
                f" {self.memory(client, least):.0f} bytes at {self.names[least]!r}, {lacking:.0f} more. Raise"
                " `memory`, or use a smaller batch or model."
            )
        return fitting

    def least_shares(self, round_time: float) -> Array:
        """Least share with which a client's round takes no longer; infinite where none does, or memory does not fit.

        T(φ) = a + max(xu/φ, cu) + max(xd/φ, cd) for each client and cut, so T(φ) ≤ T holds where all four sums do.

        Returns:
            [clients, cuts].
        """
        terms = self.terms
        xu, xd, cu, cd = terms.up, terms.down, terms.up * terms.own_up, terms.down * terms.own_down
        left = round_time - terms.fixed
        with np.errstate(divide="ignore", invalid="ignore"):
            need = np.maximum.reduce([_ratio(xu + xd, left), _ratio(xd, left - cu), _ratio(xu, left - cd)])
        # a hair of tolerance, so that a time computed by `round_time` counts as reached
        need[left - cu - cd < -1e-12 * np.abs(round_time)] = np.inf
        return np.asarray(need.T)

    def fastest(self) -> Array:
        """Seconds of each client's round at each cut if it had the links for itself, [clients, cuts]."""
        return self.at_share(1.0)

    def at_share(self, share: float) -> Array:
        """Seconds of each client's round at each cut with that share, [clients, cuts]; infinite without memory."""
        return self.terms.at_share(share).T

    def round_times(self, cuts: Sequence[int], shares: Sequence[float]) -> Array:
        """`round_time` of all clients, each at its cut and share, [clients]; whether memory fits is not asked."""
        everyone, fixed, terms = np.arange(len(self.clients)), self._fixed, self.terms
        own = RoundTerms(
            fixed[cuts, everyone], terms.up[cuts, everyone], terms.down[cuts, everyone], terms.own_up, terms.own_down
        )
        return own.at_share(np.asarray(shares, dtype=np.float64))

    def rates(self, shares: Sequence[float]) -> tuple[list[float | None], list[float | None]]:
        """`rate` of all clients at their shares, bit/s: uplinks and downlinks; None: not limited."""
        given, profiles = np.asarray(shares, dtype=np.float64), self._profiles
        pairs = (self.server.uplink, profiles.uplink), (self.server.downlink, profiles.downlink)
        up, down = (np.minimum(np.inf if link is None else given * link, own) for link, own in pairs)
        return _or_none(up), _or_none(down)

    @cached_property
    def terms(self) -> RoundTerms:
        """The model as arrays.

        Raises:
            InfeasibleError: If no cut fits into a client's memory.
            ValueError: If a speed is neither given nor measured.
        """
        profiles, steps, server = self._profiles, self._steps, self.server
        batch, names = self._batch, ("smashed", "gradient", "step_up", "step_down", "weights")
        smashed, gradient, step_up, step_down, weights = (self._column(name) for name in names)
        up = np.asarray(self.corrections.uplink) * (steps * (batch * smashed + step_up) + weights)
        down = np.asarray(self.corrections.downlink) * (steps * (batch * gradient + step_down) + weights)
        fixed = self._fixed.copy()
        fixed[~self._fitting] = np.inf
        links = []
        for size, link, own in ((up, server.uplink, profiles.uplink), (down, server.downlink, profiles.downlink)):
            size *= 0.0 if link is None else BITS / link
            links.append(np.zeros(len(self.clients)) if link is None else link / own)
        return RoundTerms(fixed, up, down, *links)

    @cached_property
    def _fixed(self) -> Array:
        """Seconds of a round that no share changes, [cuts, clients], memory not considered."""
        steps, batch, latency, fix = self._steps, self._batch, self._profiles.latency, self.corrections
        split = np.array([[cut.name != END] for cut in self.costs.cuts])
        server = np.array([[self._server_seconds(cut)] for cut in self.costs.cuts]) * np.asarray(fix.server)
        fixed = self._client_step_seconds() * np.asarray(fix.compute) + len(self.clients) * server
        fixed *= steps * batch
        fixed += (2 + 2 * steps * (split * self._column("trips"))) * latency
        # a link that is not shared is in the way of nobody else: what goes over it is fixed time
        weights = self._column("weights")
        if self.server.uplink is None:
            up = steps * (batch * self._column("smashed") + self._column("step_up")) + weights
            fixed += np.asarray(fix.uplink) * up * (BITS / self._profiles.uplink)
        if self.server.downlink is None:
            down = steps * (batch * self._column("gradient") + self._column("step_down")) + weights
            fixed += np.asarray(fix.downlink) * down * (BITS / self._profiles.downlink)
        return np.asarray(fixed)

    @cached_property
    def _fitting(self) -> NDArray[np.bool_]:
        """Which cuts fit into which client's memory, [cuts, clients]."""
        need = self._column("memory_fixed") + self._batch * self._column("memory_per_sample")
        fitting = np.asarray(need <= self._profiles.memory)
        for client in np.flatnonzero(~fitting.any(axis=0)):
            self.fits(int(client))  # says what is lacking
        return fitting

    @cached_property
    def _profiles(self) -> _Columns:
        return _Columns(
            flops=self._of_clients("flops", np.nan),
            slowdown=self._of_clients("slowdown", 1.0),
            memory=self._of_clients("memory", np.inf),
            uplink=self._of_clients("uplink", np.inf),
            downlink=self._of_clients("downlink", np.inf),
            latency=self._of_clients("latency", 0.0),
        )

    def _of_clients(self, name: str, missing: float) -> Array:
        """One number per client, [clients]."""
        numbers = np.array(list(map(attrgetter(name), self.clients)), dtype=np.float64)  # None becomes NaN
        return np.asarray(np.where(np.isnan(numbers), missing, numbers))

    def _column(self, name: str) -> Array:
        """One number per cut, [cuts, 1]."""
        return np.array([[getattr(cut, name)] for cut in self.costs.cuts], dtype=np.float64)

    @cached_property
    def _batch(self) -> Array:
        return np.asarray(self.costs.batch, dtype=np.float64)

    @cached_property
    def _steps(self) -> Array:
        return np.asarray(self.costs.steps, dtype=np.float64)

    def _client_step_seconds(self) -> Array:
        """Seconds per sample of forward and backward pass together, [cuts, clients]; see `_client_seconds`."""
        flops = self._profiles.flops
        seconds = (self._column("client_forward") + self._column("client_backward")) / flops
        by_time: dict[int, list[int]] = {}  # clients without `flops`, by whose times they have
        for client in np.flatnonzero(np.isnan(flops)):
            by_time.setdefault(id(self.clients[client].times), []).append(int(client))
        for group in by_time.values():
            at_one = replace(self.clients[group[0]], slowdown=None)
            rows = np.array([[sum(self._client_seconds(at_one, cut))] for cut in self.costs.cuts])
            seconds[:, group] = rows * self._profiles.slowdown[group]
        return np.asarray(seconds)

    def _client_seconds(self, profile: ClientProfile, cost: CutCost) -> tuple[float, float]:
        """Seconds per sample of forward and backward pass."""
        if profile.flops is not None:
            return cost.client_forward / profile.flops, cost.client_backward / profile.flops
        slowdown = profile.slowdown or 1.0
        if profile.times is not None:
            own = profile.times[cost.name]
            return slowdown * own.client_forward, slowdown * own.client_backward
        if cost.client_forward_seconds is None or cost.client_backward_seconds is None:
            raise ValueError(
                f"client {profile.name!r} has no `flops`, and this machine's speed was not measured: give its `flops`."
            )
        return slowdown * cost.client_forward_seconds, slowdown * cost.client_backward_seconds

    def _server_seconds(self, cost: CutCost) -> float:
        """Seconds per sample at the server's full speed."""
        if cost.name == END:
            return 0.0
        if self.server.flops is not None:
            return cost.server / self.server.flops
        if cost.server_seconds is None:
            raise ValueError("the server has no `flops`, and this machine's speed was not measured: give its `flops`.")
        return cost.server_seconds


@dataclass(frozen=True)
class _Columns:
    """Profiles as arrays, [clients]; in the units of `ClientProfile`. NaN: no `flops`; infinite: no limit."""

    flops: Array
    slowdown: Array
    memory: Array
    uplink: Array
    downlink: Array
    latency: Array


def rate(share: float, link: float | None, own: float | None) -> float | None:
    """A client's rate, bit/s: its share of the common link, at most its own; None: not limited."""
    limits = [limit for limit in (None if link is None else share * link, own) if limit is not None]
    return min(limits, default=None)


def _seconds_per_byte(share: float, link: float | None, own: float | None) -> float:
    bits = rate(share, link, own)
    return 0.0 if bits is None else BITS / bits if bits > 0 else float("inf")


def _ratio(part: Array, left: Array) -> Array:
    """Time that is needed over time that is left; 0 where nothing is to be sent, infinite where no time is left."""
    return np.asarray(np.where(part <= 0, 0.0, np.where(left > 0, part / left, np.inf)))


def _or_none(rates: Array) -> list[float | None]:
    numbers: list[float | None] = rates.tolist()
    return [None if number == np.inf else number for number in numbers]
