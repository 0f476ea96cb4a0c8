"""Replay of the prediction log: a version answers its logged inputs again, and every output is compared bit for bit.

What was scored at once is scored at once again, since the bits of a sum may depend on how many rows a matrix has and where a row
stands in it. A place in a batch whose row is not in the log, such as that of a caller who left, is filled with a copy of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from operator import attrgetter
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.functions.arguments import Model
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.model_formats.formats import PROGRAM_FILE
from toque.functions.model_formats.load import load_version, torch_threads
from toque.functions.prediction_log.reading.exact import ExactRow, exact_rows, newest_rows
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.function import function
from toque.registry import ModelVersion, Registry
from toque.registry.models import Signature
from toque.registry.models.versions import serving_tags

__all__ = ["Difference", "ReplayResult", "compare", "load_scorer", "replay_predictions"]

Array = npt.NDArray[Any]
_SHOWN = 10
_SHOWN_VALUES = 8


class Scorer(Protocol):
    """A loaded version, as `toque.functions.model_formats.load` gives it."""

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        """Score a batch of rows."""
        ...


class Difference(BaseModel):
    """One output that came out otherwise: what was logged and what the version says now, at most eight values of each."""

    model_config = ConfigDict(frozen=True)

    prediction_id: str
    output: str
    logged: str
    replayed: str
    batch_rows: int


class ReplayResult(BaseModel):
    """Result of a replay of logged rows. rows: read from the log; equal, different: of those that were scored again; first: differences.

    filled: rows whose batch had places that are not in the log. skipped: rows that were not scored again, by reason.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    rows: int = 0
    equal: int = 0
    different: int = 0
    filled: int = 0
    skipped: dict[str, int] = {}
    first: tuple[Difference, ...] = ()


@function(
    http=True,
    timeout_s=3600,
    max_concurrency=1,
    command="monitor replay MODEL",
    view=View(
        facts="model | version | rows read: rows | equal | different | not scored again: skipped as pairs",
        wide="beside rows that are not in the log: filled",
        rows="first",
        columns="prediction: prediction_id | output | rows in its batch: batch_rows | logged | replayed",
        failure="different",
    ),
)
def replay_predictions(
    model: Model,
    version: Annotated[
        Annotated[int, Field(ge=1, le=1_000_000_000)] | str,
        Field(description="Number or alias of a version of the model."),
    ] = "champion",
    since: Annotated[
        AwareDatetime | None,
        Field(
            description=(
                "Begin of the predictions, with an offset from UTC, included; "
                "7 days before the end unless given."
            )
        ),
    ] = None,
    until: Annotated[
        AwareDatetime | None,
        Field(description="End of the predictions, with an offset from UTC, not included; now unless given."),
    ] = None,
    limit: Annotated[
        int, Field(ge=1, le=10_000_000, description="About how many rows are scored, the newest; at least 1.")
    ] = 10_000,
    threads: Annotated[
        int,
        Field(
            ge=1,
            le=1_024,
            description=(
                "Threads of PyTorch, as many as the version's replicas have: "
                "1 unless they reserve two CPUs or more."
            ),
        ),
    ] = 1,
) -> ReplayResult:
    """Score the newest logged inputs of a version again and compare its outputs with the logged ones, bit for bit.

    Raises: NotFound; EvaluationError if the version has no signature.
    """
    used = context()
    registry, end = used.registry(), until or used.clock()
    record = registry.get_version(model, version)
    signature = record.signature
    if signature is None:
        raise EvaluationError(
            f"{record.model}@{record.version} has no signature, so its inputs have no types"
        )
    start = since or end - timedelta(days=7)
    rows = newest_rows(used.store, model, start, end, version=record.version, limit=limit)
    found = exact_rows(used.store, model, signature, rows)
    scorer, running = load_scorer(registry, record, threads=threads)
    abstains = serving_tags(record.tags).get("missing_features") == "abstain"
    with running:
        result = compare(scorer, signature, found, abstains=abstains)
    return result.model_copy(update={"model": model, "version": record.version})


def load_scorer(
    registry: Registry, record: ModelVersion, *, threads: int
) -> tuple[Scorer, AbstractContextManager[None]]:
    """Load a version's files, and make what it runs within, by which torch uses so many threads."""
    within = torch_threads(threads) if PROGRAM_FILE in record.files else nullcontext()
    return load_version(registry, record), within


@dataclass
class _Tally:
    counts: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    first: list[Difference] = field(default_factory=list)


def compare(
    scorer: Scorer, signature: Signature, rows: Iterable[ExactRow], *, abstains: bool = False
) -> ReplayResult:
    """Score logged rows again, batch by batch, and count those whose every output has the same type, shape and bits.

    rows: those of a batch after one another. abstains: whether rows with a missing feature were not shown to the model.
    """
    tally = _Tally()
    for _, together in groupby(rows, attrgetter("batch")):
        for batch in _batches(together):
            _compare_batch(scorer, signature, batch, tally, abstains=abstains)
    return ReplayResult(
        model="",
        version=0,
        **{name: tally.counts[name] for name in ("rows", "equal", "different", "filled")},
        skipped=dict(sorted(tally.skipped.items())),
        first=tuple(tally.first),
    )


def _batches(rows: Iterable[ExactRow]) -> Iterator[list[ExactRow]]:
    """Cut rows of one name into batches in which no two have one place, as two requests of one id and moment would."""
    batch: list[ExactRow] = []
    for row in rows:
        if batch and row.at <= batch[-1].at:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _compare_batch(
    scorer: Scorer, signature: Signature, batch: Sequence[ExactRow], tally: _Tally, *, abstains: bool
) -> None:
    tally.counts["rows"] += len(batch)
    shown: list[ExactRow] = []
    for row in batch:
        reason = _reason_to_skip(row, abstains=abstains)
        if reason is None:
            shown.append(row)
        else:
            tally.skipped[reason] += 1
    if not shown:
        return
    unseen = sum(abstains and row.missing for row in batch)
    places = [row.at for row in shown] if not unseen else list(range(len(shown)))
    size = batch[0].rows - unseen
    try:
        outputs = scorer.predict(_inputs(signature, shown, places, size))
    except ValueError:
        tally.skipped["refused now"] += len(shown)
        return
    tally.counts["filled"] += len(shown) if len(batch) < batch[0].rows else 0
    for place, row in zip(places, shown, strict=True):
        _compare_row(row, outputs, place, tally)


def _reason_to_skip(row: ExactRow, *, abstains: bool) -> str | None:
    if not row.answered:
        return "not answered"
    if row.inputs is None or row.outputs is None:
        return "not kept bit for bit"
    return "abstained" if abstains and row.missing else None


def _inputs(
    signature: Signature, rows: Sequence[ExactRow], places: Sequence[int], size: int
) -> dict[str, Array]:
    """Stack the values of rows at their places, the places between filled with the first row's values."""
    chosen = [0] * size
    for index, place in enumerate(places):
        chosen[place] = index
    found: dict[str, Array] = {}
    for spec in signature.inputs:
        values = [(row.inputs or {})[spec.name] for row in rows]
        is_whole = values[0].ndim == len(spec.shape)  # it belongs to the request, not to a row
        found[spec.name] = values[0] if is_whole else np.stack([values[index] for index in chosen])
    return found


def _compare_row(row: ExactRow, outputs: Mapping[str, Array], place: int, tally: _Tally) -> None:
    differences = []
    for name, logged in (row.outputs or {}).items():
        now = outputs[name]
        value = now[place, ...] if now.ndim == logged.ndim + 1 else now
        if not _same_bits(logged, value):
            differences.append(
                Difference(
                    prediction_id=row.prediction_id,
                    output=name,
                    logged=_shown(logged),
                    replayed=_shown(value),
                    batch_rows=row.rows,
                )
            )
    tally.counts["different" if differences else "equal"] += 1
    tally.first += differences[: _SHOWN - len(tally.first)]


def _same_bits(one: Array, other: Array) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.dtype.kind == "O":
        return bool(one.ravel().tolist() == other.ravel().tolist())
    return bool(one.tobytes() == other.tobytes())


def _shown(array: Array) -> str:
    """Write the first values and, where decimals may not tell two of them apart, their bytes."""
    flat = array.ravel()[:_SHOWN_VALUES]
    written = f"{array.dtype}{list(array.shape)} {flat.tolist()}"
    return f"{written} {flat.tobytes().hex(' ', array.itemsize)}" if array.dtype.kind == "f" else written
