"""The strategy: Lightning's Trainer on the server, one process per client. The only file that knows both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.optim import Optimizer
from typing_extensions import override

from lightning_edgesplit.launcher import ForkLauncher
from lightning_edgesplit.runtime.client import Client
from lightning_edgesplit.runtime.partition import iid, rebuild
from lightning_edgesplit.runtime.server import Server
from lightning_edgesplit.runtime.wire import Frame, Link
from lightning_edgesplit.splitting import END, Cut, Cuts, find_cuts
from lightning_edgesplit.splitting.batch import flatten


class EdgeSplitStrategy(SingleDeviceStrategy):
    """Trains a LightningModule by parallel split learning: clients in processes of their own, the Trainer as server.

    Args:
        clients: How many clients; the training dataset is divided among them.
        cuts: Where each client's part of the model ends: one module name for all, or one per client
            (see `lightning_edgesplit.splitting.find_cuts`); ``"end"`` gives federated averaging.
        round_steps: Local steps per round; None: one pass over the client's data.
        partition: ``"iid"``, or one list of sample numbers per client.
        timeout: Seconds without a sign of life before a client counts as lost.

    Raises:
        ValueError: If an argument, or what the Trainer was asked for, cannot be; before any process starts.
    """

    strategy_name = "edgesplit"

    def __init__(
        self,
        clients: int = 2,
        cuts: str | Sequence[str] = END,
        round_steps: int | None = None,
        partition: str | Sequence[Sequence[int]] = "iid",
        timeout: float = 60.0,
    ) -> None:
        super().__init__("cpu")
        if isinstance(clients, bool) or not isinstance(clients, int) or clients < 1:
            raise ValueError(f"clients={clients!r} must be a number of clients, at least 1.")
        names = [cuts] * clients if isinstance(cuts, str) else list(cuts)
        if len(names) != clients:
            raise ValueError(
                f"cuts={cuts!r} names {len(names)} cuts for {clients} clients: give one, or one per client."
            )
        if round_steps is not None and round_steps < 1:
            raise ValueError(f"round_steps={round_steps!r} must be at least 1, or None for one pass over the data.")
        if partition != "iid" and (isinstance(partition, str) or len(partition) != clients or not all(partition)):
            raise ValueError(
                f'partition={partition!r} must be "iid", or a non-empty list of sample numbers per client.'
            )
        if not timeout > 0:
            raise ValueError(f"timeout={timeout!r} must be > 0 seconds.")
        self.clients, self.cut_names, self.round_steps = clients, names, round_steps
        self.partition, self.timeout = partition, timeout
        self.parallel_devices: list[torch.device] | None = None  # the Trainer's connector fills it in
        self.cuts: Cuts | None = None
        self._server: Server | None = None
        self._launcher_of_clients: ForkLauncher | None = None
        self._now: tuple[int, Frame, Any] | None = None

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            super().setup(trainer)
            return
        self._refuse_before_setup(trainer)
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        source = trainer.fit_loop._data_source
        loader = source.dataloader()
        if isinstance(self.partition, str):
            parts: Sequence[Sequence[int]] = iid(len(getattr(loader, "dataset", ())), self.clients, seed)
        else:
            parts = self.partition
        loaders = rebuild(loader, parts, seed)
        self._batches = [len(x) for x in loaders]
        trainer.fit_loop._data_source = _DataLoaderSource(_Arrivals(self), "train_dataloader")
        super().setup(trainer)
        if len(self.optimizers) != 1:
            raise ValueError(f"configure_optimizers gave {len(self.optimizers)} optimizers: split learning takes one.")
        if self.clients > 1 and any(c.interval == "step" for c in self.lr_scheduler_configs):
            raise ValueError(
                'a learning-rate schedule with interval="step" would depend on who arrives first: use interval="epoch".'
            )
        module = self.lightning_module
        assert module is not None
        module.train()
        generator = torch.get_rng_state()
        batch = next(iter(rebuild(loader, parts, seed)[0]))
        torch.set_rng_state(generator)
        wanted = set(self.cut_names) - {END}
        self.cuts = find_cuts(
            module, batch, self.optimizers[0], only=lambda n: any(n == w or n.endswith(f".{w}") for w in wanted)
        )
        chosen = [self.cuts.find(name) for name in self.cut_names]
        self._start(module, loaders, chosen, flatten(batch), seed)

    def _refuse_before_setup(self, trainer: pl.Trainer) -> None:
        module = self.lightning_module
        assert module is not None
        refused = {
            "accelerator": (not isinstance(self.accelerator, CPUAccelerator), 'use accelerator="cpu"'),
            "devices": (
                len(self.parallel_devices or [0]) > 1,
                "use devices=1: `clients` says how many there are",
            ),
            "precision": (trainer.precision != "32-true", 'use precision="32-true"'),
            "accumulate_grad_batches": (trainer.accumulate_grad_batches != 1, "use a larger batch"),
            "gradient_clip_val": (trainer.gradient_clip_val is not None, "clip in the loss, or leave it out"),
            "limit_train_batches": (trainer.limit_train_batches != 1.0, "use max_steps, or a smaller dataset"),
            "reload_dataloaders_every_n_epochs": (
                bool(getattr(trainer, "reload_dataloaders_every_n_epochs", 0)),
                "leave it at 0",
            ),
            "ckpt_path": (
                trainer.ckpt_path is not None,
                "load the weights with load_from_checkpoint: resuming with the clients' state is not supported yet",
            ),
        }
        for option, (cannot, way_out) in refused.items():
            if cannot:
                raise ValueError(f"Trainer's `{option}` as given does not work with EdgeSplitStrategy: {way_out}.")
        if not module.automatic_optimization:
            raise ValueError(
                "automatic_optimization=False does not work with EdgeSplitStrategy: both sides step by themselves."
            )

    def _start(self, module: pl.LightningModule, loaders: Any, cuts: list[Cut], sample: Any, seed: int) -> None:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        optimizer = _plain(self.optimizers[0])

        def main(client: int) -> None:
            if client:  # the first goes on with the server's stream, so that one client draws what a plain run draws
                torch.manual_seed(seed * 100_003 + client)
            own = TCPStore("127.0.0.1", store.port, is_master=False)
            link = Link(own, client, on_server=False, timeout=self.timeout)
            Client(module, optimizer, loaders[client], link, self.timeout / 4).run()

        self._launcher_of_clients = ForkLauncher(self.clients, main)
        try:
            links = [Link(store, k, on_server=True, timeout=self.timeout) for k in range(self.clients)]
            self._server = Server(module, optimizer, links, cuts, sample, heartbeat=self.timeout / 4)
        except BaseException:
            self._launcher_of_clients.kill()
            raise

    def _rounds(self) -> Iterator[list[int]]:
        """Local steps of every client in every round of an epoch."""
        left = list(self._batches)
        while any(left):
            steps = [min(n, self.round_steps or n) for n in left]
            left = [n - taken for n, taken in zip(left, steps, strict=True)]
            yield steps

    def _epoch(self) -> Iterator[Any]:
        assert self._server is not None
        for number, steps in enumerate(self._rounds()):
            self._server.start_round(steps, new_epoch=number == 0)
            for _ in range(sum(steps)):
                client, frame = self._server.arrival()
                batch = self._server.batch_of(client, frame)
                self._now = client, frame, batch
                yield batch

    @override
    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        if self._now is not None and batch is self._now[2]:
            return batch  # the client has prepared it
        return super().batch_to_device(batch, device, dataloader_idx)

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self._server is not None
        assert self._now is not None
        client, frame, batch = self._now
        module = self.lightning_module
        assert module is not None
        for name, value, options in frame.about["logged"]:
            module.log(name, value, **{"batch_size": frame.about["samples"], **options})
        side = self._server.seats[client].side
        if side is None:
            self._server.acknowledge(client)
            return torch.tensor(frame.about["loss"], requires_grad=True)
        log = module.log

        def log_behind_the_cut(*args: Any, **kwargs: Any) -> None:
            if side.cut_was_reached:
                log(*args, **kwargs)

        module.__dict__["log"] = log_behind_the_cut
        try:
            with self._server.stepping(client, frame, batch):
                index = [frame.about["index"]] if len(args) > 1 else []
                return super().training_step(batch, *index, **kwargs)
        finally:
            del module.__dict__["log"]

    @override
    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        assert self._server is not None
        assert self._now is not None
        client, frame, _ = self._now
        with self._server.installed(client):
            output = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self._server.served(client, frame.about["samples"]):
            self._server.aggregate()
        return output

    def _aggregate_what_there_is(self) -> None:
        if self._server is not None and self._server.in_mid_round:
            self._server.snapshot()

    @override
    def on_validation_start(self) -> None:
        self._aggregate_what_there_is()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        self._aggregate_what_there_is()
        return super().lightning_module_state_dict()

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        state = super().optimizer_state(optimizer)
        return {**state, "state": {}}  # type: ignore[dict-item]  # the rest is on the clients

    @override
    def on_train_end(self) -> None:
        assert self._server is not None
        assert self._launcher_of_clients is not None
        self._aggregate_what_there_is()
        self._server.stop()
        self._server = None
        self._launcher_of_clients.join(self.timeout)

    @override
    def on_exception(self, exception: BaseException) -> None:
        self._server = None  # what a checkpoint or the caller sees is the last aggregate

    @override
    def teardown(self) -> None:
        if self._launcher_of_clients is not None:
            self._launcher_of_clients.kill()
            self._launcher_of_clients = None
        if self._server is not None:
            self._server.close()
        self._server = self._now = None
        super().teardown()


class _Arrivals:
    """What the Trainer takes for its training DataLoader: one batch per arrival of smashed data."""

    def __init__(self, strategy: EdgeSplitStrategy) -> None:
        self._strategy = strategy

    def __len__(self) -> int:
        return sum(self._strategy._batches)

    def __iter__(self) -> Iterator[Any]:
        return self._strategy._epoch()


def _plain(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


if EdgeSplitStrategy.strategy_name not in StrategyRegistry:
    EdgeSplitStrategy.register_strategies(StrategyRegistry)  # type: ignore[arg-type]
