"""Functions that do nothing, apart from the benchmark: a child process imports no more for them than a user's own would."""

from __future__ import annotations

from toque.functions import function


@function(http=True)
def nothing(n: int) -> int:
    """Return the argument, as a declared function."""
    return n


@function(warm=1)
def at_hand(n: int) -> int:
    """Return the argument, as a function with a warm worker."""
    return n
