"""Trials on Ray Tune: an actor trains, the driving process keeps a run of the registry for each."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ray import tune

from functions.runtime.cluster import NOT_WHERE_IT_SERVES
from functions.runtime.niceness import step_back
from functions.training.asking import METRIC, Asker
from functions.training.cost import Meter
from functions.training.fitting import Prepared, new_trainer
from functions.training.generations import Generations
from functions.training.interrupts import interruptible
from functions.training.loop import Trainer, threads
from functions.training.params import TabularParams
from functions.training.population import EPOCHS, Population, saved_as, which
from functions.training.tracking import TrialTracker
from functions.training.world import Alone


def run_trials(
    prepared: Prepared,
    points: Sequence[TabularParams],
    tracker: TrialTracker,
    *,
    asker: Asker | None = None,
    population: Population | None = None,
    concurrency: int,
    cpus_per_trial: float,
    gpus_per_trial: float = 0.0,
) -> None:
    """Run one trial for each (settled) setting that `tracker` knows no result of, within its limits; how they ended is in it.

    Under ASHA, or as a population that is in step.
    """
    numbers = [number for number in range(len(points)) if number not in tracker.done]
    if not numbers:
        return
    room = _room(cpus_per_trial, gpus_per_trial)
    given: dict[str, Any] = {"point": tune.grid_search(numbers)} if asker is None else {}
    held = {
        "prepared": prepared,
        "points": points,
        "cpus": max(1, int(cpus_per_trial)),
        "gpus": gpus_per_trial,
    }
    if population is None:
        trainable = tune.with_parameters(TabularTrial, **held)
    else:
        trainable = tune.with_parameters(MemberTrial, generations=population.generations, **held)
    with tempfile.TemporaryDirectory(prefix="toque-sweep-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, room),
            param_space=given,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="min",
                max_concurrent_trials=concurrency
                if population is None
                else None,  # all of it has to be known to it
                search_alg=asker,
                num_samples=1 if asker is None else len(numbers),
                reuse_actors=True,
                scheduler=population or _asha(max(point.span[0] for point in points)),
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
        _fit(tuner, tracker)


def _fit(tuner: tune.Tuner, tracker: TrialTracker) -> None:
    """Run the sweep, and end every run of it, however it ended."""
    errors: dict[int, str] = {}
    try:
        with interruptible():
            results = tuner.fit()
        for result in (results[number] for number in range(len(results))):
            if result.error is not None:
                errors[(result.config or {})["point"]] = _last_line(result.error)
    finally:
        tracker.close(errors)


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
        step_back()
        self._prepared, self._points, self._cpus, self._gpus = prepared, points, cpus, gpus
        self._trainer = self._begin(config)

    def step(self) -> dict[str, Any]:
        """Train one epoch."""
        with threads(self._cpus):
            epoch = self._trainer.run_epoch()
        return {
            METRIC: epoch.valid_loss,
            EPOCHS: len(self._trainer.epochs),
            "train_loss": epoch.train_loss,
            "epoch_s": epoch.seconds,
            "rows_per_s": epoch.rows_per_s,
            **asdict(self._meter.lap()),
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


class MemberTrial(TabularTrial):
    """One of a population: it can be put aside, and go on with another's weights under new settings."""

    def setup(  # type: ignore[override]  # with_parameters passes the others
        self, config: dict[str, Any], *, generations: Generations, **held: Any
    ) -> None:
        """Begin with the settings in `config`."""
        self._generations = generations
        super().setup(config, **held)

    def save(self, checkpoint_dir: str | None = None) -> Any:  # noqa: ARG002 - as Tune calls it
        """Put the state of training into the store, which all nodes reach."""
        number, epochs = self.config["point"], len(self._trainer.epochs)
        self._generations.save(number, epochs, self._trainer.snapshot())
        return saved_as(number, epochs, dict(self._last_result or {}))

    def restore(self, checkpoint_path: Any) -> None:
        """Go on from a state that this member or another saved, under the settings of this one."""
        self._trainer.resume(self._generations.load(*which(checkpoint_path)))


def _asha(longest: int) -> tune.schedulers.ASHAScheduler:
    return tune.schedulers.ASHAScheduler(
        max_t=longest,
        grace_period=1,
        reduction_factor=4,  # as in the paper; load.bench_sweeps has what it loses
    )


def _room(cpus: float, gpus: float) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory(
        [{"CPU": cpus, "GPU": gpus}], bundle_label_selector=[NOT_WHERE_IT_SERVES]
    )


def _last_line(error: BaseException) -> str:
    """What a trial's error says at its end, after the traceback that Ray puts into it."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
