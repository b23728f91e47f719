"""How the C library deals with freed memory while a run goes on."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MUCH = 1 << 30
_USUAL = {_M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_THRESHOLD: 32 << 20}
"""Where glibc's own thresholds go once large blocks have been freed (mallopt(3): DEFAULT_MMAP_THRESHOLD_MAX)."""
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Lets this process, and those that it forks, keep freed memory for the next step.

    Otherwise glibc gives activations and gradients back to the system after each step, and gets every page anew, filled
    with zeros, in the next one: 3 to 10 % of a step of VGG-11 on a CPU. The most that a process needs stays the same.

    Returns:
        Whether that was done: not where the user has set it (``MALLOC_TRIM_THRESHOLD_`` and the like), nor with another
        C library than glibc.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    return _set({_M_TRIM_THRESHOLD: _MUCH, _M_MMAP_THRESHOLD: _MUCH})


def give_back() -> None:
    """Ends what `keep_freed` began, and gives back what is free."""
    if _set(_USUAL):
        ctypes.CDLL(None).malloc_trim(0)


def _set(thresholds: dict[int, int]) -> bool:
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(which, size) for which, size in thresholds.items())  # type: ignore[union-attr]
