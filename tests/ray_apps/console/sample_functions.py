"""Functions of the console's sample platform, in a module of their own so that executors can import it."""

from toque.functions import Retries, function


@function(http=True, timeout_s=600, retries=Retries(max_attempts=3))
def refresh_flights(airports: list[str] | None = None, days: int = 1) -> int:
    """Load the flights of yesterday and materialise their features."""
    return len(airports or []) * days


@function(http=True, role="viewer")
def count_flights(day: str) -> int:
    """Count the flights of a day."""
    return len(day)


@function(http=True, role="admin")
def forget_flights(day: str) -> int:
    """Remove a day from the tables, for good."""
    return len(day)
