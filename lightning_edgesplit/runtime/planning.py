"""From proven cuts and profiles to each round's plan, its predicted times and the clients' orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_edgesplit.runtime.arbiter import Arbitration
from lightning_edgesplit.runtime.report import RoundReport
from lightning_edgesplit.runtime.rounds import Round
from lightning_edgesplit.runtime.seat import Orders
from lightning_edgesplit.runtime.server_models import MODELS
from lightning_edgesplit.runtime.throttle import Emulation
from lightning_edgesplit.scheduling import (
    ClientProfile,
    Corrections,
    Costs,
    CutCost,
    Fixed,
    InfeasibleError,
    LatencyModel,
    Plan,
    Policy,
    ServerProfile,
    for_round,
    make_policy,
    simulate,
    with_fixed,
)
from lightning_edgesplit.scheduling.costs import local_steps
from lightning_edgesplit.scheduling.links import bytes_per_second
from lightning_edgesplit.scheduling.simulate import SimulatedRound
from lightning_edgesplit.scheduling.trace import Trace
from lightning_edgesplit.scheduling.work import Work
from lightning_edgesplit.splitting import END, Cut, CutProfile, Cuts

_FRAME = 48 + 2 * 80 + 250
"""Bytes of a step's frame beside its payload: header, a table row for each of two tensors, a little JSON (measured)."""

COMPARED = ("uniform", "fedavg")
"""Policies whose round times stand beside the plan's."""


def cost_of(cut: Cut, weight_compression: str = "none") -> CutCost:
    """What the scheduler needs to know of a cut.

    Where the step comes back to the client, its last layers and the loss count with its backward pass, and what goes
    there and back twice is added up. Weights that come with fewer bits are kept by the client, as they came, until the
    round's end.

    Args:
        cut: The cut.
        weight_compression: How trained weights travel at the ends of rounds, see `runtime.weights`.

    Raises:
        ValueError: If the cut was not profiled.
    """
    profile = cut.profile
    if profile is None:
        raise ValueError(f"cut {cut.name!r} has no profile: take it from `find_cuts`.")
    split, trips = cut.name != END, 1 if cut.back is None else 2
    overhead = float(trips * _FRAME + profile.generator_bytes + profile.tied_bytes) if split else 0.0
    timed = profile.client_backward_seconds is not None
    in_full = float(profile.weight_bytes - profile.frozen_bytes)
    narrowed = {"bfloat16": profile.parameter_bytes_bfloat16, "int8": profile.parameter_bytes_int8}
    kept = narrowed.get(weight_compression)
    fixed = profile.weight_bytes + profile.parameter_bytes + (profile.optimizer_bytes or 0) + (kept or 0)
    return CutCost(
        name=cut.name,
        client_forward=profile.client_forward,
        client_backward=profile.client_backward + profile.head,
        server=profile.server_forward + profile.server_backward,
        smashed=profile.smashed_bytes + profile.returned_gradient_bytes,
        gradient=profile.gradient_bytes + profile.returned_bytes,
        weights=in_full if kept is None else in_full - profile.parameter_bytes + kept,
        step_up=overhead,
        step_down=overhead,
        memory_fixed=float(fixed),
        memory_per_sample=profile.activation_bytes,
        client_forward_seconds=profile.client_forward_seconds,
        client_backward_seconds=(profile.client_backward_seconds or 0.0) + (profile.head_seconds or 0.0)
        if timed
        else None,
        server_seconds=profile.server_seconds,
        trips=trips,
        averaged=None if kept is None else in_full,
    )


def costs_of(cuts: Cuts, batch: Sequence[int], steps: Sequence[int], weight_compression: str = "none") -> Costs:
    """Costs of all cuts, for clients with these batch sizes and local steps per round."""
    return Costs(tuple(cost_of(cut, weight_compression) for cut in cuts), tuple(batch), tuple(steps))


def _head_share(cut: Cut, client: ClientProfile) -> float:
    """What part of a client's backward pass, as `cost_of` counts it, is its last layers and the loss."""
    profile = cut.profile
    assert profile is not None
    by_flop = client.flops is not None or profile.head_seconds is None
    backward, head = profile.client_backward, profile.head
    if not by_flop:
        backward, head = profile.client_backward_seconds or 0.0, profile.head_seconds or 0.0
    return head / (backward + head) if head else 0.0


class Planner:
    """Plans every round, and learns from the rounds before.

    Args:
        cuts: The proven cuts.
        policy: Who decides.
        clients: One profile per client.
        server: The server's profile.
        batch: Batch size of each client.
        in_order: Whether the server serves the clients in a fixed order.
        emulate: Whether clients take as long as their profiles say.
        learning: Whether measured times change later plans.
        trace: How the clients' conditions change over time; None: they do not.
        server_model: Which server-side model is trained.
        aggregated: EPSL's φ.
        split: Whether clients share a server-side model: the policy is not offered the whole model on the client, and
            every client keeps the cut that it was given first.
        seed: What a random order of service is drawn by, with epoch and round.
        round_steps: Local steps of a round at most; None: all that the epoch has.
        weight_compression: How trained weights travel at the ends of rounds.
    """

    def __init__(
        self,
        cuts: Cuts,
        policy: Policy,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        batch: Sequence[int],
        in_order: bool = False,
        emulate: bool = False,
        learning: bool = True,
        trace: Trace | None = None,
        server_model: str = "per_client",
        aggregated: float = 0.0,
        split: bool = False,
        seed: int | str = 0,
        round_steps: int | None = None,
        weight_compression: str = "none",
    ) -> None:
        self._split, self._round_steps, self._weight_compression = split, round_steps, weight_compression
        self.cuts, self.policy, self.clients, self.server = cuts, policy, list(clients), server
        self.batch, self.in_order, self.emulate, self.learning = tuple(batch), in_order, emulate, learning
        self._trace, self._server_model, self._aggregated = trace, server_model, aggregated
        self._seed, self._draw = seed, ""
        self.corrections = Corrections.none(len(self.clients))
        self._cuts: list[str | None] = [None] * len(self.clients)

    def plan(
        self,
        steps: Sequence[int],
        at: float | None = None,
        epoch: int = 0,
        number: int = 0,
        samples: Sequence[int] = (),
    ) -> tuple[Plan, SimulatedRound]:
        """The plan of round `number` of an epoch with so many local steps per client, and what it should be like.

        With a trace and a time `at` (seconds), when the round begins, the policy knows what holds then, and the
        expected round is one under the trace.

        A client without a local step takes no part: it has no share, and keeps the cut that it had. Where a plan may
        divide batches anew, `samples` are what each client has left: its local steps are as many as they make.
        """
        active = [k for k, count in enumerate(steps) if count]
        self._draw = f"turns/{self._seed}/{epoch}/{number}"
        model, policy = self._model(steps, active, samples=samples), for_round(self.policy, epoch, number)
        policy = with_fixed(policy, lambda own: replace(own, cuts=tuple(own.cuts[k] for k in active), shares=()))
        clients, trace, costs = model.clients, None if at is None else self._trace, model.costs
        if at is not None and trace is not None:
            clients = [trace.at(profile.name, at).of(profile) for profile in clients]
        choices = self._choices(active) if self._split and not isinstance(policy, Fixed) else None
        if choices is not None:
            costs = replace(costs, cuts=tuple(cut for cut in costs.cuts if cut.name in choices) or costs.cuts)
        planned = self._as_trained(policy.plan(costs, clients, self.server, model.corrections), active)
        some = planned if choices is None else self._with_kept(planned, active, choices)
        expected = simulate(model, some, trace, at or 0.0)
        if some.cuts != planned.cuts:
            some = replace(some, predicted=expected.ends)
        places = {k: at for at, k in enumerate(active)}

        def spread(values: Sequence[Any], absent: Any) -> tuple[Any, ...]:
            return tuple(values[places[k]] if k in places else absent for k in range(len(steps)))

        cuts = spread(some.cuts, None)
        self._cuts = [cut or before for cut, before in zip(cuts, self._cuts, strict=True)]
        plan = replace(
            some,
            cuts=tuple(cut or some.cuts[0] for cut in self._cuts),
            shares=spread(some.shares, 0.0),
            uplink=spread(some.uplink, None),
            downlink=spread(some.downlink, None),
            predicted=spread(some.predicted, 0.0),
            server_shares=spread(some.server_shares, 0.0) if some.server_shares else (),
            micro_batches=spread(some.micro_batches, 1) if some.micro_batches else (),
            batches=tuple(some.batches[places[k]] if k in places else own for k, own in enumerate(self.batch))
            if some.batches
            else (),
            channel_rates=spread(some.channel_rates, 0.0) if some.channel_rates else (),
            left_out=tuple(active[k] for k in some.left_out),
            turns=tuple(active[k] for k in some.turns),
        )
        ends, seconds = spread(expected.ends, 0.0), spread(expected.seconds, {})
        bars = tuple(replace(bar, client=active[bar.client]) for bar in expected.bars)
        return plan, replace(expected, ends=ends, seconds=seconds, bars=bars)

    def _choices(self, active: Sequence[int]) -> set[str]:
        """What a policy may choose from for a model that all clients share: the cuts that they have, which stay."""
        kept = {name for k in active if (name := self._cuts[k]) is not None}
        return kept if all(self._cuts[k] for k in active) else {cut.name for cut in self.cuts if cut.name != END}

    def _with_kept(self, plan: Plan, active: Sequence[int], choices: set[str]) -> Plan:
        """The plan with the cuts that these clients have, where it deals out those that they have otherwise."""
        places = zip(active, plan.cuts, strict=True)
        return replace(plan, cuts=tuple((self._cuts[k] if cut in choices else None) or cut for k, cut in places))

    def _as_trained(self, plan: Plan, active: Sequence[int]) -> Plan:
        """The plan of the clients `active` with the order of service and the server-side model of this run."""
        if plan.server_model not in ("per_client", self._server_model):
            own = plan.server_model
            raise ValueError(
                f"policy={plan.policy!r} plans server_model={own!r}, and {self._server_model!r} is trained: give"
                f" EdgeSplitStrategy server_model={own!r}, or the policy an attribute `server_model`."
            )
        order = "in_order" if self.in_order else plan.order
        places = {k: at for at, k in enumerate(active)}
        drawn = MODELS[self._server_model]().turns(len(self.clients), self._draw)
        turns = tuple(places[k] for k in drawn if k in places)
        return replace(plan, order=order, server_model=self._server_model, aggregated=self._aggregated, turns=turns)

    def take(self, cuts: Cuts) -> None:
        """Plans from now on with other cuts: what is trained has changed."""
        self.cuts = cuts
        names = {cut.name for cut in cuts}
        self._cuts = [name if name in names else None for name in self._cuts]

    def steps(self, plan: Plan, steps: Sequence[int], samples: Sequence[int]) -> list[int]:
        """Local steps under a plan's batches, of the clients that have some, with so many samples left."""
        every = zip(steps, samples, plan.batches or self.batch, strict=True)
        return [local_steps(left, batch, self._round_steps) if count else 0 for count, left, batch in every]

    def costs(self, steps: Sequence[int], samples: Sequence[int] = (), active: Sequence[int] | None = None) -> Costs:
        """The costs of a round of the clients `active` (None: all), with the batches of their loaders."""
        active = range(len(self.batch)) if active is None else active
        own = [self.batch[k] for k in active], [steps[k] for k in active]
        costs = costs_of(self.cuts, *own, self._weight_compression)
        if not samples:
            return costs
        left = replace(costs, samples=tuple(samples[k] for k in active), most_steps=self._round_steps)
        return left.with_batch(costs.batch)

    def _model(
        self,
        steps: Sequence[int],
        active: Sequence[int],
        corrected: bool = True,
        samples: Sequence[int] = (),
        plan: Plan | None = None,
    ) -> LatencyModel:
        """The latency model of the clients that take part, numbered from 0; with a plan's batches, if it is given."""
        costs = self.costs(steps, samples, active)
        if plan is not None and plan.batches:
            costs = costs.with_batch([plan.batches[k] for k in active])
        corrections = self.corrections.of(active) if corrected else None
        return LatencyModel(costs, [self.clients[k] for k in active], self.server, corrections)

    def compare(self, steps: Sequence[int]) -> dict[str, float]:
        """Predicted seconds of the same round under the policies in `COMPARED`, where memory allows them."""
        active = [k for k, count in enumerate(steps) if count]
        model = self._model(steps, active)
        times = {}
        for name in COMPARED:
            try:
                plan = make_policy(name).plan(model.costs, model.clients, self.server, model.corrections)
            except InfeasibleError:
                continue  # not for these clients
            times[name] = simulate(model, self._as_trained(plan, active)).round_time
        return times

    def orders(self, plan: Plan, round_: Round) -> list[Orders]:
        """What each client is told."""
        steps, dealt = round_.steps, bool(round_.samples)
        active = [k for k, count in enumerate(steps) if count] if self.emulate else []
        model, places = self._model(steps, active, corrected=False), {k: at for at, k in enumerate(active)}
        orders = []
        found = {name: self.cuts.find(name) for name in dict.fromkeys(plan.cuts)}
        for client, name in enumerate(plan.cuts):
            cut = found[name]
            order = Orders(cut, round_.parts[client], plan.compression)
            if dealt:
                order = replace(order, samples=round_.samples[client], ends=not round_.left[client])
            if self.emulate and steps[client]:
                times = model.times(places[client], model.names.index(cut.name), plan.shares[client])
                head = _head_share(cut, self.clients[client]) * times.backward / self.batch[client]
                emulation = Emulation(
                    forward=times.forward / self.batch[client],
                    backward=times.backward / self.batch[client] - head,
                    uplink=plan.uplink[client],
                    downlink=plan.downlink[client],
                    latency=self.clients[client].latency,
                    head=head,
                )
                own = None if self.server.flops is None else times.server / self.batch[client]
                assert cut.profile is not None
                forward, backward = cut.profile.server_forward, cut.profile.server_backward
                share = forward / max(1.0, forward + backward) if cut.back is not None else 0.0
                order = replace(order, emulation=emulation, server_seconds=own, server_forward=share)
            orders.append(order)
        return orders

    def arbitration(self, plan: Plan, steps: Sequence[int]) -> Arbitration | None:
        """How the links of a round are shared, if the server has to decide who uses them when."""
        if not self.emulate or (plan.disciplines == ("static", "static") and plan.order != "longest_first"):
            return None
        active = [k for k, count in enumerate(steps) if count]
        model = self._model(steps, active, corrected=False, plan=plan)
        works = list[Work | None]([None] * len(steps))
        names = {name: number for number, name in enumerate(model.names)}
        for place, k in enumerate(active):
            works[k] = model.work(place, names[plan.cuts[k]], plan.compression)
        return Arbitration(
            disciplines=plan.disciplines,
            capacities=(bytes_per_second(self.server.uplink), bytes_per_second(self.server.downlink)),
            limits=(
                tuple(bytes_per_second(rate) for rate in plan.uplink),
                tuple(bytes_per_second(rate) for rate in plan.downlink),
            ),
            latencies=tuple(profile.latency for profile in self.clients),
            works=tuple(works),
        )

    def server_threads(self, plan: Plan, steps: Sequence[int], cores: int, at_once: int) -> int:
        """How many of this machine's cores the server's step should use, when clients compute beside it.

        With t threads for the server, clients have the other cores: a step takes the longer of the server's time on t
        cores (between the measured ones by Amdahl's law) and the clients' work on the rest. With all cores the two add
        up, and oversubscribed cores cost up to 30 % (measured) of the time in which they are.

        Args:
            plan: The plan of a round.
            steps: Local steps of every client in it.
            cores: All cores.
            at_once: Clients that run at the same time.
        """
        whole = self.cuts.find(END).profile
        found = {name: self.cuts.find(name).profile for name in dict.fromkeys(plan.cuts)}
        active = [name for name, count in zip(plan.cuts, steps, strict=True) if count]
        chosen = [profile for name in active if (profile := found[name]) is not None]
        assert whole is not None

        def on_one_core(profile: CutProfile) -> float:
            return (profile.client_forward_seconds or 0.0) + (profile.client_backward_seconds or 0.0)

        client = sum(on_one_core(profile) for profile in chosen) / len(chosen)
        one = max(on_one_core(whole) - client, 0.0)
        every = sum(profile.server_seconds or 0.0 for profile in chosen) / len(chosen)
        if cores == 1 or every <= 0:
            return 1
        serial = min(1.0, max(0.0, (every * cores / one - 1) / (cores - 1))) if one > 0 else 1.0
        times = {t: max(one * (serial + (1 - serial) / t), client / min(cores - t, at_once)) for t in range(1, cores)}
        times[cores] = (every + client / cores) * (1 + 0.3 * min(1.0, client / every))
        return min(times, key=lambda t: times[t])

    def learn(self, plan: Plan, steps: Sequence[int], report: RoundReport) -> None:
        """Takes over what a round's measured times say about the next ones."""
        if not self.learning:
            return
        model = self._model(steps, [client.client for client in report.clients], corrected=False, plan=plan)
        predicted: list[dict[str, float]] = [{} for _ in self.clients]
        measured: list[dict[str, float]] = [{} for _ in self.clients]
        # whether what a transfer takes depends on no other
        alone = plan.disciplines == ("static", "static") and not plan.micro_batches
        for place, client in enumerate(report.clients):
            t = model.times(place, model.names.index(client.cut), client.share)
            count, real = client.steps, client.seconds
            split = count if client.cut != END else 0
            predicted[client.client] = {
                "compute": count * (t.forward + t.backward),
                "uplink": split * t.uplink + t.upload,
                "downlink": split * t.downlink + t.download,
                "server": split * t.server,
            }
            measured[client.client] = {
                "compute": real.get("forward", 0.0) + real.get("head", 0.0) + real.get("backward", 0.0),
                "uplink": real.get("uplink", 0.0) + real.get("upload", 0.0),
                "downlink": real.get("downlink", 0.0) + real.get("download", 0.0),
                "server": real.get("server", 0.0),
            }
            if not alone:
                del measured[client.client]["uplink"], measured[client.client]["downlink"]
        self.corrections = self.corrections.update(predicted, measured)
