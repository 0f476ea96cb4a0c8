"""Benchmark of serving beside trainings: p99 of a served model with two dozen experiments, and alone.

A platform of its own, in a temporary folder and on free ports, serves a small MLP. Beside it so many trainings are submitted, each the
tabular default of 160,000 rows; the quota of everyone lets `--at-once` of them run, the others wait, and when the window is over all are
cancelled. The exit code is 1 if the p99 beside experiments is more than twice the one alone, or a training has not stepped back; 2 if
nothing was measured: the platform did not start, a request failed, or nobody waited any more when a window ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from toque.functions.runtime.declaration import NICENESS
from toque.load import processes
from toque.load.benchmarks.harness import NotPossible, bound, main, temporary
from toque.load.benchmarks.platform import windows
from toque.load.benchmarks.servers import Platform, started, until
from toque.load.benchmarks.training.fixtures import COLUMNS, synthetic_table
from toque.registry import Table, TableSnapshot, open_store

MOST = 2.0  # times the p99 alone
TRAINER = "ray::train_tabular"  # how Ray names the process of a training


def run(
    *,
    rounds: int = 3,
    seconds: Annotated[float, "of each window"] = 30,
    rate: float = 50,
    experiments: int = 24,
    at_once: Annotated[int, "of them, by the quota of everyone"] = 2,
) -> None:
    """Start a platform, and measure it alone and beside experiments."""
    with temporary() as folder:
        store_url, token = windows.register_model(folder)
        rows = Table(open_store(store_url), "rows").append(synthetic_table())
        with started(folder / "home", store_url, project=windows.PROJECT) as platform:
            platform.call("set_quota", team="everyone", at_once=at_once)
            trainings = Trainings(platform, rows, experiments, at_once)
            running = trainings.running
            both = windows.alone_and_beside(
                platform, token, running, rounds=rounds, seconds=seconds, rate=rate
            )
    verdict(*both, trainings)


@dataclass
class Trainings:
    """Trainings that a platform has to do, `at_once` of them at a time.

    niceness: that each training process had as a window began or ended; waiting: experiments without a turn at each window's end.
    """

    platform: Platform
    rows: TableSnapshot
    count: int
    at_once: int
    niceness: set[int] = field(default_factory=set)
    waiting: list[int] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Submit all, and cancel them afterwards. Raises: NotPossible, httpx.HTTPError."""
        columns: dict[str, Any] = {name: list(getattr(COLUMNS, name)) for name in ("numeric", "categorical")}
        columns |= {"training_set": self.rows.model_dump(mode="json"), "label": COLUMNS.label}
        submit = partial(self.platform.submit, "train_tabular", register=False, **columns)
        numbers = range(self.count)
        submitted = [submit(model=f"experiment-{number}", params={"seed": number}) for number in numbers]
        otherwise = f"{self.at_once} experiments have not begun"
        until(lambda: self._in_state("running") >= self.at_once, otherwise)
        self.niceness |= set(self._trainers().values())
        yield
        self.niceness |= set(self._trainers().values())
        self.waiting.append(self._in_state("queued"))
        for invocation in submitted:
            self.platform.client.delete(f"/invocations/{invocation}").raise_for_status()
        until(lambda: not self._trainers(), "cancelled trainings have not ended")

    def _in_state(self, state: str) -> int:
        """Count invocations; read from the ledger, since a function might itself wait for a CPU."""
        answer = self.platform.client.get("/invocations", params={"state": state, "limit": 1000})
        return len(answer.raise_for_status().json())

    def _trainers(self) -> dict[int, int]:
        every = processes.of_platform(self.platform.home, lambda process, name: (name, process.nice()))
        return {pid: nice for pid, (name, nice) in every.items() if name.startswith(TRAINER)}


def verdict(alone: Sequence[windows.Window], beside: Sequence[windows.Window], trainings: Trainings) -> None:
    """Print both and their ratio, and hold them to their bounds. Raises: NotPossible."""
    if not all(trainings.waiting):
        raise NotPossible("no experiment waited any more when a window ended: raise --experiments")
    niced = sum(window.niced for window in beside) / len(beside)
    least = min(trainings.niceness, default=-20)
    bound("times the p99 alone, beside trainings", windows.p99_ratio(alone, beside), most=MOST)
    bound(f"niceness of trainings, which took {niced:.2f} CPUs", least, least=NICENESS)


if __name__ == "__main__":
    main(run, "ray", "torch")
