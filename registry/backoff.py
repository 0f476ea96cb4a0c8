"""Random, growing waits between attempts of writers that compete for one place."""

from __future__ import annotations

from random import SystemRandom

# The platform's own: a seeded `random` is the user's, and a thread of ours must not draw from it.
CHANCE = SystemRandom()
_FIRST_BACKOFF_S = 0.01
_MAX_BACKOFF_S = 1.0


def backoff_s(attempt: int) -> float:
    """Seconds to wait before try `attempt` + 1: random, so that losers do not meet again."""
    return CHANCE.uniform(0.0, min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(attempt, 10)))
