"""A version's policy for features without a value, read from its tags when the version is loaded.

`missing_features` is one of
  pass     the model gets NaN, or a missing text, and handles it (the default)
  default  the values of `missing_defaults`, a JSON object by column; a column without one stays missing
  reject   the request is refused with a 400
  abstain  rows with a missing value are not predicted: their outputs are NaN, null in JSON
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np
import orjson

from toque.ray_apps.predictor.protocol.datatypes import DTYPES, Array
from toque.registry.models import Signature

__all__ = ["MissingFeaturesPolicy", "PolicyError", "predict_abstaining"]

Action = Literal["pass", "default", "reject", "abstain"]
Outputs = Mapping[str, Array]


class PolicyError(ValueError):
    """A version's tags for missing features are malformed, or do not fit its signature."""


@dataclass(frozen=True, slots=True)
class MissingFeaturesPolicy:
    """What to do about missing features, with the default values by column for the action `default`."""

    action: Action = "pass"
    defaults: Mapping[str, float | str] = field(default_factory=dict)

    @classmethod
    def of(cls, tags: Mapping[str, str], signature: Signature) -> Self:
        """Read the policy in a version's tags. Raises: PolicyError naming the tag."""
        action = tags.get("missing_features", "pass")
        if action not in get_args(Action):
            raise PolicyError(f"tag missing_features={action!r}: use one of {', '.join(get_args(Action))}")
        if action == "abstain":
            _can_abstain(signature)
        if action != "default":
            return cls(action)  # type: ignore[arg-type]  # one of them
        return cls("default", _defaults(tags.get("missing_defaults"), signature))

    @property
    def needs_no_store(self) -> bool:
        """Whether requests can be answered even while the online store does not answer."""
        return self.action in {"default", "abstain"}


def _can_abstain(signature: Signature) -> None:
    for spec in signature.outputs:
        if DTYPES[spec.datatype].kind != "f" or spec.shape[:1] != [-1] or -1 in spec.shape[1:]:
            raise PolicyError(
                f"tag missing_features='abstain': output {spec.name!r} must be floating point with rows of a known "
                f"shape to say nothing, got {spec.datatype} {spec.shape}"
            )


def _defaults(text: str | None, signature: Signature) -> dict[str, float | str]:
    try:
        given = orjson.loads(text or "")
    except orjson.JSONDecodeError as error:
        raise PolicyError(f"tag missing_defaults: expected a JSON object by column: {error}") from None
    if not isinstance(given, dict) or not given:
        raise PolicyError(f"tag missing_defaults: expected a JSON object by column, got {text!r:.80}")
    texts = {name: spec.datatype == "BYTES" for spec in signature.inputs for name in spec.columns or ()}
    for name, value in given.items():
        if name not in texts:
            raise PolicyError(f"tag missing_defaults: no column {name!r}; the model has {sorted(texts)}")
        fits = isinstance(value, str) if texts[name] else isinstance(value, int | float) and value is not True
        if not fits or value is False:
            raise PolicyError(
                f"tag missing_defaults: {name!r} takes a {'text' if texts[name] else 'number'}, got {value!r:.80}"
            )
    return given


def predict_abstaining(
    predict: Callable[[Mapping[str, Array]], Outputs],
    inputs: Mapping[str, Array],
    abstained: Sequence[int],
    signature: Signature,
) -> dict[str, Any]:
    """Predict all rows but those in `abstained`, which the model does not see and whose outputs are NaN."""
    rows = len(next(iter(inputs.values())))
    kept = np.setdiff1d(np.arange(rows), abstained)
    outputs = {
        spec.name: np.full((rows, *spec.shape[1:]), np.nan, DTYPES[spec.datatype])
        for spec in signature.outputs
    }
    if len(kept):
        answered = predict({name: array[kept] for name, array in inputs.items()})
        for name, array in outputs.items():
            array[kept] = answered[name]
    return outputs
