"""Keeps what a load found as a run of the platform, by MLflow's protocol, which the platform speaks anyway."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import httpx

_MLFLOW = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_MOST_EXPERIMENTS = 1_000


class Door(Protocol):
    """Door of a platform, as who keeps a run sees it."""

    def send(self, method: str, path: str, *, body: Any = None, **options: Any) -> httpx.Response:
        """Send a request with a JSON body; its error is raised. options: `content` and `headers` as httpx takes them."""


class HttpDoor:
    """Door by a client of httpx, whose error is `httpx.HTTPError`."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def send(self, method: str, path: str, *, body: Any = None, **options: Any) -> httpx.Response:
        """Send a request with a JSON body. Raises: httpx.HTTPError."""
        content = {} if body is None else {"json": body}
        return self._client.request(method, path, **content, **options).raise_for_status()


def record(
    door: Door,
    experiment: str,
    name: str,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    files: Mapping[str, str],
) -> str:
    """Record a run with files in an experiment, which is made if it is not there; returns the run's ID.

    files: texts by the name of the file.
    """
    now_ms = int(time.time() * 1000)
    begun = {"experiment_id": _experiment(door, experiment), "run_name": name, "start_time": now_ms}
    run_id: str = door.send("POST", f"{_MLFLOW}/runs/create", body=begun).json()["run"]["info"]["run_id"]
    batch = {
        "run_id": run_id,
        "params": [{"key": key, "value": str(each)} for key, each in params.items()],
        "tags": [{"key": key, "value": each} for key, each in tags.items()],
        "metrics": [
            {"key": key, "value": each, "timestamp": now_ms, "step": 0} for key, each in metrics.items()
        ],
    }
    door.send("POST", f"{_MLFLOW}/runs/log-batch", body=batch)
    for file, text in files.items():
        door.send("PUT", f"{_ARTIFACTS}/runs/{run_id}/{file}", content=text.encode())
    door.send("POST", f"{_MLFLOW}/runs/update", body={"run_id": run_id, "status": "FINISHED"})
    return run_id


def read_file(door: Door, run_id: str, file: str) -> str:
    """Read a file of a run, as `record` stored it."""
    return door.send("GET", f"{_ARTIFACTS}/runs/{run_id}/{file}").text


def _experiment(door: Door, name: str) -> str:
    """ID of the experiment of that name, made where it is not there yet."""
    asked = {"max_results": _MOST_EXPERIMENTS, "filter": f"name = '{name}'"}
    found = door.send("POST", f"{_MLFLOW}/experiments/search", body=asked).json().get("experiments", [])
    if found:
        return str(found[0]["experiment_id"])
    made = door.send("POST", f"{_MLFLOW}/experiments/create", body={"name": name})
    return str(made.json()["experiment_id"])
