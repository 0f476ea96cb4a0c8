"""Ticker of a process of its own that says when it leads, on a schedule that fires each second; see `test_stalled_leader`."""

import os
import sys
from datetime import datetime
from pathlib import Path

from toque.functions import Cron, function
from toque.functions.runtime.context import context
from toque.functions.runtime.durable.invocation import run_pending
from toque.functions.runtime.triggers.schedule import Schedule, run_due
from toque.ray_apps.leader_lease import Leadership
from toque.ray_apps.ticker import Ticker
from toque.registry.lease import StoreLease

EFFECTS = "TOQUE_TEST_EFFECTS"


@function
def note_tick(at: datetime) -> str:
    """Append the tick to a file, so that a test can count the effects."""
    with Path(os.environ[EFFECTS]).open("a") as file:
        file.write(f"{at.isoformat()}\n")
    return at.isoformat()


EACH_SECOND = Schedule(
    "each-second", note_tick, Cron("* * * * * *", tick_as="at", catch_up="all", overlap="queue")
)


def main(name: str) -> None:
    """Tick until the process is killed."""
    used = context()
    member = Leadership([(StoreLease(used.store, "ticker", name, term_s=1.0), 0.2)])
    leads = False

    def is_leader() -> bool:
        nonlocal leads
        now = member.renew()
        if now and not leads:
            print(name, flush=True)  # noqa: T201  # the test waits for this line
        leads = now
        return now

    tasks = {
        "schedules": lambda: run_due(used, schedules=[EACH_SECOND]),
        "invocations": lambda: run_pending(used),
    }
    ticker = Ticker(lambda: tasks, is_leader=is_leader, interval_s=0.02)
    while True:
        ticker.tick()


if __name__ == "__main__":
    from tests.ray_apps import stalled_leader

    stalled_leader.main(sys.argv[1])
