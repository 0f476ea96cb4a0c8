"""A language model as a judge of two answers: asked in both orders, and held against what people prefer. Pure.

A model that prefers whatever it reads first contradicts itself when the answers change places; such a verdict is a tie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from scipy import special

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.metrics.probabilities import Interval
from toque.registry import GateDemand

__all__ = [
    "AGREEMENT",
    "PREFERENCES",
    "Judge",
    "JudgeAgreement",
    "Preference",
    "agreement",
    "chosen",
    "verdict",
]

Preference = Literal["first", "second", "tie"]
PREFERENCES: Final[tuple[Preference, ...]] = ("first", "second", "tie")
AGREEMENT: Final = GateDemand(name="agreement", limits={"judge": "both orders"})
"""Under which a judge's agreement with people stands in the registry, beside its gates; its digest tells it from one written by hand."""
_CHOICE: Final = re.compile(r"\b([AB])\b")
_CONFIDENCE: Final = 0.95


class Judge(BaseModel):
    """A registered version of a language model that compares answers, and how well it must agree with people to count.

    Its prompt has the variables `question`, `first` and `second`, and has it answer with A for the first or B for the second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Name of the registered language model that judges.")
    version: int = Field(le=1_000_000_000, ge=1, description="Number of its version.")
    min_agreement: float = Field(
        default=0.8,
        gt=0.5,
        lt=1.0,
        description=(
            "Least lower end of the 95 % interval of the share of pairs on which it prefers what people prefer; "
            "ties do not count."
        ),
    )
    min_labels: int = Field(
        default=50, ge=1, description="Fewest preferences of people, ties aside, that it was held against."
    )

    @property
    def name(self) -> str:
        """Model and version, as in `judge@3`."""
        return f"{self.model}@{self.version}"


class JudgeAgreement(BaseModel):
    """How a judge's verdicts agree with people's.

    labels: pairs of which people preferred one answer; decided: those of them on which the judge did, in both orders;
    agreement: share of the decided on which it is the same answer, with its exact 95 % interval; None if none is decided.
    flipped: share of all pairs on which the judge preferred a place, whatever stood there; unread: on which an answer of the
    judge was neither A nor B. ties: pairs that people called equal; judged_ties: on which the judge did too.
    """

    model_config = ConfigDict(frozen=True)

    labels: int
    decided: int
    agreement: Interval | None
    flipped: float
    unread: float
    ties: int = 0
    judged_ties: int = 0

    def require(self, judge: Judge) -> None:
        """Refuse a judge that does not agree well enough. Raises: EvaluationError, with the figures."""
        if self.labels < judge.min_labels:
            raise EvaluationError(
                f"judge {judge.name}: held against {self.labels} preferences of people, at least {judge.min_labels} are "
                "demanded; label more pairs"
            )
        found = self.agreement
        if found is None or found.low < judge.min_agreement:
            said = (
                "decides no pair"
                if found is None
                else f"agrees in {found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})"
            )
            raise EvaluationError(
                f"judge {judge.name}: {said} of {self.decided} decided pairs, and {judge.min_agreement:g} is demanded of the "
                "lower end; mend its prompt, take a larger model, or label more pairs"
            )


def chosen(answer: str) -> Preference | None:
    """Read a judge's answer: its first letter that is A or B by itself; None if there is none."""
    found = _CHOICE.search(answer)
    return None if found is None else ("first" if found[1] == "A" else "second")


def verdict(straight: Preference | None, swapped: Preference | None) -> Preference:
    """Combine the choices of both orders. swapped: with the answers in each other's place. Contradictions are ties."""
    if straight == "first" and swapped == "second":
        return "first"
    return "second" if straight == "second" and swapped == "first" else "tie"


def agreement(
    choices: Sequence[tuple[Preference | None, Preference | None]], people: Sequence[Preference]
) -> JudgeAgreement:
    """Hold a judge's choices, straight and swapped, against what people prefer. Raises: EvaluationError for no pairs."""
    if not choices:
        raise EvaluationError("no pairs: a judge is held against people's preferences of some")
    pairs = [(verdict(*each), said) for each, said in zip(choices, people, strict=True)]
    labelled = [(judged, said) for judged, said in pairs if said != "tie"]
    decided = [judged == said for judged, said in labelled if judged != "tie"]
    return JudgeAgreement(
        labels=len(labelled),
        decided=len(decided),
        agreement=_exact_interval(sum(decided), len(decided)) if decided else None,
        flipped=sum(one is not None and one == other for one, other in choices) / len(choices),
        unread=sum(None in each for each in choices) / len(choices),
        ties=len(pairs) - len(labelled),
        judged_ties=sum(judged == said == "tie" for judged, said in pairs),
    )


def _exact_interval(right: int, count: int) -> Interval:
    """Interval of a share that covers it with at least its confidence. Source: Clopper and Pearson, 1934."""
    tail = (1 - _CONFIDENCE) / 2
    low = float(special.betaincinv(right, count - right + 1, tail)) if right else 0.0
    high = float(special.betaincinv(right + 1, count - right, 1 - tail)) if right < count else 1.0
    return Interval(estimate=right / count, low=low, high=high)
