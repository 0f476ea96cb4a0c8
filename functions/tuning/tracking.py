"""Tracking of a sweep's trials as runs of the registry, by the process that drives the sweep."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from ray import tune

from toque.functions.runtime.receipt import Prices
from toque.functions.training.cost import ResourceUse, log_cost
from toque.functions.training.params import run_params
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.search import LEG
from toque.functions.tuning.space import MID_TRAINING, Exploit, Limits, Trial
from toque.functions.tuning.trial_states import METRIC, Member
from toque.registry import Registry, Run, TableSnapshot

_EXPLOITS = TypeAdapter(tuple[Exploit, ...])
_METRICS = (METRIC, "train_loss", "epoch_s", "rows_per_s")


@dataclass(slots=True)
class _TrackedTrial:
    run: Run
    point: TabularParams
    metrics: list[dict[str, float]] = field(default_factory=list)
    exploits: list[Exploit] = field(default_factory=list)
    used: ResourceUse = field(default_factory=ResourceUse)
    open: bool = True
    error: str = ""

    @property
    def losses(self) -> list[float]:
        """Validation losses, one for each epoch."""
        return [each[METRIC] for each in self.metrics]

    @property
    def best_epoch(self) -> int | None:
        """Number of the epoch with the lowest loss, from 0."""
        return self.losses.index(min(self.losses)) if self.metrics else None


def finished_trials(registry: Registry, experiment: str, key: str) -> dict[int, Trial]:
    """Find the trials that interrupted sweeps of the same `key` have finished, by number."""
    interrupted = f"tags.sweep_key = '{key}' AND attributes.status != 'FINISHED'"
    found = {}
    for sweep in registry.search_runs(experiment, interrupted, limit=sys.maxsize):
        ended = f"tags.sweep = '{sweep.id}' AND attributes.status = 'FINISHED'"
        for run in registry.search_runs(experiment, ended, limit=sys.maxsize):
            number = int(run.tags["trial"])
            found[number] = Trial(
                run_id=run.id,
                params=TabularParams.model_validate_json(run.tags["settings"]),
                valid_loss=run.metrics["best_loss"],
                epochs=int(run.metrics["epochs"]),
                failed=False,
                best_epoch=int(run.metrics["best_epoch"]),
                exploits=_EXPLOITS.validate_json(run.tags.get("exploits", "[]")),
            )
    return found


def losses_of(registry: Registry, trials: Mapping[int, Trial]) -> dict[int, list[float]]:
    """Read the losses that trials reported, one an epoch, by number of the trial."""
    return {
        number: [point.value for point in registry.get_run(trial.run_id).series(METRIC)]
        for number, trial in trials.items()
    }


class TrialTracker(tune.Callback):
    """Keeps one run of the registry for each trial; writes to it while Tune's trials train, after each of Tune's steps.

    done: trials that need not be run again, by number; members: state of the trials that an interrupted sweep left;
    stopped: the limit that ended the sweep, in words.
    """

    def __init__(
        self,
        registry: Registry,
        experiment: str,
        *,
        parent: str,
        points: Mapping[int, TabularParams],
        dataset: TableSnapshot,
        code: str,
        done: Mapping[int, Trial],
        members: Mapping[int, Member] | None = None,
        prices: Prices | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self.done = done
        self.stopped: str | None = None
        self._prices, self._limits = prices, limits
        self._began: float | None = None  # when the first trial had room on the cluster
        self._registry, self._experiment, self._parent = registry, experiment, parent
        self._points, self._dataset, self._code = points, dataset, code
        self._failed: dict[int, str] = {}  # and why
        self._members = members or {}
        self._tracked: dict[int, _TrackedTrial] = {}
        self._used = ResourceUse()
        self._later: deque[Callable[[], object]] = deque()

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:  # type: ignore[override]  # called by name
        """Start the runs of a leg's trials, once, and with the first one the sweep's clock."""
        for number in trial.config[LEG].trials:
            self.begin_trial(number)

    def on_step_end(self, **_: Any) -> None:  # type: ignore[override]  # the same
        """Write what has come, since the actors of the trials train again."""
        self.flush()

    def flush(self) -> None:
        """Write all that is to be written to the runs."""
        while self._later:
            self._later.popleft()()

    def begin_trial(self, number: int) -> None:
        """Start the run of a trial, once, and with the first one the sweep's clock."""
        self._began = time.monotonic() if self._began is None else self._began
        self._later.append(lambda: self._of(number))

    def log_epoch(self, number: int, result: Mapping[str, Any]) -> None:
        """Log an epoch to the trial's run."""
        used = ResourceUse(result["cpu_s"], result["gpu_s"], result["energy_j"])
        self._used += used

        def log() -> None:
            tracked = self._of(number)
            self._log(tracked, {name: float(result[name]) for name in _METRICS})
            tracked.used += used

        self._later.append(log)

    def record_exploit(self, number: int, exploit: Exploit) -> None:
        """Record on a member's run whose weights it took over, and its settings from then on as a series."""
        self.flush()
        self._exploited(self._of(number), exploit)

    def history(self, number: int) -> tuple[list[dict[str, float]], list[Exploit]]:
        """Metrics of each epoch that a trial has reported, and its exploits."""
        self.flush()
        return list(self._tracked[number].metrics), list(self._tracked[number].exploits)

    def failed_runs(self) -> dict[int, str]:
        """Runs of trials that have failed, by number."""
        self.flush()
        before = {number: trial.run_id for number, trial in self.done.items() if trial.failed}
        return before | {
            number: self._tracked[number].run.id for number in self._failed if number in self._tracked
        }

    def close_trial(self, number: int) -> None:
        """End the run of a trial that will not train again."""
        self._later.append(lambda: self._close(self._of(number), error=""))

    def fail_trial(self, number: int, reason: str) -> None:
        """Remember why a trial failed, which is recorded when the sweep ends."""
        self._failed[number] = reason

    def close(self, *, ended: bool) -> None:
        """End the runs still open after a sweep that ended or was interrupted."""
        self.flush()
        if ended:  # paused trials of an interrupted sweep that were never resumed
            for number in [number for number, member in self._members.items() if member.metrics]:
                self._of(number)
        for number, tracked in self._tracked.items():
            if tracked.open:
                error = self._failed.get(number, self.stopped or "the sweep was interrupted")
                well = ended and tracked.losses and number not in self._failed
                self._close(tracked, error="" if well else error)

    def limit_reached(self) -> bool:
        """Whether the sweep has reached one of its limits."""
        hours = 0.0 if self._began is None else (time.monotonic() - self._began) / 3600
        self.stopped = self.stopped or self._limits.reached(hours=hours, cost=self.used().cost(self._prices))
        return self.stopped is not None

    def trials(self) -> dict[int, Trial]:
        """Collect all trials, by number in ascending order."""
        self.flush()
        ran = {
            number: Trial(
                run_id=tracked.run.id,
                params=tracked.point,
                valid_loss=min(tracked.losses, default=math.nan),
                epochs=len(tracked.losses),
                failed=bool(tracked.error),
                error=tracked.error,
                best_epoch=tracked.best_epoch,
                exploits=tuple(tracked.exploits),
            )
            for number, tracked in self._tracked.items()
        }
        return dict(sorted({**self.done, **ran}.items()))

    def used(self) -> ResourceUse:
        """Sum the resources that the trials of this sweep used."""
        return self._used

    def _of(self, number: int) -> _TrackedTrial:
        """Find or start a trial's run, which begins with the metrics that an interrupted sweep had of it."""
        if number in self._tracked:
            return self._tracked[number]
        point = self._points[number]
        run = self._registry.start_run(
            self._experiment,
            name=f"trial {number}",
            params=run_params(point),
            tags={
                "kind": "trial",
                "sweep": self._parent,
                "trial": str(number),
                "settings": point.model_dump_json(),
            },
            datasets=[self._dataset],
            code=self._code,
            parent=self._parent,
        )
        tracked = self._tracked[number] = _TrackedTrial(run, point)
        if number in self._members:
            for epoch in self._members[number].metrics:
                self._log(tracked, epoch)
            for exploit in self._members[number].exploits:
                self._exploited(tracked, exploit)
        return tracked

    @staticmethod
    def _exploited(tracked: _TrackedTrial, exploit: Exploit) -> None:
        tracked.exploits.append(exploit)
        tracked.run.set_tags({"exploits": _EXPLOITS.dump_json(tuple(tracked.exploits)).decode()})
        settings = {name: getattr(exploit.params, name) for name in MID_TRAINING}
        known = {name: value for name, value in settings.items() if value is not None}
        tracked.run.log_metrics(known, step=exploit.epoch)

    def _log(self, tracked: _TrackedTrial, epoch: dict[str, float]) -> None:
        tracked.run.log_metrics(epoch, step=len(tracked.metrics))
        tracked.metrics.append(epoch)

    def _close(self, tracked: _TrackedTrial, *, error: str) -> None:
        tracked.open, tracked.error = False, error
        if tracked.best_epoch is not None:
            best = {"best_loss": min(tracked.losses), "best_epoch": tracked.best_epoch}
            tracked.run.log_metrics({**best, "epochs": len(tracked.losses)})
        log_cost(tracked.run, tracked.used.cost(self._prices))
        if error:
            tracked.run.set_tags({"error": error[:1000]})
        tracked.run.finish("FAILED" if error else "FINISHED")


class BudgetStopper(tune.Stopper):
    """Stopper that ends a sweep once it has reached one of its limits."""

    def __init__(self, tracker: TrialTracker) -> None:
        self._tracker = tracker

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - as Tune calls it
        """Return False: limits end the sweep, never a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to end all trials, and begin no others."""
        return self._tracker.limit_reached()
