"""What two teams do with the client as it is installed: make the same things, then try the other's. Prints JSON."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import HTTPError

TEAMS = ["payments", "fraud"]
REFUSED = {"RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"}
client = MlflowClient()


def become(who: str, workspace: str | None) -> None:
    """Send further calls with the token of a team or of the admin, in a workspace."""
    os.environ["MLFLOW_TRACKING_TOKEN"] = tokens[who]
    mlflow.set_workspace(workspace)


def make(team: str) -> tuple[str, str]:
    """Log a run with a file and a model, and register it; returns the ids of the run and of the logged model."""
    become(team, team)
    mlflow.set_experiment("same")
    with mlflow.start_run(run_name="run") as run:
        mlflow.log_metric("loss", 0.5)
        Path("note.txt").write_text(team)
        mlflow.log_artifact("note.txt", "model")
        logged = mlflow.initialize_logged_model(name="logged")
        mlflow.finalize_logged_model(logged.model_id, "READY")
    client.create_registered_model("same")
    client.create_model_version("same", f"runs:/{run.info.run_id}/model", run.info.run_id)
    client.set_registered_model_alias("same", "champion", "1")
    return run.info.run_id, logged.model_id


def attempts(run: str, logged: str) -> dict[str, Callable[[], object]]:
    """Each call on what somebody else made."""
    return {
        "get_run": lambda: client.get_run(run),
        "log_metric": lambda: client.log_metric(run, "loss", 9.0),
        "log_param": lambda: client.log_param(run, "p", "9"),
        "set_tag": lambda: client.set_tag(run, "t", "9"),
        "history": lambda: client.get_metric_history(run, "loss"),
        "terminate": lambda: client.set_terminated(run),
        "delete_run": lambda: client.delete_run(run),
        "list_artifacts": lambda: client.list_artifacts(run),
        "download": lambda: client.download_artifacts(run, "model/note.txt"),
        "upload": lambda: client.log_artifact(run, "note.txt"),
        "get_logged_model": lambda: client.get_logged_model(logged),
        "tag_logged_model": lambda: client.set_logged_model_tags(logged, {"t": "9"}),
        "register": lambda: client.create_model_version("same", f"runs:/{run}/model", run),
    }


def attempts_by_name() -> dict[str, Callable[[], object]]:
    """Each call that names a thing as the other team's is named."""
    return {
        "search_experiments": client.search_experiments,
        "create_experiment": lambda: client.create_experiment("intruder"),
        "search_runs": lambda: client.search_runs(["same"]),
        "create_run": lambda: client.create_run("same"),
        "get_model": lambda: client.get_registered_model("same"),
        "search_models": client.search_registered_models,
        "search_versions": client.search_model_versions,
        "create_model": lambda: client.create_registered_model("intruder"),
        "set_alias": lambda: client.set_registered_model_alias("same", "champion", "1"),
        "by_alias": lambda: client.get_model_version_by_alias("same", "champion"),
        "download_uri": lambda: client.get_model_version_download_uri("same", "1"),
        "files": lambda: mlflow.artifacts.load_text("mlflow-artifacts:/models/same/1/note.txt"),
        "tag_version": lambda: client.set_model_version_tag("same", "1", "t", "9"),
        "delete_version": lambda: client.delete_model_version("same", "1"),
    }


def let_through(calls: dict[str, Callable[[], object]]) -> list[str]:
    """Names of the calls that were not refused."""
    passed = []
    for name, call in calls.items():
        try:
            passed.append(f"{name}: {call()!r}")
        except MlflowException as error:
            if error.error_code not in REFUSED and "Failed to get logged model" not in str(error):
                passed.append(f"{name}: {error.error_code} {error}")
        except HTTPError as error:  # of artifacts
            if error.response.status_code not in {403, 404}:
                passed.append(f"{name}: {error}")
    return passed


def attack(team: str, other: str, run: str, logged: str) -> dict[str, object]:
    """Try everything on what the other team made, from the own workspace and in theirs."""
    Path("note.txt").write_text("stolen")
    become(team, team)
    outside = let_through(attempts(run, logged))
    become(team, other)
    inside = let_through(attempts(run, logged) | attempts_by_name())
    become(team, None)
    return {
        "let_through": {"outside": outside, "inside": inside},
        "experiments": sorted(each.name for each in client.search_experiments()),
        "models": [each.name for each in client.search_registered_models()],
        "workspaces": [each.name for each in mlflow.list_workspaces()],
        "note": mlflow.artifacts.load_text("mlflow-artifacts:/models/same/1/note.txt"),
    }


tokens = json.loads(sys.argv[1])
become("root", None)
mlflow.create_workspace("third", description="of nobody")
made = {team: make(team) for team in TEAMS}
seen = {team: attack(team, other, *made[other]) for team, other in zip(TEAMS, reversed(TEAMS), strict=True)}
json.dump(seen, sys.stdout)
