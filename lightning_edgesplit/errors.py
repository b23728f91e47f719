"""What a user may want to catch.

    EdgeSplitError
    ├── ImpossibleCutError      a cut that does not exist, or that failed its proof
    ├── ClientLostError         a client did not connect, fell silent, or its process ended
    └── ClientFailedError       an exception in a client's own code; carries its traceback as text

Wrong arguments raise ``ValueError`` or ``TypeError``; a memory limit that no cut fits raises
`lightning_edgesplit.scheduling.InfeasibleError`, a ``ValueError``.
"""

from __future__ import annotations


class EdgeSplitError(RuntimeError):
    """Root of this package's own errors."""


class ImpossibleCutError(EdgeSplitError, ValueError):
    """A cut that does not exist in the module, or that failed its proof."""


class ClientLostError(EdgeSplitError):
    """A client did not connect, fell silent, or its process ended."""


class ClientFailedError(EdgeSplitError):
    """An exception in a client's own code; the message carries its traceback as text."""
