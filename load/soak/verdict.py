"""Verdict of a soak: whether anything grew, and whether a request failed that was not in a process that was killed.

It judges samples of what a platform on this machine holds: memory and descriptors of each process, its files, its keys in Redis.
"""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import redis
from scipy.stats import theilslopes

from toque.load import processes

MOST = 0.02  # growth of anything after the warm-up
WARM_UP_S = 600.0
_FEW = 10  # files, keys or descriptors that may come and go whatever the level is
_LEAST_LIFE = 0.5  # of the judged time, that a process lived to be judged
_SLACK_S = 0.05  # between the clocks of who kills and who asks
_LEAST_SAMPLES = 8
_REPLICA = re.compile(r"ray::ServeReplica:([\w.-]+)")


@dataclass(frozen=True, slots=True)
class Growth:
    """Growth of one thing over the judged time. judged: None where the soak was too short to say."""

    what: str
    level: float
    growth: float
    judged: bool | None

    def __str__(self) -> str:
        verdict = {True: "flat", False: "GREW", None: "not judged, too short"}[self.judged]
        return f"{self.what}: {self.level:,.0f}, {self.growth / self.level if self.level else 0:+.2%} ({verdict})"


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Judge memory, descriptors, files and keys after the warm-up: ten minutes, or a third of a soak under half an hour.

    Memory is only judged after ten minutes of warm-up and ten more: allocators and caches fill first.
    """
    whole_s = samples[-1].at - samples[0].at
    warm_s = min(WARM_UP_S, whole_s / 3)
    kept = [each for each in samples if each.at >= samples[0].at + warm_s]
    long_enough = whole_s >= 2 * WARM_UP_S
    counted = {
        "descriptors": _of_processes(kept, lambda held: held.descriptors),
        "files": _trend([(each.at, float(each.files)) for each in kept]),
        "keys in Redis": _trend([(each.at, float(each.redis_keys)) for each in kept]),
    }
    level, growth = _of_processes(kept, lambda held: held.memory_bytes / 2**20)
    found = [Growth("memory, MiB", level, growth, growth <= MOST * level if long_enough else None)]
    for what, (level, growth) in counted.items():
        found.append(Growth(what, level, growth, growth <= max(_FEW, MOST * level)))
    return found


def memory_by_role(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Memory in MiB of each role at the start of the last two thirds, and at the end."""
    first, last = samples[len(samples) // 3], samples[-1]
    roles = sorted({held.role for each in (first, last) for held in each.processes.values()})
    return {role: (_memory(first, role), _memory(last, role)) for role in roles}


def unexcused(
    requests: Sequence[Mapping[str, Any]], kills: Sequence[tuple[float, float]]
) -> list[Mapping[str, Any]]:
    """List the requests that failed without having been in flight while a killed process died.

    requests: lines with `sent`, `ended` (seconds since the epoch) and `problem`; kills: from when to when.
    """

    def is_excused(sent: float, ended: float) -> bool:
        return any(sent - _SLACK_S <= gone and at <= ended + _SLACK_S for at, gone in kills)

    return [each for each in requests if each["problem"] and not is_excused(each["sent"], each["ended"])]


def _memory(at: Sample, role: str) -> float:
    return sum(process.memory_bytes for process in at.processes.values() if process.role == role) / 2**20


def _of_processes(kept: Sequence[Sample], of: Callable[[Any], float]) -> tuple[float, float]:
    """Level and growth of a sum over the processes that are there at the end and lived half of the judged time.

    Each process has a trend of its own, so that one which was killed and began anew is no growth.
    """
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for each in kept:
        for pid, held in each.processes.items():
            points[pid].append((each.at, of(held)))
    judged_s = kept[-1].at - kept[0].at
    level = growth = 0.0
    for pid in kept[-1].processes:
        life_s = points[pid][-1][0] - points[pid][0][0]
        if life_s >= _LEAST_LIFE * judged_s:
            one_level, one_growth = _trend(points[pid])
            level += one_level
            growth += one_growth * (judged_s / life_s if life_s else 1.0)
    return level, growth


def _trend(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Median, and growth from the first to the last point by a line that single jumps do not move.

    Source: Sen, Estimates of the regression coefficient based on Kendall's tau, 1968.
    """
    at, values = np.array(points).T
    if len(points) < _LEAST_SAMPLES:
        return float(np.median(values)), math.nan
    slope = theilslopes(values, at)[0]
    return float(np.median(values)), float(slope * (at[-1] - at[0]))


@dataclass(frozen=True, slots=True)
class Held:
    """Memory and descriptors that one process holds. role: what it does; memory: bytes of its own, without files and shared memory."""

    role: str
    memory_bytes: int
    descriptors: int


Processes = dict[int, Held]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the platform held at a moment (seconds since the epoch).

    files: of its folders, the store left out; redis_keys: those that do not expire by themselves.
    """

    at: float
    files: int
    redis_keys: int
    processes: Processes = field(default_factory=dict)


def sample(home: Path, folders: list[Path], keys: redis.Redis) -> Sample:
    """Take a sample of the platform that was started in `home`."""
    files = sum(1 for folder in folders for each in folder.rglob("*") if each.is_file())
    databases: dict[str, dict[str, int]] = keys.info("keyspace")
    lasting = sum(database["keys"] - database["expires"] for database in databases.values())
    return Sample(time.time(), files, lasting, held_by(home))


def held_by(home: Path) -> Processes:
    """Find the processes of the platform that was started in `home`, and what each holds."""

    def held(process: Any, command: str) -> Held:
        memory = process.memory_info()
        return Held(role_of(command), memory.rss - memory.shared, process.num_fds())

    return processes.of_platform(home, held)


def has_ended(pid: int) -> bool:
    """Whether a process has given back its memory and closed its connections, though its parent may not have heard."""
    try:
        process = psutil.Process(pid)
        is_dead = process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
        return is_dead and process.num_threads() <= 1  # its threads hold them, too
    except psutil.NoSuchProcess:
        return True


def role_of(command: str) -> str:
    """Name what a process does, from its command line."""
    if replica := _REPLICA.search(command):
        return replica[1]
    program = Path(command.split(" ", 1)[0]).name
    if program.startswith(("haproxy", "redis-server", "raylet", "gcs_server")):
        return program.split(":")[0]
    return "ray worker" if command.startswith("ray::") else "other"
