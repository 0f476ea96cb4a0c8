"""Requests by named values: online features of entity keys and request-time values, laid out as the model's tensors.

Rows may use the names of the model's columns, of its feature service, and of the service's sources.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import Any, Protocol

import numpy as np

from toque.featurestore import BatchSource, FeatureService, FeatureView
from toque.featurestore.definitions import DType
from toque.featurestore.errors import InvalidRows
from toque.featurestore.offline.retrieval import plan_retrieval
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import BadRequest, NotReady, unknown_name
from toque.ray_apps.predictor.versions.loaded import LoadedVersion
from toque.registry.models import TensorSpec

MAX_ROWS = 4_096
Value = str | float | int | bool | None
_SERVICE_HELD_S = 30.0


class OnlineColumns(Protocol):
    """Online features of several rows, by column."""

    def columns(self, names: Sequence[str] | None = None) -> Mapping[str, Sequence[Any]]:
        """Values by feature name, None where missing or expired, in the order of the rows."""
        ...


class FeatureSource(Protocol):
    """The part of the feature store that serving needs."""

    def get_feature_service(self, name: str) -> Any:
        """Read a feature service's definition from the store."""
        ...

    async def get_online_features_async(
        self, features: Any, entity_rows: Any, now: datetime | None = None
    ) -> OnlineColumns:
        """Fetch the rows' features as of `now`, in one round trip."""
        ...


@dataclass(frozen=True, slots=True)
class KeyedRows:
    """The rows of a request by name: entity keys, request-time values, and the time of a replay.

    entities: None where the values alone are given, so that nothing is looked up.
    """

    entities: Sequence[Mapping[str, Any]] | None
    request: Sequence[Mapping[str, Value]] | None = None
    at: datetime | None = None

    @property
    def count(self) -> int:
        """Count the rows that are asked about."""
        return len(self.entities or self.request or ())

    def merged(self) -> Sequence[Mapping[str, Any]]:
        """Keys and request-time values merged by row, since on-demand views need both."""
        if self.request is None or self.entities is None:
            return self.entities or self.request or ()
        return [{**values, **keys} for keys, values in zip(self.entities, self.request, strict=True)]


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """A request's inputs as the model's tensors, with the values that were missing.

    missing: per row the columns without a value. abstained: the rows that are therefore not predicted. rows: that they were
    made of, by the names here.
    """

    inputs: dict[str, Array]
    missing: list[list[str]]
    abstained: Sequence[int] = ()
    rows: KeyedRows | None = None


def parse_keys(parameters: Mapping[str, Any], *, replay: bool) -> KeyedRows | None:
    """Parse the rows by name in a request's parameters; None without `entities` and `request`.

    replay: whether `at` is honoured; it is refused on a platform that runs on the wall clock.
    Raises: BadRequest naming the parameter.
    """
    entities, request = parameters.get("entities"), parameters.get("request")
    if entities is None and request is None and "entities" not in parameters:
        return None
    if entities is not None or request is None:
        entities = _rows(entities, "entities", of=(str, int))
    if request is not None:
        request = _rows(request, "request", of=(str, int, float, bool, type(None)))
        if entities is not None and len(request) != len(entities):
            raise BadRequest(f"parameters.request: {len(request)} rows for {len(entities)} entities")
    return KeyedRows(entities, request, _replay_time(parameters.get("at"), replay=replay))


def _rows(value: Any, name: str, *, of: tuple[type, ...]) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_ROWS:
        raise BadRequest(f"parameters.{name}: expected 1 to {MAX_ROWS} rows (a list of objects)")
    for i, row in enumerate(value):
        if not isinstance(row, dict):
            raise BadRequest(f"parameters.{name}[{i}]: expected an object, got {type(row).__name__}")
        for key, item in row.items():
            if not isinstance(item, of) or (isinstance(item, bool) and bool not in of):
                raise BadRequest(f"parameters.{name}[{i}].{key}: cannot take {item!r:.80}")
            if isinstance(item, int) and not -(2**63) <= item < 2**63:
                raise BadRequest(f"parameters.{name}[{i}].{key}: {item} does not fit 64 bits")
    return value


def _replay_time(value: Any, *, replay: bool) -> datetime | None:
    if value is None:
        return None
    if not replay:
        raise BadRequest("parameters.at: only a platform on the replay clock takes a time; leave it out")
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"parameters.at: not an ISO time: {error}") from None
    if at.tzinfo is None:
        raise BadRequest(f"parameters.at: {value!r} has no zone; append +00:00")
    return at


class ServiceRefresher:
    """Reads the definitions of feature services again every half minute, so that changes are noticed."""

    def __init__(self, source: FeatureSource | None) -> None:
        self._source = source
        self._seen: dict[str, float] = {}
        self._services: dict[str, RequestNames] = {}
        self._versions: dict[tuple[str | None, int], RequestNames] = {}

    async def names(self, version: LoadedVersion) -> RequestNames:
        """Names that a request's rows may use for a version; its service's definition is read again if that is due.

        Raises: NotReady as `refresh`.
        """
        service = None if self._source is None else version.service
        if service is not None:
            await self.refresh(service)
        place = service, version.version
        names = self._versions.get(place)
        if names is None:
            service_names = RequestNames() if service is None else self._services[service]
            names = self._versions[place] = service_names.with_columns(version.columns)
        return names

    async def refresh(self, name: str) -> None:
        """Read a service's definition again if that is due; the old one serves while the store does not answer.

        Raises: NotReady if the definition was never read and cannot be.
        """
        source, there = self._source, name in self._services
        if source is None or (there and time.monotonic() - self._seen[name] < _SERVICE_HELD_S):
            return
        self._seen[name] = time.monotonic()  # first, so that other callers do not read it too
        try:
            loop = asyncio.get_running_loop()
            definition = await loop.run_in_executor(None, source.get_feature_service, name)
            self._services[name] = RequestNames.of(definition)
            self._versions.clear()
        except Exception as error:
            if not there:
                raise NotReady(f"feature service {name!r} cannot be read: {error}") from error


async def look_up(
    source: FeatureSource | None,
    services: ServiceRefresher,
    version: LoadedVersion,
    rows: KeyedRows,
    others: Sequence[LoadedVersion] | None = None,
) -> ModelInputs:
    """Fetch a version's features for keyed rows in one round trip, and lay them out as tensors.

    others: versions that take the model's traffic too, whose names the rows may have as well; None: any name may be there.
    Raises: BadRequest for keys that do not fit, and for names that no version knows; NotReady if the online store does not
    answer and the version's policy for missing features needs it.
    """
    if version.service is None and rows.entities is not None:
        raise BadRequest(
            f"parameters.entities: {version} has no feature service; send its columns as parameters.request, or tensors"
        )
    values: Mapping[str, Sequence[Any]] = {}
    truths: Collection[str] | None = None
    try:
        names = await services.names(version)
        truths = names.truths
        rows = _named(rows, names)
        if others is not None:
            await _refuse_unknown(rows, names, services, version, others)
        if rows.entities is not None and version.service is not None and source is not None:
            values = await _fetch(source, version.service, rows)
    except NotReady:
        if not version.missing.needs_no_store:
            raise
    return assemble(version, version.columns, values, rows, truths)


def _named(rows: KeyedRows, names: RequestNames) -> KeyedRows:
    """Call the values by their names here."""
    if not names.renamed:
        return rows
    parts = {
        part: [names.translated(row, f"parameters.{part}[{i}]") for i, row in enumerate(given)]
        for part, given in (("entities", rows.entities), ("request", rows.request))
        if given is not None
    }
    return replace(rows, entities=parts.get("entities"), request=parts.get("request"))


async def _refuse_unknown(
    rows: KeyedRows,
    names: RequestNames,
    services: ServiceRefresher,
    version: LoadedVersion,
    others: Sequence[LoadedVersion],
) -> None:
    """Refuse a name that no version knows, and without keys those of which features would be computed. Raises: BadRequest."""
    own = set(version.columns) if rows.entities is None else names.known
    for part, given in (("entities", rows.entities), ("request", rows.request)):
        for i, row in enumerate(given or ()):
            for name in row.keys() - own:
                where = f"parameters.{part}[{i}]"
                if name in names.known:
                    raise BadRequest(
                        f"{where}.{name}: features are looked up or computed by it; give the keys as parameters.entities"
                    )
                versions = [await services.names(other) for other in others]
                if not any(name in version.known or name in version.renamed for version in versions):
                    raise names.refuse(name, where)


async def _fetch(source: FeatureSource, service: str, rows: KeyedRows) -> Mapping[str, Sequence[Any]]:
    try:
        found = await source.get_online_features_async(service, rows.merged(), rows.at)
        return found.columns()
    except InvalidRows as error:
        raise BadRequest(f"parameters.entities: {error}") from error
    except Exception as error:
        raise NotReady(f"the online store does not answer: {error}") from error


def assemble(
    version: LoadedVersion,
    columns: Sequence[str],
    values: Mapping[str, Sequence[Any]],
    rows: KeyedRows,
    truths: Collection[str] | None,
) -> ModelInputs:
    """Lay feature values and request-time values out as the model's tensors; request-time values win.

    truths: columns of numbers in which true and false stand for 1 and 0; None: in all, as nobody knows their types.
    Raises: BadRequest if the model rejects missing values, or for a value that its tensor does not hold.
    """
    count = rows.count
    table: dict[str, list[Any]] = {
        name: list(values[name]) if name in values else [None] * count for name in columns
    }
    for i, row in enumerate(rows.merged()):  # an entity key may be a feature too: the carrier, the route
        for name, value in row.items():
            if name in table:
                table[name][i] = value
    missing = [[name for name in columns if table[name][i] is None] for i in range(count)]
    policy = version.missing
    if policy.action == "reject" and any(missing):
        first = next(i for i, names in enumerate(missing) if names)
        raise BadRequest(
            f"parameters.{'request' if rows.entities is None else 'entities'}[{first}]: no value for {missing[first]}, which {version} requires"
        )
    for name, value in policy.defaults.items():
        table[name] = [value if found is None else found for found in table[name]]
    inputs = {spec.name: _tensor(spec, table, rows, truths) for spec in version.signature.inputs}
    abstained = [i for i, names in enumerate(missing) if names] if policy.action == "abstain" else ()
    return ModelInputs(inputs, missing, abstained, rows)


def _tensor(
    spec: TensorSpec, table: Mapping[str, Sequence[Any]], rows: KeyedRows, truths: Collection[str] | None
) -> Array:
    count = rows.count
    if spec.columns is None:
        raise BadRequest(f"inputs.{spec.name}: has no named columns, so keys cannot fill it; send tensors")
    if spec.datatype == "BYTES":
        out = np.empty((count, len(spec.columns)), dtype=object)
        for j, name in enumerate(spec.columns):
            out[:, j] = [_text(value) for value in table[name]]
        return out
    if spec.datatype not in {"FP32", "FP64"}:
        raise BadRequest(f"inputs.{spec.name}: {spec.datatype} cannot hold missing values; send tensors")
    dtype = np.float64 if spec.datatype == "FP64" else np.float32
    values = [table[name] for name in spec.columns]
    kinds = set(map(type, chain.from_iterable(values)))
    if str in kinds:  # numpy would read a number out of it
        name, text = next(
            (name, value) for name in spec.columns for value in table[name] if isinstance(value, str)
        )
        raise BadRequest(f"parameters.request.{name}: needs a number, got {text!r:.80}")
    if truths is not None and bool in kinds:
        for where, name, value in _sent(spec, rows):
            if isinstance(value, bool) and name not in truths:
                raise BadRequest(f"{where}: needs a number, got {value}; send 1 for true and 0 for false")
    with np.errstate(over="raise"):
        try:
            array = np.array(values, dtype)  # None becomes NaN
        except FloatingPointError:
            array = _overflowing(spec, values, rows)
    return array.reshape(len(values), count).T


def _overflowing(spec: TensorSpec, values: Sequence[Sequence[Any]], rows: KeyedRows) -> Array:
    """Make float32 of numbers of which some are beyond it; one that is stored is infinite, as in a training set.

    Raises: BadRequest if the request sent one.
    """
    with np.errstate(over="ignore"):
        for where, _, value in _sent(spec, rows):
            if isinstance(value, float) and np.isinf(np.float32(value)):
                raise BadRequest(
                    f"{where}: {value!r} is out of the range of FP32; send null or a number that it holds"
                )
        return np.array(values, np.float32)


def _sent(spec: TensorSpec, rows: KeyedRows) -> Iterator[tuple[str, str, Any]]:
    """Iterate over the values that a request sent for a tensor: where they stand, their names and themselves."""
    for i, row in enumerate(rows.request or ()):
        for name in spec.columns or ():
            if name in row:
                yield f"parameters.request[{i}].{name}", name, row[name]


def _text(value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return b"true" if value else b"false"  # as in a training set
    return value.encode() if isinstance(value, str) else str(value).encode()


@dataclass(frozen=True, slots=True)
class RequestNames:
    """Names of a version's request rows.

    known: the model's columns, the join keys of its feature service, and what the service's on-demand views take from the request;
    renamed: a name at a source, such as a file's own, to that of the column or key here. truths: columns that are declared as `Bool`.
    """

    known: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    truths: frozenset[str] = frozenset()

    @classmethod
    def of(cls, service: FeatureService) -> RequestNames:
        """Find the names of a feature service."""
        plan = plan_retrieval(service)
        renamed: dict[str, str] = {}
        for lookup in plan.lookups:
            view = lookup.view
            if not isinstance(view, FeatureView) or not isinstance(view.events, BatchSource):
                continue
            here = {key.name: column for key, column in zip(view.join_keys, lookup.key_columns, strict=True)}
            if view.source is None:  # else its columns are made of the source's, and are none of them
                here |= {column.name: name for name, column in lookup.columns.items()}
            there = view.events.columns
            renamed |= {there[name]: column for name, column in here.items() if name in there}
        keys = [column for lookup in plan.lookups for column in lookup.key_columns]
        known = frozenset([*plan.columns, *keys, *(each.name for each in plan.request)])
        fields = [item for each in (*plan.lookups, *plan.computed) for item in each.columns.items()]
        truths = frozenset(name for name, column in fields if column.dtype is DType.BOOL)
        return cls(known, {old: new for old, new in renamed.items() if old not in known}, truths)

    def with_columns(self, columns: Collection[str]) -> RequestNames:
        """Names of a version of the service that has these columns; any may come with the request."""
        return replace(self, known=self.known.union(columns))

    def translated(self, row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """Rename what a row calls by its source's names. Raises: BadRequest for a value that is given by both names."""
        if not self.renamed or self.renamed.keys().isdisjoint(row):
            return row
        made: dict[str, Any] = {}
        for name, value in row.items():
            here = self.renamed.get(name, name)
            if here in made or (here != name and here in row):
                raise BadRequest(f"{where}.{name}: the column {here!r} is given twice; leave one out")
            made[here] = value
        return made

    def refuse(self, name: str, where: str) -> BadRequest:
        """Make the error for a name that stands for nothing, with the nearest that does."""
        heading = "the model and its feature service know"
        return unknown_name(where, name, {*self.known, *self.renamed}, heading=heading)


__all__ = [
    "FeatureSource",
    "KeyedRows",
    "ModelInputs",
    "OnlineColumns",
    "RequestNames",
    "ServiceRefresher",
    "assemble",
    "look_up",
    "parse_keys",
]
