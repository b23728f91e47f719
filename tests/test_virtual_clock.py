"""Emulated time that is computed: the same numbers in every run, and training as on any other clock."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from small import Deterministic, fit, vectors

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.runtime.report import counted_once
from lightning_edgesplit.scheduling import ClientProfile, Fixed, InfeasibleError, ServerProfile
from lightning_edgesplit.scheduling.simulate import Span
from lightning_edgesplit.scheduling.trace import Trace

NEAR = ClientProfile("near", flops=1e9, uplink=8e6, downlink=16e6)
FAR = ClientProfile("far", flops=1e8, uplink=4e6, downlink=8e6, latency=0.01)
SERVER = ServerProfile(flops=1e10, uplink=8e6, downlink=8e6)
SAMPLES, BATCH = 64, 8


def run(clock="virtual", clients=(NEAR, FAR), server=SERVER, module=None, **options):
    torch.set_num_threads(1)
    torch.manual_seed(3)
    module = module or Deterministic()
    profile = clients if isinstance(clients, (int, str)) else list(clients)
    arguments = {"cuts": "net.0", "timeout": 30, "round_steps": 2, **options}
    strategy = EdgeSplitStrategy(clients=profile, server=server, clock=clock, **arguments)
    torch.manual_seed(4)
    fit(module, vectors(SAMPLES), strategy, batch_size=BATCH)
    return module, strategy


def test_training_is_what_it_is_without_a_clock():
    (virtual, _), (plain, _) = run(), run(clock="off")
    assert all(
        torch.equal(a, b) for a, b in zip(virtual.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_two_runs_have_the_same_times_to_the_last_digit():
    (_, one), (_, two) = run(), run()
    assert [r.seconds for r in one.rounds] == [r.seconds for r in two.rounds]
    assert [r.spans for r in one.rounds] == [r.spans for r in two.rounds]
    assert one.rounds[-1].elapsed == pytest.approx(sum(r.seconds for r in one.rounds))


def test_computing_is_what_the_profile_says_however_long_a_client_waits():
    """A slow link, and a slow server: neither adds to what the client computes."""
    forward = 2 * BATCH * (2 * 12 * 16) / 1e8  # two steps of a linear layer, by hand
    for server in (SERVER, ServerProfile(flops=1e4, uplink=8e6, downlink=8e6), ServerProfile(1e10, 1e4, 1e4)):
        _, strategy = run(server=server)
        far = strategy.rounds[0].clients[1]
        assert far.seconds["forward"] == pytest.approx(forward)
        assert far.idle < strategy.rounds[0].seconds
    assert strategy.rounds[0].seconds > 1  # the last had 10 kbit/s


def test_splitfed_v2_serves_in_virtual_time_in_the_order_in_which_it_trains():
    server = replace(SERVER, flops=1e6)  # the slower one is always there when the other's turn is over
    clients = [replace(NEAR, name=name) for name in "abc"]
    drawn = []
    for clock in ("virtual", "off"):
        module, strategy = run(clock, clients, server, server_model="splitfed-v2")
        spans = [
            sorted((s.start, s.client) for s in report.spans if s.on_server and s.phase == "server")
            for report in strategy.rounds
        ]
        drawn.append(([[client for _, client in own] for own in spans], module.state_dict()))
    (virtual, weights), (real, same) = drawn
    assert virtual == real
    assert len({tuple(order) for order in real}) > 1
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), same.values(), strict=True))


def test_times_depend_on_the_model():
    class Wider(Deterministic):
        def __init__(self):
            super().__init__()
            self.net[0] = torch.nn.Linear(12, 32)
            self.net[1], self.net[3] = torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 16)

    (_, narrow), (_, wide) = run(), run(module=Wider())
    assert wide.rounds[0].clients[0].seconds["forward"] == pytest.approx(
        2 * narrow.rounds[0].clients[0].seconds["forward"]
    )


@pytest.mark.parametrize(
    ("clients", "server", "wanted"),
    [
        ((NEAR, ClientProfile("unknown")), SERVER, "'unknown' has no speed"),
        ((NEAR, FAR), ServerProfile(uplink=1e6), "server: it has no `flops`"),
    ],
)
def test_a_speed_that_is_not_known_is_no_speed_of_zero(clients, server, wanted):
    with pytest.raises(ValueError, match=wanted):
        EdgeSplitStrategy(clients=list(clients), server=server, clock="virtual")


def trace(tmp_path, *lines):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_client_that_is_away_when_a_round_begins_takes_no_part_in_it(tmp_path):
    path = trace(tmp_path, "seconds,client,available", "0,far,0", "0.0001,far,1")  # back during the first round
    module, strategy = run(trace=path)
    took = [[client.name for client in report.clients] for report in strategy.rounds]
    assert took[0] == ["near"]
    assert took[-1] == ["near", "far"]
    batches = SAMPLES // BATCH
    assert sum(client.steps for report in strategy.rounds for client in report.clients) == 2 * batches - 2
    assert module.trainer.global_step == 2 * batches - 2


def test_a_slow_down_in_mid_round_lengthens_it_from_then_on(tmp_path):
    _, free = run()
    free_forward = free.rounds[0].clients[1].seconds["forward"]
    begun = [s.start for s in free.rounds[0].spans if s.client == 1 and s.phase == "forward"]
    path = trace(tmp_path, "seconds,client,slowdown", "0,far,1", f"{begun[1]},far,3")
    _, strategy = run(trace=path)
    # one of the two forward passes at full speed, one at a third of it
    assert strategy.rounds[0].clients[1].seconds["forward"] == pytest.approx(2 * free_forward)
    assert strategy.rounds[0].clients[0].seconds["forward"] == free.rounds[0].clients[0].seconds["forward"]


def test_when_everybody_is_away_the_round_begins_when_one_is_back(tmp_path):
    path = trace(tmp_path, "seconds,client,available", "0,far,0", "0,near,0", "5,near,1", "5,far,1")
    _, strategy = run(trace=path)
    _, free = run()
    assert strategy.rounds[0].elapsed == pytest.approx(5 + free.rounds[0].elapsed)


def test_a_trace_that_brings_nobody_back_says_so(tmp_path):
    path = trace(tmp_path, "seconds,client,available", "0,far,0", "0,near,0")
    with pytest.raises(InfeasibleError, match="none of near, far is available"):
        run(trace=path)


def test_a_trace_goes_with_the_virtual_clock_alone(tmp_path):
    path = trace(tmp_path, "seconds,client,available", "0,far,0")
    with pytest.raises(ValueError, match="goes with clock='virtual'"):
        EdgeSplitStrategy(clients=[NEAR, FAR], server=SERVER, clock="wall", trace=path)


def test_a_trace_knows_all_clients():
    with pytest.raises(ValueError, match="it must know all of `clients`"):
        EdgeSplitStrategy(clients=[NEAR, FAR], server=SERVER, clock="virtual", trace=Trace(("near", "somebody else")))


class LeavingOut:
    """A policy that leaves the far client out."""

    name = "leaving-out"

    def plan(self, costs, clients, server, corrections=None):
        from lightning_edgesplit.scheduling import Uniform

        plan = Uniform().plan(costs, clients, server, corrections)
        return replace(plan, left_out=tuple(k for k, c in enumerate(clients) if c.name == "far"))


@pytest.mark.parametrize("clock", ["virtual", "off"])
def test_a_policy_may_leave_clients_out(clock):
    _, strategy = run(clock=clock, policy=LeavingOut(), cuts=None)
    assert {client.name for report in strategy.rounds for client in report.clients} == {"near"}


def test_links_under_another_discipline_change_times_and_nothing_else():
    class LongestFirst(LeavingOut):
        name = "longest-first"

        def plan(self, costs, clients, server, corrections=None):
            plan = super().plan(costs, clients, server, corrections)
            return replace(
                plan, left_out=(), shares=(1.0, 1.0), disciplines=("longest_first",) * 2, order="longest_first"
            )

    class Divided(LeavingOut):
        def plan(self, costs, clients, server, corrections=None):
            return replace(super().plan(costs, clients, server, corrections), left_out=())

    start = Deterministic()
    (one, scheduled), (two, divided) = (
        run(policy=policy, cuts=None, module=copy.deepcopy(start)) for policy in (LongestFirst(), Divided())
    )
    assert scheduled.rounds[0].seconds < divided.rounds[0].seconds
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_where_phases_overlap_each_moment_is_counted_once():
    spans = [
        Span(0, False, "forward", 0.0, 2.0),
        Span(0, False, "uplink", 1.0, 4.0),  # its first second beside the forward pass
        Span(0, False, "grant", 3.0, 6.0),
        Span(0, False, "backward", 8.0, 9.0),  # after two seconds of nothing
    ]
    assert counted_once(spans) == {"forward": 2.0, "uplink": 2.0, "grant": 2.0, "backward": 1.0}

    class Overlapping(LeavingOut):
        def plan(self, costs, clients, server, corrections=None):
            plan = Fixed(("net.0",) * len(clients)).plan(costs, clients, server, corrections)
            return replace(plan, micro_batches=(4,) * len(clients))

    _, strategy = run(policy=Overlapping(), cuts=None)
    for client in strategy.rounds[0].clients:
        assert sum(client.seconds.values()) > client.round_time
        assert sum(client.once.values()) <= client.round_time * (1 + 1e-9)
        assert client.once["forward"] == pytest.approx(client.seconds["forward"])
    _, plain = run()
    assert plain.rounds[0].clients[0].once == {}
