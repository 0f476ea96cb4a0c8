"""Searcher of a sweep of the tabular network: tells Ray Tune which trials train next and how far, until all are over.

A trial of Tune is one leg of ours: on its way to the next rung under ASHA, or to the next decision of a population, alone or in a
stack of trials that train together. States are saved after each epoch, so a trial pauses without a process, resumes in any, and
outlives the sweep.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from typing import Any, Protocol

from ray import tune

from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.stacked import stack_key
from toque.functions.tuning.trial_states import FINISHED, METRIC, Leg, name_of

LEG, RESULTS = (
    "leg",
    "results",
)  # of a Tune trial: its setting, and the metrics of each of its trials after an epoch
_MOST_LOSSES = 3  # processes that a leg may lose before it ends an epoch
Result = dict[str, Any] | str
"""Metrics of a trial's epoch, with what it used; or why it failed."""


class Rule(Protocol):
    """Rule that says who trains next; trials are numbers."""

    @property
    def training(self) -> bool:
        """Whether any trial is training now."""

    def next(self) -> tuple[int, int, int] | None:
        """Choose a trial to train now: its number, the epochs it has, and the epochs to train to."""

    def report(self, number: int, loss: float) -> None:
        """Record the loss of one more epoch of a trial."""

    def pause(self, number: int) -> list[int]:
        """Record that a trial has trained as far as it was to; returns the trials that will not train again."""

    def complete(self, number: int) -> None:
        """Record that a trial has trained to its end."""

    def fail(self, number: int) -> None:
        """Record that a trial has failed."""


class TrialRuns(Protocol):
    """Runs of a sweep's trials."""

    def log_epoch(self, number: int, result: Mapping[str, Any]) -> None:
        """Log an epoch to a trial's run."""

    def close_trial(self, number: int) -> None:
        """End the run of a trial that will not train again."""

    def fail_trial(self, number: int, reason: str) -> None:
        """Remember why a trial failed."""


class LegSearcher(tune.search.Searcher):
    """Searcher that plays the sweep by `rule`.

    points: settings by number, filled by what `propose` returns for those that are absent; newest: name of what saved each trial's newest
    state, by number; size: trials that train together in a leg.
    """

    def __init__(
        self,
        rule: Rule,
        points: MutableMapping[int, TabularParams],
        runs: TrialRuns,
        newest: MutableMapping[int, str],
        *,
        size: int = 1,
        propose: Callable[[int], TabularParams] | None = None,
    ) -> None:
        super().__init__()
        self._rule, self._points, self._runs, self._newest = rule, points, runs, newest
        self._size, self._propose = size, propose
        self._waiting: deque[Leg] = deque()
        self._legs: dict[str, Leg] = {}  # with the trials that go on, and the epochs that they have
        self._losses: dict[str, int] = {}  # processes that a leg has lost in its present epoch

    def suggest(self, trial_id: str) -> Any:
        """Next leg to train; None to wait for legs in training, FINISHED if all trials are over."""
        if not self._waiting:
            self._waiting.extend(self._chosen())
        if not self._waiting:
            return None if self._legs else self.FINISHED
        self._legs[trial_id] = leg = self._waiting.popleft()
        return {LEG: leg}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an epoch of a leg; the trials that have not reached its end go on."""
        leg = self._legs[trial_id]
        self._losses.pop(leg.name, None)
        trials = dict(leg.trials)
        for number, metrics in result[RESULTS]:
            if isinstance(metrics, str):
                self._fail(number, metrics)
            elif self._goes_on(leg, number, metrics):
                continue
            del trials[number]
        self._legs[trial_id] = replace(leg, trials=trials, since=leg.since + 1, sources=(leg.name,))

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002 - as Tune calls it
    ) -> None:
        """Record that a leg has ended, or that its process is lost: its epoch is trained again, from the saved states."""
        if not error and result is not None and RESULTS in result:
            self.on_trial_result(trial_id, result)
            del self._legs[trial_id]
            return
        leg = self._legs.pop(trial_id)
        losses = self._losses[leg.name] = self._losses.get(leg.name, 0) + 1
        if losses < _MOST_LOSSES:
            self._waiting.appendleft(leg)
            return
        for number in leg.trials:
            self._fail(number, f"its process died {losses} times in epoch {leg.since}")

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, since an interrupted sweep resumes from its trials' states and runs."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, since an interrupted sweep resumes from its trials' states and runs."""

    def _goes_on(self, leg: Leg, number: int, metrics: Mapping[str, Any]) -> bool:
        """Record a trial's epoch; whether it has neither ended nor trained as far as it was to."""
        self._runs.log_epoch(number, metrics)
        self._rule.report(number, float(metrics[METRIC]))
        self._newest[number] = leg.name
        if metrics[FINISHED]:
            self._rule.complete(number)
            self._runs.close_trial(number)
        elif leg.since + 1 < leg.until:
            return True
        else:
            for beaten in self._rule.pause(number):
                self._runs.close_trial(beaten)
        return False

    def _fail(self, number: int, reason: str) -> None:
        self._rule.fail(number)
        self._runs.fail_trial(number, reason)

    def _chosen(self) -> Iterator[Leg]:
        """Legs of the trials that the rule lets train now, as many as one stack holds."""
        alike: dict[tuple[str, int, int], dict[int, TabularParams]] = {}
        for _ in range(self._size):
            chosen = self._rule.next()
            if chosen is None:
                break
            number, since, until = chosen
            if number not in self._points and self._propose is not None:
                self._points[number] = self._propose(number)
            settings = self._points[number]
            alike.setdefault((stack_key(settings), since, until), {})[number] = settings
        for (_, since, until), trials in alike.items():
            sources = tuple(dict.fromkeys(self._newest[number] for number in trials)) if since else ()
            name = secrets.token_hex(8) if self._size > 1 else name_of(next(iter(trials)))
            yield Leg(name, trials, since, until, sources)
