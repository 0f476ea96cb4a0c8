"""Workers that are killed again and again: a folder, a store, and the number of kills. Leaves losses, and where each start resumed.

All are forks of this process. A kill hits one of them or both, at a step drawn at random; who is left then loses its partner.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from tests.functions.training.forked import join_group
from tests.functions.training.recipes import FAST, trainer
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop.keeping import Cadence, Keeper
from toque.functions.training.loop.process_group import ShardedGroup
from toque.functions.training.loop.training_loop import train
from toque.registry import open_store

INTERVAL, WORKERS = 3, 2
PARAMS = FAST.model_copy(update={"epochs": 10, "clip": 0.5})
_PATIENCE_S = 20.0


class Logged(Keeper):
    """Writes down each step of the first worker, and where it resumed."""

    def __init__(self, group, checkpoints, log: Path) -> None:
        super().__init__(group, checkpoints, Cadence(steps=INTERVAL))
        self._log = log

    def resume(self, trainer) -> None:
        super().resume(trainer)
        self._write(f"from {trainer.step}")

    def after_step(self, trainer) -> None:
        super().after_step(trainer)
        self._write(f"step {trainer.step}")

    def _write(self, line: str) -> None:
        if self._group.rank == 0:
            with self._log.open("a") as file:
                file.write(f"{line}\n")


def work(rank: int, meeting: Path, url: str, log: Path) -> None:
    join_group(rank, WORKERS, meeting)
    group = ShardedGroup()
    each = trainer(PARAMS, group)
    train(each, group, keeper=Logged(group, Checkpoints(open_store(url), "checkpoints/killed/"), log))
    if rank == 0:
        losses = [epoch.valid_loss for epoch in each.epochs]
        (log.parent / "losses.json").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()


def start(folder: Path, url: str, number: int) -> list[multiprocessing.Process]:
    args = (folder / f"group-{number}", url, folder / "log")
    made = [
        multiprocessing.get_context("fork").Process(target=work, args=(rank, *args))
        for rank in range(WORKERS)
    ]
    for each in made:
        each.start()
    return made


def lines(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


def kill_after(steps: int, workers: list[multiprocessing.Process], log: Path, draw: random.Random) -> None:
    before = lines(log)
    while lines(log) <= before + steps and all(each.is_alive() for each in workers):
        time.sleep(0.002)
    for each in draw.choice([workers, workers[:1], workers[1:]]):
        if each.is_alive():
            os.kill(each.pid, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE_S
    for each in workers:
        each.join(max(0.0, deadline - time.monotonic()))
        each.kill()  # as whoever started a group does with those that wait for a lost one
        each.join()


if __name__ == "__main__":
    place, url, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    draw = random.Random(kills)
    for number in range(kills):
        kill_after(draw.randrange(1, 9), start(place, url, number), place / "log", draw)
    last = start(place, url, kills)
    for each in last:
        each.join()
    sys.exit(max(abs(each.exitcode or 0) for each in last))
