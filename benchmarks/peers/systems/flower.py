"""Flower's simulation: federated averaging of clients that are actors of Ray, as its PyTorch quickstart writes it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.utils.data import TensorDataset

from benchmarks.peers.work import Record, Work, optimizer

client_app = ClientApp()


@cache
def dataset(work: Work) -> TensorDataset:
    """Made once in each process, as the quickstart keeps its federated data set."""
    return work.data()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch, from the server's weights."""
    torch.set_num_threads(1)
    config = message.content["config"]
    work = Work(**{name: config[name] for name in asdict(Work())})
    model = work.model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    step = optimizer(model)
    model.train()
    samples = steps = 0
    for images, labels in work.loader(int(context.node_config["partition-id"]), dataset(work)):
        step.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        step.step()
        samples, steps = samples + len(labels), steps + 1
    metrics = MetricRecord({"num-examples": samples, "steps": steps})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
    )


def play(work: Work, record: Record) -> None:
    """Trains; as many clients at a time as there are cores, each with one core and one thread of torch."""
    warnings.filterwarnings("ignore")
    done = {"num-examples": 0, "steps": 0}
    server_app = ServerApp()

    def total(replies: Iterable[RecordDict], weighted_by: str) -> MetricRecord:
        metrics = [reply["metrics"] for reply in replies]
        done.update({name: sum(int(own[name]) for own in metrics) for name in done})
        return MetricRecord(dict(done))

    def note(number: int, arrays: ArrayRecord) -> None:
        if number:  # 0: before the first round
            record.end_round(done["num-examples"], done["steps"], arrays.to_torch_state_dict())

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=work.clients, min_available_nodes=work.clients,
            train_metrics_aggr_fn=total,
        )  # fmt: skip
        strategy.start(
            grid=grid, initial_arrays=ArrayRecord(work.model().state_dict()), num_rounds=work.rounds,
            train_config=ConfigRecord(asdict(work)), evaluate_fn=note,
        )  # fmt: skip

    run_simulation(
        server_app, client_app, num_supernodes=work.clients, backend_name="ray",
        backend_config={
            "init_args": {"num_cpus": work.cores, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0},
        },
    )  # fmt: skip
