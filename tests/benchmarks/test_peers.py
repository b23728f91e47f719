from __future__ import annotations

import copy
import socket
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers import hivemind, measure, research_loop
from benchmarks.peers.measure import MissingError, Run, System
from benchmarks.peers.systems import research
from benchmarks.peers.work import LEARNING_RATE, MOMENTUM, Work


class Net(nn.Module):
    """Named children, and a flatten before the last, as in torchvision's ResNet."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(2), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.norm(self.first(x))), 1))


def test_a_round_of_the_research_loop_is_the_mean_of_plain_local_training():
    net = Net()
    batches = [[(torch.randn(4, 1, 6, 6), torch.randint(0, 3, (4,))) for _ in range(3)] for _ in range(2)]
    locally = []
    for own in batches:  # the oracle: plain PyTorch
        whole = copy.deepcopy(net).train()
        step = torch.optim.SGD(whole.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        for images, labels in own:
            step.zero_grad()
            F.cross_entropy(whole(images), labels).backward()
            step.step()
        locally.append(whole.state_dict())
    expected = {name: sum(state[name] for state in locally) / 2 for name in locally[0]}

    links, others = zip(*(socket.socketpair() for _ in batches), strict=True)
    clients = [
        Thread(target=research.client, args=(link, Net(), "norm", own))
        for link, own in zip(others, batches, strict=True)
    ]
    for thread in clients:
        thread.start()
    done = research.one_round(list(links), net, "norm")
    for link in links:
        research.send(link, None)
    for thread in clients:
        thread.join()
    for link in (*links, *others):
        link.close()

    assert done == (2 * 3 * 4, 2 * 3)
    assert net.state_dict().keys() == expected.keys()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), msg=name)


def test_a_cut_that_is_no_child_is_refused_by_name():
    with pytest.raises(ValueError, match="'layer9' is none of first, norm, pool, fc"):
        research.sides(Net(), "layer9")


def test_shards_are_all_samples_once_in_whole_batches():
    work = Work(clients=4, samples=256, batch=32)
    assert [number for client in range(4) for number in work.shard(client)] == list(range(256))
    assert sum(len(work.loader(client, work.data())) for client in range(4)) == work.steps == 8
    with pytest.raises(ValueError, match=r"samples=200 .* multiple of 128"):
        Work(clients=4, samples=200, batch=32)


def a_run(first: float, steady: float, work: Work, steps: int) -> Run:
    return Run(first, steady, ((work.samples, steps),) * work.rounds, None, {})


def test_ratios_are_the_peers_seconds_over_ours_pair_by_pair():
    work = Work()
    theirs = [a_run(30.0, 4.0, work, 32), a_run(20.0, 9.0, work, 32), a_run(10.0, 2.0, work, 32)]
    ours = [a_run(10.0, 2.0, work, 32), a_run(10.0, 3.0, work, 32), a_run(10.0, 2.0, work, 32)]
    made = measure.figures(theirs, ours, "_split")
    assert made["steady_split"] == 2.0
    assert made["first_round_split_pairs"] == [3.0, 2.0, 1.0]


def test_a_system_that_takes_fewer_steps_gives_no_figure():
    work = Work()
    measure.check_same_work({"all": a_run(1.0, 1.0, work, 32)}, work)
    with pytest.raises(RuntimeError, match=r"lazy did .*\(1024, 31\)"):
        measure.check_same_work({"all": a_run(1.0, 1.0, work, 32), "lazy": a_run(1.0, 1.0, work, 31)}, work)


def test_different_weights_give_no_figure(monkeypatch):
    work = Work()
    begin = torch.zeros(2)
    monkeypatch.setattr(Work, "model", lambda self: nn.ParameterDict({"w": nn.Parameter(begin)}))
    weights = {"research": torch.tensor([1.0, 1.0]), "ours": torch.tensor([1.0, 1.0002])}

    def run(system: System, work: Work) -> Run:
        return Run(1.0, 1.0, ((work.samples, work.steps),) * work.rounds, None, {"w": weights[system.module]})

    monkeypatch.setattr(measure, "run", run)
    with pytest.raises(RuntimeError, match=r"differ by 0\.0002"):
        research_loop.compare(work, 1)
    weights["ours"] = torch.tensor([1.0, 1.00005])
    assert research_loop.compare(work, 1)["steady"] == 1.0
    weights.update(research=begin, ours=begin)
    with pytest.raises(RuntimeError, match="have moved by 0"):
        research_loop.compare(work, 1)


def test_a_peer_that_is_not_installed_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="hivemind is not installed: pip install hivemind"):
        hivemind.compare(Work(), 1)
