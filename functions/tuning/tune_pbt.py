"""A population on Ray Tune: every so many epochs the poor members go on with weights of good ones, and settings near theirs.

All wait for each other before that, so what is decided depends on their losses and the seed, not on who was quick.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ray import tune
from ray.train._internal.session import _TrainingResult
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining

from functions.training.params import TabularParams
from functions.tuning.epoch_metrics import EPOCHS, METRIC
from functions.tuning.pbt_state import Decision, Generations, Member
from functions.tuning.space import Choice, Exploit, Range, Space, Trial
from registry import ObjectStore

_LOST = "it had failed before the sweep was interrupted"


class Log(Protocol):
    """Who keeps the members' runs."""

    def exploited(self, number: int, exploit: Exploit) -> None:
        """A member took over another's weights."""

    def told(self, number: int) -> tuple[list[dict[str, float]], list[Exploit]]:
        """What a member has reported of each epoch, and what it took over."""

    def lost(self) -> dict[int, str]:
        """The runs of members that have failed, by number."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A population as it begins, or goes on after `epoch` epochs; lost: those of its trials that had failed."""

    generations: Generations
    epoch: int
    members: dict[int, Member]
    lost: dict[int, Trial]

    def population(self, space: Space, seed: int, concurrency: int, log: Log) -> Population:
        """Its scheduler."""
        return Population(space, self, seed=seed, concurrency=concurrency, log=log)


def taken_up(
    store: ObjectStore, folder: str, interval: int, points: Sequence[TabularParams], done: Mapping[int, Trial]
) -> Taken:
    """The population of `points` (settled) as the last whole decision in `folder` left it, or from its beginning.

    interval: epochs between decisions; done: trials that have finished.
    """
    generations = Generations(store, folder, interval)
    decision = generations.last()
    if decision is None or not decision.members.keys() | decision.lost.keys() | done.keys() >= set(
        range(len(points))
    ):
        members = {
            number: Member(settings=point, weights=number, told=[], exploits=[])
            for number, point in enumerate(points)
        }
        return Taken(generations, 0, members, {})
    lost = {
        number: Trial(
            run_id=run, params=points[number], valid_loss=math.nan, epochs=0, failed=True, error=_LOST
        )
        for number, run in decision.lost.items()
    }
    return Taken(generations, decision.epoch, decision.members, lost)


class Population(PopulationBasedTraining):
    """Tune's population-based training, in step, recorded in `generations` and drawn from `seed` alone.

    concurrency: how many train at a time. The best quarter is copied by the worst; a new setting is 0.8 or 1.2 times the copied
    one, a neighbour among choices, or in one of four cases drawn anew.
    Source: Jaderberg et al., Population Based Training of Neural Networks, 2017.
    """

    def __init__(
        self,
        space: Space,
        taken: Taken,
        *,
        seed: int,
        concurrency: int,
        log: Log,
    ) -> None:
        super().__init__(
            time_attr=EPOCHS,
            perturbation_interval=taken.generations.interval,
            hyperparam_mutations={"settings": {name: _source(each) for name, each in space.items()}},
            log_config=False,
            synch=True,
        )
        self.generations = taken.generations
        self._space, self._members, self._epoch = space, taken.members, taken.epoch
        self._seed, self._concurrency, self._log = seed, concurrency, log
        self._next_perturbation_sync = taken.epoch + taken.generations.interval
        self._copied: dict[int, int] = {}
        self._undecided: int | None = None  # the epoch of a decision that is not recorded yet

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Give a member its settings and weights; it waits until it is chosen, or Tune would run all at a time."""
        member = self._members[trial.config["point"]]
        trial.set_config(trial.config | {"settings": member.settings.model_dump(mode="json")})
        super().on_trial_add(tune_controller, trial)
        trial.set_status(TuneTrial.PAUSED)
        trial.init_local_path()  # Tune reads results of one that never ran, too, and a trial has its folder from its first run on
        if self._epoch > 0:
            state = self._trial_state[trial]
            state.last_train_time = state.last_perturbation_time = self._epoch
            trial.run_metadata.checkpoint_manager._latest_checkpoint_result = saved_as(  # noqa: SLF001 - as an exploit does
                member.weights, self._epoch, {METRIC: member.told[-1][METRIC], EPOCHS: self._epoch}
            )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Let it wait for the others; with the last of them all is decided."""
        due = self._next_perturbation_sync
        answer: str = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync > due:
            self._undecided = int(due)
        return answer

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Nobody waits for one that failed; Tune still counts it among the living."""
        tune_controller.get_live_trials().discard(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The next member that is not waiting for a decision, if there is room; None if there is none."""
        self._decide_without_the_ended(tune_controller)
        self._record(tune_controller)
        trials = tune_controller.get_trials()
        starting = [trial for trial in trials if trial.status == TuneTrial.PENDING]
        training = [trial for trial in trials if trial.status == TuneTrial.RUNNING and not trial.is_saving]
        ready = [trial for trial in trials if trial.status == TuneTrial.PAUSED and not self._waits(trial)]
        if ready and len(starting) + len(training) < self._concurrency:
            return ready[0]
        return starting[0] if starting else None

    def _waits(self, trial: Any) -> bool:
        """Whether it has reached the next decision."""
        return bool(self._trial_state[trial].last_train_time >= self._next_perturbation_sync)

    def _decide_without_the_ended(self, tune_controller: Any) -> None:
        """If the one that all waited for has ended instead, nobody else would begin the decision."""
        living = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        if living and all(trial.status == TuneTrial.PAUSED and self._waits(trial) for trial in living):
            self.on_trial_result(tune_controller, living[0], self._trial_state[living[0]].last_result or {})

    def _record(self, tune_controller: Any) -> None:
        """Put a decision into the store, before anybody goes on by it."""
        if self._undecided is None:
            return
        members = {}
        for trial in tune_controller.get_trials():
            if not trial.is_finished():
                number = trial.config["point"]
                told, exploits = self._log.told(number)
                members[number] = Member(
                    settings=TabularParams.model_validate(trial.config["settings"]),
                    weights=self._copied.get(number, number),
                    told=told,
                    exploits=exploits,
                )
        self.generations.decide(Decision(epoch=self._undecided, members=members, lost=self._log.lost()))
        self._undecided, self._copied = None, {}

    def _checkpoint_or_exploit(self, trial: Any, *others: Any) -> None:
        drawn_by = f"{self._seed} {trial.config['point']} {self._trial_state[trial].last_train_time}"
        with _random_numbers(drawn_by):
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
        self._log.exploited(number, Exploit(epoch=epoch, trial=copied, params=settings))


def saved_as(number: int, epochs: int, metrics: dict[str, Any]) -> _TrainingResult:
    """How Tune knows weights that are in the store: it only hands this on, and copies no files between nodes."""
    return _TrainingResult(checkpoint=tune.Checkpoint(f"/{number}/{epochs}"), metrics=metrics)


def which(saved: Any) -> tuple[int, int]:
    """Number and epochs of what `saved_as` gave."""
    _, number, epochs = saved.checkpoint.path.split("/")
    return int(number), int(epochs)


def _source(source: Choice | Range) -> list[Any] | Callable[[], float]:
    """What Tune mutates by: neighbours in a list, or factors and anew by a function."""
    if isinstance(source, Choice):
        return source.choices
    return lambda: source.draw(np.random.default_rng(random.getrandbits(64)))


@contextmanager
def _random_numbers(drawn_by: str) -> Iterator[None]:
    """Python's random numbers, which Tune draws from, by a seed of their own inside."""
    before = random.getstate()
    random.seed(drawn_by)
    try:
        yield
    finally:
        random.setstate(before)
