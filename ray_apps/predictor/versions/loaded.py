"""One version of a model in memory, checked against its signature and warmed up by its example.

Its requests are counted and timed in the terms of Triton's statistics extension. Source:
https://github.com/triton-inference-server/server, docs/protocol/extension_statistics.md
The log's columns for monitors hold float32 and texts bit for bit, side by side; `InView` says where that is all.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toque.functions.model_formats.table_inputs import select_inputs
from toque.ray_apps.predictor.protocol.datatypes import DTYPES, Array
from toque.ray_apps.predictor.protocol.errors import BadRequest, PredictorError
from toque.ray_apps.predictor.versions.batching import Batcher, Batching
from toque.ray_apps.predictor.versions.missing_features import MissingFeaturesPolicy, predict_abstaining
from toque.registry.errors import RegistryError
from toque.registry.models import ModelVersion, Signature, TensorSpec
from toque.registry.models.versions import serving_tags

INLINE_MS = 2.0
"""A version whose example takes less than this answers on the event loop: a thread would cost more."""
SHORT_MS = 0.2
"""A version on the event loop whose example takes longer than this answers one request in each round of the loop."""
MIN_TRIES, MAX_TRIES, TRIES_MS = 3, 20, 500.0
"""Times that the example of a version is answered before it takes traffic; more than the first, as long as they took less than this."""

MAX_MATRIX_COLUMNS = 4_096

OVERHEAD_BYTES = 128 << 10
"""Memory of a version beside its weights: 83 KiB were measured for a program of a small MLP."""
Shapes = Mapping[str, tuple[int, ...]]


class Scorer(Protocol):
    """A loaded artifact, which scores inputs."""

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        """Score inputs by name to outputs by name. Raises: ValueError for inputs it cannot take."""
        ...


class ArtifactSource(Protocol):
    """The part of the registry that has the files of versions."""

    def download(self, name: str, version: int, *, to: Path) -> Path:
        """Fetch a version's files, their digests verified. Raises: RegistryError."""
        ...


ScorerLoader = Callable[..., Scorer]
"""Folder and signature to a scorer; with `trusted_types` where the policy of the model names some."""


class LoadError(PredictorError):
    """A version cannot be served: its files do not load, or its example is not answered as signed."""

    status = 503


class LoadedVersion:
    """A version that is ready to answer, once it is warmed up.

    record: the registry's. service: the feature service that keys are looked up in, or None. missing: the policy for
    features without a value. batching: bounds of batches, None without batches; batcher: makes them, from the first
    request on. statistics: counts of its requests. float32_matrix: whether it maps one float32 matrix to another, of
    so few columns that all are logged. columns: names of its inputs' columns, in order. classes: see
    `Signature`. in_view: what the log's columns for monitors hold of it. example_ms: the least time that its
    example took. turn: taken by each answer on the event loop that is not short; versions that share it are answered in the order in
    which their requests came.
    """

    def __init__(self, record: ModelVersion, scorer: Scorer) -> None:
        if record.signature is None:
            raise LoadError(f"{record.model}@{record.version}: has no signature; register it with one")
        self.record = record
        self.version = record.version
        self.signature: Signature = record.signature
        tags = serving_tags(record.tags)
        self.service = tags.get("feature_service")
        self.missing = MissingFeaturesPolicy.of(tags, record.signature)
        self.batching = Batching.of(tags, record.signature)
        self.batcher: Batcher | None = None
        self.float32_matrix = _is_float32_matrix(record.signature.inputs) and _is_float32_matrix(
            record.signature.outputs
        )
        self.in_view = InView.of(record.signature)
        self.example_ms = 0.0
        self.statistics = VersionStatistics()
        self._scorer = scorer
        self.turn = asyncio.Lock()
        self.classes = self.signature.classes
        self.columns = tuple(name for spec in self.signature.inputs for name in spec.columns or ())
        self._inputs = [(spec, _dtype(spec), tuple(spec.shape)) for spec in self.signature.inputs]
        self._names = {spec.name for spec in self.signature.inputs}
        self._outputs = {spec.name for spec in self.signature.outputs}

    @property
    def inline(self) -> bool:
        """Whether the version is fast enough to run on the event loop."""
        return self.example_ms < INLINE_MS

    def most_probable(self, outputs: Mapping[str, Array]) -> list[str | None]:
        """Name the most probable class of each row, of a version that has `classes`; None for a row without an answer."""
        probability = next(iter(outputs.values()))
        answered, best = np.isfinite(probability).all(axis=1), probability.argmax(axis=1)
        pairs = zip(best.tolist(), np.asarray(answered).tolist(), strict=True)
        return [self.classes[place] if there else None for place, there in pairs]

    def check(self, inputs: Mapping[str, Array]) -> int:
        """Check inputs against the signature; returns the number of rows.

        Raises: BadRequest naming the input.
        """
        rows = -1
        for spec, dtype, shape in self._inputs:
            array = inputs.get(spec.name)
            if array is None:
                raise BadRequest(f"inputs.{spec.name}: missing; the model takes {sorted(self._names)}")
            if array.dtype != dtype:
                raise BadRequest(f"inputs.{spec.name}.datatype: the model takes {spec.datatype}")
            got = array.shape
            if got != shape and not _fits(got, shape):
                raise BadRequest(f"inputs.{spec.name}.shape: {list(got)} does not fit {spec.shape}")
            if shape and shape[0] == -1:
                if rows not in {-1, got[0]}:
                    raise BadRequest(f"inputs.{spec.name}.shape: {got[0]} rows, other inputs have {rows}")
                rows = got[0]
        if len(inputs) != len(self._inputs):
            unknown = sorted(set(inputs) - self._names)
            raise BadRequest(f"inputs.{unknown[0]}: no such input; the model takes {sorted(self._names)}")
        return rows if rows >= 0 else 1

    def selected(self, inputs: dict[str, Array], sent_for: LoadedVersion | None) -> dict[str, Array]:
        """Make this version's inputs from a request's tensors that fit another version, `sent_for`, which may read more columns.

        Returns: the tensors as they are where both versions read the same. Raises: BadRequest if a column is not among them.
        """
        if sent_for is None or sent_for is self or sent_for.signature.inputs == self.signature.inputs:
            return inputs
        if inputs.keys() == self._names and all(
            inputs[spec.name].dtype == dtype and _fits(inputs[spec.name].shape, shape)
            for spec, dtype, shape in self._inputs
        ):
            return inputs  # it was sent for this version
        sent_for.check(inputs)
        try:
            return select_inputs(inputs, sent_for.signature, self.signature)
        except ValueError as error:
            raise BadRequest(f"inputs: {self} cannot answer: {error}") from error

    def check_outputs(self, names: Iterable[str]) -> None:
        """Check the names of requested outputs. Raises: BadRequest naming the output."""
        for name in names:
            if name not in self._outputs:
                raise BadRequest(f"outputs.{name}: no such output; the model gives {sorted(self._outputs)}")

    def predict(self, inputs: Mapping[str, Array], abstained: Sequence[int] = ()) -> Mapping[str, Array]:
        """Score inputs that were checked against the signature.

        abstained: rows that the model does not see and whose outputs are NaN.
        Raises: BadRequest for values the model refuses (`ValueError` of the scorer).
        """
        if abstained:
            return predict_abstaining(self.predict, inputs, abstained, self.signature)
        try:
            return self._scorer.predict(inputs)
        except ValueError as error:
            raise BadRequest(f"inputs: the model refuses them: {error}") from error

    async def answer(
        self, inputs: Mapping[str, Array], rows: int, abstained: Sequence[int], threads: Executor
    ) -> Mapping[str, Array]:
        """Score checked inputs as `predict`, in a thread if that takes long, in a batch if the tags ask for it."""
        if self.batching is None or abstained or rows >= self.batching.max_rows:
            self.statistics.executions += 1
            if self.example_ms < SHORT_MS:
                return self.predict(inputs, abstained)
            return await self._answer_alone(inputs, threads=threads, abstained=abstained)
        if self.batcher is None:
            self.batcher = Batcher(partial(self._answer_alone, threads=threads), self.batching)
        return await self.batcher.predict(inputs, rows)

    async def answer_large(
        self, inputs: Mapping[str, Array], rows: int, abstained: Sequence[int], threads: Executor
    ) -> Mapping[str, Array]:
        """Score checked inputs as `answer`, but always in a thread and alone: so many rows take long in any model."""
        del rows  # they make no difference here
        self.statistics.executions += 1
        return await asyncio.get_running_loop().run_in_executor(threads, self.predict, inputs, abstained)

    async def _answer_alone(
        self, inputs: Mapping[str, Array], *, threads: Executor, abstained: Sequence[int] = ()
    ) -> Mapping[str, Array]:
        loop = asyncio.get_running_loop()
        if self.inline:
            await self.turn.acquire()
            loop.call_soon(self.turn.release)  # in between, the loop reads requests and accepts connections
            return self.predict(inputs, abstained)
        return await loop.run_in_executor(threads, self.predict, inputs, abstained)

    def warm_up(self) -> None:
        """Answer the recorded example until the answer is warm, and measure it.

        The least time counts: on a busy machine the others tell how long it waited for a CPU, and a version that was placed by
        them in a thread would answer later than its twin for as long as it is loaded.
        Raises: LoadError if an output is missing, or has another type or shape than signed.
        """
        inputs = self.example()
        if inputs is None:
            return
        rows = self.check(inputs)
        took_ms: list[float] = []
        while len(took_ms) < MIN_TRIES or (len(took_ms) < MAX_TRIES and sum(took_ms) < TRIES_MS):
            begin = time.perf_counter()
            outputs = self.predict(inputs)
            took_ms.append((time.perf_counter() - begin) * 1e3)
        self.example_ms = min(took_ms)
        for spec in self.signature.outputs:
            array = outputs.get(spec.name)
            if array is None or array.dtype != DTYPES.get(spec.datatype):
                raise LoadError(f"{self}: output {spec.name!r} of the example is not {spec.datatype}")
            if not _fits(array.shape, tuple(spec.shape)) or (spec.shape[:1] == [-1] and len(array) != rows):
                raise LoadError(f"{self}: output {spec.name!r} has shape {array.shape}, signed {spec.shape}")

    def example(self) -> dict[str, Array] | None:
        """The inputs of the recorded example, or None without one."""
        example = self.signature.example
        if example is None:
            return None
        return {spec.name: _example_array(example[spec.name], dtype) for spec, dtype, _ in self._inputs}

    def __str__(self) -> str:
        return f"{self.record.model}@{self.version}"


def load_version(record: ModelVersion, folder: Path, loader: ScorerLoader) -> LoadedVersion:
    """Load a version's verified files and warm it up.

    Raises: LoadError for every fault: a version that cannot answer must not take the replica down with it.
    """
    try:
        if record.signature is None:
            raise LoadError("it has no signature; register it with one")  # noqa: TRY301 - one way out
        loaded = LoadedVersion(record, loader(folder, record.signature))
        loaded.warm_up()
    except Exception as error:
        raise LoadError(f"{record.model}@{record.version} cannot be served: {error}") from error
    return loaded


def fetch_version(
    record: ModelVersion,
    files: ArtifactSource,
    loader: ScorerLoader,
    *,
    scratch: Path,
    trusted_types: Collection[str] = (),
) -> LoadedVersion:
    """Fetch a version's files into a folder below `scratch`, load it, warm it up and delete the folder.

    trusted_types: classes that a file of skops may name, as the model's policy says.
    Raises: LoadError with the reason.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{record.version}-") as folder:
        try:
            files.download(record.model, record.version, to=Path(folder))
        except (RegistryError, OSError) as error:
            raise LoadError(f"{record.model}@{record.version} cannot be fetched: {error}") from error
        trusting = partial(loader, trusted_types=trusted_types) if trusted_types else loader
        return load_version(record, Path(folder), trusting)


def tried_first(check: Callable[..., None], loader: ScorerLoader) -> ScorerLoader:
    """A loader that has files checked before it reads them. check: raises for files that are not to be read here."""

    def load(folder: Path, signature: Signature, **trust: Collection[str]) -> Scorer:
        check(folder, signature, **trust)
        return loader(folder, signature, **trust)

    return load


def memory_of(record: ModelVersion) -> int:
    """Estimate the bytes of memory that a version takes, from its files."""
    return OVERHEAD_BYTES + sum(blob.size for blob in record.files.values())


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    dtype = DTYPES.get(spec.datatype)
    if dtype is None:
        raise LoadError(
            f"input {spec.name!r}: datatype {spec.datatype} is not served; use one of {list(DTYPES)}"
        )
    return dtype


def _is_float32_matrix(specs: Sequence[TensorSpec]) -> bool:
    if len(specs) != 1 or specs[0].datatype != "FP32":
        return False
    rows, columns = specs[0].shape[:1], specs[0].shape[1:]
    return rows == [-1] and len(columns) == 1 and 0 < columns[0] <= MAX_MATRIX_COLUMNS


def _fits(got: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(got) == len(shape) and all(want in {-1, size} for want, size in zip(shape, got, strict=True))


def _example_array(values: Any, dtype: np.dtype[Any]) -> Array:
    if dtype.kind != "O":
        return np.array(values, dtype=dtype)
    texts = np.array(values, dtype=object)
    flat = [item.encode() if isinstance(item, str) else item for item in texts.ravel()]
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(texts.shape)


class VersionStatistics:
    """Totals of a version's requests since it was loaded here; belongs to one event loop.

    executions: runs of the model for a single request; runs for batches are counted by the batcher.
    """

    __slots__ = (
        "_failed_s",
        "_failures",
        "_infer_s",
        "_inferences",
        "_input_s",
        "_last_ms",
        "_successes",
        "executions",
    )

    def __init__(self) -> None:
        self.executions = 0
        self._inferences = self._successes = self._failures = self._last_ms = 0
        self._input_s = self._infer_s = self._failed_s = 0.0

    def succeed(self, rows: int, *, input_s: float, infer_s: float) -> None:
        """Count a request that was answered.

        rows: in the request. input_s: to check its inputs or look them up. infer_s: to score them, the wait for a
        batch or a thread included.
        """
        self._successes += 1
        self._inferences += rows
        self._input_s += input_s
        self._infer_s += infer_s
        self._last_ms = time.time_ns() // 1_000_000

    def fail(self, duration_s: float) -> None:
        """Count a request that the version did not answer."""
        self._failures += 1
        self._failed_s += duration_s

    def describe(self, model: str, version: int, *, batches: int, waited_s: float) -> dict[str, Any]:
        """The totals as one element of Triton's `model_stats`.

        batches: that the model was run for. waited_s: total time that requests waited for their batch. Encoding
        happens in the endpoint and is not measured: `compute_output` stays 0.
        """
        answered = self._successes
        return {
            "name": model,
            "version": str(version),
            "last_inference": self._last_ms,
            "inference_count": self._inferences,
            "execution_count": self.executions + batches,
            "inference_stats": {
                "success": _duration(self._successes, self._input_s + self._infer_s),
                "fail": _duration(self._failures, self._failed_s),
                "queue": _duration(answered, waited_s),
                "compute_input": _duration(answered, self._input_s),
                "compute_infer": _duration(answered, max(0.0, self._infer_s - waited_s)),
                "compute_output": _duration(answered, 0.0),
            },
        }


def _duration(count: int, total_s: float) -> dict[str, int]:
    return {"count": count, "ns": int(total_s * 1e9)}


@dataclass(frozen=True, slots=True)
class InView:
    """Shapes of a row's tensors by name, if the columns hold them all as they are; None if they do not."""

    inputs: Shapes | None
    outputs: Shapes | None

    @classmethod
    def of(cls, signature: Signature) -> InView:
        """Derive it from a signature: float32, for inputs also texts, and rows of a known shape."""
        return cls(_shapes(signature.inputs, {"FP32", "BYTES"}), _shapes(signature.outputs, {"FP32"}))


NOTHING_IN_VIEW = InView(None, None)


def _shapes(specs: Sequence[TensorSpec], datatypes: Collection[str]) -> Shapes | None:
    for spec in specs:
        if spec.datatype not in datatypes or spec.shape[:1] != [-1] or -1 in spec.shape[1:]:
            return None
    return {spec.name: tuple(spec.shape[1:]) for spec in specs}


__all__ = [
    "NOTHING_IN_VIEW",
    "ArtifactSource",
    "InView",
    "LoadError",
    "LoadedVersion",
    "Scorer",
    "ScorerLoader",
    "VersionStatistics",
    "fetch_version",
    "load_version",
    "memory_of",
    "tried_first",
]
