"""Plan of a load as every process that sends gets it: which requests, when, and how long each may take."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from toque.load.scenarios.payload import LOAD_TEST, Json, keyed_request, problem_of, read_rows, tensor_request
from toque.load.scenarios.scenario import Ask, Scenario
from toque.load.scenarios.shape import arrivals

__all__ = ["Part", "Plan", "check_of", "plan_of"]

_BODIES = 64  # different requests for each part of a mix
_PARSED = 16  # every so many answers one is read whole


class Part(BaseModel):
    """Part of a mix, with the bodies that are sent in turn. path: on the server."""

    model_config = ConfigDict(frozen=True)

    path: str
    weight: float
    bodies: tuple[str, ...]


class Plan(BaseModel):
    """Plan of a load for `processes` senders; the token is not in it, it goes by the environment.

    log_requests: whether each process writes a line for every request, beside its counts.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    parts: tuple[Part, ...]
    scenario: Scenario
    processes: int
    log_requests: bool = False

    def requests(self, index: int) -> Iterator[tuple[float, Part, str]]:
        """Draw what process `index` sends: when each is due in seconds from the start, its part and its body."""
        rng = np.random.default_rng([self.scenario.seed, index])
        times = arrivals(
            self.scenario.shape, warm_up_s=self.scenario.warm_up_s, share=1 / self.processes, rng=rng
        )
        weights = np.array([part.weight for part in self.parts])
        edges = np.cumsum(weights / weights.sum()).tolist()
        turns = [itertools.cycle(part.bodies) for part in self.parts]
        picks = random.Random(f"{self.scenario.seed} {index}")
        for due_s in times:
            drawn = picks.random()
            at = next((n for n, edge in enumerate(edges) if drawn < edge), len(edges) - 1)
            yield due_s, self.parts[at], next(turns[at])


def plan_of(
    url: str,
    model: str,
    scenario: Scenario,
    *,
    metadata_of: Callable[[str], Mapping[str, Any]],
    log_requests: bool = False,
) -> Plan:
    """Plan the requests of a scenario. model: of the parts that name none; metadata_of: the server's answer at the path of a model.

    Raises: ValueError if a model takes nothing, or a file of rows cannot be read.
    """
    parts = tuple(_part(ask, model, scenario, metadata_of) for ask in scenario.mix)
    return Plan(
        url=url, parts=parts, scenario=scenario, processes=scenario.processes, log_requests=log_requests
    )


def check_of() -> Callable[[bytes, bytes], str | None]:
    """Make a check of answers: status and outputs of each, and every value's place in one of sixteen."""
    count = itertools.count()

    def check(head: bytes, body: bytes) -> str | None:
        if b" 200 " not in head[:13]:
            return f"{head[9:12].decode(errors='replace')}: {body[:80].decode(errors='replace')}"
        if b'"outputs"' not in body:
            return f"no outputs: {body[:80].decode(errors='replace')}"
        if next(count) % _PARSED or b"chunked" in head.lower():
            return None
        try:
            return problem_of(json.loads(body))
        except ValueError as error:
            return f"no JSON: {error}"

    return check


def _part(ask: Ask, model: str, scenario: Scenario, metadata_of: Callable[[str], Mapping[str, Any]]) -> Part:
    below = "" if ask.workspace in {"", "default"} else f"/workspaces/{ask.workspace}"
    path = f"{below}/v2/models/{ask.model or model}"
    rng = random.Random(scenario.seed)
    if ask.keys is not None:
        rows = read_rows(Path(ask.keys))
        made: list[Json] = [keyed_request(rng.choices(rows, k=ask.rows)) for _ in range(_BODIES)]
    else:
        metadata = metadata_of(path)
        made = [tensor_request(metadata, rows=ask.rows, rng=rng) for _ in range(_BODIES)]
    if not scenario.as_users:
        made = [each | {"parameters": each.get("parameters", {}) | LOAD_TEST} for each in made]
    return Part(path=f"{path}/infer", weight=ask.weight, bodies=tuple(json.dumps(each) for each in made))
