"""Keeps the versions of one model that its traffic policy names ready, and swaps the routes as a whole.

One thread reads the model's journal (one GET while nothing is new), when Redis announces a change or at a pace of its own;
another loads the versions that the policy names.
Answering threads read `routes`, one immutable value. While the store does not answer, loaded versions go on answering.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from toque.functions.runtime.changes import Watch
from toque.ray_apps.predictor.protocol.errors import NotFound
from toque.ray_apps.predictor.versions.loaded import LoadError
from toque.ray_apps.predictor.versions.routes import ReadyVersion, Routes, plan_routes, wanted_versions
from toque.registry.errors import RegistryError
from toque.registry.models import ModelPolicy, ModelVersion
from toque.registry.models.traffic import Traffic

__all__ = ["POLL_S", "FollowedModel", "JournalFollower", "JournalSource", "VersionFollower"]

POLL_S = 0.25
_log = logging.getLogger("ray.serve")
V = TypeVar("V", bound=ReadyVersion)


class FollowedModel(Protocol):
    """The part of a model's recorded state that serving follows."""

    @property
    def traffic(self) -> Traffic | None:
        """The traffic policy in force, or None without one."""
        ...

    @property
    def versions(self) -> Mapping[int, ModelVersion]:
        """All versions of the model by number."""
        ...

    @property
    def aliases(self) -> Mapping[str, int]:
        """The version's number by alias."""
        ...

    @property
    def policy(self) -> ModelPolicy:
        """The conditions that a version must meet before it may go live."""
        ...


class JournalFollower(Protocol):
    """Reads one model's journal as it grows."""

    def refresh(self) -> FollowedModel:
        """Read what is new, and return the newest state. Raises: RegistryError."""
        ...


class JournalSource(Protocol):
    """The part of the registry that follows models' journals."""

    def follow(self, model: str) -> JournalFollower:
        """Make a follower of one model's journal."""
        ...


@dataclass
class _Failure:
    reason: str
    attempts: int
    retry_at: float


class VersionFollower(Generic[V]):
    """Keeps the versions that a model's traffic policy names ready to answer.

    load_version: makes a version ready; raises LoadError. watch: says when to read the journal. retain: how many
    versions stay loaded after the policy dropped them, so that a rollback needs no load. dropped: called with each version that
    is kept no longer.
    """

    def __init__(
        self,
        model: str,
        source: JournalSource,
        load_version: Callable[[ModelVersion], V],
        *,
        watch: Watch | None = None,
        retain: int = 2,
        clock: Callable[[], float] = time.monotonic,
        dropped: Callable[[V], None] | None = None,
    ) -> None:
        self.model = model
        self.routes: Routes[V] = Routes()
        self.view: FollowedModel | None = None
        self._source, self._load_version = source, load_version
        self._watch = watch or Watch(every_s=POLL_S)
        self._retain, self._clock, self._dropped = retain, clock, dropped
        self._follower: JournalFollower | None = None
        self._loaded: dict[int, V] = {}  # least recently wanted first
        self._failures: dict[int, _Failure] = {}
        self.loads, self.failed_loads, self.load_s = 0, 0, 0.0
        """Versions loaded so far, and those that could not be, and the time that both took."""
        self._guard = threading.Lock()
        self._loading = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Read the policy, load the versions that it names, then start the threads that follow it."""
        self.follow_once()
        self.load_wanted()
        for name, target in (("follow", self._follow), ("load", self._load)):
            thread = threading.Thread(target=target, name=f"{name}-{self.model}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def find_fault(self) -> str | None:
        """Say why predictions could not be answered now; None if they can, or if the model has no champion yet."""
        if self.view is None:
            return f"{self.model}: the store does not answer, so it is not known which versions to load"
        traffic = self.view.traffic
        if traffic is None or self.routes.champion is not None:
            return None
        number = traffic.champion.version
        reason = self.failures.get(number, "it is not loaded yet")
        return f"{self.model}: version {number}, the champion, cannot answer: {reason}"

    @property
    def champion_pending(self) -> bool:
        """Whether the policy names a champion that is still to be loaded, and has not failed to load."""
        if self.routes.champion is not None or self.view is None or self.view.traffic is None:
            return False
        return self.view.traffic.champion.version not in self._failures

    def stop(self) -> None:
        """End the threads; loaded versions still answer."""
        self._stop.set()
        self._wake.set()
        self._watch.close()
        for thread in self._threads:
            thread.join(timeout=10)

    @property
    def failures(self) -> Mapping[int, str]:
        """Reasons of the versions that could not be loaded, by number."""
        return {version: failure.reason for version, failure in self._failures.items()}

    def follow_once(self) -> None:
        """Read the journal, and apply the policy as far as its versions are ready."""
        try:
            if self._follower is None:
                self._follower = self._source.follow(self.model)
            self.view = self._follower.refresh()
        except (RegistryError, OSError) as error:
            _log.warning("%s: the store does not answer, serving goes on: %s", self.model, error)
            self._watch.failed()
            return
        self._plan()

    def follow_if_due(self) -> None:
        """Read the journal if it may have changed, for who calls this again and again instead of starting threads."""
        if self._watch.due():
            self.follow_once()

    def due(self) -> list[ModelVersion]:
        """The versions to load now: named by the policy, not loaded, and past the backoff of their last failure."""
        view, now = self.view, self._clock()
        wanted = wanted_versions(view.traffic, view.aliases) if view is not None else ()
        return [
            view.versions[number]
            for number in wanted
            if view is not None and number in view.versions and number not in self._loaded
            and not (number in self._failures and self._failures[number].retry_at > now)
        ]  # fmt: skip

    def load_wanted(self) -> None:
        """Load every version that is due."""
        for record in self.due():
            try:
                self.load(record.version)
            except (LoadError, NotFound) as error:
                _log.warning("%s; it takes no traffic, what served before goes on", error)

    def load(self, number: int) -> V:
        """Load a version by number, or find it loaded.

        Raises: NotFound if the model has no such version; LoadError with the reason, which is that of its last failure
        until the backoff after it has passed.
        """
        with self._loading:
            found = self._loaded.get(number)
            if found is not None:
                return found
            record = self.view.versions.get(number) if self.view is not None else None
            if record is None or record.status == "DELETED":
                raise NotFound(f"model {self.model!r} has no version {number}")
            failure = self._failures.get(number)
            if failure is not None and failure.retry_at > self._clock():
                raise LoadError(failure.reason)
            begin = time.monotonic()
            try:
                loaded = self._load_version(record)
            except LoadError as error:
                self.failed_loads += 1
                self._failed(number, str(error))
                raise
            finally:
                self.load_s += time.monotonic() - begin
            self.loads += 1
            _log.info("%s loaded in %.2f s", loaded, time.monotonic() - begin)
            with self._guard:
                self._loaded[number] = loaded
                self._failures.pop(number, None)
            self._plan()
            return loaded

    def _failed(self, number: int, reason: str) -> None:
        attempts = self._failures[number].attempts + 1 if number in self._failures else 1
        delay = min(60.0, 2.0 ** (attempts - 1))
        self._failures[number] = _Failure(reason, attempts, self._clock() + delay)

    def _plan(self) -> None:
        with self._guard:
            view = self.view
            if view is None:
                return
            wanted = wanted_versions(view.traffic, view.aliases)
            for version in reversed(wanted):
                if version in self._loaded:
                    self._loaded[version] = self._loaded.pop(version)
            self.routes = plan_routes(view.traffic, self._loaded.values(), self.routes)
            self._evict({*wanted, *([self.routes.champion.version] if self.routes.champion else [])})
            if any(version not in self._loaded for version in wanted):
                self._wake.set()

    def _evict(self, kept: set[int]) -> None:
        spare = [version for version in self._loaded if version not in kept]
        for version in spare[: max(0, len(spare) - self._retain)]:
            gone = self._loaded.pop(version)
            if self._dropped is not None:
                self._dropped(gone)

    def _follow(self) -> None:
        while self._watch.wait():
            self._guarded(self.follow_once)

    def _load(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(timeout=1.0)
            self._wake.clear()
            if not self._stop.is_set():
                self._guarded(self.load_wanted)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step; an unforeseen fault is logged and must not end the thread that follows the policy."""
        try:
            step()
        except Exception:  # noqa: BLE001 - the thread must outlive it, and it is logged whole
            _log.exception("%s: following the policy failed, trying again", self.model)

    @property
    def loaded(self) -> list[int]:
        """The versions that can answer, by number."""
        return sorted(self._loaded)

    def find(self, number: int) -> V | None:
        """A loaded version by number, or None."""
        return self._loaded.get(number)

    def describe(self) -> dict[str, Any]:
        """State of the model's versions here, for the readiness and metadata routes."""
        routes = self.routes
        return {
            "champion": routes.champion.version if routes.champion else None,
            "loaded": self.loaded,
            "degraded": sorted(routes.degraded),
            "failures": {str(version): reason for version, reason in self.failures.items()},
            "policy_entry": routes.traffic.entry if routes.traffic else None,
        }
