"""Names of a package that are imported when they are first used: `edgesplit plan` answers before torch is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` (PEP 562) of a package whose names live in its modules.

    Args:
        package: Its ``__name__``.
        homes: The module of each name, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    return get


class After(MetaPathFinder):
    """Imports a module of ours right behind one of somebody else's, whenever that is imported.

    Args:
        first: Full name of the module to wait for.
        second: Full name of the module that is imported then.
    """

    def __init__(self, first: str, second: str) -> None:
        self._first, self._second = first, second

    def install(self) -> None:
        """Waits from now on; imports at once what could be waited for no longer."""
        if self._first in sys.modules:
            import_module(self._second)
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Finds the module as it would be found without this, and lets its loader do more."""
        if name != self._first:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_both(module: ModuleType) -> None:
                execute(module)
                import_module(self._second)

            spec.loader.exec_module = execute_both  # type: ignore[method-assign]  # of this one spec's own loader
        return spec
