"""Explanation that a request asks for beside its answer, and its errors in the words of the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toque.functions.model_formats import explanation
from toque.functions.model_formats.explanation import BASELINES, CannotExplain, ExplainRequest
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import BadRequest
from toque.ray_apps.predictor.versions.loaded import LoadedVersion

__all__ = ["ExplainRequest", "Explainer", "parse_explain"]


def parse_explain(parameters: Mapping[str, Any]) -> ExplainRequest | None:
    """Parse `parameters.explain`: true, or an object with `samples`, `baseline`, `output`; None if absent or false.

    Raises: BadRequest naming the field.
    """
    given = parameters.get("explain")
    if given is None or given is False:
        return None
    given = {} if given is True else given
    if not isinstance(given, dict) or set(given) - {"samples", "baseline", "output"}:
        raise BadRequest(
            f"parameters.explain: expected true or an object of samples, baseline, output; got {given!r:.80}"
        )
    wanted = ExplainRequest(**given)
    if type(wanted.samples) is not int or not 2 <= wanted.samples <= 1_000:  # noqa: PLR2004 - an order and its reverse
        raise BadRequest(f"parameters.explain.samples: expected 2 to 1000, got {wanted.samples!r:.80}")
    if wanted.baseline not in BASELINES:
        raise BadRequest(
            f"parameters.explain.baseline: expected one of {[*BASELINES]}, got {wanted.baseline!r:.80}"
        )
    if wanted.output is not None and not isinstance(wanted.output, str):
        raise BadRequest(f"parameters.explain.output: expected a name, got {wanted.output!r:.80}")
    return wanted


class Explainer(explanation.Explainer):
    """Explains the rows of one request. Raises: BadRequest if the version cannot be explained so, naming the field."""

    def __init__(
        self, version: LoadedVersion, inputs: Mapping[str, Array], rows: int, wanted: ExplainRequest
    ) -> None:
        try:
            super().__init__(version, inputs, rows, wanted)
        except CannotExplain as error:
            field = f".{error.field}" if error.field else ""
            raise BadRequest(f"parameters.explain{field}: {error.text}") from error
