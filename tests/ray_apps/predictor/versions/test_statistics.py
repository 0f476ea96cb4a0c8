"""Statistics and configuration of a version, in the terms of Triton's extensions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.ray_apps.predictor.conftest import ServedModel, tensors
from toque.ray_apps.predictor.http.model_endpoint import model_config
from toque.ray_apps.predictor.versions.batching import Batcher, Batching
from toque.ray_apps.predictor.versions.loaded import VersionStatistics
from toque.registry import Signature, TensorSpec


def test_totals_add_up():
    statistics = VersionStatistics()
    statistics.executions = 2
    statistics.succeed(3, input_s=0.25, infer_s=0.5)
    statistics.succeed(1, input_s=0.5, infer_s=1.0)
    statistics.fail(0.125)
    found = statistics.describe("late", 7, batches=4, waited_s=0.25)
    assert found.pop("last_inference") > 0
    assert found == {
        "name": "late",
        "version": "7",
        "inference_count": 4,
        "execution_count": 6,
        "inference_stats": {
            "success": {"count": 2, "ns": 2_250_000_000},
            "fail": {"count": 1, "ns": 125_000_000},
            "queue": {"count": 2, "ns": 250_000_000},
            "compute_input": {"count": 2, "ns": 750_000_000},
            "compute_infer": {"count": 2, "ns": 1_250_000_000},
            "compute_output": {"count": 2, "ns": 0},
        },
    }


async def test_the_wait_for_a_batch_is_counted():
    first = asyncio.Event()

    async def predict(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if not first.is_set():
            await first.wait()
        return inputs

    batcher = Batcher(predict, Batching(8))
    row = {"x": np.zeros((1, 1), np.float32)}
    asked = [asyncio.create_task(batcher.predict(row, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    late = asyncio.create_task(batcher.predict(row, 1))
    await asyncio.sleep(0.05)
    assert batcher.waited_s < 0.02
    first.set()
    await asyncio.gather(late, *asked)
    assert batcher.waited_s >= 0.05
    assert (batcher.batches, batcher.rows) == (2, 4)


async def test_each_version_counts_its_own_and_a_shadow_counts_none(served_model: ServedModel):
    champion, other = 1, served_model.version()
    served_model.registry.set_traffic("late", {}, shadows=[other])
    served_model.refresh()
    for _ in range(2):
        await served_model.infer(tensors(3))
    await served_model.infer(path=f"/versions/{other}/infer")
    await served_model.predictor.shadows.drained()
    found = (await served_model.client.get("/stats")).json()["model_stats"]
    assert [(one["version"], one["inference_count"], one["execution_count"]) for one in found] == [
        (str(champion), 6, 2),
        (str(other), 1, 1),
    ]
    one = (await served_model.client.get(f"/versions/{other}/stats")).json()["model_stats"]
    assert one == found[1:]
    assert (await served_model.client.get("/versions/9/stats")).status_code == 404
    assert (await served_model.client.get("/stats", headers={"Authorization": ""})).status_code == 401
    assert (await served_model.client.post("/stats")).status_code == 405


def test_a_model_of_a_fixed_number_of_rows_has_no_batch_size():
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="BYTES", shape=[3, 2])],
        outputs=[TensorSpec(name="y", datatype="FP64", shape=[-1, 1])],
    )
    config = model_config("m", signature, None)
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_STRING", "dims": [3, 2]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_FP64", "dims": [-1, 1]}]
    assert "dynamic_batching" not in config


def test_batches_stand_in_the_configuration():
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 512])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1])],
    )
    config = model_config("m", signature, Batching(32, 0.002))
    assert config["max_batch_size"] == 16_777_216 // 512
    assert config["input"][0]["dims"] == [512]
    assert config["output"][0]["dims"] == []
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [32],
        "max_queue_delay_microseconds": 2_000,
    }
