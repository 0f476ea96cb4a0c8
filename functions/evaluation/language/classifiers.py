"""Scores of answers by any scorer, those by a registered classifier of texts among them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.language.scorers import Scorer
from toque.functions.model_formats.load import load
from toque.registry import ModelVersion, Registry, TensorSpec

__all__ = ["check_classifier", "scores_of"]

_BINARY = ("0", "1")


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
    return (list(columns) if len(columns) > 1 else list(_BINARY)), output


def _checked(scorer: Scorer, scores: np.ndarray) -> list[float]:
    outside = scores[~((scores >= 0) & (scores <= 1))]
    if len(outside):
        raise EvaluationError(
            f"scorer {scorer.label!r}: {scorer.classifier} answers {outside[0]:.4g}, which is no probability"
        )
    return [float(each) for each in scores]
