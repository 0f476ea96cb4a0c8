"""Projects whose trainer is a function of the user's own, saved as ONNX or as MLflow saves torch: late buses by wind and load.

Lateness follows the wind at first; from one day on the load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from examples.loop import DAY, START
from examples.policies import GOVERNANCE, RETRAINING, ROLLOUT
from toque.functions.evaluation import Gate
from toque.functions.monitoring import AnswerMonitor, DriftMonitor, PerformanceMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import FunctionTrainer, Trained, TrainingRequest
from toque.functions.tuning import Choice, Space

CROWDED, ROWS_A_DAY = 14, 150
SPACE: Space = {"steps": Choice(choices=[5, 200])}


def buses(day: int) -> pa.Table:
    """Buses of one day; whether each was late is known half a day later."""
    rng = np.random.default_rng(day)
    wind, load = rng.normal(size=(2, ROWS_A_DAY))
    odds = 2.5 * (load if day >= CROWDED else wind)
    asked = [START + day * DAY + DAY * (place + 0.5) / ROWS_A_DAY for place in range(ROWS_A_DAY)]
    return pa.table(
        {
            "row_id": [f"{day}-{place}" for place in range(ROWS_A_DAY)],
            "event_timestamp": asked,
            "label_known_at": [moment + DAY / 2 for moment in asked],
            "late": (rng.random(ROWS_A_DAY) < 1 / (1 + np.exp(-odds))).astype(int),
            "wind": wind,
            "load": load,
        }
    )


def fitted(request: TrainingRequest) -> tuple[np.ndarray[Any, Any], float]:
    """Weights and bias of a logistic regression after some steps of gradient descent."""
    x, y = request.inputs(request.train_rows)["numeric"].astype(float), request.train_labels()
    weights, bias = np.zeros(x.shape[1]), 0.0
    for _ in range(int(request.parameters["steps"])):
        gap = 1 / (1 + np.exp(-x @ weights - bias)) - y
        weights, bias = weights - gap @ x / len(y), bias - float(gap.mean())
    return weights, bias


def train_graph(request: TrainingRequest) -> Trained:
    """Write the regression as an ONNX graph."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights, bias = fitted(request)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["numeric", "weights", "bias"], ["odds"]),
            helper.make_node("Sigmoid", ["odds"], ["probability"]),
        ],
        "late",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", len(weights)])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 1])],
        [
            numpy_helper.from_array(weights[:, None].astype(np.float32), "weights"),
            numpy_helper.from_array(np.array([bias], np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, request.folder / "model.onnx")
    return Trained()


def train_by_mlflow(request: TrainingRequest) -> Trained:
    """Write the regression as a network, saved by MLflow's unmodified client."""
    import mlflow
    import torch
    from mlflow.models import infer_signature

    weights, bias = fitted(request)
    net = torch.nn.Sequential(torch.nn.Linear(len(weights), 1), torch.nn.Sigmoid())
    with torch.no_grad():
        net[0].weight.copy_(torch.from_numpy(weights[None]))
        net[0].bias.fill_(bias)
    rows = request.inputs(request.valid_rows)["numeric"][:5]
    mlflow.pytorch.save_model(
        net,
        str(request.folder),
        signature=infer_signature(rows, net(torch.from_numpy(rows)).detach().numpy()),
        input_example=rows,
        serialization_format="pt2",
        pip_requirements=["torch"],
    )
    return Trained()


def _model(name: str, train: Any) -> ModelDefinition:
    return ModelDefinition(
        name=name,
        entities=f"{name}/buses",
        label="late",
        numeric=("wind", "load"),
        trainer=FunctionTrainer(function=train, values={"steps": 200}, split="random", valid_fraction=0.2),
        gate=Gate(max_log_loss_ratio={"constant": 0.9, "linear": 1.1}, max_ece=0.2, min_rows=100),
        monitors=(PerformanceMonitor(min_labels=30), DriftMonitor(), AnswerMonitor()),
        rollout=ROLLOUT,
        retraining=RETRAINING,
        governance=GOVERNANCE,
    )


by_graph, by_mlflow = _model("late-onnx", train_graph), _model("late-mlflow", train_by_mlflow)
FEATURES: list[Any] = []
MODELS = [by_graph, by_mlflow]
