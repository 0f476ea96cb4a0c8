"""Prometheus's text of one node, and of several nodes together."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client import REGISTRY, Metric, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from clusters.telemetry.metrics.node import collect
from clusters.telemetry.metrics.processes import Member
from clusters.telemetry.metrics.published import read_published, render
from clusters.telemetry.metrics.values import PREFIX

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def node_metrics(folder: Path | None, *, node: str, clock: Callable[[], float] = time.time) -> list[Metric]:
    """Sum the series of a node's processes, each with the label `node`.

    folder: of the node's files; None: there are none, and this process stands for the node.
    """
    if folder is None:
        return _labelled((each for each in REGISTRY.collect() if each.name.startswith(PREFIX)), node)
    metrics, alive = collect(folder, clock=clock)
    published = read_published(folder, {each.name for each in alive}, clock=clock)
    return _labelled([*metrics, *published, *_processes(alive)], node)


def listen(port: int, address: str, *, folder: Path, node: str) -> None:
    """Answer a node's series over HTTP to whoever reaches the address, in a thread. Raises: OSError if it is taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(folder, node))
    start_http_server(port, address, registry)


class _Node(Collector):
    """Collector of a node's series, which reads them anew each time."""

    def __init__(self, folder: Path, node: str) -> None:
        self._folder, self._node = folder, node

    def collect(self) -> Iterable[Metric]:
        """Sum the series of the node's processes."""
        return node_metrics(self._folder, node=self._node)


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


def _processes(alive: Iterable[Member]) -> list[Metric]:
    """Count the living processes of a node by role, with what they take of it."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for each in alive:
        with suppress(OSError, IndexError, ValueError):  # it ends just now
            memory = int((_PROC / str(each.pid) / "statm").read_text().split()[1]) * _PAGE_BYTES
            open_files = sum(1 for _ in (_PROC / str(each.pid) / "fd").iterdir())
            for place, value in enumerate((1.0, float(memory), float(open_files))):
                sums[each.role][place] += value
    names = (
        ("toque_processes", "Processes that live, by role."),
        ("toque_process_resident_bytes", "Resident memory of the processes of a role."),
        ("toque_process_open_files", "Open file descriptors of the processes of a role."),
    )
    found: list[Metric] = []
    for place, (name, text) in enumerate(names):
        family = GaugeMetricFamily(name, text, labels=["role"])
        for role, values in sorted(sums.items()):
            family.add_metric([role], values[place])
        found.append(family)
    return found
