"""Trials on Ray Tune: one actor trains, the driving process keeps one run of the registry for each."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from functions.runtime.receipt import Prices
from functions.training.cost import Meter, Spent, log_cost
from functions.training.distributed import NICENESS
from functions.training.fitting import Prepared, new_trainer
from functions.training.interrupts import interruptible
from functions.training.loop import Trainer, threads
from functions.training.params import TabularParams, run_params
from functions.training.space import Trial
from registry import Registry, Run, TableSnapshot

METRIC = "valid_loss"


def run_trials(
    prepared: Prepared,
    points: Sequence[TabularParams],
    tracker: TrialTracker,
    *,
    concurrency: int,
    cpus_per_trial: float,
) -> None:
    """Run one trial for each (settled) setting that `tracker` knows no result of, under ASHA; how they ended is in it."""
    numbers = [number for number in range(len(points)) if number not in tracker.done]
    if not numbers:
        return
    longest = max(point.span[0] for point in points)
    trainable = tune.with_parameters(
        TabularTrial, prepared=prepared, points=points, cpus=max(1, int(cpus_per_trial))
    )
    with tempfile.TemporaryDirectory(prefix="toque-sweep-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": cpus_per_trial}),
            param_space={"point": tune.grid_search(numbers)},
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="min",
                max_concurrent_trials=concurrency,
                reuse_actors=True,
                scheduler=tune.schedulers.ASHAScheduler(
                    max_t=longest, grace_period=max(1, longest // 3), reduction_factor=2
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="sweep",
                verbose=0,
                callbacks=[tracker],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        errors: dict[int, str] = {}
        try:
            with interruptible():
                results = tuner.fit()
            for result in (results[number] for number in range(len(results))):
                if result.error is not None:
                    errors[(result.config or {})["point"]] = _last_line(result.error)
        finally:
            tracker.close(errors)


@dataclass(slots=True)
class _Tracked:
    run: Run
    point: TabularParams
    losses: list[float] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    open: bool = True
    error: str = ""


def finished_trials(
    registry: Registry, experiment: str, key: str, points: Sequence[TabularParams]
) -> dict[int, Trial]:
    """What interrupted sweeps of the same `key` have finished, by number of the setting."""
    interrupted = f"tags.sweep_key = '{key}' AND attributes.status != 'FINISHED'"
    found = {}
    for sweep in registry.search_runs(experiment, interrupted):
        ended = f"tags.sweep = '{sweep.id}' AND attributes.status = 'FINISHED'"
        for run in registry.search_runs(experiment, ended):
            number = int(run.tags["trial"])
            found[number] = Trial(
                run_id=run.id,
                params=points[number],
                valid_loss=run.metrics["best_loss"],
                epochs=int(run.metrics["epochs"]),
                failed=False,
            )
    return found


class TrialTracker(tune.Callback):
    """Keeps one run of the registry for each trial, from the process that drives the sweep.

    done: trials that need not be run again, by number of their setting.
    """

    def __init__(
        self,
        registry: Registry,
        experiment: str,
        *,
        parent: str,
        points: Sequence[TabularParams],
        dataset: TableSnapshot,
        code: str,
        done: Mapping[int, Trial],
        prices: Prices | None = None,
    ) -> None:
        self.done = done
        self._prices = prices
        self._registry, self._experiment, self._parent = registry, experiment, parent
        self._points, self._dataset, self._code = points, dataset, code
        self._tracked: dict[int, _Tracked] = {}

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:  # type: ignore[override]  # called by name
        """Start the trial's run, once."""
        number = trial.config["point"]
        if number in self._tracked:
            return
        point = self._points[number]
        run = self._registry.start_run(
            self._experiment,
            name=f"trial {number}",
            params=run_params(point),
            tags={"kind": "trial", "sweep": self._parent, "trial": str(number)},
            datasets=[self._dataset],
            code=self._code,
            parent=self._parent,
        )
        self._tracked[number] = _Tracked(run, point)

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:  # type: ignore[override]  # the same
        """Log an epoch."""
        tracked = self._tracked[trial.config["point"]]
        names = (METRIC, "train_loss", "epoch_s", "rows_per_s")
        tracked.run.log_metrics({name: result[name] for name in names}, step=len(tracked.losses))
        tracked.losses.append(float(result[METRIC]))
        tracked.spent = Spent(result["cpu_s"])

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:  # type: ignore[override]  # called by name
        """End the run of a trial that is over, be it at its last epoch or stopped by the scheduler."""
        self._close(self._tracked[trial.config["point"]], error="")

    def close(self, errors: Mapping[int, str]) -> None:
        """End what is still open after the sweep, failed by the error told for its setting, else interrupted."""
        for number, tracked in self._tracked.items():
            if tracked.open:
                self._close(tracked, error=errors.get(number, "the sweep was interrupted"))

    def trials(self) -> list[Trial]:
        """All trials in the order of their settings."""
        ran = {
            number: Trial(
                run_id=tracked.run.id,
                params=tracked.point,
                valid_loss=min(tracked.losses, default=math.nan),
                epochs=len(tracked.losses),
                failed=bool(tracked.error),
                error=tracked.error,
            )
            for number, tracked in self._tracked.items()
        }
        return [trial for _, trial in sorted({**self.done, **ran}.items())]

    def spent(self) -> Spent:
        """What all trials that ran spent."""
        return sum((tracked.spent for tracked in self._tracked.values()), Spent())

    def _close(self, tracked: _Tracked, *, error: str) -> None:
        tracked.open, tracked.error = False, error
        if tracked.losses:
            tracked.run.log_metrics({"best_loss": min(tracked.losses), "epochs": len(tracked.losses)})
        log_cost(tracked.run, tracked.spent.cost(self._prices))
        if error:
            tracked.run.set_tags({"error": error[:1000]})
        tracked.run.finish("FAILED" if error else "FINISHED")


class TabularTrial(tune.Trainable):
    """One trial: an epoch a step."""

    def setup(  # type: ignore[override]  # with_parameters passes the others
        self, config: dict[str, Any], *, prepared: Prepared, points: Sequence[TabularParams], cpus: int
    ) -> None:
        """Begin with the setting that `config` points at."""
        os.nice(NICENESS)
        self._prepared, self._points, self._cpus = prepared, points, cpus
        self._trainer = self._begin(config)

    def step(self) -> dict[str, Any]:
        """Train one epoch."""
        with threads(self._cpus):
            epoch = self._trainer.run_epoch()
        return {
            METRIC: epoch.valid_loss,
            "train_loss": epoch.train_loss,
            "epoch_s": epoch.seconds,
            "rows_per_s": epoch.rows_per_s,
            "cpu_s": self._meter.read().cpu_s,
            "done": self._trainer.finished,
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let Tune use this actor for the next trial."""
        self._trainer = self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> Trainer:
        self._meter = Meter("cpu", 0.0)
        return new_trainer(self._prepared, self._points[config["point"]])


def _last_line(error: BaseException) -> str:
    """What a trial's error says at its end, after the traceback that Ray puts into it."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
