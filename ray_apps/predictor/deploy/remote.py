"""Versions in deployments of their own, of which an endpoint replica holds only clients.

A version is loaded by running its deployment and letting it answer its example, so one that does not start or
answer never takes traffic. Endpoint replicas report again and again which versions they hold; the reaper
(`toque.ray_apps.predictor.deploy.dedicated`) ends the others, because another endpoint replica may still need a version.
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

from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import BadRequest, NotReady
from toque.ray_apps.predictor.versions.loaded import LoadedVersion, LoadError
from toque.registry.models import ModelVersion

__all__ = [
    "DedicatedVersions",
    "DeploymentState",
    "DeploymentStatus",
    "RemotePredict",
    "RemoteVersion",
    "Reply",
    "VersionClient",
    "VersionDeployments",
]

_log = logging.getLogger("ray.serve")

Reply = Mapping[str, Array] | str
"""A version's outputs, or why it refuses the values it was given."""
RemotePredict = Callable[[Mapping[str, Array], Sequence[int]], Awaitable[Reply]]
"""Asks a version's deployment for outputs, given the inputs and the rows that are not to be predicted."""


class DeploymentState(Enum):
    """Where a version's deployment is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """The state of a version's deployment, with the reason if it failed."""

    state: DeploymentState
    reason: str = ""


class VersionDeployments(Protocol):
    """The deployments of one model's versions in the cluster; any call may raise what a cluster's calls raise."""

    def find(self, number: int) -> DeploymentStatus | None:
        """The status of a version's deployment, or None without one."""
        ...

    def deploy(self, number: int) -> bool:
        """Deploy a version by this release, not waiting for it; False if another endpoint replica is about to."""
        ...

    def release(self, number: int) -> int:
        """The release that a version's deployment is of at least; 0 if unknown."""
        ...

    def hold(self, numbers: Collection[int], *, current: Collection[int]) -> Sequence[int]:
        """Hold versions for a while; returns those without a deployment, as last seen. current: of this release."""
        ...

    def connect(self, number: int) -> RemotePredict:
        """A function that asks a deployed version for outputs, on the endpoint's event loop."""
        ...


class VersionClient:
    """Client of one version's deployment.

    name: of the version, for messages. predict: asks the deployment. loop: on which it is asked. timeout_s: for an
    answer, the start of a replica included.
    """

    def __init__(
        self, name: str, predict: RemotePredict, *, loop: asyncio.AbstractEventLoop, timeout_s: float
    ) -> None:
        self._name, self._predict, self._loop, self._timeout_s = name, predict, loop, timeout_s

    async def answer(self, inputs: Mapping[str, Array], abstained: Sequence[int] = ()) -> Mapping[str, Array]:
        """Outputs for checked inputs; on the loop. Raises: BadRequest for values the model refuses; NotReady."""
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._predict(inputs, abstained)
        except TimeoutError:
            raise NotReady(
                f"{self._name}: none of its replicas answered within {self._timeout_s:g} s; try again soon"
            ) from None
        if isinstance(reply, str):
            raise BadRequest(reply)
        return reply

    def predict(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Outputs for checked inputs, for threads (shadows, explanations, loading); blocks, so never on the loop."""
        return asyncio.run_coroutine_threadsafe(self.answer(inputs), self._loop).result()


class RemoteVersion(LoadedVersion):
    """A version that answers in its own deployment, where its batches are made too."""

    def __init__(self, record: ModelVersion, client: VersionClient) -> None:
        super().__init__(record, client)
        self.batching = None
        self._client = client

    @property
    def inline(self) -> bool:
        """Whether the version runs on the event loop: never, as it is in another process."""
        return False

    async def answer(
        self,
        inputs: Mapping[str, Array],
        rows: int,  # noqa: ARG002 - its replica counts them
        abstained: Sequence[int],
        threads: Executor,  # noqa: ARG002 - of this process, which has nothing to score
    ) -> Mapping[str, Array]:
        """Answer by the version's deployment. Raises: BadRequest, and NotReady if no replica answers in time."""
        self.statistics.executions += 1
        return await self._client.answer(inputs, abstained)

    answer_large = answer


class DedicatedVersions:
    """Runs each version of one model in its own deployment, and keeps those that its endpoint holds.

    Called by an engine, in a thread, to load a version. loop: the endpoint's. release: a number that grows with each
    deploy of the endpoint; deployments of older releases are deployed anew, and answer meanwhile. start_timeout_s:
    for a version to answer its example, and for a request to wait for a replica. beat_s: between two reports of the
    held versions. clock, wait: seconds that pass.
    """

    def __init__(
        self,
        deployments: VersionDeployments,
        *,
        loop: asyncio.AbstractEventLoop,
        release: int,
        start_timeout_s: float,
        beat_s: float = 2.0,
        poll_s: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._deployments, self._loop, self._release = deployments, loop, release
        self._start_timeout_s, self._beat_s, self._poll_s = start_timeout_s, beat_s, poll_s
        self._clock, self._wait = clock, wait
        self._starting: set[int] = set()
        self._current: set[int] = set()  # known to be of this release, or of a later one
        self._missing: Sequence[int] = ()  # held, and without a deployment at the reaper's last sweep

    def __call__(self, record: ModelVersion) -> LoadedVersion:
        """Run a version's deployment, or find it running, and let it answer its example.

        Raises: LoadError with the reason.
        """
        number, name = record.version, f"{record.model}@{record.version}"
        self._starting.add(number)
        try:
            self._deployments.hold([number], current=())  # before anything else, so that the reaper leaves it
            self._run(number)
            predict = self._deployments.connect(number)
            client = VersionClient(name, predict, loop=self._loop, timeout_s=self._start_timeout_s)
            version = RemoteVersion(record, client)
            version.warm_up()
        except Exception as error:
            message = str(error)  # a replica that failed has named its version already
            raise LoadError(
                message if message.startswith(name) else f"{name} cannot be served: {message}"
            ) from error
        finally:
            self._starting.discard(number)
        return version

    def start(self, held: Callable[[], Iterable[int]]) -> None:
        """Hold and mend versions from now on, in a thread each, as a deploy may take longer than a hold lasts.

        held: the versions that the endpoint has.
        """
        for step in (self.hold, self.mend):
            name = f"{step.__name__}-versions"
            threading.Thread(target=self._repeat, args=(step, held), name=name, daemon=True).start()

    def hold(self, held: Iterable[int]) -> None:
        """Report the held versions to the reaper once."""
        ready = set(held)
        self._current &= ready | self._starting
        self._missing = self._deployments.hold(sorted(ready | self._starting), current=sorted(self._current))

    def mend(self, held: Iterable[int]) -> None:
        """Deploy held versions again whose deployment is gone, or is of an earlier release."""
        ready = set(held)
        for number in ready.intersection(self._missing):
            if self._deployments.find(number) is None:
                _log.warning("the deployment of version %d is gone; it is deployed again", number)
                self._deploy(number)
        for number in ready - self._current:
            self._renew(number)

    def _deploy(self, number: int) -> bool:
        if not self._deployments.deploy(number):
            return False
        self._current.add(number)
        return True

    def _renew(self, number: int) -> None:
        """Deploy a version anew if its deployment is of an earlier release, which answers until the new one does."""
        if number in self._current:
            return
        if self._deployments.release(number) >= self._release:
            self._current.add(number)
        else:
            self._deploy(number)

    def _repeat(self, step: Callable[[Iterable[int]], None], held: Callable[[], Iterable[int]]) -> None:
        while True:
            self._wait(self._beat_s)
            try:
                step(held())
            except Exception:  # noqa: BLE001 - the cluster's faults are many; the next beat tries again
                _log.exception("dedicated versions: %s failed, trying again", step.__name__)

    def _run(self, number: int) -> None:
        """Return once a version has a replica, or at once if it has an older one that answers meanwhile.

        Raises: LoadError if it fails to start, or does not in time.
        """
        until = self._clock() + self._start_timeout_s
        deployed = False  # by any replica since this call began: an earlier failure says nothing
        while self._clock() < until:
            found = self._deployments.find(number)
            if found is None or (found.state is DeploymentState.FAILED and not deployed):
                deployed = self._deploy(number) or deployed
            elif found.state is DeploymentState.FAILED:
                raise LoadError(found.reason)
            elif found.state is DeploymentState.RUNNING:
                self._renew(number)
                return
            else:
                deployed = deployed or found.state is DeploymentState.STARTING
            self._wait(self._poll_s)
        raise LoadError(
            f"its deployment has no replica after {self._start_timeout_s:g} s; see `serve status`, and raise "
            "start_timeout_s or make room for what it reserves"
        )
