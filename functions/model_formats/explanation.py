"""Explanations of answers by Shapley values: what each feature of a row added to the row's answer.

Sampled over orders in which the features take their values, each order with its reverse (Strumbelj and Kononenko 2014;
Mitchell et al. 2022), by captum, with the model as a black box: every served model can be explained, texts included.
The attributions of a row add up to its answer less the baseline's. The orders are drawn from a fixed seed, so the same
row has the same explanation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from toque.registry.models import Signature, TensorSpec

__all__ = ["BASELINES", "CannotExplain", "ExplainRequest", "Explainer"]

Array = npt.NDArray[Any]
MAX_EVALUATIONS = 1_000_000
"""Bound on the rows that the model scores for one request's explanation; some seconds of a small model."""
ROWS_AT_ONCE = 4_096
SAMPLES = 20
BASELINES = ("example", "missing")


class CannotExplain(ValueError):  # noqa: N818  # says what happened
    """An answer cannot be explained as it is asked. field: of the `ExplainRequest` that does not fit, "" for none of them."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}" if field else text)
        self.field, self.text = field, text


class Scored(Protocol):
    """A model with its signature, as a predictor or `toque.functions.model_formats.load` has it."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, and the example that is the baseline."""
        ...

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        """Score a batch of rows."""
        ...


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """The explanation that a request asks for.

    samples: orders that are tried; the error of an attribution falls with its root. baseline: the value of a feature
    before it takes its own: from the first row of the version's example, or missing. output: None is the first one.
    """

    samples: int = SAMPLES
    baseline: str = "example"
    output: str | None = None


class Explainer:
    """Explains some rows, which are checked against the version's signature before anything is predicted.

    inputs: of the rows, by name, as the signature types them; texts are bytes or None.
    Raises: CannotExplain if the version cannot be explained so, or it would take too many evaluations.
    """

    def __init__(
        self, version: Scored, inputs: Mapping[str, Array], rows: int, wanted: ExplainRequest
    ) -> None:
        self._version, self._inputs, self._rows, self._wanted = version, inputs, rows, wanted
        _shapley_sampling()
        signature = version.signature
        outputs = {spec.name: spec for spec in signature.outputs}
        self._output = wanted.output or signature.outputs[0].name
        if self._output not in outputs:
            raise CannotExplain("output", f"no output {self._output!r}; the model gives {[*outputs]}")
        for spec in (*signature.inputs, outputs[self._output]):
            if spec.shape[:1] != [-1]:
                raise CannotExplain(
                    "", f"{spec.name!r} has shape {spec.shape}, its first size must be the rows"
                )
        if outputs[self._output].datatype == "BYTES":
            raise CannotExplain("output", f"{self._output!r} is text; only numbers are explained")
        self._names = [name for spec in signature.inputs for name in _names(spec, inputs[spec.name])]
        self._baselines = {
            spec.name: _baseline(signature, spec, inputs[spec.name], wanted) for spec in signature.inputs
        }
        evaluations = rows * len(self._names) * wanted.samples
        if evaluations > MAX_EVALUATIONS:
            raise CannotExplain(
                "",
                f"{rows} rows x {len(self._names)} features x {wanted.samples} samples are "
                f"{evaluations} evaluations, at most {MAX_EVALUATIONS} are made; ask for fewer rows or samples",
            )

    def explain(self, outputs: Mapping[str, Array], abstained: Sequence[int] = ()) -> list[Any]:
        """The explanation of each row as a JSON object; None for a row that was not predicted.

        outputs: the answer; of several values in a row the largest is explained.
        """
        import torch  # late, as everything of torch

        answered = np.asarray(outputs[self._output], dtype=np.float64).reshape(self._rows, -1)
        target = np.argmax(np.nan_to_num(answered, nan=-np.inf), axis=1)

        def effect(mask: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self._answers(mask.numpy() > 0, target))

        method = _shapley_sampling()(effect)
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


def _shapley_sampling() -> Any:
    try:
        from captum.attr import ShapleyValueSampling  # late: the extra `explanations`, and all of torch
    except ModuleNotFoundError as error:
        text = "no answer is explained without captum; install it where models are served: pip install 'toque[explanations]'"
        raise CannotExplain("", text) from error
    return ShapleyValueSampling


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


def _baseline(signature: Signature, spec: TensorSpec, values: Array, wanted: ExplainRequest) -> Array:
    """The baseline of one row of an input, of the input's shape without its rows."""
    shape = values.shape[1:]
    if wanted.baseline == "missing":
        if spec.datatype == "BYTES":
            return np.full(shape, None, dtype=object)
        if not spec.datatype.startswith(("FP", "BF")):
            raise CannotExplain(
                "baseline", f"{spec.name!r} is {spec.datatype}, which has no missing value; use 'example'"
            )
        return np.full(shape, np.nan, dtype=values.dtype)
    rows: Sequence[Any] = (signature.example or {}).get(spec.name) or ()
    first = None if not len(rows) else _texts(rows[0]) if spec.datatype == "BYTES" else np.asarray(rows[0])
    if first is None or first.shape != shape:
        raise CannotExplain("baseline", f"there is no example of the shape of {spec.name!r}; use 'missing'")
    return first.astype(values.dtype)


def _texts(nested: Any) -> Array:
    """Make an array of bytes of nested lists of texts; None is missing."""
    texts = np.array(nested, dtype=object)
    flat = np.empty(texts.size, dtype=object)
    flat[:] = [item.encode() if isinstance(item, str) else item for item in texts.ravel()]
    return flat.reshape(texts.shape)
