"""What has a meaning for each outcome: its losses, and the checks and monitors that are refused, each with the remedy.

The tables of docs/outcomes.md and the refusals at declaration are both made from `MEANINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["binary", "multiclass", "multilabel", "number", "count", "ranking", "vector", "text"]
"""What a model answers for: a label of 0 and 1, one of several classes, several of them, a number, a count, the order in which to put a
request's items, a vector, or a text."""

Loss = Literal[
    "log_loss",
    "squared_error",
    "poisson_deviance",
    "ndcg_loss",
    "cosine_distance",
    "euclidean_distance",
    "edit_distance",
    "token_distance",
    "mismatch",
]
"""Losses of logged answers, by which rollouts and monitors judge."""

BY_REQUEST: frozenset[Loss] = frozenset({"ndcg_loss"})
"""Losses of a request with all its rows, not of a row."""

Aspect = Literal[
    "gate.max_ece",
    "gate.max_ece_high",
    "gate.min_auc",
    "gate.slices",
    "gate.fairness",
    "gate.robustness",
    "gate.behaviours",
    "monitor.estimate",
]
"""Settings of a definition that have a meaning for some outcomes only."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one outcome is, and what is judged of it.

    label: in the training set and in the log; answer: the output, by whose name a version's outcome is known; losses: in the log,
    of which the first is taken where none is named; bounded: what bounds the loss of one label; metrics: that a gate measures;
    main_metric: by which versions are compared; baselines: that a gate knows; refused: settings without a meaning, each with what to do instead.
    """

    label: str
    answer: str
    losses: tuple[Loss, ...]
    bounded: str
    metrics: tuple[str, ...]
    main_metric: str
    baselines: str
    refused: Mapping[Aspect, str] = field(default_factory=dict)


_ONE_PROBABILITY = "it needs one probability a row: leave it out"
_BY_LOSS = "shares and calibration need one probability a row: use FairnessRule(measure='loss', …)"
_NO_CALIBRATION = "such answers have no calibration error: leave it out"

MEANINGS: dict[Outcome, Meaning] = {
    "binary": Meaning(
        label="0 or 1",
        answer="`probability`, one a row",
        losses=("log_loss", "squared_error"),
        bounded="`clip`",
        metrics=("log_loss", "auc", "ece", "brier"),
        main_metric="log_loss",
        baselines="share of label 1, logistic regression",
    ),
    "multiclass": Meaning(
        label="a text or an integer; in the log the class by its name or number",
        answer="`probability`, one for each class",
        losses=("log_loss",),
        bounded="`clip`",
        metrics=("log_loss", "accuracy", "ece", "brier"),
        main_metric="log_loss",
        baselines="shares of the classes, logistic regression",
        refused={
            "gate.min_auc": _ONE_PROBABILITY,
            "gate.fairness": _BY_LOSS,
            "gate.behaviours": "it needs one number a row: leave it out",
        },
    ),
    "multilabel": Meaning(
        label="a list of class names, perhaps empty",
        answer="`label_probability`, one for each class",
        losses=("log_loss",),
        bounded="`clip`",
        metrics=("log_loss", "macro_f1", "micro_f1", "ece"),
        main_metric="log_loss",
        baselines="share of each class, a logistic regression for each",
        refused={
            "gate.min_auc": f"{_ONE_PROBABILITY}; the gate reports the AUC of each label",
            "gate.fairness": _BY_LOSS,
            "gate.behaviours": "it needs one number a row: leave it out",
            "monitor.estimate": "labels of one row depend on each other, so that the error of an estimate is unknown: leave it out",
        },
    ),
    "number": Meaning(
        label="a finite number",
        answer="`value`, one a row",
        losses=("squared_error",),
        bounded="`loss_cap`",
        metrics=("rmse", "mae", "r2", "mse"),
        main_metric="rmse",
        baselines="mean, ridge regression",
        refused={
            "gate.max_ece": _NO_CALIBRATION,
            "gate.max_ece_high": _NO_CALIBRATION,
            "gate.min_auc": _ONE_PROBABILITY,
            "gate.fairness": _BY_LOSS,
        },
    ),
    "count": Meaning(
        label="an integer from 0 on",
        answer="`rate`, one a row, the mean of the count",
        losses=("poisson_deviance",),
        bounded="`loss_cap`",
        metrics=("deviance", "mae", "calibration", "dispersion"),
        main_metric="deviance",
        baselines="constant rate, Poisson regression",
        refused={
            "gate.max_ece": "a rate has none; its calibration in the large is measured: leave it out",
            "gate.max_ece_high": "a rate has none; its calibration in the large is measured: leave it out",
            "gate.min_auc": _ONE_PROBABILITY,
            "gate.fairness": _BY_LOSS,
        },
    ),
    "ranking": Meaning(
        label="the relevance of each item, an integer from 0 to 31",
        answer="`item_score`, one an item, higher first",
        losses=("ndcg_loss",),
        bounded="0 and 1",
        metrics=("ndcg", "mrr", "recall", "ndcg_loss"),
        main_metric="ndcg_loss",
        baselines="no order, ridge regression of the relevance, popularity of the item",
        refused={
            "gate.max_ece": _NO_CALIBRATION,
            "gate.max_ece_high": _NO_CALIBRATION,
            "gate.min_auc": _ONE_PROBABILITY,
            "gate.fairness": _BY_LOSS,
            "gate.behaviours": "a score has no unit, only an order: leave it out",
            "monitor.estimate": "nothing foretells the relevance of items: leave it out",
        },
    ),
    "vector": Meaning(
        label="a list of numbers, as long in every row",
        answer="`embedding`, as long as the label",
        losses=("cosine_distance", "euclidean_distance"),
        bounded="0 and 1; `loss_cap`",
        metrics=("cosine_distance", "euclidean_distance"),
        main_metric="cosine_distance",
        baselines="mean vector, ridge regression",
        refused={
            "gate.max_ece": _NO_CALIBRATION,
            "gate.max_ece_high": _NO_CALIBRATION,
            "gate.min_auc": _ONE_PROBABILITY,
            "gate.fairness": _BY_LOSS,
            "gate.behaviours": "it needs one number a row: leave it out",
            "monitor.estimate": "nothing foretells how far a vector is from its label: leave it out",
        },
    ),
    "text": Meaning(
        label="a text",
        answer="`text`, one a row",
        losses=("edit_distance", "token_distance", "mismatch"),
        bounded="0 and 1",
        metrics=("edit_distance", "token_f1", "exact_match"),
        main_metric="edit_distance",
        baselines="the commonest text, the text of the nearest row",
        refused={
            "gate.max_ece": _NO_CALIBRATION,
            "gate.max_ece_high": _NO_CALIBRATION,
            "gate.min_auc": _ONE_PROBABILITY,
            "gate.fairness": _BY_LOSS,
            "gate.behaviours": "it needs one number a row: leave it out",
            "monitor.estimate": "nothing foretells how far a text is from its label: leave it out",
        },
    ),
}
