"""Peer servers of `toque.load.benchmarks.serving.throughput`: the same small network behind MLServer and `mlflow models serve`.

Both live in an environment of their own (`pip install mlserver mlflow`), whose interpreter the benchmark is given. Each
is what its users run: one worker, no log of requests. The network is a few products of numpy there, which for one row
is faster than torch, so the difference is the server's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toque.load.benchmarks.serving.floor import COLUMNS, small_mlp

NETWORK = """
import numpy as np

W = np.load({weights!r})

def scores(x):
    x = np.maximum(x @ W["w1"].T + W["b1"], 0)
    x = np.maximum(x @ W["w2"].T + W["b2"], 0)
    return 1 / (1 + np.exp(-(x @ W["w3"].T + W["b3"])))
"""

MLSERVER = """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from network import scores

class Mlp(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", scores(x))])
"""

MLFLOW = """
import sys
import mlflow.pyfunc, numpy as np

class Mlp(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        from network import scores
        self.scores = scores

    def predict(self, context, model_input, params=None):
        return self.scores(np.asarray(model_input, dtype=np.float32))

mlflow.pyfunc.save_model(sys.argv[1], python_model=Mlp(), code_paths=["network.py"], pip_requirements=["mlflow"])
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """Peer server to start and measure. command: run in `folder`, after `prepare` if there is any."""

    name: str
    folder: Path
    command: tuple[str, ...]
    path: str
    body: bytes
    environment: dict[str, str]
    prepare: tuple[str, ...] = ()


def peers(python: str, folder: Path, ports: tuple[int, int, int, int], row: list[float]) -> list[Peer]:
    """Prepare both peers, with their files below `folder`.

    ports: MLServer's HTTP, gRPC and metrics, then MLflow's.
    """
    return [
        _mlserver(python, folder / "mlserver", ports[:3], row),
        _mlflow(python, folder / "mlflow", ports[3], row),
    ]


def _mlserver(python: str, folder: Path, ports: tuple[int, ...], row: list[float]) -> Peer:
    _network(folder)
    http, grpc, metrics = ports
    settings = {
        "debug": False,
        "parallel_workers": 0,
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
    }
    (folder / "served.py").write_text(MLSERVER)
    (folder / "settings.json").write_text(json.dumps(settings | {"host": "127.0.0.1"}))
    (folder / "model-settings.json").write_text(json.dumps({"name": "mlp", "implementation": "served.Mlp"}))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, COLUMNS], "data": row}
    body = json.dumps({"inputs": [tensor]}).encode()
    command = (str(Path(python).with_name("mlserver")), "start", str(folder))
    return Peer(
        "MLServer", folder, command, f":{http}/v2/models/mlp/infer", body, {"PYTHONPATH": str(folder)}
    )


def _mlflow(python: str, folder: Path, port: int, row: list[float]) -> Peer:
    _network(folder)
    (folder / "save.py").write_text(MLFLOW)
    model = str(folder / "model")
    served = (python, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local")
    command = (*served, "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    body = json.dumps({"inputs": [row]}).encode()
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PATH": f"{Path(python).parent}:/usr/bin:/bin",
    }
    prepare = (python, "save.py", model)
    return Peer("mlflow models serve", folder, command, f":{port}/invocations", body, environment, prepare)


def _network(folder: Path) -> None:
    """Write the weights of the small network, and a module that computes with them."""
    import numpy as np  # late: the figures' module is imported by every process of the benchmark

    folder.mkdir(parents=True)
    model = small_mlp()
    layers = zip("123", (model.one, model.two, model.three), strict=True)
    weights = {
        f"{kind}{n}": values
        for n, layer in layers
        for kind, values in (("w", layer.weight), ("b", layer.bias))
    }
    arrays: dict[str, Any] = {name: value.detach().numpy() for name, value in weights.items()}
    np.savez(folder / "weights.npz", **arrays)
    (folder / "network.py").write_text(NETWORK.format(weights=str(folder / "weights.npz")))
