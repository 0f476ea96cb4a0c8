"""One panel and one dashboard, and the parts of which their queries are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of a dashboard. unit: one of Grafana's; queries: each with the legend of its lines.

    may_be_empty: without a failure, or without what it is about (a pool, a training), there is nothing to show.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    meaning: str = ""
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    may_be_empty: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard, which answers one question. variables: name of a label, and a series that has it."""

    name: str
    title: str
    question: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    variables: tuple[tuple[str, str], ...] = ()

    def panels(self) -> Iterator[Panel]:
        """Go through the panels of all rows."""
        for _, row in self.rows:
            yield from row


MODEL = '{workspace=~"$workspace",model=~"$model"}'
WORKSPACE = '{workspace=~"$workspace"}'
RATE = "[$__rate_interval]"
OF_MODELS = (("workspace", "toque_predictor_responses_total"), ("model", "toque_predictor_responses_total"))
ARMS = "workspace, model, version, arm"
ARM = "{{model}}@{{version}} {{arm}}"


def rate(series: str, *, by: str, where: str = "") -> str:
    """Growth of a counter in a second, summed by labels. where: labels that must match."""
    return f"sum by ({by}) (rate({series}{where}{RATE}))"


def quantile(q: float, series: str, *, by: str, where: str = "") -> str:
    """Quantile of a histogram over the last minutes, by labels. where: as of `rate`."""
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({series}_bucket{where}{RATE})))"


def share(part: str, whole: str) -> str:
    """Query of the ratio of two queries."""
    return f"({part}) / ({whole})"
