"""The strategy: Lightning's Trainer on the server, one process per client. The only file that knows both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from os import PathLike
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero as rank_zero_module
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_edgesplit import memory, options
from lightning_edgesplit.arrivals import Arrivals, Preparation
from lightning_edgesplit.clients import ClientProcess
from lightning_edgesplit.launcher import Launcher, Role, behave_as_client, launch
from lightning_edgesplit.monitoring import log_round, print_plan, round_text, unwatch, watch
from lightning_edgesplit.runtime.accounting import emulated, report_of
from lightning_edgesplit.runtime.carried import CarriedModels
from lightning_edgesplit.runtime.carrying import CarryingServer
from lightning_edgesplit.runtime.cutting import Cutting
from lightning_edgesplit.runtime.epsl import Aggregation, LastLayer, aggregated_step, find_last_layer
from lightning_edgesplit.runtime.partition import ClientLoaders, Partition, limit_extent, samples_of, samples_of_epoch
from lightning_edgesplit.runtime.planning import Planner
from lightning_edgesplit.runtime.rendezvous import Rendezvous
from lightning_edgesplit.runtime.report import RoundReport
from lightning_edgesplit.runtime.resume import Resume
from lightning_edgesplit.runtime.rounds import Dealt, Round, Rounds, limited
from lightning_edgesplit.runtime.second_cut import clients_loss
from lightning_edgesplit.runtime.server import Server
from lightning_edgesplit.runtime.timetable import Timetable
from lightning_edgesplit.runtime.whole import WholeModels
from lightning_edgesplit.runtime.wire import Frame
from lightning_edgesplit.scheduling import Plan, PolicyLike, ServerProfile, with_fixed
from lightning_edgesplit.scheduling.simulate import SimulatedRound
from lightning_edgesplit.scheduling.trace import Trace
from lightning_edgesplit.splitting import END, Cuts
from lightning_edgesplit.splitting.batch import batch_size
from lightning_edgesplit.splitting.mixing import Mixture
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
        server_model: ``"per_client"``: each client has a server-side model of its own, and whole models are averaged
            (SplitFed-V1, EdgeSplit); ``"sequential"``: clients take turns with one model (vanilla split learning);
            ``"splitfed-v2"``: one server-side model that steps per arrival, client after client in random order;
            ``"shared"``: one server-side model that takes one step per local step of all clients (PSL, EPSL). The
            classes in `runtime.server_models` define each. None: what the policy plans for, ``"per_client"`` mostly.
        aggregated: With ``server_model="shared"``, φ of EPSL: the fraction of each batch whose gradients at the last
            layer are aggregated over the clients before the backward pass; 0: none (PSL). None: the policy's φ, else 0.
            See `runtime.epsl`.
        round_steps: Local steps per round; None: one pass over the client's data.
        partition: How the training set is divided: ``"iid"``, ``"dirichlet:0.5"``, ``"shards:2"``, one list of sample
            numbers per client, a function of (dataset, clients, seed), or None: every client has its own loader.
        private: Names of the batch leaves that must not leave a client (``"image"``, ``"0"``), while all others may be
            sent where the server needs them; None: the model's inputs stay, and what is no tensor.
        second_cut: Name of the module behind which a client goes on by itself: it runs the last layers and the loss
            too, so that neither inputs nor labels leave it (a U-shaped split); None: the server runs the rest.
        participation: Fraction of the clients that take part in a round, at least one; drawn by the seed.
        optimizer_state: ``"keep"``: the optimizer's state stays with its client and moves with its parameter;
            ``"average"``: it is averaged with the weights; ``"reset"``: it is forgotten at the end of each round.
        weight_compression: How trained weights travel at the ends of rounds: ``"none"``: as they are; ``"bfloat16"``,
            half of single precision, or ``"int8"``, a quarter (8-bit integers with a range per row): clients begin with
            rounded weights and return the rounded change of them; the server adds it up in full precision. Lossy: see
            `runtime.weights`. Smashed data are the policy's affair.
        clock: ``"off"``: clients are as fast as this machine; ``"wall"``: they take as long as their profiles say;
            ``"virtual"``: training runs as fast as it can, and the times in `rounds` are computed from the profiles by
            a simulation of every round, the same to the last digit in every run.
        trace: How links, speed and availability of clients change in virtual time: a CSV file
            (`lightning_edgesplit.scheduling.trace.Trace.load`) or a `Trace`; None: they do not.
        launcher: How clients are started: ``"fork"``, ``"script"``, ``"external"``, or ``"auto"``.
        processes: How many processes the clients share; None: one each. A process plays one client for a whole round,
            then the next, so that a thousand clients of which some take part in a round need no more memory than so
            many. The weights are the same, whatever the number. Needs ``launcher="fork"``, and no ``clock="wall"``.
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
        policy: PolicyLike = "edgesplit",
        cuts: str | Sequence[str] | None = None,
        server: ServerProfile | None = None,
        server_model: str | None = None,
        aggregated: float | None = None,
        round_steps: int | None = None,
        partition: Partition = "iid",
        private: str | Sequence[str] | None = None,
        second_cut: str | None = None,
        participation: float = 1.0,
        optimizer_state: str = "keep",
        weight_compression: str = "none",
        clock: str = "off",
        trace: str | PathLike[str] | Trace | None = None,
        launcher: str = "auto",
        processes: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        super().__init__("cpu")
        self.profiles, self.server_profile = options.profiles(clients, server)
        count = len(self.profiles)
        self._policy, self._wanted = options.policy(policy, cuts, count)
        options.check(round_steps, partition, participation, optimizer_state, clock, timeout, count)
        self._role, self._launcher_name = Role.from_environment(), options.launcher(launcher, count)
        self.server_model, self.aggregated = options.server_model(
            server_model, aggregated, self._policy, optimizer_state, second_cut
        )
        self._dealt = options.dealt(self._policy, self.server_model.name)
        self._trace = options.trace(trace, clock, self.profiles, self.server_profile)
        self.processes = options.processes(
            processes, count, partition, clock, self.server_model.name, self._launcher_name
        )
        self.participation = participation
        self.round_steps, self.partition, self.optimizer_state_rule = round_steps, partition, optimizer_state
        self.clock, self.timeout = clock, timeout
        self.private = [private] if isinstance(private, str) else private
        self.second_cut = options.second_cut(second_cut)
        self.weight_compression = options.weight_compression(weight_compression)
        self.parallel_devices: list[torch.device] | None = None  # the Trainer's connector fills it in
        self.cuts: Cuts | None = None
        self.plan: Plan | None = None
        self.rounds: list[RoundReport] = []
        self._server: Server | None = None
        self._whole: WholeModels | None = None
        self._abandoned: Server | None = None
        self._keeps_memory = False
        self._planner: Planner | None = None
        self._cutting: Cutting | None = None
        self._processes: Launcher | None = None
        self._now: tuple[int, Frame, Any] | None = None
        self._clip: tuple[str, float] | None = None
        self._expected: tuple[list[int], SimulatedRound, tuple[int, ...]] | None = None
        self._timetable: Timetable | None = None
        self._last_layer: LastLayer | None = None
        self._mixture: Mixture | None = None
        self._source: Any = None
        self._agenda = Rounds([])
        self._resume = Resume()
        self._preparation: Preparation | None = None
        self._threads = self._beside_clients = torch.get_num_threads()
        if self._role.client is not None:
            rank_zero_module.rank_zero_only.rank = self._role.client + 1  # type: ignore[attr-defined]  # no logs, no checkpoints from a client

    @property
    def _trainer(self) -> pl.Trainer:
        assert self.lightning_module is not None
        return self.lightning_module.trainer

    @property
    @override
    def is_global_zero(self) -> bool:
        return self._role.client is None

    def __repr__(self) -> str:
        # what pytorch_lightning's Trainer, which takes strategies of its own name space alone, quotes in its refusal
        return (
            f"<{type(self).__name__} of {len(self.profiles)} clients, for the Trainer of lightning.pytorch:"
            " `import lightning.pytorch as pl`, not pytorch_lightning>"
        )

    def save_costs(self, path: str | PathLike[str]) -> None:
        """Writes what every cut of the fitted module costs as JSON, for ``edgesplit plan``.

        Raises:
            RuntimeError: Before ``fit``, when nothing is known yet.
        """
        if self._planner is None or self._expected is None:
            raise RuntimeError("save_costs needs the costs that `fit` measures: call it after `fit`.")
        steps, _, samples = self._expected
        self._planner.costs(steps, samples).save(path)

    # ---- before the first round --------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            super().setup(trainer)
            return
        options.check_trainer(trainer, self)
        self._limit: Any = trainer.limit_train_batches
        self._source, self._threads = trainer.fit_loop._data_source, torch.get_num_threads()
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        loaders = ClientLoaders(self._source.dataloader, self.partition, len(self.profiles), seed)
        self._agenda = Rounds([])
        arrivals = Arrivals(lambda: self._count_arrivals(loaders, seed), self._epoch)
        trainer.fit_loop._data_source = _DataLoaderSource(arrivals, "train_dataloader")
        super().setup(trainer)
        trainer.fit_loop._combined_loader = None  # it was made if `configure_optimizers` asked, of estimates
        if len(self.optimizers) != 1:
            raise ValueError(
                f"configure_optimizers gave {len(self.optimizers)} optimizers: split learning takes one; put all"
                " parameters into it, in groups where they differ."
            )
        module = trainer.lightning_module
        self._clip = options.clipping(trainer)
        self._preparation = Preparation(module, self.precision_plugin, super().batch_to_device, self._is_arrival)
        process = ClientProcess(
            module, _plain(self.optimizers[0]), loaders, self.timeout / 4, seed,
            self._preparation, self.precision_plugin.train_step_context, self._dealt,
        )  # fmt: skip
        if self._role.client is not None:
            behave_as_client()
            process.run(self._role.client, self._rendezvous())
            os._exit(0)  # a client's script ends where `fit` would return: what follows is the server's
        if self._dealt:
            loaders.check_dealt()
        batch = self._preparation(loaders.sample())
        self._prepare_planner(batch, seed)
        self._preparation.leave_arrivals_alone()
        self._start(process, batch)
        self._prepare_rounds(seed)

    def _count_arrivals(self, loaders: ClientLoaders, seed: int) -> int:
        """How many arrivals an epoch has; an estimate, at most too high, as long as the clients have not been heard.

        The Trainer's limit, if it is a fraction, is applied to estimates by itself (`estimated_stepping_batches`).
        """
        trainer, kind = self._trainer, self.server_model
        if self._agenda.batches:
            return self._agenda.arrivals(trainer.current_epoch)
        if loaders.at_clients or self._dealt:
            why = "batches=True of the policy divides batches anew" if self._dealt else "partition=None"
            raise ValueError(
                "how many steps there will be (`trainer.estimated_stepping_batches`) is not known in"
                f" configure_optimizers where {why}: let a schedule be told its length by a number of your own."
            )
        limit = self._limit if isinstance(self._limit, int) else 1.0
        own = [loaders.extent(client)["batches"] for client in range(len(self.profiles))]
        rounds = Rounds(
            limited(own, limit, kind.together), self.round_steps, self.participation, seed,
            by_turns=kind.by_turns, together=kind.together,
        )  # fmt: skip
        epochs = range(max(1, trainer.max_epochs or 1)) if self.participation < 1 else range(1)
        return max(rounds.arrivals(epoch) for epoch in epochs)

    def _rendezvous(self) -> Rendezvous:
        names = [profile.name for profile in self.profiles]
        if self.processes is not None:
            names = [f"process {k}" for k in range(self.processes)]
        return Rendezvous(self._role, names, self.timeout)

    def _prepare_planner(self, batch: Any, seed: int) -> None:
        """Finds the cuts, and refuses what cannot be planned before any process starts."""
        # the cuts of one model for all stay, and emulated times are the same in every run
        learning = not (
            torch.are_deterministic_algorithms_enabled() or self.server_model.one or self.clock == "virtual"
        )
        lasting = self.clock == "wall" or (self.clock == "off" and not learning)  # else rounds soon say better
        self._cutting = Cutting(
            self._trainer.lightning_module, _plain(self.optimizers[0]), batch, self._wanted, self.private,
            self.second_cut, self._threads, 3 if lasting else 1, self.precision_plugin.train_step_context,
        )  # fmt: skip
        self.cuts = self._cutting.find()
        policy, clients = self._policy, len(self.profiles)
        find = self.cuts.find  # full names for what the user may have shortened
        policy = with_fixed(policy, lambda own: replace(own, cuts=tuple(find(name).name for name in own.cuts)))
        self._planner = Planner(
            self.cuts, policy, self.profiles, self.server_profile,
            batch=[batch_size(batch)] * clients,
            in_order=self._in_order(),
            emulate=self.clock == "wall",
            learning=learning,
            trace=self._trace,
            server_model=self.server_model.name,
            aggregated=self.aggregated,
            split=self.server_model.one,
            seed=seed,
            round_steps=self.round_steps,
            weight_compression=self.weight_compression,
        )  # fmt: skip
        context = self.precision_plugin.train_step_context
        module = self._trainer.lightning_module
        self._last_layer = find_last_layer(module, batch, context) if self.aggregated else None
        plan, _ = self._planner.plan([self.round_steps or 1] * clients)  # refuses what cannot be, before clients start
        self._check_plan(plan)

    def _start(self, process: ClientProcess, batch: Any) -> None:
        """Starts the clients, or waits for those that somebody else starts, and greets them."""
        rendezvous, at_once, count = self._rendezvous(), self.processes, len(self.profiles)
        self._keeps_memory = memory.keep_freed()  # before the fork: its copies do the same

        def main(k: int) -> None:
            if at_once is None:
                process.run(k, rendezvous)
            else:
                process.carry(k, range(k, count, at_once), self.second_cut is not None, rendezvous)

        try:
            self._processes = launch(self._launcher_name, at_once or count, main, rendezvous.address)
            links = rendezvous.links(self._processes)
        finally:
            rendezvous.close()
        server, models = (Server, WholeModels) if at_once is None else (CarryingServer, CarriedModels)
        self._server = server(
            process.module,
            process.optimizer,
            links,
            [profile.name for profile in self.profiles],
            flatten(batch),
            process.heartbeat,
            in_order=self._in_order(),
            paced=self._paced(),
            take_step=self._take_step,
            context=self.precision_plugin.train_step_context,
            kind=self.server_model,
            weight_compression=self.weight_compression,
        )
        rule = self.server_model.state_rule(self.optimizer_state_rule)
        self._whole = models(self._server, rule)

    def _prepare_rounds(self, seed: int) -> None:
        """Divides the clients' batches into rounds, and announces the plan of the first."""
        assert self._server is not None
        assert self._planner is not None
        kind, greetings = self.server_model, self._server.greetings
        batches = limited([greeting["batches"] for greeting in greetings], self._limit, kind.together)
        self._trainer.limit_train_batches = 1.0  # it holds for what the clients send already
        if not any(batches):
            raise ValueError("no client has a batch to train on: give more samples, or a smaller batch_size.")
        for greeting, count in zip(greetings, batches, strict=True):
            limit_extent(greeting, count)
        self._planner.batch = tuple(greeting["batch"] for greeting in greetings)
        self._timetable = Timetable(self._planner, self._trace, self._resume.elapsed)
        dealt = None
        if self._dealt:
            batches = [samples_of_epoch(greeting) for greeting in greetings]
            dealt = Dealt(self._planner.batch, self._timetable.deal)
        self._agenda = Rounds(
            batches,
            self.round_steps,
            self.participation,
            seed,
            self._timetable.choose,
            self._timetable.micro_batches,
            lambda client, batch: samples_of(greetings[client], batch),
            kind.by_turns,
            kind.together,
            dealt,
        )
        self.rounds = []
        self._plan_round(next(self._agenda.of(self._trainer.current_epoch)))
        self._announce()

    def _paced(self) -> bool:
        """Whether the optimizer's rates may move with every arrival, so that their order matters."""
        own_step = is_overridden("optimizer_step", self.lightning_module, pl.LightningModule)
        return own_step or any(schedule.interval == "step" for schedule in self.lr_scheduler_configs)

    def _in_order(self) -> bool:
        return self._paced() or torch.are_deterministic_algorithms_enabled()

    def _announce(self) -> None:
        """Prints the plan beside what others would take, and adds to the progress bar, where there is one."""
        if self._trainer.progress_bar_callback is None:
            return
        assert self.plan is not None
        assert self._planner is not None
        assert self._expected is not None
        steps, expected, _ = self._expected
        others = self._planner.compare(steps) if self._wanted is None else {}
        print_plan(
            replace(self.plan, predicted=expected.ends), [p.name for p in self.profiles],
            {name: seconds for name, seconds in others.items() if name != self.plan.policy},
        )  # fmt: skip
        watch(self._trainer, lambda: round_text(self.rounds[-1] if self.rounds else None))

    # ---- a round -----------------------------------------------------------------------------------------------------

    def _plan_round(self, round_: Round) -> None:
        """Takes a round's plan from the timetable."""
        assert self._planner is not None
        assert self._timetable is not None
        ahead = self._timetable.entry(self._trainer.current_epoch, round_.number)
        self._check_plan(ahead.plan)
        self.plan, self._expected = ahead.plan, (round_.steps, ahead.turn(round_.steps), ahead.samples)
        at_once = min(sum(1 for count in round_.steps if count), self.processes or len(round_.steps))
        self._beside_clients = self._planner.server_threads(self.plan, round_.steps, self._threads, at_once)

    def _check_plan(self, plan: Plan) -> None:
        """Refuses a plan that the server-side model cannot be trained with."""
        assert self._planner is not None
        assert self._cutting is not None
        options.check_plan(plan, self.clock, self.server_model.name, self.second_cut, self._paced(), self._dealt)
        cuts = [self._planner.cuts.find(name) for name in plan.cuts]
        self.server_model.check_cuts(plan.policy, cuts)
        self._mixture = self._cutting.mixture(cuts) if self.server_model.together else None
        if self._last_layer is not None:
            self._last_layer.check(self._trainer.lightning_module, cuts)

    def _tell_arrivals(self) -> None:
        """Tells the Trainer how many arrivals the epoch has.

        Epochs differ, as clients and micro-batches do from round to round. The Trainer has asked already, but may have
        been in another epoch then, or cuts and plans have changed since.
        """
        trainer = self._trainer
        loop, batches = trainer.fit_loop, self._agenda.arrivals(trainer.current_epoch)
        assert loop._data_fetcher is not None
        assert loop._combined_loader is not None
        loop.max_batches = loop._data_fetcher.length = batches
        loop._combined_loader.limits = None  # it asks again when the next epoch begins
        if isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(batches * trainer.val_check_interval))

    def _renew_cuts(self) -> None:
        """Between two rounds: finds the cuts anew if something else is trained, and plans anew what is ahead."""
        server, planner, cutting, timetable = self._server, self._planner, self._cutting, self._timetable
        assert server is not None
        assert planner is not None
        assert cutting is not None
        assert timetable is not None
        if cutting.outdated:
            self.cuts = cutting.find_anew(self._agenda.ended)
            planner.take(self.cuts)
            server.forget_cuts()
            timetable.renew(self._agenda.epoch, self._agenda.current.number)
            self._tell_arrivals()

    def _epoch(self) -> Iterator[Any]:
        """One pass over all clients' data, as the Trainer's batches: one per arrival of smashed data."""
        server, whole, planner, cutting = self._server, self._whole, self._planner, self._cutting
        trainer = self._trainer
        assert server is not None
        assert whole is not None
        assert planner is not None
        assert cutting is not None
        self._resume.go_on(trainer.current_epoch, whole)
        self._tell_arrivals()
        self._renew_cuts()
        for round_ in self._agenda.go_through(trainer.current_epoch):
            self._plan_round(round_)
            assert self.plan is not None
            server.start_round(
                planner.orders(self.plan, round_),
                {"accumulate": trainer.accumulate_grad_batches, "clip": self._clip}, whole.fresh_state,
                arbitration=planner.arbitration(self.plan, round_.steps),
                longest_first=self.plan.order == "longest_first", turns=self.plan.turns,
                mixture=self._mixture,
                epoch=trainer.current_epoch, global_step=trainer.global_step, upload_state=whole.averages_states,
            )  # fmt: skip
            for _ in range(self._agenda.arrivals_in(round_)):
                if cutting.outdated_within_round:
                    raise ValueError(
                        "what is trained (requires_grad, the optimizer's groups, eval mode) has changed within a round:"
                        " change it at the start of an epoch, or set `round_steps` so that a round ends before."
                    )
                client, frame = server.arrival()
                self._share_cores()
                batch = server.batch_of(client, frame)
                self._now = client, frame, batch
                yield batch
            self._renew_cuts()

    def _share_cores(self) -> None:
        """Gives the server's step all threads where it computes alone, else as many as the plan leaves to it."""
        assert self._server is not None
        torch.set_num_threads(self._beside_clients if self._server.clients_ahead else self._threads)

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
        seat = self._server.seats[client]
        with self.precision_plugin.train_step_context():  # numbers become tensors of its type
            for name, value, log_options in frame.about["logged"]:
                module.log(name, value, **{"batch_size": frame.about["samples"], **log_options})
        if seat.halfway is not None:
            for log_args, log_kwargs in seat.halfway.logged:
                module.log(*log_args, **log_kwargs)
        if seat.cut.name == END or seat.cut.back is not None:
            return clients_loss(seat, frame)
        index = [frame.about["index"]] if len(args) > 1 else []
        server, aggregation = self._server, Aggregation.of(self._server.joint, self.aggregated)

        def step(reduced: Frame | None = None) -> Any:
            log = module.log if reduced is None else lambda *args, **kwargs: None
            own = batch if reduced is None or aggregation is None else aggregation.batch(batch)
            with server.stepping(client, reduced or frame, log):
                return super(EdgeSplitStrategy, self).training_step(own, *index, **kwargs)

        if aggregation is None:
            return step()
        assert self._last_layer is not None
        assert seat.cut.border is not None
        aggregation.joint.handed_out = aggregation.handed_out
        crossing = len(seat.cut.border.tensors)
        return aggregated_step(module, self._last_layer, aggregation, crossing, step, server.keeping_buffers())

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
    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        assert self._now is not None
        weight = self._now[1].about.get("weight", 1.0)  # a micro-batch's part of the batch, whose loss is a mean
        return super().backward(closure_loss if weight == 1 else closure_loss * weight, optimizer, *args, **kwargs)

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
        assert self._server is not None
        assert self._whole is not None
        assert self._planner is not None
        assert self.plan is not None
        assert self._expected is not None
        assert self._timetable is not None
        trainer = self._trainer
        torch.set_num_threads(self._threads)
        uploads = self._whole.aggregate()
        steps, expected, _ = self._expected
        report = report_of(
            self._server, uploads, self.plan, expected.ends,
            ended=time.monotonic(), index=self._agenda.ended, epoch=trainer.current_epoch, before=self._timetable.now,
        )  # fmt: skip
        if self.clock == "virtual":
            begins = self._timetable.entry(trainer.current_epoch, self._agenda.current.number).begins
            report = emulated(report, expected, max(begins, self._timetable.now))
        report = replace(report, ends_turns=not any(self._agenda.current.waiting))
        self._timetable.now = report.elapsed
        self._agenda.ended += 1
        self.rounds.append(report)
        if len(self.rounds) > SPANS_KEPT:
            self.rounds[-SPANS_KEPT - 1] = replace(self.rounds[-SPANS_KEPT - 1], spans=())
        self._planner.learn(self.plan, steps, report)
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
            state = self._resume.noted if self._server is None else self._note()
            if state is not None:
                checkpoint[self.strategy_name] = state
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def _note(self) -> dict[str, Any]:
        assert self._whole is not None
        assert self._planner is not None
        assert self._timetable is not None
        arrivals = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return self._resume.note(arrivals, self._agenda, self._whole, self._planner, self._timetable)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        loaded: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only)
        self._resume.load(loaded.pop(self.strategy_name, None))
        return loaded

    @override
    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        super().load_optimizer_state_dict(checkpoint)
        assert self._planner is not None
        assert self._timetable is not None
        self._resume.begin(self._agenda, self._planner, self._timetable)

    # ---- whole models ------------------------------------------------------------------------------------------------

    def _clients_to_ask(self) -> WholeModels | None:
        """Reaches the clients, if there are any; not while an exception is being handled."""
        module = self.lightning_module
        running = module is not None and module.trainer.state.status == TrainerStatus.RUNNING
        return self._whole if running and self._server is not None else None

    def _aggregate_what_there_is(self) -> None:
        whole = self._clients_to_ask()
        if whole is not None and whole.steps_left is not None:
            whole.snapshot()

    @override
    def on_validation_start(self) -> None:
        self._aggregate_what_there_is()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        self._aggregate_what_there_is()
        return super().lightning_module_state_dict()

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        whole = self._clients_to_ask()
        if whole is not None:
            whole.gather_optimizer_state()
        return super().optimizer_state(optimizer)

    @override
    def on_train_end(self) -> None:
        assert self._server is not None
        assert self._whole is not None
        assert self._processes is not None
        self._aggregate_what_there_is()
        self._whole.gather_optimizer_state()
        self._note()  # for a checkpoint that is saved after `fit`
        self._server.stop()
        self._server = self._whole = None
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
        if self._preparation is not None:
            self._preparation.undo()
        if self.lightning_module is not None and self._source is not None:
            unwatch(self._trainer)
            self._trainer.fit_loop._data_source = self._source
            self._trainer.limit_train_batches = self._limit
        torch.set_num_threads(self._threads)
        if self._keeps_memory:
            memory.give_back()
        self._keeps_memory = False
        self._server = self._whole = self._abandoned = self._processes = None
        self._preparation = self._cutting = self._now = self._source = None
        super().teardown()


def _plain(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
