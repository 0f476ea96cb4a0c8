"""Floor of the serving benchmarks, a request with nothing but ASGI, json and the torch model: `uvicorn toque.load.benchmarks.serving.floor:app`."""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch

COLUMNS = 20


class Mlp(torch.nn.Module):
    """Network of hidden layers of some widths, and one probability."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*pair) for pair in itertools.pairwise((*widths, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the probabilities (rows, 1) of `x` (rows, columns)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        return torch.sigmoid(last(x))


def small_mlp(columns: int = COLUMNS) -> Mlp:
    """Make the network of the comparison, with the same weights every time."""
    torch.manual_seed(0)
    return Mlp(columns, 64, 32).eval()


def wide_mlp() -> Mlp:
    """Make one of 8.4 million weights, which reading dominates for one row as for many."""
    return Mlp(COLUMNS, 2_048, 2_048, 2_048).eval()


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
