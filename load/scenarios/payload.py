"""Requests of the Open Inference Protocol, generated from a server's model metadata.

A tensor that the model takes is filled with numbers or words of its datatype; dimensions that may have any size get
the rows asked for. A model that is asked by key gets rows of a file instead: one JSON object a line,
`{"entities": {"plane": "N123"}, "request": {"distance": 400}, "unit": "N123"}`, the last two if needed.
"""

import json
import random
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_WORDS = 50  # distinct words of a text tensor


LOAD_TEST: Json = {"load_test": True}
"""Parameter by which a platform keeps a request out of what it monitors, learns and pays by; other servers ignore it."""


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
