"""Lists the panels of each Grafana dashboard: what is shown, in which unit, by which queries of Prometheus."""

from __future__ import annotations

from typing import Final

from clusters.monitoring.panels.costs import COSTS
from clusters.monitoring.panels.features import FEATURES
from clusters.monitoring.panels.models import MODELS
from clusters.monitoring.panels.panel import Dashboard, Panel
from clusters.monitoring.panels.platform import PLATFORM
from clusters.monitoring.panels.rollouts import ROLLOUTS
from clusters.monitoring.panels.training import TRAINING

__all__ = ["DASHBOARDS", "Dashboard", "Panel"]

DASHBOARDS: Final = (PLATFORM, MODELS, ROLLOUTS, FEATURES, TRAINING, COSTS)
