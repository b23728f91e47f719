"""The strategy: Lightning's Trainer on the server, one process per client. The only file that knows both."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero as rank_zero_module
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_edgesplit import options
from lightning_edgesplit.launcher import (
    CLIENT,
    ExternalLauncher,
    ForkLauncher,
    Launcher,
    Role,
    ScriptLauncher,
    behave_as_client,
)
from lightning_edgesplit.monitoring import log_round, print_plan, round_text, unwatch, watch
from lightning_edgesplit.runtime.accounting import report_of
from lightning_edgesplit.runtime.client import Client
from lightning_edgesplit.runtime.partition import ClientLoaders, Partition
from lightning_edgesplit.runtime.planning import Planner, costs_of
from lightning_edgesplit.runtime.rendezvous import Rendezvous
from lightning_edgesplit.runtime.report import RoundReport
from lightning_edgesplit.runtime.server import Server
from lightning_edgesplit.runtime.wire import Frame
from lightning_edgesplit.scheduling import Corrections, Fixed, Plan, Policy, ServerProfile
from lightning_edgesplit.scheduling.simulate import SimulatedRound
from lightning_edgesplit.splitting import END, Cuts, default_folder, find_cuts, time_cuts
from lightning_edgesplit.splitting.batch import batch_size
from lightning_edgesplit.splitting.tree import flatten

SPANS_KEPT = 50
"""Rounds whose timelines stay in `EdgeSplitStrategy.rounds`; of older ones only the sums do."""


class EdgeSplitStrategy(SingleDeviceStrategy):
    """Trains a LightningModule by parallel split learning: clients in processes of their own, the Trainer as server.

    Args:
        clients: How many clients, one profile per client, or a YAML file (or OmegaConf node) with ``clients:`` and
            ``server:``.
        policy: Who decides cuts and shares of the links: ``"edgesplit"``, ``"exact"``, ``"uniform"``, ``"fedavg"``,
            or an object with a ``name`` and a method ``plan`` (`lightning_edgesplit.scheduling.Policy`).
        cuts: Instead of a policy: one module name for all clients, or one per client
            (see `lightning_edgesplit.splitting.find_cuts`); ``"end"`` gives federated averaging.
        server: The server's speed and the links that all clients share; None: what the YAML file says, else this
            machine's speed as measured and links without limit.
        server_model: ``"per_client"``: each client has a server-side model of its own.
        round_steps: Local steps per round; None: one pass over the client's data.
        partition: How the training set is divided: ``"iid"``, ``"dirichlet:0.5"``, ``"shards:2"``, one list of sample
            numbers per client, a function of (dataset, clients, seed), or None: every client has its own loader.
        private: Names of the batch leaves that must not leave a client (``"image"``, ``"0"``), while all others may be
            sent where the server needs them; None: the model's inputs stay, and what is no tensor.
        participation: Fraction of the clients that take part in a round, at least one; drawn by the seed.
        optimizer_state: ``"keep"``: the optimizer's state stays with its client and moves with its parameter;
            ``"average"``: it is averaged with the weights; ``"reset"``: it is forgotten at the end of each round.
        clock: ``"off"``: clients are as fast as this machine; ``"wall"``: they take as long as their profiles say.
        launcher: How clients are started: ``"fork"``, ``"script"``, ``"external"``, or ``"auto"``.
        processes: How many processes carry the clients; None: one each.
        timeout: Seconds without a sign of life before a client counts as lost.

    Attributes:
        plan: The plan in force; None before the first round.
        rounds: One report per round of the last ``fit``.
        cuts: The cuts that were found, with their costs; None before ``fit``.

    Raises:
        ValueError: If an argument, or what the Trainer was asked for, cannot be; before any process starts.
    """

    strategy_name = "edgesplit"

    def __init__(
        self,
        clients: options.Clients = 4,
        policy: str | Policy = "edgesplit",
        cuts: str | Sequence[str] | None = None,
        server: ServerProfile | None = None,
        server_model: str = "per_client",
        round_steps: int | None = None,
        partition: Partition = "iid",
        private: str | Sequence[str] | None = None,
        participation: float = 1.0,
        optimizer_state: str = "keep",
        clock: str = "off",
        launcher: str = "auto",
        processes: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        super().__init__("cpu")
        self.profiles, self.server_profile = options.profiles(clients, server)
        count = len(self.profiles)
        self._policy, self._wanted = options.policy(policy, cuts, count)
        options.check(
            server_model, round_steps, partition, participation, optimizer_state, clock, processes, timeout, count
        )
        self._role, self._launcher_name = Role.from_environment(), options.launcher(launcher, count)
        self.participation = participation
        self.round_steps, self.partition, self.optimizer_state_rule = round_steps, partition, optimizer_state
        self.clock, self.timeout = clock, timeout
        self.private = [private] if isinstance(private, str) else private
        self.parallel_devices: list[torch.device] | None = None  # the Trainer's connector fills it in
        self.cuts: Cuts | None = None
        self.plan: Plan | None = None
        self.rounds: list[RoundReport] = []
        self._server: Server | None = None
        self._abandoned: Server | None = None
        self._planner: Planner | None = None
        self._processes: Launcher | None = None
        self._now: tuple[int, Frame, Any] | None = None
        self._clip: tuple[str, float] | None = None
        self._expected: tuple[list[int], SimulatedRound] | None = None
        self._source: Any = None
        self._after_round = _Round([], 0, [])
        self._left: tuple[int, int, list[int]] | None = None
        self._saved: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None
        self._resuming = False
        self._first_round = 0
        self._batches: list[int] = []  # of every client, in one pass over its data
        self._threads = self._beside_clients = torch.get_num_threads()
        if self._role.client is not None:
            rank_zero_module.rank_zero_only.rank = self._role.client + 1  # type: ignore[attr-defined]  # no logs, no checkpoints from a client

    @property
    @override
    def is_global_zero(self) -> bool:
        return self._role.client is None

    def save_costs(self, path: str | PathLike[str]) -> None:
        """Writes what every cut of the fitted module costs as JSON, for ``edgesplit plan``.

        Raises:
            RuntimeError: Before ``fit``, when nothing is known yet.
        """
        if self._planner is None or self._expected is None:
            raise RuntimeError("save_costs needs the costs that `fit` measures: call it after `fit`.")
        costs_of(self._planner.cuts, self._planner.batch, self._expected[0]).save(path)

    # ---- before the first round --------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            super().setup(trainer)
            return
        options.check_trainer(trainer, self)
        module = trainer.lightning_module
        self._limit: Any = trainer.limit_train_batches
        self._source, self._threads = trainer.fit_loop._data_source, torch.get_num_threads()
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        loaders = ClientLoaders(self._source.dataloader, self.partition, len(self.profiles), seed)
        trainer.fit_loop._data_source = _DataLoaderSource(_Arrivals(self), "train_dataloader")
        super().setup(trainer)
        if len(self.optimizers) != 1:
            raise ValueError(
                f"configure_optimizers gave {len(self.optimizers)} optimizers: split learning takes one; put all"
                " parameters into it, in groups where they differ."
            )
        module.train()
        self._clip = options.clipping(trainer)
        names = [profile.name for profile in self.profiles]
        if self._role.client is not None:
            behave_as_client()
            self._be_client(self._role.client, loaders, Rendezvous(self._role, names, self.timeout), seed)
            os._exit(0)  # a client's script ends where `fit` would return: what follows is the server's
        batch = self._prepare(loaders.sample())
        self.cuts = self._find_cuts(module, batch)
        in_order = self._paced() or torch.are_deterministic_algorithms_enabled()
        self._planner = self._make_planner(self.cuts, batch_size(batch), in_order)
        self._plan_round([self.round_steps or 1] * len(names))  # what cannot be planned is refused before any process
        module.__dict__["_on_before_batch_transfer"] = self._before_batch_transfer
        self.precision_plugin.__dict__["convert_input"] = self._convert_input
        self._server = self._start(loaders, batch, seed, in_order)
        trainer.limit_train_batches = 1.0  # it holds for what the clients send already
        self._batches = self._limited([greeting["batches"] for greeting in self._server.greetings])
        for greeting, batches in zip(self._server.greetings, self._batches, strict=True):
            greeting["batches"] = batches
        if not any(self._batches):
            raise ValueError("no client has a batch to train on: give more samples, or a smaller batch_size.")
        self._planner.batch = tuple(greeting["batch"] for greeting in self._server.greetings)
        self._proven = self._trained()
        self.rounds, self._first_round, self._left = [], 0, None
        self._plan_round(next(self._rounds(trainer.current_epoch)).steps)
        self._announce()

    def _trained(self) -> list[Any]:
        """What is trained, and in which group of the optimizer."""
        groups = [len(group["params"]) for group in _plain(self.optimizers[0]).param_groups]
        return [p.requires_grad for p in self.lightning_module.parameters()] + groups  # type: ignore[union-attr]

    def _paced(self) -> bool:
        """Whether the optimizer's rates may move with every arrival, so that their order matters."""
        own_step = is_overridden("optimizer_step", self.lightning_module, pl.LightningModule)
        return own_step or any(schedule.interval == "step" for schedule in self.lr_scheduler_configs)

    def _make_planner(self, cuts: Cuts, batch: int, in_order: bool) -> Planner:
        policy = self._policy
        if isinstance(policy, Fixed):  # full names for what the user may have shortened
            policy = replace(policy, cuts=tuple(cuts.find(name).name for name in policy.cuts))
        return Planner(
            cuts,
            policy,
            self.profiles,
            self.server_profile,
            batch=[batch] * len(self.profiles),
            in_order=in_order,
            emulate=self.clock == "wall",
            learning=not torch.are_deterministic_algorithms_enabled(),
        )

    def _start(self, loaders: ClientLoaders, batch: Any, seed: int, in_order: bool) -> Server:
        """Starts the clients, or waits for those that somebody else starts, and greets them."""
        names = [profile.name for profile in self.profiles]
        rendezvous = Rendezvous(self._role, names, self.timeout)
        try:
            if self._launcher_name == "fork":
                self._processes = ForkLauncher(
                    len(names), lambda client: self._be_client(client, loaders, rendezvous, seed)
                )
            elif self._launcher_name == "script":
                self._processes = ScriptLauncher(len(names), rendezvous.address)
            else:
                self._processes = ExternalLauncher()
            links = rendezvous.links(self._processes)
        finally:
            rendezvous.close()
        assert self.lightning_module is not None
        return Server(
            self.lightning_module,
            _plain(self.optimizers[0]),
            links,
            names,
            flatten(batch),
            self.timeout / 4,
            optimizer_state=self.optimizer_state_rule,
            in_order=in_order,
            paced=self._paced(),
            take_step=self._take_step,
            rules={"accumulate": self.lightning_module.trainer.accumulate_grad_batches, "clip": self._clip},
        )

    def _find_cuts(self, module: pl.LightningModule, batch: Any) -> Cuts:
        """The proven and timed cuts; only those that were asked for, where some were."""
        wanted = self._wanted
        context = self.precision_plugin.train_step_context
        optimizer = _plain(self.optimizers[0])
        cuts = find_cuts(
            module, batch, optimizer, only=wanted, private=self.private, context=context, cache=default_folder()
        )
        for name in wanted or ():
            cuts.find(name)
        return time_cuts(module, batch, cuts, optimizer, server_threads=self._threads, context=context)

    def _be_client(self, client: int, loaders: ClientLoaders, rendezvous: Rendezvous, seed: int) -> None:
        """What runs in a client's process, from its first to its last moment."""
        os.environ[CLIENT] = str(client)  # for a `train_dataloader` that wants to know
        if client:  # the first goes on with the server's stream, so that one client draws what a plain run draws
            for sow in (torch.manual_seed, random.seed, np.random.seed):
                sow((seed * 100_003 + client) % 2**32)
        module, loops = self.lightning_module, self.lightning_module.trainer.fit_loop  # type: ignore[union-attr]
        assert module is not None

        def on_round(epoch: int, step: int) -> None:
            # so that `current_epoch` and `global_step` are what they are on the server
            loops.epoch_progress.current.processed = epoch  # type: ignore[union-attr]
            loops.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step

        Client(
            module, _plain(self.optimizers[0]), loaders.of(client), rendezvous.link(client), self.timeout / 4,
            prepare=self._prepare, context=self.precision_plugin.train_step_context, on_round=on_round,
        ).run()  # fmt: skip

    def _announce(self) -> None:
        """Prints the plan beside what others would take, and adds to the progress bar, where there is one."""
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        if trainer.progress_bar_callback is None:
            return
        assert self.plan is not None
        assert self._planner is not None
        assert self._expected is not None
        steps, expected = self._expected
        others = self._planner.compare(steps) if self._wanted is None else {}
        print_plan(
            replace(self.plan, predicted=expected.ends), [p.name for p in self.profiles],
            {name: seconds for name, seconds in others.items() if name != self.plan.policy},
        )  # fmt: skip
        watch(trainer, lambda: round_text(self.rounds[-1] if self.rounds else None))

    # ---- a round -----------------------------------------------------------------------------------------------------

    def _limited(self, batches: Sequence[int | None]) -> list[int]:
        """Batches of every client in an epoch, under the Trainer's `limit_train_batches`; dealt out in turn."""
        limit = self._limit
        if None in batches and not (isinstance(limit, int) and limit > 0):
            raise ValueError(
                "a client's training loader has no length: say with the Trainer's limit_train_batches=… how many"
                " batches all clients together take per epoch, or give the dataset a __len__."
            )
        if isinstance(limit, float):
            if limit == 1.0:
                return [n or 0 for n in batches]
            limit = int(sum(n or 0 for n in batches) * limit)
        taken = [0] * len(batches)
        while sum(taken) < limit and any(n is None or n > t for n, t in zip(batches, taken, strict=True)):
            for client, n in enumerate(batches):
                if sum(taken) < limit and (n is None or n > taken[client]):
                    taken[client] += 1
        return taken

    def _rounds(self, epoch: int) -> Iterator[_Round]:
        """The rounds of an epoch."""
        left, number = list(self._batches), 0
        if self._left is not None and self._left[0] == epoch:  # an epoch that was under way when it was saved
            _, number, left = self._left
        while any(left):
            steps = [min(n, self.round_steps or n) for n in left]
            left = [n - taken for n, taken in zip(left, steps, strict=True)]
            sampled = self._sampled([k for k, n in enumerate(steps) if n], epoch, number)
            number += 1
            yield _Round([n if k in sampled else 0 for k, n in enumerate(steps)], number, left)

    def _sampled(self, clients: list[int], epoch: int, number: int) -> set[int]:
        """The clients that take part in a round: a share of all, drawn by seed, epoch and round."""
        wanted = min(len(clients), max(1, round(self.participation * len(self.profiles))))
        if wanted == len(clients):
            return set(clients)
        draw = random.Random(f"{os.environ.get('PL_GLOBAL_SEED', 0)}/{epoch}/{number}")
        return set(draw.sample(clients, wanted))

    def _begin_epoch(self) -> None:
        """Tells the Trainer how many arrivals the epoch has, where sampling makes that differ from epoch to epoch."""
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        if self.participation < 1:
            batches = sum(sum(round_.steps) for round_ in self._rounds(trainer.current_epoch))
            trainer.fit_loop.max_batches = batches
            if isinstance(trainer.val_check_interval, float):
                trainer.val_check_batch = max(1, int(batches * trainer.val_check_interval))

    def _plan_round(self, steps: list[int]) -> None:
        assert self._planner is not None
        self.plan, expected = self._planner.plan(steps)
        self._expected = steps, expected
        self._beside_clients = self._planner.server_threads(self.plan, self._threads)

    def _epoch(self) -> Iterator[Any]:
        """One pass over all clients' data, as the Trainer's batches: one per arrival of smashed data."""
        server, planner, trainer = self._server, self._planner, self.lightning_module.trainer  # type: ignore[union-attr]
        assert server is not None
        assert planner is not None
        self._go_on_from_checkpoint()
        if self.participation < 1 and trainer.fit_loop._combined_loader is not None:
            trainer.fit_loop._combined_loader.limits = None  # epochs differ in length: it asks again
        for round_ in self._rounds(trainer.current_epoch):
            if self._trained() != self._proven:
                raise ValueError(
                    "requires_grad, or the optimizer's groups, have changed between two rounds (BaseFinetuning?): cuts"
                    " are proven for what is trained. End this `fit`, and call it again with the new setting."
                )
            steps, self._after_round = round_.steps, round_
            self._plan_round(steps)
            assert self.plan is not None
            server.start_round(
                planner.orders(self.plan, steps),
                epoch=trainer.current_epoch, global_step=trainer.global_step,
            )  # fmt: skip
            for _ in range(sum(steps)):
                client, frame = server.arrival()
                self._share_cores()
                batch = server.batch_of(client, frame)
                self._now = client, frame, batch
                yield batch

    def _share_cores(self) -> None:
        """Gives the server's step all threads where it computes alone, else as many as the plan leaves to it."""
        assert self._server is not None
        torch.set_num_threads(self._beside_clients if self._server.clients_ahead else self._threads)

    def _prepare(self, batch: Any) -> Any:
        """What the Trainer does to a batch before ``training_step``; on the client, since the batch stays there."""
        assert self.lightning_module is not None
        batch = type(self.precision_plugin).convert_input(self.precision_plugin, batch)
        batch = type(self.lightning_module)._on_before_batch_transfer(self.lightning_module, batch, dataloader_idx=0)
        return super().batch_to_device(batch, dataloader_idx=0)

    def _convert_input(self, batch: Any) -> Any:
        return (
            batch
            if self._is_arrival(batch)
            else type(self.precision_plugin).convert_input(self.precision_plugin, batch)
        )

    def _before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        if self._is_arrival(batch):
            return batch
        module = self.lightning_module
        assert module is not None
        return type(module)._on_before_batch_transfer(module, batch, dataloader_idx)

    def _is_arrival(self, batch: Any) -> bool:
        return self._now is not None and batch is self._now[2]

    @override
    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        if self._is_arrival(batch):
            return batch  # the client has prepared it
        return super().batch_to_device(batch, device, dataloader_idx)

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self._server is not None
        assert self._now is not None
        client, frame, batch = self._now
        module = self.lightning_module
        assert module is not None
        for name, value, log_options in frame.about["logged"]:
            module.log(name, value, **{"batch_size": frame.about["samples"], **log_options})
        if self._server.seats[client].cut.name == END:
            return torch.tensor(frame.about["loss"], requires_grad=True)
        log = module.log

        def log_behind_the_cut(*args: Any, **kwargs: Any) -> None:
            if self._server is not None and self._server.seats[client].server_side(module).cut_was_reached:
                log(*args, **kwargs)

        module.__dict__["log"] = log_behind_the_cut
        try:
            with self._server.stepping(client, frame):
                index = [frame.about["index"]] if len(args) > 1 else []
                return super().training_step(batch, *index, **kwargs)
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"This was the server's side of {self._server.seats[client].name}'s step.")
            raise
        finally:
            del module.__dict__["log"]

    @override
    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        assert self._server is not None
        assert self._now is not None
        client, frame, _ = self._now
        server, whole = self._server, self._server.seats[client].cut.name == END
        later = self._clip is not None and self._clip[0] == "norm" and not whole
        with server.installed(client):
            output = closure()
            if frame.about["steps"] and not later:
                nothing = all(p.grad is None for p in server.sides.parameters.values())  # torch clips no empty list
                with self._clipping_by(lambda limit: None) if nothing else nullcontext():
                    super().optimizer_step(optimizer, lambda: output, model, **kwargs)
                server.drop_gradients(client)
            else:
                server.keep_gradients(client)
        if frame.about["steps"] and later:
            server.owe_step(client)
        if whole:
            server.acknowledge(client)
        if server.served(client):
            self._end_round()
        return output

    def _take_step(self) -> None:
        """A step of the optimizer that had to wait; as the Trainer would take it."""
        assert self._server is not None
        optimizer = _plain(self.optimizers[0])
        with self._clipping_by(self._server.clip_by_norm):
            super().optimizer_step(optimizer, lambda: None, self.lightning_module)

    @contextmanager
    def _clipping_by(self, clip: Callable[[float], None]) -> Iterator[None]:
        """While this is open, `clip` does what the Trainer's clipping would do."""
        own = self.precision_plugin.__dict__
        own["clip_gradients"] = lambda optimizer, clip_val=0.0, gradient_clip_algorithm=None: clip(float(clip_val))
        try:
            yield
        finally:
            del own["clip_gradients"]

    @override
    def pre_backward(self, closure_loss: Tensor) -> None:
        assert self._server is not None
        assert self._now is not None
        self._server.before_backward(self._now[0])

    @override
    def post_backward(self, closure_loss: Tensor) -> None:
        assert self._server is not None
        assert self._now is not None
        self._server.after_backward(self._now[0])

    @property
    @override
    def handles_gradient_accumulation(self) -> bool:
        """Each client counts its own batches; but the epoch's last arrival ends a step in the Trainer's count too."""
        trainer = None if self.lightning_module is None else self.lightning_module._trainer
        return trainer is None or not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch

    def _end_round(self) -> None:
        """Aggregates, reports, and learns for the next plan."""
        server, planner, trainer = self._server, self._planner, self.lightning_module.trainer  # type: ignore[union-attr]
        assert server is not None
        assert planner is not None
        assert self.plan is not None
        assert self._expected is not None
        torch.set_num_threads(self._threads)
        server.aggregate()
        steps, expected = self._expected
        report = report_of(
            server,
            self.plan,
            expected.ends,
            ended=time.monotonic(),
            index=self._first_round + len(self.rounds),
            epoch=trainer.current_epoch,
        )
        self.rounds.append(report)
        if len(self.rounds) > SPANS_KEPT:
            self.rounds[-SPANS_KEPT - 1] = replace(self.rounds[-SPANS_KEPT - 1], spans=())
        planner.learn(self.plan, steps, report)
        if trainer.loggers:
            assert self.cuts is not None
            depths = {cut.name: depth for depth, cut in enumerate(self.cuts)}
            last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            log_round(trainer.loggers, report, trainer.global_step + 1, depths, figure=last)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """A Lightning checkpoint, with what the clients need to go on under a key of its own."""
        if "optimizer_states" in checkpoint:
            state = self._saved if self._server is None else self._resume_state()
            if state is not None:
                checkpoint[self.strategy_name] = state
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def _resume_state(self) -> dict[str, Any]:
        assert self._server is not None
        assert self._planner is not None
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        number, left = self._after_round.number, self._after_round.left
        if self._server.in_mid_round:
            left = [n + seat.left for n, seat in zip(left, self._server.seats, strict=True)]
        corrections = asdict(self._planner.corrections)
        return {
            "epoch": trainer.current_epoch, "round": number, "left": left, "clients": self._server.positions(),
            "corrections": corrections, "rounds": self._first_round + len(self.rounds),
        }  # fmt: skip

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        loaded: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only)
        self._loaded = loaded.pop(self.strategy_name, None)
        return loaded

    @override
    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        super().load_optimizer_state_dict(checkpoint)
        self._resuming = True

    def _go_on_from_checkpoint(self) -> None:
        """Before the first round: gives clients and planner what the checkpoint holds of them."""
        if not self._resuming:
            return
        assert self._server is not None
        assert self._planner is not None
        self._resuming, saved, self._loaded = False, self._loaded, None
        if saved is None or [client["name"] for client in saved["clients"]] != [p.name for p in self.profiles]:
            self._server.restore(None, None)  # from a plain run, or one with other clients: all begin with the mean
            return
        self._planner.corrections = Corrections(**saved["corrections"])
        self._first_round = saved["rounds"]
        under_way = any(saved["left"]) and saved["epoch"] == self.lightning_module.trainer.current_epoch  # type: ignore[union-attr]
        self._left = (saved["epoch"], saved["round"], saved["left"]) if under_way else None
        self._server.restore(saved["clients"], saved["epoch"] if under_way else None)

    # ---- whole models ------------------------------------------------------------------------------------------------

    def _running(self) -> bool:
        """Whether there are clients to ask; not while an exception is being handled."""
        module = self.lightning_module
        return self._server is not None and module is not None and module.trainer.state.status == TrainerStatus.RUNNING

    def _aggregate_what_there_is(self) -> None:
        if self._running() and self._server is not None and self._server.in_mid_round:
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
        if self._running() and self._server is not None:
            self._server.gather_optimizer_state()
        return super().optimizer_state(optimizer)

    @override
    def on_train_end(self) -> None:
        assert self._server is not None
        assert self._processes is not None
        self._aggregate_what_there_is()
        self._server.gather_optimizer_state()
        self._saved = self._resume_state()  # for a checkpoint that is saved after `fit`
        self._server.stop()
        self._server = None
        self._processes.join(self.timeout)

    @override
    def on_exception(self, exception: BaseException) -> None:
        if self._server is not None:
            self._server.abandon()
        self._abandoned, self._server = self._server, None  # a checkpoint or the caller sees the last aggregate

    @override
    def teardown(self) -> None:
        if self._processes is not None:
            self._processes.kill()
        if self._abandoned is not None:
            self._abandoned.join(timeout=5)
        if self.lightning_module is not None:
            self.lightning_module.__dict__.pop("_on_before_batch_transfer", None)
            self.precision_plugin.__dict__.pop("convert_input", None)
            if self._source is not None:
                unwatch(self.lightning_module.trainer)
                self.lightning_module.trainer.fit_loop._data_source = self._source
                self.lightning_module.trainer.limit_train_batches = self._limit
        torch.set_num_threads(self._threads)
        self._server = self._abandoned = self._processes = self._now = self._source = None
        super().teardown()


@dataclass(frozen=True)
class _Round:
    """Local steps of every client in a round, 0 for those that take no part; and how the epoch stands after it."""

    steps: list[int]
    number: int
    left: list[int]


class _Arrivals:
    """What the Trainer takes for its training DataLoader: one batch per arrival of smashed data."""

    def __init__(self, strategy: EdgeSplitStrategy) -> None:
        self._strategy = strategy

    def __len__(self) -> int:
        epoch = self._strategy.lightning_module.trainer.current_epoch  # type: ignore[union-attr]
        return sum(sum(round_.steps) for round_ in self._strategy._rounds(epoch))

    def __iter__(self) -> Iterator[Any]:
        self._strategy._begin_epoch()
        return self._strategy._epoch()


def _plain(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


if EdgeSplitStrategy.strategy_name not in StrategyRegistry:
    EdgeSplitStrategy.register_strategies(StrategyRegistry)  # type: ignore[arg-type]
