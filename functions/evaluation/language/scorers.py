"""Scores of an answer against a row of an evaluation set, from 0 to 1: by a rule or a registered classifier."""

from __future__ import annotations

import difflib
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.generative import declines
from toque.functions.model_formats.load import load
from toque.registry import ModelVersion, Registry, TensorSpec

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
_BINARY_CLASSES = ("0", "1")


class Scorer(BaseModel):
    """A rule that scores an answer.

    `exact` is for the expected text, whatever its case and the space around it; `contains` for the expected text somewhere
    in the answer; `number` for the expected number as the last one of the answer, within `tolerance`; `similarity` for the
    share of characters in common with the expected text; `regex` for `pattern` somewhere in the answer; `json` for JSON, with
    the fields `required`; `length` for at most `max_length` characters, and at least one; `refusal` for an answer by which the model
    does not decline to answer; `classifier` for the probability of the class `wanted`, which `scores_of` computes; `likelihood` for
    the probability of a token of the expected text (geometric mean), which `evaluate_likelihoods` computes.
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
    ] = Field(default="exact", description="Kind of the scorer: what of an answer is scored.")
    name: str = Field(
        default="", max_length=100, description="Name of the score in results; the kind if empty."
    )
    pattern: str = Field(
        default="",
        max_length=500,
        description="Regular expression that the answer is searched for; of `regex`, which needs it.",
    )
    required: tuple[str, ...] = Field(
        default=(),
        description="Fields that the JSON object must have; of `json`, which takes any JSON if empty.",
    )
    tolerance: float = Field(
        default=0.0, ge=0.0, description="Most by which the number may miss the expected one; of `number`."
    )
    max_length: int | None = Field(
        le=100_000_000,
        default=None,
        ge=1,
        description="Most characters of the answer; of `length`, which needs it.",
    )
    classifier: str = Field(
        default="",
        pattern=r"^([^@]+@[1-9][0-9]*)?$",
        max_length=300,
        description='Version of a registered classifier of texts, such as "tone@3"; of `classifier`, which needs it.',
    )
    wanted: str = Field(
        default="",
        max_length=200,
        description=(
            "Class of the classifier whose probability is the score; of `classifier`, which needs it."
        ),
    )

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


def scores_of(
    registry: Registry,
    scorer: Scorer,
    answers: Sequence[str],
    expected: Sequence[str],
    *,
    declining: Sequence[str] = (),
) -> list[float]:
    """Score answers, each from 0 to 1. expected, declining: as of `Scorer.score`.

    Raises: NotFound if there is no such classifier; EvaluationError if it does not fit; ArtifactRefused if it does not load.
    """
    if scorer.kind != "classifier":
        pairs = zip(answers, expected, strict=True)
        return [scorer.score(answer, wanted, declining=declining) for answer, wanted in pairs]
    version = check_classifier(registry, scorer)
    if not answers:
        return []
    classes, output = _classes(version, scorer)
    with tempfile.TemporaryDirectory(prefix="toque-scorer-") as place:
        folder = registry.download(version.model, version.version, to=Path(place) / "classifier")
        policy = registry.get_model(version.model).policy
        model = load(folder, signature=version.signature, trusted_types=policy.trusted_types)
        texts = np.array([[each] for each in answers], dtype=object)
        found = model.predict({model.signature.inputs[0].name: texts})[output.name]
    table = np.asarray(found, np.float64).reshape(len(answers), -1)
    if table.shape[1] == 1:  # the probability of the second of two classes
        table = np.hstack([1 - table, table])
    return _checked(scorer, table[:, classes.index(scorer.wanted)])


def check_classifier(registry: Registry, scorer: Scorer) -> ModelVersion:
    """Find the classifier of a scorer. Raises: NotFound; EvaluationError if it is not ready, or no classifier with such a class."""
    name, _, number = scorer.classifier.partition("@")
    version = registry.get_version(name, int(number))
    if version.status != "READY":
        raise EvaluationError(
            f"scorer {scorer.label!r}: {scorer.classifier} is {version.status}; name a version that is ready"
        )
    classes, _ = _classes(version, scorer)
    if scorer.wanted not in classes:
        raise EvaluationError(
            f"scorer {scorer.label!r}: wanted={scorer.wanted!r} is no class of {scorer.classifier}, which has {classes[:10]}"
        )
    return version


def _classes(version: ModelVersion, scorer: Scorer) -> tuple[list[str], TensorSpec]:
    """Classes of a version, and the output that has their probabilities."""
    signature = version.signature
    if signature is None or [(each.datatype, each.shape[1:]) for each in signature.inputs] != [
        ("BYTES", [1])
    ]:
        raise EvaluationError(
            f"scorer {scorer.label!r}: {scorer.classifier} does not read one text; name a classifier of texts"
        )
    output = signature.outputs[0]
    if output.datatype not in {"FP32", "FP64"} or len(output.shape) > 2:  # noqa: PLR2004 - rows and classes
        raise EvaluationError(
            f"scorer {scorer.label!r}: {scorer.classifier} answers no probabilities of classes"
        )
    columns = output.columns or []
    return (list(columns) if len(columns) > 1 else list(_BINARY_CLASSES)), output


def _checked(scorer: Scorer, scores: np.ndarray) -> list[float]:
    outside = scores[~((scores >= 0) & (scores <= 1))]
    if len(outside):
        raise EvaluationError(
            f"scorer {scorer.label!r}: {scorer.classifier} answers {outside[0]:.4g}, which is no probability"
        )
    return [float(each) for each in scores]


__all__ = ["Scorer", "check_classifier", "scores_of"]
