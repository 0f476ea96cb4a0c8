"""The series of the whole cluster: an exporter on each node reads that node's, the gateway asks them all.

An exporter is an actor without a CPU of its own. Whichever gateway needs one first starts it; it ends with that gateway, and the
next scrape starts another, which reads the same files. Among the series is how far this node's clock is from the store's: leases,
schedules and times of rows go by it. docs/metrics.md shows the list of all series, as the code declares them.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import ray
from prometheus_client import REGISTRY, Gauge, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import GaugeMetricFamily
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from toque.clusters.telemetry.metrics import (
    PREFIX,
    folder_of_process,
    listen,
    machine,
    node_metrics,
    parse,
    render,
    together,
)
from toque.functions.prediction_log import default_wal_root
from toque.functions.runtime.process import enter_process
from toque.ray_apps.published import FAMILIES
from toque.registry import ObjectStore, RegistryError, open_store
from toque.registry.store import clock_skew_s

NAMESPACE = "toque"
ANSWER_S = 4.0
"""Time for the exporters of all nodes to answer, below a scrape's usual timeout of ten seconds."""
RPC_TIMEOUT_S = 2.0
KEEP_EVERY_S = 30.0
UP = "toque_exporter_up"
EVERY_S = 60.0  # between two looks at the clock
_ROUNDED_S = 0.5  # S3 gives times in whole seconds
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
_logger = logging.getLogger(__name__)

SKEW = Gauge(
    "toque_clock_skew_seconds",
    "How far this node's clock is at least from the store's: ahead of it, or behind if negative.",
    multiprocess_mode="livemostrecent",
)
DECLARED_IN = (
    "toque.clusters.redis_clients.patience",
    "toque.clusters.telemetry.metrics.exposition",
    "toque.clusters.telemetry.tracing.active",
    "toque.functions.prediction_log.writing.series",
    "toque.functions.runtime.telemetry",
    "toque.functions.training.loop.distributed",
    "toque.ray_apps.admission.admission",
    "toque.ray_apps.exporter",
    "toque.ray_apps.gateway.metrics",
    "toque.ray_apps.generative.series",
    "toque.ray_apps.serve.haproxy_supervisor",
    "toque.ray_apps.predictor.deploy.pool",
    "toque.ray_apps.predictor.inference.live",
    "toque.ray_apps.streams.follower",
    "toque.ray_apps.ticker",
    "toque.registry.errors",
    "toque.registry.store.requests",
)
"""Modules that declare series with prometheus_client."""


class Exporter:
    """Actor that reads the series of its node. node: address of it, the label of each series."""

    def __init__(self, store_url: str, node: str) -> None:
        enter_process("exporter", store_url=store_url, environment=os.environ)
        self._node, self._disks = node, disks_of(store_url)
        watch_clock(open_store(store_url))
        listen_if_wanted(node, self._disks)

    def text(self) -> bytes:
        """Render the node's series in Prometheus's text format."""
        return render(node_metrics(folder_of_process(), node=self._node, disks=self._disks))


def disks_of(store_url: str) -> dict[str, Path]:
    """Name the folders whose disks a platform may fill: the log's, the store's if it is one, the temporary one."""
    log = default_wal_root(store_url, os.environ.get("TOQUE_WAL") or None)
    found = {"log": _existing(log), "temporary": Path(tempfile.gettempdir())}
    parts = urlsplit(store_url)
    return found | ({"store": _existing(Path(unquote(parts.path)))} if parts.scheme == "file" else {})


def _existing(folder: Path) -> Path:
    """Find the nearest folder above one that is there, which is on the same disk."""
    return next((each for each in (folder, *folder.parents) if each.exists()), folder)


def listen_if_wanted(node: str, disks: Mapping[str, Path]) -> None:
    """Answer this node's series on the port that the profile names, unless another process of the node does."""
    port, folder = os.environ.get("TOQUE_METRICS_PORT"), folder_of_process()
    if port and folder is not None:
        address = os.environ.get("TOQUE_METRICS_BIND") or "127.0.0.1"
        with suppress(OSError):
            listen(int(port), address, folder=folder, node=node, disks=disks)


def nodes_of_cluster() -> dict[str, str]:
    """List the living nodes of this process's cluster: address by id. Raises: what the head's client raises."""
    from toque.clusters.ray_private import GcsClient, gcs_pb2  # late: as Serve's controller does

    head = GcsClient(address=ray.get_runtime_context().gcs_address)
    alive = gcs_pb2.GcsNodeInfo.ALIVE
    found = head.get_all_node_info(timeout=RPC_TIMEOUT_S)
    return {
        node_id.hex(): node.node_manager_address for node_id, node in found.items() if node.state == alive
    }


class ClusterMetrics:
    """Series of all nodes, for one answer. store_url: the platform's, which the exporters need, too.

    nodes: lists the living ones. The own node is read here, others by their exporters. While the head is away the nodes
    known last count.
    """

    def __init__(
        self,
        store_url: str,
        *,
        nodes: Callable[[], Mapping[str, str]] = nodes_of_cluster,
    ) -> None:
        self._store_url, self._nodes, self._disks = store_url, nodes, disks_of(store_url)
        self._known: dict[str, str] = {}
        self._exporters: dict[str, Any] = {}
        self._pending: dict[str, Any] = {}
        self._lock = threading.Lock()

    def text(self) -> bytes:
        """Render the series of all nodes; `toque_exporter_up` says which node did not answer."""
        own_id, own = _own_node()
        asked = self._ask(self._others(own_id, own))
        up = GaugeMetricFamily(UP, "Whether a node's series are in this answer.", labels=["node"])
        up.add_metric([own], 1.0)
        metrics: list[Metric] = [*node_metrics(folder_of_process(), node=own, disks=self._disks)]
        for address, text in asked.items():
            up.add_metric([address], 0.0 if text is None else 1.0)
            metrics += [] if text is None else parse(text)
        return together([*metrics, up])

    def keep(self) -> None:
        """Hold an exporter on each node from now on, in a thread, for those that ask the nodes themselves."""
        threading.Thread(target=self._keep, name="exporters", daemon=True).start()

    def _keep(self) -> None:
        waiting = threading.Event()
        listen_if_wanted(_own_node()[1], self._disks)
        while True:
            with suppress(Exception):
                self._ask(self._others(*_own_node()))
            waiting.wait(KEEP_EVERY_S)

    def _others(self, own_id: str, own: str) -> dict[str, str]:
        """List the living nodes of other addresses, one for each address."""
        if not ray.is_initialized():
            return {}
        try:
            self._known = dict(self._nodes())
        except Exception as error:  # noqa: BLE001  # whatever a client of the head raises while it is away
            _logger.info("the head does not list the nodes, those known before count: %s", error)
        by_address = {address: node for node, address in self._known.items() if node != own_id}
        return {node: address for address, node in by_address.items() if address != own}

    def _ask(self, nodes: Mapping[str, str]) -> dict[str, bytes | None]:
        """Ask the exporters of nodes at once: text by address, None for one that does not answer in time."""
        pending = self._questions(nodes)
        if pending:
            ray.wait(list(pending.values()), num_returns=len(pending), timeout=ANSWER_S)
        answers: dict[str, bytes | None] = dict.fromkeys(nodes.values())
        for node, question in pending.items():
            try:
                answers[nodes[node]] = ray.get(question, timeout=0)
            except GetTimeoutError:  # the next scrape waits for the same answer
                _logger.info("the exporter of %s has not answered in %s s", nodes[node], ANSWER_S)
                continue
            except RayError as error:
                _logger.info("the exporter of %s is started again: %s", nodes[node], error)
                with self._lock:
                    self._exporters.pop(node, None)
            with self._lock:
                self._pending.pop(node, None)
        return answers

    def _questions(self, nodes: Mapping[str, str]) -> dict[str, Any]:
        """Ask the exporters that have no question to answer yet; forget those of nodes that are gone."""
        with self._lock:
            for known in (self._exporters, self._pending):
                for node in set(known) - set(nodes):
                    del known[node]
            for node in set(nodes) - set(self._pending):
                with suppress(RayError, ValueError):
                    self._pending[node] = self._exporter(node, nodes[node]).text.remote()
            return dict(self._pending)

    def _exporter(self, node: str, address: str) -> Any:
        if node not in self._exporters:
            actor: Any = ray.remote(num_cpus=0)(Exporter)
            self._exporters[node] = actor.options(
                name=f"toque-exporter-{node}",
                namespace=NAMESPACE,
                get_if_exists=True,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(self._store_url, address)
        return self._exporters[node]


def _own_node() -> tuple[str, str]:
    """Find the id and address of this process's node; outside of a cluster its name is both."""
    if not ray.is_initialized():
        return "", os.uname().nodename
    from toque.clusters.ray_private import worker  # late: as above

    node: Any = worker._global_node  # noqa: SLF001  # no public name, and none asks the head
    return ray.get_runtime_context().get_node_id(), str(node.node_ip_address)


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


def measure_clock(store: ObjectStore, *, clock: Callable[[], float] = time.time) -> float:
    """Measure the least difference that explains the store's answer, in seconds; negative if this clock is behind.

    A slow answer says little. Raises: Unavailable.
    """
    begun = time.monotonic()
    skew_s = clock_skew_s(store, clock=clock)
    return math.copysign(max(0.0, abs(skew_s) - (time.monotonic() - begun) / 2 - _ROUNDED_S), skew_s)


def watch_clock(store: ObjectStore) -> None:
    """Measure from now on once a minute, in a thread, one request each."""

    def run() -> None:
        waiting = threading.Event()
        while True:
            with suppress(RegistryError):
                SKEW.set(measure_clock(store))
            waiting.wait(EVERY_S)

    threading.Thread(target=run, name="clock", daemon=True).start()


__all__ = [
    "DECLARED_IN",
    "ClusterMetrics",
    "Exporter",
    "Series",
    "all_series",
    "measure_clock",
    "nodes_of_cluster",
    "watch_clock",
]
