"""Numbers that a learner is given."""

from __future__ import annotations

from numbers import Integral, Real


def check_whole(least: int, /, **numbers: object) -> None:
    """Raise a TypeError unless all numbers are whole, and a ValueError unless they are at least `least`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise TypeError(f"`{name}` must be a whole number, got {number!r}.")
        if int(number) < least:
            raise ValueError(f"`{name}` must be at least {least}, got {number}.")


def check_shares(**shares: object) -> None:
    """Raise a ValueError unless all shares are numbers from 0 to 1."""
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= float(share) <= 1:
            raise ValueError(f"`{name}` must be a share, a number from 0 to 1, got {share!r}.")
