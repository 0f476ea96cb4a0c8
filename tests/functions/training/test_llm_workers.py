"""Fine-tunes on two workers: of a whole model each, of a half each, and on Ray."""

import os
import subprocess
import sys

import pytest
import torch

from tests.functions.training.forked import answers
from tests.functions.training.split_worker import STEADY
from tests.functions.training.test_llm import SMALL, base
from tests.functions.training.tuned_worker import (
    ADAPTERS,
    LARGE,
    LARGE_BYTES,
    LAYER_BYTES,
    PARAMS,
    SPECS,
    WORKERS,
    losses,
    rows,
)
from toque.functions.training import fine_tune
from toque.functions.training.loop.process_group import SingleProcess
from toque.registry import Table

transformers = pytest.importorskip("transformers")

__all__ = ["base"]  # a fixture
TOLERANCE = 1.2


def start(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.functions.training.tuned_worker", *map(str, args)],
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sharding", ["replicate", pytest.param("shard", marks=pytest.mark.proof)])
def test_two_workers_learn_what_one_does_though_one_has_no_row_to_validate(base, tmp_path, sharding):
    alone = {objective: losses(base, objective, SingleProcess()) for objective in SPECS}
    done = start(tmp_path, base, sharding)
    assert done.returncode == 0, done.stderr[-2000:]
    found = answers(tmp_path)
    assert len(found) == WORKERS
    for each in found:
        for objective, wanted in alone.items():
            for got, epoch in zip(each[objective], wanted, strict=True):
                assert got == pytest.approx(epoch, abs=1e-4)


@pytest.mark.proof  # minutes; `loop/test_first_weights.py` has four workers that train what none of them could hold
@pytest.mark.timeout(900)
def test_two_workers_tune_weights_that_neither_could_hold(base, tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(num_attention_heads=8, tie_word_embeddings=True, **LARGE)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "large")
    assert len(list((tmp_path / "large").glob("*.safetensors"))) == 1  # larger than what a worker may have
    (tmp_path / "tiny").symlink_to(base)
    allowed = int(TOLERANCE * (LARGE_BYTES / WORKERS + LAYER_BYTES))
    assert allowed < 0.75 * LARGE_BYTES
    (tmp_path / "shard").mkdir()
    done = start(tmp_path / "shard", tmp_path / "large", "shard", allowed)
    assert done.returncode == 0, done.stderr[-2000:]
    for each in answers(tmp_path / "shard"):
        assert each["losses"][1] < each["losses"][0]
        assert each["peak"] <= allowed
    (tmp_path / "alone").mkdir()
    alone = start(tmp_path / "alone", tmp_path / "large", "alone", allowed)
    assert alone.returncode != 0
    assert "memory" in alone.stderr


@pytest.mark.ray
@pytest.mark.proof  # the next-cheapest is above: two processes without Ray
@pytest.mark.timeout(900)
def test_two_workers_of_ray_fine_tune_as_one_does(context, base, shared_ray):
    shared_ray(2)
    registry = context.registry()
    registry.create_model("tiny")
    registry.create_version("tiny", base, signature=SMALL)
    snapshot = Table(context.store, "training/sums").overwrite(rows())
    given = {"length": 32, "lora": ADAPTERS, "params": PARAMS}
    one = fine_tune("one", "tiny@1", snapshot, **given)
    two = fine_tune("two", "tiny@1", snapshot, **given, num_workers=2, sharding="shard")
    assert two.metrics["valid_loss"] == pytest.approx(one.metrics["valid_loss"], abs=1e-4)
    curves = [
        {point.step: point.value for point in registry.get_run(each.run_id).series("train_loss")}
        for each in (one, two)
    ]
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert "adapter/adapter_model.safetensors" in registry.get_version("two", two.version).files
    assert list(context.store.list("checkpoints/")) == []


@pytest.mark.ray
@pytest.mark.proof  # `loop/test_layer_split.py` has four such workers without Ray
@pytest.mark.timeout(900)
def test_two_workers_of_ray_that_split_layers_fine_tune_as_one_does(context, base, shared_ray):
    shared_ray(2)
    registry = context.registry()
    registry.create_model("tiny")
    registry.create_version("tiny", base, signature=SMALL)
    snapshot = Table(context.store, "training/sums").overwrite(rows())
    given = {"length": 32, "lora": None, "params": PARAMS.model_copy(update={"optimizer": STEADY})}
    one = fine_tune("one", "tiny@1", snapshot, **given)
    two = fine_tune("two", "tiny@1", snapshot, **given, num_workers=2, sharding="shard", tensor=2)
    assert two.metrics["valid_loss"] == pytest.approx(one.metrics["valid_loss"], abs=1e-5)
    assert registry.get_run(two.run_id).record().params["tensor"] == "2"
