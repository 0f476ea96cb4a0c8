"""Explains answers by Shapley values: what each feature of a row added to the row's answer.

Sampled over orders in which the features take their values, each order with its reverse (Strumbelj and Kononenko 2014;
Mitchell et al. 2022), by captum, with the model as a black box: every served model can be explained, texts included.
The attributions of a row add up to its answer less the baseline's. The orders are drawn from a fixed seed, so the same
row has the same explanation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_apps.predictor.protocol.datatypes import DTYPES, Array
from ray_apps.predictor.protocol.errors import BadRequest
from ray_apps.predictor.versions.loaded import LoadedVersion
from registry.models import TensorSpec

__all__ = ["ExplainRequest", "Explainer", "parse_explain"]

MAX_EVALUATIONS = 1_000_000
"""Bound on the rows that the model scores for one request's explanation; some seconds of a small model."""
ROWS_AT_ONCE = 4_096
SAMPLES = 20
BASELINES = ("example", "missing")


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """The explanation that a request asks for.

    samples: orders that are tried; the error of an attribution falls with its root. baseline: the value of a feature
    before it takes its own: from the first row of the version's example, or missing. output: None is the first one.
    """

    samples: int = SAMPLES
    baseline: str = "example"
    output: str | None = None


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


class Explainer:
    """Explains the rows of one request, which is checked against its version before anything is predicted.

    Raises: BadRequest if the version cannot be explained so, or it would take too many evaluations.
    """

    def __init__(
        self, version: LoadedVersion, inputs: Mapping[str, Array], rows: int, wanted: ExplainRequest
    ) -> None:
        self._version, self._inputs, self._rows, self._wanted = version, inputs, rows, wanted
        signature = version.signature
        outputs = {spec.name: spec for spec in signature.outputs}
        self._output = wanted.output or signature.outputs[0].name
        if self._output not in outputs:
            raise BadRequest(
                f"parameters.explain.output: no output {self._output!r}; the model gives {[*outputs]}"
            )
        for spec in (*signature.inputs, outputs[self._output]):
            if spec.shape[:1] != [-1]:
                raise BadRequest(
                    f"parameters.explain: {spec.name!r} has shape {spec.shape}, its first size must be the rows"
                )
        if outputs[self._output].datatype == "BYTES":
            raise BadRequest(
                f"parameters.explain.output: {self._output!r} is text; only numbers are explained"
            )
        self._names = [name for spec in signature.inputs for name in _names(spec, inputs[spec.name])]
        self._baselines = {spec.name: _baseline(version, spec, inputs, wanted) for spec in signature.inputs}
        evaluations = rows * len(self._names) * wanted.samples
        if evaluations > MAX_EVALUATIONS:
            raise BadRequest(
                f"parameters.explain: {rows} rows x {len(self._names)} features x {wanted.samples} samples are "
                f"{evaluations} evaluations, at most {MAX_EVALUATIONS} are made; ask for fewer rows or samples"
            )

    def explain(self, outputs: Mapping[str, Array], abstained: Sequence[int] = ()) -> list[Any]:
        """The explanation of each row as a JSON object; None for a row that was not predicted.

        outputs: the answer; of several values in a row the largest is explained.
        """
        import torch  # late, as everything of torch
        from captum.attr import ShapleyValueSampling

        answered = np.asarray(outputs[self._output], dtype=np.float64).reshape(self._rows, -1)
        target = np.argmax(np.nan_to_num(answered, nan=-np.inf), axis=1)

        def effect(mask: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self._answers(mask.numpy() > 0, target))

        method = ShapleyValueSampling(effect)
        method.permutation_generator = _orders
        whole = torch.ones(self._rows, len(self._names))
        values = method.attribute(
            whole,
            baselines=0,
            n_samples=self._wanted.samples,
            perturbations_per_eval=max(1, min(len(self._names), ROWS_AT_ONCE // self._rows)),
        ).numpy()
        bases = effect(torch.zeros_like(whole)).numpy()
        return [
            None if row in abstained else self._document(answered[row, target[row]], bases[row], int(target[row]), values[row])
            for row in range(self._rows)
        ]  # fmt: skip

    def _document(self, value: float, base: float, index: int, attributions: Array) -> dict[str, Any]:
        return {
            "output": self._output,
            "index": index,
            "value": float(value),
            "baseline": float(base),
            "attributions": dict(zip(self._names, attributions.astype(float).tolist(), strict=True)),
        }

    def _answers(self, known: Array, target: Array) -> Array:
        """The explained output where only the features in `known` (n x rows, features) have taken their values."""
        row = np.arange(len(known)) % self._rows
        mixed, begin = {}, 0
        for spec in self._version.signature.inputs:
            values, baseline = self._inputs[spec.name], self._baselines[spec.name]
            end = begin + int(np.prod(values.shape[1:], dtype=int))
            mask = known[:, begin:end].reshape(-1, *values.shape[1:])
            mixed[spec.name] = np.where(mask, values[row], baseline)
            begin = end
        answers = self._version.predict(mixed)[self._output]
        flat = np.asarray(answers, dtype=np.float64).reshape(len(known), -1)
        return np.take_along_axis(flat, target[row][:, None], axis=1)[:, 0]


def _orders(features: int, samples: int) -> Iterator[list[int]]:
    """Draw orders of the features, every second one the reverse of the one before."""
    draw = random.Random(0)
    for number in range(samples):
        if number % 2 == 0:
            order = draw.sample(range(features), features)
        yield order if number % 2 == 0 else order[::-1]


def _names(spec: TensorSpec, array: Array) -> list[str]:
    """Names of the values in one row of an input."""
    if spec.columns is not None and array.ndim == 2:  # noqa: PLR2004 - rows and columns
        return list(spec.columns)
    size = int(np.prod(array.shape[1:], dtype=int))
    return [spec.name] if size == 1 else [f"{spec.name}[{i}]" for i in range(size)]


def _baseline(
    version: LoadedVersion, spec: TensorSpec, inputs: Mapping[str, Array], wanted: ExplainRequest
) -> Array:
    """The baseline of one row of an input, of the input's shape without its rows."""
    shape = inputs[spec.name].shape[1:]
    if wanted.baseline == "missing":
        if spec.datatype == "BYTES":
            return np.full(shape, None, dtype=object)
        if DTYPES[spec.datatype].kind != "f":
            raise BadRequest(
                f"parameters.explain.baseline: {spec.name!r} is {spec.datatype}, which has no missing value; use 'example'"
            )
        return np.full(shape, np.nan, dtype=DTYPES[spec.datatype])
    example = version.example()
    if example is None or not len(example[spec.name]) or example[spec.name].shape[1:] != shape:
        raise BadRequest(
            f"parameters.explain.baseline: {version} has no example of the shape of {spec.name!r}; use 'missing'"
        )
    first: Array = example[spec.name][0]
    return first
