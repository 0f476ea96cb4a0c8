"""Fan-out of many runs: a bounded number in flight, results in order, errors as values on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.future import Future

CLUSTER_IN_FLIGHT = 2048
LOCAL_IN_FLIGHT = 16


def fan_out(
    start: Callable[[dict[str, Any]], Future[Any]],
    arguments: Iterable[dict[str, Any]],
    *,
    in_flight: int | None,
    return_errors: bool,
) -> list[Any]:
    """Start a run for each of `arguments`, at most `in_flight` at a time, and collect the results in order.

    Raises: the first error in order, after cancelling the runs in flight, unless `return_errors`.
    """
    limit = in_flight or (CLUSTER_IN_FLIGHT if cluster.running() else LOCAL_IN_FLIGHT)
    started: list[Future[Any]] = []
    results: list[Any] = []
    try:
        for each in arguments:
            if len(started) >= limit:
                half = max(1, limit // 2)
                results += _collect(started[:half], return_errors=return_errors)
                started = started[half:]
            started.append(start(each))
        results += _collect(started, return_errors=return_errors)
    except BaseException:
        cluster.wait_until_sent()
        for run in started:
            run.cancel()
        raise
    return results


def _collect(runs: Sequence[Future[Any]], *, return_errors: bool) -> list[Any]:
    if not runs:
        return []  # Ray would be started to fetch nothing
    outcomes = cluster.outcomes(runs)
    if outcomes is not None:
        return [_value(outcome.unwrap, return_errors=return_errors) for outcome in outcomes]
    return [_value(run.result, return_errors=return_errors) for run in runs]


def _value(read: Callable[[], Any], *, return_errors: bool) -> Any:
    if not return_errors:
        return read()
    try:
        return read()
    except Exception as error:  # noqa: BLE001  # the caller wants errors as values
        return error
