"""Population based training (PBT) in step: who trains next, and at each decision who copies whom under which settings.

Every so many epochs all members wait for each other, and one decision says with whose weights and which settings each continues.
So a decision depends on their losses and the seed, not on their speed. A member saves its weights before that, so a population can
resume from any decision whose weights are all saved; later epochs are trained again, from the same weights, settings and random numbers.
Source: Jaderberg et al., Population Based Training of Neural Networks, 2017.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.space import Choice, Exploit, Range, Space, Trial
from toque.functions.tuning.trial_states import METRIC, Member, TrialStates, name_of

_QUANTILE, _RESAMPLED, _FACTORS = 0.25, 0.25, (0.8, 1.2)
_DECISION_NAME = re.compile(r"decision-(\d{6})\.json")
_LOST = "it had failed before the sweep was interrupted"


class Decision(BaseModel):
    """Decision on a population after `epoch` epochs. members: by number; lost: runs of failed members, by number."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    members: dict[int, Member]
    lost: dict[int, str]


class MemberRuns(Protocol):
    """Runs of a population's members, as the population uses them."""

    def record_exploit(self, number: int, exploit: Exploit) -> None:
        """Record that a member took over another's weights."""

    def history(self, number: int) -> tuple[list[dict[str, float]], list[Exploit]]:
        """Metrics of each epoch that a member has reported, and its exploits."""

    def failed_runs(self) -> dict[int, str]:
        """Runs of members that have failed, by number."""


@dataclass(frozen=True, slots=True)
class ResumedPopulation:
    """Population at its beginning, or resumed after `epoch` epochs. failed: its trials that had failed."""

    states: TrialStates
    interval: int
    epoch: int
    members: dict[int, Member]
    failed: dict[int, Trial]


def resume_population(
    states: TrialStates, interval: int, points: Sequence[TabularParams], done: Mapping[int, Trial]
) -> ResumedPopulation:
    """Load the population of `points` (resolved) as its last complete decision left it, or begin it.

    interval: epochs between decisions; done: trials that have finished.
    """
    decision = last_decision(states)
    if decision is None or not decision.members.keys() | decision.lost.keys() | done.keys() >= set(
        range(len(points))
    ):
        members = {
            number: Member(settings=point, weights=number, metrics=[], exploits=[])
            for number, point in enumerate(points)
            if number not in done
        }
        return ResumedPopulation(states, interval, 0, members, {})
    lost = {
        number: Trial(
            run_id=run, params=points[number], valid_loss=math.nan, epochs=0, failed=True, error=_LOST
        )
        for number, run in decision.lost.items()
    }
    members = {number: member for number, member in decision.members.items() if number not in done}
    return ResumedPopulation(states, interval, decision.epoch, members, lost)


def last_decision(states: TrialStates) -> Decision | None:
    """Find the newest decision whose weights are all saved, or None; later ones are deleted."""
    keys = [key.removeprefix(states.folder) for key in states.store.list(states.folder)]
    for name in sorted(filter(_DECISION_NAME.fullmatch, keys), reverse=True):
        decision = Decision.model_validate_json(states.store.get(states.folder + name))
        weights = {member.weights for member in decision.members.values()}
        if all(states.has(name_of(number), decision.epoch) for number in weights):
            return decision
        states.store.delete(states.folder + name)
    return None


class Population:
    """Decides which member trains next, in step, recorded in the store and drawn from `seed` alone.

    points: settings of the members by number, which decisions change. The worst quarter copies the best.
    """

    def __init__(self, space: Space, resumed: ResumedPopulation, *, seed: int, runs: MemberRuns) -> None:
        members = resumed.members
        self.points = {number: member.settings for number, member in members.items()}
        self._space, self._seed, self._runs = space, seed, runs
        self._states, self._interval = resumed.states, resumed.interval
        self._due = resumed.epoch + resumed.interval
        self._epochs = dict.fromkeys(members, resumed.epoch)
        self._losses = {
            number: member.metrics[-1][METRIC] for number, member in members.items() if member.metrics
        }
        self._training, self._over = set[int](), set[int]()
        self._states.newest.update({number: name_of(member.weights) for number, member in members.items()})

    @property
    def training(self) -> bool:
        """Whether any member is training now."""
        return bool(self._training)

    def next(self) -> tuple[int, int, int] | None:
        """Choose a member to train now: its number, the epochs it has, and those of the next decision.

        Returns: None if every member is over, or all that are left wait for another.
        """
        living = [number for number in self._epochs if number not in self._over]
        if living and not self._training and all(self._epochs[number] >= self._due for number in living):
            self._decide(living)
        for number in living:
            if number not in self._training and self._epochs[number] < self._due:
                self._training.add(number)
                return number, self._epochs[number], self._due
        return None

    def report(self, number: int, loss: float) -> None:
        """Record the loss of one more epoch of a member."""
        self._losses[number] = loss
        self._epochs[number] += 1

    def pause(self, number: int) -> list[int]:
        """Record that a member has reached the next decision; it ends no other."""
        self._training.discard(number)
        return []

    def complete(self, number: int) -> None:
        """Record that a member has trained to its end."""
        self._training.discard(number)
        self._over.add(number)

    def fail(self, number: int) -> None:
        """Record that a member has failed: no other waits for it, or copies it."""
        self.complete(number)

    def _decide(self, living: Sequence[int]) -> None:
        """Let the worst copy the best, and put that into the store before any member continues by it."""
        ranked = sorted(living, key=lambda number: self._losses[number])
        count = min(math.ceil(len(ranked) * _QUANTILE), len(ranked) // 2)
        copied: dict[int, int] = {}
        before = dict(self.points)
        for number in ranked[len(ranked) - count :]:
            generator = random.Random(f"{self._seed} {number} {self._due}")
            copied[number] = generator.choice(ranked[:count])
            self.points[number] = explored(before[copied[number]], self._space, generator)
            exploit = Exploit(epoch=self._due, trial=copied[number], params=self.points[number])
            self._runs.record_exploit(number, exploit)
        members = {}
        for number in living:
            metrics, exploits = self._runs.history(number)
            weights = copied.get(number, number)
            members[number] = Member(
                settings=self.points[number], weights=weights, metrics=metrics, exploits=exploits
            )
            self._states.newest[number] = name_of(weights)
        decision = Decision(epoch=self._due, members=members, lost=self._runs.failed_runs())
        key = f"{self._states.folder}decision-{self._due:06d}.json"
        self._states.store.put(key, decision.model_dump_json().encode())
        self._due += self._interval


def explored(settings: TabularParams, space: Space, generator: random.Random) -> TabularParams:
    """Settings near the copied ones: 0.8 or 1.2 times within a range, a neighbour among choices; one in four drawn anew."""
    near: dict[str, Any] = {}
    for name, source in space.items():
        value = getattr(settings, name)
        if isinstance(source, Range):
            anew = value is None or generator.random() < _RESAMPLED
            drawn = source.draw(np.random.default_rng(generator.getrandbits(64))) if anew else None
            number = value * generator.choice(_FACTORS) if drawn is None else drawn
            number = source.nearest(number)
            near[name] = round(number) if isinstance(value, int) or source.integer else number
        else:
            near[name] = _neighbour(value, source, generator)
    return TabularParams.model_validate({**settings.model_dump(mode="json"), **near})


def _neighbour(value: Any, source: Choice, generator: random.Random) -> Any:
    """Value beside this one among the choices, or any of them."""
    choices = source.choices
    if generator.random() < _RESAMPLED or value not in choices:
        return generator.choice(choices)
    place = choices.index(value) + generator.choice((-1, 1))
    return choices[min(max(place, 0), len(choices) - 1)]
