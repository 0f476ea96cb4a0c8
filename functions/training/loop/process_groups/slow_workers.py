"""Search for workers whose machine is slower than the others': all wait for the slowest one in every step, and none looks slow.

Time of a step does not tell, since each worker waits for the others within it. So about every half a minute all time the same small
product of matrices, and compare.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable

import torch

from functions.training.loop.process_groups.process_group import ProcessGroup

_EVERY = 30  # looks, of which there is about one a second
_WIDTH, _TIMES = 256, 5
_SLOW, _SURE = 2.0, 3  # as long as usual; so often one after the other
_logger = logging.getLogger(__name__)


class SlowWorkers:
    """Says which workers of a group compute twice as long as usual for a while, in their own log and the first worker's."""

    def __init__(self, group: ProcessGroup, probe: Callable[[str], float] | None = None) -> None:
        self._group, self._probe = group, probe or seconds_of_product
        self._looks = 0
        self._slow_for: dict[int, int] = {}

    def look(self) -> None:
        """Compare now, if it is time to; every worker has to call it, equally often."""
        self._looks += 1
        if self._group.size == 1 or self._looks % _EVERY:
            return
        own = torch.zeros(self._group.size, dtype=torch.float64, device=self._group.device)
        own[self._group.rank] = self._probe(self._group.device)
        times = self._group.all_reduce_sum(own).tolist()
        usual = sorted(times)[(len(times) - 1) // 2]
        slow = {rank: each / usual for rank, each in enumerate(times) if each > _SLOW * usual}
        self._slow_for = {rank: self._slow_for.get(rank, 0) + 1 for rank in slow}
        for rank, ratio in slow.items():
            if self._slow_for[rank] == _SURE and self._group.rank in {0, rank}:
                self._say(rank, ratio)

    def _say(self, rank: int, ratio: float) -> None:
        where = f" on {platform.node()}" if rank == self._group.rank else ""
        _logger.warning(
            "worker %d of %d%s computes %.1f times as long as usual, and all others wait for it: its machine is slower, hot or shared",
            rank, self._group.size, where, ratio,
        )  # fmt: skip


def seconds_of_product(device: str) -> float:
    """Time a product of two small matrices on a device, in seconds: the median of a few."""
    one = torch.ones(_WIDTH, _WIDTH, device=device)
    took = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        (one @ one)[0, 0].item()  # which waits for the device
        took.append(time.perf_counter() - began)
    return sorted(took)[_TIMES // 2]
