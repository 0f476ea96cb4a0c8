"""Versions in deployments of their own: what a door keeps of each is the way to it.

A version is loaded by running its deployment and letting it answer its example, so one that does not start or
answer never takes traffic. Doors say again and again which versions they hold; what no door holds any more is
ended by the keeper (`ray_apps.predictor.deploy.reaper`), not by a door, because another one may still need it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ray_apps.predictor.protocol.datatypes import Array
from ray_apps.predictor.protocol.errors import BadRequest, NotReady
from ray_apps.predictor.versions.loaded import LoadedVersion, LoadError
from registry.models import ModelVersion

__all__ = ["Ask", "Dedicated", "Found", "RemoteVersion", "Reply", "Site", "State", "Way"]

_log = logging.getLogger("ray.serve")

Reply = Mapping[str, Array] | str
"""A version's outputs, or why it refuses the values it was given."""
Ask = Callable[[Mapping[str, Array], Sequence[int]], Awaitable[Reply]]
"""Asks a version, wherever it is, for its outputs: inputs, and the rows that are not to be predicted."""


class State(Enum):
    """What a version's deployment is about."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class Found:
    """A version's deployment. reason: why it failed."""

    state: State
    reason: str = ""


class Site(Protocol):
    """The cluster, as far as one model's versions go. Any call may raise what a cluster's calls raise."""

    def find(self, number: int) -> Found | None:
        """A version's deployment, or None."""
        ...

    def begin(self, number: int) -> bool:
        """Deploy a version by our release, not waiting for it; False if another door is about to."""
        ...

    def release(self, number: int) -> int:
        """The door's release that a version's deployment is of at least; 0 if that is not known."""
        ...

    def hold(self, numbers: Collection[int], *, current: Collection[int]) -> Sequence[int]:
        """Keep versions for a while; returns those without a deployment, as last seen. current: of our release."""
        ...

    def ask(self, number: int) -> Ask:
        """How to ask a version that has a deployment, on the door's event loop."""
        ...


class Way:
    """The way to one version's deployment.

    name: what the version is called. ask: asks it. loop: where it is asked. patience_s: how long an answer is waited
    for, the start of a replica included.
    """

    def __init__(self, name: str, ask: Ask, *, loop: asyncio.AbstractEventLoop, patience_s: float) -> None:
        self._name, self._ask, self._loop, self._patience_s = name, ask, loop, patience_s

    async def answer(self, inputs: Mapping[str, Array], abstained: Sequence[int] = ()) -> Mapping[str, Array]:
        """Outputs for checked inputs; on the loop. Raises: BadRequest for values the model refuses; NotReady."""
        try:
            async with asyncio.timeout(self._patience_s):
                reply = await self._ask(inputs, abstained)
        except TimeoutError:
            raise NotReady(
                f"{self._name}: none of its replicas answered within {self._patience_s:g} s; try again soon"
            ) from None
        if isinstance(reply, str):
            raise BadRequest(reply)
        return reply

    def predict(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The same for threads: shadows, explanations and loading. Blocks; never on the loop."""
        return asyncio.run_coroutine_threadsafe(self.answer(inputs), self._loop).result()


class RemoteVersion(LoadedVersion):
    """A version that answers in its own deployment, where its batches are made too."""

    def __init__(self, record: ModelVersion, way: Way) -> None:
        super().__init__(record, way)
        self.batching = None
        self._way = way

    @property
    def inline(self) -> bool:
        """Never: it is a way to go."""
        return False

    async def answer(
        self,
        inputs: Mapping[str, Array],
        rows: int,  # noqa: ARG002 - its replica counts them
        abstained: Sequence[int],
        threads: Executor,  # noqa: ARG002 - of this process, which has nothing to score
    ) -> Mapping[str, Array]:
        """As of a version that is here. Raises: NotReady if none of its replicas answers in time."""
        self.statistics.executions += 1
        return await self._way.answer(inputs, abstained)


class Dedicated:
    """Runs the versions of one model, each in its deployment, and keeps those that its door holds.

    Called as an engine's `place`, in a thread. loop: the door's. release: the door's, a number that grows with each
    deploy of it; what is older is deployed anew, and goes on meanwhile. start_timeout_s: how long a version may
    take until it answers its example, and a request may wait for a replica to start. beat_s: how often holds are
    said again. clock, wait: seconds that pass.
    """

    def __init__(
        self,
        site: Site,
        *,
        loop: asyncio.AbstractEventLoop,
        release: int,
        start_timeout_s: float,
        beat_s: float = 2.0,
        poll_s: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._site, self._loop, self._release = site, loop, release
        self._start_timeout_s, self._beat_s, self._poll_s = start_timeout_s, beat_s, poll_s
        self._clock, self._wait = clock, wait
        self._starting: set[int] = set()
        self._current: set[int] = set()  # known to be of our release, or of a later one
        self._missing: Sequence[int] = ()  # held, and without a deployment when the keeper last looked

    def __call__(self, record: ModelVersion) -> LoadedVersion:
        """Run a version's deployment, or find it running, and let it answer its example.

        Raises: LoadError with the reason.
        """
        number, name = record.version, f"{record.model}@{record.version}"
        self._starting.add(number)
        try:
            self._site.hold([number], current=())  # first of all: the keeper must not end what we look at
            self._run(number)
            way = Way(name, self._site.ask(number), loop=self._loop, patience_s=self._start_timeout_s)
            version = RemoteVersion(record, way)
            version.warm_up()
        except Exception as error:
            said = str(error)  # a replica that failed has said which version it is
            raise LoadError(said if said.startswith(name) else f"{name} cannot be served: {said}") from error
        finally:
            self._starting.discard(number)
        return version

    def start(self, held: Callable[[], Iterable[int]]) -> None:
        """Hold, and mend, from now on: in a thread each, as a deploy may take longer than a hold lasts.

        held: the versions that the door has.
        """
        for step in (self.hold, self.mend):
            name = f"{step.__name__}-versions"
            threading.Thread(target=self._repeat, args=(step, held), name=name, daemon=True).start()

    def hold(self, held: Iterable[int]) -> None:
        """Tell the keeper once what is held."""
        ready = set(held)
        self._current &= ready | self._starting
        self._missing = self._site.hold(sorted(ready | self._starting), current=sorted(self._current))

    def mend(self, held: Iterable[int]) -> None:
        """Deploy again what is held and somebody ended, and what is of an earlier release."""
        ready = set(held)
        for number in ready.intersection(self._missing):
            if self._site.find(number) is None:
                _log.warning("the deployment of version %d is gone; it is deployed again", number)
                self._begin(number)
        for number in ready - self._current:
            self._renew(number)

    def _begin(self, number: int) -> bool:
        if not self._site.begin(number):
            return False
        self._current.add(number)
        return True

    def _renew(self, number: int) -> None:
        """Deploy a version anew if its deployment is of an earlier release; what runs answers until the new one does."""
        if number in self._current:
            return
        if self._site.release(number) >= self._release:
            self._current.add(number)
        else:
            self._begin(number)

    def _repeat(self, step: Callable[[Iterable[int]], None], held: Callable[[], Iterable[int]]) -> None:
        while True:
            self._wait(self._beat_s)
            try:
                step(held())
            except Exception:  # noqa: BLE001 - the cluster's faults are many; the next beat tries again
                _log.exception("versions elsewhere: %s failed, trying again", step.__name__)

    def _run(self, number: int) -> None:
        """Return once a version has a replica, or at once if it has an older one that goes on meanwhile.

        Raises: LoadError if it fails to start, or does not in time.
        """
        until = self._clock() + self._start_timeout_s
        begun = False  # by anybody, while we looked: a failure from before is no answer
        while self._clock() < until:
            found = self._site.find(number)
            if found is None or (found.state is State.FAILED and not begun):
                begun = self._begin(number) or begun
            elif found.state is State.FAILED:
                raise LoadError(found.reason)
            elif found.state is State.RUNNING:
                self._renew(number)
                return
            else:
                begun = begun or found.state is State.STARTING
            self._wait(self._poll_s)
        raise LoadError(
            f"its deployment has no replica after {self._start_timeout_s:g} s; see `serve status`, and raise "
            "start_timeout_s or make room for what it reserves"
        )
