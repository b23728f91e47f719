"""What a policy cannot plan."""

from __future__ import annotations


class InfeasibleError(ValueError):
    """No cut fits into a client's memory, or no single cut into that of all."""
