"""`toque runs experiments` and `toque runs`: what was tried, with what, and how well it did.

By MLflow's protocol, which the platform speaks anyway.
"""

from __future__ import annotations

from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

from toque.ray_apps.cli import transfer as files
from toque.ray_apps.cli.arguments import (
    FOLDER_HERE,
    RUN,
    RUNS,
    Commands,
    Given,
    add,
    arg,
    group,
    limit,
    repeatable,
)
from toque.ray_apps.cli.client import Client
from toque.ray_apps.cli.errors import Failed
from toque.ray_apps.cli.names import MLFLOW, UnknownName, experiments, require
from toque.ray_apps.cli.output import Column, columns, facts, listing, message, note, see_page, table

# registry is imported by what needs it: it brings the tables, a third of a second.

_EXPERIMENT = arg("experiment", "ID or title, as `toque runs experiments` shows them")
_WHERE = arg(
    "--where CONDITION",
    "only runs that meet it, as in: metrics.log_loss < 0.5 and params.lr = '0.01'",
    default="",
)
_ORDER = repeatable("--order FIELD", "order by it instead, as in: metrics.log_loss ASC")
_METRIC = arg("metric", "name of the metric, as `toque runs show RUN` shows it")
_SAVE = arg("--save FILE", "where the page goes (default: %(default)s)", default="runs.html")
_PATH = arg("path", "a file or folder of it (default: all)", nargs="?", default="")
_SOURCE = arg("source", "the file or folder here")
_TO = arg("--to FOLDER", "folder of the run that they go to (default: its root)", default="")


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    runs = group(
        commands, "runs", "List experiments; list, show, compare, plot runs; download and upload their files."
    )
    add(runs, "experiments", _experiments, limit(100))
    add(runs, "list", _list, _EXPERIMENT, _WHERE, _ORDER, limit())
    add(runs, "show", _show, RUN)
    add(runs, "compare", _compare, RUNS)
    add(runs, "plot", _plot, _METRIC, RUNS, _SAVE)
    add(runs, "download", _download, RUN, _PATH, FOLDER_HERE)
    add(runs, "upload", _upload, RUN, _SOURCE, _TO)


def run_of(client: Client, run_id: str) -> dict[str, Any]:
    """A run in plain words: what it is, then its params, metrics and tags. Raises: Refused."""
    run = client.get(f"{MLFLOW}/runs/get", run_id=run_id)["run"]
    return _plain(run["info"], run["data"])


def _experiments(given: Given) -> None:
    """List the experiments, the newest first."""
    rows = [
        {"id": each["experiment_id"], "title": each["name"], "since": _time(each["creation_time"])}
        for each in experiments(given.client)
    ]
    listing(given.output, _EXPERIMENTS, rows, empty="there are no experiments", limit=given.limit)


def _list(given: Given) -> None:
    """List an experiment's runs, the newest first."""
    ids = {each["name"]: each["experiment_id"] for each in experiments(given.client)}
    named = ids.get(given.experiment, given.experiment)
    if named not in ids.values():
        require(given, "experiment", named)
    asked = {
        "experiment_ids": [named],
        "filter": given.where,
        "order_by": given.order,
        "max_results": given.limit + 1,
    }
    found = given.client.send("POST", f"{MLFLOW}/runs/search", body=asked).json()["runs"]
    rows = [_plain(run["info"], run["data"]) for run in found]
    empty = f"experiment {named} has no run{' that meets the condition' if given.where else ''}"
    listing(given.output, _RUNS, rows, empty=empty, limit=given.limit)


def _show(given: Given) -> None:
    """Show a run with all it logged."""
    run = run_of(given.client, given.run)
    facts(given.output, _RUN, run | {"files": _files(given)})
    see_page(given.output, given.client.page("runs", given.run))


def _compare(given: Given) -> None:
    """Show the parameters and metrics in which runs differ."""
    from toque.registry.runs.experiments import differences

    runs = [run_of(given.client, run_id) for run_id in given.runs]
    differing = differences({kind: [run[kind] for run in runs] for kind in ("params", "metrics")})
    known = {fact: [run[fact] for run in runs] for fact in ("name", "status", "started")}
    rows = [(name, *values) for name, values in {**known, **differing}.items()]
    shown = [Column(run["id"], itemgetter(at)) for at, run in enumerate(runs, start=1)]
    whole = [{"run": run["id"]} | {row[0]: row[at] for row in rows} for at, run in enumerate(runs, start=1)]
    table(given.output, [Column("", itemgetter(0)), *shown], rows, whole=whole)
    if not differing:
        note("no parameter and no metric differs")


def _plot(given: Given) -> None:
    """Write a page with a metric's values over the steps, a line for each run."""
    from toque.registry import Point
    from toque.registry.runs.experiments import plot

    series = {}
    for run in [run_of(given.client, run_id) for run_id in given.runs]:
        path = f"{MLFLOW}/metrics/get-history"
        points = given.client.get(path, run_id=run["id"], metric_key=given.metric)["metrics"]
        if not points:
            see, place = f"toque runs show {run['id']}", f" of run {run['id']}"
            raise UnknownName("metric", given.metric, sorted(run["metrics"]), see=see, place=place)
        series[f"{run['name']} {run['id']}".strip()] = [
            Point(each["step"], float(each["value"]), _moment(each["timestamp"])) for each in points
        ]
    Path(given.save).write_text(plot(given.metric, series))
    message(given.output, f"wrote {given.save}", {"saved": given.save})


def _download(given: Given) -> None:
    """Get a run's files, digests checked."""
    wanted, folder, label = given.path.strip("/"), Path(given.to), f"run {given.run}"
    stored = _files(given)
    found = [path for path in stored if not wanted or path == wanted or path.startswith(f"{wanted}/")]
    if not stored:
        raise Failed(f"{label} has no files")
    if not found:
        raise UnknownName("file", wanted, stored, see=f"toque runs show {given.run}", place=f" of {label}")
    transfers = [
        files.Transfer(f"runs/{given.run}/{path}", files.below(folder, path), stored[path]) for path in found
    ]
    files.fetch(given.client, transfers, label=label)
    message(given.output, f"{len(transfers)} files in {folder}", [str(each.here) for each in transfers])


def _files(given: Given) -> dict[str, int]:
    """Sizes in bytes of the run's files, by path. Raises: Refused."""
    return dict(sorted(given.client.get(f"/runs/{given.run}")["artifacts"].items()))


def _upload(given: Given) -> None:
    """Store a file, or a folder's files, with a run."""
    address = "/".join(part for part in ("runs", given.run, given.to.strip("/")) if part)
    transfers = files.outgoing(files.local(given.source), address)
    run_of(given.client, given.run)
    files.send(given.client, transfers, label=f"run {given.run}")
    text = f"{len(transfers)} files are stored with run {given.run}"
    message(given.output, text, [each.address for each in transfers])


def _plain(info: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": info["run_id"],
        "experiment": info["experiment_id"],
        "name": info["run_name"],
        "status": info["status"],
        "actor": info["user_id"],
        "started": _time(info["start_time"]),
        "ended": _time(info["end_time"]) if "end_time" in info else None,
        "params": {each["key"]: each["value"] for each in data["params"]},
        "metrics": {each["key"]: float(each["value"]) for each in data["metrics"]},
        "tags": {each["key"]: each["value"] for each in data["tags"]},
    }


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _time(at_ms: int) -> str:
    return _moment(at_ms).isoformat(timespec="seconds")


_EXPERIMENTS = columns("experiment: id | title | since")
_RUNS = columns(
    "run: id | name | status | started | metrics: metrics as pairs | params: params as pairs",
    wide="ended | actor | tags: tags as pairs",
    texts="metrics | params",
)
_RUN = columns(
    "run: id | name | experiment | status | actor | started | ended | params: params as pairs | metrics: metrics as pairs"
    " | tags: tags as pairs | files, bytes: files as pairs",
    texts="params | metrics | tags | files, bytes",
)
