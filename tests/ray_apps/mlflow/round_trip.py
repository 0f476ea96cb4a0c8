"""What a user of MLflow does, with the client as it is installed. Prints what it found as JSON."""

import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

net = torch.nn.Linear(2, 1)
rows = np.ones((3, 2), np.float32)
answers = net(torch.from_numpy(rows)).detach().numpy()

mlflow.set_experiment("late flights / first try")
with mlflow.start_run(run_name="linear", tags={"team": "ops"}) as run:
    mlflow.log_params({"lr": 0.01, "layers": 1})
    for step in range(3):
        mlflow.log_metric("log_loss", 1 / (step + 1), step=step)
    mlflow.log_metrics({"auc": 0.75, "ece": float("nan")})
    Path("notes").mkdir()
    Path("notes/why.txt").write_text("because")
    mlflow.log_artifacts("notes", "notes")
    info = mlflow.pytorch.log_model(
        net, name="model", input_example=rows, signature=infer_signature(rows, answers),
        serialization_format="pt2", pip_requirements=["torch"], registered_model_name="late", step=2,
    )  # fmt: skip
with mlflow.start_run(run_name="worse"):
    mlflow.log_metric("log_loss", 0.9)
    mlflow.log_param("lr", 0.5)

client = MlflowClient()
client.set_registered_model_alias("late", "champion", 1)
client.set_model_version_tag("late", "1", "checked", "yes")
client.set_tag(run.info.run_id, "verdict", "good")

found = client.get_run(run.info.run_id)
searched = mlflow.search_runs(
    experiment_names=["late flights / first try"],
    filter_string="metrics.log_loss < 0.5 and params.lr = '0.01' and tags.team = 'ops'",
    order_by=["metrics.log_loss ASC"],
    output_format="list",
)
version = client.get_model_version_by_alias("late", "champion")
loaded = mlflow.pyfunc.load_model("models:/late@champion")
try:
    mlflow.pytorch.load_model("models:/late@absent")
except MlflowException as error:
    absent = error.error_code

result = {
    "run": run.info.run_id,
    "status": found.info.status,
    "params": found.data.params,
    "loss": found.data.metrics["log_loss"],
    "nan": str(found.data.metrics["ece"]),
    "team": found.data.tags["team"],
    "verdict": found.data.tags["verdict"],
    "history": [(point.step, round(point.value, 3)) for point in client.get_metric_history(run.info.run_id, "log_loss")],
    "searched": [each.info.run_id for each in searched],
    "files": [file.path for file in client.list_artifacts(run.info.run_id)],
    "note": mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/notes/why.txt"),
    "version": [version.version, version.run_id, version.status, list(version.aliases), version.tags],
    "models": [model.name for model in client.search_registered_models("name LIKE 'la%'")],
    "versions": [each.version for each in client.search_model_versions("name = 'late'")],
    "logged": [model.name for model in client.search_logged_models([found.info.experiment_id])],
    "same": bool(np.allclose(loaded.predict(rows), answers)),
    "absent": absent,
    "experiments": sorted(each.name for each in client.search_experiments()),
    "uri": info.model_uri.startswith("models:/m-"),
}  # fmt: skip
json.dump(result, sys.stdout)
