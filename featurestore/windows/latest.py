"""The k-th latest value of trailing windows, row by row.

Values that leave a window are always older than those that stay, so the k latest in the window are the k latest of all
that have entered, unless too old: a running maximum, and for k = 2 the running maximum of the values it displaces.
"""

import numpy as np

from featurestore.windows.running import Numbers
from featurestore.windows.windowing import Floats, Ints


class Latest:
    """Values of one column ordered by event time.

    At one event time, the value that became known later comes later, then the greater one.
    """

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        events = numbers.alignment.events
        self._key, self._event_times = numbers.of_kept(events.key), numbers.of_kept(events.event_times)
        self._order = _by_time(
            self._key, self._event_times, numbers.of_kept(events.entry_times), numbers.values
        )
        rank = np.empty_like(self._order)
        rank[self._order] = np.arange(len(rank))
        self._rest: Ints = rank
        self._kth: list[Ints] = []

    def value(self, k: int, length: int) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
        """Find the k-th latest value within `length` microseconds, and a mask where it is missing.

        k: from 1.
        """
        rows, entered = self._numbers.alignment.rows, self._numbers.entered
        if not len(self._order):
            return np.zeros(len(rows.at)), np.ones(len(rows.at), dtype=bool)
        found = self._ranked(k).take(np.maximum(entered - 1, 0))
        event = self._order.take(np.maximum(found, 0))
        missing = (entered == 0) | (found < 0) | (self._key.take(event) != rows.key)
        missing |= self._event_times.take(event) + length <= rows.at
        return self._numbers.values.take(event), missing

    def _ranked(self, k: int) -> Ints:
        """Rank, (values,), of the k-th latest of all values that have entered so far, or -1; ranks ascend by key."""
        while len(self._kth) < k:
            best = np.maximum.accumulate(self._rest)
            before = np.concatenate([[-1], best[:-1]])
            self._rest = np.minimum(before, self._rest)
            self._kth.append(best)
        return self._kth[k - 1]


def _by_time(key: Ints, event_times: Ints, entry_times: Ints, values: Floats) -> Ints:
    """Sort positions by key, event time, known time and value; the events are in order of key and known time."""
    same_key = key[1:] == key[:-1]
    if bool((event_times[1:] > event_times[:-1])[same_key].all()):
        return np.arange(len(key))
    return np.lexsort((values, entry_times, event_times, key))
