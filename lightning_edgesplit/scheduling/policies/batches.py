"""Ways to divide a global batch among clients: whole samples, between bounds of each client, always the same sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def apportion(
    weights: Sequence[float], total: int, least: Sequence[int], most: Sequence[int]
) -> tuple[int, ...] | None:
    """Whole numbers in proportion to the weights, as near as the bounds allow, that sum to `total`.

    b_k = min(most_k, max(least_k, λ·w_k)) with the λ for which they sum to `total`, by bisection; what rounding down
    leaves goes to the largest fractions, of equals to the first.

    Args:
        weights: One positive number per client.
        total: What they sum to.
        least: Lower bounds.
        most: Upper bounds.

    Returns:
        The numbers; None if the bounds allow no such sum.
    """
    if not sum(least) <= total <= sum(most) or any(low > high for low, high in zip(least, most, strict=True)):
        return None

    def at(factor: float) -> list[float]:
        bounds = zip(weights, least, most, strict=True)
        return [min(float(high), max(float(low), factor * weight)) for weight, low, high in bounds]

    low, high = 0.0, max(most) / min(weights)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) <= total else (low, middle)
    exact = at(low)
    whole = [int(value) for value in exact]
    by_fraction = sorted(range(len(whole)), key=lambda k: (whole[k] - exact[k], k))
    while sum(whole) < total:
        for k in by_fraction:
            if whole[k] < most[k] and sum(whole) < total:
                whole[k] += 1
    return tuple(whole)


def shifts(
    batches: Sequence[int], givers: Sequence[int], least: Sequence[int], most: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """Batches in which one client has given samples to another: first all that can go, then half of that, and so on.

    Args:
        batches: Where to begin.
        givers: Numbers of the clients, in the order in which they give; they take in the opposite one.
        least: Lower bounds.
        most: Upper bounds.
    """
    for giver in givers:
        for taker in reversed(givers):
            amount = min(batches[giver] - least[giver], most[taker] - batches[taker]) if giver != taker else 0
            while amount > 0:
                moved = list(batches)
                moved[giver] -= amount
                moved[taker] += amount
                yield tuple(moved)
                amount //= 2
