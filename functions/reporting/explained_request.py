"""Function that explains a logged prediction: what each of its features added to the answer of the version that gave it."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from toque.functions.arguments import Model, PredictedAt, PredictionId
from toque.functions.model_formats.explanation import SAMPLES, Explainer, ExplainRequest
from toque.functions.model_formats.formats import PROGRAM_FILE
from toque.functions.model_formats.load import load_version, torch_threads
from toque.functions.prediction_log.reading.exact import ExactRow, exact_rows, newest_rows
from toque.functions.prediction_log.reading.outcomes import read_columns
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.function import function
from toque.registry import ModelVersion, NotFound

_MOMENT = timedelta(milliseconds=1)
_AT_ONCE = 10_000  # rows of one moment


class PredictionExplanation(BaseModel, frozen=True):
    """Shapley values of a logged prediction, which add up to what its answer is above the baseline's.

    output, index: the tensor, and of several values the place that is explained, which is the largest. attributions: by feature.
    """

    prediction_id: str
    version: int
    output: str
    index: int
    value: float
    baseline: float
    attributions: dict[str, float]


@function(http=True, timeout_s=300)
def explain_prediction(
    model: Model,
    prediction_id: PredictionId,
    predicted_at: PredictedAt,
    samples: Annotated[
        int,
        Field(
            ge=2,  # an order and its reverse
            le=1_000,
            description=(
                "Orders of the features that are tried, 2 to 1,000; "
                "the error of an attribution falls with its root."
            ),
        ),
    ] = SAMPLES,
    baseline: Annotated[
        Literal["example", "missing"],
        Field(
            description="Value of a feature before it takes its own: that of the version's example, or missing."
        ),
    ] = "example",
) -> PredictionExplanation:
    """Load the version that answered and attribute its answer to the features of the logged inputs.

    Raises: NotFound; ValueError if it was not answered, the log does not hold its inputs as the model saw them, the version
    cannot be loaded here, or its answer cannot be explained so.
    """
    used = context()
    version = _version_of(used, model, prediction_id, predicted_at)
    row = _logged(used, version, prediction_id, predicted_at)
    inputs = {name: values[None] for name, values in (row.inputs or {}).items()}
    scorer = load_version(used.registry(), version)
    with torch_threads(1) if PROGRAM_FILE in version.files else nullcontext():
        explainer = Explainer(scorer, inputs, 1, ExplainRequest(samples=samples, baseline=baseline))
        (found,) = explainer.explain(scorer.predict(inputs))
    return PredictionExplanation(prediction_id=prediction_id, version=version.version, **found)


def _version_of(used: Context, model: str, prediction_id: str, at: datetime) -> ModelVersion:
    """Find the version that answered a request; the shadows that saw it answered nobody."""
    rows = read_columns(
        used.store, model, at - _MOMENT, at + _MOMENT, ["prediction_id", "version", "shadow"]
    ).to_pylist()
    found = min(
        (row for row in rows if row["prediction_id"] == prediction_id),
        key=lambda row: bool(row["shadow"]),
        default=None,
    )
    if found is None:
        raise NotFound(f"model {model!r} has no prediction {prediction_id!r} at {at.isoformat()} in its log")
    return used.registry().get_version(model, found["version"])


def _logged(used: Context, version: ModelVersion, prediction_id: str, at: datetime) -> ExactRow:
    """Read the row of a prediction with its inputs as the model saw them."""
    if version.signature is None:
        raise ValueError(f"{version.model}@{version.version} has no signature, so its inputs have no types")
    rows = newest_rows(
        used.store, version.model, at - _MOMENT, at + _MOMENT, version=version.version, limit=_AT_ONCE
    )
    exact = exact_rows(used.store, version.model, version.signature, rows)
    row = min((each for each in exact if each.prediction_id == prediction_id), key=lambda each: each.shadow)
    if not row.answered:
        raise ValueError(
            f"{prediction_id} was not answered, for lack of features: nothing is there to explain"
        )
    if row.inputs is None:
        raise ValueError(
            f"the log does not hold the inputs of {prediction_id} as {version.model}@{version.version} saw them"
        )
    return row
