"""From what a user writes for ``policy=`` to the policy."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_edgesplit.scheduling.policies.base import Policy
from lightning_edgesplit.scheduling.policies.overlapped import SUFFIX, Overlapped

_OURS = ("self", "name", "epoch", "number")
"""Parameters that are no user's business: the planner says which round it is."""


def make(policy: Any, known: Mapping[str, Callable[..., Any]]) -> Policy:
    """The policy that a name, a dotted path, a mapping, a class or an object stands for.

    Args:
        policy: See `make_policy`.
        known: Classes by name.

    Raises:
        ValueError: If there is no policy of that name or path, or a parameter is unknown, missing or refused.
        TypeError: If it is nothing of the kind.
    """
    parameters: dict[str, Any] = {}
    given = policy
    if isinstance(policy, Mapping):
        content = OmegaConf.to_container(policy, resolve=True) if isinstance(policy, DictConfig) else policy
        parameters = {str(key): value for key, value in content.items()}  # type: ignore[union-attr]
        if "policy" not in parameters:
            raise ValueError(f"policy={given!r} says not which: give its name as 'policy', beside the parameters.")
        policy = parameters.pop("policy")
    if isinstance(policy, str):
        return _named(policy, parameters, known)
    if isinstance(policy, type) and hasattr(policy, "plan"):
        return _checked(_called(policy, parameters, policy.__name__), given, known)
    if parameters:
        raise ValueError(f"policy={policy!r} is an object already, and takes no parameters: {', '.join(parameters)}.")
    return _checked(policy, given, known)


def _named(name: str, parameters: dict[str, Any], known: Mapping[str, Callable[..., Any]]) -> Policy:
    if name.endswith(SUFFIX):
        own = {"micro_batches": parameters.pop("micro_batches")} if "micro_batches" in parameters else {}
        return Overlapped(_named(name.removesuffix(SUFFIX), parameters, known), **own)
    if name in known:
        made: Policy = _called(known[name], parameters, name)
        return made
    package, _, attribute = name.rpartition(".")
    if not package:
        raise ValueError(f"policy={name!r} is unknown: {_ways(known)}")
    try:
        found = getattr(importlib.import_module(package), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy={name!r} is not there ({error}): {_ways(known)}") from error
    if callable(found) and (hasattr(found, "plan") or not isinstance(found, type)):
        found = _called(found, parameters, name)
    elif parameters:
        raise ValueError(f"policy={name!r} is an object, and takes no parameters: {', '.join(parameters)}.")
    return _checked(found, name, known)


def _called(factory: Callable[..., Any], parameters: dict[str, Any], name: str) -> Any:
    """What a class or function makes of the parameters, after a look at their names."""
    signature = inspect.signature(factory).parameters
    takes = [key for key in signature if key not in _OURS]
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    unknown = [key for key in parameters if key not in takes]
    if unknown and not anything:
        ways = f"use {', '.join(takes)}" if takes else "it has none"
        raise ValueError(f"{unknown[0]}={parameters[unknown[0]]!r} is no parameter of policy={name!r}: {ways}.")
    missing = [
        key
        for key in takes
        if signature[key].default is inspect.Parameter.empty
        and signature[key].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        and key not in parameters
    ]
    if missing:
        example = ", ".join(f"{key!r}: …" for key in missing)
        raise ValueError(f"policy={name!r} needs {', '.join(missing)}: give a mapping, {{'policy': …, {example}}}.")
    return factory(**parameters)


def _checked(policy: Any, given: Any, known: Mapping[str, Any]) -> Policy:
    if isinstance(policy, type) or not isinstance(policy, Policy):
        raise TypeError(f"policy={given!r} must be one of {', '.join(known)}, or an object with `name` and `plan`.")
    return policy


def _ways(known: Mapping[str, Any]) -> str:
    return (
        f"use one of {', '.join(known)} (each with '{SUFFIX}' for micro-batches in flight), a dotted path"
        " (my_package.MyPolicy), give `cuts=`, or an object of your own with a `name` and a method `plan`."
    )
