"""Benchmark of the replay: predictions of four kinds of models are served, logged, drained and scored again, bit for bit.

The kinds are trees, a pipeline, images and texts. Each makes batches of up to 16 rows, and requests have one row or three, so that
most rows are scored beside others. The predictor is a process of its own; the replay runs in this one. For comparison each row is
also scored alone, which tells how many outputs would differ if the log did not say what was scored at once.
"""

from __future__ import annotations

import asyncio
import itertools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toque.functions import Context, use_context
from toque.functions.evaluation.log_replay import compare, load_scorer, replay_predictions
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.prediction_log import drain
from toque.functions.prediction_log.reading.exact import exact_rows, newest_rows
from toque.load.benchmarks.harness import Stopwatch, main, say, temporary
from toque.load.benchmarks.servers import redis_server, until
from toque.load.benchmarks.serving.fixtures import Predictor, Prepared, binary_body
from toque.registry import Access, Registry, Signature, open_store, utc_now

TAGS = {"max_batch_rows": "16", "max_batch_wait_ms": "3"}
Kind = typing.Literal["xgboost", "sklearn", "torch-image", "torch-text"]
ROWS_OF_REQUESTS = (1, 1, 3)
ATTEMPTS = 5
Array = npt.NDArray[Any]
COLUMNS = 30
PIXELS = 80
"""Height and width of an image: with three colours it is 19,200 bytes, which stand beside the row."""
WORDS = ("cheap", "late", "bag", "lost", "kind", "crew", "seat", "meal", "gate", "rain", "delay", "fast")


def run(
    *, rows: int = 10_000, connections: int = 24, models: tuple[Kind, ...] = typing.get_args(Kind)
) -> bool:
    """Measure each model; returns whether every logged prediction replays bit for bit."""
    whole = [measure(name, REPLAYED[name], rows, connections) for name in models]
    return all(whole)


def measure(name: str, model: ReplayedModel, rows: int, connections: int) -> bool:
    """Serve, drain and replay one model, and print the result; returns whether every bit was the same."""
    with temporary() as folder, redis_server(folder, appends=True) as redis_url:
        url = f"file://{folder}/store"
        store = open_store(url)
        registry = Registry(store, actor="bench")
        registry.create_model(name)
        (folder / name).mkdir()
        model.save(folder / name)
        registry.create_version(name, path=folder / name, signature=model.signature, tags=TAGS)
        registry.promote(name, 1)
        token = Access(store, actor="bench").create_token("bench", "predictor")
        place = Prepared(folder, url, token, redis_url)
        with place.run(name, "--standalone", asked=None) as ours:
            first, headers = binary_body(model.rows(np.random.default_rng(1), 1), id="first")
            until(ours.target(name, first, **headers).answers, f"{name} does not answer", within_s=600)
            asyncio.run(ask(ours, name, model, rows, connections))
        drain(store, redis_url, wal_root=folder / "store-wal")
        used, watch = Context(store, url, actor="bench"), Stopwatch()
        with use_context(used):
            replayed = replay_predictions(name, limit=rows)
        rate, alone = replayed.rows / watch.wall_s, scored_alone(used, name, model, rows)
    say(
        f"{name:12}{replayed.rows:7} rows{replayed.equal:7} equal{replayed.different:5} different{replayed.filled:5} beside filled places"
        f"{rate:8.0f} rows/s{alone:7} would differ if scored alone  {replayed.skipped or ''}"
    )
    return replayed.equal == replayed.rows and replayed.rows >= rows


async def ask(ours: Predictor, name: str, model: ReplayedModel, rows: int, connections: int) -> None:
    """Have at least `rows` rows predicted over several connections."""
    rng, sizes = np.random.default_rng(7), itertools.cycle(ROWS_OF_REQUESTS)
    requests = -(-rows * len(ROWS_OF_REQUESTS) // sum(ROWS_OF_REQUESTS))
    bodies = (binary_body(model.rows(rng, next(sizes)), id=f"r{number}") for number in range(requests))
    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(
        base_url=ours.url, limits=limits, headers=ours.headers, timeout=120
    ) as client:

        async def work() -> None:
            for body, own in bodies:
                for left in reversed(range(ATTEMPTS)):  # a starved predictor is kept waiting past its limits
                    try:
                        answer = await client.post(f"/v2/models/{name}/infer", content=body, headers=own)
                        answer.raise_for_status()
                        break
                    except httpx.TransportError:
                        if not left:
                            raise

        await asyncio.gather(*(work() for _ in range(connections)))


def scored_alone(used: Context, name: str, model: ReplayedModel, limit: int) -> int:
    """Count the rows whose outputs come out otherwise if each row is scored by itself."""
    now = utc_now()
    rows = newest_rows(used.store, name, now - timedelta(days=1), now, version=1, limit=limit)
    apart = (
        replace(row, batch=f"{row.prediction_id}-{i}", at=0, rows=1)
        for i, row in enumerate(exact_rows(used.store, name, model.signature, rows))
    )
    scorer, running = load_scorer(used.registry(), used.registry().get_version(name, 1), threads=1)
    with running:
        return compare(scorer, model.signature, apart).different


@dataclass(frozen=True, slots=True)
class ReplayedModel:
    """Model whose predictions are replayed. save: trains it and writes its files; rows: makes a request's inputs."""

    signature: Signature
    save: Callable[[Path], None]
    rows: Callable[[np.random.Generator, int], Mapping[str, Array]]


def _table(rng: np.random.Generator, rows: int, *, missing: float = 0.02) -> dict[str, Array]:
    values = rng.normal(size=(rows, COLUMNS))
    if missing:
        values[rng.random(values.shape) < missing] = np.nan
    return {"x": values}


_whole_table = partial(_table, missing=0)


def _images(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    return {"image": rng.integers(0, 256, (rows, 3, PIXELS, PIXELS), np.uint8)}


def _texts(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    words = [f"{word}{rng.integers(500)}".encode() for word in rng.choice(WORDS, rows * 16)]
    return {"words": np.array(words, dtype=object).reshape(rows, 16)}


def _labels(x: Array) -> Array:
    high = np.nansum(x[:, :5], axis=1) + 0.3 * np.nansum(x[:, 5:] ** 2, axis=1) > COLUMNS * 0.25
    return np.asarray(high, np.int64)


def _save_xgboost(folder: Path) -> None:
    import xgboost

    x = _table(np.random.default_rng(0), 2_000)["x"]
    parameters = {"objective": "binary:logistic", "max_depth": 5, "nthread": 1}
    booster = xgboost.train(parameters, xgboost.DMatrix(x, _labels(x)), num_boost_round=60)
    booster.save_model(folder / "model.ubj")


def _save_sklearn(folder: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from skops.io import dump

    x = _whole_table(np.random.default_rng(0), 2_000)["x"]
    dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(x, _labels(x)), folder / "model.skops")


class Images(nn.Module):
    """Convolutional network of three layers for colour images of 8-bit values."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 16, 5, stride=4), nn.Conv2d(16, 32, 3, stride=2)
        last = nn.Linear(32 * 9 * 9, 10)
        self.layers = nn.Sequential(
            first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), last, nn.Softmax(dim=1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Compute the probabilities (rows, 10) of `image` (rows, 3, PIXELS, PIXELS)."""
        scores: Tensor = self.layers(image.float() / 255)
        return scores


class Texts(nn.Module):
    """Network over the words of a text, each by its hash in a table of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(4_096, 64)
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 3), nn.Softmax(dim=1))

    def forward(self, words: Tensor) -> Tensor:
        """Compute the probabilities (rows, 3) of `words` (rows, 16), which come as hashes."""
        scores: Tensor = self.layers(self.vectors(words.remainder(4_096)).mean(dim=1))
        return scores


def _save_program(network: type[nn.Module], example: Mapping[str, Tensor], folder: Path) -> None:
    torch.manual_seed(0)
    save_program(export_program(network(), example), folder / "model.pt2")


def _signature(datatype: str, output: str, width: tuple[int, ...], **example: Any) -> Signature:
    ((name, rows),) = example.items()
    inputs = [{"name": name, "datatype": datatype, "shape": [-1, *np.shape(rows)[1:]]}]
    outputs = [
        {"name": output, "datatype": "FP64" if output == "probability" else "FP32", "shape": [-1, *width]}
    ]
    return Signature.model_validate({"inputs": inputs, "outputs": outputs, "example": example})


_ROW = [[0.5] * COLUMNS]
_IMAGE = np.full((1, 3, PIXELS, PIXELS), 7)
_SAVE_IMAGES = partial(
    _save_program, Images, {"image": torch.zeros((2, *_IMAGE.shape[1:]), dtype=torch.uint8)}
)
_SAVE_TEXTS = partial(_save_program, Texts, {"words": torch.ones((2, 16), dtype=torch.int64)})
_TEXT = [[f"word{i}" for i in range(16)]]
REPLAYED: dict[str, ReplayedModel] = {
    "xgboost": ReplayedModel(_signature("FP64", "y", (), x=_ROW), _save_xgboost, _table),
    "sklearn": ReplayedModel(_signature("FP64", "probability", (), x=_ROW), _save_sklearn, _whole_table),
    "torch-image": ReplayedModel(
        _signature("UINT8", "y", (10,), image=_IMAGE.tolist()), _SAVE_IMAGES, _images
    ),
    "torch-text": ReplayedModel(_signature("BYTES", "y", (3,), words=_TEXT), _SAVE_TEXTS, _texts),
}
"""One model of each kind by its name."""


if __name__ == "__main__":
    main(run, "torch", "xgboost-cpu", "scikit-learn", "numpy")
