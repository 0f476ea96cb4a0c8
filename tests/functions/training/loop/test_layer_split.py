"""Layers that several workers split among them, beside rows that they share: they learn what one process does."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.functions.training.forked import answers
from tests.functions.training.split_worker import (
    CUT_AT,
    SPECS,
    WORKERS,
    checkpoints_in,
    cut_off,
    gone_on,
    losses,
    recipe_losses,
)
from tests.functions.training.test_llm import base
from toque.functions.training import TrainingDataError, TrainingError, fine_tune
from toque.functions.training.loop.process_group import SingleProcess, layer_split
from toque.functions.training.request import Workers
from toque.registry import TableSnapshot

transformers = pytest.importorskip("transformers")

__all__ = ["base"]  # a fixture
CLOSE = 1e-5


@pytest.mark.proof  # four processes for most of a minute
@pytest.mark.timeout(600)
def test_four_workers_that_split_layers_and_rows_learn_what_one_process_does(base, tmp_path):
    url = f"file://{tmp_path}/store"
    alone = {objective: losses(base, objective, SingleProcess()) for objective in SPECS}
    alone["recipe"] = recipe_losses(SingleProcess())
    cut_off(base, checkpoints_in(url, "alone"), SingleProcess())
    (tmp_path / "found").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.functions.training.split_worker", tmp_path / "found", base, url],
        text=True,
        capture_output=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = answers(tmp_path / "found")
    assert len(found) == WORKERS
    back = gone_on(base, checkpoints_in(url, "also split"), SingleProcess())
    whole = torch.tensor(alone["whole"])
    for each in found:
        for objective, wanted in alone.items():
            assert torch.tensor(each[objective]).allclose(torch.tensor(wanted), rtol=0, atol=CLOSE), objective
        for name in ("gone on sharded", "gone on split"):
            assert each[name]["from"] == CUT_AT
            assert torch.tensor(each[name]["losses"]).allclose(whole, rtol=0, atol=CLOSE), name
            assert each[name]["sum"] == pytest.approx(back["sum"], abs=1e-2)
    assert back["from"] == CUT_AT
    assert torch.tensor(back["losses"]).allclose(whole, rtol=0, atol=CLOSE)

    held = found[0]["held"]
    assert held["model.layers.0.self_attn.q_proj.weight"] == [
        32 // 4,
        32,
    ]  # a quarter: half of its half's rows
    assert held["model.layers.0.self_attn.o_proj.weight"] == [32 // 2, 32 // 2]
    assert held["model.layers.0.mlp.down_proj.weight"] == [32 // 2, 48 // 2]
    assert held["model.layers.0.input_layernorm.weight"] == [32 // 2]
    assert held["model.norm.weight"] == [32 // 4]


def test_a_network_says_how_its_layers_are_split():
    class Pair(nn.Module):
        def __init__(self, inner: int) -> None:
            super().__init__()
            self.layer_split = {"blocks.*.first": "colwise", "blocks.*.second": "rowwise"}
            block = {"first": nn.Linear(4, inner), "second": nn.Linear(inner, 4)}
            self.blocks = nn.ModuleList([nn.ModuleDict(block)])

    assert layer_split(Pair(6), 3) == {"blocks.0.first": "colwise", "blocks.0.second": "rowwise"}
    with pytest.raises(TrainingError, match=r"tensor=4: blocks\.0\.first has 6 outputs"):
        layer_split(Pair(6), 4)
    with pytest.raises(
        TrainingError, match="Linear does not say how its layers are split; give it `layer_split`"
    ):
        layer_split(nn.Linear(2, 2), 2)
    other = Pair(6)
    other.layer_split = {"blocks.*.gone": "colwise"}
    with pytest.raises(
        TrainingError,
        match=re.escape("no module of the names that it says are split, such as 'blocks.*.gone'"),
    ):
        layer_split(other, 2)


def llama(**sizes: int) -> nn.Module:
    given = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "vocab_size": 8,
        "head_dim": 4,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**given | sizes))


def test_heads_are_never_split():
    assert len(layer_split(llama(num_attention_heads=6, num_key_value_heads=2), 2)) == 7
    with pytest.raises(TrainingError, match="tensor=2: the network has num_key_value_heads=3"):
        layer_split(llama(num_attention_heads=6, num_key_value_heads=3), 2)


def test_what_is_split_in_another_way_is_refused():
    given = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 8}
    net = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**given, num_attention_heads=4, num_key_value_heads=2)
    )
    with pytest.raises(TrainingError, match="only linear layers are, by 'colwise' or 'rowwise'"):
        layer_split(net, 2)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"count": 4, "tensor": 3}, "tensor=3 with num_workers=4: .* a divisor of all"),
        ({"count": 4, "tensor": 0}, "tensor=0 with num_workers=4"),
        ({"count": 4, "tensor": 2, "sharding": "replicate"}, "layers are split with sharding='shard'"),
        (
            {"count": 4, "tensor": 2, "least": 2},
            "min_workers=2: layers are split by a fixed number of workers",
        ),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(given, says):
    with pytest.raises(TrainingError, match=says):
        Workers(**{"sharding": "shard"} | given)


def test_adapters_of_split_layers_are_refused():
    with pytest.raises(TrainingDataError, match=r"tensor=2 with lora: .* pass lora=None"):
        fine_tune(
            "m", "tiny@1", TableSnapshot(name="t", version=0), num_workers=2, sharding="shard", tensor=2
        )
