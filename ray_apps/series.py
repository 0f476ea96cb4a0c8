"""List of every Prometheus series of the platform, as the code declares them; docs/metrics.md shows it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import NamedTuple

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from toque.clusters.telemetry.metrics import PREFIX, machine
from toque.ray_apps.published import FAMILIES

__all__ = ["DECLARED_IN", "Series", "all_series"]

DECLARED_IN = (
    "toque.clusters.redis_clients.series",
    "toque.clusters.telemetry.metrics.keeping",
    "toque.clusters.telemetry.tracing.series",
    "toque.functions.prediction_log.writing.series",
    "toque.functions.runtime.series",
    "toque.functions.training.loop.series",
    "toque.ray_apps.admission.admission",
    "toque.ray_apps.clock_watch",
    "toque.ray_apps.gateway.metrics",
    "toque.ray_apps.gateway.vector_series",
    "toque.ray_apps.generative.series",
    "toque.ray_apps.haproxy_supervisor",
    "toque.ray_apps.predictor.deploy.series",
    "toque.ray_apps.predictor.inference.series",
    "toque.ray_apps.streams.series",
    "toque.ray_apps.ticker",
    "toque.registry.errors",
    "toque.registry.store.series",
)
"""Modules that declare series with prometheus_client."""
UP = "toque_exporter_up"
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


class Series(NamedTuple):
    """One family of series: its name, as in `toque_log_written_records`; kind: counter, gauge or histogram.

    labels: beside `node`, which each has.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str

    @property
    def sample_names(self) -> tuple[str, ...]:
        """Names as queries use them, such as `…_total` of a counter."""
        return tuple(self.name + suffix for suffix in _SUFFIXES[self.kind])


def all_series() -> list[Series]:
    """List every series of the platform by name; imports all that declares some, torch among it."""
    for module in DECLARED_IN:
        import_module(module)
    measured = {name: (family.text, family.labels) for name, family in FAMILIES.items()}
    measured |= machine.FAMILIES | {UP: ("Whether a node's series are in this answer.", ())}
    gauges = [Series(name, "gauge", labels, text) for name, (text, labels) in measured.items()]
    of_kernel = Series(machine.OOM_KILLS[0], "counter", (), machine.OOM_KILLS[1])
    return sorted([*_declared(), *gauges, of_kernel])


def _declared() -> Iterator[Series]:
    """Iterate over the series of prometheus_client's registry that are ours."""
    for metric in list(REGISTRY._collector_to_names):  # noqa: SLF001  # it has no public list
        if isinstance(metric, MetricWrapperBase) and metric._name.startswith(PREFIX):  # noqa: SLF001
            (described,) = metric.describe()
            yield Series(metric._name, described.type, tuple(metric._labelnames), described.documentation)  # noqa: SLF001
