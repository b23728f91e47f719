"""Numbers as people read them: three significant digits, with their unit, in plain ASCII for any terminal."""

from __future__ import annotations


def digits(value: float) -> str:
    """A number of at least 0 with about three significant digits, never more than six characters below a million."""
    if value != value:  # NaN: nothing was predicted
        return "-"
    if value == 0:
        return "0"
    if value < 0.001:
        return f"{value:.0e}"
    for limit, decimals in ((0.1, 3), (9.995, 2), (99.95, 1)):
        if value < limit:
            return f"{value:.{decimals}f}"
    return f"{value:.0f}"


def seconds(value: float) -> str:
    """Seconds, as "9.12 s"."""
    return f"{digits(value)} s"


def megabytes(size: float) -> str:
    """Bytes as "12.3 MB" (1 MB is a million bytes)."""
    return f"{digits(size / 1e6)} MB"


def rate(value: float | None) -> str:
    """A link rate in bit/s as "20 Mbit/s"; None, a link without limit, as "no limit"."""
    if value is None:
        return "no limit"
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} bit/s"


def percent(fraction: float) -> str:
    """A fraction as "25 %"; below one percent with one digit more, so that a small share does not read as none."""
    return f"{100 * fraction:.0f} %" if fraction >= 0.0995 or fraction == 0 else f"{100 * fraction:.1f} %"
