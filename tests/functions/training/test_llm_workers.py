"""Fine-tunes on two workers: of a whole model each, and of a half each."""

import os
import subprocess
import sys

import pytest

from functions.training.loop.process_group import SingleProcess
from tests.functions.training.forked import answers
from tests.functions.training.test_llm import base
from tests.functions.training.tuned_worker import SPECS, WORKERS, losses

transformers = pytest.importorskip("transformers")

__all__ = ["base"]  # a fixture


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
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
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
