"""Timing of calls, printed alike in every benchmark."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a repeated call, at three quantiles."""

    p20_s: float
    p50_s: float
    p80_s: float

    def __str__(self) -> str:
        return " / ".join(f"{seconds * 1e3:9.3f}" for seconds in (self.p20_s, self.p50_s, self.p80_s)) + " ms"


def timed(
    call: Callable[[], object], *, repeats: int = 9, settle: Callable[[], None] | None = None
) -> Timing:
    """Call `repeats` times after one warm-up; `settle` waits for work the call only queued (a GPU's)."""
    call()
    seconds = []
    for _ in range(repeats):
        if settle:
            settle()
        start = time.perf_counter()
        call()
        if settle:
            settle()
        seconds.append(time.perf_counter() - start)
    return Timing(*map(float, np.quantile(seconds, [0.2, 0.5, 0.8])))


def print_machine(*packages: str) -> None:
    """Print the machine of this run: processor, cores, Python and the packages that matter."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"# {_processor()}, Python {platform.python_version()}, {versions}")


def _processor() -> str:
    """Name the processor and count the cores of this machine."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - not a path of ours
            info = list(lines)
    except FileNotFoundError:
        return platform.processor() or platform.machine()
    model = next(
        (line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {sum(line.startswith('processor') for line in info)} cores"
