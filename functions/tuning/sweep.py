"""One sweep: what names it, what an interrupted one left of it, and its trials run in one of two ways.

Under successive halving each trial stands for itself; a population trains in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from functions.runtime.receipt import Prices
from functions.training.checkpoints import Checkpoints, digest_of
from functions.training.errors import TrainingDataError
from functions.training.params import TabularParams
from functions.training.tabular.fitting import Columns, Prepared, prepare
from functions.tuning.pbt_state import Member
from functions.tuning.space import Limits, Search, Space, Trial
from functions.tuning.tpe import Asker
from functions.tuning.tracking import TrialTracker, finished_trials, losses_of
from functions.tuning.trials import Room, run_halving, run_population
from functions.tuning.tune_asha import Halving, States
from functions.tuning.tune_pbt import taken_up
from registry import Registry, Run, Table, TableSnapshot

_DECISIONS = 4  # of a population, if nobody says how far they are apart


@dataclass(frozen=True, slots=True)
class How:
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
class Wanted:
    """What a sweep is to try on what; points: the settings that its trials begin with, those of Optuna but for the first aside."""

    training_set: TableSnapshot
    columns: Columns
    base: TabularParams
    points: list[TabularParams]
    how: How

    def key(self, code: str) -> str:
        """What names a sweep: all that its trials depend on."""
        return digest_of(
            {
                "training_set": self.training_set.model_dump(),
                "columns": [[*self.columns.numeric], [*self.columns.categorical], self.columns.label],
                "points": [point.model_dump(mode="json") for point in self.points],
                "search": self.how.told(),
                "code": code,
            }
        )

    def in_step(self, rows: int) -> list[TabularParams]:
        """The points of a population for a training part of `rows`: all have as many epochs, since they change batches."""
        points = [point.settled(rows) for point in self.points]
        span = points[0].model_dump(include={"epochs", "patience"})
        return [point.model_copy(update=span) for point in points]


@dataclass(frozen=True, slots=True)
class Sweeping:
    """A sweep that is tracked as `run`; code: digest of what runs it."""

    wanted: Wanted
    registry: Registry
    run: Run
    code: str
    limits: Limits
    prices: Prices | None

    @property
    def saved(self) -> Checkpoints:
        """All that its trials save: what an interrupted one is taken up from."""
        return Checkpoints(self.registry.store, f"checkpoints/{self.wanted.key(self.code)}/")

    def train(self, room: Room) -> TrialTracker:
        """Prepare the data and run the trials that have not ended; who they are and how they ended is in what is returned."""
        wanted = self.wanted
        table = Table(self.registry.store, wanted.training_set.name)
        prepared = prepare(wanted.columns.read(table, wanted.training_set), wanted.columns, wanted.base)
        done = finished_trials(self.registry, self.run.experiment, wanted.key(self.code))
        if wanted.how.search == "pbt":
            return self._in_step(prepared, done, room)
        return self._halved(prepared, done, room)

    def _halved(self, prepared: Prepared, done: Mapping[int, Trial], room: Room) -> TrialTracker:
        """Run them under successive halving."""
        how, points = self.wanted.how, dict(enumerate(self.wanted.points))
        count, asker = len(points), None
        states = States(self.registry.store, self.saved.folder)
        members = {number: member for number, member in states.members().items() if number not in done}
        if how.search == "optuna":
            asker = Asker(how.space, self.wanted.base, count=count, seed=how.seed)
            points = {number: trial.params for number, trial in done.items()}
            points |= {number: member.settings for number, member in members.items()}
        tracker = self._tracker(points, done, members)
        halving = Halving(
            count,
            points,
            asker=asker,
            members=members,
            done=losses_of(self.registry, done),
            given_up=tracker.given_up,
        )
        run_halving(prepared, halving, states, tracker, room)
        return tracker

    def _in_step(self, prepared: Prepared, done: Mapping[int, Trial], room: Room) -> TrialTracker:
        """Run them as a population."""
        how, points = self.wanted.how, self.wanted.in_step(len(prepared.train))
        interval = how.interval(points[0].span[0])
        taken = taken_up(self.registry.store, self.saved.folder, interval, points, done)
        tracker = self._tracker(dict(enumerate(self.wanted.points)), {**taken.lost, **done}, taken.members)
        population = taken.population(how.space, how.seed, room.concurrency, tracker)
        run_population(prepared, population, len(points), tracker, room)
        return tracker

    def _tracker(
        self, points: Mapping[int, TabularParams], done: Mapping[int, Trial], members: Mapping[int, Member]
    ) -> TrialTracker:
        return TrialTracker(
            self.registry,
            self.run.experiment,
            parent=self.run.id,
            points=points,
            dataset=self.wanted.training_set,
            code=self.code,
            done=done,
            members=members,
            prices=self.prices,
            limits=self.limits,
        )
