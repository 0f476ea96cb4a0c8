"""Settings proposed by Optuna from the losses of the trials before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Generic

import numpy as np

from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.tuning.space import AnyTrainer, Choice, Space


class TpeSampler(Generic[AnyTrainer]):
    """Proposes settings by a tree-structured Parzen estimator (TPE), the base settings first.

    count: trials in all; a third of them, five at most, are drawn at random before it learns. A proposal depends on the
    seed, its number and the trials before, on nothing else.
    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011.
    Raises: TrainingError if Optuna is not installed.
    """

    def __init__(self, space: Space, base: AnyTrainer, *, count: int, seed: int) -> None:
        try:
            import optuna  # late: an extra, needed by this search only
        except ImportError as error:
            raise TrainingError("search='optuna' needs the package: pip install 'toque[sweeps]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._base, self._seed = optuna, space, base, seed
        self._startup = min(5, max(1, count // 3))
        self._distributions = {name: self._distribution(source) for name, source in space.items()}

    def propose(self, number: int, tried: Iterable[tuple[AnyTrainer, float]]) -> AnyTrainer:
        """Propose settings for a trial, from settings that were tried and their lowest losses."""
        if number == 0:
            return self._base
        generator = np.random.SeedSequence([self._seed, number]).generate_state(1)
        sampler = self._optuna.samplers.TPESampler(seed=int(generator[0]), n_startup_trials=self._startup)
        study = self._optuna.create_study(direction="minimize", sampler=sampler)
        for params, loss in tried:
            if params != self._base and math.isfinite(loss):  # the base settings need not lie in the space
                study.add_trial(self._learnt(params, loss))
        drawn = study.ask(self._distributions).params
        return _validated(self._base, {name: self._value(name, code) for name, code in drawn.items()})

    def _learnt(self, params: AnyTrainer, loss: float) -> Any:
        codes = {name: self._code(name, params.parameters[name]) for name in self._space}
        return self._optuna.trial.create_trial(params=codes, distributions=self._distributions, value=loss)

    def _distribution(self, source: Any) -> Any:
        distributions = self._optuna.distributions
        if isinstance(source, Choice):
            return distributions.CategoricalDistribution(range(len(source.choices)))
        if source.integer:
            return distributions.IntDistribution(round(source.low), round(source.high), log=source.log)
        return distributions.FloatDistribution(source.low, source.high, log=source.log)

    def _value(self, name: str, code: Any) -> Any:
        source = self._space[name]
        return source.choices[int(code)] if isinstance(source, Choice) else code

    def _code(self, name: str, value: Any) -> Any:
        """Convert a validated setting to Optuna's number for it, the inverse of `_value`."""
        source = self._space[name]
        if not isinstance(source, Choice):
            return value
        allowed = [_validated(self._base, {name: each}).parameters[name] for each in source.choices]
        return allowed.index(value)


def _validated(base: AnyTrainer, drawn: Mapping[str, Any]) -> AnyTrainer:
    try:
        return base.with_parameters(drawn)
    except TrainingDataError as error:
        raise TrainingDataError(f"the space draws a setting that is not allowed: {error}") from error
