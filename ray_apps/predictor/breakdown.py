"""Measures where the time of one request goes inside a replica, stage by stage, without any network.

python -m toque.ray_apps.predictor.breakdown [--columns 20]
python -m toque.ray_apps.predictor.breakdown --parameters 100M [--device cuda] [--rows 1]

Each line is the median time of one stage of a request for one row of a small model, on this machine, repeated by
itself; the last are the whole endpoint, from ASGI message in to ASGI message out, with and without the log.
There a stage takes longer than by itself, since the model has taken the caches.

--parameters: a model of that size instead, and only the stages that depend on its size and rows. --device cuda: on the
CUDA device, the copies each waited for by themselves; "all in one" waits once, as a request does.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from toque.functions.model_formats.program import export_program, save_program
from toque.functions.prediction_log import encode_prediction
from toque.functions.prediction_log.writing.wal import WriteAheadLog
from toque.ray_apps.admission import open_admission
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.protocol.json import InferResponse, decode_request, encode_response
from toque.ray_apps.predictor.versions.cuda_scoring import REPEATS, CudaScorer
from toque.ray_apps.predictor.versions.engine import Engine
from toque.ray_apps.predictor.versions.scoring import load_scorer
from toque.registry import Access, Registry, Signature, TensorSpec, open_store

ROUNDS = 2_000
SIZED_ROUNDS = 200
"""For a model that takes the CPU tens of milliseconds."""


class _Mlp(torch.nn.Module):
    def __init__(self, columns: int, first: int = 64, second: int = 32) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(columns, first), torch.nn.Linear(first, second)
        self.three = torch.nn.Linear(second, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.three(torch.relu(self.two(torch.relu(self.one(x))))))


def register(registry: Registry, folder: Path, columns: int) -> None:
    """Make a small MLP the champion of the model `mlp`."""
    signature = _save(_Mlp(columns), folder)
    registry.create_model("mlp")
    registry.promote("mlp", registry.create_version("mlp", path=folder, signature=signature).version)


def _save(model: _Mlp, folder: Path) -> Signature:
    folder.mkdir()
    columns = model.one.in_features
    example = torch.rand(2, columns)
    save_program(export_program(model.eval(), {"x": example}), folder / "model.pt2")
    return Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, columns])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
        example={"x": example[:1].tolist()},
    )


def median_us(stage: Callable[[], Any], *, rounds: int = ROUNDS) -> float:
    """The median time of a stage in microseconds."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        stage()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times) / 1e3


async def median_async_us(stage: Callable[[], Awaitable[Any]]) -> float:
    """The median time of an awaitable stage in microseconds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter_ns()
        await stage()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times) / 1e3


async def _in_turns(*endpoints: Callable[[], Awaitable[Any]]) -> list[float]:
    """The median of each endpoint, measured in turns because other programs use the machine too."""
    rounds = [[await median_async_us(endpoint) for endpoint in endpoints] for _ in range(5)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


async def measure(folder: Path, columns: int) -> dict[str, float]:
    """Measure a small model's request; returns median microseconds by stage."""
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
    auth = TokenAuthenticator(open_admission(store, "breakdown"))
    predictor = Predictor(engine, Recorder("mlp", log))
    endpoint = ModelEndpoint(predictor, auth)
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

    stages = await _stages(predictor, auth, authorization, body, log)
    unlogged = ModelEndpoint(Predictor(engine, Recorder("mlp", None)), auth)
    whole, without = await _in_turns(
        lambda: endpoint(scope, receive, send), lambda: unlogged(scope, receive, send)
    )
    stages |= {"the whole endpoint": whole, "the same without the log": without}
    await predictor.close()
    log.close()
    return stages


async def _stages(
    predictor: Predictor, auth: TokenAuthenticator, authorization: bytes, body: bytes, log: WriteAheadLog
) -> dict[str, float]:
    champion = predictor.engine.routes.champion
    assert champion is not None  # noqa: S101 - it was promoted above
    request = decode_request(body)
    outputs = champion.predict(request.inputs)
    response = InferResponse("mlp", 1, outputs, "0" * 32, {"arm": "champion"})

    (numbers,), (answers,) = request.inputs.values(), outputs.values()

    def record() -> bytes:
        return encode_prediction(
            id="0" * 32, model="mlp", version=1, arm="champion", shadow=False, unit=None, at_us=0, latency_ms=0.1,
            rows=1, numeric=numbers, categorical=None, outputs=answers,
        )  # fmt: skip

    payload = record()
    return {
        "token": await median_async_us(lambda: auth.admit(authorization, model="mlp")),
        "parse": median_us(lambda: decode_request(body)),
        "choose the version": median_us(lambda: predictor.engine.routes.choose("unit")),
        "check": median_us(lambda: champion.check(request.inputs)),
        "model": median_us(lambda: champion.predict(request.inputs)),
        "log: record": median_us(record),
        "log: write": median_us(lambda: log.append(payload)),
        "encode": median_us(lambda: encode_response(response, request)),
    }


def measure_sized(folder: Path, parameters: int, columns: int, rows: int, device: str) -> dict[str, float]:
    """Measure the stages that depend on a model's size, in median microseconds.

    Raises: SystemExit if `device` is not there, or the program cannot run on it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device cuda: torch {torch.__version__} finds no CUDA device here")
    width = math.isqrt(parameters)
    signature = _save(_Mlp(columns, width, width), folder)
    numbers = np.random.default_rng(0).random((rows, columns), np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, columns], "data": numbers.ravel().tolist()}
    body = orjson.dumps({"inputs": [tensor]})
    request = decode_request(body)
    scorer = load_scorer(folder, signature)
    response = InferResponse("mlp", 1, scorer.predict(request.inputs), "0" * 32, {"arm": "champion"})
    stages = {
        "parse": median_us(lambda: decode_request(body)),
        "model on the CPU": median_us(lambda: scorer.predict(request.inputs), rounds=SIZED_ROUNDS),
    }
    if device == "cuda":
        on_device = load_scorer(folder, signature, device=device)
        if not isinstance(on_device, CudaScorer):
            raise SystemExit("--device cuda: the program stays on the CPU; the line before says why")
        stages |= device_stages(on_device, request.inputs)
    return stages | {"encode": median_us(lambda: encode_response(response, request))}


def device_stages(scorer: CudaScorer, inputs: Mapping[str, Any], *, rounds: int = ROUNDS) -> dict[str, float]:
    """Median microseconds of the copies to a device and back, and of the computation between."""
    arrays = scorer.arrays(inputs)

    def done(begin: Callable[[], Any]) -> None:
        begin()
        scorer.device.wait()

    for _ in range(REPEATS):  # captured before it is measured
        scorer.predict(inputs)
    with scorer.exclusive():
        placed = scorer.copy_in(arrays)
        outputs = scorer.graphs.run(placed)
        stages = {
            "device: copy in": median_us(lambda: done(lambda: scorer.copy_in(arrays)), rounds=rounds),
            "device: compute": median_us(lambda: done(lambda: scorer.graphs.run(placed)), rounds=rounds),
            "device: copy out": median_us(lambda: scorer.copy_out(outputs, arrays), rounds=rounds),
        }
    return stages | {"device: all in one": median_us(lambda: scorer.predict(inputs), rounds=rounds)}


def number(text: str) -> int:
    """Parse a number such as 2000, 10k, 100M or 1.5G. Raises: ValueError for any other text."""
    factor = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 1)
    return int(float(text if factor == 1 else text[:-1]) * factor)


def main() -> None:
    """Measure what the arguments ask for, and print one line a stage."""
    parser = argparse.ArgumentParser(prog="python -m toque.ray_apps.predictor.breakdown", description=__doc__)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--parameters", type=number)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.parameters is None and (arguments.device != "cpu" or arguments.rows != 1):
        parser.error("--device and --rows are of a model whose --parameters are given")
    with tempfile.TemporaryDirectory() as name:
        if arguments.parameters is None:
            stages = asyncio.run(measure(Path(name), arguments.columns))
        else:
            folder = Path(name) / "artifact"
            stages = measure_sized(
                folder, arguments.parameters, arguments.columns, arguments.rows, arguments.device
            )
    where = f" ({torch.cuda.get_device_name()})" if arguments.device == "cuda" else ""
    sys.stdout.write(f"\n{'inside the replica':24}{'median us':>12}{where}\n")
    for name, median in stages.items():
        sys.stdout.write(f"{name:24}{median:12.1f}\n")


if __name__ == "__main__":
    main()
