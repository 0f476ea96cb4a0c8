"""Prometheus's text of one node, and of several nodes together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prometheus_client import REGISTRY, Metric, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from toque.clusters.telemetry.metrics.machine import machine_metrics
from toque.clusters.telemetry.metrics.node import collect
from toque.clusters.telemetry.metrics.published import read_published, render
from toque.clusters.telemetry.metrics.values import PREFIX

_NO_DISKS: Mapping[str, Path] = {}


def node_metrics(
    folder: Path | None,
    *,
    node: str,
    disks: Mapping[str, Path] = _NO_DISKS,
    clock: Callable[[], float] = time.time,
) -> list[Metric]:
    """Sum the series of a node's processes, each with the label `node`.

    folder: of the node's files; None: there are none, and this process stands for the node. disks: folders whose disks
    are measured, by the name that they go by.
    """
    if folder is None:
        return _labelled((each for each in REGISTRY.collect() if each.name.startswith(PREFIX)), node)
    metrics, alive = collect(folder, clock=clock)
    published = read_published(folder, {each.name for each in alive}, clock=clock)
    return _labelled([*metrics, *published, *machine_metrics(alive, disks)], node)


def listen(port: int, address: str, *, folder: Path, node: str, disks: Mapping[str, Path]) -> None:
    """Answer a node's series over HTTP to whoever reaches the address, in a thread. Raises: OSError if it is taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(folder, node, disks))
    start_http_server(port, address, registry)


class _Node(Collector):
    """Collector of a node's series, which reads them anew each time."""

    def __init__(self, folder: Path, node: str, disks: Mapping[str, Path]) -> None:
        self._folder, self._node, self._disks = folder, node, disks

    def collect(self) -> Iterable[Metric]:
        """Sum the series of the node's processes."""
        return node_metrics(self._folder, node=self._node, disks=self._disks)


def parse(text: bytes) -> list[Metric]:
    """Read metrics from Prometheus's text format."""
    return list(text_string_to_metric_families(text.decode()))


def together(metrics: Iterable[Metric]) -> bytes:
    """Render the metrics of several nodes in Prometheus's text format, each family once."""
    families: dict[str, Metric] = {}
    for family in metrics:
        if family.name in families:
            families[family.name].samples += family.samples
        else:
            families[family.name] = family
    return render(families[name] for name in sorted(families))


def _labelled(metrics: Iterable[Metric], node: str) -> list[Metric]:
    found = list(metrics)
    for metric in found:
        metric.samples = [each._replace(labels=each.labels | {"node": node}) for each in metric.samples]
    return found
