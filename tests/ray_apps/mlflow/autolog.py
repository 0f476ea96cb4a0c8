"""What a user of MLflow's autologging does, with libraries and client as they are installed. Prints the runs as JSON."""

import json
import sys

import lightgbm
import mlflow
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

table, label = load_breast_cancer(return_X_y=True, as_frame=True)
mlflow.set_experiment("tumours")
mlflow.autolog(log_input_examples=True)

with mlflow.start_run(run_name="sklearn"):
    make_pipeline(StandardScaler(), LogisticRegression()).fit(table, label)
with mlflow.start_run(run_name="search"):
    GridSearchCV(LogisticRegression(max_iter=5000), {"C": [0.1, 1.0]}, cv=2).fit(
        table[["mean radius"]], label
    )
with mlflow.start_run(run_name="xgboost"):
    matrix = xgboost.DMatrix(table, label)
    xgboost.train(
        {"max_depth": 2, "objective": "binary:logistic"},
        matrix,
        3,
        evals=[(matrix, "train")],
        verbose_eval=False,
    )
with mlflow.start_run(run_name="lightgbm"):
    data = lightgbm.Dataset(table, label)
    lightgbm.train({"num_leaves": 4, "objective": "binary", "verbose": -1}, data, 3, valid_sets=[data])

client = mlflow.MlflowClient()


def told(run: mlflow.entities.Run) -> dict[str, object]:
    """What a person finds of a run."""
    found, data = run.info, run.data
    return {
        "id": found.run_id,
        "name": found.run_name,
        "status": found.status,
        "parent": data.tags.get("mlflow.parentRunId"),
        "params": data.params,
        "metrics": data.metrics,
        "steps": {
            name: [point.step for point in client.get_metric_history(found.run_id, name)]
            for name in data.metrics
        },
        "files": sorted(file.path for file in client.list_artifacts(found.run_id)),
        "models": len(run.outputs.model_outputs) if run.outputs else 0,
        "inputs": [each.dataset.name for each in run.inputs.dataset_inputs],
    }


runs = mlflow.search_runs(experiment_names=["tumours"], output_format="list")
json.dump([told(run) for run in runs], sys.stdout)
