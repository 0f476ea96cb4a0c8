"""Executor of durable invocations: reads the queues, starts workers, admits experiments, and notices workers that died."""

from toque.functions.runtime.durable.executor.executor import Executor
from toque.functions.runtime.durable.executor.launcher import THREADS, run_in_worker

__all__ = ["THREADS", "Executor"]

_run_attempt = run_in_worker  # by this name a ticker of the release before sends it to workers on Ray
