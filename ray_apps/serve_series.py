"""Prometheus gauges of the cluster's Serve applications, by Serve's public status.

While the head is away, a question to Serve's controller, which runs there, may wait for as long as the head is away; so it is
asked in a thread of its own, at most one at a time, and an answer that is late counts as none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from toque.ray_apps.published import Families

__all__ = ["ServeSeries"]

_ILL = frozenset({"UNHEALTHY", "DEPLOY_FAILED"})
_PENDING = frozenset({"STARTING", "RECOVERING", "PENDING_MIGRATION"})


class ServeSeries:
    """Measures the applications of Serve.

    applications: asks for their statuses by name, by default the cluster's. patience_s: how long an answer may take.
    """

    def __init__(
        self, applications: Callable[[], Mapping[str, Any]] | None = None, *, patience_s: float = 5.0
    ) -> None:
        self._ask = applications or _of_the_cluster
        self._patience_s = patience_s
        self._question: _Question | None = None

    def measure(self, families: Families) -> None:
        """Measure whether the head answers, and what its controller says of the applications. Raises: TimeoutError; what asking raises."""
        if self._question is None or not self._question.thread.is_alive():
            self._question = _Question(self._ask)
        try:
            applications = self._question.answer(self._patience_s)
        except Exception:
            families.add("toque_head_up", 0.0)
            raise
        families.add("toque_head_up", 1.0)
        for name, application in applications.items():
            families.add("toque_application_healthy", float(application.status not in _ILL), name)
            for deployment, overview in application.deployments.items():
                pending = sum(count for state, count in overview.replica_states.items() if state in _PENDING)
                families.add("toque_replicas_pending", pending, name, deployment)


class _Question:
    """One question to Serve's controller, asked in a thread that no exit of the process waits for."""

    def __init__(self, ask: Callable[[], Mapping[str, Any]]) -> None:
        self._applications: Mapping[str, Any] = {}
        self._error: Exception | None = None
        self.thread = threading.Thread(target=self._run, args=(ask,), daemon=True, name="serve-status")
        self.thread.start()

    def answer(self, patience_s: float) -> Mapping[str, Any]:
        """Wait for the controller's answer. Raises: TimeoutError if it is late; what the question raised."""
        self.thread.join(patience_s)
        if self.thread.is_alive():
            raise TimeoutError(f"Serve's controller does not answer within {patience_s:g} s")
        if self._error is not None:
            raise self._error
        return self._applications

    def _run(self, ask: Callable[[], Mapping[str, Any]]) -> None:
        try:
            self._applications = ask()
        except Exception as error:  # noqa: BLE001  # raised in `answer`
            self._error = error


def _of_the_cluster() -> Mapping[str, Any]:
    from ray import serve  # late: seconds, and only a cluster has it

    return serve.status().applications
