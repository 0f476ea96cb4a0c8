"""Bounds that change while requests go on."""

import pytest

from toque.ray_apps.admission.request_limits import RequestLimits, TooManyRequests
from toque.registry import Limits


def test_a_rate_that_is_set_later_counts_from_then_on() -> None:
    now_s = 0.0
    bounds = RequestLimits(clock=lambda: now_s)
    for _ in range(1000):  # before, only those in flight were bounded
        for permit in bounds.take(("team", Limits(max_in_flight=8))):
            permit.release()
    rated = Limits(rate_per_s=5, max_in_flight=8)
    taken = [permit for _ in range(5) for permit in bounds.take(("team", rated))]
    assert len(taken) == 5
    with pytest.raises(TooManyRequests, match=r"more than its 5 requests/s"):
        bounds.take(("team", rated))
    now_s = 0.2
    assert bounds.take(("team", rated))
