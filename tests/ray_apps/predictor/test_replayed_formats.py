"""Predictions of trees, a pipeline, images and texts, scored in batches and logged, replay with the same bits."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.ray_apps.predictor.conftest import MemoryLog
from toque.functions import Context, use_context
from toque.functions.evaluation.log_replay import replay_predictions
from toque.functions.prediction_log.frames import Frame
from toque.functions.prediction_log.records import large_values_table
from toque.functions.prediction_log.writing.drain import add_records
from toque.load.benchmarks.serving.replay import REPLAYED
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.protocol.json import InferRequest
from toque.ray_apps.predictor.versions.engine import Engine
from toque.ray_apps.predictor.versions.scoring import load_scorer
from toque.registry import Registry, Table, open_store, utc_now

REQUESTS = 30


@pytest.mark.parametrize("name", [*REPLAYED])
async def test_a_served_model_replays_bit_for_bit(tmp_path: Path, name: str):
    model, url = REPLAYED[name], f"file://{tmp_path}/store"
    registry = Registry(open_store(url), actor="ada")
    registry.create_model(name)
    (tmp_path / "files").mkdir()
    model.save(tmp_path / "files")
    tags = {"max_batch_rows": "16", "max_batch_wait_ms": "20"}
    registry.create_version(name, path=tmp_path / "files", signature=model.signature, tags=tags)
    registry.promote(name, 1)
    engine = Engine(name, registry, load_scorer, scratch=tmp_path / "loading")
    engine.follow_once()
    engine.load_wanted()
    log, rng = MemoryLog(), np.random.default_rng(3)
    predictor = Predictor(engine, Recorder(name, log))
    inputs = [model.rows(rng, 1 + 2 * (i % 3 == 2)) for i in range(REQUESTS)]
    await asyncio.gather(
        *(predictor.infer(InferRequest(id=f"r{i}", inputs=dict(each))) for i, each in enumerate(inputs))
    )
    await predictor.close()
    store = registry.store
    frames = [Frame(i + 1, payload, 0) for i, payload in enumerate(log.payloads)]
    add_records(store, "predictions", {"w": frames})
    with use_context(Context(store, url, clock=lambda: utc_now() + timedelta(minutes=1))):
        found = replay_predictions(name, version=1)
    rows = sum(len(next(iter(each.values()))) for each in inputs)
    assert (found.rows, found.equal, found.skipped, found.first) == (rows, rows, {}, ())
    assert Table(store, large_values_table(name)).exists() == (name == "torch-image")
