"""Where the time of one request goes inside a replica, stage by stage, without any network.

python -m ray_apps.predictor.breakdown [--columns 20]

Each line is the median time of one stage of a request for one row of a small model, on this machine, repeated by
itself; the last are the whole door, from ASGI message in to ASGI message out, and the same where nothing is logged.
There a stage takes longer than by itself, since the model has taken the caches.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import torch

from functions.prediction_log import encode_prediction
from functions.prediction_log.wal import WriteAheadLog
from functions.training.program import export_program, save_program
from ray_apps.predictor.doorkeeper import Doorkeeper
from ray_apps.predictor.engine import Engine
from ray_apps.predictor.http import HttpDoor
from ray_apps.predictor.protocol import InferResponse, decode_request, encode_response
from ray_apps.predictor.recording import Recorder, vectors
from ray_apps.predictor.scoring import load_scorer
from ray_apps.predictor.service import Predictor
from registry import Access, Registry, Signature, TensorSpec, open_store

ROUNDS = 2_000


class _Mlp(torch.nn.Module):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(columns, 64), torch.nn.Linear(64, 32)
        self.three = torch.nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.three(torch.relu(self.two(torch.relu(self.one(x))))))


def register(registry: Registry, folder: Path, columns: int) -> None:
    """Make a small MLP the champion of the model `mlp`."""
    folder.mkdir()
    example = torch.rand(2, columns)
    save_program(export_program(_Mlp(columns).eval(), {"x": example}), folder / "model.pt2")
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, columns])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
        example={"x": example[:1].tolist()},
    )
    registry.create_model("mlp")
    registry.promote("mlp", registry.create_version("mlp", path=folder, signature=signature).version)


def median_us(stage: Callable[[], Any]) -> float:
    """The median time of a stage in microseconds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter_ns()
        stage()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times) / 1e3


async def median_async_us(stage: Callable[[], Awaitable[Any]]) -> float:
    """The same for a stage that is awaited."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter_ns()
        await stage()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times) / 1e3


async def _in_turns(*doors: Callable[[], Awaitable[Any]]) -> list[float]:
    """The median of each, all of them measured in the same minute of a machine that others use too."""
    rounds = [[await median_async_us(door) for door in doors] for _ in range(5)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


async def measure(folder: Path, columns: int) -> dict[str, float]:
    """Median microseconds by stage."""
    torch.set_num_threads(1)
    store = open_store(f"file://{folder}/store")
    registry = Registry(store, actor="breakdown")
    register(registry, folder / "artifact", columns)
    engine = Engine("mlp", registry, load_scorer, scratch=folder / "loading")
    engine.follow_once()
    engine.load_wanted()
    log = WriteAheadLog(folder / "wal" / "predictions")
    token = Access(store, actor="breakdown").create_token("breakdown", "predictor")
    authorization = f"Bearer {token}".encode()
    gate = Doorkeeper(Access(store, actor="breakdown"))
    predictor = Predictor(engine, Recorder("mlp", log))
    door = HttpDoor(predictor, gate)
    row = [round(i / 10, 1) for i in range(columns)]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, columns], "data": row}
    body = orjson.dumps({"inputs": [tensor]})
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/infer",
        "headers": [(b"authorization", authorization)],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200, message  # noqa: S101, PLR2004 - measures answers only

    stages = await _stages(predictor, gate, authorization, body, log)
    unlogged = HttpDoor(Predictor(engine, Recorder("mlp", None)), gate)
    whole, without = await _in_turns(
        lambda: door(scope, receive, send), lambda: unlogged(scope, receive, send)
    )
    stages |= {"the whole door": whole, "the same without the log": without}
    await predictor.close()
    log.close()
    return stages


async def _stages(
    predictor: Predictor, gate: Doorkeeper, authorization: bytes, body: bytes, log: WriteAheadLog
) -> dict[str, float]:
    champion = predictor.engine.routes.champion
    assert champion is not None  # noqa: S101 - it was promoted above
    request = decode_request(body)
    outputs = champion.predict(request.inputs)
    response = InferResponse("mlp", 1, outputs, "0" * 32, {"arm": "champion"})

    def record() -> bytes:
        numeric, texts = vectors(request.inputs, 1)
        return encode_prediction(
            id="0" * 32, model="mlp", version=1, arm="champion", shadow=False, unit=None, at_us=0, latency_ms=0.1,
            rows=1, numeric=numeric, categorical=texts, outputs=vectors(outputs, 1)[0],
        )  # fmt: skip

    payload = record()
    return {
        "token": await median_async_us(lambda: gate.admit(authorization)),
        "parse": median_us(lambda: decode_request(body)),
        "choose the version": median_us(lambda: predictor.engine.routes.choose("unit")),
        "check": median_us(lambda: champion.check(request.inputs)),
        "model": median_us(lambda: champion.predict(request.inputs)),
        "log: record": median_us(record),
        "log: write": median_us(lambda: log.append(payload)),
        "encode": median_us(lambda: encode_response(response, request)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m ray_apps.predictor.breakdown", description=__doc__)
    parser.add_argument("--columns", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        stages = asyncio.run(measure(Path(name), arguments.columns))
    sys.stdout.write(f"\n{'inside the replica':24}{'median us':>12}\n")
    for name, median in stages.items():
        sys.stdout.write(f"{name:24}{median:12.1f}\n")


if __name__ == "__main__":
    main()
