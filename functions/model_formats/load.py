"""Loading of saved models: arrays by name in, arrays by name out. torch is imported only for a model that needs it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from toque.functions.model_formats.errors import ArtifactRefused, TrainingDataError
from toque.functions.model_formats.flavors import Answer, fitted_output, load_answer
from toque.functions.model_formats.formats import PROGRAM_FILE, format_of
from toque.functions.model_formats.table_inputs import table_inputs, text_inputs
from toque.kernels.hashing import hash_strings
from toque.registry import ModelVersion, Registry
from toque.registry.models import Signature, TensorSpec

if TYPE_CHECKING:
    import torch


DESCRIPTION_FILE = "model.json"
_NUMPY_TYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.int64,  # a program takes the hashes of texts
}


class ScoringModel:
    """Exported program with the names of its tensors. Safe to call from several threads.

    signature: inputs in the order of the program's arguments, outputs in the order of its results.
    """

    _table_inputs = staticmethod(table_inputs)

    def __init__(self, program: torch.nn.Module, signature: Signature) -> None:
        self.signature = signature
        self._program = program
        for spec in (*signature.inputs, *signature.outputs):
            if spec.datatype not in _NUMPY_TYPES:
                raise ArtifactRefused(
                    f"tensor {spec.name!r} has datatype {spec.datatype}: use one of {sorted(_NUMPY_TYPES)}"
                )

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Score a batch of rows.

        inputs: input name -> array that fits the signature. A BYTES input takes texts (None is missing), which are
        hashed here, or an int64 array of their hashes.
        Raises: TrainingDataError naming the input that is absent, unknown or of another shape.
        """
        unknown = set(inputs) - {spec.name for spec in self.signature.inputs}
        if unknown:
            raise TrainingDataError(
                f"no input {sorted(unknown)}: the model takes {[spec.name for spec in self.signature.inputs]}"
            )
        arrays = [self._array(spec, inputs) for spec in self.signature.inputs]
        rows = {array.shape[0] for array in arrays if array.ndim}
        if len(rows) > 1:
            raise TrainingDataError(
                f"inputs disagree on the number of rows: {dict(zip(inputs, [a.shape for a in arrays], strict=True))}"
            )
        if rows == {0}:
            return {spec.name: _empty(spec) for spec in self.signature.outputs}
        return self._run(arrays)

    def predict_table(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Score the rows of a table, by the columns that the signature names. Raises: TrainingDataError."""
        return self.predict(self._table_inputs(table, self.signature))

    def warm_up(self) -> None:
        """Score the recorded example twice, so that lazy set-up is over; without an example do nothing."""
        if self.signature.example is not None:
            for _ in range(2):
                self.predict(self.signature.example)

    def _array(self, spec: TensorSpec, inputs: Mapping[str, Any]) -> npt.NDArray[Any]:
        return _fitting(spec, inputs, _typed)

    def _run(self, arrays: Sequence[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        import torch  # late: a process that only names models does without it

        with torch.inference_mode():
            result = self._program(*map(torch.from_numpy, arrays))
        tensors = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        return {
            spec.name: tensor.numpy() for spec, tensor in zip(self.signature.outputs, tensors, strict=True)
        }


class FlavorModel(ScoringModel):
    """Model of another format behind the same checks; texts stay texts, and outputs get the type in the signature.

    answer: outputs by name for inputs by name, as `toque.functions.model_formats.flavors` reads it from a file.
    """

    _table_inputs = staticmethod(text_inputs)

    def __init__(self, answer: Answer, signature: Signature) -> None:
        self.signature = signature
        self._answer = answer

    def _array(self, spec: TensorSpec, inputs: Mapping[str, Any]) -> npt.NDArray[Any]:
        return _fitting(spec, inputs, _text_or_typed)

    def _run(self, arrays: Sequence[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        outputs = self._answer(
            {spec.name: array for spec, array in zip(self.signature.inputs, arrays, strict=True)}
        )
        absent = [spec.name for spec in self.signature.outputs if spec.name not in outputs]
        if absent:
            raise ArtifactRefused(f"the model gives {sorted(outputs)}, the signature promises {absent}")
        return {spec.name: _signed(spec, outputs[spec.name]) for spec in self.signature.outputs}


def load(
    directory: Path | str, *, signature: Signature | None = None, trusted_types: Collection[str] = ()
) -> ScoringModel:
    """Load the model in `directory`: `model.pt2` or a flavor's file, and `model.json` unless the signature is given.

    trusted_types: classes that a file of skops may name beside those that it knows, as the model's policy lists them.

    Raises: ArtifactRefused if a file is absent, holds more than a model of its kind, or they do not fit together.
    """
    folder = Path(directory)
    found = format_of(folder)
    described = signature or _described_signature(folder)
    if found.file != PROGRAM_FILE:
        return FlavorModel(load_answer(folder, found.file, described, trusted_types), described)
    from toque.functions.model_formats.program import load_program  # late: it needs torch

    return ScoringModel(load_program((folder / PROGRAM_FILE).read_bytes()), described)


def check_example(model: ScoringModel) -> None:
    """Have a model answer the example of its signature, twice as a warm-up does; without an example do nothing.

    Raises: ArtifactRefused if an output has another type or shape than signed; what the model raises.
    """
    example = model.signature.example
    if example is None:
        return
    for _ in range(2):
        outputs = model.predict(example)
    for spec in model.signature.outputs:
        array = outputs[spec.name]
        wanted = np.dtype(object if spec.datatype == "BYTES" else _NUMPY_TYPES[spec.datatype])
        if array.dtype != wanted or not _has_shape(array, spec):
            raise ArtifactRefused(
                f"output {spec.name!r} of the example is {array.dtype} {list(array.shape)}, signed {spec.datatype} {spec.shape}"
            )


def example_arrays(signature: Signature) -> dict[str, npt.NDArray[Any]]:
    """Convert the signature's example to arrays for `ScoringModel.predict`. Raises: ArtifactRefused if there is none."""
    if signature.example is None:
        raise ArtifactRefused("the signature has no example")
    return {spec.name: _typed(spec, signature.example[spec.name]) for spec in signature.inputs}


def _described_signature(folder: Path) -> Signature:
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise ArtifactRefused(f"no {DESCRIPTION_FILE} in {folder}: pass the signature of the version")
    try:
        return Signature.model_validate(json.loads(path.read_text())["signature"])
    except (KeyError, TypeError, json.JSONDecodeError, ValidationError) as error:
        raise ArtifactRefused(f"{path} has no readable signature: {error}") from error


def _fitting(
    spec: TensorSpec, inputs: Mapping[str, Any], typed: Callable[[TensorSpec, Any], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    if spec.name not in inputs:
        raise TrainingDataError(f"input {spec.name!r} is absent; it is {spec.datatype} {spec.shape}")
    array = typed(spec, inputs[spec.name])
    if not _has_shape(array, spec):
        raise TrainingDataError(
            f"input {spec.name!r} has shape {list(array.shape)}, the model takes {spec.shape}"
        )
    return array


def _has_shape(array: npt.NDArray[Any], spec: TensorSpec) -> bool:
    return array.ndim == len(spec.shape) and all(
        want in {-1, got} for want, got in zip(spec.shape, array.shape, strict=True)
    )


def _typed(spec: TensorSpec, values: Any) -> npt.NDArray[Any]:
    array = np.asarray(values) if spec.datatype != "BYTES" else _hashed(values)
    if array.dtype.kind in "OUS":
        raise TrainingDataError(f"input {spec.name!r} holds {array.dtype}, the model takes {spec.datatype}")
    return np.require(array, dtype=_NUMPY_TYPES[spec.datatype], requirements=["C", "W"])


def _text_or_typed(spec: TensorSpec, values: Any) -> npt.NDArray[Any]:
    if spec.datatype != "BYTES":
        return _typed(spec, values)
    array = np.asarray(values, dtype=object)
    flat = [value.decode() if isinstance(value, bytes) else value for value in array.ravel()]
    texts = np.empty(len(flat), dtype=object)
    texts[:] = flat
    return texts.reshape(array.shape)


def _signed(spec: TensorSpec, value: Any) -> npt.NDArray[Any]:
    """Convert an output to the type and shape in the signature; texts become bytes, as the protocol has them."""
    array = fitted_output(spec, value)
    if spec.datatype != "BYTES":
        return np.require(array, dtype=_NUMPY_TYPES[spec.datatype], requirements=["C", "W"])
    flat = [text.encode() if isinstance(text, str) else text for text in array.ravel().tolist()]
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(array.shape)


def _hashed(values: Any) -> npt.NDArray[Any]:
    array = values if isinstance(values, np.ndarray) else np.asarray(values, dtype=object)
    return array if array.dtype == np.int64 else hash_strings(array.astype(object))


def _empty(spec: TensorSpec) -> npt.NDArray[Any]:
    shape = (0, *(max(size, 0) for size in spec.shape[1:]))
    return np.empty(shape, dtype=_NUMPY_TYPES[spec.datatype])


def load_version(registry: Registry, version: ModelVersion) -> ScoringModel:
    """Download a version, verify and load it. Raises: ArtifactRefused; what the registry raises for damaged files."""
    trusted = registry.get_model(version.model).policy.trusted_types
    with tempfile.TemporaryDirectory(prefix="toque-model-") as folder:
        registry.download(version.model, version.version, to=folder)
        return load(folder, signature=version.signature, trusted_types=trusted)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside, so that it fits the CPUs that were asked for."""
    import torch  # late: a process that only knows which functions there are does without it

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


__all__ = [
    "DESCRIPTION_FILE",
    "PROGRAM_FILE",
    "FlavorModel",
    "ScoringModel",
    "check_example",
    "example_arrays",
    "load",
    "load_version",
    "torch_threads",
]
