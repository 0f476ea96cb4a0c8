"""`toque experiments` and `toque runs`: what was tried, with what, and how well it did.

By MLflow's protocol, which the platform speaks anyway.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_apps.cli import transfer as files
from ray_apps.cli.client import Client, client_of
from ray_apps.cli.command import RUN, Failed, add, add_limit, group
from ray_apps.cli.names import MLFLOW, UnknownName, experiments, known_run, require
from ray_apps.cli.output import Column, chosen, facts, listing, message, note, table, value

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

# registry is imported by what needs it: it brings the tables, a third of a second.


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    listed = add(commands, "experiments", _experiments, "list the experiments, the newest first")
    add_limit(listed, default=100)
    runs = group(commands, "runs", "list, show, compare, plot runs; download and upload their files")
    listed = add(runs, "list", _list, "list an experiment's runs, the newest first")
    listed.add_argument("experiment", help="ID or title, as `toque experiments` shows them")
    listed.add_argument(
        "--where",
        default="",
        metavar="CONDITION",
        help="only runs that meet it, as in: metrics.log_loss < 0.5 and params.lr = '0.01'",
    )
    listed.add_argument(
        "--order",
        action="append",
        default=[],
        metavar="FIELD",
        help="order by it instead, as in: metrics.log_loss ASC; repeatable",
    )
    add_limit(listed)
    add(runs, "show", _show, "show a run with all it logged").add_argument("run", help=RUN)
    comparing = add(runs, "compare", _compare, "show the parameters and metrics in which runs differ")
    comparing.add_argument("runs", nargs="+", metavar="RUN", help=RUN)
    plotting = add(
        runs, "plot", _plot, "write a page with a metric's values over the steps, a line for each run"
    )
    plotting.add_argument("metric", help="name of the metric, as `toque runs show RUN` shows it")
    plotting.add_argument("runs", nargs="+", metavar="RUN", help=RUN)
    plotting.add_argument(
        "--save", default="runs.html", metavar="FILE", help="where the page goes (default: %(default)s)"
    )
    fetching = add(runs, "download", _download, "get a run's files, digests checked")
    fetching.add_argument("run", help=RUN)
    fetching.add_argument("path", nargs="?", default="", help="a file or folder of it (default: all)")
    fetching.add_argument("--to", default=".", metavar="FOLDER", help="where the files go (default: here)")
    sending = add(runs, "upload", _upload, "store a file, or a folder's files, with a run")
    sending.add_argument("run", help=RUN)
    sending.add_argument("source", help="the file or folder here")
    sending.add_argument(
        "--to", default="", metavar="FOLDER", help="folder of the run that they go to (default: its root)"
    )


def run_of(client: Client, run_id: str) -> dict[str, Any]:
    """A run in plain words: what it is, then its params, metrics and tags. Raises: UnknownName."""
    with known_run(client, run_id):
        return _plain(client.get(f"{MLFLOW}/runs/get", run_id=run_id)["run"])


def artifacts(client: Client, run_id: str, folder: str = "") -> Iterator[tuple[str, int]]:
    """Path and size in bytes of every file of a run below `folder`."""
    found = client.get(f"{MLFLOW}/artifacts/list", run_id=run_id, path=folder)
    for each in found["files"]:
        if each["is_dir"]:
            yield from artifacts(client, run_id, each["path"])
        else:
            yield each["path"], each["file_size"]


def _experiments(given: argparse.Namespace) -> int:
    rows = [
        {"id": each["experiment_id"], "title": each["name"], "since": _time(each["creation_time"])}
        for each in experiments(client_of(given))
    ]
    listing(given.output, _EXPERIMENTS, rows, empty="there are no experiments", limit=given.limit)
    return 0


def _list(given: argparse.Namespace) -> int:
    client = client_of(given)
    titles = {each["experiment_id"]: each["name"] for each in experiments(client)}
    named = next((each for each, title in titles.items() if title == given.experiment), given.experiment)
    known = dict.fromkeys([*titles, *titles.values()])
    require("experiment", named, known, see="toque experiments")
    asked = {
        "experiment_ids": [named],
        "filter": given.where,
        "order_by": given.order,
        "max_results": given.limit + 1,
    }
    found = client.send("POST", f"{MLFLOW}/runs/search", body=asked).json()["runs"]
    met = " that meets the condition" if given.where else ""
    empty = f"experiment {named} has no run{met}"
    listing(given.output, _RUNS, [_plain(run) for run in found], empty=empty, limit=given.limit)
    return 0


def _show(given: argparse.Namespace) -> int:
    client = client_of(given)
    facts(given.output, _RUN, run_of(client, given.run) | {"files": dict(artifacts(client, given.run))})
    return 0


def _compare(given: argparse.Namespace) -> int:
    from registry.runs.compare import differences

    client = client_of(given)
    runs = [run_of(client, run_id) for run_id in given.runs]
    differing = differences({kind: [run[kind] for run in runs] for kind in ("params", "metrics")})
    known = {fact: [run[fact] for run in runs] for fact in ("name", "status", "started")}
    rows = [(name, *values) for name, values in {**known, **differing}.items()]
    if chosen(given.output) == "json":
        value(
            [{"run": run["id"]} | {row[0]: row[at] for row in rows} for at, run in enumerate(runs, start=1)]
        )
    else:
        each = [Column(run["id"], itemgetter(at)) for at, run in enumerate(runs, start=1)]
        table(given.output, [Column("", itemgetter(0)), *each], rows)
    if not differing:
        note("no parameter and no metric differs")
    return 0


def _plot(given: argparse.Namespace) -> int:
    from registry import Point
    from registry.runs.compare import plot

    client = client_of(given)
    series = {}
    for run in [run_of(client, run_id) for run_id in given.runs]:
        asked = {"run_id": run["id"], "metric_key": given.metric}
        points = client.get(f"{MLFLOW}/metrics/get-history", **asked)["metrics"]
        if not points:
            see, place = f"toque runs show {run['id']}", f" of run {run['id']}"
            raise UnknownName("metric", given.metric, sorted(run["metrics"]), see=see, place=place)
        label = f"{run['name']} {run['id']}".strip()
        series[label] = [
            Point(each["step"], float(each["value"]), _moment(each["timestamp"])) for each in points
        ]
    Path(given.save).write_text(plot(given.metric, series))
    message(given.output, f"wrote {given.save}", {"saved": given.save})
    return 0


def _download(given: argparse.Namespace) -> int:
    client, wanted = client_of(given), given.path.strip("/")
    run_of(client, given.run)
    stored = list(artifacts(client, given.run))
    found = [
        (path, size) for path, size in stored if not wanted or path == wanted or path.startswith(f"{wanted}/")
    ]
    if not stored:
        raise Failed(f"run {given.run} has no files")
    if not found:
        see, place = f"toque runs show {given.run}", f" of run {given.run}"
        raise UnknownName("file", wanted, [path for path, _ in stored], see=see, place=place)
    folder = Path(given.to)
    transfers = [
        files.Transfer(f"runs/{given.run}/{path}", files.below(folder, path), size) for path, size in found
    ]
    files.fetch(client, transfers, label=f"run {given.run}")
    message(given.output, f"{len(transfers)} files in {folder}", [str(each.here) for each in transfers])
    return 0


def _upload(given: argparse.Namespace) -> int:
    address = "/".join(part for part in ("runs", given.run, given.to.strip("/")) if part)
    transfers, client = files.outgoing(files.local(given.source), address), client_of(given)
    run_of(client, given.run)
    files.send(client, transfers, label=f"run {given.run}")
    text = f"{len(transfers)} files are stored with run {given.run}"
    message(given.output, text, [each.address for each in transfers])
    return 0


def _plain(run: dict[str, Any]) -> dict[str, Any]:
    info, data = run["info"], run["data"]
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


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={each}" for name, each in values.items())


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _time(at_ms: int) -> str:
    return _moment(at_ms).isoformat(timespec="seconds")


_EXPERIMENTS = (
    Column("experiment", "id"),
    Column("title", "title"),
    Column("since", "since"),
)
_RUNS = (
    Column("run", "id"),
    Column("name", "name"),
    Column("status", "status"),
    Column("started", "started"),
    Column("metrics", lambda row: _pairs(row["metrics"]), text=True),
    Column("params", lambda row: _pairs(row["params"]), text=True),
    Column("ended", "ended", wide=True),
    Column("actor", "actor", wide=True),
    Column("tags", lambda row: _pairs(row["tags"]), wide=True),
)
_RUN = (
    Column("run", "id"),
    Column("name", "name"),
    Column("experiment", "experiment"),
    Column("status", "status"),
    Column("actor", "actor"),
    Column("started", "started"),
    Column("ended", "ended"),
    Column("params", lambda row: _pairs(row["params"]), text=True),
    Column("metrics", lambda row: _pairs(row["metrics"]), text=True),
    Column("tags", lambda row: _pairs(row["tags"]), text=True),
    Column("files, bytes", lambda row: _pairs(row["files"]), text=True),
)
