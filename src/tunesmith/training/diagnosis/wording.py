"""Numbers as people write them."""

from __future__ import annotations


def nats(value: float) -> str:
    """A loss: two digits behind the point, more only where it is small."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def percent(share: float) -> str:
    """A share 0-1."""
    return f"{100 * share:.0f} %"


def rate(value: float) -> str:
    """A learning rate: 2e-3, 0.05."""
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-") if value < 0.01 else f"{value:g}"


def count(number: float, noun: str) -> str:
    """`1 row`, `20 rows`."""
    return f"{number:,.0f} {noun}" + ("" if number == 1 else "s")
