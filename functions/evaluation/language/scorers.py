"""Scores of an answer against a row of an evaluation set, each a number from 0 to 1."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.generative import declines

__all__ = ["Scorer"]

_SPACES: Final = re.compile(r"\s+")
_NUMBER: Final = re.compile(r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_COMPARED: Final = 4_000
"""Characters of a text that `similarity` compares, as its time grows with the square of them."""
_OWN_FIELD: Final = {
    "pattern": "regex", "required": "json", "tolerance": "number", "max_length": "length", "classifier": "classifier",
    "wanted": "classifier",
}  # fmt: skip
_NEEDED: Final = (
    ("regex", "pattern"),
    ("length", "max_length"),
    ("classifier", "classifier"),
    ("classifier", "wanted"),
)


_BY_A_MODEL: Final = {
    "likelihood": "is not a score of answers: judge the version by evaluate_likelihoods",
    "classifier": "needs a registered version: score by scores_of",
}


class Scorer(BaseModel):
    """A rule that scores an answer.

    kind: `exact` for the expected text, whatever its case and the space around it; `contains` for the expected text somewhere
    in the answer; `number` for the expected number as the last one of the answer, within `tolerance`; `similarity` for the
    share of characters in common with the expected text; `regex` for `pattern` somewhere in the answer; `json` for JSON, with
    the fields `required`; `length` for at most `max_length` characters, and at least one; `refusal` for an answer by which the model
    does not decline to answer; `classifier` for the probability of the class `wanted` by a registered classifier of texts, such as
    "tone@3", which `scores_of` computes; `likelihood` for the probability of a token of the expected text (geometric mean), which
    `evaluate_likelihoods` computes. name: in results, by default the kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal[
        "exact",
        "contains",
        "number",
        "similarity",
        "regex",
        "json",
        "length",
        "refusal",
        "classifier",
        "likelihood",
    ] = "exact"
    name: str = Field(default="", max_length=100)
    pattern: str = Field(default="", max_length=500)
    required: tuple[str, ...] = ()
    tolerance: float = Field(default=0.0, ge=0.0)
    max_length: int | None = Field(default=None, ge=1)
    classifier: str = Field(default="", pattern=r"^([^@]+@[1-9][0-9]*)?$", max_length=300)
    wanted: str = Field(default="", max_length=200)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, kind in _OWN_FIELD.items():
            if getattr(self, field) and self.kind != kind:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} with kind={self.kind!r}: it belongs to {kind!r}"
                )
        for kind, field in _NEEDED:
            if self.kind == kind and not getattr(self, field):
                raise ValueError(f"kind={kind!r} needs {field}")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r}: {error}") from error
        return self

    @property
    def label(self) -> str:
        """Name of the score in results."""
        return self.name or self.kind

    @property
    def needs_expected(self) -> bool:
        """Whether a row must say what is expected."""
        return self.kind in {"exact", "contains", "number", "similarity"}

    def score(self, answer: str, expected: str = "", *, declining: Sequence[str] = ()) -> float:
        """Score an answer from 0, wrong, to 1, right.

        declining: patterns by which an answer declines beside the English ones, of the model's policy.
        Raises: EvaluationError for a likelihood, which answers do not show, and for a classifier, which has to be loaded.
        """
        if self.kind in _BY_A_MODEL:
            raise EvaluationError(f"kind={self.kind!r} {_BY_A_MODEL[self.kind]}")
        if self.kind == "number":
            return float(abs(_last_number(answer) - _last_number(expected)) <= self.tolerance)
        if self.needs_expected:
            return self._likeness(_plain(answer), _plain(expected))
        if self.kind == "regex":
            return float(re.search(self.pattern, answer) is not None)
        if self.kind == "json":
            return float(self._is_json(answer))
        if self.kind == "refusal":
            return float(not declines({"content": answer}, also=declining))
        return float(0 < len(answer.strip()) <= (self.max_length or 0))

    def _likeness(self, said: str, wanted: str) -> float:
        if self.kind == "exact":
            return float(said == wanted)
        if self.kind == "contains":
            return float(wanted in said)
        return difflib.SequenceMatcher(None, said[:_COMPARED], wanted[:_COMPARED], autojunk=False).ratio()

    def _is_json(self, answer: str) -> bool:
        try:
            found: Any = json.loads(answer)
        except (ValueError, RecursionError):
            return False
        return not self.required or (isinstance(found, Mapping) and set(self.required) <= found.keys())


def _plain(text: str) -> str:
    return _SPACES.sub(" ", text).strip().casefold()


def _last_number(text: str) -> float:
    """Read the last number of a text; NaN, which equals nothing, without one."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else math.nan
