"""Search spaces of a sweep, typed distributions over a trainer's parameters; records of trials; a sampler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.runtime.receipt import Prices
from toque.functions.training.cost import Cost
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.request import LOSS
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.trainer import Trainer
from toque.registry import TableSnapshot

Search = Literal["random", "grid", "optuna", "pbt"]
AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)
# arguments of the functions that sweep
SweepRows = Annotated[
    TableSnapshot,
    Field(description="Table of training rows at one version, which is recorded with the runs of the sweep."),
]
SweepExperiment = Annotated[
    str | None,
    Field(description='Experiment that tracks the sweep and its trials; "{model}-sweep" unless given.'),
]

# settings that can change in the middle of training, since they need no other network or data
MID_TRAINING = ("batch_size", "clip", "dropout", "lr", "unknown_rate", "weight_decay")
_MIN_MEMBERS = 2


class Exploit(BaseModel):
    """Exploit step of a population's member after `epoch` epochs: it took another trial's weights, and new settings."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    trial: int
    params: TabularParams


class Trial(BaseModel):
    """Trial of a sweep: its settings and how well they did.

    params: settings that it began with; valid_loss: its best, of the epoch `best_epoch` (from 0); NaN if it failed before
    the first epoch ended; exploits: of a population's member, the weights that it took over, in order.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    run_id: str
    params: TabularParams
    valid_loss: float
    epochs: int
    failed: bool
    error: str = ""
    best_epoch: int | None = None
    exploits: tuple[Exploit, ...] = ()


class Limits(BaseModel):
    """Resources that the trials of a sweep may use together; None: any. Epochs under way at a limit end first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hours: float | None = Field(
        le=1_000_000,
        default=None,
        gt=0,
        description="Hours of the wall clock since the first trial began; any number unless given.",
    )
    cpu_hours: float | None = Field(
        le=1_000_000_000,
        default=None,
        gt=0,
        description="CPU-hours of all trials together; any number unless given.",
    )
    gpu_hours: float | None = Field(
        le=1_000_000_000,
        default=None,
        gt=0,
        description="GPU-hours of all trials together; any number unless given.",
    )
    money: float | None = Field(
        le=1_000_000_000_000,
        default=None,
        gt=0,
        description="Cost of all trials together, by the prices of TOQUE_PRICES, which it needs; any unless given.",
    )

    def check_prices(self, prices: Prices | None) -> None:
        """Check that money can be counted if it is limited. Raises: TrainingError if there are no prices."""
        if self.money is not None and prices is None:
            raise TrainingError(
                f"limits.money={self.money:g} needs prices: set TOQUE_PRICES, or leave it out"
            )

    def reached(self, *, hours: float, cost: Cost) -> str | None:
        """Name the limit that a sweep of so many hours and this cost has reached; None if it may continue."""
        used = {"hours": hours, **cost.model_dump(exclude={"currency", "energy_kwh"})}
        for name, limit in self.model_dump(exclude_none=True).items():
            if (used[name] or 0.0) >= limit:
                return f"limits.{name}={limit:g} reached"
        return None


class Choice(BaseModel):
    """Choice among several values, each equally likely."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: list[Any] = Field(min_length=1, description="Values of the parameter, one at least.")

    def grid(self) -> list[Any]:
        """All values, as a grid tries them."""
        return self.choices

    def draw(self, generator: np.random.Generator) -> Any:
        """Draw one of the values."""
        return self.choices[int(generator.integers(len(self.choices)))]


class Range(BaseModel):
    """Range of numbers between two bounds, drawn uniformly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float = Field(description="Lowest number; above 0 with `log`.")
    high: float = Field(description="Highest number; `low` or more.")
    log: bool = Field(
        default=False,
        description="Whether the logarithm is uniform instead, for numbers that span orders of magnitude.",
    )
    integer: bool = Field(default=False, description="Whether numbers are rounded to whole ones.")
    steps: int | None = Field(
        le=100_000,
        default=None,
        ge=2,
        description="How many numbers from `low` to `high` a grid tries; needed by a grid only.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"low={self.low} must be at most high={self.high}, and above 0 with log={self.log}"
            )
        return self

    def grid(self) -> list[float]:
        """Space `steps` numbers from low to high. Raises: ValueError if `steps` is not given."""
        if self.steps is None:
            raise ValueError(f"a grid over {self.low} to {self.high} needs steps=")
        spaced = np.geomspace if self.log else np.linspace
        return list(dict.fromkeys(self.whole(each) for each in spaced(self.low, self.high, self.steps)))

    def nearest(self, value: float) -> float:
        """Clip `value` to the bounds of the range."""
        return min(max(value, self.low), self.high)

    def draw(self, generator: np.random.Generator) -> float:
        """Draw one number of the range."""
        if self.log:
            return self.whole(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        return self.whole(generator.uniform(self.low, self.high))

    def whole(self, value: float) -> float:
        """Round a value if only whole numbers are wanted."""
        return round(value) if self.integer else float(value)


Space = dict[str, Choice | Range]
DEFAULT_SPACE: Space = {
    "lr": Range(low=1e-3, high=8e-3, log=True),
    "dropout": Choice(choices=[0.1, 0.2, 0.3, 0.4]),
    "hidden": Choice(choices=[(64, 32), (128, 64), (256, 128)]),
    "embedding_dim": Choice(choices=[4, 8]),
    "weight_decay": Range(low=5e-3, high=2e-1, log=True),
}


def draw_points(
    space: Mapping[str, Choice | Range], base: AnyTrainer, count: int, seed: int
) -> list[AnyTrainer]:
    """Draw the settings to try, `base` first, then `count - 1` draws from `space`.

    Raises: TrainingDataError if the space names something other than a parameter of the trainer that a sweep may vary, or a
    draw is not allowed.
    """
    require_tunable(space, base, count)
    generator = np.random.default_rng(seed)
    drawn = ({name: source.draw(generator) for name, source in space.items()} for _ in range(count - 1))
    return [base, *_settings(base, drawn)]


def grid_points(space: Mapping[str, Choice | Range], base: AnyTrainer) -> list[AnyTrainer]:
    """List the settings to try, `base` first, then every other combination of the space's values.

    Raises: TrainingDataError as `draw_points`, or if a range does not say in how many steps.
    """
    require_tunable(space, base, 1)
    try:
        values = [source.grid() for source in space.values()]
    except ValueError as error:
        raise TrainingDataError(f"the space is no grid: {error}") from error
    combined = (dict(zip(space, each, strict=True)) for each in itertools.product(*values))
    points = [base]
    points += [point for point in _settings(base, combined) if point != base]
    return points


def population_space(space: Space | None) -> Space:
    """Settings that a population's members may change: `space`, or the part of DEFAULT_SPACE that can change in training.

    Raises: TrainingDataError if the space holds settings that need another network or other data, or a refused value.
    """
    if space is None:
        return {name: source for name, source in DEFAULT_SPACE.items() if name in MID_TRAINING}
    fixed = sorted(set(space) - set(MID_TRAINING))
    if fixed or not space:
        raise TrainingDataError(
            f"search='pbt' with a space over {sorted(space)}: members copy each other's weights in the middle of training, so "
            f"{fixed or 'an empty space'} cannot be varied; choose from {list(MID_TRAINING)} and set the others in params, or sweep over "
            f"them with search='random'"
        )
    for name, source in space.items():
        ends = source.choices if isinstance(source, Choice) else [source.low, source.high]
        _settings(TabularParams(), ({name: value} for value in ends))
    return space


def population_points(space: Space, base: TabularParams, count: int, seed: int) -> list[TabularParams]:
    """Draw the settings that members begin with. Raises: TrainingDataError as `draw_points`, or for under two members."""
    if count < _MIN_MEMBERS:
        raise TrainingDataError(
            f"num_samples={count}: a population needs two members at least, four to be of use"
        )
    return draw_points(space, base, count, seed)


def require_tunable(space: Mapping[str, Choice | Range], base: Trainer, count: int) -> None:
    """Check that a space varies parameters of a trainer that leave its data alone. Raises: TrainingDataError."""
    allowed = sorted(set(base.parameters) - base.data_settings)
    unknown = sorted(set(space) - set(allowed))
    if unknown or count < 1:
        raise TrainingDataError(
            f"num_samples={count} with a space over {sorted(space)}: want at least one trial, and {unknown} cannot be "
            f"tuned; choose from {allowed}"
        )


def _settings(base: AnyTrainer, changes: Iterable[Mapping[str, Any]]) -> list[AnyTrainer]:
    try:
        return [base.with_parameters(each) for each in changes]
    except TrainingDataError as error:
        raise TrainingDataError(f"the space draws a setting that is not allowed: {error}") from error


def refuse_grid_samples(search: Search, num_samples: int, *, default: int) -> None:
    """Refuse a number of samples of a grid, whose combinations the space says. Raises: TrainingDataError."""
    if search == "grid" and num_samples != default:
        raise TrainingDataError(
            f"num_samples={num_samples} with search='grid': a grid tries all combinations of the space; leave it out, or search "
            "otherwise"
        )


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
        from ray.tune.search.optuna import OptunaSearch  # late: the same

        if number == 0:
            return self._base
        generator = np.random.SeedSequence([self._seed, number]).generate_state(1)
        sampler = self._optuna.samplers.TPESampler(seed=int(generator[0]), n_startup_trials=self._startup)
        search = OptunaSearch(self._distributions, metric=LOSS, mode="min", sampler=sampler)
        for params, loss in tried:
            if params != self._base and math.isfinite(loss):  # the base settings need not lie in the space
                codes = {name: self._code(name, params.parameters[name]) for name in self._space}
                search.add_evaluated_point(codes, loss)
        drawn = search.suggest(str(number))
        assert isinstance(drawn, dict)  # noqa: S101 - a space without a limit always has more
        return _settings(self._base, [{name: self._value(name, code) for name, code in drawn.items()}])[0]

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
        allowed = _settings(self._base, ({name: each} for each in source.choices))
        return [each.parameters[name] for each in allowed].index(value)
