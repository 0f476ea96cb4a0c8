"""The function that sweeps over the parameters of a model's declared trainer, whatever kind that is.

A trial is a whole training without registration, started as a function of its own: on the cluster if there is one, here if not. The
first has the declared parameters, so a sweep never ends worse than no sweep. A trial that has ended is not run again.

Rungs of a sweep of any trainer, kept in the store: a trial that is not among the best at a rung ends there.

No process schedules the trials. Each writes its loss at 4, 16, 64, … epochs or rounds, of a fine-tune after its first epoch too, reads
what the others had there, and goes on while it is among the best quarter so far; of fewer than four all go on. Some go on that would not have in the end, but no
trial waits for another.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020, in the variant that stops (its section 3.3).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Demand, Resources
from toque.functions.runtime.definitions import model_definition
from toque.functions.runtime.function import function
from toque.functions.runtime.run.declared import Future
from toque.functions.training.errors import TrainingError
from toque.functions.training.frame import run_training
from toque.functions.training.model import PARAMETERS_TAG, TrainableModel, job_of
from toque.functions.training.params import digest_of, run_params
from toque.functions.training.request import LOSS, TrialStopped, Workers
from toque.functions.training.trainer import Cost, Trainer
from toque.functions.tuning.asha import FACTOR, rung_after
from toque.functions.tuning.space import Limits, Space, TpeSampler, draw_points, grid_points, require_tunable
from toque.registry import ObjectStore, Run, RunRecord, TableSnapshot

Direction = Literal["min", "max"]
ModelSearch = Literal["random", "grid", "optuna"]
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
    model: str, training_set: TableSnapshot, parameters: dict[str, Any], sweep_key: str, number: int, sweep: str,
    experiment: str, workers: int,
) -> ModelTrial:  # fmt: skip
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
    model: str,
    training_set: TableSnapshot,
    space: Space,
    *,
    num_samples: int = 8,
    search: ModelSearch = "random",
    concurrency: int = 2,
    workers_per_trial: int = 1,
    objectives: dict[str, Direction] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    experiment: str | None = None,
    seed: int = 0,
    priority: int = 0,  # noqa: ARG001 - its demand reads it
    limit_s: float | None = None,  # noqa: ARG001 - its demand reads it
) -> ModelSweep:
    """Try parameters of a model's declared trainer and return the best; nothing is registered.

    space: parameter -> what to draw from; num_samples: trials; search: "random" draws them, "optuna" proposes them by the losses
    before, "grid" tries every combination instead; concurrency: trials at a time, each with `workers_per_trial`; objectives:
    metrics that are compared, the first decides (default: the lowest "valid_loss"); limits: at the first of which no further trial
    begins; experiment: where sweep and trials are tracked (default: "{model}-sweep"); limit_s: longest run time of a submitted
    call, after which it is killed with its trials, None for as long as it takes.
    A sweep called again with the same arguments repeats no trial that has ended.
    Raises: ProjectError if the project does not define the model; TrainingDataError for a space that cannot be used; TrainingError if
    every trial fails.
    """
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
            ended = {**self._done, **_ended(self._experiment, self._key)} if sampler or self._limited else {}
            self.stopped = self._limit_reached(ended.values())
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

    def _limit_reached(self, ended: Any) -> str | None:
        runs = [context().registry().get_run(each.run_id).record().metrics for each in ended]
        cost = Cost(
            cpu_hours=sum(each.get("cpu_hours", 0.0) for each in runs),
            gpu_hours=sum(each.get("gpu_hours", 0.0) for each in runs),
            money=sum(each.get("money", 0.0) for each in runs),
        )
        return self._limits.reached(hours=(time.monotonic() - self._began) / 3600, cost=cost)


def _ended(experiment: str, key: str) -> dict[int, ModelTrial]:
    """Trials of a sweep that have ended well, by number, also those of an attempt that was killed."""
    where = f"tags.kind = 'trial' AND tags.sweep_key = '{key}' AND attributes.status = 'FINISHED'"
    runs: Sequence[RunRecord] = context().registry().search_runs(experiment, where)
    return {int(run.tags["trial"]): _trial_of(run) for run in runs}


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


@dataclass(frozen=True, slots=True)
class Rungs:
    """Losses of one sweep's trials at its rungs, below `folder` in `store`."""

    store: ObjectStore
    folder: str

    def reach(self, trial: int, rung: int, loss: float) -> str:
        """Record a trial's loss at a rung; returns why it ends there, or nothing if it goes on."""
        place = f"{self.folder}{rung:06d}/"
        self.store.put(f"{place}{trial:06d}", repr(loss).encode())
        others = [float(self.store.get(key)) for key in self.store.list(place)]
        better = sum(each < loss for each in others)
        if not math.isfinite(loss) or (better >= max(1, len(others) // FACTOR) and len(others) >= FACTOR):
            return f"rung {rung}: {better} of {len(others)} trials did better than {loss:.6g}"
        return ""

    def drop(self) -> None:
        """Delete what the trials wrote, once the sweep has ended."""
        for key in list(self.store.list(self.folder)):
            self.store.delete(key)


@dataclass(frozen=True, slots=True)
class RungWatch:
    """Watch of one trial, as `TrainingRequest.report` calls it. The first trial, of the declared parameters, never ends early.

    first: epochs or rounds before which no trial is compared.
    """

    rungs: Rungs
    trial: int
    first: int = 1

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Compare the trial with the others if this step is a rung. Raises: TrialStopped."""
        done = step + 1
        if done < self.first or rung_after(step) != done or LOSS not in metrics:
            return
        reason = self.rungs.reach(self.trial, done, metrics[LOSS])
        if reason and self.trial:
            raise TrialStopped(reason)
