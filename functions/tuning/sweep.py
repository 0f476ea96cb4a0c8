"""One sweep of trials, resumed if it was interrupted: under ASHA, or as a population that trains in step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toque.functions.runtime.receipt import Prices
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import digest_of
from toque.functions.training.tabular.fitting import Prepared, prepare
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.settings import Columns
from toque.functions.tuning.asha import AshaScheduler
from toque.functions.tuning.population import Population, resume_population
from toque.functions.tuning.search import LegSearcher
from toque.functions.tuning.space import Limits, Search, Space, TpeSampler, Trial
from toque.functions.tuning.tracking import BudgetStopper, TrialTracker, finished_trials, losses_of
from toque.functions.tuning.trainable import TabularTraining, TrialResources, run_on_tune
from toque.functions.tuning.trial_states import METRIC, Member, TrialStates
from toque.registry import Registry, Run, Table, TableSnapshot

_DECISIONS = 4  # of a population, unless copy_every is given


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """Search algorithm with its space, seed and interval. stack: trials that train together in a process."""

    algorithm: Search
    space: Space
    seed: int
    copy_every: int | None
    stack: int = 1

    def interval(self, epochs: int) -> int:
        """Epochs between a population's decisions. Raises: TrainingDataError if so many epochs leave no decision."""
        interval = self.copy_every or max(1, epochs // (_DECISIONS + 1))
        if interval >= epochs:
            raise TrainingDataError(
                f"search='pbt' with copy_every={interval} and {epochs} epochs: no trial would ever copy another; "
                f"raise max_epochs or lower copy_every"
            )
        return interval

    def as_json(self) -> list[Any]:
        """Specification of the search as JSON, for the sweep's key."""
        space = {name: source.model_dump() for name, source in self.space.items()}
        stacked = [self.stack] if self.stack > 1 else []  # whose states are not those of trials one by one
        return [self.algorithm, space, self.seed, self.copy_every, *stacked]


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """Specification of one whole sweep. points: first settings of its trials; Optuna uses the first point only."""

    training_set: TableSnapshot
    columns: Columns
    base: TabularParams
    points: list[TabularParams]
    search: SearchSpec

    def key(self, code: str) -> str:
        """Digest that names a sweep, of everything that its trials depend on."""
        return digest_of(
            {
                "training_set": self.training_set.model_dump(),
                "columns": [[*self.columns.numeric], [*self.columns.categorical], self.columns.label],
                "points": [point.model_dump(mode="json") for point in self.points],
                "search": self.search.as_json(),
                "code": code,
            }
        )

    def population(self, rows: int) -> list[TabularParams]:
        """Settings of a population for `rows` training rows, all with equally many epochs, whatever their batches."""
        points = [point.resolved(rows) for point in self.points]
        schedule = points[0].model_dump(include={"epochs", "patience"})
        return [point.model_copy(update=schedule) for point in points]


@dataclass(frozen=True, slots=True)
class SweepRun:
    """Sweep in progress, tracked as `run`. code: digest of the function that runs it."""

    spec: SweepSpec
    registry: Registry
    run: Run
    code: str
    limits: Limits
    prices: Prices | None

    @property
    def folder(self) -> str:
        """Place in the store of the states of its trials, from which an interrupted sweep resumes."""
        return f"checkpoints/{self.spec.key(self.code)}/"

    def drop(self) -> None:
        """Delete the states of its trials."""
        for key in list(self.registry.store.list(self.folder)):
            self.registry.store.delete(key)

    def train(self, resources: TrialResources) -> TrialTracker:
        """Prepare the data and run the trials that have not ended; returns the tracker of all trials."""
        spec = self.spec
        table = Table(self.registry.store, spec.training_set.name)
        prepared = prepare(spec.columns.read(table, spec.training_set), spec.columns, spec.base)
        done = finished_trials(self.registry, self.run.experiment, spec.key(self.code))
        begin = self._population if spec.search.algorithm == "pbt" else self._asha
        searcher, states, tracker = begin(prepared, done)
        training = TabularTraining(
            prepared,
            states,
            max(1, int(resources.cpus_per_trial)),
            resources.gpus_per_trial,
            stacked=spec.search.stack > 1,
        )
        ended = False
        try:
            run_on_tune(training, searcher, resources, callbacks=[tracker], stopper=BudgetStopper(tracker))
            ended = True
        finally:
            tracker.close(ended=ended)
        return tracker

    def _asha(
        self,
        prepared: Prepared,  # noqa: ARG002 - a population asks for its rows
        done: Mapping[int, Trial],
    ) -> tuple[LegSearcher, TrialStates, TrialTracker]:
        search, points = self.spec.search, dict(enumerate(self.spec.points))
        count = len(points)
        states = TrialStates(self.registry.store, self.folder)
        members = {number: member for number, member in states.members().items() if number not in done}
        sampler = None
        if search.algorithm == "optuna":
            sampler = TpeSampler(search.space, self.spec.base, count=count, seed=search.seed)
            points = {number: trial.params for number, trial in done.items()}
            points |= {number: member.settings for number, member in members.items()}
        paused = {number: [epoch[METRIC] for epoch in member.metrics] for number, member in members.items()}
        rule = AshaScheduler(count, paused | losses_of(self.registry, done), over=done)

        def propose(number: int) -> TabularParams:
            assert sampler is not None  # noqa: S101 - else all points are known
            return sampler.propose(number, [(points[tried], loss) for tried, loss in rule.best.items()])

        tracker = self._tracker(points, done, members)
        searcher = LegSearcher(rule, points, tracker, states.newest, size=search.stack, propose=propose)
        return searcher, states, tracker

    def _population(
        self, prepared: Prepared, done: Mapping[int, Trial]
    ) -> tuple[LegSearcher, TrialStates, TrialTracker]:
        search, points = self.spec.search, self.spec.population(len(prepared.train))
        interval = search.interval(points[0].epochs_and_patience[0])
        states = TrialStates(self.registry.store, self.folder, 2 * interval)  # of the decision before, too
        resumed = resume_population(states, interval, points, done)
        tracker = self._tracker(
            dict(enumerate(self.spec.points)), {**resumed.failed, **done}, resumed.members
        )
        population = Population(search.space, resumed, seed=search.seed, runs=tracker)
        return LegSearcher(population, population.points, tracker, states.newest), states, tracker

    def _tracker(
        self, points: Mapping[int, TabularParams], done: Mapping[int, Trial], members: Mapping[int, Member]
    ) -> TrialTracker:
        return TrialTracker(
            self.registry,
            self.run.experiment,
            parent=self.run.id,
            points=points,
            dataset=self.spec.training_set,
            code=self.code,
            done=done,
            members=members,
            prices=self.prices,
            limits=self.limits,
        )
