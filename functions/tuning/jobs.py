"""The function that tries many settings at once on Ray Tune, stops poor ones early and tracks every trial as a run.

The data are prepared once and shared by all trials; a trial is an actor that is reused for the next one. The settings
are drawn here, from a seed, and the first trial always has the given settings, so a sweep never ends worse than no sweep. In
a population this holds for the settings that trials begin with; later they copy better settings from each other.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from toque.functions.arguments import Categorical, Label, LimitSeconds, Numeric, Priority
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Demand, Resources
from toque.functions.runtime.function import function
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.params import run_params
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.settings import Columns
from toque.functions.tuning.space import (
    DEFAULT_SPACE,
    Choice,
    Exploit,
    Limits,
    Range,
    Search,
    Space,
    SweepExperiment,
    SweepRows,
    Trial,
    draw_points,
    grid_points,
    population_points,
    population_space,
    refuse_grid_samples,
)
from toque.registry import Run

if TYPE_CHECKING:
    from toque.functions.tuning.tracking import TrialTracker


_SAMPLES = 4


class Stretch(BaseModel):
    """Epochs from `begin` to before `end` (from 0) that one trial trained with `params`."""

    model_config = ConfigDict(frozen=True)

    trial: int
    run_id: str
    begin: int
    end: int
    params: TabularParams


class Sweep(BaseModel):
    """Result of a sweep of trials.

    run_id: the run that holds its trials; best_run: the best trial's run; stopped: the limit that ended it, if any;
    descent: lineage of a population's winner, which trial trained its weights when and with which settings; best_params
    are then those of the last stretch.
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
    concurrency: int, cpus_per_trial: float, gpus_per_trial: float, priority: int, limit_s: float | None, **_: Any
) -> Demand:  # fmt: skip
    cpus, gpus = max(1.0, concurrency * cpus_per_trial), concurrency * gpus_per_trial
    return Demand(cpus, gpus, priority, limit_s=limit_s)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=_demand)
def tune_tabular(
    model: Annotated[
        str,
        Field(
            description="Name of the model that the sweep is for, a tag of its run; it need not be registered."
        ),
    ],
    training_set: SweepRows,
    label: Label,
    numeric: Numeric,
    categorical: Categorical,
    params: Annotated[
        TabularParams,
        Field(
            description="Settings of the first trial, and of the others where the space does not vary them."
        ),
    ] = TabularParams(),  # noqa: B008 - frozen
    *,
    space: Annotated[
        Space | None,
        Field(description="What to draw each setting from, by its name; usual ranges unless given."),
    ] = None,
    num_samples: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description=(
                "Number of trials, two at least of a population; a grid tries all its combinations instead, and refuses another "
                "number than the default."
            ),
        ),
    ] = _SAMPLES,
    max_epochs: Annotated[
        int | None,
        Field(ge=1, le=1_000_000, description="Epochs of the longest trial; those of `params` unless given."),
    ] = None,
    concurrency: Annotated[
        int, Field(ge=1, le=10_000, description="Number of trials, or stacks of them, that train at a time.")
    ] = 2,
    cpus_per_trial: Annotated[
        float, Field(ge=0, le=10_000, description="CPUs of each trial, or stack of trials.")
    ] = 1.0,
    experiment: SweepExperiment = None,
    seed: Annotated[
        int,
        Field(
            ge=0,
            le=4_294_967_295,
            description="Seed by which settings are drawn; the one of the trainings is in `params`.",
        ),
    ] = 0,
    search: Annotated[
        Search,
        Field(
            description=(
                "How settings are found: drawn at random, as a grid of all combinations, proposed by Optuna from the "
                "losses before, or by a population (pbt)."
            )
        ),
    ] = "random",
    limits: Annotated[
        Limits,
        Field(
            description="Resources of all trials; at the first limit reached the sweep ends with what it has."
        ),
    ] = Limits(),  # noqa: B008 - frozen
    gpus_per_trial: Annotated[
        float, Field(ge=0, le=1_024, description="GPUs of each trial, or stack of trials.")
    ] = 0.0,
    priority: Priority = 0,  # noqa: ARG001 - its demand reads it
    limit_s: LimitSeconds = None,  # noqa: ARG001 - its demand reads it
    copy_every: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="Epochs after which a population copies, again and again; a fifth of all unless given.",
        ),
    ] = None,
    stack: Annotated[
        int,
        Field(
            ge=1,
            le=10_000,
            description=(
                "Trials that train together in one process, for networks so small that a step costs more than its "
                "arithmetic."
            ),
        ),
    ] = 1,
) -> Sweep:
    """Try settings of the tabular network on Ray Tune and return the best; nothing is registered.

    Trials stop early under ASHA, except in a population: there, every `copy_every` epochs, the worst continue with weights of the
    best, under settings near theirs. Its default space is the part of DEFAULT_SPACE that can change in training.
    `limit_s` kills a submitted call with its trials; `limits` end it with what it has.
    An interrupted sweep repeats no epoch when it is called again with the same arguments.
    Raises: TrainingDataError for a space or data that cannot be used; TrainingError if every trial fails.
    """
    # late, all: torch and Ray Tune are needed to sweep only
    from toque.functions.training.cost import metered
    from toque.functions.tuning.sweep import SearchSpec, SweepRun, SweepSpec
    from toque.functions.tuning.trainable import TrialResources

    refuse_grid_samples(search, num_samples, default=_SAMPLES)
    _check(params, limits, search, copy_every)
    _check_stack(stack, params, space or {}, search)
    base = params if max_epochs is None else params.model_copy(update={"epochs": max_epochs})
    tried = population_space(space) if search == "pbt" else DEFAULT_SPACE if space is None else space
    points = _points(search, tried, base, num_samples, seed)
    columns = Columns(numeric, categorical, label)
    spec = SweepSpec(training_set, columns, base, points, SearchSpec(search, tried, seed, copy_every, stack))
    registry, code = context().registry(), tune_tabular.digest
    began = time.perf_counter()
    with (
        registry.start_run(
            experiment or f"{model}-sweep",
            name=f"sweep {model}",
            params=run_params(base, num_samples=num_samples, label=label),
            tags={"kind": "sweep", "model": model, "sweep_key": spec.key(code)},
            datasets=[training_set],
            code=code,
        ) as run,
        metered(run, context().prices) as meter,
    ):
        sweep = SweepRun(spec, registry, run, code, limits, context().prices)
        tracker = sweep.train(TrialResources(concurrency, cpus_per_trial, gpus_per_trial))
        meter.other_processes = tracker.used()
        best = _best(run, tracker, time.perf_counter() - began, population=search == "pbt")
        sweep.drop()
        return best


def lineage(trials: Mapping[int, Trial], winner: int) -> list[Stretch]:
    """Find the stretches of training that led to the best epoch of `trials[winner]`, the earliest first.

    trials: by their numbers. Each stretch begins with the weights of the one before; the last one ends with the winner's.
    Raises: ValueError if the winner has no best epoch.
    """
    best = trials[winner].best_epoch
    if best is None:
        raise ValueError(f"trial {winner} has no best epoch, so its weights have no lineage")
    number, end, stretches = winner, best + 1, list[Stretch]()
    while True:
        trial = trials[number]
        exploits = [exploit for exploit in trial.exploits if exploit.epoch < end]
        begin, params = (exploits[-1].epoch, exploits[-1].params) if exploits else (0, trial.params)
        stretches.insert(0, Stretch(trial=number, run_id=trial.run_id, begin=begin, end=end, params=params))
        if not exploits:
            return stretches
        number, end = exploits[-1].trial, begin


def _points(
    search: Search, space: Space, base: TabularParams, num_samples: int, seed: int
) -> list[TabularParams]:
    """Settings that the trials begin with."""
    if search == "grid":
        return grid_points(space, base)
    return (population_points if search == "pbt" else draw_points)(space, base, num_samples, seed)


def _check(params: TabularParams, limits: Limits, search: Search, copy_every: int | None) -> None:
    if copy_every is not None and (search != "pbt" or copy_every < 1):
        raise TrainingDataError(
            f"copy_every={copy_every} with search={search!r}: it is of a population (search='pbt'), and 1 at least"
        )
    if params.rows_in != "memory":
        raise TrainingDataError(
            f"params.rows_in={params.rows_in!r}: a sweep's trials share rows in memory; sweep on a part of the rows"
        )
    limits.check_prices(context().prices)


def _check_stack(stack: int, params: TabularParams, space: Space, search: Search) -> None:
    """Check that trials can be stacked. Raises: TrainingDataError, naming the setting that does not let them."""
    others = {"precision": "fp32", "accumulate": 1, "compiled": False}
    wrong = [name for name, value in others.items() if name in space or getattr(params, name) != value]
    if stack < 1 or (stack > 1 and (search == "pbt" or wrong)):
        raise TrainingDataError(
            f"stack={stack} with search={search!r} and {wrong or 'no setting'} changed: it is 1 at least, of trials under ASHA, whose "
            f"{list(others)} are the defaults"
        )


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
    best, stretches = numbered[winner], lineage(numbered, winner) if population else []
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
