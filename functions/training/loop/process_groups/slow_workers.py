"""Search for workers whose machine is slower than the others': all wait for the slowest one in every step, and none looks slow.

Time of a step does not tell, since each worker waits for the others within it. So about every half a minute all time the same small
product of matrices, and compare. Others may then go on without the slow ones, if they are faster so.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from toque.functions.training.loop.process_groups.process_group import ProcessGroup

_EVERY = 30  # looks, of which there is about one a second
_WIDTH, _TIMES = 256, 5
_SLOW, _SURE = 2.0, 3  # as long as usual; so often one after the other
_logger = logging.getLogger(__name__)


class SlowWorkers:
    """Says which workers of a group compute twice as long as usual for a while, in their own log and the first worker's.

    nodes: of each worker, by its number; least: the fewest that go on without the nodes of slow ones, None if all stay. `left` are those
    nodes, once others are to go on without them.
    """

    def __init__(
        self,
        group: ProcessGroup,
        probe: Callable[[str], float] | None = None,
        *,
        nodes: Sequence[str] = (),
        least: int | None = None,
    ) -> None:
        self._group, self._probe = group, probe
        self._nodes, self._least = nodes, least
        self.left: frozenset[str] = frozenset()
        self._looks = 0
        self._slow_for: dict[int, int] = {}

    def look(self) -> bool:
        """Compare now, if it is time to, and say, the same in all workers, whether to end so that others go on without slow ones.

        Every worker has to call it, equally often.
        """
        self._looks += 1
        if self._group.size == 1 or self._looks % _EVERY:
            return False
        own = torch.zeros(self._group.size, dtype=torch.float64, device=self._group.device)
        own[self._group.rank] = (self._probe or seconds_of_product)(self._group.device)
        times = self._group.all_reduce_sum(own).tolist()
        usual = sorted(times)[(len(times) - 1) // 2]
        slow = {rank: each / usual for rank, each in enumerate(times) if each > _SLOW * usual}
        self._slow_for = {rank: self._slow_for.get(rank, 0) + 1 for rank in slow}
        for rank, ratio in slow.items():
            if self._slow_for[rank] == _SURE and self._group.rank in {0, rank}:
                self._say(rank, ratio)
        self.left = self._to_leave({rank: slow[rank] for rank in slow if self._slow_for[rank] >= _SURE})
        return bool(self.left)

    def _to_leave(self, slow: Mapping[int, float]) -> frozenset[str]:
        """Nodes of the slow workers, whose times are given as usual's multiples, if enough others are left and faster by themselves."""
        if self._least is None or not slow:
            return frozenset()
        nodes = frozenset(self._nodes[rank] for rank in slow)
        others = sum(node not in nodes for node in self._nodes)
        faster = others * max(slow.values()) > self._group.size  # all take their steps as the slowest does
        return nodes if others >= self._least and faster else frozenset()

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
