"""Gauges of a node's machine: its processes by role, disks and CUDA devices, read when they are asked for."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from os import sysconf
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from toque.clusters.telemetry.metrics.values import Member

__all__ = ["FAMILIES", "OOM_KILLS", "machine_metrics", "oom_kills", "parse_devices"]

FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "toque_processes": ("Processes that live, by role.", ("role",)),
    "toque_process_resident_bytes": ("Resident memory of the processes of a role.", ("role",)),
    "toque_process_open_files": ("Open file descriptors of the processes of a role.", ("role",)),
    "toque_disk_free_bytes": ("Room on the disk of a folder, for this user.", ("folder",)),
    "toque_disk_size_bytes": ("Size of the disk of a folder.", ("folder",)),
    "toque_gpu_busy_ratio": ("Share of the last second or so in which a CUDA device computed.", ("gpu",)),
    "toque_gpu_used_bytes": ("Memory of a CUDA device in use.", ("gpu",)),
    "toque_gpu_size_bytes": ("Memory of a CUDA device.", ("gpu",)),
}
"""Text and labels of each gauge."""
OOM_KILLS = (
    "toque_oom_kills",
    "Processes that the kernel of a node has killed for want of memory since it started.",
)
"""Name and text of a counter that the kernel keeps."""
_QUERY = (
    "nvidia-smi",
    "--query-gpu=index,utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)
_ASKED_EVERY_S, _ANSWER_S = 10.0, 5.0
_MEBIBYTE = float(1 << 20)
_PROC = Path("/proc")

Sample = tuple[str, float, str]
"""Name, value and the value of the label."""


def machine_metrics(alive: Iterable[Member], disks: Mapping[str, Path]) -> list[Metric]:
    """Measure the machine of a node. alive: its processes that keep series; disks: folders by the name that they go by."""
    found: dict[str, GaugeMetricFamily] = {}
    for name, value, label in (*_processes(alive), *_disks(disks), *_devices.samples()):
        if name not in found:
            text, labels = FAMILIES[name]
            found[name] = GaugeMetricFamily(name, text, labels=list(labels))
        found[name].add_metric([label], value)
    return [*found.values(), *oom_kills()]


def oom_kills(file: Path = _PROC / "vmstat") -> list[Metric]:
    """Read the kernel's count of processes that it killed for want of memory; nothing where it keeps none."""
    with suppress(OSError):
        counts = dict(line.split() for line in file.read_text().splitlines())
        if "oom_kill" in counts:
            return [CounterMetricFamily(*OOM_KILLS, value=float(counts["oom_kill"]))]
    return []


def _processes(alive: Iterable[Member]) -> list[Sample]:
    page_bytes = sysconf("SC_PAGESIZE")
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for each in alive:
        with suppress(OSError, IndexError, ValueError):  # it ends just now
            of_process = _PROC / str(each.pid)
            resident = int((of_process / "statm").read_text().split()[1]) * page_bytes
            open_files = sum(1 for _ in (of_process / "fd").iterdir())
            sums["toque_processes", each.role] += 1
            sums["toque_process_resident_bytes", each.role] += resident
            sums["toque_process_open_files", each.role] += open_files
    return [(name, value, role) for (name, role), value in sorted(sums.items())]


def _disks(folders: Mapping[str, Path]) -> list[Sample]:
    found: list[Sample] = []
    for name, folder in folders.items():
        with suppress(OSError):  # the folder is not there yet, or not on this node
            usage = shutil.disk_usage(folder)
            found += [
                ("toque_disk_free_bytes", usage.free, name),
                ("toque_disk_size_bytes", usage.total, name),
            ]
    return found


class _Devices:
    """CUDA devices as `nvidia-smi` tells them, asked now and then since it takes a while."""

    def __init__(self) -> None:
        self._found: list[Sample] = []
        self._asked_at = float("-inf")

    def samples(self) -> list[Sample]:
        if time.monotonic() - self._asked_at > _ASKED_EVERY_S:
            self._asked_at = time.monotonic()
            self._found = self._ask()
        return self._found

    def _ask(self) -> list[Sample]:
        program = shutil.which(_QUERY[0])
        if program is None:
            return []
        try:
            answer = subprocess.run(  # noqa: S603  # a fixed command line
                [program, *_QUERY[1:]], capture_output=True, text=True, timeout=_ANSWER_S, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return []
        return parse_devices(answer.stdout)


def parse_devices(text: str) -> list[Sample]:
    """Parse lines of index, busy percent, used and whole memory in MiB; what a device does not tell is left out."""
    found: list[Sample] = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        names = ("toque_gpu_busy_ratio", "toque_gpu_used_bytes", "toque_gpu_size_bytes")
        for name, value, scale in zip(names, row[1:], (0.01, _MEBIBYTE, _MEBIBYTE), strict=False):
            with suppress(ValueError):  # such as [N/A]
                found.append((name, float(value) * scale, row[0]))
    return found


_devices = _Devices()
