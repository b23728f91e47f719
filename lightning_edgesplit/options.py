"""Checks of what the user asked for: every refusal names the option, its value and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, ListConfig
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_edgesplit import launcher as launchers
from lightning_edgesplit.runtime import partition as partitions
from lightning_edgesplit.runtime.server_models import ServerModel, make_server_model
from lightning_edgesplit.scheduling import (
    ClientProfile,
    Fixed,
    Plan,
    Policy,
    PolicyLike,
    ServerProfile,
    load_clients,
    make_policy,
)
from lightning_edgesplit.scheduling.trace import Trace
from lightning_edgesplit.splitting import END
from lightning_edgesplit.splitting.narrowing import WEIGHT_COMPRESSIONS

Clients = int | Sequence[ClientProfile] | str | PathLike[str] | DictConfig | ListConfig | Mapping[str, Any]


def profiles(clients: Clients, server: ServerProfile | None) -> tuple[list[ClientProfile], ServerProfile]:
    """Profiles of the clients, each with a name, and of the server.

    Raises:
        ValueError: If there are none, or a file is wrong.
        TypeError: If an entry is no profile.
    """
    from_file = None
    if isinstance(clients, int):
        if isinstance(clients, bool) or clients < 1:
            raise ValueError(f"clients={clients!r} must be at least 1; or give profiles, or a YAML file.")
        made = [ClientProfile() for _ in range(clients)]
    elif isinstance(clients, (str, PathLike, DictConfig, ListConfig, Mapping)):
        made, from_file = load_clients(clients)
    else:
        made = list(clients)
        strangers = [profile for profile in made if not isinstance(profile, ClientProfile)]
        if strangers:
            raise TypeError(f"clients holds {strangers[0]!r}: give ClientProfile objects, a number, or a YAML file.")
        if not made:
            raise ValueError("clients=[] is empty: give at least one ClientProfile.")
    made = [p if p.name else replace(p, name=f"client-{k}") for k, p in enumerate(made)]
    names = [profile.name for profile in made]
    if len(set(names)) < len(names):
        raise ValueError(f"clients has the names {names}: give every client its own.")
    if server is not None and not isinstance(server, ServerProfile):
        raise TypeError(f"server={server!r} must be a ServerProfile.")
    return made, server or from_file or ServerProfile()


def policy(policy: PolicyLike, cuts: str | Sequence[str] | None, count: int) -> tuple[Policy, list[str] | None]:
    """The policy, and the cuts that the user named, if any.

    Raises:
        ValueError: If the policy is unknown, or there is neither one cut nor one per client.
    """
    made = make_policy(policy)
    if cuts is None:
        wanted = getattr(made, "cuts", None)
        return made, None if wanted is None else list(wanted)
    if policy != "edgesplit":
        raise ValueError(f"cuts={cuts!r} and policy={policy!r} exclude each other: leave one of them out.")
    names = [cuts] * count if isinstance(cuts, str) else list(cuts)
    if len(names) != count:
        raise ValueError(f"cuts={cuts!r} names {len(names)} cuts for {count} clients: give one, or one per client.")
    return Fixed(tuple(names)), names


def server_model(
    given: str | None, aggregated: float | None, policy: Policy, optimizer_state: str, second_cut: str | None
) -> tuple[ServerModel, float]:
    """The server-side model and φ that are trained: those of the policy, unless the user says otherwise.

    Raises:
        ValueError: If the policy plans for another one than the user wants.
    """
    own, phi = getattr(policy, "server_model", "per_client"), float(getattr(policy, "phi", 0.0))
    name = own if given is None else given
    if own not in ("per_client", name):
        raise ValueError(
            f"server_model={name!r} does not go with policy={policy.name!r}, which plans for {own!r}: leave"
            " `server_model` out, or use another policy."
        )
    fraction = (phi if own == "shared" else 0.0) if aggregated is None else aggregated
    return make_server_model(name, optimizer_state, second_cut, fraction), fraction


def dealt(policy: Policy, server_model: str) -> bool:
    """Whether the policy's plans divide batches anew.

    Raises:
        ValueError: If that server-side model is not trained with such batches.
    """
    wanted = bool(getattr(policy, "batches", False))
    if wanted and server_model != "per_client":
        raise ValueError(
            f"batches=True of policy={policy.name!r} does not go with server_model={server_model!r}: leave it out, or"
            ' use server_model="per_client".'
        )
    return wanted


def check_plan(
    plan: Plan, clock: str, server_model: str, second_cut: str | None, paced: bool, dealt: bool = False
) -> None:
    """Refuses a plan that a run would not follow, whatever its predicted times say.

    Args:
        plan: The plan.
        clock: `EdgeSplitStrategy(clock=…)`.
        server_model: Which server-side model is trained.
        second_cut: `EdgeSplitStrategy(second_cut=…)`.
        paced: Whether the optimizer's rates may change with every arrival.
        dealt: Whether clients deal their batches as plans say.

    Raises:
        ValueError: Naming the policy, what it plans and the way out.
    """
    parts = max(plan.micro_batches, default=1)
    refused = {
        "micro_batches": (
            parts > 1 and (server_model != "per_client" or second_cut is not None or paced),
            parts,
            'they go neither with a server model other than "per_client", nor with `second_cut`, nor with a schedule'
            " per step",
        ),
        "compression": (
            plan.compression != "none" and (server_model != "per_client" or second_cut is not None),
            plan.compression,
            'it goes neither with a server model other than "per_client" nor with `second_cut`',
        ),
        "batches": (
            bool(plan.batches) and not dealt,
            plan.batches,
            "epochs then have to be counted in samples from the start, for which the policy needs an attribute"
            " `batches` that is True",
        ),
        "server_shares": (
            bool(plan.server_shares) and clock == "wall",
            plan.server_shares,
            "the server's speed is not divided on the wall clock",
        ),
    }
    for option, (cannot, value, why) in refused.items():
        if cannot:
            raise ValueError(
                f"policy={plan.policy!r} plans {option}={value!r}, and {why}: use another policy, or compare this one"
                " without training, by `edgesplit plan`."
            )


def weight_compression(name: str) -> str:
    """How weights travel at the ends of rounds.

    Raises:
        ValueError: If it is unknown.
    """
    if name not in WEIGHT_COMPRESSIONS:
        raise ValueError(f"weight_compression={name!r} is unknown: use one of {', '.join(WEIGHT_COMPRESSIONS)}.")
    return name


def second_cut(name: str | None) -> str | None:
    """The name of the second cut.

    Raises:
        ValueError: If it is none: what names it can have is known once the module is.
    """
    if name is not None and (not isinstance(name, str) or name in ("", END)):
        raise ValueError(
            f"second_cut={name!r} must be the name of a module behind which the client goes on, or None: there, the"
            " server runs all that is behind the cut."
        )
    return name


def launcher(name: str, count: int) -> str:
    """The launcher to use; checks that this process is one of the clients, if it is a client at all."""
    chosen = launchers.choose(name)
    client = launchers.Role.from_environment().client
    if client is not None and client >= count:
        raise ValueError(f"this process is to be client {client}, and clients={count}: number them from 0.")
    return chosen


def check(
    round_steps: int | None,
    partition: partitions.Partition,
    participation: float,
    optimizer_state: str,
    clock: str,
    timeout: float,
    count: int,
) -> None:
    """Refuses the other arguments of `EdgeSplitStrategy` that cannot be.

    Raises:
        ValueError: Naming the argument, its value and what is allowed.
    """
    if round_steps is not None and (isinstance(round_steps, bool) or round_steps < 1):
        raise ValueError(f"round_steps={round_steps!r} must be at least 1, or None for one pass over the data.")
    partitions.check(partition, count)
    if not 0 < participation <= 1:
        raise ValueError(f"participation={participation!r} must be a fraction, > 0 and at most 1.")
    if optimizer_state not in ("keep", "average", "reset"):
        raise ValueError(f'optimizer_state={optimizer_state!r} is unknown: use "keep", "average" or "reset".')
    if clock not in ("off", "wall", "virtual"):
        raise ValueError(f'clock={clock!r} is unknown: use "off", "wall" or "virtual".')
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout={timeout!r} must be > 0 seconds and finite.")


def trace(
    given: str | PathLike[str] | Trace | None, clock: str, clients: Sequence[ClientProfile], server: ServerProfile
) -> Trace | None:
    """The trace, and whether the virtual clock has what it needs.

    Raises:
        ValueError: If the trace is wrong or goes with another clock, or a speed is not given: what this machine
            measures would make emulated times differ from run to run.
        FileNotFoundError: If there is no such file.
    """
    if clock == "virtual":
        slow = [profile.name for profile in clients if profile.flops is None and profile.times is None]
        if slow:
            raise ValueError(
                f"clients: {slow[0]!r} has no speed, which clock='virtual' needs: give its `flops`, a `device` of the"
                " catalogue or `times`. Only so are emulated times the same in every run."
            )
        if server.flops is None:
            raise ValueError("server: it has no `flops`, which clock='virtual' needs: give them, or a `device`.")
    elif given is not None:
        raise ValueError(f"trace={given!r} goes with clock='virtual', not with clock={clock!r}: change one of them.")
    if given is None:
        return None
    if isinstance(given, Trace):
        if not {profile.name for profile in clients} <= set(given.clients):
            raise ValueError(f"trace is of the clients {given.clients}: it must know all of `clients`.")
        return given
    return Trace.load(given, [profile.name for profile in clients])


def processes(
    wanted: int | None, count: int, partition: partitions.Partition, clock: str, server_model: str, launcher: str
) -> int | None:
    """How many processes share the clients; None: each client has one of its own.

    Raises:
        ValueError: If there cannot be so many, or the clients cannot share them.
    """
    if wanted is None or wanted == count:
        return None
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted < count:
        raise ValueError(
            f"processes={wanted!r} must be from 1 to the number of clients, {count}, or None for one each."
        )
    own = "leave `processes` at None, a process for each client"
    refused = {
        "clock": (clock == "wall", "clients that share a process are not slow side by side", 'use clock="virtual"'),
        "server_model": (server_model != "per_client", "it needs all clients at once", 'use server_model="per_client"'),
        "partition": (
            partition is None,
            "a process would have to call the module's train_dataloader for each client anew",
            "name a partition, or give one loader per client in a list",
        ),
        "launcher": (launcher != "fork", "processes are shared by forked clients alone", 'use launcher="fork"'),
    }
    values = {"clock": clock, "server_model": server_model, "partition": partition, "launcher": launcher}
    for option, (cannot, why, way_out) in refused.items():
        if cannot:
            raise ValueError(
                f"{option}={values[option]!r} does not work with processes={wanted} for {count} clients, since {why}:"
                f" {way_out}, or {own}."
            )
    return wanted


PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true")
"""What the Trainer's `precision` may be."""


CALLBACKS = {
    "BatchSizeFinder": "tune with the plain Trainer, then train split",
    "LearningRateFinder": "tune with the plain Trainer, then train split",
}
"""Callbacks that cannot be, and what to do instead."""


def clipping(trainer: pl.Trainer) -> tuple[str, float] | None:
    """How gradients are clipped: ``("norm", limit)`` or ``("value", limit)``; None: not at all."""
    limit = trainer.gradient_clip_val
    if not limit:
        return None
    return "value" if trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE else "norm", float(limit)


def _accumulated(trainer: pl.Trainer) -> list[int]:
    """Every number of batches that the run accumulates gradients over."""
    schedulers = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    return [trainer.accumulate_grad_batches, *(n for s in schedulers for n in s.scheduling.values())]


def check_trainer(trainer: pl.Trainer, strategy: SingleDeviceStrategy) -> None:
    """Refuses what the Trainer was asked for and a split run cannot do, before any process starts.

    Raises:
        ValueError: Naming the Trainer's option and what to do instead.
    """
    devices: Any = getattr(strategy, "parallel_devices", None)
    refused = {
        "accelerator": (not isinstance(strategy.accelerator, CPUAccelerator), 'use accelerator="cpu"'),
        "devices": (len(devices or [0]) > 1, "use devices=1: `clients` says how many there are"),
        "num_nodes": (trainer.num_nodes > 1, "use num_nodes=1: the Trainer runs on the server alone"),
        "precision": (
            trainer.precision not in PRECISIONS,
            f"use one of {', '.join(PRECISIONS)} (a gradient scaler would have to work on both sides at once)",
        ),
        "accumulate_grad_batches": (
            any((getattr(strategy, "round_steps", None) or 0) % factor for factor in _accumulated(trainer)),
            "let `round_steps` be a multiple of it, also where GradientAccumulationScheduler changes it, so that a"
            " round ends with a step",
        ),
        "reload_dataloaders_every_n_epochs": (
            bool(getattr(trainer, "reload_dataloaders_every_n_epochs", 0)),
            "leave it at 0",
        ),
    }
    server_model = getattr(strategy, "server_model", None)
    if server_model is not None and server_model.together:
        way_out = f'leave it out with server_model="{server_model.name}", in which all clients step at once'
        by_norm = (clipping(trainer) or ("", 0.0))[0] == "norm"
        refused["gradient_clip_val"] = by_norm, f"{way_out}, or clip by value"
        if max(_accumulated(trainer)) > 1:
            refused["accumulate_grad_batches"] = True, way_out
    for option, (cannot, way_out) in refused.items():
        if cannot:
            raise ValueError(f"Trainer's `{option}` as given does not work with EdgeSplitStrategy: {way_out}.")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name, way_out in CALLBACKS.items():
            if type(callback).__name__ == name:
                raise ValueError(f"the callback {name} does not work with EdgeSplitStrategy: {way_out}.")
    module = trainer.lightning_module
    averages = any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if averages and any(isinstance(child, _BatchNorm) for child in module.modules()):
        raise ValueError(
            "the callback StochasticWeightAveraging does not work with EdgeSplitStrategy for a module with batch norm,"
            " whose statistics it takes from one more pass over the data without a step: use WeightAveraging."
        )
    if getattr(module, "_compiler_ctx", None) or any(type(m).__name__ == "OptimizedModule" for m in module.modules()):
        raise ValueError(
            "a module under torch.compile cannot be cut, since its layers are not called one by one: hand the module"
            " itself to `fit`."
        )
    if is_overridden("configure_gradient_clipping", trainer.lightning_module, pl.LightningModule):
        raise ValueError(
            "configure_gradient_clipping of your module does not work with EdgeSplitStrategy, since no side has all"
            " gradients: use the Trainer's gradient_clip_val, which clips both sides as one."
        )
    if not trainer.lightning_module.automatic_optimization:
        raise ValueError(
            "automatic_optimization=False does not work with EdgeSplitStrategy: both sides step by themselves. Return"
            " the loss from training_step instead."
        )
