"""Tensor signatures: a model's named inputs and outputs in terms of the Open Inference Protocol."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
_FLOATS = {"FP16", "BF16", "FP32", "FP64"}
_TEXTS = {"BYTES"}


class TensorSpec(BaseModel):
    """Name, type and shape of one tensor.

    shape: one size a dimension, -1 for any. columns: names along the last dimension of a table-like tensor
    `[-1, F]`, by which features become tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=128)
    datatype: Datatype
    shape: list[int]
    columns: list[str] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(size < -1 for size in self.shape):
            raise ValueError(f"tensor {self.name!r}: shape {self.shape} has a size below -1 (-1 means any)")
        if self.columns is not None:
            if not self.shape or self.shape[-1] not in {-1, len(self.columns)}:
                raise ValueError(
                    f"tensor {self.name!r}: {len(self.columns)} columns do not fit the last size of {self.shape}"
                )
            if len(set(self.columns)) != len(self.columns):
                raise ValueError(f"tensor {self.name!r}: a column is named twice in {self.columns}")
        return self

    def check(self, values: Any) -> None:
        """Check that nested lists `values` have this shape and type.

        Raises: ValueError naming the tensor and the first value that does not fit.
        """
        self._check(values, self.shape, "")

    def _check(self, values: Any, shape: list[int], where: str) -> None:
        if not shape:
            if not self._is_value(values):
                raise ValueError(f"tensor {self.name!r}{where}: {values!r} is not {self.datatype}")
            return
        if not isinstance(values, list):
            raise ValueError(f"tensor {self.name!r}{where}: want a list (shape {self.shape}), got {values!r}")  # noqa: TRY004 - pydantic collects ValueErrors
        if shape[0] not in {-1, len(values)}:
            raise ValueError(f"tensor {self.name!r}{where}: has {len(values)} of {shape[0]} values")
        for index, value in enumerate(values):
            self._check(value, shape[1:], f"{where}[{index}]")

    def _is_value(self, value: Any) -> bool:
        if self.datatype == "BOOL":
            return isinstance(value, bool)
        if self.datatype in _TEXTS:
            return isinstance(value, str)
        if self.datatype in _FLOATS:
            return isinstance(value, int | float) and not isinstance(value, bool)
        return isinstance(value, int) and not isinstance(value, bool)


_SEVERAL_LABELS = "label_probability"  # output of a model of which several classes may be true


class Signature(BaseModel):
    """Inputs and outputs of a model, in order.

    kind: `chat` for a language model, which an engine answers and whose tensors are what the prediction log keeps.
    example: input name -> nested lists that fit, used to warm a replica up; NaN is a missing number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    inputs: list[TensorSpec] = Field(min_length=1)
    outputs: list[TensorSpec] = Field(min_length=1)
    example: dict[str, Any] | None = None
    kind: Literal["tensors", "chat"] = Field(default="tensors", exclude_if=lambda kind: kind == "tensors")

    @model_validator(mode="before")
    @classmethod
    def _restore(cls, data: Any) -> Any:
        """Turn text back into NaN and infinities in stored examples, since JSON has no numbers for them."""
        if isinstance(data, dict) and isinstance(data.get("example"), dict):
            specs = [TensorSpec.model_validate(spec) for spec in data.get("inputs", ())]
            floats = {spec.name for spec in specs if spec.datatype in _FLOATS}
            example = {
                name: _numbers(values) if name in floats else values
                for name, values in data["example"].items()
            }
            return {**data, "example": example}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise ValueError(f"an {kind} is named twice: {names}")
        if self.example is not None:
            if set(self.example) != {spec.name for spec in self.inputs}:
                raise ValueError(
                    f"example names {sorted(self.example)}, inputs are {[s.name for s in self.inputs]}"
                )
            for spec in self.inputs:
                spec.check(self.example[spec.name])
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, of which one is true, that the first output has a probability for; empty for other answers."""
        output = self.outputs[0]
        several = len(output.columns or ()) > 1 and output.datatype in _FLOATS
        return tuple(output.columns or ()) if several and output.name != _SEVERAL_LABELS else ()

    def input(self, name: str) -> TensorSpec:
        """Get the input called `name`. Raises: KeyError, with the names there are."""
        for spec in self.inputs:
            if spec.name == name:
                return spec
        raise KeyError(f"no input {name!r}; there are {[spec.name for spec in self.inputs]}")


def _numbers(values: Any) -> Any:
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    if isinstance(values, str) and values in {"NaN", "Infinity", "-Infinity"}:
        return math.nan if values == "NaN" else math.copysign(math.inf, -1 if values[0] == "-" else 1)
    return values
