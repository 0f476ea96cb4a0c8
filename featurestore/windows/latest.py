"""The k-th latest value of trailing windows, row by row.

Values that leave a window are always older than those that stay, so the k latest in the window are the k latest of all
that have entered, unless too old: a running maximum, and for k = 2 the running maximum of the values it displaces. Keys with
values that were replaced, which leave before they are old, are gone through row by row.
"""

from bisect import insort

import numpy as np

from toque.featurestore.windows.running import Numbers
from toque.featurestore.windows.windowing import NEVER, Floats, Ints

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


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
        self._replaced = None if events.replaced is None else numbers.of_kept(events.replaced)

    def value(self, k: int, length: int) -> tuple[Floats, Mask]:
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
        values = self._numbers.values.take(event)
        if self._replaced is not None:
            for key in np.unique(self._key[self._replaced < NEVER]):
                self._go_through(int(key), k, length, values, missing)
        return values, missing

    def _go_through(self, key: int, k: int, length: int, values: Floats, missing: Mask) -> None:
        """Set the k-th latest value in each row of a key some of whose values were replaced."""
        numbers, rows = self._numbers, self._numbers.alignment.rows
        first, last = np.searchsorted(self._key, [key, key + 1])
        entry = numbers.of_kept(numbers.alignment.events.entry_times)[first:last].tolist()
        event_times, given = self._event_times[first:last].tolist(), numbers.values[first:last].tolist()
        begin = numbers.begin[first:last].tolist()
        replaced = self._of_replaced(first, last)
        gone = rows.position(np.full(last - first, key), replaced).tolist()
        changes: dict[int, list[tuple[bool, tuple[int, int, float]]]] = {}
        for at, value in enumerate(zip(event_times, entry, given, strict=True)):
            if begin[at] < gone[at]:
                changes.setdefault(begin[at], []).append((True, value))
                changes.setdefault(gone[at], []).append((False, value))
        standing: list[tuple[int, int, float]] = []
        for row in range(*np.searchsorted(rows.key, [key, key + 1]).tolist()):
            for comes, value in changes.get(row, ()):
                if comes:
                    insort(standing, value)
                else:
                    standing.remove(value)
            missing[row] = len(standing) < k or standing[-k][0] + length <= rows.at[row]
            values[row] = 0.0 if missing[row] else standing[-k][2]

    def _of_replaced(self, first: int, last: int) -> Ints:
        if self._replaced is None:
            return np.full(last - first, NEVER)
        return self._replaced[first:last]

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
