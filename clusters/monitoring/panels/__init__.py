"""Lists the panels of each Grafana dashboard: what is shown, in which unit, by which queries of Prometheus."""

from __future__ import annotations

from typing import Final

from toque.clusters.monitoring.panels.costs import COSTS
from toque.clusters.monitoring.panels.features import FEATURES
from toque.clusters.monitoring.panels.models import MODELS
from toque.clusters.monitoring.panels.panel import Dashboard, Panel
from toque.clusters.monitoring.panels.platform import PLATFORM
from toque.clusters.monitoring.panels.rollouts import ROLLOUTS
from toque.clusters.monitoring.panels.training import TRAINING

__all__ = ["DASHBOARDS", "Dashboard", "Panel"]

DASHBOARDS: Final = (PLATFORM, MODELS, ROLLOUTS, FEATURES, TRAINING, COSTS)
