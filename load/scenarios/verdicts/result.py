"""Result of a load as it is kept: what was sent, and the histograms of every window of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from toque.load.scenarios.scenario import Scenario
from toque.load.scenarios.sending.windows import Measured, Window
from toque.load.scenarios.verdicts.slo import Finding, judge

__all__ = ["LoadRun"]


class LoadRun(BaseModel):
    """Run of a scenario with its measurements. windows: `Window.document` of each `window_s` seconds after the warm-up.

    aborted: the objective that ended it early, or empty. client_busy: share of a core that the busiest native client took; near 1
    the client is what was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario_name: str
    scenario: Scenario
    url: str
    model: str
    started_at: datetime
    window_s: int
    windows: tuple[dict[str, Any], ...]
    problems: dict[str, int] = {}
    aborted: str = ""
    client_busy: float | None = None

    def each_window(self) -> list[Window]:
        """List its windows in order."""
        return [Window.of(document) for document in self.windows]

    def measured(self) -> Measured:
        """Sum up the whole run."""
        windows = self.each_window()
        return Measured.total(windows, seconds=len(windows) * self.window_s)

    def findings(self) -> list[Finding]:
        """Judge the run by its scenario's objectives."""
        return judge(self.measured(), self.scenario.objectives)

    @property
    def held(self) -> bool:
        """Whether every objective held and nothing ended it early."""
        return not self.aborted and all(finding.held for finding in self.findings())

    def metrics(self) -> dict[str, float]:
        """Figures of the run by name, those that are finite."""
        found = self.measured()
        figures = {
            "due": found.due, "answered": found.answered, "failed": found.failed, "dropped": found.dropped,
            "error_share": found.error_share, "requests_per_s": found.requests_per_s,
            "p50_ms": found.latency_ms(0.5), "p90_ms": found.latency_ms(0.9), "p99_ms": found.latency_ms(0.99),
        }  # fmt: skip
        return {name: float(value) for name, value in figures.items() if abs(value) < float("inf")}
