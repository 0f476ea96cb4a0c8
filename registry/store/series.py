"""Prometheus series of requests to the object store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from prometheus_client import Counter, Histogram

from toque.registry.errors import AlreadyExists, Forbidden, InvalidInput, NotFound, RegistryError, Unavailable
from toque.registry.store.requests import REQUESTS as OF_PROCESS
from toque.registry.store.requests import Operation

__all__ = ["observe", "observed"]

_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_OUTCOMES: dict[type[BaseException], str] = {
    AlreadyExists: "exists",
    Forbidden: "forbidden",
    InvalidInput: "invalid",
    NotFound: "ok",  # an object that is not there is an answer
    Unavailable: "unavailable",
}
REQUESTS = Counter(
    "toque_store_requests",
    "Requests to the object store, by operation and outcome; those to tables, which deltalake and Arrow make, are not counted.",
    ("operation", "outcome"),
)
SECONDS = Histogram(
    "toque_store_request_seconds",
    "Seconds of a request to the object store, however it ended; without those to tables.",
    ("operation",),
    buckets=_BUCKETS_S,
)


def observe(
    operation: Operation,
    begun: float,
    error: BaseException | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Count a request that ended now. begun: by the clock; error: that it ended with."""
    outcome = "ok" if error is None else _OUTCOMES.get(type(error), "failed")
    REQUESTS.labels(operation, outcome).inc()
    SECONDS.labels(operation).observe(clock() - begun)


@contextmanager
def observed(
    operation: Operation, key: str, translated: AbstractContextManager[None], *, requests: int = 1
) -> Iterator[None]:
    """Count and time one request to a store. translated: raises its errors as the registry's."""
    OF_PROCESS.add(operation, key, requests)
    begun = time.perf_counter()
    try:
        with translated:
            yield
    except RegistryError as error:
        observe(operation, begun, error)
        raise
    observe(operation, begun)
