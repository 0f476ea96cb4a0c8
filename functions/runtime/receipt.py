"""Receipts of invocations: time, CPU, GPU and memory, measured where they ran."""

from __future__ import annotations

import math
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self, TypeVar

from pydantic import BaseModel, Field

from toque.functions.runtime.cards import energy_reader, visible_cards
from toque.functions.runtime.environments import Environment
from toque.registry.store.requests import REQUESTS

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_GROUPED = ("function", "day", "caller", "model")
_SUMMED = {"invocations", "attempts", "queue_s", "run_s", "cpu_s", "gpu_s", "store_reads", "store_writes"}
Row = TypeVar("Row", bound="Total")


class Usage(BaseModel, frozen=True):
    """Resources used by one run: wall, CPU and GPU seconds, peak memory, and requests to the store as S3 charges them.

    energy_j: joules of its GPUs; None where the driver does not tell, or nobody asked it.
    """

    run_s: float
    cpu_s: float
    gpu_s: float
    peak_memory_bytes: int
    store_reads: int = 0
    store_writes: int = 0
    energy_j: float | None = None


NO_USAGE = Usage(run_s=0, cpu_s=0, gpu_s=0, peak_memory_bytes=0)


class Receipt(BaseModel, frozen=True):
    """Resources used by an invocation, summed over its attempts; the peak is the highest of all.

    queue_s: from acceptance to the first start; gpu_s: GPUs held x time, those of all its workers; energy_j: joules of its GPUs
    where the driver tells; store_reads, store_writes: requests to the store, 0 in receipts of older releases. Of a killed worker
    it has what the last heartbeat said, which is a third of a lease old at most. limit_s: declared longest run time of an attempt, None
    for as long as it takes; timed_out: whether that ended it. environment: what it brought beside the platform's packages.
    """

    invocation: str
    function: str
    digest: str
    caller: str
    finished_at: datetime
    attempts: int
    queue_s: float
    run_s: float
    cpu_s: float
    gpu_s: float
    peak_memory_bytes: int
    store_reads: int = 0
    store_writes: int = 0
    energy_j: float | None = None
    limit_s: float | None = None
    timed_out: bool = False
    environment: Environment | None = None


class TokenPrice(BaseModel, frozen=True, extra="forbid"):
    """Price of a million tokens of a language model: of prompts, of those of them that were cached, and of answers.

    cached_million: None: as other tokens of prompts.
    """

    prompt_million: float = Field(ge=0)
    answer_million: float = Field(ge=0)
    cached_million: float | None = Field(default=None, ge=0)

    def money(self, *, prompt: float, cached: float, answer: float) -> float:
        """Compute the price of an answer by its tokens. cached: among those of the prompt."""
        of_cached = self.prompt_million if self.cached_million is None else self.cached_million
        millionths = (
            (prompt - cached) * self.prompt_million + cached * of_cached + answer * self.answer_million
        )
        return millionths / 1e6


class Prices(BaseModel, frozen=True, extra="forbid"):
    """Prices of an hour of a CPU and of a GPU, of a kilowatt-hour unless the hours include it, of store requests, and of tokens.

    store_reads_1000, store_writes_1000: of a thousand GET, and of a thousand PUT, POST or LIST; None: not charged. tokens: of language
    models by name, "*" of all others; a model without one has no cost in the prediction log.
    """

    currency: str = Field(min_length=1)
    cpu_hour: float = Field(ge=0)
    gpu_hour: float = Field(ge=0)
    kwh: float = Field(default=0.0, ge=0)
    store_reads_1000: float | None = Field(default=None, ge=0)
    store_writes_1000: float | None = Field(default=None, ge=0)
    tokens: dict[str, TokenPrice] = {}

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Prices | None:
        """Read the list of `TOQUE_PRICES`; None without one. Raises: pydantic.ValidationError."""
        text = environment.get("TOQUE_PRICES")  # as in {"currency": "EUR", "cpu_hour": 0.05, "gpu_hour": 3}
        return cls.model_validate_json(text) if text else None

    def money(self, *, cpu_s: float, gpu_s: float, energy_j: float | None = None) -> float:
        """Compute the price of a use. energy_j: None if unknown; it is not charged then."""
        hours = (cpu_s * self.cpu_hour + gpu_s * self.gpu_hour) / 3600
        return hours + (energy_j or 0.0) / 3.6e6 * self.kwh


class Total(BaseModel, frozen=True):
    """Sum of the receipts of one function, day (UTC) and caller; or the store requests of a platform's process."""

    function: str
    day: str
    caller: str
    invocations: int
    attempts: int
    queue_s: float
    run_s: float
    cpu_s: float
    gpu_s: float
    store_reads: int = 0
    store_writes: int = 0

    @classmethod
    def of(cls, receipt: Receipt, **also: str) -> Self:
        """Make the row of one receipt. also: fields that only a subclass has."""
        return cls(
            function=receipt.function,
            day=receipt.finished_at.date().isoformat(),
            caller=receipt.caller,
            invocations=1,
            **receipt.model_dump(include=_SUMMED),
            **also,
        )


def summed(rows: Iterable[Row]) -> list[Row]:
    """Add rows up that have the same function, day, caller and model, sorted in that order."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name, "") for name in _GROUPED), []).append(row)
    return [
        group[0].model_copy(update={name: _sum([getattr(row, name) for row in group]) for name in _SUMMED})
        for _, group in sorted(groups.items())
    ]


def _sum(values: list[float]) -> float:
    return sum(values) if isinstance(values[0], int) else math.fsum(values)


class _Held:
    """What runs of this process hold and use in other processes: their workers' GPUs, and what the workers report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gpu_s = self._cpu_s = 0.0
        self._energy_j: float | None = None
        self._since: dict[object, tuple[float, float]] = {}

    def begin(self, gpus: float) -> object:
        key = object()
        with self._lock:
            self._since[key] = gpus, time.monotonic()
        return key

    def end(self, key: object) -> None:
        with self._lock:
            gpus, since = self._since.pop(key)
            self._gpu_s += gpus * (time.monotonic() - since)

    def add(self, cpu_s: float, energy_j: float | None) -> None:
        with self._lock:
            self._cpu_s += cpu_s
            if energy_j is not None:
                self._energy_j = (self._energy_j or 0.0) + energy_j

    def read(self) -> tuple[float, float, float | None]:
        """GPU seconds, CPU seconds and joules since this process began."""
        with self._lock:
            now = time.monotonic()
            going_on = sum(gpus * (now - since) for gpus, since in self._since.values())
            return self._gpu_s + going_on, self._cpu_s, self._energy_j


_held = _Held()


@contextmanager
def holding(gpus: float) -> Iterator[None]:
    """Count `gpus` for the receipt of this process's run within the block: those that its workers on other nodes hold."""
    key = _held.begin(gpus)
    try:
        yield
    finally:
        _held.end(key)


def charge(*, cpu_s: float = 0.0, energy_j: float | None = None) -> None:
    """Add what other processes, or the GPUs, used to the receipt of this process's run."""
    _held.add(cpu_s, energy_j)


def meter(*, num_gpus: float, card_share: float = 1.0) -> Callable[[], Usage]:
    """Start measuring this process, its ended children, its GPUs and the workers it holds; call the returned function to read the usage.

    num_gpus: as Ray counts them, slices of cards too; card_share: part of a card that one of them is.
    In a thread beside others, the processor time is the thread's, and it holds no workers; memory and requests are the process's.
    """
    alone = threading.current_thread() is threading.main_thread()
    read_cpu_s = _cpu_s if alone else _clock_of_thread()
    own_energy = energy_reader(visible_cards(), share=min(1.0, num_gpus)) if alone and num_gpus else None
    if alone:
        _reset_peak()
    own_before = own_energy() if own_energy else None
    started, cpu, requests = time.monotonic(), read_cpu_s(), REQUESTS.charged()
    held_s, others_s, joules = _held.read()

    def read() -> Usage:
        run_s, made = time.monotonic() - started, REQUESTS.charged().since(requests)
        gpu_s, cpu_s, energy_j = _held.read() if alone else (held_s, others_s, None)
        return Usage(
            run_s=run_s,
            cpu_s=read_cpu_s() - cpu + cpu_s - others_s,
            gpu_s=run_s * num_gpus * card_share + gpu_s - held_s,
            peak_memory_bytes=_peak_memory_bytes(),
            store_reads=made.reads,
            store_writes=made.writes,
            energy_j=_energy_j(own_energy, own_before, energy_j, joules),
        )

    return read


def _energy_j(
    own: Callable[[], float | None] | None,
    own_before: float | None,
    others: float | None,
    before: float | None,
) -> float | None:
    """Joules of this process's GPUs and of its workers'; None if its own GPUs do not tell, or there are none at all."""
    from_others = None if others is None else others - (before or 0.0)
    if own is None:
        return from_others
    now = own()
    return None if now is None or own_before is None else now - own_before + (from_others or 0.0)


def _clock_of_thread() -> Callable[[], float]:
    """Make a reader of this thread's processor time that other threads, as that of its heartbeats, may call."""
    if not hasattr(time, "pthread_getcpuclockid"):  # macOS
        return time.thread_time
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)


def _cpu_s() -> float:
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _reset_peak() -> None:
    try:
        _CLEAR_REFS.write_text("5")  # Linux: reset the high-water mark
    except OSError:
        return  # on other systems the peak is of the whole process


def _peak_memory_bytes() -> int:
    try:
        line = next(each for each in _STATUS.read_text().splitlines() if each.startswith("VmHWM"))
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return int(line.split()[1]) * 1024
