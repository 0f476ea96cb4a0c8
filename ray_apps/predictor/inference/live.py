"""Counts each request by version and arm: for who judges a rollout or a champion within seconds, and for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from toque.functions.live_counts import End, SplitArm, Tally, end_of, is_usable
from toque.functions.prediction_log import LOAD_TEST, PINNED
from toque.ray_apps.predictor.inference.series import ModelSeries
from toque.ray_apps.predictor.protocol.errors import PredictorError
from toque.registry.models.traffic import CHAMPION, Traffic

__all__ = ["LiveCounter"]

_REMEMBERED: Final = 256  # split arms; a model has a few

_NO_EVIDENCE = frozenset({PINNED, LOAD_TEST})
_FAULT: Final = 500  # of an unforeseen error
_NOT_READY: Final = 503


class Counted(Protocol):
    """A request with its arm, as `LiveCounter` needs it; id: its unit where it named none."""

    id: str
    unit: str | None
    arm: str

    @property
    def traffic(self) -> Traffic | None:
        """Split that the version was chosen by."""
        ...

    @property
    def number(self) -> int:
        """Number of the version that was chosen."""
        ...

    def elapsed_ms(self) -> float:
        """Milliseconds since the request came in."""
        ...


class Numbered(Protocol):
    """A version that is loaded."""

    @property
    def version(self) -> int:
        """Number of the version, unique in its model."""
        ...


class Shadowed(Protocol):
    """A request that a shadow scores; fields as of `Counted`."""

    @property
    def id(self) -> str:
        """Id of the request that was answered."""
        ...

    @property
    def unit(self) -> str | None:
        """Whom the split assigned, or None."""
        ...

    @property
    def version(self) -> Numbered:
        """Version that scores it as a shadow."""
        ...

    @property
    def traffic(self) -> Traffic | None:
        """Split that was in force."""
        ...


class LiveCounter:
    """Tells how each request of one model ended.

    tally: counts by split, among which those for a version by number and of a load test are trials and do not count. series: Prometheus's.
    """

    def __init__(self, tally: Tally | None, series: ModelSeries | None = None) -> None:
        self._tally, self._series = tally, series
        self._arms: dict[tuple[int, int, str], SplitArm] = {}

    def answered(self, call: Counted, outputs: Mapping[str, Any], *, latency_ms: float | None = None) -> None:
        """Count an answer; one that holds a value that is no finite number counts as missing.

        latency_ms: by which the versions are compared; None: all that the answer took.
        """
        if self._tally is None and self._series is None:
            return
        usable, elapsed_ms = all(map(is_usable, outputs.values())), call.elapsed_ms()
        if self._series is not None:
            self._series.of(call.number, call.arm).answered(elapsed_ms / 1e3, usable=usable)
        compared_ms = elapsed_ms if latency_ms is None else latency_ms
        self._count(call, End.ANSWERED if usable else End.MISSING, compared_ms)

    def failed(self, call: Counted, status: int, *, latency_ms: float | None = None) -> None:
        """Count a request that was refused or failed with an HTTP status. latency_ms: as of `answered`."""
        if self._series is not None:
            self._series.of(call.number, call.arm).failed(status)
        self._count(call, end_of(status), call.elapsed_ms() if latency_ms is None else latency_ms)

    def mistaken(self, call: Counted, status: int) -> None:
        """Count what a caller got wrong: in Prometheus's series alone, as it says nothing about the version."""
        if self._series is not None:
            self._series.of(call.number, call.arm).failed(status)

    def unserved(self, unit: str, traffic: Traffic | None) -> None:
        """Count a request that no version could answer as an error of the champion's."""
        if traffic is None:
            return
        champion = traffic.champion
        if self._series is not None:
            self._series.of(champion.version, CHAMPION).failed(_NOT_READY)
        if self._tally is not None:
            arm = SplitArm(traffic.entry, champion.version, CHAMPION, champion.share)
            self._tally.count(arm, unit, End.ERROR, 0.0)

    def scored(self, job: Shadowed, arm: str, outputs: Mapping[str, Any]) -> None:
        """Count what a shadow made of a request that another version answered."""
        usable = all(map(is_usable, outputs.values()))
        self._count_shadow(job, arm, End.ANSWERED if usable else End.MISSING)

    def not_scored(self, job: Shadowed, arm: str, error: Exception) -> None:
        """Count a request that a shadow failed to score."""
        status = error.status if isinstance(error, PredictorError) else _FAULT
        self._count_shadow(job, arm, end_of(status))

    def _count_shadow(self, job: Shadowed, arm: str, end: End) -> None:
        if self._tally is not None:
            split = self._arm(job.traffic, job.version.version, arm)
            self._tally.count(split, job.unit or job.id, end, 0.0)

    def _count(self, call: Counted, end: End, elapsed_ms: float) -> None:
        if self._tally is not None and call.arm not in _NO_EVIDENCE:
            arm = self._arm(call.traffic, call.number, call.arm)
            self._tally.count(arm, call.unit or call.id, end, elapsed_ms)

    def _arm(self, traffic: Traffic | None, version: int, name: str) -> SplitArm:
        entry = 0 if traffic is None else traffic.entry
        found = self._arms.get((entry, version, name))
        if found is None:
            if len(self._arms) >= _REMEMBERED:
                self._arms.clear()
            arms = () if traffic is None else traffic.arms
            share = next((arm.share for arm in arms if arm.name == name), 0.0)
            found = self._arms[entry, version, name] = SplitArm(entry, version, name, share)
        return found
