"""Parameters of a request that say whom it is for: its unit, its attributes, and whether anybody reads the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toque.ray_apps.predictor.protocol.errors import BadRequest

__all__ = ["is_load_test", "routing_key"]

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
