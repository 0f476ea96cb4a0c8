"""A model that is split among workers: two processes of this machine."""

import json
import subprocess
import sys

import pytest
import torch

from tests.functions.training.recipes import trainer
from tests.functions.training.shard_worker import QUICK
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import train


@pytest.mark.slow
def test_two_workers_with_half_a_model_each_learn_what_one_does_though_interrupted(context, tmp_path):
    alone = trainer(QUICK)
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
    results = [json.loads(worker.communicate(timeout=280)[0].splitlines()[-1]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    for each in results:
        assert each["resumed"] == each["undisturbed"]  # to the last bit
        assert each["undisturbed"] == pytest.approx([epoch.valid_loss for epoch in alone.epochs], rel=1e-4)
        for pieces in each["pieces"]:
            assert pieces == pytest.approx(each["undisturbed"], rel=1e-5)
        assert each["rows"] in ([3, 3], [2, 2])  # of five: weight and its moments
    last, before = Checkpoints(context.store, "checkpoints/cut/").open()
    assert len(last.files) == len(before.files) == 2  # one of each worker
    whole = trainer(QUICK)
    Keeper(SingleProcess(), Checkpoints(context.store, "checkpoints/cut/")).resume(whole)  # by one worker
    wanted = alone.net.state_dict()
    for name, value in whole.net.state_dict().items():
        assert torch.allclose(value, wanted[name], atol=1e-4)
