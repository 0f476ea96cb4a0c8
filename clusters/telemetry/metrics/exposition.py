"""All series of a node, the sums over its processes, in Prometheus's text; and that of several nodes together.

Dead processes' files are folded into one. The fold is committed by the rename of a file that says which files it has
taken in: whoever is killed before that has changed nothing, and after it those files no longer count.

Gauges that one process measures for all, such as the age of a feature, are published as a whole each time: series in
`values` cannot be taken back, and a measured view or model may be gone the next time.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, Gauge, Metric, generate_latest, start_http_server
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from toque.clusters.telemetry.metrics.machine import machine_metrics
from toque.clusters.telemetry.metrics.values import (
    PREFIX,
    PUBLISHED,
    SUFFIX,
    Member,
    folder_held,
    folder_of_process,
    forget,
    living,
    path_of_process,
    write_to_files,
)

FOLDED_FROM = 300
"""Number of files from which a process that starts folds those of dead ones, as nobody seems to read them."""
STALE_S = 180.0
"""Age from which what was published says nothing about now."""
FOLDED = "folded.json"
KEPT_S = 7 * 24 * 3600.0
"""How long a series that nobody counts any more is kept."""
_SUMMED = ("counter", "histogram", "summary")
_GAUGES: dict[str, Callable[[float, float], float]] = {"livemax": max, "livemin": min}
"""How the values of two processes become one, where they are not added."""
_NO_DISKS: Mapping[str, Path] = {}
Values = dict[str, float]
_logger = logging.getLogger(__name__)

_BUILD = Gauge(
    "toque_build_info",
    "Always 1; its labels say what runs.",
    ("version", "ray", "python"),
    multiprocess_mode="livemax",
)


def keep_series(role: str, folder: Path) -> None:
    """Write this process's series to the files of its node from now on; a second call changes nothing.

    role: which kind of process it is, like "gateway": one of few, as it is a label. folder: the node's, private.
    """
    if folder_of_process() is not None:
        return
    try:
        if sum(1 for _ in folder.glob(f"*{SUFFIX}")) > FOLDED_FROM:
            fold_dead(folder)
    except OSError as error:
        _logger.warning("series of dead processes are not folded: %s", error)
    write_to_files(folder, role)
    _BUILD.labels(_version("toque"), _version("ray"), platform.python_version()).set(1)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # the code came as a folder
        return "unknown"


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
        metric.samples = [sample._replace(labels=sample.labels | {"node": node}) for sample in metric.samples]
    return found


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


@dataclass
class _Fold:
    """Series of dead processes: values, and when one was last added to, by kind and key. files: those taken in."""

    files: set[str] = field(default_factory=set)
    series: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> _Fold:
        try:
            content = json.loads((folder / FOLDED).read_text())
        except FileNotFoundError:
            return cls()
        series = {
            kind: {key: (value, at) for key, (value, at) in found.items()}
            for kind, found in content["series"].items()
        }
        return cls(set(content["files"]), series)

    def write(self, folder: Path) -> None:
        """Replace the fold on the disk, at once. Raises: OSError."""
        temporary = folder / f"{FOLDED}.new"
        temporary.write_text(json.dumps({"files": sorted(self.files), "series": self.series}))
        temporary.replace(folder / FOLDED)

    def add(self, kind: str, values: Values, now: float) -> None:
        found = self.series.setdefault(kind, {})
        for key, value in values.items():
            found[key] = (found.get(key, (0.0, 0.0))[0] + value, now)

    def drop_old(self, counted: set[str], before: float) -> None:
        """Drop the series that nobody has counted since `before`. counted: keys that a living process has."""
        for kind, found in self.series.items():
            self.series[kind] = {
                key: (value, at) for key, (value, at) in found.items() if at >= before or key in counted
            }


def collect(folder: Path, *, clock: Callable[[], float] = time.time) -> tuple[list[Metric], list[Member]]:
    """Sum the series of a node's processes; returns them with the processes that live.

    What dead processes left is folded together first, unless somebody is just reading it.
    """
    fold_dead(folder, clock=clock)
    with folder_held(folder, alone=False):
        alive = living(folder)
        names = {each.name for each in alive}
        fold = _Fold.read(folder)
        sums: dict[str, Values] = {
            kind: {key: value for key, (value, _) in found.items()} for kind, found in fold.series.items()
        }
        newest: dict[str, float] = {}
        for kind, name, path in _files(folder):
            if path.name in fold.files or (kind.startswith("gauge") and name not in names):
                continue
            into = sums.setdefault(kind, {})
            for key, value, at in _read(path):
                _merge(kind, into, newest, key, value, at)
    return _metrics(sums), alive


def fold_dead(folder: Path, *, clock: Callable[[], float] = time.time) -> int:
    """Fold the files of dead processes into one, unless somebody is reading; returns how many there were."""
    with folder_held(folder, alone=True) as held:
        if not held:
            return 0
        alive = {each.name for each in living(folder)}
        fold = _Fold.read(folder)
        dead = [file for file in _files(folder) if file[1] not in alive]
        fold.files &= {path.name for *_, path in dead}  # a fold that was killed has left them
        for kind, _, path in dead:
            if path.name not in fold.files and kind in _SUMMED:
                fold.add(kind, {key: value for key, value, _ in _read(path)}, clock())
            fold.files.add(path.name)
        if dead:
            counted = {key for _, name, path in _files(folder) if name in alive for key, *_ in _read(path)}
            fold.drop_old(counted, clock() - KEPT_S)
            try:
                fold.write(folder)
            except OSError as error:
                _logger.info("files of dead processes are folded later: %s", error)
                return 0
            for *_, path in dead:
                path.unlink(missing_ok=True)
        forget(folder, alive)
        return len(dead)


def _files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Iterate over the files of values: kind, name of the process, path."""
    for entry in sorted(os.scandir(folder), key=lambda each: each.name):
        if entry.name.endswith(SUFFIX):
            kind, _, name = entry.name.removesuffix(SUFFIX).rpartition("_")
            yield kind, name, Path(entry.path)


def _read(path: Path) -> list[tuple[str, float, float]]:
    """Read a file's keys, values and times; one that was not yet begun, or is damaged, has none."""
    found: list[tuple[str, float, float]] = []
    with suppress(FileNotFoundError):
        try:
            for key, value, at, _ in MmapedDict.read_all_values_from_file(str(path)):
                found.append((key, value, at))
        except (RuntimeError, struct.error, UnicodeDecodeError) as error:
            _logger.warning("%s is read up to its damage: %s", path, error)
    return found


def _merge(kind: str, into: Values, newest: dict[str, float], key: str, value: float, at: float) -> None:
    """Add a process's value to the node's, as the kind of the series says."""
    if kind in _SUMMED:
        into[key] = into.get(key, 0.0) + value
    elif kind == "gauge_livemostrecent":
        if at >= newest.get(key, 0.0):
            into[key], newest[key] = value, at
    else:
        together = _GAUGES.get(kind.removeprefix("gauge_"), _plus)
        into[key] = together(into[key], value) if key in into else value


def _plus(one: float, other: float) -> float:
    return one + other


@lru_cache(maxsize=1 << 16)
def _parsed(key: str) -> tuple[str, str, tuple[tuple[str, str], ...], str]:
    family, sample, labels, text = json.loads(key)
    return family, sample, tuple(labels.items()), text


def _metrics(sums: dict[str, Values]) -> list[Metric]:
    """Make metrics of the values by kind and key, with the buckets of histograms cumulated."""
    found: dict[str, Metric] = {}
    for kind, values in sums.items():
        buckets: dict[tuple[str, tuple[tuple[str, str], ...]], dict[float, float]] = defaultdict(dict)
        for key, value in values.items():
            family, sample, labels, text = _parsed(key)
            metric = found.setdefault(family, Metric(family, text, kind.partition("_")[0]))
            if kind == "histogram" and sample.endswith("_bucket"):
                rest = tuple(label for label in labels if label[0] != "le")
                buckets[family, rest][float(dict(labels)["le"])] = value
            else:
                metric.add_sample(sample, dict(labels), value)
        for (family, labels), of_bound in buckets.items():
            _add_buckets(found[family], dict(labels), of_bound)
    return [found[name] for name in sorted(found)]


def _add_buckets(metric: Any, labels: dict[str, str], of_bound: dict[float, float]) -> None:
    total = 0.0
    for bound in sorted(of_bound):
        total += of_bound[bound]
        metric.add_sample(f"{metric.name}_bucket", labels | {"le": floatToGoString(bound)}, total)
    metric.add_sample(f"{metric.name}_count", labels, total)
