"""Board of one process: what waits and runs in each workspace, so that one decision is about the whole cluster.

The leading ticker's executors, one a workspace, share a board. An executor of another process sees its own workspace alone:
quotas hold there too, since the worker itself takes its slot, but shares between workspaces and priorities do not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from toque.functions.runtime.durable.admission.occupancy import Shares
from toque.functions.runtime.durable.admission.request import QuotaRequest

_VALID_S = 60.0  # longer than an executor with runs and nothing that waits goes without posting


@dataclass(frozen=True, slots=True)
class Posted:
    """What the queue of one workspace looks like: who waits, who runs, and the shares of its teams."""

    waiting: tuple[QuotaRequest, ...] = ()
    running: tuple[QuotaRequest, ...] = ()
    shares: Shares = field(default_factory=Shares)


class Board:
    """Queues of the workspaces of one platform, as they were posted within the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._posted: dict[str, tuple[float, Posted]] = {}
        self._clock, self._lock = clock, threading.Lock()

    def post(self, workspace: str, posted: Posted) -> None:
        """Replace what is posted of a workspace."""
        with self._lock:
            self._posted[workspace] = self._clock(), posted

    def others_wait(self, workspace: str) -> bool:
        """Whether anything waits in another workspace."""
        return any(each.waiting for name, each in self._recent().items() if name != workspace)

    def whole(self) -> Posted:
        """All workspaces as one queue."""
        recent = self._recent().values()
        shares = Shares()
        for each in recent:
            shares = replace(
                shares,
                quotas={**shares.quotas, **each.shares.quotas},
                spent={**shares.spent, **each.shares.spent},
                prices=shares.prices or each.shares.prices,
                allotments={**shares.allotments, **each.shares.allotments},
            )
        return Posted(
            tuple(request for each in recent for request in each.waiting),
            tuple(request for each in recent for request in each.running),
            shares,
        )

    def _recent(self) -> dict[str, Posted]:
        with self._lock:
            oldest = self._clock() - _VALID_S
            return {name: each for name, (at, each) in sorted(self._posted.items()) if at >= oldest}


_boards: dict[str, Board] = {}


def board_of(platform_url: str) -> Board:
    """Return this process's board of a platform."""
    return _boards.setdefault(platform_url, Board())
