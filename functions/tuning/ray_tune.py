"""Schedulers of sweeps on Ray Tune: population based training (PBT) and ASHA.

At intervals poor members of a population copy weights of good ones and explore settings. All members wait for each other before
that, so a decision depends on their losses and the seed, not on their speed.
In ASHA a Tune trial is one of ours on its way to the next rung. A trial saves its state after each epoch, so it pauses without
a process, resumes in any, and outlives the sweep.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from ray import tune
from ray.train._internal.session import _TrainingResult
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining

from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.trainer import Epoch
from toque.functions.tuning.asha import AshaScheduler
from toque.functions.tuning.space import Choice, Exploit, Range, Space, TpeSampler, Trial
from toque.functions.tuning.trial_states import (
    EPOCHS,
    FINISHED,
    METRIC,
    Decision,
    Member,
    PbtState,
    Snapshot,
    TrialFiles,
    metrics_of,
    saved_state,
)
from toque.registry import ObjectStore

_LOST = "it had failed before the sweep was interrupted"
SINCE, UNTIL = "since", "until"  # epochs, as settings of a Tune trial


class MemberRuns(Protocol):
    """Runs of a population's members, as its scheduler uses them."""

    def record_exploit(self, number: int, exploit: Exploit) -> None:
        """Record that a member took over another's weights."""

    def history(self, number: int) -> tuple[list[dict[str, float]], list[Exploit]]:
        """Metrics of each epoch that a member has reported, and its exploits."""

    def failed_runs(self) -> dict[int, str]:
        """Runs of members that have failed, by number."""


@dataclass(frozen=True, slots=True)
class ResumedPopulation:
    """Population at its beginning, or resumed after `epoch` epochs. failed: its trials that had failed."""

    pbt_state: PbtState
    epoch: int
    members: dict[int, Member]
    failed: dict[int, Trial]

    def scheduler(self, space: Space, seed: int, concurrency: int, runs: MemberRuns) -> PbtScheduler:
        """Make the scheduler that trains the population on."""
        return PbtScheduler(space, self, seed=seed, concurrency=concurrency, runs=runs)


def resume_population(
    store: ObjectStore, folder: str, interval: int, points: Sequence[TabularParams], done: Mapping[int, Trial]
) -> ResumedPopulation:
    """Load the population of `points` (resolved) as its last complete decision in `folder` left it, or begin it.

    interval: epochs between decisions; done: trials that have finished.
    """
    pbt_state = PbtState(store, folder, interval)
    decision = pbt_state.last()
    if decision is None or not decision.members.keys() | decision.lost.keys() | done.keys() >= set(
        range(len(points))
    ):
        members = {
            number: Member(settings=point, weights=number, metrics=[], exploits=[])
            for number, point in enumerate(points)
        }
        return ResumedPopulation(pbt_state, 0, members, {})
    lost = {
        number: Trial(
            run_id=run, params=points[number], valid_loss=math.nan, epochs=0, failed=True, error=_LOST
        )
        for number, run in decision.lost.items()
    }
    return ResumedPopulation(pbt_state, decision.epoch, decision.members, lost)


class PbtScheduler(PopulationBasedTraining):
    """Tune's synchronous population-based training, recorded in `pbt_state` and drawn from `seed` alone.

    concurrency: members that train at a time. The worst quarter copies the best; a new setting is 0.8 or 1.2 times the copied
    one, a neighbour among choices, or in one of four cases drawn anew.
    Source: Jaderberg et al., Population Based Training of Neural Networks, 2017.
    """

    def __init__(
        self,
        space: Space,
        resumed: ResumedPopulation,
        *,
        seed: int,
        concurrency: int,
        runs: MemberRuns,
    ) -> None:
        super().__init__(
            time_attr=EPOCHS,
            perturbation_interval=resumed.pbt_state.interval,
            hyperparam_mutations={"settings": {name: _source(each) for name, each in space.items()}},
            log_config=False,
            synch=True,
        )
        self.pbt_state = resumed.pbt_state
        self._space, self._members, self._epoch = space, resumed.members, resumed.epoch
        self._seed, self._concurrency, self._runs = seed, concurrency, runs
        self._next_perturbation_sync = resumed.epoch + resumed.pbt_state.interval
        self._copied: dict[int, int] = {}
        self._undecided: int | None = None  # the epoch of a decision that is not recorded yet

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Give a member its settings and weights, and pause it until it is chosen, or Tune would run all at a time."""
        member = self._members[trial.config["point"]]
        trial.set_config(trial.config | {"settings": member.settings.model_dump(mode="json")})
        super().on_trial_add(tune_controller, trial)
        trial.set_status(TuneTrial.PAUSED)
        trial.init_local_path()  # Tune also reads results of a trial that never ran, whose folder does not exist yet
        if self._epoch > 0:
            state = self._trial_state[trial]
            state.last_train_time = state.last_perturbation_time = self._epoch
            trial.run_metadata.checkpoint_manager._latest_checkpoint_result = tune_checkpoint(  # noqa: SLF001 - as an exploit does
                member.weights, self._epoch, {METRIC: member.metrics[-1][METRIC], EPOCHS: self._epoch}
            )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pause a member that has reached the next decision; the last one to arrive brings the decision about."""
        due = self._next_perturbation_sync
        answer: str = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync > due:
            self._undecided = int(due)
        return answer

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Let no member wait for a trial that failed, which Tune still counts among the live ones."""
        tune_controller.get_live_trials().discard(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Choose a member that does not wait for a decision, within the concurrency; None if there is no such member."""
        self._decide_if_all_wait(tune_controller)
        self._record(tune_controller)
        trials = tune_controller.get_trials()
        starting = [trial for trial in trials if trial.status == TuneTrial.PENDING]
        training = [trial for trial in trials if trial.status == TuneTrial.RUNNING and not trial.is_saving]
        ready = [trial for trial in trials if trial.status == TuneTrial.PAUSED and not self._waits(trial)]
        if ready and len(starting) + len(training) < self._concurrency:
            return ready[0]
        return starting[0] if starting else None

    def _waits(self, trial: Any) -> bool:
        """Whether a member has reached the next decision."""
        return bool(self._trial_state[trial].last_train_time >= self._next_perturbation_sync)

    def _decide_if_all_wait(self, tune_controller: Any) -> None:
        """Bring the decision about if the member that all waited for has ended instead of reporting."""
        living = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        if living and all(trial.status == TuneTrial.PAUSED and self._waits(trial) for trial in living):
            self.on_trial_result(tune_controller, living[0], self._trial_state[living[0]].last_result or {})

    def _record(self, tune_controller: Any) -> None:
        """Put a decision into the store, before any member continues by it."""
        if self._undecided is None:
            return
        members = {}
        for trial in tune_controller.get_trials():
            if not trial.is_finished():
                number = trial.config["point"]
                metrics, exploits = self._runs.history(number)
                members[number] = Member(
                    settings=TabularParams.model_validate(trial.config["settings"]),
                    weights=self._copied.get(number, number),
                    metrics=metrics,
                    exploits=exploits,
                )
        self.pbt_state.decide(Decision(epoch=self._undecided, members=members, lost=self._runs.failed_runs()))
        self._undecided, self._copied = None, {}

    def _checkpoint_or_exploit(self, trial: Any, *others: Any) -> None:
        seed = f"{self._seed} {trial.config['point']} {self._trial_state[trial].last_train_time}"
        with _seeded(seed):
            super()._checkpoint_or_exploit(trial, *others)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        settings = config["settings"]
        for name, source in self._space.items():
            if isinstance(source, Range):
                settings[name] = type(settings[name])(source.nearest(settings[name]))
        return config | {"point": trial.config["point"]}, operations

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        number, copied = trial.config["point"], trial_to_clone.config["point"]
        self._copied[number] = copied
        settings = TabularParams.model_validate(trial.config["settings"])
        epoch = self._trial_state[trial].last_train_time
        self._runs.record_exploit(number, Exploit(epoch=epoch, trial=copied, params=settings))


@dataclass(frozen=True, slots=True)
class TrialStates:
    """Saved states of trials after their last two epochs, by number, below `folder` in `store`."""

    store: ObjectStore
    folder: str

    def save(self, number: int, settings: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Save the state of a trial that trains with these settings."""
        facts = snapshot.facts | {"settings": dict(settings)}
        self._of(number).save(len(facts["epochs"]) - 1, replace(snapshot, facts=facts))

    def load(self, number: int, epochs: int) -> Snapshot:
        """Load a trial's state after so many epochs. Raises: TrainingError if it is absent or damaged."""
        return saved_state(self._of(number), number, epochs)

    def members(self) -> dict[int, Member]:
        """Read the metrics and settings of all saved trials, by number."""
        keys = list(self.store.list(self.folder))
        found = {}
        for number in sorted({int(key.removeprefix(self.folder).partition("/")[0]) for key in keys}):
            saved = self._of(number).latest()
            if saved is not None:
                settings = TabularParams.model_validate(saved.facts["settings"])
                metrics = [metrics_of(Epoch(**epoch)) for epoch in saved.facts["epochs"]]
                found[number] = Member(settings=settings, weights=number, metrics=metrics, exploits=[])
        return found

    def _of(self, number: int) -> TrialFiles:
        return TrialFiles(self.store, f"{self.folder}{number:04d}/")


class AshaSearcher(tune.search.Searcher):
    """Tells Tune which trial trains next and how far, until every trial is over.

    points: settings by number, filled as `sampler` proposes them, if there is one; members: paused trials of an interrupted
    sweep; done: losses of its finished trials; close_trial: called with a paused trial that will not be resumed.
    """

    def __init__(
        self,
        count: int,
        points: dict[int, TabularParams],
        *,
        sampler: TpeSampler[TabularParams] | None,
        members: Mapping[int, Member],
        done: Mapping[int, Sequence[float]],
        close_trial: Callable[[int], None],
    ) -> None:
        super().__init__(metric=METRIC, mode="min")
        paused = {number: [epoch[METRIC] for epoch in member.metrics] for number, member in members.items()}
        self._scheduler = AshaScheduler(count, paused | dict(done), over=done)
        self._points, self._sampler, self._close_trial = points, sampler, close_trial
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """Settings and epochs of the next trial; None to wait for trials in training, FINISHED if all are over."""
        chosen = self._scheduler.next()
        if chosen is None:
            return None if self._scheduler.training else self.FINISHED
        number, since, until = chosen
        if self._sampler is not None and number not in self._points:
            tried = [(self._points[each], loss) for each, loss in self._scheduler.best.items()]
            self._points[number] = self._sampler.propose(number, tried)
        self._numbers[trial_id] = number
        settings = self._points[number].model_dump(mode="json")
        return {"point": number, "settings": settings, SINCE: since, UNTIL: until}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the loss of a trial's epoch."""
        self._scheduler.report(self._numbers[trial_id], float(result[METRIC]))

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002 - as Tune calls it
    ) -> None:
        """Record that a trial has reached its rung or its end, or has failed."""
        number = self._numbers.pop(trial_id)
        if error or result is None or METRIC not in result:
            self._scheduler.fail(number)
            return
        self._scheduler.report(number, float(result[METRIC]))
        if result[FINISHED]:
            self._scheduler.complete(number)
            return
        for beaten in self._scheduler.pause(number):
            self._close_trial(beaten)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, since an interrupted sweep resumes from its trials' states and runs."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, since an interrupted sweep resumes from its trials' states and runs."""


def tune_checkpoint(number: int, epochs: int, metrics: dict[str, Any]) -> _TrainingResult:
    """Make the checkpoint that stands for weights in the store; Tune only passes it on, and copies no files."""
    return _TrainingResult(checkpoint=tune.Checkpoint(f"/{number}/{epochs}"), metrics=metrics)


def trial_and_epochs(saved: Any) -> tuple[int, int]:
    """Read the trial's number and epochs from a checkpoint of `tune_checkpoint`."""
    _, number, epochs = saved.checkpoint.path.split("/")
    return int(number), int(epochs)


def _source(source: Choice | Range) -> list[Any] | Callable[[], float]:
    """Convert a setting's source to what Tune mutates it by: a list for neighbours, a function to draw anew."""
    if isinstance(source, Choice):
        return source.choices
    return lambda: source.draw(np.random.default_rng(random.getrandbits(64)))


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """Seed Python's random numbers, which Tune draws from, within the context only."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
