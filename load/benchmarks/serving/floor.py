"""Floor of the serving benchmarks, a request with nothing but ASGI, json and the torch model: `uvicorn toque.load.benchmarks.serving.floor:app`."""

from __future__ import annotations

import json
from typing import Any

import torch

COLUMNS = 20


class SmallMlp(torch.nn.Module):
    """Network of the comparison: 20 numbers unless said otherwise, two hidden layers, one probability."""

    def __init__(self, columns: int = COLUMNS) -> None:
        super().__init__()
        self.one = torch.nn.Linear(columns, 64)
        self.two = torch.nn.Linear(64, 32)
        self.three = torch.nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the probabilities (rows, 1) of `x` (rows, columns)."""
        return torch.sigmoid(self.three(torch.relu(self.two(torch.relu(self.one(x))))))


def small_mlp(columns: int = COLUMNS) -> SmallMlp:
    """Make the network with the same weights every time."""
    torch.manual_seed(0)
    return SmallMlp(columns).eval()


torch.set_num_threads(1)
_model = small_mlp()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer one request in the protocol's form, checking nothing."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    (tensor,) = json.loads(body)["inputs"]
    with torch.inference_mode():
        scores = _model(torch.tensor(tensor["data"]).reshape(tensor["shape"]))
    output = {"name": "y", "datatype": "FP32", "shape": list(scores.shape), "data": scores.flatten().tolist()}
    answer = json.dumps({"model_name": "mlp", "outputs": [output]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
