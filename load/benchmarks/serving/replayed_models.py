"""Models of four kinds that the replay of the log is tried with: trees, a pipeline, images, texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from toque.functions.model_formats.program import export_program, save_program
from toque.registry import Signature, TensorSpec

__all__ = ["REPLAYED", "ReplayedModel"]

Array = npt.NDArray[Any]
COLUMNS = 30
PIXELS = 80
"""Height and width of an image: with three colours it is 19,200 bytes, which stand beside the row."""
WORDS = ("cheap", "late", "bag", "lost", "kind", "crew", "seat", "meal", "gate", "rain", "delay", "fast")


@dataclass(frozen=True, slots=True)
class ReplayedModel:
    """Model whose predictions are replayed. save: trains it and writes its files; rows: makes a request's inputs."""

    signature: Signature
    save: Callable[[Path], None]
    rows: Callable[[np.random.Generator, int], Mapping[str, Array]]


def _whole_table(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    return {"x": rng.normal(size=(rows, COLUMNS))}


def _table(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    values = rng.normal(size=(rows, COLUMNS))
    values[rng.random(values.shape) < 0.02] = np.nan
    return {"x": values}


def _labels(x: Array) -> Array:
    high = np.nansum(x[:, :5], axis=1) + 0.3 * np.nansum(x[:, 5:] ** 2, axis=1) > COLUMNS * 0.25
    return np.asarray(high, np.int64)


def _save_xgboost(folder: Path) -> None:
    import xgboost

    x = _table(np.random.default_rng(0), 2_000)["x"]
    parameters = {"objective": "binary:logistic", "max_depth": 5, "nthread": 1}
    xgboost.train(parameters, xgboost.DMatrix(x, _labels(x)), num_boost_round=60).save_model(
        folder / "model.ubj"
    )


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
        self.first = nn.Conv2d(3, 16, 5, stride=4)
        self.second = nn.Conv2d(16, 32, 3, stride=2)
        self.last = nn.Linear(32 * 9 * 9, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the probabilities (rows, 10) of `image` (rows, 3, PIXELS, PIXELS)."""
        x = torch.relu(self.second(torch.relu(self.first(image.float() / 255))))
        return torch.softmax(self.last(x.flatten(1)), dim=1)


class Texts(nn.Module):
    """Network over the words of a text, each by its hash in a table of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(4_096, 64)
        self.hidden = nn.Linear(64, 128)
        self.last = nn.Linear(128, 3)

    def forward(self, words: Tensor) -> Tensor:
        """Compute the probabilities (rows, 3) of `words` (rows, 16), which come as hashes."""
        mean = self.vectors(words.remainder(4_096)).mean(dim=1)
        return torch.softmax(self.last(functional.gelu(self.hidden(mean))), dim=1)


def _program(network: type[nn.Module], **example: Tensor) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        torch.manual_seed(0)
        save_program(export_program(network(), example), folder / "model.pt2")

    return save


def _images(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    return {"image": rng.integers(0, 256, (rows, 3, PIXELS, PIXELS), np.uint8)}


def _texts(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    words = np.empty((rows, 16), dtype=object)
    for place in np.ndindex(words.shape):
        words[place] = f"{WORDS[rng.integers(len(WORDS))]}{rng.integers(500)}".encode()
    return {"words": words}


def _signature(datatype: str, output: TensorSpec, **example: list[Any]) -> Signature:
    ((name, rows),) = example.items()
    spec = {"name": name, "datatype": datatype, "shape": [-1, *np.shape(rows)[1:]]}
    return Signature(inputs=[TensorSpec.model_validate(spec)], outputs=[output], example=example)


_ROW: list[Any] = [[0.5] * COLUMNS]
REPLAYED: dict[str, ReplayedModel] = {
    "xgboost": ReplayedModel(
        _signature("FP64", TensorSpec(name="y", datatype="FP32", shape=[-1]), x=_ROW), _save_xgboost, _table
    ),
    "sklearn": ReplayedModel(
        _signature("FP64", TensorSpec(name="probability", datatype="FP64", shape=[-1]), x=_ROW),
        _save_sklearn,
        _whole_table,
    ),
    "torch-image": ReplayedModel(
        _signature(
            "UINT8",
            TensorSpec(name="y", datatype="FP32", shape=[-1, 10]),
            image=np.full((1, 3, PIXELS, PIXELS), 7).tolist(),
        ),
        _program(Images, image=torch.zeros((2, 3, PIXELS, PIXELS), dtype=torch.uint8)),
        _images,
    ),
    "torch-text": ReplayedModel(
        _signature(
            "BYTES",
            TensorSpec(name="y", datatype="FP32", shape=[-1, 3]),
            words=[[f"word{i}" for i in range(16)]],
        ),
        _program(Texts, words=torch.ones((2, 16), dtype=torch.int64)),
        _texts,
    ),
}
"""One model of each kind by its name."""
