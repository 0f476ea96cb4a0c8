"""Verdict on measurements of a load against its objectives; pure."""

from __future__ import annotations

from dataclasses import dataclass

from toque.load.scenarios.scenario import Objectives
from toque.load.scenarios.sending.windows import Measured

__all__ = ["Finding", "broken", "judge"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Verdict on one objective: what was measured, and whether it held."""

    objective: str
    limit: float
    measured: float
    held: bool


def judge(measured: Measured, objectives: Objectives) -> list[Finding]:
    """Compare the measurements with every objective; without traffic none holds, since NaN never does."""
    at_most = {
        "p50_ms": (objectives.p50_ms, measured.latency_ms(0.5)),
        "p99_ms": (objectives.p99_ms, measured.latency_ms(0.99)),
        "error_share": (objectives.error_share, measured.error_share),
    }
    findings = [
        Finding(name, limit, value, value <= limit)
        for name, (limit, value) in at_most.items()
        if limit is not None
    ]
    least, rate = objectives.requests_per_s, measured.requests_per_s
    if least is not None:
        findings.append(Finding("requests_per_s", least, rate, rate >= least))
    return [Finding("requests", 1, measured.due, measured.due >= 1), *findings]


def broken(measured: Measured, objectives: Objectives) -> Finding | None:
    """Find the first objective that the last seconds of a run do not hold, to end it by.

    The rate is left out: a shape may ask for fewer requests in some seconds than in all.
    """
    checked = objectives.model_copy(update={"requests_per_s": None})
    return next((finding for finding in judge(measured, checked)[1:] if not finding.held), None)
