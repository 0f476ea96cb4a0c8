"""Settings that hang on what the trials before them found: Optuna proposes, Tune asks for the next when it has room."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from ray import tune

from functions.training.errors import TrainingDataError, TrainingError
from functions.training.params import TabularParams
from functions.training.space import Choice, Space, Trial

METRIC = "valid_loss"


class Asker(tune.search.Searcher):
    """Proposes `count` settings by a tree-structured Parzen estimator (TPE), the given ones first.

    points: of all trials by number, filled as they are proposed; done: trials of an interrupted sweep, which are learnt from
    and not proposed again; rows: of the training part.
    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011.
    Raises: TrainingError if Optuna is not installed.
    """

    def __init__(
        self,
        space: Space,
        base: TabularParams,
        *,
        count: int,
        seed: int,
        done: Mapping[int, Trial],
        rows: int,
    ) -> None:
        super().__init__(metric=METRIC, mode="min")
        try:
            import optuna  # late: an extra, for who searches so
        except ImportError as error:
            raise TrainingError(
                "search='optuna' needs the package: pip install -c constraints.txt -e '.[sweeps]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.points: dict[int, TabularParams] = {number: trial.params for number, trial in done.items()}
        self._optuna, self._space, self._base, self._rows = optuna, space, base, rows
        self._open = [number for number in range(count) if number not in done]
        self._distributions = {name: self._distribution(source) for name, source in space.items()}
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(5, max(1, count // 3)))
        self._study = optuna.create_study(direction="minimize", sampler=sampler)
        self._asked: dict[str, Any] = {}
        self._best: dict[str, float] = {}
        for number, trial in sorted(done.items()):
            self._learn(number, trial)

    def suggest(self, trial_id: str) -> Any:
        """The next trial, or that there are no more."""
        if not self._open:
            return self.FINISHED
        number = self._open.pop(0)
        drawn: dict[str, Any] = {}
        if number > 0:
            self._asked[trial_id] = asked = self._study.ask(self._distributions)
            drawn = {name: self._value(name, told) for name, told in asked.params.items()}
        self.points[number] = _allowed(self._base, drawn)
        settings = self.points[number].settled(self._rows).model_dump(mode="json")
        return {"point": number, "settings": settings}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remember its best epoch."""
        self._best[trial_id] = min(self._best.get(trial_id, math.inf), float(result[METRIC]))

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002 - as Tune calls it
    ) -> None:
        """Learn from a trial that is over; one that failed teaches that it failed."""
        if result is not None and METRIC in result:
            self.on_trial_result(trial_id, result)
        asked, best = self._asked.pop(trial_id, None), self._best.get(trial_id, math.inf)
        if asked is None:
            return
        if error or not math.isfinite(best):
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, best)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: an interrupted sweep is taken up from its trials' runs."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, the same."""

    def _learn(self, number: int, trial: Trial) -> None:
        if number == 0 or not math.isfinite(trial.valid_loss):
            return  # the given settings need not lie in the space
        told = {name: self._told(name, getattr(trial.params, name)) for name in self._space}
        made = self._optuna.trial.create_trial(
            params=told, distributions=self._distributions, value=trial.valid_loss
        )
        self._study.add_trial(made)

    def _distribution(self, source: Any) -> Any:
        distributions = self._optuna.distributions
        if isinstance(source, Choice):
            return distributions.CategoricalDistribution(range(len(source.choices)))
        return distributions.FloatDistribution(source.low, source.high, log=source.log)

    def _value(self, name: str, told: Any) -> Any:
        source = self._space[name]
        return source.choices[int(told)] if isinstance(source, Choice) else told

    def _told(self, name: str, value: Any) -> Any:
        """The inverse of `_value`, of a validated setting."""
        source = self._space[name]
        if not isinstance(source, Choice):
            return value
        allowed = [getattr(_allowed(self._base, {name: each}), name) for each in source.choices]
        return allowed.index(value)


def _allowed(base: TabularParams, drawn: Mapping[str, Any]) -> TabularParams:
    try:
        return TabularParams.model_validate(base.model_dump() | dict(drawn))
    except ValidationError as error:
        raise TrainingDataError(f"the space draws a setting that is not allowed: {error}") from error
