"""Checkpoints within an epoch, written beside the steps."""

import itertools
import json
import resource
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load

from tests.functions.training.kept_worker import INTERVAL, PARAMS
from tests.functions.training.recipes import trainer
from toque.functions.training.checkpoints.saved import Checkpoints, Index, Piece, Retention
from toque.functions.training.checkpoints.storage import StoreReader
from toque.functions.training.checkpoints.uploader import digests_of
from toque.functions.training.loop.keeping import Cadence, Keeper, Pulse, Resting
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import train


class Cut(Exception):  # noqa: N818 - says what happens
    """The power went."""


def cut_after(step, keeper, each):
    """Train until a step, in whatever epoch it is."""

    def after() -> None:
        keeper.after_step(each)
        if each.step >= step:
            raise Cut

    with suppress(Cut):
        while True:
            keeper.save(each, loss=each.run_epoch(after).valid_loss)
    keeper.wait()


@pytest.mark.parametrize("step", [2, 7, 11, 23])
def test_a_training_cut_at_any_step_repeats_one_interval_and_ends_the_same(context, step):
    undisturbed, broken, resumed = trainer(), trainer(), trainer()
    train(undisturbed, SingleProcess())
    checkpoints = Checkpoints.of(context.store, {"cut": step})
    every = Cadence(steps=3)
    cut_after(step, Keeper(SingleProcess(), checkpoints, every), broken)
    keeper = Keeper(SingleProcess(), checkpoints, every)
    keeper.resume(resumed)
    assert step - 3 < resumed.step <= step
    train(resumed, SingleProcess(), keeper=keeper)
    assert [e.valid_loss for e in resumed.epochs] == [e.valid_loss for e in undisturbed.epochs]
    assert [e.train_loss for e in resumed.epochs] == pytest.approx([e.train_loss for e in undisturbed.epochs])


def test_steps_go_on_while_a_checkpoint_is_written(context, monkeypatch):
    checkpoints, gate = Checkpoints.of(context.store, {}), threading.Event()
    committed: list[int] = []

    def late(step, loss, index):
        assert gate.wait(60)
        committed.append(step)

    monkeypatch.setattr(Checkpoints, "commit", lambda _, *given: late(*given))
    each, keeper = trainer(), Keeper(SingleProcess(), checkpoints)
    keeper.save(each)
    before = each.net.state_dict()["last.weight"].clone()
    each.run_epoch()
    assert committed == []  # the epoch went by, and the state of before is still being written
    assert not torch.equal(each.net.state_dict()["last.weight"], before)
    gate.set()
    keeper.wait()
    assert committed == [0]


def test_an_error_of_a_checkpoint_reaches_the_training(context, monkeypatch):
    def full(*_: object):
        raise OSError("no space left")

    monkeypatch.setattr(Checkpoints, "commit", full)
    keeper = Keeper(SingleProcess(), Checkpoints.of(context.store, {}))
    with pytest.raises(OSError, match="no space left"):
        train(trainer(), SingleProcess(), keeper=keeper)


def test_a_notice_saves_and_rests_and_the_next_start_goes_on(context):
    undisturbed = trainer()
    train(undisturbed, SingleProcess())
    checkpoints = Checkpoints.of(context.store, {}, Retention(last=1))
    keeper = Keeper(SingleProcess(), checkpoints, notice=lambda: True)
    with pytest.raises(Resting, match="saved after step 1"):
        train(trainer(), SingleProcess(), keeper=keeper)
    resumed = trainer()
    train(resumed, SingleProcess(), keeper=Keeper(SingleProcess(), checkpoints))
    assert [e.valid_loss for e in resumed.epochs] == [e.valid_loss for e in undisturbed.epochs]


def test_time_is_looked_at_about_once_a_second_and_a_checkpoint_comes_when_it_is_up():
    clock = itertools.count(0.0, 0.01)  # a step of ten milliseconds
    asked: list[int] = []
    pulse = Pulse(
        SingleProcess(), Cadence(seconds=3.0), notice=lambda: bool(asked.append(1)), clock=lambda: next(clock)
    )
    told = [pulse.beat() for _ in range(50)]
    assert told.count("save") == 0
    assert len(asked) < 50


def killed(context, tmp_path, kills):
    """Losses of a training of two workers that was killed so often, and how many steps each start repeated."""
    command = [
        sys.executable,
        "-m",
        "tests.functions.training.kept_worker",
        str(tmp_path),
        context.store_url,
        str(kills),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2_400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    repeated, reached = [], 0
    for line in (tmp_path / "log").read_text().splitlines():
        what, step = line.split()
        if what == "from":
            repeated.append(reached - int(step))
        reached = int(step)
    return json.loads((tmp_path / "losses.json").read_text()), repeated


def undisturbed_losses():
    each = trainer(PARAMS)
    train(each, SingleProcess())
    return [epoch.valid_loss for epoch in each.epochs]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.proof)])
def test_workers_killed_at_any_step_learn_as_if_they_had_not_been(context, tmp_path, kills):
    losses, repeated = killed(context, tmp_path, kills)
    assert losses == pytest.approx(undisturbed_losses(), rel=1e-4)
    # an interval, and the steps that were taken while the last checkpoint was being written, which are no more
    assert max(repeated) <= 2 * INTERVAL
    assert len(repeated) >= kills


def test_a_first_checkpoint_counts_though_nobody_has_opened_the_folder(context):
    checkpoints = Checkpoints(context.store, "checkpoints/late/")
    file = f"{checkpoints.parts}rank-0"
    context.store.put(file, b"weights")
    piece = Piece(file, 0, 7, digests_of(memoryview(b"weights")))
    checkpoints.commit(1, 0.5, Index(Metadata({}), {("w", (0,)): piece}))
    assert context.store.get(file) == b"weights"
    assert [saved.step for saved, _ in Checkpoints(context.store, "checkpoints/late/").find_latest()] == [1]


class Large:
    """Trainer whose state is large, of which a step changes all."""

    def __init__(self) -> None:
        self.step, self._weight = 0, torch.zeros(8 << 20)  # 32 MiB

    def state(self):
        self.step += 1
        return {"weight": self._weight.add_(1)}, {}


def test_the_copy_of_a_state_is_kept_from_one_checkpoint_to_the_next(context):
    keeper, trained = Keeper(SingleProcess(), Checkpoints(context.store, "checkpoints/large/")), Large()
    faults = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        keeper.save(trained)
        faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
        keeper.wait()
    assert faults[0] > 32 * 2**20 / 4096 / 2  # pages that the thread of the steps touches
    assert max(faults[1:]) < faults[0] / 10
    keeper.close()
    read = {"weight": torch.empty(8 << 20)}
    saved = Checkpoints(context.store, "checkpoints/large/")
    (newest, index), *_ = saved.find_latest()
    load(read, storage_reader=StoreReader(context.store, index), no_dist=True)
    assert newest.step == 3
    assert read["weight"].eq(3).all()
