"""ASHA sweeps on Ray Tune, for which a Tune trial is one of ours on its way to the next rung.

A trial saves its state after each epoch, so it pauses without a process, resumes in any, and outlives the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from toque.functions.training.loop.epoch import Epoch
from toque.functions.training.params import TabularParams
from toque.functions.tuning.asha import AshaScheduler
from toque.functions.tuning.epoch_metrics import FINISHED, METRIC, metrics_of
from toque.functions.tuning.pbt_state import Member, saved_state
from toque.functions.tuning.tpe import TpeSampler
from toque.functions.tuning.trial_files import Snapshot, TrialFiles
from toque.registry import ObjectStore

SINCE, UNTIL = "since", "until"


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
