"""The function that sweeps over the parameters of a model's declared trainer, whatever kind that is.

A trial is a whole training without registration, started as a function of its own: on the cluster if there is one, here if not. The
first has the declared parameters, so a sweep never ends worse than no sweep. A trial that has ended is not run again.
No process schedules the trials. Each writes its loss at 4, 16, 64, … epochs or rounds, of a fine-tune after its first epoch too,
reads what the others had there, and goes on while it is among the best quarter so far; of fewer than four all go on. Some go on
that would not have in the end, but no trial waits for another.
Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020, in the variant that stops (its section 3.3).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from toque.functions.arguments import LimitSeconds, Priority
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Demand, Resources
from toque.functions.runtime.definitions import model_definition
from toque.functions.runtime.function import function
from toque.functions.runtime.run.declared import Future
from toque.functions.training.cost import Cost
from toque.functions.training.errors import TrainingError
from toque.functions.training.frame import run_training
from toque.functions.training.model import PARAMETERS_TAG, TrainableModel, job_of
from toque.functions.training.params import digest_of, run_params
from toque.functions.training.request import LOSS, Workers
from toque.functions.training.trainer import Trainer
from toque.functions.tuning.asha import Rungs, RungWatch
from toque.functions.tuning.space import (
    Limits,
    Space,
    SweepExperiment,
    SweepRows,
    TpeSampler,
    draw_points,
    grid_points,
    refuse_grid_samples,
    require_tunable,
)
from toque.registry import Run, RunRecord, TableSnapshot

Direction = Literal["min", "max"]
ModelSearch = Literal["random", "grid", "optuna"]
_SAMPLES = 8
_LOOK_S = 0.05  # between looks which trial has ended


class ModelTrial(BaseModel):
    """Trial of a sweep over any trainer. parameters: changes to the declared ones; loss: its lowest, NaN if it has none.

    metrics: all of its run, with `seconds` and `size_bytes`, empty if it ended early; steps: epochs or rounds; stopped:
    why it ended early; error: why it failed; else both are empty.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    run_id: str = ""
    parameters: dict[str, Any] = {}
    loss: float = math.nan
    metrics: dict[str, float] = {}
    steps: int = 0
    stopped: str = ""
    error: str = ""


class ModelSweep(BaseModel):
    """Result of a sweep over any trainer.

    best_parameters: of the best trial by the first objective, for `train_model(parameters=…)`; front: numbers of the trials that no
    other beats in all objectives; stopped: the limit that ended the sweep, if any.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    run_id: str
    best_parameters: dict[str, Any]
    best_run: str
    best_loss: float
    trials: list[ModelTrial]
    front: list[int]
    seconds: float
    stopped: str | None = None


def _demand(
    concurrency: int, workers_per_trial: int, priority: int, limit_s: float | None, **_: Any
) -> Demand:
    cpus = max(1.0, float(concurrency * workers_per_trial))
    return Demand(cpus=cpus, priority=priority, limit_s=limit_s)


@function(resources=Resources(num_cpus=1), timeout_s=None)  # the sweep's limits end its trials too
def train_trial(
    model: Annotated[str, Field(description="Name of a model that the project defines with a trainer.")],
    training_set: SweepRows,
    parameters: Annotated[
        dict[str, Any],
        Field(description="Parameters in which the trial differs from the declared ones, by name."),
    ],
    sweep_key: Annotated[
        str, Field(description="Digest of what the sweep's trials depend on, by which they find each other.")
    ],
    number: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000,
            description="Number of the trial; trial 0 has the declared parameters and never ends early.",
        ),
    ],
    sweep: Annotated[str, Field(description="Id of the run that holds the sweep's trials.")],
    experiment: Annotated[str, Field(description="Experiment under which the trial's run is tracked.")],
    workers: Annotated[
        int, Field(ge=1, le=10_000, description="Number of workers that train the trial, with one CPU each.")
    ],
) -> ModelTrial:
    """Train one trial of a sweep and register nothing; one that others beat at a rung ends there."""
    definition: TrainableModel = model_definition(context().project, model)
    registry = context().registry()
    job = job_of(
        definition,
        training_set,
        parameters,
        workers=Workers(workers),
        experiment=experiment,
        register=False,
        sweep_run=sweep,
        watch=RungWatch(Rungs(registry.store, f"sweeps/{sweep_key}/"), number, definition.learner.first_rung),
        tags={},
        run_tags={"kind": "trial", "sweep": sweep, "sweep_key": sweep_key, "trial": str(number)},
    )
    trained = run_training(registry, job, context().prices)
    return _trial_of(registry.get_run(trained.run_id).record())


@function(http=True, resources=Resources(num_cpus=1), timeout_s=None, demand=_demand)
def tune_model(
    model: Annotated[str, Field(description="Name of a model that the project defines with a trainer.")],
    training_set: SweepRows,
    space: Annotated[
        Space, Field(description="What to draw each parameter of the trainer from, by its name.")
    ],
    *,
    num_samples: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="Number of trials; a grid tries all its combinations instead, and refuses another number than the default.",
        ),
    ] = _SAMPLES,
    search: Annotated[
        ModelSearch,
        Field(
            description=(
                "How parameters are found: drawn at random, as a grid of all combinations, or proposed by Optuna from "
                "the losses before."
            )
        ),
    ] = "random",
    concurrency: Annotated[
        int, Field(ge=1, le=10_000, description="Number of trials that train at a time.")
    ] = 2,
    workers_per_trial: Annotated[
        int, Field(ge=1, le=10_000, description="Number of workers that train each trial, with one CPU each.")
    ] = 1,
    objectives: Annotated[
        dict[str, Direction] | None,
        Field(
            description="Metrics that are compared, each with its better end; the first decides; valid_loss unless given."
        ),
    ] = None,
    limits: Annotated[
        Limits,
        Field(
            description=(
                "Resources of all trials that have ended, also by failing or in an earlier call of the same sweep; once a limit "
                "is reached, no further trial begins."
            )
        ),
    ] = Limits(),  # noqa: B008 - frozen
    experiment: SweepExperiment = None,
    seed: Annotated[
        int,
        Field(
            ge=0,
            le=4_294_967_295,
            description="Seed by which parameters are drawn; the one of the trainings is the trainer's.",
        ),
    ] = 0,
    priority: Priority = 0,  # noqa: ARG001 - its demand reads it
    limit_s: LimitSeconds = None,  # noqa: ARG001 - its demand reads it
) -> ModelSweep:
    """Try parameters of a model's declared trainer and return the best; nothing is registered.

    The first trial has the declared parameters. `limit_s` kills a submitted call with its trials; `limits` let them end.
    A sweep called again with the same arguments repeats no trial that has ended.
    Raises: ProjectError if the project does not define the model; TrainingDataError for a space that cannot be used, or a number of
    samples of a grid; TrainingError if every trial fails, or money is limited without prices.
    """
    limits.check_prices(context().prices)
    refuse_grid_samples(search, num_samples, default=_SAMPLES)
    definition: TrainableModel = model_definition(context().project, model)
    wanted = objectives or {LOSS: "min"}
    sweep = _Sweep(definition.learner, space, num_samples, search, seed)
    registry, began = context().registry(), time.perf_counter()
    where = experiment or f"{model}-sweep"
    key = sweep.key(training_set)
    with registry.start_run(
        where,
        name=f"sweep {model}",
        params=run_params(definition.learner.parameters, num_samples=num_samples, search=search),
        tags={"kind": "sweep", "model": model, "sweep_key": key},
        datasets=[training_set],
        code=definition.learner.code,
    ) as run:
        done = _ended(where, key)
        proposals = _Proposals(sweep, done, limits, where, key)
        common = {
            "model": model, "training_set": training_set, "sweep_key": key, "sweep": run.id, "experiment": where,
            "workers": workers_per_trial,
        }  # fmt: skip
        trials = done | _run_trials(proposals, common, concurrency)
        result = _result(run, trials, wanted, time.perf_counter() - began, proposals.stopped)
        Rungs(registry.store, f"sweeps/{key}/").drop()
        return result


def _run_trials(
    proposals: Iterable[tuple[int, dict[str, Any]]], common: Mapping[str, Any], concurrency: int
) -> dict[int, ModelTrial]:
    """Run proposed trials, so many at a time; the next is proposed when any has ended, and knows what ended by then."""
    running: list[tuple[int, dict[str, Any], Future[ModelTrial]]] = []
    ended: dict[int, ModelTrial] = {}
    waiting = iter(proposals)

    def collect() -> None:
        place = _first_ended([trial for _, _, trial in running])
        number, parameters, trial = running.pop(place)
        try:
            ended[number] = trial.result()
        except Exception as error:  # noqa: BLE001 - one failed trial must not stop the others
            ended[number] = ModelTrial(parameters=parameters, error=f"{type(error).__name__}: {error}")

    try:
        while (proposed := next(waiting, None)) is not None:
            number, parameters = proposed
            started = train_trial.remote(number=number, parameters=parameters, **common)
            running.append((number, parameters, started))
            if len(running) >= concurrency:
                collect()
        while running:
            collect()
    finally:
        for _, _, trial in running:  # none is left unless the sweep itself is interrupted
            trial.cancel()
    return ended


def _first_ended(trials: Sequence[Future[ModelTrial]]) -> int:
    """Wait until any trial has ended, and return its place.

    It waits within a run, as a sweep on Ray gives its CPU to its trials while it waits for one.
    """
    while True:
        for place, trial in enumerate(trials):
            if trial.done():
                return place
        try:
            trials[0].result(_LOOK_S)
        except TimeoutError:
            continue
        except Exception:
            if not trials[0].done():  # then it is not the trial's error, which is read once it is chosen
                raise


@dataclass(frozen=True, slots=True)
class _Sweep:
    """Search over the parameters of a trainer: the points of a drawn or listed one, or the sampler of one that learns."""

    base: Trainer
    space: Space
    count: int
    search: ModelSearch
    seed: int

    def key(self, training_set: TableSnapshot) -> str:
        """Digest of everything that the trials depend on."""
        return digest_of(
            {
                "training_set": training_set.model_dump(),
                "space": {name: source.model_dump(mode="json") for name, source in self.space.items()},
                "search": [self.search, self.count, self.seed],
                "base": {name: str(value) for name, value in self.base.parameters.items()},
                "code": self.base.code,
            }
        )

    def points(self) -> list[Trainer]:
        """Trainers to try that are known before any has been; of a learning search the declared one."""
        if self.search == "grid":
            return grid_points(self.space, self.base)
        if self.search == "random":
            return draw_points(self.space, self.base, self.count, self.seed)
        require_tunable(self.space, self.base, self.count)
        return [self.base]

    def changes(self, point: Trainer) -> dict[str, Any]:
        """Parameters of the space in which a trainer differs from the declared one."""
        own, declared = point.parameters, self.base.parameters
        return {name: own[name] for name in self.space if own[name] != declared[name]}


class _Proposals:
    """Trials that have not ended, one after the other, proposed by the losses known by then, until a limit is reached."""

    def __init__(
        self, sweep: _Sweep, done: Mapping[int, ModelTrial], limits: Limits, experiment: str, key: str
    ) -> None:
        self.stopped: str | None = None
        self._sweep, self._done, self._limits = sweep, done, limits
        self._experiment, self._key, self._began = experiment, key, time.monotonic()

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        sweep, points = self._sweep, self._sweep.points()
        sampler = None
        if sweep.search == "optuna":
            sampler = TpeSampler(sweep.space, sweep.base, count=sweep.count, seed=sweep.seed)
        for number in range(len(points) if sampler is None else sweep.count):
            if number in self._done:
                continue
            ended = {**self._done, **_ended(self._experiment, self._key)} if sampler else {}
            self.stopped = self._limit_reached() if self._limited else None
            if self.stopped:
                return
            if sampler is None:
                point = points[number]
            else:
                tried = [(sweep.base.with_parameters(each.parameters), each.loss) for each in ended.values()]
                point = sampler.propose(number, tried)
            yield number, sweep.changes(point)

    @property
    def _limited(self) -> bool:
        return self._limits != Limits()

    def _limit_reached(self) -> str | None:
        # A failed trial cost, too; what a running one costs is known when it ends.
        ended = _trial_runs(self._experiment, self._key, "attributes.status != 'RUNNING'")
        runs = [run.metrics for run in ended]
        cost = Cost(
            cpu_hours=sum(each.get("cpu_hours", 0.0) for each in runs),
            gpu_hours=sum(each.get("gpu_hours", 0.0) for each in runs),
            money=sum(each.get("money", 0.0) for each in runs),
        )
        return self._limits.reached(hours=(time.monotonic() - self._began) / 3600, cost=cost)


def _ended(experiment: str, key: str) -> dict[int, ModelTrial]:
    """Trials of a sweep that have ended well, by number, also those of an attempt that was killed."""
    runs = _trial_runs(experiment, key, "attributes.status = 'FINISHED'")
    return {int(run.tags["trial"]): _trial_of(run) for run in runs}


def _trial_runs(experiment: str, key: str, where: str) -> list[RunRecord]:
    mine = f"tags.kind = 'trial' AND tags.sweep_key = '{key}' AND {where}"
    return context().registry().search_runs(experiment, mine, limit=sys.maxsize)


def _trial_of(run: RunRecord) -> ModelTrial:
    """Read a trial that has ended from its run."""
    losses = [point.value for point in context().registry().get_run(run.id).series(LOSS)]
    loss = min(losses) if losses else run.metrics.get(LOSS, math.nan)
    stopped = run.tags.get("stopped", "")
    return ModelTrial(
        run_id=run.id,
        parameters=json.loads(run.tags.get(PARAMETERS_TAG, "{}")),
        loss=loss,
        metrics={} if stopped else {**run.metrics, LOSS: loss},
        steps=len(losses),
        stopped=stopped,
    )


def _result(
    run: Run,
    trials: Mapping[int, ModelTrial],
    objectives: dict[str, Direction],
    seconds: float,
    stopped: str | None,
) -> ModelSweep:
    ordered = [trials[number] for number in sorted(trials)]
    scores = {
        number: [
            sign(direction) * trial.metrics.get(name, math.nan) for name, direction in objectives.items()
        ]
        for number, trial in enumerate(ordered)
        if trial.metrics
    }
    good = {number: each for number, each in scores.items() if all(map(math.isfinite, each))}
    if not good:
        errors = sorted({trial.error or trial.stopped for trial in ordered})
        known = sorted({name for trial in ordered for name in trial.metrics})
        raise TrainingError(
            f"none of {len(ordered)} trials has finite {list(objectives)}: they have {known}; errors: {errors[:3]}"
        )
    best = ordered[min(good, key=lambda number: good[number])]
    run.log_metrics({"best_loss": best.loss, "trials": len(ordered)})
    run.set_tags({"best_run": best.run_id, "parameters": json.dumps(best.parameters)})
    if stopped:
        run.set_tags({"stopped": stopped})
    return ModelSweep(
        run_id=run.id,
        best_parameters=best.parameters,
        best_run=best.run_id,
        best_loss=best.loss,
        trials=ordered,
        front=[
            number for number, own in good.items() if not any(_beats(other, own) for other in good.values())
        ],
        seconds=seconds,
        stopped=stopped,
    )


def sign(direction: Direction) -> float:
    """Factor that makes lower better."""
    return 1.0 if direction == "min" else -1.0


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is at least as good in all objectives and better in one."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)
