"""`toque predict` and `toque label`: ask a model, by tensors or by key, and say later what was true."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from toque.ray_apps.cli.arguments import MODEL, arg, flag, read_json, read_pair, repeatable
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import Column, message, note, table, value
from toque.ray_apps.cli.rows_file import answers_of, read_rows, requests_of

_VERSION = arg("--version N", "ask this version, whatever the traffic policy says", type=int)
_REQUEST = arg("--json JSON", "a whole inference request (Open Inference Protocol), @file or -")
_ENTITIES = arg("--entities JSON", 'join keys of each row, as in \'[{"airport": "JFK"}]\', @file or -')
_VALUES = arg(
    "--request JSON", "values known only at request time, a row for each of the entities, @file or -"
)
_FILE = arg(
    "--file FILE",
    "rows to ask about, a CSV or Parquet file with the model's columns, by their names or the file's own",
)
_KEY = repeatable("--key COLUMN", "column of --file by which stored features are looked up")
_DROP = repeatable(
    "--drop COLUMN", "column of --file that is not sent, such as one that the model does not know"
)
_UNIT = arg("--unit", "user or thing that the traffic policy keeps on one arm")
_ATTRIBUTE = repeatable("--attribute NAME=VALUE", "an attribute that the policy's rules look at")
_EXPLAIN = flag("--explain", "say what each feature added to the answer")


def label_of(text: str) -> Any:
    """Read a label as it is typed: a number, a name or other text, or as JSON a text or a list of names or of numbers.

    Raises: ValueError for a list that is no JSON.
    """
    if text.lstrip().startswith(("[", '"')):
        read = json.loads(text)
        return {"text": read} if isinstance(read, str) else read
    try:
        return float(text)
    except ValueError:
        return {"text": text}


_ID = arg("--id", "prediction ID (default: a fresh one)")
_EXAMPLE = flag("--example", "ask with the first row of the champion's example, by tensors")
_ARGUMENTS = (
    MODEL, _VERSION, _REQUEST, _ENTITIES, _VALUES, _FILE, _KEY, _DROP, _EXAMPLE, _UNIT, _ATTRIBUTE, _EXPLAIN, _ID,
)  # fmt: skip
_PREDICTION = arg("prediction", "ID of the prediction, which its answer had as `id`")
_LABEL = arg(
    "label",
    'what was true: 0 or 1, the name or number of the class, a number, a text as in \'"Main Street 1"\', or a list as in \'["rain", "wind"]\'',
    type=label_of,
)
_OBSERVED = arg("--observed-at TIME", "when that became known, as in 2026-05-01T12:00:00Z (default: now)")


def register(commands: Commands) -> None:
    """Add the command of this module."""
    add(commands, "predict", _predict, *_ARGUMENTS, json_option=False)
    add(commands, "label", _label, _PREDICTION, _LABEL, _OBSERVED)


def _predict(given: Given) -> None:
    """Ask a model for a prediction."""
    version = f"/versions/{given.version}" if given.version else ""
    path = given.client.model_path(given.model)
    if given.file is not None:
        _predict_file(given, f"{path}{version}/infer")
        return
    body = request_of(given)
    value(given.client.send("POST", f"{path}{version}/infer", body=body).json())


def _predict_file(given: Given, path: str) -> None:
    """Ask about each row of a file, and print the answers by row. Raises: UsageError."""
    if given.json is not None or given.entities is not None or given.request is not None or given.example:
        raise UsageError("--file has the rows: leave --json, --entities, --request and --example out")
    rows = read_rows(Path(given.file), leave_out=given.drop)
    answers: list[dict[str, Any]] = []
    for name, body in requests_of(rows, given.key, given.id or f"file-{secrets.token_hex(4)}"):
        body["parameters"] |= _parameters(given)
        answer = given.client.send("POST", path, body=body).json()
        answers += answers_of(answer, len(body["parameters"]["request"]))
        note(f"{len(answers):,} of {len(rows):,} rows are answered, as {name}")
    shown = [Column(name, name) for name in answers[0]]
    table(given.output, shown, answers)


def _label(given: Given) -> None:
    """Say what was true of an earlier prediction."""
    row = {"prediction_id": given.prediction, "label": given.label}
    row |= {"observed_at": given.observed_at} if given.observed_at else {}
    stored = given.client.send("POST", "/feedback", body=[row]).json()
    said = f" as the text {given.label['text']!r}" if isinstance(given.label, dict) else ""
    text = f"the label of {given.prediction} is stored{said}; it is joined with its prediction once both are in the log"
    message(given.output, text, stored)


def _example_of(given: Given) -> dict[str, Any]:
    """The inference request with the first row of a version's example. Raises: UsageError if it has none."""
    number = given.version or given.client.get(f"/models/{given.model}")["aliases"].get("champion")
    if number is None:
        raise UsageError(
            f"{given.model} has no champion; make one by `toque models promote {given.model} VERSION`"
        )
    signature = given.client.get(f"/models/{given.model}/versions/{number}")["signature"] or {}
    example = signature.get("example")
    if not example:
        raise UsageError(f"{given.model}@{number} has no example; ask by --entities or --json")
    return {"inputs": [_tensor(spec, example[spec["name"]][0]) for spec in signature["inputs"]]}


def _tensor(spec: dict[str, Any], row: Any) -> dict[str, Any]:
    """One row as an input tensor; a missing number is null."""
    shape, values = [1], [row]
    while values and isinstance(values[0], list):
        shape.append(len(values[0]))
        values = [each for inner in values for each in inner]
    data = [None if each == "NaN" else each for each in values]
    return {"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": data}


def request_of(given: Given) -> dict[str, Any]:
    """The inference request that the command line means. Raises: UsageError."""
    if [given.json is not None, given.entities is not None, given.example].count(True) != 1:
        raise UsageError(
            "give either --json with a whole request, --entities or --file with the rows to ask about, or --example"
        )
    if given.example:
        body = _example_of(given)
    else:
        body = {"inputs": []} if given.json is None else read_json(given.json)
    if not isinstance(body, dict):
        raise UsageError(f"--json is a JSON {type(body).__name__}; give an object with `inputs`")
    if parameters := _parameters(given):
        body = body | {"parameters": {**body.get("parameters", {}), **parameters}}
    return body | ({"id": given.id} if given.id else {})


def _parameters(given: Given) -> dict[str, Any]:
    """The request's parameters; those that only go with keys are left out beside a whole request. Raises: UsageError."""
    found: dict[str, Any] = {"explain": True} if given.explain else {}
    if given.attribute:
        pairs = (read_pair(text, "NAME=VALUE, as in --attribute country=NL") for text in given.attribute)
        found["attributes"] = dict(pairs)
    if given.entities is not None:
        found |= {"entities": read_json(given.entities)}
        found |= {"request": read_json(given.request)} if given.request else {}
        found |= {"unit": given.unit} if given.unit else {}
    return found
