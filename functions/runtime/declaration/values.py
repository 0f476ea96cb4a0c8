"""Options that a function declares: frozen values, validated when they are made."""

from __future__ import annotations

import json
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from croniter import croniter

from toque.functions.runtime.cards import is_slice
from toque.functions.runtime.environments import Environment
from toque.functions.runtime.errors import DeclarationError

Overlap = Literal["skip", "queue", "replace"]
CatchUp = Literal["latest", "all", "none"]


def _require(name: str, value: float | None, *, at_least: float) -> None:
    if value is not None and not value >= at_least:
        raise DeclarationError(f"{name}={value!r} must be at least {at_least}")


@dataclass(frozen=True, slots=True)
class Resources:
    """CPUs, GPUs and memory that one run occupies on the cluster.

    num_cpus, num_gpus: fractions allowed; memory_bytes: None leaves it to Ray.
    Raises: DeclarationError if any is negative.
    """

    num_cpus: float = 1
    num_gpus: float = 0
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus", "memory_bytes"):
            _require(name, getattr(self, name), at_least=0)


_ROUNDING = 1e-9  # of a number of GPUs
NICENESS = 10  # of an experiment: what serves on its machine has priority


@dataclass(frozen=True, slots=True)
class Demand:
    """What an experiment takes while it runs, of its team's quota and of the cluster's cards, and how urgent it is.

    cpus, gpus, memory_bytes: of all its workers together; workers: how many start together, each on one node: 1 is the run itself,
    which then holds the GPUs and the memory; None: it starts others that hold one GPU each. Each worker has whole GPUs, or a part
    of one. card: type of the GPUs as Ray names it, as in "H100", or in "H100-1g.10gb" for slices of it, of which a single worker
    has one; None for any whole ones.
    priority: a higher one begins first. limit_s: longest run time, after which it is killed; a short run with a limit may start
    before one that waits for room. preemptible: whether it yields to more urgent ones, since it saves its state when
    `preempted()` says so. environment: packages and variables that its processes have beside the platform's.
    Raises: DeclarationError if a number is out of range.
    """

    cpus: float = 0.0
    gpus: float = 0.0
    priority: int = 0
    workers: int | None = None
    card: str | None = None
    memory_bytes: int = 0
    limit_s: float | None = None
    preemptible: bool = False
    environment: Environment | None = None

    def __post_init__(self) -> None:
        for name in ("cpus", "gpus", "memory_bytes"):
            _require(name, getattr(self, name), at_least=0)
        _require("workers", self.workers, at_least=1)
        if self.limit_s is not None and not self.limit_s > 0:
            raise DeclarationError(f"limit_s={self.limit_s!r} must be above 0, or None for no limit")
        self._check_cards()

    def _check_cards(self) -> None:
        each = self.gpus / (self.workers or 1)
        if self.workers is not None and each > 1 and abs(each - round(each)) > _ROUNDING:
            raise DeclarationError(
                f"gpus={self.gpus:g} of workers={self.workers}: {each:g} for each; ask for whole GPUs, or for less than one"
            )
        if is_slice(self.card) and (self.workers != 1 or self.gpus > 1):
            raise DeclarationError(
                f"card={self.card!r} with workers={self.workers} and gpus={self.gpus:g}: slices of a card cannot work together; "
                "ask for workers=1 and gpus=1, or for whole cards"
            )


@dataclass(frozen=True, slots=True)
class Retries:
    """Policy by which failed runs are tried again, with exponential backoff.

    max_attempts: all runs, the first included.
    backoff_s, factor, max_backoff_s: wait before the second run, its growth, its ceiling; each wait is
        drawn between half of it and all of it.
    on, never: exception types that are retried, and exceptions to them.
    max_lost: how many workers a run may lose; those are not the function's failures and are counted apart.
    Raises: DeclarationError if a number is out of range or a type is not an exception.
    """

    max_attempts: int = 3
    backoff_s: float = 1.0
    factor: float = 2.0
    max_backoff_s: float = 60.0
    on: tuple[type[Exception], ...] = (Exception,)
    never: tuple[type[Exception], ...] = ()
    max_lost: int = 5

    def __post_init__(self) -> None:
        _require("max_attempts", self.max_attempts, at_least=1)
        _require("backoff_s", self.backoff_s, at_least=0)
        _require("factor", self.factor, at_least=1)
        _require("max_backoff_s", self.max_backoff_s, at_least=0)
        _require("max_lost", self.max_lost, at_least=0)
        for kind in (*self.on, *self.never):
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise DeclarationError(f"Retries: {kind!r} is not an exception type")

    def covers(self, error: BaseException) -> bool:
        """Whether an error of this type may be retried."""
        return isinstance(error, self.on) and not isinstance(error, self.never)

    def backoff(self, attempt: int, *, draw: float) -> float:
        """Compute the seconds to wait after the attempt numbered `attempt`, from 1; draw in [0, 1) sets the jitter."""
        full = min(self.backoff_s * self.factor ** (attempt - 1), self.max_backoff_s)
        return full * (0.5 + draw / 2)


ONCE = Retries(max_attempts=1)


@dataclass(frozen=True, slots=True)
class Cron:
    """Schedule by which a function runs without a caller.

    expression: five cron fields, or six with seconds last; timezone: an IANA name in which they are read.
    jitter_s: each tick is delayed by a share of this, drawn from schedule and tick.
    overlap: what a tick does while the previous run goes on: skip, queue behind it, or replace it.
    catch_up: which ticks fire late that were missed while no ticker ran: the latest, all, or none.
    grace_s: with catch_up="none", how late a tick may still fire.
    arguments: passed to each run; tick_as: the parameter, if any, that receives the tick's time.
    Raises: DeclarationError for an expression, time zone or number that cannot be read.
    """

    expression: str
    timezone: str = "UTC"
    jitter_s: float = 0.0
    overlap: Overlap = "skip"
    catch_up: CatchUp = "latest"
    grace_s: float = 60.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tick_as: str | None = None

    def __post_init__(self) -> None:
        if not croniter.is_valid(self.expression):
            raise DeclarationError(
                f"Cron: cannot read {self.expression!r}; write five fields, as in '0 6 * * *'"
            )
        if self.timezone not in zoneinfo.available_timezones():
            raise DeclarationError(
                f"Cron: unknown time zone {self.timezone!r}; use an IANA name, as in 'Europe/Rome'"
            )
        if self.overlap not in {"skip", "queue", "replace"} or self.catch_up not in {"latest", "all", "none"}:
            raise DeclarationError(
                f"Cron: overlap={self.overlap!r} or catch_up={self.catch_up!r} is not a policy"
            )
        _require("jitter_s", self.jitter_s, at_least=0)
        _require("grace_s", self.grace_s, at_least=0)

    @property
    def text(self) -> str:
        """The expression with its time zone, as `17 3 * * * UTC`."""
        return f"{self.expression} {self.timezone}"


@dataclass(frozen=True, slots=True)
class OnEvent:
    """Subscription of a function to a topic; the event's payload becomes its arguments.

    topic: the topic's name; where: payload fields that must be equal to these values.
    reentrant: whether an event that this function itself caused may start it again (through sixteen
        functions at most). The default breaks loops.
    from_start: whether a new subscription also gets the events published before it.
    payload_as: the parameter that receives the whole payload; None spreads its fields over the parameters.
    arguments: passed to each run beside the payload.
    """

    topic: str
    where: Mapping[str, Any] = field(default_factory=dict)
    reentrant: bool = False
    from_start: bool = False
    payload_as: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.topic or self.topic.strip("/") != self.topic:
            raise DeclarationError(
                f"OnEvent: {self.topic!r} is not a topic; use a name as in 'alarms' or 'models/late'"
            )

    @property
    def text(self) -> str:
        """The topic with the fields that must be equal, as `alarms where model="late"`."""
        fields = ", ".join(f"{name}={json.dumps(value, default=str)}" for name, value in self.where.items())
        return f"{self.topic} where {fields}" if fields else self.topic

    def matches(self, payload: Mapping[str, Any]) -> bool:
        """Whether the payload has every field of `where` with that value."""
        return all(name in payload and payload[name] == value for name, value in self.where.items())
