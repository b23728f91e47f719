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
    """Does something right behind the import of a module of somebody else's, whenever that is.

    Args:
        module: Full name of the module to wait for.
        then: What to do; it must import nothing of ours, which may be half imported at that moment.
    """

    def __init__(self, module: str, then: Callable[[], None]) -> None:
        self._module, self._then = module, then

    def install(self) -> None:
        """Waits from now on; does at once what could be waited for no longer."""
        if self._module in sys.modules:
            self._then()
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Finds the module as it would be found without this, and lets its loader do more."""
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_both(module: ModuleType) -> None:
                execute(module)
                self._then()

            spec.loader.exec_module = execute_both  # type: ignore[method-assign]  # of this one spec's own loader
        return spec
