"""Trials on Ray Tune: one actor trains, the driving process keeps one run of the registry for each."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ray import tune

from functions.runtime.cluster import NOT_WHERE_IT_SERVES
from functions.runtime.declaration import NICENESS
from functions.runtime.receipt import Prices
from functions.training.asking import METRIC, Asker
from functions.training.cost import Meter, Spent, log_cost
from functions.training.fitting import Prepared, new_trainer
from functions.training.interrupts import interruptible
from functions.training.loop import Trainer, threads
from functions.training.params import TabularParams, run_params
from functions.training.space import Limits, Trial
from functions.training.world import Alone
from registry import Registry, Run, TableSnapshot


def run_trials(
    prepared: Prepared,
    points: Sequence[TabularParams],
    tracker: TrialTracker,
    *,
    asker: Asker | None = None,
    concurrency: int,
    cpus_per_trial: float,
    gpus_per_trial: float = 0.0,
) -> None:
    """Run one trial for each (settled) setting that `tracker` knows no result of, under ASHA, within its limits; how they ended is in it."""
    numbers = [number for number in range(len(points)) if number not in tracker.done]
    if not numbers:
        return
    given: dict[str, Any] = {"point": tune.grid_search(numbers)} if asker is None else {}
    longest = max(point.span[0] for point in points)
    trainable = tune.with_parameters(
        TabularTrial,
        prepared=prepared,
        points=points,
        cpus=max(1, int(cpus_per_trial)),
        gpus=gpus_per_trial,
    )
    with tempfile.TemporaryDirectory(prefix="toque-sweep-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, _room(cpus_per_trial, gpus_per_trial)),
            param_space=given,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="min",
                max_concurrent_trials=concurrency,
                search_alg=asker,
                num_samples=1 if asker is None else len(numbers),
                reuse_actors=True,
                scheduler=tune.schedulers.ASHAScheduler(
                    max_t=longest,
                    grace_period=1,
                    reduction_factor=4,  # as in the paper; load.bench_sweeps has what it loses
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="sweep",
                verbose=0,
                callbacks=[tracker],
                stop=Budget(tracker),
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


def finished_trials(registry: Registry, experiment: str, key: str) -> dict[int, Trial]:
    """What interrupted sweeps of the same `key` have finished, by number of the setting."""
    interrupted = f"tags.sweep_key = '{key}' AND attributes.status != 'FINISHED'"
    found = {}
    for sweep in registry.search_runs(experiment, interrupted):
        ended = f"tags.sweep = '{sweep.id}' AND attributes.status = 'FINISHED'"
        for run in registry.search_runs(experiment, ended):
            number = int(run.tags["trial"])
            found[number] = Trial(
                run_id=run.id,
                params=TabularParams.model_validate_json(run.tags["settings"]),
                valid_loss=run.metrics["best_loss"],
                epochs=int(run.metrics["epochs"]),
                failed=False,
            )
    return found


class TrialTracker(tune.Callback):
    """Keeps one run of the registry for each trial, from the process that drives the sweep.

    done: trials that need not be run again, by number of their setting; stopped: the limit that ended the sweep, in words.
    """

    def __init__(
        self,
        registry: Registry,
        experiment: str,
        *,
        parent: str,
        points: Sequence[TabularParams] | Mapping[int, TabularParams],
        dataset: TableSnapshot,
        code: str,
        done: Mapping[int, Trial],
        prices: Prices | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self.done = done
        self.stopped: str | None = None
        self._prices, self._limits, self._began = prices, limits, time.monotonic()
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
        self._tracked[number] = _Tracked(run, point)

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:  # type: ignore[override]  # the same
        """Log an epoch."""
        tracked = self._tracked[trial.config["point"]]
        names = (METRIC, "train_loss", "epoch_s", "rows_per_s")
        tracked.run.log_metrics({name: result[name] for name in names}, step=len(tracked.losses))
        tracked.losses.append(float(result[METRIC]))
        tracked.spent = Spent(result["cpu_s"], result["gpu_s"], result["energy_j"])

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:  # type: ignore[override]  # called by name
        """End the run of a trial that is over, be it at its last epoch or stopped by the scheduler."""
        self._close(self._tracked[trial.config["point"]], error="")

    def close(self, errors: Mapping[int, str]) -> None:
        """End what is still open after the sweep: failed by the error told for its setting, ended by a limit, else interrupted."""
        for number, tracked in self._tracked.items():
            if tracked.open:
                error = errors.get(number, self.stopped or "the sweep was interrupted")
                ended = self.stopped and tracked.losses and number not in errors
                self._close(tracked, error="" if ended else error)

    def over(self) -> bool:
        """Whether the sweep has reached one of its limits."""
        hours = (time.monotonic() - self._began) / 3600
        self.stopped = self.stopped or self._limits.reached(hours=hours, cost=self.spent().cost(self._prices))
        return self.stopped is not None

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


class Budget(tune.Stopper):
    """Ends a sweep that has reached one of its limits."""

    def __init__(self, tracker: TrialTracker) -> None:
        self._tracker = tracker

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - as Tune calls it
        """No single trial ends by it."""
        return False

    def stop_all(self) -> bool:
        """Whether to end all trials, and begin no others."""
        return self._tracker.over()


class TabularTrial(tune.Trainable):
    """One trial: an epoch a step."""

    def setup(  # type: ignore[override]  # with_parameters passes the others
        self,
        config: dict[str, Any],
        *,
        prepared: Prepared,
        points: Sequence[TabularParams],
        cpus: int,
        gpus: float,
    ) -> None:
        """Begin with the setting that `config` points at."""
        os.nice(NICENESS)
        self._prepared, self._points, self._cpus, self._gpus = prepared, points, cpus, gpus
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
            **asdict(self._meter.read()),
            "done": self._trainer.finished,
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let Tune use this actor for the next trial."""
        self._trainer = self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> Trainer:
        device = "cuda" if self._gpus else "cpu"
        self._meter = Meter(device, self._gpus)
        told = config.get("settings")  # of one that was proposed during the sweep
        point = self._points[config["point"]] if told is None else TabularParams.model_validate(told)
        return new_trainer(self._prepared, point, Alone(device))


def _room(cpus: float, gpus: float) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory(
        [{"CPU": cpus, "GPU": gpus}], bundle_label_selector=[NOT_WHERE_IT_SERVES]
    )


def _last_line(error: BaseException) -> str:
    """What a trial's error says at its end, after the traceback that Ray puts into it."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
