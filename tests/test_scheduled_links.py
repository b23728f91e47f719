"""Links that the server schedules, on the wall clock: the same update under every discipline, and real grants."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from small import Deterministic, fit, vectors

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.scheduling import ClientProfile, Fixed, ServerProfile

NEAR = ClientProfile("near", flops=1e8)
FAR = ClientProfile("far", flops=2e7, latency=0.002)
SERVER = ServerProfile(flops=1e9, uplink=4e5, downlink=4e5)  # 50 kB/s: a step's 600 bytes take 12 ms


class Scheduled:
    """Fixed cuts, and links under disciplines of the test's choice."""

    name = "scheduled"

    def __init__(self, *disciplines: str, order: str = "arrival") -> None:
        self.disciplines, self.order = disciplines, order

    def plan(self, costs, clients, server, corrections=None):
        plan = Fixed(("net.0",) * len(clients)).plan(costs, clients, server, corrections)
        if self.disciplines == ("static", "static"):
            return plan
        shared = (server.uplink,) * len(clients)
        return replace(
            plan, disciplines=self.disciplines, order=self.order, shares=(1.0,) * len(clients), uplink=shared,
            downlink=shared,
        )  # fmt: skip


def run(policy, module, **options):
    torch.set_num_threads(1)
    arguments = {"clock": "wall", "round_steps": 2, **options}
    strategy = EdgeSplitStrategy(clients=[NEAR, FAR], policy=policy, server=SERVER, timeout=30, **arguments)
    torch.manual_seed(4)
    fit(module, vectors(64), strategy, batch_size=8, epochs=1)
    return strategy


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(3)
    return Deterministic()


@pytest.fixture(scope="module")
def divided(start):
    module = copy.deepcopy(start)
    return module, run(Scheduled("static", "static"), module)


@pytest.mark.parametrize(
    ("disciplines", "order"),
    [
        (("longest_first", "longest_first"), "longest_first"),
        (("fair", "fair"), "arrival"),
        (("static", "longest_first"), "arrival"),
    ],
)
def test_the_update_is_the_same_to_the_last_bit_under_any_discipline(start, divided, disciplines, order):
    module = copy.deepcopy(start)
    strategy = run(Scheduled(*disciplines, order=order), module)
    expected, _ = divided
    for a, b in zip(module.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for report in strategy.rounds:
        for client in report.clients:
            # what was sent took at least as long as the whole link needs for it, and waiting for a grant is no sending
            least = (client.bytes_up - 200) / 50e3
            assert client.seconds["uplink"] + client.seconds["upload"] > 0.9 * least
            assert client.idle >= sum(client.seconds.get(phase, 0.0) for phase in ("grant", "wait", "server"))
            assert set(client.seconds) >= {"download", "forward", "uplink", "server", "downlink", "backward", "upload"}


def test_two_that_want_the_link_at_once_do_not_both_have_all_of_it(start):
    """What both sent took at least as long as the link needs for the bytes of both together."""
    strategy = run(Scheduled("longest_first", "longest_first", order="longest_first"), copy.deepcopy(start))
    report = strategy.rounds[0]
    sending = sorted(
        (span.start, span.end) for span in report.spans if span.phase in ("uplink", "upload") and not span.on_server
    )
    covered, now = 0.0, 0.0
    for begin, end in sending:
        covered, now = covered + max(0.0, end - max(begin, now)), max(now, end)
    assert covered > 0.9 * sum(client.bytes_up - 400 for client in report.clients) / 50e3


def test_a_step_that_comes_back_is_granted_too(start):
    module, plain = copy.deepcopy(start), copy.deepcopy(start)
    run(Scheduled("longest_first", "longest_first"), module, second_cut="net.3")
    run(Scheduled("static", "static"), plain, second_cut="net.3")
    for a, b in zip(module.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
