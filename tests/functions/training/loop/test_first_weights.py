"""Networks that are built without memory and filled shard by shard."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.functions.training.forked import answers
from tests.functions.training.memory_worker import BLOCK_BYTES, STATE_BYTES
from tests.functions.training.recipes import Sums, TiedStack
from toque.functions.training import RecipeParams, TrainingError
from toque.functions.training.loop.first_weights import Initialised, fill, reset, without_weights
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer, train

WORKERS, TOLERANCE = 4, 1.2


def tied(seed: int = 0) -> nn.Module:
    with without_weights():
        net = TiedStack()
    assert all(weight.is_meta for weight in net.parameters())
    fill(net, Initialised(reset, seed), device="cpu", held=SingleProcess().held, local=lambda weight: weight)
    return net


def test_weights_follow_from_the_seed_and_tied_ones_stay_one():
    one, again, other = tied(), tied(), tied(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.blocks[0].weight, other.blocks[0].weight)
    assert not torch.equal(one.blocks[0].weight, one.blocks[1].weight)
    assert one.last.weight is one.first.weight
    assert float(one.shift) == 0.5


def test_a_shard_is_the_rows_of_the_whole():
    whole, source = nn.Linear(3, 5), Initialised(reset, 0)
    fill(whole, source, device="cpu", held=SingleProcess().held, local=lambda weight: weight)
    rows = source.of(whole, "")["weight"]
    parts = [rows(range(3)), rows(range(3, 5))]
    assert torch.equal(torch.cat(parts), whole.weight)


def test_a_module_that_cannot_initialise_itself_is_named():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    with pytest.raises(TrainingError, match=r"Bare has weights but no reset_parameters\(\)"):
        fill(
            Bare(),
            Initialised(reset, 0),
            device="cpu",
            held=SingleProcess().held,
            local=lambda weight: weight,
        )


def test_blocks_that_are_computed_again_learn_the_same():
    plain = RecipeParams(lr=1e-2, epochs=1, batch_size=50)
    losses, calls = [], []
    for params in (plain, plain.model_copy(update={"recompute": True})):
        net = tied()
        counted: list[int] = []
        net.blocks[0].register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        inner = net.blocks[0].forward
        net.blocks[0].forward = lambda x, inner=inner, counted=counted: (counted.append(1), inner(x))[1]
        trainer = Trainer(net, Sums(1.0), params, SingleProcess())
        losses.append(trainer.run_epoch().valid_loss)
        calls.append(len(counted))
    assert losses[0] == losses[1]
    assert calls[1] > calls[0]  # each training step computes the block twice


def start(tmp_path, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.functions.training.memory_worker", str(tmp_path), *map(str, args)]
    return subprocess.run(
        command,
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_two_workers_fill_their_shards_with_what_one_would_begin_with(tmp_path):
    done = start(tmp_path, 2, "tied", 0)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = Trainer(tied(), Sums(1.0), RecipeParams(lr=1e-2, epochs=2, batch_size=50), SingleProcess())
    train(alone, SingleProcess())
    for each in answers(tmp_path):
        assert each["losses"] == pytest.approx([epoch.valid_loss for epoch in alone.epochs], rel=1e-4)
        assert each["rows"] == 3  # of six
        assert each["tied"]


@pytest.mark.slow
@pytest.mark.long
def test_four_workers_train_what_none_of_them_could_hold(tmp_path):
    allowed = int(TOLERANCE * (STATE_BYTES / WORKERS + BLOCK_BYTES))
    assert allowed < STATE_BYTES / 3
    done = start(tmp_path, WORKERS, "shard", allowed)
    assert done.returncode == 0, done.stderr[-2000:]
    for each in answers(tmp_path):
        assert each["losses"][1] < each["losses"][0]
        assert each["peak"] <= allowed
    (tmp_path / "alone").mkdir()
    alone = start(tmp_path / "alone", 1, "replicate", allowed)
    assert alone.returncode != 0
    assert "memory" in alone.stderr
