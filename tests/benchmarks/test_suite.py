from __future__ import annotations

import pytest

from benchmarks import suite
from lightning_edgesplit.scheduling import EdgeSplit, Joint, LatencyModel

ALL = suite.scenarios()


def test_the_grid_has_all_combinations():
    assert len(ALL) == len({scenario.name for scenario in ALL}) == 2 * 4 * 2 * 3
    assert {len(scenario.clients) for scenario in ALL} == {4, 8, 20, 100}
    assert {scenario.server.uplink for scenario in ALL} == {50e6, 200e6, 1e9}


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_every_scenario_has_a_plan(scenario):
    plan = EdgeSplit().plan(scenario.costs, scenario.clients, scenario.server)
    assert 0 < plan.round_time < 3600


@pytest.mark.parametrize("scenario", suite.scenarios("boards server-t4"), ids=lambda scenario: scenario.name)
def test_joint_is_never_slower_than_edgesplit_and_never_below_its_bound(scenario):
    joint, edgesplit = suite.measure(scenario, Joint()), suite.measure(scenario, EdgeSplit())
    assert joint.bound * (1 - 1e-9) <= joint.round_time <= edgesplit.round_time


@pytest.mark.parametrize("model", ["resnet18", "vgg11_bn"])
def test_costs_hold_what_every_machine_has_and_the_work_is_the_same_wherever_it_is_done(model):
    costs = suite.scenarios(f"{model} boards server-t4 50 ")[0].costs
    assert all(cut.client_forward_seconds is cut.server_seconds is None for cut in costs.cuts)
    assert costs.cuts[0].client_forward == 2 * 3 * 64 * 3 * 3 * 32 * 32  # the first convolution, by hand
    total = costs.cuts[-1].client_forward + costs.cuts[-1].client_backward
    for cut in costs.cuts:
        assert cut.client_forward + cut.client_backward + cut.server == pytest.approx(total, rel=1e-4)


def test_a_policy_without_a_plan_is_none():
    scenario = ALL[0]

    class Nothing:
        name = "nothing"

        def plan(self, costs, clients, server, corrections=None):
            LatencyModel(costs, [suite.replace(client, memory=1.0) for client in clients], server).fits(0)

    assert suite.measure(scenario, Nothing()) is None
