"""Runs of an experiment, with curves, files and parameters, written as another program logs them."""

import math
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

from tests.ray_apps.console.sample_platform import MODEL, NOW
from toque.registry import ObjectStore, Registry
from toque.registry.runs.record import Point, RunRecord, Segment

EXPERIMENT = MODEL
RUNS = tuple(f"{0x19C000000000 + number:012x}{number:020x}" for number in range(8))
_EPOCHS = 40


def fill_runs(store: ObjectStore) -> None:
    """Log eight runs: six have ended, the seventh failed, the last one is running."""
    for number, run_id in enumerate(RUNS):
        _log(store, number, run_id, NOW - timedelta(hours=8 - number))


def _log(store: ObjectStore, number: int, run_id: str, at: datetime) -> None:
    registry = Registry(store, actor="sweep", clock=lambda: at)
    rate, width = 0.3 / (number + 1), 16 * (1 + number % 3)
    record = RunRecord(
        id=run_id,
        experiment=EXPERIMENT,
        name=f"trial-{number}",
        status="RUNNING",
        actor="sweep",
        started_at=at,
        params={"lr": f"{rate:.4g}", "width": str(width), "optimizer": "adam" if number % 2 else "sgd"},
        tags={"team": "operations"},
        facts={"remote": True, "code": "9f86d081884c7d65" * 4},
    )
    registry.begin(record)
    points = [
        (name, Point(step, value, at + timedelta(seconds=9 * step)))
        for step in range(_EPOCHS)
        for name, value in _values(step, rate, width)
    ]
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "weights.npy"
        model.write_bytes(bytes(range(256)) * (number + 1))
        files["model/weights.npy"] = registry.store_artifact(run_id, "model/weights.npy", model)
    registry.store_segment(run_id, 0, Segment(points=points, artifacts=files).to_bytes(nonce=run_id))
    if number == 6:
        registry.store_segment(
            run_id, 1, Segment(tags={"error": "ValueError: <no> rows"}).to_bytes(nonce="e")
        )
    if number < 7:
        registry.end(record, "FAILED" if number == 6 else "FINISHED")


def _values(step: int, rate: float, width: int) -> list[tuple[str, float]]:
    loss = 0.42 + 0.27 * math.exp(-rate * step) + 0.01 * math.sin(step * 1.7) - width / 2_000
    return [
        ("valid_loss", loss),
        ("train_loss", loss - 0.02 * (1 - math.exp(-step / 9))),
        ("auc", 1.1 - loss),
    ]
