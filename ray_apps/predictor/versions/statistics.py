"""Counts and durations of one loaded version's requests, in the terms of Triton's statistics extension.

Source: https://github.com/triton-inference-server/server, docs/protocol/extension_statistics.md
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["VersionStatistics"]


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
