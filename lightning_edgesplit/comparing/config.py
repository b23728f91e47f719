"""The YAML of a comparison: the keys are those of the dataclasses, and every mistake is an error with its place."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from lightning_edgesplit.comparing.making import found
from lightning_edgesplit.runtime import partition as partitions
from lightning_edgesplit.scheduling import ClientProfile, ServerProfile, load_clients, make_policy
from lightning_edgesplit.scheduling.mirror import content, keys, typed
from lightning_edgesplit.scheduling.trace import Trace

MODES = ("max", "min")


@dataclass(frozen=True)
class Made:
    """What to make of a class.

    Attributes:
        class_path: Dotted path, or the name of a ready one (`lightning_edgesplit.comparing.ready`).
        init_args: What it is called with.
    """

    class_path: str = ""
    init_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class _File:
    """The whole file."""

    model: Any = None
    data: Any = None
    scenarios: list[Any] = field(default_factory=list)
    systems: list[Any] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    trainer: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    target_accuracy: Any = None
    baseline: str | None = None
    threads: int = 1
    tensorboard: bool = True


@dataclass
class _Scenario:
    """An entry of `scenarios:`."""

    name: str = ""
    clients: Any = None
    population: Any = None
    server: Any = None
    model: Any = None
    data: Any = None
    batch: int | None = None
    partition: Any = "iid"
    round_steps: int | None = None
    participation: float = 1.0
    trace: str | None = None


@dataclass(frozen=True)
class Target:
    """When a run counts as good enough.

    Attributes:
        metric: Name of a metric that the module logs in validation.
        values: Its values to reach, each a column of the results.
        mode: ``"max"``: higher is better; ``"min"``: lower is.
    """

    metric: str = "val_accuracy"
    values: list[float] = field(default_factory=list)
    mode: str = "max"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown: use one of {', '.join(MODES)}.")
        wrong = [value for value in self.values if not abs(value) < float("inf")]
        if wrong:
            raise ValueError(f"values={self.values} must be finite numbers.")

    def reached(self, value: float | None, goal: float) -> bool:
        """Whether a value (None: not a number) is as good as the goal."""
        return value is not None and (value >= goal if self.mode == "max" else value <= goal)


@dataclass(frozen=True)
class Scenario:
    """Clients, server, model and data that all systems are given alike.

    Attributes:
        name: How tables call it.
        world: What `load_clients` reads: ``clients:``, ``population:`` and ``server:``, with full paths.
        profiles: The clients.
        server: The server.
        model: The module.
        data: The data.
        partition: How the training set is divided, see `EdgeSplitStrategy`.
        round_steps: Local steps per round; None: one pass over the client's data.
        participation: Fraction of the clients in a round.
        trace: Full path of a CSV file; None: nothing changes.
    """

    name: str
    world: dict[str, Any]
    profiles: tuple[ClientProfile, ...]
    server: ServerProfile
    model: Made
    data: Made
    partition: Any = "iid"
    round_steps: int | None = None
    participation: float = 1.0
    trace: str | None = None


@dataclass(frozen=True)
class System:
    """What is compared.

    Attributes:
        label: How tables call it.
        policy: Name or mapping for `make_policy`; None where the cuts are given.
        options: Further arguments of `EdgeSplitStrategy`.
    """

    label: str
    policy: Any
    options: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """All of it, checked.

    Attributes:
        scenarios: What each system is put into.
        systems: What is compared.
        seeds: One run each of every system in every scenario.
        trainer: Arguments of Lightning's Trainer.
        strategy: Arguments of `EdgeSplitStrategy` for all systems.
        target: When a run counts as good enough.
        baseline: Label of the system that speed-ups are over.
        threads: Torch threads of a run; results may depend on it, so it does not depend on the machine.
        tensorboard: Whether runs log to TensorBoard.
    """

    scenarios: tuple[Scenario, ...]
    systems: tuple[System, ...]
    seeds: tuple[int, ...]
    trainer: dict[str, Any]
    strategy: dict[str, Any]
    target: Target
    baseline: str
    threads: int = 1
    tensorboard: bool = True


def load_comparison(path: str | PathLike[str]) -> Comparison:
    """Reads and checks the file.

    Raises:
        ValueError: If a key is unknown, or a value missing, of the wrong type or out of range; with file and key.
        FileNotFoundError: If there is no such file, or one that it names.
    """
    where, read = content(path, "config")
    file = typed(_File, read, where, "config")
    seeds = file.seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"{where} at 'seeds': {seeds} must be different numbers >= 0, at least one.")
    if file.threads < 1:
        raise ValueError(f"{where} at 'threads': {file.threads} must be at least 1.")
    if file.tensorboard and find_spec("tensorboard") is None:
        raise ValueError(f"{where} at 'tensorboard': it is not installed: `pip install tensorboard`, or say false.")
    systems = tuple(_system(item, where, f"systems[{n}]") for n, item in enumerate(file.systems))
    scenarios = tuple(_scenario(item, file, where, f"scenarios[{n}]") for n, item in enumerate(file.scenarios))
    for option, names in (("systems", [s.label for s in systems]), ("scenarios", [s.name for s in scenarios])):
        if not names:
            raise ValueError(f"{where} at '{option}': the list is missing or empty: give at least one.")
        folders = [folder_name(name) for name in names]
        twice = next((name for name, own in zip(names, folders, strict=True) if folders.count(own) > 1), None)
        if twice is not None:
            key = "label" if option == "systems" else "name"
            raise ValueError(f"{where} at '{option}': {twice!r} comes twice: give every one its own `{key}`.")
    labels = [system.label for system in systems]
    baseline = file.baseline or labels[0]
    if baseline not in labels:
        raise ValueError(f"{where} at 'baseline': {baseline!r} is no system here: use one of {', '.join(labels)}.")
    target = Target() if file.target_accuracy is None else typed(Target, file.target_accuracy, where, "target_accuracy")
    _check_arguments(file.strategy, _strategy_options(), where, "strategy")
    _check_arguments(file.trainer, _trainer_options(), where, "trainer")
    return Comparison(
        scenarios, systems, tuple(seeds), file.trainer, file.strategy, target, baseline, file.threads, file.tensorboard
    )


def folder_name(name: str) -> str:
    """The name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", name).strip("-.") or "-"


def _system(item: Any, where: str, place: str) -> System:
    if isinstance(item, str):
        item = {"policy": item}
    if not isinstance(item, dict) or not ("policy" in item or "cuts" in item):
        raise ValueError(
            f"{where} at {place!r}: {item!r} must be the name of a policy, or a mapping with `policy` or `cuts`, and"
            " optionally `label`, the policy's own settings, and arguments of EdgeSplitStrategy."
        )
    options = {key: value for key, value in item.items() if key in _strategy_options()}
    policy = {key: value for key, value in item.items() if key != "label" and key not in options}
    given: Any = policy["policy"] if set(policy) == {"policy"} else policy or None
    if given is not None:
        if "cuts" in options:
            raise ValueError(f"{where} at '{place}.cuts': policy={given!r} decides the cuts: leave one of them out.")
        try:
            make_policy(given)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where} at '{place}.policy': {error}") from error
    label = item.get("label") or (given if isinstance(given, str) else policy.get("policy")) or f"cut {item['cuts']}"
    return System(str(label), given, options)


def _scenario(item: Any, file: _File, where: str, place: str) -> Scenario:
    entry = typed(_Scenario, item, where, place)
    folder = Path(where).resolve().parent
    if not entry.name:
        raise ValueError(f"{where} at '{place}.name': the value is missing: tables and folders need it.")
    try:
        partitions.check(entry.partition, 10**9 if not isinstance(entry.partition, list) else len(entry.partition))
    except ValueError as error:
        raise ValueError(f"{where} at '{place}.partition': {error}") from error
    if entry.round_steps is not None and entry.round_steps < 1:
        raise ValueError(f"{where} at '{place}.round_steps': {entry.round_steps} must be at least 1, or null.")
    if not 0 < entry.participation <= 1:
        raise ValueError(f"{where} at '{place}.participation': {entry.participation} must be > 0 and at most 1.")
    world = _world(entry, folder, where, place)
    try:
        profiles, server = load_clients(world)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{where} at {place!r}: {error}") from error
    slow = [profile.name for profile in profiles if profile.flops is None and profile.times is None]
    if slow:
        raise ValueError(
            f"{where} at '{place}.clients': {slow[0]!r} has no speed of its own: give `flops`, a `device` or `times`. A"
            " `slowdown` is relative to the machine at hand, and emulated times would not be the same on another."
        )
    if server is None or server.flops is None:
        raise ValueError(
            f"{where} at '{place}.server': its speed is missing: give `flops` or a `device`, so that emulated times are"
            " the same on every machine."
        )
    model = _made(entry.model if entry.model is not None else file.model, where, f"{place}.model")
    data = _made(entry.data if entry.data is not None else file.data, where, f"{place}.data")
    if entry.batch is not None:
        if entry.batch < 1:
            raise ValueError(f"{where} at '{place}.batch': {entry.batch} must be at least 1.")
        data = Made(data.class_path, {**data.init_args, "batch_size": entry.batch})
    for kind, thing in (("model", model), ("data", data)):
        try:
            inspect.signature(found(thing.class_path, kind)).bind(**thing.init_args)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{where} at '{place}.{kind}': {error}") from error
        except TypeError as error:
            what = f"{thing.class_path} with {thing.init_args}"
            raise ValueError(f"{where} at '{place}.{kind}': {what}: {error}.") from error
    trace = None
    if entry.trace is not None:
        trace = str(folder / entry.trace)
        try:
            Trace.load(trace, [profile.name for profile in profiles])
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{where} at '{place}.trace': {error}") from error
    return Scenario(
        entry.name, world, tuple(profiles), server, model, data, entry.partition, entry.round_steps,
        entry.participation, trace,
    )  # fmt: skip


def _world(entry: _Scenario, folder: Path, where: str, place: str) -> dict[str, Any]:
    """``clients:``, ``population:`` and ``server:``, whether they are here or in a file, with full paths."""
    world: dict[str, Any] = {}
    if isinstance(entry.clients, str):
        path = folder / entry.clients
        try:
            _, read = content(path, "clients")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{where} at '{place}.clients': {error}") from error
        world, folder = ({"clients": read} if isinstance(read, list) else dict(read or {})), path.parent
    elif entry.clients is not None:
        world["clients"] = entry.clients
    if entry.population is not None:
        world["population"] = entry.population
    if not world:
        raise ValueError(
            f"{where} at '{place}.clients': there are none: give a list of profiles, a YAML file with `clients:` or"
            " `population:`, or `population:` here."
        )
    if entry.server is not None:
        world["server"] = entry.server
    entries = [*(world.get("clients") or []), *((world.get("population") or {}).get("mixture") or [])]
    for profile in entries:
        if isinstance(profile, dict) and isinstance(profile.get("times"), str):
            profile["times"] = str(folder / profile["times"])
    return world


def _made(item: Any, where: str, place: str) -> Made:
    if item is None:
        raise ValueError(f"{where} at {place!r}: it is missing, here and at the top: give class_path and init_args.")
    if isinstance(item, str):
        return Made(item)
    made = typed(Made, item, where, place)
    if not made.class_path:
        raise ValueError(f"{where} at '{place}.class_path': the value is missing. Known keys are {keys(Made)}.")
    return made


_OURS = ("clients", "server", "policy", "clock", "trace", "launcher", "partition", "round_steps", "participation")
"""Arguments of the strategy that scenario and system stand for."""

_TRAINERS = ("strategy", "accelerator", "devices", "num_nodes", "logger", "callbacks", "default_root_dir")
"""Arguments of the Trainer that the comparison decides."""


def _strategy_options() -> list[str]:
    """What a system, or `strategy:`, may say beside its policy."""
    from lightning_edgesplit.strategy import EdgeSplitStrategy

    return [name for name in inspect.signature(EdgeSplitStrategy).parameters if name not in _OURS]


def _trainer_options() -> list[str]:
    from lightning.pytorch import Trainer

    return [name for name in inspect.signature(Trainer).parameters if name not in _TRAINERS]


def _check_arguments(given: Mapping[str, Any], known: list[str], where: str, place: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{where} at '{place}.{key}': the key is unknown here. Known keys are {', '.join(known)}.")
