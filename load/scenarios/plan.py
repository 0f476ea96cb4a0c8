"""Plan of a load as every process that sends gets it: which requests, when, and how long each may take.

Requests of the Open Inference Protocol are made from a server's model metadata: each tensor is filled with numbers or words of its
datatype; dimensions that may have any size get the rows asked for. A model that is asked by key gets rows of a file instead: one
JSON object a line, `{"entities": {"plane": "N123"}, "request": {"distance": 400}, "unit": "N123"}`, the last two if needed.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from toque.load.scenarios.scenario import Ask, Scenario, arrivals

_BODIES = 64  # different requests for each part of a mix
_PARSED = 16  # every so many answers one is read whole
_WORDS = 50  # distinct words of a text tensor
Json = dict[str, Any]
LOAD_TEST: Json = {"load_test": True}
"""Parameter by which a platform keeps a request out of what it monitors, learns and pays by; other servers ignore it."""


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


def check_of() -> Callable[[int, bytes], str | None]:
    """Make a check of answers, by status and body: the outputs of each, and every value's place in one of sixteen."""
    count = itertools.count()

    def check(status: int, body: bytes) -> str | None:
        if status != HTTPStatus.OK:
            return f"{status}: {body[:80].decode(errors='replace')}"
        if b'"outputs"' not in body:
            return f"no outputs: {body[:80].decode(errors='replace')}"
        if next(count) % _PARSED:
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


def tensor_request(metadata: Mapping[str, Any], *, rows: int, rng: random.Random) -> Json:
    """Make a request that fills every input of a model.

    metadata: the server's answer to `GET /v2/models/{model}`.
    Raises: ValueError if it names no input, or a datatype that is not of the protocol.
    """
    if not metadata.get("inputs"):
        raise ValueError(
            f"the metadata of model {metadata.get('name')!r} names no inputs; nothing can be sent"
        )
    return {"inputs": [_tensor(spec, rows, rng) for spec in metadata["inputs"]]}


def keyed_request(rows: Sequence[Mapping[str, Any]]) -> Json:
    """Make a request by key from rows of a file, as `read_rows` gives them."""
    parameters: Json = {"entities": [row["entities"] for row in rows]}
    if "request" in rows[0]:
        parameters["request"] = [row["request"] for row in rows]
    if "unit" in rows[0]:
        parameters["unit"] = rows[0]["unit"]
    return {"parameters": parameters, "inputs": []}


def read_rows(path: Path) -> list[Json]:
    """Read rows for requests by key.

    Raises: ValueError naming the line that is not an object with `entities`, or if there is no line.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row.get("entities"), dict):
            raise ValueError(f'{path}:{number}: expected {{"entities": {{…}}, …}}, got {line[:80]}')  # noqa: TRY004 - a value of the file
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no rows; write one JSON object a line")
    return rows


def problem_of(answer: Any, *, sent_id: str | None = None) -> str | None:
    """Say what is wrong with an inference response, or None. sent_id: of a request that had one."""
    if not isinstance(answer, dict):
        return f"the answer is no JSON object: {str(answer)[:80]}"
    if sent_id is not None and answer.get("id") != sent_id:
        return f"the answer's id is {answer.get('id')!r}, the request's {sent_id!r}"
    if not answer.get("outputs"):
        return "the answer has no outputs"
    return next((found for found in map(_output_problem, answer["outputs"]) if found), None)


def _output_problem(output: Mapping[str, Any]) -> str | None:
    count = prod(output.get("shape", [])) if output.get("shape") else None
    data = output.get("data")
    if count is None or not isinstance(data, list):
        return f"output {output.get('name')!r} has no shape or no data"
    flat = _count(data)
    return (
        None
        if flat == count
        else f"output {output.get('name')!r} has {flat} values for shape {output['shape']}"
    )


def _count(data: Any) -> int:
    """Count the values of flat or nested data; the protocol allows both."""
    return sum(map(_count, data)) if isinstance(data, list) else 1


def _tensor(spec: Mapping[str, Any], rows: int, rng: random.Random) -> Json:
    shape = [rows if size == -1 else size for size in spec["shape"]]
    data = [_value(spec["datatype"], rng) for _ in range(prod(shape))]
    return {"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": data}


def _value(datatype: str, rng: random.Random) -> float | int | str | bool:
    if datatype in {"FP16", "BF16", "FP32", "FP64"}:
        return round(rng.gauss(0, 1), 3)
    if datatype.startswith(("INT", "UINT")):
        return rng.randrange(100)
    if datatype == "BYTES":
        return f"w{rng.randrange(_WORDS)}"
    if datatype == "BOOL":
        return rng.random() < 0.5
    raise ValueError(f"datatype {datatype!r} is not of the Open Inference Protocol")
