"""Sweeps: many settings tried at once on Ray Tune, the poor ones stopped early, every trial a tracked run.

The data are prepared once and shared by all trials; a trial is an actor that is reused for the next one. The settings
are drawn here, from a seed, and the first trial always has the given ones, so a sweep never ends worse than no sweep. In a
population that holds of what the trials begin with; what they copy from each other comes on top.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from functions.runtime.context import context
from functions.runtime.declaration import Demand, Resources
from functions.runtime.function import function
from functions.training.descent import Stretch, descent
from functions.training.errors import TrainingDataError, TrainingError
from functions.training.params import TabularParams, run_params
from functions.training.space import (
    DEFAULT_SPACE,
    Choice,
    Exploit,
    Limits,
    Range,
    Space,
    Trial,
    draw_points,
    grid_points,
    population_points,
    population_space,
)
from registry import Run, Table, TableSnapshot

if TYPE_CHECKING:
    from functions.training.fitting import Columns
    from functions.training.tracking import TrialTracker

__all__ = [
    "DEFAULT_SPACE",
    "Choice",
    "Exploit",
    "Limits",
    "Range",
    "Search",
    "Space",
    "Stretch",
    "Sweep",
    "Trial",
    "tune_tabular",
]

Search = Literal["random", "grid", "optuna", "pbt"]
_DECISIONS = 4  # of a population, if nobody says how far they are apart


class Sweep(BaseModel):
    """What a sweep found.

    run_id: the run that holds its trials; best_run: the trial's; stopped: by which limit, if by one; descent: of a population,
    which trial trained the winner's weights when, and with what; best_params are then those of its last stretch.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    best_params: TabularParams
    best_run: str
    best_loss: float
    trials: list[Trial]
    seconds: float
    stopped: str | None = None
    descent: list[Stretch] = []


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
    space: Space | None = None,
    num_samples: int = 4,
    max_epochs: int | None = None,
    concurrency: int = 2,
    cpus_per_trial: float = 1.0,
    experiment: str | None = None,
    seed: int = 0,
    search: Search = "random",
    limits: Limits = Limits(),  # noqa: B008 - frozen
    gpus_per_trial: float = 0.0,
    priority: int = 0,  # noqa: ARG001 - its demand reads it
    copy_every: int | None = None,
) -> Sweep:
    """Try settings of the tabular network on Ray Tune and return the best; nothing is registered.

    params: the settings that the space does not vary, and the first trial; space: parameter -> what to draw from (default:
    DEFAULT_SPACE);
    num_samples: trials; search: "random" draws them, "optuna" proposes them by what those before found, "grid" tries every
    combination instead (a Range says its `steps`), all of them under ASHA; "pbt" trains them as a population: every
    `copy_every` epochs (default: a fifth) the worst go on with weights of the best, under settings near theirs;
    limits: hours, CPU- and GPU-hours and money, at the first of which the sweep ends with what it has; max_epochs: epochs of
    the longest trial (default: those of params); concurrency: trials at a time, each with `cpus_per_trial` and `gpus_per_trial`; experiment: where sweep and trials are tracked (default: "{model}-sweep").
    priority: of a submitted one in the queue of experiments, the higher first.
    A sweep that was interrupted repeats no finished trial when it is asked for again.
    Raises: TrainingDataError for a space or data that cannot be used; TrainingError if no Ray runs or every trial fails.
    """
    _check(params, limits, search, copy_every)
    base = params if max_epochs is None else params.model_copy(update={"epochs": max_epochs})
    tried = population_space(space) if search == "pbt" else DEFAULT_SPACE if space is None else space
    points = _points(search, tried, base, num_samples, seed)
    how = _How(search, tried, seed, copy_every)
    wanted = _Wanted(model, training_set, label, (tuple(numeric), tuple(categorical)), base, points, how)
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


def _points(
    search: Search, space: Space, base: TabularParams, num_samples: int, seed: int
) -> list[TabularParams]:
    """What the trials begin with."""
    if search == "grid":
        return grid_points(space, base)
    return (population_points if search == "pbt" else draw_points)(space, base, num_samples, seed)


@dataclass(frozen=True, slots=True)
class _How:
    """What settings hang on, beside what they are drawn from."""

    search: Search
    space: Space
    seed: int
    copy_every: int | None

    def interval(self, epochs: int) -> int:
        """Epochs between a population's decisions. Raises: TrainingDataError if there would be none in so many epochs."""
        interval = self.copy_every or max(1, epochs // (_DECISIONS + 1))
        if interval >= epochs:
            raise TrainingDataError(
                f"search='pbt' with copy_every={interval} and {epochs} epochs: no trial would ever copy another; "
                f"raise max_epochs or lower copy_every"
            )
        return interval

    def told(self) -> list[Any]:
        """It as JSON."""
        return [
            self.search,
            {n: one.model_dump() for n, one in self.space.items()},
            self.seed,
            self.copy_every,
        ]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a sweep is to try on what; features: the numeric columns and the categorical ones."""

    model: str
    training_set: TableSnapshot
    label: str
    features: tuple[tuple[str, ...], tuple[str, ...]]
    base: TabularParams
    points: list[TabularParams]
    how: _How

    @property
    def columns(self) -> Columns:
        """The columns of the training set."""
        from functions.training.fitting import Columns  # late: it needs torch

        return Columns(*self.features, self.label)

    def settled(self, rows: int) -> list[TabularParams]:
        """The points for a training part of `rows`; a population's all have as many epochs, since they change batches."""
        points = [point.settled(rows) for point in self.points]
        if self.how.search != "pbt":
            return points
        span = points[0].model_dump(include={"epochs", "patience"})
        return [point.model_copy(update=span) for point in points]

    def key(self, code: str) -> str:
        """What names a sweep: all that its trials depend on."""
        from functions.training.checkpoints import digest_of  # late: it stands beside what torch writes

        return digest_of(
            {
                "training_set": self.training_set.model_dump(),
                "columns": [*map(list, self.features), self.label],
                "points": [point.model_dump(mode="json") for point in self.points],
                "search": self.how.told(),
                "code": code,
            }
        )


def _check(params: TabularParams, limits: Limits, search: Search, copy_every: int | None) -> None:
    import ray  # late: it is for whoever sweeps

    if not ray.is_initialized():
        raise TrainingError("a sweep needs a Ray cluster: call ray.init() first, or train with train_tabular")
    if copy_every is not None and (search != "pbt" or copy_every < 1):
        raise TrainingDataError(
            f"copy_every={copy_every} with search={search!r}: it is of a population (search='pbt'), and 1 at least"
        )
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
    from functions.training.asking import Asker  # late, all six: torch and Ray Tune are for whoever sweeps
    from functions.training.cost import billed
    from functions.training.fitting import prepare
    from functions.training.population import taken_up
    from functions.training.tracking import TrialTracker, finished_trials
    from functions.training.trials import run_trials

    registry, prices, base, how = context().registry(), context().prices, wanted.base, wanted.how
    with billed(run, prices) as bill:
        began = time.perf_counter()
        table = Table(registry.store, wanted.training_set.name)
        prepared = prepare(wanted.columns.read(table, wanted.training_set), wanted.columns, base)
        rows, points = len(prepared.train), wanted.settled(len(prepared.train))
        done = finished_trials(registry, experiment, wanted.key(code))
        asker = taken = None
        if how.search == "optuna":
            asker = Asker(how.space, base, count=len(points), seed=how.seed, done=done, rows=rows)
        if how.search == "pbt":
            folder, interval = f"checkpoints/{wanted.key(code)}/", how.interval(points[0].span[0])
            taken = taken_up(registry.store, folder, interval, points, done)
        tracker = TrialTracker(
            registry,
            experiment,
            parent=run.id,
            points=wanted.points if asker is None else asker.points,
            dataset=wanted.training_set,
            code=code,
            done=done if taken is None else {**taken.lost, **done},
            members=None if taken is None else taken.members,
            prices=prices,
            limits=limits,
        )
        population = (
            None if taken is None else taken.population(how.space, how.seed, room["concurrency"], tracker)
        )
        run_trials(prepared, points, tracker, asker=asker, population=population, **room)
        bill.others = tracker.spent()
        best = _best(run, tracker, time.perf_counter() - began, population=taken is not None)
        if taken is not None:
            taken.generations.drop()
        return best


def _best(run: Run, tracker: TrialTracker, seconds: float, *, population: bool) -> Sweep:
    numbered = tracker.trials()
    trials = list(numbered.values())
    good = [
        number for number, trial in numbered.items() if not trial.failed and math.isfinite(trial.valid_loss)
    ]
    if not good:
        errors = sorted({trial.error for trial in trials})
        raise TrainingError(f"all {len(trials)} trials failed: {errors}")
    winner = min(good, key=lambda number: numbered[number].valid_loss)
    best, stretches = numbered[winner], descent(numbered, winner) if population else []
    run.log_metrics(
        {"best_loss": best.valid_loss, "trials": len(trials), "epochs": sum(t.epochs for t in trials)}
    )
    run.set_tags({"best_run": best.run_id})
    if stretches:
        run.set_tags({"descent": json.dumps([each.model_dump(mode="json") for each in stretches])})
    if tracker.stopped:
        run.set_tags({"stopped": tracker.stopped})
    return Sweep(
        run_id=run.id,
        best_params=stretches[-1].params if stretches else best.params,
        best_run=best.run_id,
        best_loss=best.valid_loss,
        trials=trials,
        seconds=seconds,
        stopped=tracker.stopped,
        descent=stretches,
    )
