"""Deployments of versions without Ray, and a clock that only waiting moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toque.ray_apps.predictor.deploy.remote import DeploymentState, DeploymentStatus, RemotePredict, Reply
from toque.ray_apps.predictor.protocol.errors import BadRequest
from toque.ray_apps.predictor.versions.loaded import LoadedVersion, LoadError


@dataclass
class FakeCluster:
    """Deployments of versions as Serve and the reaper have them, in this process.

    states: of the versions that have a deployment; releases: by which they were deployed. loads: what a replica does
    when it starts. busy: versions that another endpoint replica is about to deploy.
    """

    loads: Callable[[int], LoadedVersion] | None = None
    states: dict[int, DeploymentStatus] = field(default_factory=dict)
    releases: dict[int, int] = field(default_factory=dict)
    replicas: dict[int, LoadedVersion] = field(default_factory=dict)
    deploys: Counter[int] = field(default_factory=Counter)
    busy: set[int] = field(default_factory=set)
    held: list[int] = field(default_factory=list)

    def start_replica(self, number: int) -> None:
        """Load a version in a replica, or fail as its load fails."""
        try:
            if self.loads is not None:
                self.replicas[number] = self.loads(number)
            self.states[number] = DeploymentStatus(DeploymentState.RUNNING)
        except LoadError as error:
            self.states[number] = DeploymentStatus(DeploymentState.FAILED, str(error))


@dataclass
class FakeDeployments:
    """The deployments of a `FakeCluster`, as one endpoint replica of release `at` sees them."""

    cluster: FakeCluster
    at: int = 1

    def find(self, number: int) -> DeploymentStatus | None:
        return self.cluster.states.get(number)

    def deploy(self, number: int) -> bool:
        if number in self.cluster.busy:
            return False
        self.cluster.deploys[number] += 1
        self.cluster.releases[number] = self.at
        self.cluster.start_replica(number)
        return True

    def release(self, number: int) -> int:
        return self.cluster.releases.get(number, 0)

    def hold(self, numbers: Collection[int], *, current: Collection[int]) -> Sequence[int]:
        self.cluster.held = list(numbers)
        self.cluster.releases |= dict.fromkeys(current, self.at)
        return [number for number in numbers if number not in self.cluster.states]

    def connect(self, number: int) -> RemotePredict:
        async def predict(inputs: Mapping[str, Any], abstained: Sequence[int]) -> Reply:
            try:
                return self.cluster.replicas[number].predict(inputs, abstained)
            except BadRequest as refusal:
                return str(refusal)

        return predict


class FakeClock:
    """A clock that only waiting moves. then: callbacks by the number of the wait at whose end they run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.then: dict[int, Callable[[], object]] = {}
        self.waits = 0

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.waits += 1
        self.then.pop(self.waits, lambda: None)()
