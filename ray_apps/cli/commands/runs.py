"""`toque experiments` and `toque runs`: what was tried, with what, and how well it did.

By MLflow's protocol, which the platform speaks anyway.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_apps.cli import transfer as files
from ray_apps.cli.client import Client, client_of
from ray_apps.cli.command import UsageError, add, group
from ray_apps.cli.output import say, table, value
from registry import Point
from registry.runs.compare import differences, plot

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

API = "/api/2.0/mlflow"
_SHORT = 12  # digits of a run's id that tell it from others


def register(commands: Commands) -> None:
    """Add the commands."""
    add(commands, "experiments", _experiments, "list the experiments")
    runs = group(commands, "runs", "runs of experiments: list, show, compare, plot, download, upload")
    listing = add(runs, "list", _list, "list an experiment's runs, newest first")
    listing.add_argument("experiment")
    listing.add_argument("--where", default="", help="as in: metrics.log_loss < 0.5 and params.lr = '0.01'")
    listing.add_argument("--order", action="append", default=[], help="as in: metrics.log_loss ASC")
    listing.add_argument("--limit", type=int, default=30)
    add(runs, "show", _show, "show a run with all it logged").add_argument("run")
    comparing = add(runs, "compare", _compare, "show the parameters and metrics in which runs differ")
    comparing.add_argument("runs", nargs="+", metavar="RUN")
    plotting = add(
        runs, "plot", _plot, "write a page with a metric's values over the steps, a line for each run"
    )
    plotting.add_argument("metric")
    plotting.add_argument("runs", nargs="+", metavar="RUN")
    plotting.add_argument("--save", default="runs.html", help="where (default: %(default)s)")
    fetching = add(runs, "download", _download, "get a run's files, digests checked")
    fetching.add_argument("run")
    fetching.add_argument("path", nargs="?", default="", help="a file or folder of it (default: all)")
    fetching.add_argument("--to", default=".", metavar="FOLDER", help="default: here")
    sending = add(runs, "upload", _upload, "store a file, or a folder's files, with a run")
    sending.add_argument("run")
    sending.add_argument("source", help="the file or folder here")
    sending.add_argument("--to", default="", metavar="FOLDER", help="of the run (default: its root)")


def run_of(client: Client, run_id: str) -> dict[str, Any]:
    """A run in plain words: what it is, then its params, metrics and tags. Raises: Refused if there is none."""
    return _plain(client.get(f"{API}/runs/get", run_id=run_id)["run"])


def artifacts(client: Client, run_id: str, folder: str = "") -> Iterator[tuple[str, int]]:
    """Path and size in bytes of every file of a run below `folder`."""
    found = client.get(f"{API}/artifacts/list", run_id=run_id, path=folder)
    for each in found["files"]:
        if each["is_dir"]:
            yield from artifacts(client, run_id, each["path"])
        else:
            yield each["path"], each["file_size"]


def _experiments(given: argparse.Namespace) -> int:
    found = client_of(given).send("POST", f"{API}/experiments/search", body={}).json()["experiments"]
    rows = [(each["experiment_id"], each["name"], _time(each["creation_time"])) for each in found]
    table(("experiment", "title", "since"), rows)
    return 0


def _list(given: argparse.Namespace) -> int:
    asked = {
        "experiment_ids": [given.experiment],
        "filter": given.where,
        "order_by": given.order,
        "max_results": given.limit,
    }
    found = client_of(given).send("POST", f"{API}/runs/search", body=asked).json()["runs"]
    rows = [
        (run["id"], run["name"], run["status"], run["started"], _pairs(run["metrics"]), _pairs(run["params"]))
        for run in map(_plain, found)
    ]
    table(("run", "name", "status", "started", "metrics", "params"), rows)
    return 0


def _show(given: argparse.Namespace) -> int:
    client = client_of(given)
    value(run_of(client, given.run) | {"files": dict(artifacts(client, given.run))})
    return 0


def _compare(given: argparse.Namespace) -> int:
    client = client_of(given)
    runs = [run_of(client, run_id) for run_id in given.runs]
    differing = differences({kind: [run[kind] for run in runs] for kind in ("params", "metrics")})
    facts = {fact: [run[fact] for run in runs] for fact in ("name", "status", "started")}
    rows = [(name, *values) for name, values in {**facts, **differing}.items()]
    table(("", *(run["id"][:_SHORT] for run in runs)), rows)
    if not differing:
        say("no parameter and no metric differs")
    return 0


def _plot(given: argparse.Namespace) -> int:
    client = client_of(given)
    series = {}
    for run in [run_of(client, run_id) for run_id in given.runs]:
        asked = {"run_id": run["id"], "metric_key": given.metric}
        points = client.get(f"{API}/metrics/get-history", **asked)["metrics"]
        if not points:
            raise UsageError(
                f"run {run['id']} logged no metric {given.metric!r}; it has {sorted(run['metrics'])}"
            )
        label = f"{run['name']} {run['id'][:_SHORT]}".strip()
        series[label] = [
            Point(each["step"], float(each["value"]), _moment(each["timestamp"])) for each in points
        ]
    Path(given.save).write_text(plot(given.metric, series))
    say(f"wrote {given.save}")
    return 0


def _download(given: argparse.Namespace) -> int:
    client, wanted = client_of(given), given.path.strip("/")
    found = [
        (path, size)
        for path, size in artifacts(client, given.run)
        if not wanted or path == wanted or path.startswith(f"{wanted}/")
    ]
    if not found:
        raise UsageError(f"run {given.run} has no files{f' at {wanted!r}' if wanted else ''}")
    folder = Path(given.to)
    transfers = [
        files.Transfer(f"runs/{given.run}/{path}", files.below(folder, path), size) for path, size in found
    ]
    files.fetch(client, transfers, label=f"run {given.run[:_SHORT]}")
    say(f"{len(transfers)} files in {folder}")
    return 0


def _upload(given: argparse.Namespace) -> int:
    address = "/".join(part for part in ("runs", given.run, given.to.strip("/")) if part)
    transfers = files.outgoing(files.local(given.source), address)
    files.send(client_of(given), transfers, label=f"run {given.run[:_SHORT]}")
    say(f"{len(transfers)} files are stored with run {given.run}")
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
    shown = {name: f"{each:.4g}" if isinstance(each, float) else each for name, each in values.items()}
    return ", ".join(f"{name}={each}" for name, each in shown.items()) or "-"


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _time(at_ms: int) -> str:
    return _moment(at_ms).isoformat(timespec="seconds")
