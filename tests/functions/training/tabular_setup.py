import os
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.settings import Columns
from toque.functions.tuning.space import Choice, Range

NUMERIC = ["wind", "load", "seats"]
CATEGORICAL = ["carrier", "route"]
CARRIERS = np.array(["AA", "UA", "DL", "B6", "ünï"])


def examples(rows=4_000, seed=0, days=40):
    """Rows whose label depends on numbers, a category and on whether a number is missing."""
    generator = np.random.default_rng(seed)
    wind = generator.gamma(2.0, 5.0, rows)
    load = generator.normal(100.0, 30.0, rows)
    missing = generator.random(rows) < 0.2
    carrier = generator.integers(0, len(CARRIERS), rows)
    logit = 0.12 * (wind - 10) + 1.5 * (carrier == 2) - 1.0 * (carrier == 0) + 1.2 * missing - 0.8
    late = (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    start = datetime(2013, 1, 1, tzinfo=UTC).timestamp() * 1e6
    at = np.sort(start + generator.random(rows) * days * 86_400e6).astype(np.int64)
    return pa.table(
        {
            "wind": pa.array(wind, pa.float64()),
            "load": pa.array(load, pa.float64(), mask=missing),
            "seats": pa.array(generator.integers(50, 200, rows)),
            "carrier": pa.array(CARRIERS[carrier]),
            "route": pa.array([None if n % 7 == 0 else f"r{n % 30}" for n in range(rows)]),
            "late": late,
            "event_timestamp": pa.array(at).cast(pa.timestamp("us", "UTC")),
        }
    )


COLUMNS = Columns(NUMERIC, CATEGORICAL, "late")
NAMES = {"label": "late", "numeric": NUMERIC, "categorical": CATEGORICAL}
FAST = TabularParams(hidden=(32,), batch_size=512, epochs=4, lr=1e-2)
POPULATION = {
    "params": FAST.model_copy(update={"epochs": 3}),
    "space": {"lr": Range(low=1e-5, high=1e-2, log=True), "dropout": Choice(choices=[0.0, 0.1, 0.3])},
    "search": "pbt",
    "num_samples": 3,
    "copy_every": 1,
}


@dataclass(slots=True)
class KillsItsWorker(Checkpoints):
    """Kills the worker that has saved the second epoch, once."""

    mark: Path = Path()

    def commit(self, step, loss, index):
        Checkpoints.commit(self, step, loss, index)
        if len(index.facts["epochs"]) == 2 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class TensorMaker(torch.nn.Module):
    """Makes tensors by itself, of constants, buffers and device arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.constant = torch.nn.Linear(2, 2), torch.ones(2)
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, x):
        count = torch.arange(x.shape[0]).unsqueeze(1) * 0
        made = torch.zeros(x.shape[0], 2) + torch.full((2,), 0.5) + torch.linspace(0, 1, 2)
        more = torch.tensor([1.0, 2.0]).to("cpu") + torch.scalar_tensor(2.0) + x.new_zeros(2)
        return self.layer(x) * self.constant + self.passing + count + made + more
