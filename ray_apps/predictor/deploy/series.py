"""Wiring of an endpoint's and a pool's counts to their Prometheus series."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge

from toque.clusters.telemetry.metrics import Rising, flush_regularly
from toque.ray_apps.predictor.deploy.pool import Pool
from toque.ray_apps.predictor.http.endpoint import Endpoint
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference import series
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.series import ModelSeries
from toque.ray_apps.predictor.versions.batching import Batcher

__all__ = ["PoolSeries", "connect", "connect_door"]

_POOL = ("workspace",)
LOADS = Counter("toque_pool_loads", "Models that a request or a new version had loaded into a pool.", _POOL)
EVICTIONS = Counter("toque_pool_evictions", "Models that left a pool to make room.", _POOL)
WAITING = Gauge(
    "toque_pool_waiting", "Requests that wait for their model.", _POOL, multiprocess_mode="livesum"
)
BYTES = Gauge(
    "toque_pool_bytes", "Estimated memory of the models in a pool.", _POOL, multiprocess_mode="livesum"
)


def connect(endpoint: ModelEndpoint) -> None:
    """Have the series of a model follow what its predictor counts."""
    predictor = endpoint.predictor
    found = predictor.series
    if found is None:
        return
    connect_door(endpoint, found)
    shadows, recorder, engine = predictor.shadows, predictor.recorder, predictor.engine
    for outcome in ("scored", "failed", "dropped"):
        found.follow(series.SHADOWS, _reader(shadows, outcome), outcome)
    for outcome in ("written", "dropped", "failures", "failures_dropped"):
        found.follow(series.LOGGED, _reader(recorder, outcome), outcome)
    found.follow(series.LOADS, _reader(engine, "loads"), "loaded")
    found.follow(series.LOADS, _reader(engine, "failed_loads"), "failed")
    found.follow(series.LOAD_SECONDS, _reader(engine, "load_s"))
    found.show(series.LOADED, lambda: len(engine.loaded))
    found.follow(series.BATCHES, lambda: sum(each.batches for each in _batchers(predictor)))
    found.follow(series.BATCH_ROWS, lambda: sum(each.rows for each in _batchers(predictor)))
    found.follow(series.BATCH_WAIT, lambda: sum(each.waited_s for each in _batchers(predictor)))
    found.show(series.QUEUED, lambda: sum(each.waiting for each in _batchers(predictor)))


def connect_door(endpoint: Endpoint, found: ModelSeries | None) -> None:
    """Have series, if there are any, follow the responses of an endpoint that Serve calls."""
    if found is None:
        return
    found.responded(endpoint.statuses)
    found.follow(series.INDIRECT, _reader(endpoint, "indirect"))
    found.show(series.IN_FLIGHT, _reader(endpoint, "in_flight"))


class PoolSeries:
    """Series of a pool of models. workspace: whose models it holds."""

    def __init__(self, pool: Pool, workspace: str) -> None:
        self._pool = pool
        self._loads, self._evictions = Rising(LOADS.labels(workspace)), Rising(EVICTIONS.labels(workspace))
        self._waiting, self._bytes = WAITING.labels(workspace), BYTES.labels(workspace)
        flush_regularly(self)

    def flush(self) -> None:
        """Move the pool's counts to the series."""
        self._loads.to(self._pool.loads)
        self._evictions.to(self._pool.evictions)
        self._waiting.set(self._pool.waiting)
        self._bytes.set(self._pool.size_bytes)


def _batchers(predictor: Predictor) -> list[Batcher]:
    """List what makes batches for the loaded versions of a model."""
    versions = [predictor.engine.find(number) for number in predictor.engine.loaded]
    return [each.batcher for each in versions if each is not None and each.batcher is not None]


def _reader(owner: object, name: str) -> Callable[[], float]:
    return lambda: float(getattr(owner, name))
