"""Gauges that one process measures for all, such as the age of a feature, replaced as a whole each time.

Series in `values` cannot be taken back, and a measured view or model may be gone the next time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from toque.clusters.telemetry.metrics.processes import PUBLISHED
from toque.clusters.telemetry.metrics.values import path_of_process

STALE_S = 180.0
"""Age from which what was published says nothing about now."""


class _Given(Collector):
    """Collector of metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics it was made with."""
        return self._metrics


def render(metrics: Iterable[Metric]) -> bytes:
    """Render metrics in Prometheus's text format, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(metrics))
    return generate_latest(registry)


def publish(name: str, metrics: Iterable[Metric]) -> None:
    """Replace what this process published under a name. Raises: OSError, as for a full disk.

    A process that writes its series to no files publishes nothing.
    """
    path = path_of_process(f"{name}_", PUBLISHED)
    if path is not None:
        temporary = path.with_suffix(".new")
        temporary.write_bytes(render(metrics))
        temporary.replace(path)


def withdraw(name: str) -> None:
    """Take back what this process published under a name."""
    path = path_of_process(f"{name}_", PUBLISHED)
    if path is not None:
        path.unlink(missing_ok=True)


def read_published(folder: Path, alive: set[str], *, clock: Callable[[], float] = time.time) -> list[Metric]:
    """Read what living processes of a node published lately, of each name the newest. alive: their names."""
    newest: dict[str, tuple[float, Path]] = {}
    for path in folder.glob(f"*{PUBLISHED}"):
        name, _, process = path.stem.rpartition("_")
        with suppress(FileNotFoundError):
            written = path.stat().st_mtime
            if process in alive and clock() - written < STALE_S:
                newest[name] = max(newest.get(name, (written, path)), (written, path))
    found: list[Metric] = []
    for _, path in newest.values():
        with suppress(FileNotFoundError):
            found += text_string_to_metric_families(path.read_text())
    return found
