"""Sweeps: many settings tried at once on Ray Tune, the poor ones stopped early, every trial a tracked run.

The data are prepared once and shared by all trials; a trial is an actor that is reused for the next one. The settings
are drawn here, from a seed, and the first trial always has the given ones, so a sweep never ends worse than no sweep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from functions.runtime.context import context
from functions.runtime.declaration import Demand, Resources
from functions.runtime.function import function
from functions.training.errors import TrainingDataError, TrainingError
from functions.training.params import TabularParams, run_params
from functions.training.space import (
    DEFAULT_SPACE,
    Choice,
    Limits,
    Range,
    Space,
    Trial,
    draw_points,
    grid_points,
)
from registry import Run, Table, TableSnapshot

if TYPE_CHECKING:
    from functions.training.fitting import Columns

__all__ = ["DEFAULT_SPACE", "Choice", "Limits", "Range", "Space", "Sweep", "Trial", "tune_tabular"]


class Sweep(BaseModel):
    """What a sweep found. run_id: the run that holds its trials; best_run: the trial's; stopped: by which limit, if by one."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    best_params: TabularParams
    best_run: str
    best_loss: float
    trials: list[Trial]
    seconds: float
    stopped: str | None = None


def _demand(
    concurrency: int, cpus_per_trial: float, gpus_per_trial: float, priority: int, **_: Any
) -> Demand:
    return Demand(max(1.0, concurrency * cpus_per_trial), concurrency * gpus_per_trial, priority)


@function(resources=Resources(num_cpus=1), timeout_s=3600, demand=_demand)
def tune_tabular(
    model: str,
    training_set: TableSnapshot,
    label: str,
    numeric: list[str],
    categorical: list[str],
    params: TabularParams = TabularParams(),  # noqa: B008 - frozen
    space: Space = DEFAULT_SPACE,
    num_samples: int = 4,
    max_epochs: int | None = None,
    concurrency: int = 2,
    cpus_per_trial: float = 1.0,
    experiment: str | None = None,
    seed: int = 0,
    search: Literal["random", "grid", "optuna"] = "random",
    limits: Limits = Limits(),  # noqa: B008 - frozen
    gpus_per_trial: float = 0.0,
    priority: int = 0,  # noqa: ARG001 - its demand reads it
) -> Sweep:
    """Try settings of the tabular network on Ray Tune with ASHA and return the best; nothing is registered.

    params: the settings that the space does not vary, and the first trial; space: parameter -> what to draw from;
    num_samples: trials; search: "random" draws them, "optuna" proposes them by what those before found, "grid" tries every
    combination instead (a Range says its `steps`);
    limits: hours, CPU- and GPU-hours and money, at the first of which the sweep ends with what it has; max_epochs: epochs of
    the longest trial (default: those of params); concurrency: trials at a time, each with `cpus_per_trial` and `gpus_per_trial`; experiment: where sweep and trials are tracked (default: "{model}-sweep").
    priority: of a submitted one in the queue of experiments, the higher first.
    A sweep that was interrupted repeats no finished trial when it is asked for again.
    Raises: TrainingDataError for a space or data that cannot be used; TrainingError if no Ray runs or every trial fails.
    """
    _check(params, limits)
    base = params if max_epochs is None else params.model_copy(update={"epochs": max_epochs})
    points = grid_points(space, base) if search == "grid" else draw_points(space, base, num_samples, seed)
    wanted = _Wanted(
        model, training_set, label, (tuple(numeric), tuple(categorical)), base, points, space, search, seed
    )
    name, code = experiment or f"{model}-sweep", tune_tabular.digest
    with (
        context()
        .registry()
        .start_run(
            name,
            name=f"sweep {model}",
            params=run_params(base, num_samples=num_samples, label=label),
            tags={"kind": "sweep", "model": model, "sweep_key": wanted.key(code)},
            datasets=[training_set],
            code=code,
        ) as run
    ):
        room = {
            "concurrency": concurrency, "cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial
        }  # fmt: skip
        return _sweep(wanted, run, name, limits, code, room)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a sweep is to try on what; features: the numeric columns and the categorical ones."""

    model: str
    training_set: TableSnapshot
    label: str
    features: tuple[tuple[str, ...], tuple[str, ...]]
    base: TabularParams
    points: list[TabularParams]
    space: Space
    search: str
    seed: int

    @property
    def columns(self) -> Columns:
        """The columns of the training set."""
        from functions.training.fitting import Columns  # late: it needs torch

        return Columns(*self.features, self.label)

    def key(self, code: str) -> str:
        """What names a sweep: all that its trials depend on."""
        from functions.training.checkpoints import digest_of  # late: it stands beside what torch writes

        return digest_of(
            {
                "training_set": self.training_set.model_dump(),
                "columns": [*map(list, self.features), self.label],
                "points": [point.model_dump(mode="json") for point in self.points],
                "search": [self.search, {n: one.model_dump() for n, one in self.space.items()}, self.seed],
                "code": code,
            }
        )


def _check(params: TabularParams, limits: Limits) -> None:
    import ray  # late: it is for whoever sweeps

    if not ray.is_initialized():
        raise TrainingError("a sweep needs a Ray cluster: call ray.init() first, or train with train_tabular")
    if params.rows_in != "memory":
        raise TrainingDataError(
            "params.rows_in='disk': a sweep's trials share rows in memory; sweep on a part of the rows"
        )
    if limits.money is not None and context().prices is None:
        raise TrainingError(f"limits.money={limits.money:g} needs prices: set TOQUE_PRICES, or leave it out")


def _sweep(
    wanted: _Wanted, run: Run, experiment: str, limits: Limits, code: str, room: Mapping[str, Any]
) -> Sweep:
    """Prepare the data, run the trials, and say what they found."""
    from functions.training.asking import Asker  # late, all four: torch and Ray Tune are for whoever sweeps
    from functions.training.cost import billed
    from functions.training.fitting import prepare
    from functions.training.trials import TrialTracker, finished_trials, run_trials

    registry, prices, base = context().registry(), context().prices, wanted.base
    with billed(run, prices) as bill:
        began = time.perf_counter()
        table = Table(registry.store, wanted.training_set.name)
        prepared = prepare(wanted.columns.read(table, wanted.training_set), wanted.columns, base)
        rows, points = len(prepared.train), wanted.points
        done = finished_trials(registry, experiment, wanted.key(code))
        asker = None
        if wanted.search == "optuna":
            asker = Asker(wanted.space, base, count=len(points), seed=wanted.seed, done=done, rows=rows)
        tracker = TrialTracker(
            registry,
            experiment,
            parent=run.id,
            points=points if asker is None else asker.points,
            dataset=wanted.training_set,
            code=code,
            done=done,
            prices=prices,
            limits=limits,
        )
        run_trials(prepared, [point.settled(rows) for point in points], tracker, asker=asker, **room)
        bill.others = tracker.spent()
        best = _best(run, tracker.trials(), time.perf_counter() - began)
        if tracker.stopped:
            run.set_tags({"stopped": tracker.stopped})
        return best.model_copy(update={"stopped": tracker.stopped})


def _best(run: Run, trials: list[Trial], seconds: float) -> Sweep:
    good = [trial for trial in trials if not trial.failed and math.isfinite(trial.valid_loss)]
    if not good:
        errors = sorted({trial.error for trial in trials})
        raise TrainingError(f"all {len(trials)} trials failed: {errors}")
    best = min(good, key=lambda trial: trial.valid_loss)
    run.log_metrics(
        {"best_loss": best.valid_loss, "trials": len(trials), "epochs": sum(t.epochs for t in trials)}
    )
    run.set_tags({"best_run": best.run_id})
    return Sweep(
        run_id=run.id,
        best_params=best.params,
        best_run=best.run_id,
        best_loss=best.valid_loss,
        trials=trials,
        seconds=seconds,
    )
