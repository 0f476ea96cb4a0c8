"""Parameters of a request: its unit, its attributes, whether anybody reads the answer, and whether it is explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toque.functions.model_formats import explanation
from toque.functions.model_formats.explanation import BASELINES, CannotExplain, ExplainRequest
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import BadRequest
from toque.ray_apps.predictor.versions.loaded import LoadedVersion

MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE = 256


def routing_key(parameters: Mapping[str, Any]) -> tuple[str | None, Mapping[str, str] | None]:
    """The unit, which the traffic split is keyed by, and the attributes, which its rules match first."""
    attributes = parameters.get("attributes")
    if attributes is not None:
        _check_attributes(attributes)
    return _unit(parameters), attributes


def is_load_test(parameters: Mapping[str, Any]) -> bool:
    """Whether a request says that nobody reads its answer. Raises: BadRequest for anything but true or false."""
    marked = parameters.get("load_test", False)
    if not isinstance(marked, bool):
        raise BadRequest(f"parameters.load_test: expected true or false, got {marked!r:.80}")
    return marked


def _check_attributes(attributes: Any) -> None:
    """Refuse malformed attributes even without rules, so that a change of the policy cannot break a caller."""
    if not isinstance(attributes, dict) or len(attributes) > MAX_ATTRIBUTES:
        raise BadRequest(
            f"parameters.attributes: expected an object of at most {MAX_ATTRIBUTES} texts, as in "
            f'{{"country": "NL"}}, got {attributes!r:.80}'
        )
    for name, value in attributes.items():
        if not isinstance(value, str) or len(value) > MAX_ATTRIBUTE:
            raise BadRequest(
                f"parameters.attributes.{name:.80}: expected a text of at most {MAX_ATTRIBUTE} characters, got {value!r:.80}"
            )


def _unit(parameters: Mapping[str, Any]) -> str | None:
    unit = parameters.get("unit")
    if unit is None or isinstance(unit, str):
        return unit
    if isinstance(unit, int) and not isinstance(unit, bool):
        return str(unit)
    raise BadRequest(f"parameters.unit: expected a string or an integer, got {unit!r:.80}")


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


__all__ = ["ExplainRequest", "Explainer", "is_load_test", "parse_explain", "routing_key"]
