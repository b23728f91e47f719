from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import own_policies
import pytest
from omegaconf import OmegaConf
from scheduling_samples import instance

from lightning_edgesplit.scheduling import EPSL, POLICIES, EdgeSplit, Overlapped, Policy, make_policy


@pytest.mark.parametrize("name", POLICIES)
def test_every_name_makes_a_policy_of_that_name_that_plans(name):
    costs, clients, server = instance(1, clients=3, count=5)
    policy = make_policy(name)
    assert isinstance(policy, Policy)
    plan = policy.plan(costs, clients, server)
    assert (policy.name, plan.policy, len(plan.cuts)) == (name, name, 3)
    assert 0 < plan.round_time < float("inf")
    assert set(plan.cuts) <= {cut.name for cut in costs.cuts}
    overlapped = make_policy(name + "+pipar")
    assert overlapped.plan(costs, clients, server).policy == overlapped.name == name + "+pipar"


@pytest.mark.parametrize(
    ("given", "depth"),
    [
        ("own_policies.Deep", -1),
        (own_policies.Deep, -1),
        ({"policy": "own_policies.Deep", "depth": 2}, 2),
        ({"policy": own_policies.Deep, "depth": 2}, 2),
        ({"policy": "own_policies.Needy", "depth": 1, "width": 1}, 2),
        ("own_policies.shallow", 0),
        ({"policy": "own_policies.shallow", "depth": 1}, 1),
        ("own_policies.made", 1),
        (own_policies.made, 1),
        (OmegaConf.create({"policy": "own_policies.Deep", "depth": 2}), 2),
    ],
)
def test_a_policy_of_the_users_own_is_found_and_given_its_parameters(given, depth):
    costs, clients, server = instance(1, clients=2, count=5)
    policy = make_policy(given)
    assert policy.name == "deep"
    assert policy.plan(costs, clients, server).cuts == (costs.cuts[depth].name,) * 2


def test_it_can_be_overlapped_too():
    policy = make_policy({"policy": "own_policies.Deep+pipar", "depth": 1, "micro_batches": 4})
    assert isinstance(policy, Overlapped)
    assert (policy.name, policy.micro_batches, policy.policy.depth) == ("deep+pipar", 4, 1)


def test_parameters_reach_our_policies_and_an_object_stays_what_it_is():
    assert make_policy({"policy": "epsl", "phi": 0.25}) == EPSL(phi=0.25)
    own = EdgeSplit(turns=3)
    assert make_policy(own) is own
    assert make_policy({"policy": own}) is own


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("fastest", r"policy='fastest' is unknown: use one of fedavg, .*my_package.MyPolicy"),
        ("fastest+pipar", r"policy='fastest' is unknown"),
        ("own_policies.Nothing", r"policy='own_policies.Nothing' is not there \(.*Nothing.*\): use one of fedavg"),
        ("nowhere.Policy", r"policy='nowhere.Policy' is not there \(No module named 'nowhere'\)"),
        ({"policy": "epsl", "fi": 0.5}, r"fi=0.5 is no parameter of policy='epsl': use phi, channel, turns\."),
        ({"policy": "fedavg", "phi": 0.5}, r"phi=0.5 is no parameter of policy='fedavg': it has none"),
        ({"policy": "random", "number": 3}, r"number=3 is no parameter of policy='random': use seed\."),
        ({"policy": "edgesplit", "micro_batches": 3}, r"micro_batches=3 is no parameter of policy='edgesplit'"),
        ({"policy": own_policies.Deep, "width": 2}, r"width=2 is no parameter of policy='Deep': use depth"),
        (
            "own_policies.Needy",
            r"policy='own_policies.Needy' needs depth, width: give a mapping, {'policy': …, 'depth'",
        ),
        ({"phi": 0.5}, r"says not which"),
        ({"policy": own_policies.made, "depth": 2}, r"is an object already, and takes no parameters: depth"),
        ({"policy": "own_policies.made", "depth": 2}, r"is an object, and takes no parameters: depth"),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_known(given, message):
    with pytest.raises(ValueError, match=message):
        make_policy(given)


def test_the_page_names_every_policy_with_its_parameters():
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    table = {row[1].strip(" `"): row[3].replace("`", "").replace(",", "").split() for row in rows}
    assert list(table) == [*POLICIES, "…+pipar"]
    for name, parameters in table.items():
        made = Overlapped if name == "…+pipar" else POLICIES[name]
        hidden = ("name", "epoch", "number", "policy")  # not for users to give, as the planner says the round
        assert parameters == [field.name for field in fields(made) if field.name not in hidden], name


@pytest.mark.parametrize("given", [3, None, "own_policies.number", int, "builtins.int"])
def test_what_is_no_policy_is_refused(given):
    with pytest.raises(TypeError, match="must be one of fedavg"):
        make_policy(given)
