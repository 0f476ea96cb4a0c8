"""Deployments of versions without Ray, and a clock that only waiting moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_apps.predictor.deploy.remote import Ask, Found, Reply, State
from ray_apps.predictor.protocol.errors import BadRequest
from ray_apps.predictor.versions.loaded import LoadedVersion, LoadError


@dataclass
class Cluster:
    """Deployments of versions as Serve and the keeper have them, in this process.

    states: of the versions that have a deployment; releases: by which they were deployed. loads: what a replica does
    when it starts. busy: versions that another door is about to deploy.
    """

    loads: Callable[[int], LoadedVersion] | None = None
    states: dict[int, Found] = field(default_factory=dict)
    releases: dict[int, int] = field(default_factory=dict)
    replicas: dict[int, LoadedVersion] = field(default_factory=dict)
    begun: Counter[int] = field(default_factory=Counter)
    busy: set[int] = field(default_factory=set)
    held: list[int] = field(default_factory=list)

    def begin_of(self, number: int) -> None:
        """A replica starts."""
        try:
            if self.loads is not None:
                self.replicas[number] = self.loads(number)
            self.states[number] = Found(State.RUNNING)
        except LoadError as error:
            self.states[number] = Found(State.FAILED, str(error))


@dataclass
class Site:
    """A door's way to them."""

    cluster: Cluster
    at: int = 1

    def find(self, number: int) -> Found | None:
        return self.cluster.states.get(number)

    def begin(self, number: int) -> bool:
        if number in self.cluster.busy:
            return False
        self.cluster.begun[number] += 1
        self.cluster.releases[number] = self.at
        self.cluster.begin_of(number)
        return True

    def release(self, number: int) -> int:
        return self.cluster.releases.get(number, 0)

    def hold(self, numbers: Collection[int], *, current: Collection[int]) -> Sequence[int]:
        self.cluster.held = list(numbers)
        self.cluster.releases |= dict.fromkeys(current, self.at)
        return [number for number in numbers if number not in self.cluster.states]

    def ask(self, number: int) -> Ask:
        async def ask(inputs: Mapping[str, Any], abstained: Sequence[int]) -> Reply:
            try:
                return self.cluster.replicas[number].predict(inputs, abstained)
            except BadRequest as refusal:
                return str(refusal)

        return ask


class Time:
    """A clock that only waiting moves, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.then: dict[int, Callable[[], object]] = {}
        self.waits = 0

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.waits += 1
        self.then.pop(self.waits, lambda: None)()
