"""A sweep under successive halving, as Ray Tune asks for it: what Tune calls a trial is one of ours on its way to a rung.

A trial saves its state after each epoch, so it rests without a process, goes on in any, and outlives the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from functions.training.checkpoints import Checkpoints, Snapshot
from functions.training.loop.training_loop import Epoch
from functions.training.params import TabularParams
from functions.tuning.asha import Rungs
from functions.tuning.epoch_metrics import FINISHED, METRIC, told_of
from functions.tuning.pbt_state import Member, whole
from functions.tuning.tpe import Asker
from registry import ObjectStore

SINCE, UNTIL = "since", "until"


@dataclass(frozen=True, slots=True)
class States:
    """The states of trials after their last two epochs, by number, below `folder` in `store`."""

    store: ObjectStore
    folder: str

    def save(self, number: int, settings: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Keep that of one which has these settings."""
        facts = snapshot.facts | {"settings": dict(settings)}
        self._of(number).save(len(facts["epochs"]) - 1, replace(snapshot, facts=facts))

    def load(self, number: int, epochs: int) -> Snapshot:
        """That of one after so many epochs. Raises: TrainingError if it is not there, or damaged."""
        return whole(self._of(number), number, epochs)

    def members(self) -> dict[int, Member]:
        """What all had reported, and under which settings."""
        keys = list(self.store.list(self.folder))
        found = {}
        for number in sorted({int(key.removeprefix(self.folder).partition("/")[0]) for key in keys}):
            saved = self._of(number).latest()
            if saved is not None:
                settings = TabularParams.model_validate(saved.facts["settings"])
                told = [told_of(Epoch(**epoch)) for epoch in saved.facts["epochs"]]
                found[number] = Member(settings=settings, weights=number, told=told, exploits=[])
        return found

    def _of(self, number: int) -> Checkpoints:
        return Checkpoints(self.store, f"{self.folder}{number:04d}/")


class Halving(tune.search.Searcher):
    """Says which trial trains next and how far, until none is left.

    points: settings by number, filled as `asker` proposes them, if there is one; members: what an interrupted sweep left at
    rest; done: what those of its trials had reported that were over; given_up: called with one that rests and will not go on.
    """

    def __init__(
        self,
        count: int,
        points: dict[int, TabularParams],
        *,
        asker: Asker | None,
        members: Mapping[int, Member],
        done: Mapping[int, Sequence[float]],
        given_up: Callable[[int], None],
    ) -> None:
        super().__init__(metric=METRIC, mode="min")
        rest = {number: [epoch[METRIC] for epoch in member.told] for number, member in members.items()}
        self._rungs = Rungs(count, rest | dict(done), over=done)
        self._points, self._asker, self._given_up = points, asker, given_up
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next, None if it hangs on those that train, or that all are over."""
        chosen = self._rungs.next()
        if chosen is None:
            return None if self._rungs.under_way else self.FINISHED
        number, since, until = chosen
        if self._asker is not None and number not in self._points:
            tried = [(self._points[each], loss) for each, loss in self._rungs.best.items()]
            self._points[number] = self._asker.propose(number, tried)
        self._numbers[trial_id] = number
        settings = self._points[number].model_dump(mode="json")
        return {"point": number, "settings": settings, SINCE: since, UNTIL: until}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """It has trained an epoch."""
        self._rungs.told(self._numbers[trial_id], float(result[METRIC]))

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002 - as Tune calls it
    ) -> None:
        """It has come to its rung or its end with a last epoch, or failed."""
        number = self._numbers.pop(trial_id)
        if error or result is None or METRIC not in result:
            self._rungs.failed(number)
            return
        self._rungs.told(number, float(result[METRIC]))
        if result[FINISHED]:
            self._rungs.ended(number)
            return
        for hopeless in self._rungs.rested(number):
            self._given_up(hopeless)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: an interrupted sweep is taken up from its trials' states and runs."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, the same."""
