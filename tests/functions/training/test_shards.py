"""A model that is split among workers: two processes of this machine, and files of shares without any."""

import json
import subprocess
import sys

import pytest
import torch

from functions.training.checkpoints import Checkpoints, Shard, Snapshot
from functions.training.loop.process_group import SingleProcess
from functions.training.loop.training_loop import train
from tests.functions.training.recipes import trainer


@pytest.mark.parametrize(("count", "size"), [(1, 3), (5, 2), (7, 3), (8, 4), (0, 2)])
def test_a_shard_is_what_torch_chunk_gives(count, size):
    numbers = torch.arange(count)
    chunks = [each.tolist() for each in torch.chunk(numbers, size)] if count else []
    shares = [list(Shard(rank, size).rows(count)) for rank in range(size)]
    assert [shard for shard in shares if shard] == chunks


def saved(checkpoints, epoch, whole, size):
    for rank in range(size):
        shard = Shard(rank, size)
        rows = shard.rows(len(whole))
        tensors = {"net.w": whole[rows.start : rows.stop], "net.b": torch.ones(2)}
        checkpoints.save(epoch, Snapshot(tensors, {"epoch": epoch}, {"net.w": len(whole)}), shard)


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_another_number_of_workers_reads_its_own_rows(context, after):
    checkpoints, whole = Checkpoints.of(context.store, {}), torch.randn(7, 2)
    saved(checkpoints, 4, whole, 3)
    got = [checkpoints.latest(Shard(rank, after)) for rank in range(after)]
    assert torch.equal(torch.cat([each.tensors["net.w"] for each in got]), whole)
    assert all(torch.equal(each.tensors["net.b"], torch.ones(2)) for each in got)


def test_an_epoch_with_an_absent_or_damaged_shard_does_not_count(context):
    checkpoints, whole = Checkpoints.of(context.store, {}), torch.randn(4, 2)
    for epoch in range(2):
        saved(checkpoints, epoch, whole, 2)
    last = max(context.store.list(checkpoints.folder))
    assert last.endswith("000001.1-of-2.safetensors")
    context.store.put(last, context.store.get(last)[:-1])
    assert checkpoints.latest().facts == {"epoch": 0}
    context.store.delete(last)
    assert checkpoints.latest().facts == {"epoch": 0}
    checkpoints.save(2, Snapshot({}, {"epoch": 2}), Shard(0, 3))  # the first of three
    assert checkpoints.latest().facts == {"epoch": 0}


@pytest.mark.slow
def test_two_workers_with_half_a_model_each_learn_what_one_does_though_interrupted(context, tmp_path):
    alone = trainer()
    train(alone, SingleProcess())
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.functions.training.shard_worker",
                str(rank),
                str(tmp_path),
                context.store_url,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = [json.loads(worker.communicate(timeout=120)[0].splitlines()[-1]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    for each in results:
        assert each["resumed"] == each["undisturbed"]  # to the last bit
        assert each["undisturbed"] == pytest.approx([epoch.valid_loss for epoch in alone.epochs], rel=1e-4)
        for pieces in each["pieces"]:
            assert pieces == pytest.approx(each["undisturbed"], rel=1e-5)
        assert each["rows"] in ([3, 3], [2, 2])  # of five: weight and its moments
    checkpoints = Checkpoints(context.store, "checkpoints/cut/")
    assert len(list(context.store.list(checkpoints.folder))) == 4  # two epochs, two shares
    whole = checkpoints.latest()
    assert whole.tensors["best.first.weight"].shape == (5, 3)
    wanted = alone.net.state_dict()["first.weight"]
    assert torch.allclose(whole.tensors["best.first.weight"], wanted, atol=1e-4)
