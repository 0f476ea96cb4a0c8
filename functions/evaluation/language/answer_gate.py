"""Limits of the gate of language models: the answers to the same rows must not be worse than the champion's.

`judge_answers` is pure: texts in, checks out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from toque.functions.evaluation.checks import Check, SliceRule, at_least, judge_slices, slice_columns
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.gate import Gate, GateLimits, gate_in_force
from toque.functions.evaluation.language.judge import Judge
from toque.functions.evaluation.language.scorers import Scorer
from toque.functions.evaluation.metrics.probabilities import Interval
from toque.functions.stats.comparison.betting import paired_cs
from toque.registry import GateData, GateDemand, ModelPolicy

__all__ = [
    "AnswerGate",
    "Judged",
    "ScoreAll",
    "Scores",
    "check_policy_gates",
    "judge_answers",
    "judge_scores",
]

Scores = npt.NDArray[np.float64]
ScoreAll = Callable[[Scorer, Sequence[str], Sequence[str]], Sequence[float]]
"""Scores answers by a scorer. The second texts: what is expected of each."""


class AnswerGate(GateLimits):
    """Limits that a language model's answers must keep to pass.

    The judge's preferences count as a scorer's differences. The `alpha` of the slices is shared by all scorers, and adds to
    that of the whole.
    """

    name: str = Field(
        default="answers", description="Name of the gate, by which its outcome stands with the version."
    )
    scorers: tuple[Scorer, ...] = Field(
        default=(Scorer(),),
        min_length=1,
        description="Scorers of the answers; by each alone the version is compared with the champion.",
    )
    alpha: float = Field(
        default=0.05,
        gt=0.0,
        lt=0.5,
        description=(
            "Chance that a version as good as the champion is refused, over all scorers and the judge."
        ),
    )
    max_drop: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description=(
            "Most that the mean score may be below the champion's, by the lower end of the interval; "
            "unless given it suffices not to be shown worse."
        ),
    )
    min_mean: float | None = Field(
        default=None, gt=0.0, le=1.0, description="Least mean of each score; not checked unless given."
    )
    min_rows: int = Field(default=100, ge=1, description="Fewest rows to judge by; with fewer it fails.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=1 << 31,
        description="Seed of the order of the rows and of the sampling of answers.",
    )
    judge: Judge | None = Field(
        default=None,
        description="Language model that compares both versions' answers, too; none is asked unless given.",
    )
    slices: SliceRule | None = Field(
        default=None,
        description=(
            "Parts of the rows, by columns of the evaluation set, on which it must not be worse than the champion; "
            "not checked unless given."
        ),
    )

    @field_validator("slices")
    @classmethod
    def _against_the_champion(cls, rule: SliceRule | None) -> SliceRule | None:
        if rule is None or rule.against == "champion":
            return rule
        if "against" in rule.model_fields_set:
            raise ValueError(
                f"against={rule.against!r}: answers are compared with the champion's; leave it out"
            )
        return rule.model_copy(update={"against": "champion"})

    @model_validator(mode="after")
    def _scorers_once(self) -> Self:
        names = [each.label for each in self.scorers] + (["judge"] if self.judge is not None else [])
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"scorers: {twice} are named twice; give each a name")
        return self

    @property
    def comparisons(self) -> int:
        """Number of comparisons that share `alpha`."""
        return len(self.scorers) + (self.judge is not None)

    @property
    def needs_expected(self) -> bool:
        """Whether the rows must say what is expected."""
        return any(each.needs_expected for each in self.scorers)

    def check_slices(self, table: pa.Table) -> None:
        """Check that an evaluation set has the columns of the slices. Raises: EvaluationError, naming the column."""
        if self.slices is None:
            return
        try:
            slice_columns(self.slices, table)
        except KeyError as error:
            raise EvaluationError(
                f"slices.columns={[*self.slices.columns]}: the evaluation set has columns {table.column_names}; add those that "
                "lack, or leave them out"
            ) from error

    def demand(self, data: GateData | None = None) -> GateDemand:
        """Make the demand by which a model's policy sets these limits, and the data to judge on if given."""
        limits = self.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
        limits["scorers"] = [each.model_dump(mode="json", exclude_defaults=True) for each in self.scorers]
        return GateDemand(name=self.name, limits=limits, data=data)


def check_policy_gates(policy: ModelPolicy) -> None:
    """Check that the limits of each gate in a policy are those of a `Gate`, or of an `AnswerGate` if they name scorers.

    Raises: EvaluationError.
    """
    for name in policy.gate_names:
        demand = policy.demand(name)
        if demand is not None and "scorers" in demand.limits:
            gate_in_force(policy, AnswerGate(name=name))
        else:
            gate_in_force(policy, Gate(name=name))


@dataclass(frozen=True, slots=True)
class Judged:
    """Measurements and checks of a version's answers. metrics: mean scores; intervals: of the differences to the champion."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    checks: list[Check]


def judge_answers(
    gate: AnswerGate,
    answers: Sequence[str],
    champions: Sequence[str] | None,
    expected: Sequence[str],
    preferences: Sequence[float] | None = None,
    score: ScoreAll | None = None,
    table: pa.Table | None = None,
) -> Judged:
    """Score answers to the same rows, and check them against the limits of `gate`.

    answers: in a random order of the rows, so that each could have come at any place. champions: the champion's answers; None: there is none, and nothing is compared. expected: of each row, "" where nothing is.
    preferences: the judge's, of each row: 1 for the answer, -1 for the champion's, 0 for neither; None: it was not asked. score: scores
    all answers by a scorer; None: each by itself, which a classifier does not. table: of the rows, in the order of the answers,
    with the columns of the slices if the gate has any.
    Raises: ValueError if the gate has slices and there is no table; KeyError and EvaluationError as `slice_columns`.
    """
    score = score or _each_by_itself
    own = {each.label: np.array(score(each, answers, expected), np.float64) for each in gate.scorers}
    others = None
    if champions is not None:
        others = {each.label: np.array(score(each, champions, expected), np.float64) for each in gate.scorers}
    judged = judge_scores(gate, own, others, table)
    if preferences is not None:
        _compare(judged, gate, "judge", np.asarray(preferences, np.float64), table)
    return judged


def judge_scores(
    gate: AnswerGate,
    own: Mapping[str, Scores],
    champion: Mapping[str, Scores] | None,
    table: pa.Table | None = None,
) -> Judged:
    """Check the scores of rows, by scorer, against the limits of `gate`.

    own, champion: (rows,) each, from 0 to 1, in a random order of the rows; champion: None: nothing is compared. table: as of
    `judge_answers`, which raises the same.
    """
    judged = Judged({}, {}, [at_least("rows", len(next(iter(own.values()))), gate.min_rows)])
    for label, scores in own.items():
        judged.metrics[label] = float(scores.mean())
        if gate.min_mean is not None:
            judged.checks.append(at_least(label, float(scores.mean()), gate.min_mean))
        if champion is not None:
            judged.metrics[f"champion_{label}"] = float(champion[label].mean())
            _compare(judged, gate, label, scores - champion[label], table)
    return judged


def _compare(judged: Judged, gate: AnswerGate, label: str, gaps: Scores, table: pa.Table | None) -> None:
    found = paired_cs(gaps, alpha=gate.alpha / gate.comparisons)
    named = f"{label} - champion"
    judged.intervals[named] = Interval(estimate=found.mean, low=found.lower, high=found.upper)
    note = f"worse in {int((gaps < 0).sum())} rows, better in {int((gaps > 0).sum())}"
    judged.checks.append(at_least(f"{named}, upper end", found.upper, 0.0, note))
    if gate.max_drop is not None:
        judged.checks.append(at_least(f"{named}, lower end", found.lower, -gate.max_drop))
    if gate.slices is not None:
        judged.checks.append(_compare_slices(gate.slices, gate.comparisons, label, gaps, table))


def _compare_slices(
    rule: SliceRule, comparisons: int, label: str, gaps: Scores, table: pa.Table | None
) -> Check:
    """Check the slices by one scorer, which has its part of the rule's `alpha`; the loss of an answer is 1 less its score."""
    if table is None:
        raise ValueError(f"slices by {[*rule.columns]} need the table of the rows: pass it")
    shared = rule.model_copy(update={"alpha": rule.alpha / comparisons})
    check, _ = judge_slices(shared, table, -gaps, None)
    return check.model_copy(update={"name": f"{label}, {check.name}"})


def _each_by_itself(scorer: Scorer, answers: Sequence[str], expected: Sequence[str]) -> list[float]:
    return [scorer.score(answer, wanted) for answer, wanted in zip(answers, expected, strict=True)]
