"""`toque predict`, `label`, `trace` and `replay`: ask a model, say what was true, and tell what became of requests.

polars is imported by who reads a file: it takes 100 ms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from toque.ray_apps.cli.arguments import (
    MODEL,
    Commands,
    Given,
    add,
    arg,
    flag,
    read_json,
    read_pair,
    repeatable,
)
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import (
    Column,
    chosen,
    columns,
    facts,
    message,
    note,
    say,
    see_page,
    table,
    value,
)

if TYPE_CHECKING:
    import polars as pl


ROWS_A_REQUEST = 1_000
_MISSING = ("", "NA", "NULL", "null")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}

_ARGUMENTS = (
    MODEL,
    arg("--version N", "ask this version, whatever the traffic policy says", type=int),
    arg("--json JSON", "a whole inference request (Open Inference Protocol), @file or -"),
    arg("--entities JSON", 'join keys of each row, as in \'[{"airport": "JFK"}]\', @file or -'),
    arg("--request JSON", "values known only at request time, a row for each of the entities, @file or -"),
    arg(
        "--file FILE",
        "rows to ask about, a CSV or Parquet file with the model's columns, by their names or the file's own",
    ),
    repeatable("--key COLUMN", "column of --file by which stored features are looked up"),
    repeatable(
        "--drop COLUMN", "column of --file that is not sent, such as one that the model does not know"
    ),
    flag("--example", "ask with the first row of the champion's example, by tensors"),
    arg("--unit", "user or thing that the traffic policy keeps on one arm"),
    repeatable("--attribute NAME=VALUE", "an attribute that the policy's rules look at"),
    flag("--explain", "say what each feature added to the answer"),
    arg("--id", "prediction ID (default: a fresh one)"),
)
_PREDICTION = arg("prediction", "ID of the prediction, which its answer had as `id`")
_OBSERVED = arg("--observed-at TIME", "when that became known, as in 2026-05-01T12:00:00Z (default: now)")
_REQUEST_ID = arg("id", "ID of a prediction, or of a trace, as the header `traceparent` has it")
_MODEL = arg("--model NAME", "read the log of this model only, which is quicker")
_DAYS = arg("--days N", "how far to look back (default: %(default)s)", type=int, default=7)


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


_LABEL = arg(
    "label",
    'what was true: 0 or 1, the name or number of the class, a number, a text as in \'"Main Street 1"\', or a list as in \'["rain", "wind"]\'',
    type=label_of,
)


def register(commands: Commands) -> None:
    """Add the command that asks a model for a prediction."""
    add(commands, "predict", _predict, *_ARGUMENTS, json_option=False)


def register_records(commands: Commands) -> None:
    """Add the commands on predictions that were logged."""
    add(commands, "label", _label, _PREDICTION, _LABEL, _OBSERVED)
    add(commands, "trace", _trace, _REQUEST_ID, _MODEL, _DAYS)


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
    import secrets  # late: OpenSSL, for requests of a file alone

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


def read_rows(path: Path, *, leave_out: Sequence[str]) -> list[dict[str, Any]]:
    """Read the rows of a file, without some columns; a CSV column holds numbers if all its values are, and none begins with a 0.

    Raises: UsageError if it cannot be read, or lacks one of the columns to leave out.
    """
    import polars as pl

    try:
        if path.suffix.lower() in {".parquet", ".pq"}:
            frame = pl.read_parquet(path)
        elif path.suffix.lower() in _SEPARATORS:
            separator = _SEPARATORS[path.suffix.lower()]
            frame = pl.read_csv(path, separator=separator, infer_schema=False, null_values=[*_MISSING])
            frame = frame.select(_typed(frame[name]) for name in frame.columns)
        else:
            raise UsageError(f"--file {path}: give a .csv, .tsv or .parquet file")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"--file {path} cannot be read: {error}") from error
    unknown = sorted({*leave_out} - {*frame.columns})
    if unknown:
        raise UsageError(f"--file {path} has no column {unknown[0]!r}; it has {', '.join(frame.columns)}")
    if not frame.height:
        raise UsageError(f"--file {path} has no rows")
    return [_sendable(row) for row in frame.drop(*leave_out).to_dicts()]


def requests_of(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make the requests of rows, in parts, each with its id. keys: columns by which features are looked up."""
    missing = sorted({*keys} - {*rows[0]})
    if missing:
        raise UsageError(f"--key {missing[0]}: the file has no such column; it has {', '.join(rows[0])}")
    for start in range(0, len(rows), ROWS_A_REQUEST):
        part = rows[start : start + ROWS_A_REQUEST]
        values = [{each: value for each, value in row.items() if each not in keys} for row in part]
        parameters: dict[str, Any] = {"request": values}
        if keys:
            parameters["entities"] = [{each: row[each] for each in keys} for row in part]
        whole = name if len(rows) <= ROWS_A_REQUEST else f"{name}-{start // ROWS_A_REQUEST}"
        yield whole, {"id": whole, "inputs": [], "parameters": parameters}


def answers_of(answer: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Answers of a response by row: the prediction's id, the class by name if there are classes, and the outputs."""
    ids = [answer["id"]] if count == 1 else [f"{answer['id']}:{row}" for row in range(count)]
    rows: list[dict[str, Any]] = [{"prediction": each} for each in ids]
    for row, name in zip(rows, answer["parameters"].get("class", ()), strict=False):
        row["class"] = name
    for output in answer["outputs"]:
        width = len(output["data"]) // count
        for place, row in enumerate(rows):
            values = output["data"][place * width : (place + 1) * width]
            row[output["name"]] = values[0] if width == 1 else values
    return rows


def _typed(column: pl.Series) -> pl.Series:
    """Numbers of a column of texts, if it holds nothing else; codes such as 00501 stay texts."""
    import polars as pl

    texts = column.str.strip_chars()
    for kind in (pl.Int64, pl.Float64):
        numbers = texts.cast(kind, strict=False)
        if numbers.null_count() == texts.null_count() and not texts.str.contains(r"^-?0\d").any():
            return numbers
    return texts


def _sendable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON takes it: no NaN, and a time or other value as text."""
    return {
        name: None
        if value is None or value != value  # noqa: PLR0124  # NaN
        else value
        if isinstance(value, str | int | float | bool)
        else str(value)
        for name, value in row.items()
    }


def _trace(given: Given) -> None:
    """Show what became of a request: its stages, its label, and the verdicts that used it."""
    asked = {"days": given.days} | ({"model": given.model} if given.model else {})
    found = given.client.get(f"/traces/{quote(given.id, safe='')}", **asked)
    how = chosen(given.output)
    if how == "json":
        value(found)
        return
    if how == "tsv":
        table(how, _TRACED, found["predictions"])
        return
    for number, each in enumerate(found["predictions"]):
        if number:
            say("")
        _show(given, each)
    see_page(given.output, given.client.page("predictions", given.id))
    if not any(each["stages"] for each in found["predictions"]):
        note(
            "no stages were kept of this request: traces are off (`toque config`), or it was neither slow nor sampled"
        )


def _show(given: Given, prediction: dict[str, Any]) -> None:
    facts(given.output, _TRACED, prediction)
    for heading, rows in ((_STAGES, prediction["stages"]), (_VERDICTS, prediction["verdicts"])):
        if rows:
            say("")
            table(given.output, heading, rows)


_TRACED = columns(
    "prediction: prediction_id | model | version | arm | shadow | predicted at: predicted_at | latency, ms: latency_ms"
    " | outputs | label | observed at: observed_at | trace: trace_id | kept as: kept",
    wide="span: span_id",
)
_STAGES = columns("stage: name | began after, ms: begin_ms | took, ms: duration_ms")
_VERDICTS = columns(
    "verdict of: by | name | subject | verdict | what: text | judged at: judged_at",
    wide="rows from: start | rows until: end",
    texts="what",
)
